"""Images on the devices against images that the loader reads, while training.

  python -m benchmarks.resident [--source=folder:DIR --split=train]
    [--batch-size 256 --width 64 --stem cifar --dtype float32 --small-views 0]
    [--threads CORES --steps 30 --repeats 3]

Trains ODC's ResNet-18 at 32 x 32, as `configs/odc_cifar10.py` has it, and with
--small-views the same network by SwAV with multi-crop. In turns, --repeats
times, --steps steps with the batches of each:

  host       odc_jax.data.loader: read, decoded and cropped with --threads
             threads for every batch
  devices    odc_jax.data.resident: read once, cropped in the step
  none       one batch over and over, as the loader gives it: what the step
             takes where nothing has to be waited for

Prints, as medians: images per second, the share of the time in which the
devices waited for a batch, the CPU time that a batch takes to read, and all of
the host's for a step, which on a CPU is also the devices'; then how long
reading all images once takes, and one line of JSON. Without --source the images
are random, of 32 x 32, and the loader decodes no JPEG.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from configs import odc_cifar10, swav_cifar10
from odc_jax import mesh as mesh_lib
from odc_jax.config import check
from odc_jax.data import capacity, feed, loader, resident, sources
from odc_jax.distributed import processes
from odc_jax.logs import bottleneck
from odc_jax.methods import METHODS
from odc_jax.training.programs import assemble


class Random:
  """Images of 32 x 32 random pixels."""

  num_classes = keys = None

  def __init__(self, length: int):
    rng = np.random.default_rng(0)
    self._pixels = rng.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)

  def __len__(self) -> int:
    return len(self._pixels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = self._pixels[index]
    return {"image": image, "index": index, "key": str(index), "label": None}


def make_config(args, num_examples: int) -> Any:
  """Returns the experiment, changed as the flags say."""
  module = swav_cifar10 if args.small_views else odc_cifar10
  config: Any = module.get_config()
  config.batch_size = args.batch_size
  config.num_clusters = min(config.num_clusters, num_examples)
  config.model.width, config.model.stem = args.width, args.stem
  config.model.dtype = args.dtype
  config.data.num_threads = config.data.prefetch = args.threads
  if args.small_views:
    config.data.small_views = args.small_views
  return check.resolve(config, num_examples, jax.device_count())


def start(config, data: feed.Data) -> Iterator[tuple[Any, float]]:
  """Yields batches, and the CPU seconds that each took the host."""
  batches = feed.train_batches(
    data,
    config.data,
    batch_size=config.batch_size,
    crops=loader.crops(config.data),
    seed=0,
  )
  for batch in batches:
    del batch["bad"]
    yield batch, batch.pop("seconds")


def train(program, state, batches, steps: int, mesh):
  """Takes steps as the loop does.

  Returns:
    The state, seconds in all, seconds that the devices waited, CPU seconds that
    the batches took to read, and CPU seconds of the process.
  """
  stopwatch = bottleneck.Stopwatch()
  reading, scalars = 0.0, {}
  begin, cpu = time.perf_counter(), time.process_time()
  for _ in range(steps):
    with stopwatch.waiting():
      batch, seconds = next(batches)
    state, scalars, _ = program.step(state, processes.to_devices(batch, mesh))
    stopwatch.handed_over(scalars["train/loss"])
    reading += seconds
  jax.block_until_ready(scalars)
  seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
  stopwatch.close()
  return state, seconds, stopwatch.idle_seconds, reading, cpu


def measure(args, source, mesh) -> dict[str, Any]:
  """Returns what is printed."""
  config = make_config(args, len(source))
  program = assemble(config, METHODS[config.method], mesh)
  choice = capacity.decide("images", [source], config.data.image_size, mesh)
  print(choice.why)
  begin = time.perf_counter()
  images = resident.read(
    source, choice, mesh, num_threads=args.threads, met=lambda bad: None
  )
  jax.block_until_ready(images.pixels)
  seconds_to_read = time.perf_counter() - begin

  state = program.init()
  found = {"host": [], "devices": [], "none": []}
  kept = next(start(config, source))
  feeds = {
    "host": start(config, source),
    "devices": start(config, images),
    "none": itertools.repeat(kept),
  }
  # What was read while others had their turn is no measure of anything.
  read_ahead = loader.num_batches_held(config.data)
  for _ in range(args.repeats):
    for name, batches in feeds.items():
      warm = 2 if name == "none" else 2 + read_ahead
      state, *_ = train(program, state, batches, warm, mesh)
      state, *times = train(program, state, batches, args.steps, mesh)
      found[name].append(times)
  ways = {}
  for name, times in found.items():
    seconds, idle, reading, cpu = np.array(times).T
    ways[name] = {
      "images_per_second": statistics.median(
        args.steps * config.batch_size / seconds
      ),
      "data_wait": statistics.median(idle / seconds),
      "reading_ms": 1000 * statistics.median(reading / args.steps),
      "cpu_ms": 1000 * statistics.median(cpu / args.steps),
    }
  return {"ways": ways, "seconds_to_read": seconds_to_read}


def main():
  """Measures and prints."""
  cores = len(os.sched_getaffinity(0))
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--source", default="")
  parser.add_argument("--split", default="")
  parser.add_argument("--num-images", type=int, default=50_000)
  parser.add_argument("--batch-size", type=int, default=256)
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--stem", default="cifar")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--small-views", type=int, default=0)
  parser.add_argument("--threads", type=int, default=cores)
  parser.add_argument("--steps", type=int, default=30)
  parser.add_argument("--repeats", type=int, default=3)
  args = parser.parse_args()
  source = Random(args.num_images)
  if args.source:
    source = sources.make(args.source, args.split)
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh):
    result = measure(args, source, mesh)
  device = jax.devices()[0].device_kind
  print(
    f"batch {args.batch_size} on {mesh.size} x {device}, {args.threads} "
    f"threads, {cores} cores\n\n"
    "           images/s   data wait   CPU ms a batch: reading   in all"
  )
  for name, way in result["ways"].items():
    reading = "-" if name == "none" else f"{way['reading_ms']:.1f}"
    print(
      f"{name:9}{way['images_per_second']:10.0f}{way['data_wait']:12.1%}"
      f"{reading:>26}{way['cpu_ms']:9.1f}"
    )
  print(f"\nreading all images once: {result['seconds_to_read']:.1f} s")
  print(
    json.dumps(
      {
        "benchmark": "resident",
        **vars(args),
        "device": device,
        "devices": mesh.size,
        "cores": cores,
        "jax": jax.__version__,
        **result,
      }
    )
  )


if __name__ == "__main__":
  main()
