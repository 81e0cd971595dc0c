"""Times the training step, and what ODC's memories add to it.

  python -m benchmarks.step [--against=torch]

In turns, so that whatever else the machine does hits all of them:

* the ODC step as `train.py` runs it, with full-size memories of random rows;
* the same without memories: the same network, augmentation and optimiser
  classify targets that never change;
* the network alone: the same again, with its images augmented beforehand;
* the augmentation alone;
* with --against=torch, a PyTorch twin of "the network alone", eager and
  compiled: the same layers, loss and optimiser, channels last, on the same
  images in the same dtype (under autocast where that is bfloat16). PyTorch's
  ratios are against the faster of the two. Needs the extra `torch`.

Every number is a median over --repeats, on the clock and, because other
programs lengthen that, in seconds that the host's cores computed; a ratio is
the median of the ratios within a repeat. The share of the memories is
(ODC - without) / without. No cluster gets small here: `benchmarks.memory` times
a split. The ends of epochs, where the running sums are made exact, are left
out.

The fraction of the peak takes XLA's count of FLOPs before optimisation (an
addition and a multiplication are two) and the peaks of `benchmarks/peak.py`.

On a GPU or TPU: ResNet-50 as `configs/odc_imagenet.py` has it. On a CPU:
ResNet-18 at 32 x 32 as `configs/odc_cifar10.py` has it, at batch 64. Prints a
table and one JSON line.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peak, twin
from configs import odc_cifar10, odc_imagenet
from odc_jax import losses, memory
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import spherical
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.data import augment
from odc_jax.distributed import compiler
from odc_jax.memory import SampleMemory
from odc_jax.methods import METHODS, odc
from odc_jax.methods.method import Method
from odc_jax.models.functional import functional
from odc_jax.models.network import build
from odc_jax.training import optim, programs
from odc_jax.training import step as step_lib

NUM_EXAMPLES = {"imagenet": 1_281_167, "cifar10": 50_000}


def make_config(args) -> Config:
  """Returns the experiment of the backend, changed as the flags say."""
  on_cpu = jax.default_backend() == "cpu"
  config: Any = (odc_cifar10 if on_cpu else odc_imagenet).get_config()
  if on_cpu:
    config.batch_size = 64
  for name in ("batch_size", "num_clusters"):
    if getattr(args, name) is not None:
      config[name] = getattr(args, name)
  for flag, section, name in (
    ("image_size", "data", "image_size"),
    ("model", "model", "name"),
    ("stem", "model", "stem"),
    ("width", "model", "width"),
    ("dim", "model", "embedding_dim"),
    ("dtype", "model", "dtype"),
  ):
    if getattr(args, flag) is not None:
      config[section][name] = getattr(args, flag)
  if config.batch_size % (config.model.group_size or 1):
    config.model.group_size = 0
  num_examples = (
    args.num_examples or NUM_EXAMPLES["cifar10" if on_cpu else "imagenet"]
  )
  return config_lib.resolve(config, num_examples, jax.device_count())


def fixed_targets(num_clusters: int) -> Method:
  """Returns a method without memory: an image's target is its number mod k."""

  def loss(config, views, targets, state):
    del config, state
    (logits,) = views[0].logits
    value = jnp.mean(losses.cross_entropy(logits, targets))
    accuracy = losses.accuracy(logits, targets)
    return value, {"train/cluster_accuracy": accuracy}

  return Method(
    NAME="fixed targets",
    init=lambda config, num_examples, key: (),
    targets=lambda config, state, views, batch, step: (
      batch["index"] % num_clusters
    ),
    loss=loss,
    after_step=lambda config, state, views, targets, batch, step: ((), {}),
  )


def random_memories(config: Config, shardings: Any) -> odc.ODCState:
  """Returns memories of random unit rows in clusters of equal size."""
  n, k = mesh_lib.padded_rows(config.num_examples), config.num_clusters

  def fill():
    shape = (n, config.model.embedding_dim)
    # Not negative, like all embeddings.
    rows = jnp.abs(jax.random.normal(jax.random.key(0), shape))
    number = jnp.arange(n, dtype=jnp.int32)
    real = number < config.num_examples
    samples = SampleMemory(
      jnp.where(real[:, None], spherical.normalize(rows), 0).astype(
        config.odc.memory_dtype
      ),
      jnp.where(real, number % k, k),
      jnp.where(real, number % k, k),
    )
    centroids = memory.recompute(samples, k)
    return odc.ODCState(samples, centroids, jnp.int32(0))

  return jax.jit(fill, out_shardings=shardings)()


