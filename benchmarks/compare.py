"""Every method with the same backbone on the same images.

  python -m benchmarks.compare --methods=all --data=folder:/data/cifar10 \
    --epochs=200
  python -m benchmarks.compare --data=digits --width=16 --stem=imagenet
  python -m benchmarks.compare --methods=odc,swav --data=folder:DIR --minutes=5

Takes each method's `configs/<method>_cifar10.py` (on digits:
`<method>_digits.py`), with `--width` and `--stem` of the ResNet-18, and trains
it for as many epochs, or for as many minutes (how many epochs these are shows
in a run of two), or, with neither, for as long as the config says. What a
schedule counts in epochs (warm-up, decays, frozen heads) shrinks with the run,
and SeLa solves as often in an epoch; an epoch without learning that a method
begins with (CoKe, SeCu) stays. `--quick` takes the configs' `:quick`, whose
numbers of clusters suit some thousand images. SimCLR and BYOL are yardsticks:
their clusters are k-means of the embeddings they end with. ODC's smallest
cluster is 0.16 of the mean one, as on ImageNet. Evaluates what it ends with and
prints one table, and one JSON line: kNN and logistic regression on the frozen
backbone, NMI (arithmetic) of the clusters with the labels, images/s of the
training with its re-clusterings, and the memory that the compiled step takes on
a device. The first row is the backbone untrained, with k-means of ODC's
embeddings. With several seeds, medians. What others have published stands in a
column of its own: it is of another length and never of this program.
"""

import argparse
import importlib
import json
import math
import pathlib
import statistics
import tempfile
from typing import Any

import jax
import numpy as np
from absl import logging

from odc_jax import mesh as mesh_lib
from odc_jax.config import check as config_lib
from odc_jax.data import sources
from odc_jax.methods import METHODS
from odc_jax.plan import measure as measure_lib
from odc_jax.training import loop
from odc_jax.training.programs import assemble

# CIFAR-10, ResNet-18, 1,000 epochs, linear: README of solo-learn.
PUBLISHED = {
  "swav": 0.892,
  "deepcluster_v2": 0.889,
  "simclr": 0.907,
  "byol": 0.926,
}
COLUMNS = {
  "knn": "eval/knn_top1",
  "linear": "eval/linear_top1_lbfgs",
  "NMI": "eval/nmi_labels",
}
# Beside num_epochs, what counts in epochs and belongs to a schedule.
SCHEDULES = (
  "optimizer.warmup_epochs",
  "optimizer.head_freeze_epochs",
  "optimizer.decay_epochs",
  "swav.queue_start_epoch",
  "local_aggregation.warm_epochs",
)


def experiment(name: str, args: argparse.Namespace, seed: int) -> Any:
  """Returns a method's config, with what all methods share."""
  kind = "digits" if args.data == "digits" else "cifar10"
  module = importlib.import_module(f"configs.{name}_{kind}")
  config = module.get_config("quick" if args.quick else "")
  config.seed = seed
  config.data.source = args.data
  config.data.num_threads = args.threads
  config.model.width, config.model.stem = args.width, args.stem
  if config.model.name.startswith("resnet"):
    config.model.name = "resnet18"
  # Only the end counts, and what leads to it is to take no time.
  config.eval.evaluators = ("knn", "linear", "clustering")
  config.eval.every_epochs = config.checkpoint_every_epochs = 10**6
  if args.batch_size:
    config.batch_size = args.batch_size
  if name == "odc" and kind == "cifar10":
    n = len(sources.make(args.data, config.data.split))
    config.odc.min_cluster = max(1, round(0.16 * n / config.num_clusters))
  return config


def shorten(config: Any, num_epochs: int) -> None:
  """Makes an experiment `num_epochs` long, and its schedule with it."""
  factor = num_epochs / config.num_epochs
  for name in SCHEDULES:
    section, key = name.split(".")
    value = config.get(section, {}).get(key)
    if isinstance(value, tuple):
      config[section][key] = tuple(factor * epoch for epoch in value)
    elif value:
      with config.ignore_type():
        config[section][key] = factor * value
  if "sela" in config:
    # As many solves an epoch as before, one of them at the start.
    solves = round(factor * (config.sela.num_solves - 1)) + 1
    config.sela.num_solves = max(2, solves)
  config.num_epochs = num_epochs


def untrained(
  args: argparse.Namespace, seed: int, folder: pathlib.Path
) -> dict[str, float]:
  """Returns the row of the network that ODC begins with."""
  config = experiment("odc", args, seed)
  config.num_epochs = 0
  summary = loop.train(config, folder / f"random_{seed}")
  scores = {column: summary[scalar] for column, scalar in COLUMNS.items()}
  return {**scores, "K": config.num_clusters}


