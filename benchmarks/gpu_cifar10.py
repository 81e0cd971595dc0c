"""The part of `benchmarks.on_gpu` that learns CIFAR-10 from random weights.

Every method takes its `configs/<method>_cifar10.py`, in bfloat16 and with the
images on the device, for as many epochs as fill the seconds that it is given at
the speed measured before; schedules shrink with the run (`benchmarks.compare`).
The twin that sees labels has the same network, images and augmentation.
"""

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import tempfile
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from benchmarks import compare
from benchmarks import step as step_benchmark
from benchmarks.gpu_speed import Report
from odc_jax import losses
from odc_jax import mesh as mesh_lib
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.data import sources
from odc_jax.distributed import compiler
from odc_jax.methods import METHODS
from odc_jax.methods.method import Method
from odc_jax.training import loop, programs
from odc_jax.training.setup import open_run

# The configs' batch size, for which their learning rates are.
_BATCH_SIZE = 256

_OF_EVALUATIONS = ("eval/", "cluster/nmi_previous", "cluster/empty")
_OF_STEPS = (
  "train/loss",
  "cluster/label_change",
  "speed/images_per_second",
  "speed/data_wait",
)
# Log lines that are kept of a run.
_MOST_LINES = 60


def clustering(options: argparse.Namespace, report: Report) -> None:
  """Trains a method by the program's own loop, and ends with its last scores.

  Args:
    options: Of them, `method` is a name, perhaps with changes of its config:
      odc:num_clusters=100:odc.momentum=0.5.
    report: Is told the curve while it grows.
  """
  name, *changes = options.method.split(":")
  config = _experiment(name, options)
  _change(config, changes)
  found = _timed(config, METHODS[name], options)
  _shorten(config, found["num_epochs"])
  found["config"] = _plain(config)
  report(found)
  config.checkpoint_every_epochs = max(1, config.num_epochs)
  # Beside the results, in a folder that goes with the programs' other files.
  workdir = pathlib.Path(options.found).with_suffix("")
  watch = threading.Thread(
    target=_watch, args=(workdir, found, report), daemon=True
  )
  watch.start()
  loop.train(config, workdir)
  watch.join()


def _watch(workdir, found, report):
  """Reports the curve as it grows; ends the process once it is complete.

  What the loop does after its last evaluation, tables and pages, teaches
  nothing here.
  """
  path = workdir / "metrics.jsonl"
  last = found["num_epochs"] * found["steps_per_epoch"]
  started = time.monotonic()
  size = 0
  while True:
    time.sleep(0.2)
    with contextlib.suppress(FileNotFoundError):
      if path.stat().st_size == size:
        continue
      size = path.stat().st_size
      lines = path.read_text().splitlines(keepends=True)
      lines = [json.loads(line) for line in lines if line.endswith("\n")]
      curve = _curve(lines)
      ended = bool(curve) and curve[-1].get("eval/knn_top1") is not None
      ended = ended and curve[-1]["step"] == last
      report(
        found
        | {
          "wall_seconds": round(time.monotonic() - started, 1),
          "curve": curve,
          "steps": _thinned(lines),
          "complete": ended,
        }
      )
      if ended:
        os._exit(0)


def _curve(lines) -> list[dict[str, Any]]:
  """Returns what was logged at every evaluation."""
  by_step: dict[int, dict[str, Any]] = {}
  change = None
  for line in lines:
    change = line.get("cluster/label_change", change)
    kept = {k: v for k, v in line.items() if k.startswith(_OF_EVALUATIONS)}
    if kept:
      point = by_step.setdefault(
        line["step"],
        {"step": line["step"], "minutes": round(line["time"] / 60, 4)},
      )
      point |= kept
      point["cluster/label_change"] = change
  return list(by_step.values())