def make_batches(config: Config, mesh, num: int) -> list[dict[str, jax.Array]]:
  """Returns batches of random images, no image twice in one of them."""
  rng = np.random.default_rng(0)
  size = config.data.image_size
  batches = []
  for _ in range(num):
    index = rng.choice(config.num_examples, config.batch_size, replace=False)
    shape = (config.batch_size, 1, size, size, 3)
    batch = {
      "image": (rng.integers(0, 256, shape, np.uint8),),
      "index": index.astype(np.int32),
    }
    batches.append(jax.device_put(batch, mesh_lib.rows(mesh)))
  return batches


class Steps:
  """A compiled step and the state that it carries on.

  Attributes:
    flops: Of one step, as XLA counts them before optimisation; NaN where it
      does not.
    dissolved: Clusters that got too small so far.
  """

  def __init__(self, step: Any, state: Any, batches: list[Any]):
    """Compiles, and runs once: the first step begins an epoch."""
    lowered = step.lower(state, batches[0])
    cost = lowered.cost_analysis() or {}
    self.flops = float(cost.get("flops", math.nan))
    self._step = lowered.compile()
    self._batches = batches
    self._state = state
    self.dissolved = 0
    self(1)

  def __call__(self, num: int) -> None:
    """Takes `num` steps and waits for the last one."""
    scalars: list[Any] = []
    for i in range(num):
      batch = self._batches[i % len(self._batches)]
      self._state, new, _ = self._step(self._state, batch)
      scalars.append(new)
    jax.block_until_ready((self._state, scalars))
    self.dissolved += sum(
      int(new.get("cluster/dissolved", 0)) for new in scalars
    )


def ours(config: Config, mesh) -> Iterator[tuple[str, Callable[[int], None]]]:
  """Yields what is timed of ours, each as it is compiled.

  Args:
    config: A resolved experiment of ODC.
    mesh: The devices.

  Yields:
    A name, and what takes n steps and waits for them. The first ones are
    `Steps`.
  """
  batches = make_batches(config, mesh, 4)

  whole = programs.assemble(config, METHODS["odc"], mesh)
  state = whole.init()
  state = state._replace(method=random_memories(config, whole.shardings.method))
  yield "ODC step", Steps(whole.step, state, batches)

  fixed = fixed_targets(config.num_clusters)
  plain = programs.assemble(config, fixed, mesh)
  yield "without memories", Steps(plain.step, plain.init(), batches)

  augmentation = jax.jit(
    lambda key, batch: augment.augment_views(
      config.augment, key, batch["image"], batch["index"]
    )
  )
  key = jax.random.key(0)
  ready = [
    {"image": augmentation(key, batch), "index": batch["index"]}
    for batch in batches
  ]
  network = functional(
    lambda rngs: build(config.model, (config.num_clusters,), rngs)
  )
  optimizer = optim.make(
    config.optimizer, config.num_examples // config.batch_size
  )
  step = step_lib.make_step(
    config, fixed, network, optimizer, lambda key, images, index: images
  )
  alone = jax.jit(
    step, donate_argnums=0, compiler_options=compiler.compiler_options(mesh)
  )
  yield "network alone", Steps(alone, plain.init(), ready)

  def augment_alone(num):
    # Kept as they come, as by the steps, rather than all at once.
    for i in range(num):
      images = augmentation(key, batches[i % len(batches)])
    jax.block_until_ready(images)

  yield "augmentation alone", augment_alone