def epoch_ends(workdir: pathlib.Path) -> list[float]:
  """Returns at which second every epoch ended.

  Between the lines of the log where none was written just then.
  """
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  # Of several lines of a step the first: what follows is no training.
  times = {
    line["step"]: line["time"] for line in map(json.loads, reversed(lines))
  }
  config = json.loads((workdir / "config.json").read_text())
  steps = config["num_examples"] // config["batch_size"]
  ends = [steps * (epoch + 1) for epoch in range(config["num_epochs"])]
  known = sorted(times)
  return np.interp(ends, known, [times[step] for step in known]).tolist()


def step_bytes(config: Any) -> int:
  """Returns what the state and the compiled step take on a device."""
  num_examples = len(sources.make(config.data.source, config.data.split))
  mesh = mesh_lib.make_mesh()
  config = config_lib.resolve(config, num_examples, mesh.size)
  method = METHODS[config.method]
  with jax.set_mesh(mesh):
    program = assemble(config, method, mesh)
    usage = measure_lib.measure(
      measure_lib.lowered(config, method, program, mesh)["step"]
    )
  return usage.arguments + usage.added


def measure(
  name: str, args: argparse.Namespace, seed: int, folder: pathlib.Path
) -> dict[str, float]:
  """Trains a method and returns its row."""
  num_epochs = args.epochs or experiment(name, args, seed).num_epochs
  if args.minutes:
    config = experiment(name, args, seed)
    shorten(config, 2)
    config.eval.evaluators = ()
    loop.train(config, folder / f"{name}_speed")
    first, second = epoch_ends(folder / f"{name}_speed")
    num_epochs = max(1, math.floor(60 * args.minutes / (second - first)))
  config = experiment(name, args, seed)
  shorten(config, num_epochs)
  workdir = folder / f"{name}_{seed}"
  summary = loop.train(config, workdir)
  ends = epoch_ends(workdir)
  n = json.loads((workdir / "config.json").read_text())["num_examples"]
  steps = n // config.batch_size
  # Without the first epoch, in which the step is compiled.
  seconds = (ends[-1] - ends[0]) / max(1, len(ends) - 1)
  return {
    **{column: summary[scalar] for column, scalar in COLUMNS.items()},
    "images/s": steps * config.batch_size / seconds if seconds else math.nan,
    "MiB a device": step_bytes(config) / 2**20,
    "epochs": num_epochs,
    "minutes": ends[-1] / 60,
    "K": config.num_clusters,
  }


def main() -> None:
  """Parses the flags."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--methods", default="all", metavar="A,B")
  parser.add_argument("--data", default="tfds:cifar10")
  length = parser.add_mutually_exclusive_group()
  length.add_argument("--epochs", type=int, default=0)
  length.add_argument("--minutes", type=float, default=0)
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0])
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--stem", default="small")
  parser.add_argument("--batch-size", type=int, default=0)
  parser.add_argument("--threads", type=int, default=4)
  parser.add_argument("--keep", type=pathlib.Path, metavar="DIR")
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  names = list(METHODS) if args.methods == "all" else args.methods.split(",")
  if unknown := set(names) - set(METHODS):
    parser.error(
      f"--methods={','.join(unknown)}: choose of {', '.join(METHODS)}"
    )
  with tempfile.TemporaryDirectory() as scratch:
    folder = args.keep or pathlib.Path(scratch)
    found = {
      "random network": [untrained(args, seed, folder) for seed in args.seeds]
    }
    for name in names:
      found[name] = [measure(name, args, seed, folder) for seed in args.seeds]
      jax.clear_caches()
  rows = {
    name: {
      column: statistics.median(row[column] for row in runs)
      for column in runs[0]
    }
    for name, runs in found.items()
  }
  device = jax.devices()[0].device_kind
  print(
    f"ResNet-18, width {args.width}, stem {args.stem}, {args.data}, "
    f"{jax.device_count()} x {device}, seeds {args.seeds}\n"
  )
  columns = list(rows[names[0]])
  print("|", " | ".join(["method", *columns, "published linear"]), "|")
  print("|---" * (len(columns) + 2) + "|")
  for name, row in rows.items():
    cells = [name, *(_cell(c, row[c]) if c in row else "" for c in columns)]
    published = f"{PUBLISHED[name]:.3f}" if name in PUBLISHED else ""
    print("|", " | ".join([*cells, published]), "|")
  print(json.dumps({"device": device, **vars(args), "keep": "", "rows": rows}))


def _cell(column: str, value: float) -> str:
  if math.isnan(value):  # no second epoch to time
    return ""
  if column in COLUMNS:
    return f"{value:.3f}"
  return f"{value:.1f}" if column == "minutes" else f"{value:,.0f}"


if __name__ == "__main__":
  main()