def _thinned(lines) -> list[list[Any]]:
  """Returns [step, seconds, *_OF_STEPS] of some log lines."""
  kept = [line for line in lines if "speed/images_per_second" in line]
  kept = kept[:: len(kept) // _MOST_LINES + 1]
  return [
    [line["step"], line["time"], *(line.get(name) for name in _OF_STEPS)]
    for line in kept
  ]


def supervised(options: argparse.Namespace, report: Report) -> None:
  """Trains the same network to tell the true classes."""
  config = _experiment("odc", options)
  num_classes = 10
  config.num_clusters, config.odc.min_cluster = num_classes, 1
  config.optimizer.update(
    learning_rate=0.1 * config.batch_size / _BATCH_SIZE,
    weight_decay=5e-4,
    head_momentum=0.9,
    schedule="cosine",
    warmup_epochs=1.0,
  )
  found = _timed(config, _told(np.zeros(1, np.int32)), options)
  found["method"] = "supervised"
  config.num_epochs = found["num_epochs"]
  found["config"] = _plain(config)
  report(found)
  mesh = mesh_lib.make_mesh(1)
  with (
    tempfile.TemporaryDirectory() as folder,
    jax.set_mesh(mesh),
    contextlib.ExitStack() as stack,
  ):
    run = open_run(config, pathlib.Path(folder), None, mesh, stack)
    begin = time.monotonic()
    told = _told(np.asarray(run.evaluation.train_data.labels))  # pyright: ignore
    program = programs.assemble(run.config, told, mesh)
    state = program.init()
    # It draws the order of a fresh run.
    batches = run.batches(state, 0)
    stack.callback(batches.close)
    curve: list[dict[str, Any]] = []
    half = max(1, run.num_steps // run.steps_per_epoch // 2)
    scalars: Any = {}
    for number in range(run.num_steps + 1):
      if number % (half * run.steps_per_epoch) == 0 or number == run.num_steps:
        network = state.params, state.batch_stats
        features = run.evaluation.train_features(*network)
        subject = run.evaluation.subject(*network, features)
        scores = run.evaluation.scores(subject)
        minutes = round((time.monotonic() - begin) / 60, 4)
        curve.append({"step": number, "minutes": minutes, **scores})
        curve[-1] |= {name: float(x) for name, x in scalars.items()}
        report(found | {"curve": curve, "complete": number == run.num_steps})
      if number < run.num_steps:
        batch, _ = next(batches)
        state, every, _ = program.step(state, batch)
        scalars = {
          name: every[name] for name in ("train/loss", "train/cluster_accuracy")
        }


def _told(labels: np.ndarray) -> Method:
  """Returns a method that is told every image's class."""

  def targets(config, state, views, batch, step):
    return jnp.asarray(labels)[batch["index"] % len(labels)]

  def loss(config, views, targets, state):
    (logits,) = views[0].logits
    value = jnp.mean(losses.cross_entropy(logits, targets))
    return value, {"train/cluster_accuracy": losses.accuracy(logits, targets)}

  return Method(
    NAME="supervised",
    init=lambda config, num_examples, key: (),
    targets=targets,
    loss=loss,
    after_step=lambda config, state, views, targets, batch, step: ((), {}),
  )


def _experiment(name: str, options: argparse.Namespace) -> Any:
  """Returns a method's config, changed to what is the same for all."""
  logging.set_verbosity(logging.WARNING)
  compiler.keep_compiled(os.environ)
  config: Any = importlib.import_module(f"configs.{name}_cifar10").get_config()
  factor = options.batch_size / _BATCH_SIZE
  config.batch_size = options.batch_size
  for key in ("learning_rate", "final_learning_rate"):
    if config.optimizer.get(key):
      config.optimizer[key] *= factor
  config.data.source = f"folder:{options.images}"
  config.data.num_threads = len(os.sched_getaffinity(0))
  config.data.resident = "images"
  config.model.dtype = "bfloat16"
  config.eval.batch_size = 1000
  config.log_every = 20
  if options.small:
    config.batch_size, config.num_clusters, config.log_every = 32, 20, 2
    config.model.width, config.model.neck_hidden = 4, 32
    config.model.embedding_dim, config.eval.batch_size = 16, 100
    config.model.dtype = "float32"
    if name == "deepcluster_v2":
      config.extra_clusters = (20, 20)
    if name == "odc":
      config.odc.min_cluster = 2
  return config


def _change(config: Any, changes: list[str]) -> None:
  """Sets key=value of a config, values as Python writes them."""
  for change in changes:
    key, _, value = change.partition("=")
    try:
      parsed = json.loads(value)
    except json.JSONDecodeError:
      parsed = value
    config.update_from_flattened_dict(
      {key: tuple(parsed) if isinstance(parsed, list) else parsed}
    )


def _shorten(config: Any, num_epochs: int) -> None:
  """Makes a run so long, and evaluates it five times."""
  compare.shorten(config, num_epochs)
  config.eval.every_epochs = max(1, num_epochs // 4)


def _timed(
  config: Config, method: Method, options: argparse.Namespace
) -> dict[str, Any]:
  """Measures the step, and returns how many epochs fill the seconds.

  The images are random, and lie on the device as the true ones will.
  """
  n = len(sources.make(config.data.source, config.data.split))
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    resolved = config_lib.resolve(config, n, 1)
    side = resolved.data.image_size
    program = programs.assemble(resolved, method, mesh, side)
    state = program.init()
    if hasattr(state.method, "centroids") and "odc" in config:
      memories = step_benchmark.random_memories(
        resolved, program.shardings.method
      )
      state = state._replace(method=memories)
    batch = jax.tree.map(
      lambda shape: jnp.zeros(shape.shape, shape.dtype), program.batch
    )
    cuts = batch["image"]
    batch["image"] = type(cuts)(
      cuts.pixels,
      jnp.full_like(cuts.sizes, side),
      tuple(
        jnp.broadcast_to(jnp.array([0, 0, side, side], x.dtype), x.shape)
        for x in cuts.boxes
      ),
      cuts.sides,
    )
    batch["index"] = jnp.arange(resolved.batch_size, dtype=jnp.int32)
    batch = jax.device_put(batch, mesh_lib.rows(mesh))
    begin = time.perf_counter()
    steps = step_benchmark.Steps(program.step, state, [batch])
    compilation = time.perf_counter() - begin
    num = 2 if options.small else 30
    steps(num)
    seconds, _ = step_benchmark.measure({"": steps}, 2, num)
  per_step = min(seconds[""])
  per_epoch = config_lib.steps_per_epoch(resolved)
  num_epochs = max(2, round(options.train_seconds / (per_step * per_epoch)))
  if options.small:
    num_epochs = 2
  views = config.data.get("views", 1)
  return {
    "method": options.method,
    "batch_size": resolved.batch_size,
    "views": views,
    "num_examples": n,
    "steps_per_epoch": per_epoch,
    "num_epochs": num_epochs,
    "train_seconds_wanted": options.train_seconds,
    "step_ms": 1000 * per_step,
    "images_per_second": resolved.batch_size / per_step,
    "compile_seconds": round(compilation, 1),
    "flops_per_second": steps.flops / per_step,
    "columns_of_steps": ["step", "seconds", *_OF_STEPS],
  }


def _plain(config: Config) -> dict[str, Any]:
  """Returns what of the config tells one run from another."""
  kept = json.loads(config.to_json_best_effort())
  names = (config.method, "optimizer", "model", "num_clusters", "batch_size")
  return {name: kept[name] for name in names if name in kept}