def measure(
  runs: dict[str, Callable[[int], None]], repeats: int, steps: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
  """Returns the seconds per step of every repeat, all runs in turns.

  Those on the clock, and those that all cores of the host together computed.
  """
  wall: dict[str, list[float]] = {name: [] for name in runs}
  cpu: dict[str, list[float]] = {name: [] for name in runs}
  for repeat in range(repeats):
    # Every other time backwards, so that none always follows the same one.
    for name in list(runs)[:: 1 if repeat % 2 == 0 else -1]:
      start, computed = time.perf_counter(), time.process_time()
      runs[name](steps)
      wall[name].append((time.perf_counter() - start) / steps)
      cpu[name].append((time.process_time() - computed) / steps)
  return wall, cpu


def main() -> None:
  """Parses the sizes, measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", choices=list(twin.RESNETS))
  parser.add_argument("--stem", choices=("imagenet", "small"))
  parser.add_argument("--width", type=int)
  parser.add_argument("--image-size", type=int)
  parser.add_argument("--batch-size", type=int)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--num-examples", type=int)
  parser.add_argument("--num-clusters", type=int)
  parser.add_argument("--dim", type=int)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--steps", type=int, help="steps per repeat")
  parser.add_argument("--against", choices=("torch",))
  args = parser.parse_args()
  config = make_config(args)
  on_cpu = jax.default_backend() == "cpu"
  steps = args.steps or (1 if on_cpu else 20)
  if on_cpu:
    print("no accelerator: small sizes, on the CPU")

  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh):
    runs: dict[str, Any] = dict(ours(config, mesh))
    remarks = ""
    if args.against:
      import torch

      runs.update(twin.twins(config))
      threads = torch.get_num_threads()
      remarks = f"torch {torch.__version__}, {threads} threads"
    seconds, cpu_seconds = measure(runs, args.repeats, steps)
    dissolved = runs["ODC step"].dissolved

  def ratio(over, under, seconds=seconds):
    pairs = zip(seconds[over], seconds[under], strict=True)
    return statistics.median(a / b for a, b in pairs)

  flops = runs["network alone"].flops
  median = {name: statistics.median(x) for name, x in seconds.items()}
  cpu_median = {name: statistics.median(x) for name, x in cpu_seconds.items()}
  rate = flops / median["network alone"]
  most = peak.of_devices(config.model.dtype, jax.device_count())
  memories = ratio("ODC step", "without memories") - 1
  augmentation = ratio("augmentation alone", "ODC step")
  size = config.data.image_size
  print(
    f"{config.model.name}, {config.model.stem} stem, {config.batch_size} "
    f"images of {size} x {size}, {config.model.dtype}; "
    f"N={config.num_examples} K={config.num_clusters} "
    f"D={config.model.embedding_dim}"
  )
  print(
    f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
    f"jax {jax.__version__}" + (f"; {remarks}" if remarks else "")
  )
  print(f"{'':24}{'ms':>10}{'images/s':>12}{'CPU ms':>10}")
  for name, value in median.items():
    per_second = config.batch_size / value
    print(
      f"{name:24}{1000 * value:10.1f}{per_second:12.1f}"
      f"{1000 * cpu_median[name]:10.1f}"
    )
  print(f"memories                {100 * memories:+10.2f} % of the rest")
  print(f"augmentation            {100 * augmentation:10.2f} % of the step")
  print(
    f"network alone           {rate / 1e12:10.3f} TFLOP/s"
    + (f", {100 * rate / most:.1f} % of the peak" if most else "")
  )
  report = {
    "benchmark": "step",
    "model": config.model.to_dict(),
    "image_size": config.data.image_size,
    "batch_size": config.batch_size,
    "num_examples": config.num_examples,
    "num_clusters": config.num_clusters,
    "steps": steps,
    "repeats": args.repeats,
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "jax": jax.__version__,
    "seconds": median,
    "cpu_seconds": cpu_median,
    "memories_share": memories,
    "augmentation_share": augmentation,
    "dissolved": dissolved,
    "flops": flops,
    "flops_per_second": rate,
    "fraction_of_peak": rate / most if most else None,
  }
  if args.against:
    theirs = [name for name in seconds if "PyTorch" in name]
    fastest = min(theirs, key=lambda name: median[name])
    report["torch"] = remarks
    report["speed_against_torch"] = ratio(fastest, "network alone")
    report["cpu_time_of_torch"] = ratio(fastest, "network alone", cpu_seconds)
    print(
      f"network alone against {fastest}: {report['speed_against_torch']:.2f} "
      f"of its speed, {report['cpu_time_of_torch']:.2f} by the host's CPU time"
    )
  print(json.dumps(report))


if __name__ == "__main__":
  main()
