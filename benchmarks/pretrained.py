"""Clusterings of the features of a frozen, pretrained backbone, by labels.

  python -m benchmarks.pretrained --data=folder:/data/cifar10 --seeds=3

The images lie in train/<class>/ and test/<class>/ and pass the network once;
what is found of them stays in `--workdir`, for the next start. Then, for each
seed: k-means of the features at unit length (ODC's first clustering), and
trained on the same features by the configs that ship, with as many clusters as
classes: ODC, SeCu (41 of its 401 epochs), SCAN's loss and TEMI's, the last two
with the vote of their heads. All are told the number of classes, and nothing
else. Prints accuracy (one to one), NMI and ARI of the test images as
`--evals=assignment` has them, kNN, and minutes of whole runs (the very first
has the pass over the images among them), as medians over the seeds; writes all
numbers to `pretrained.json` in `--workdir` after each run.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import time
from typing import Any

from absl import logging

from configs import odc_folder, secu_cifar10, temi_cifar10
from odc_jax.training import loop

COLUMNS = {
  "ACC": "eval/test_acc_assigned",
  "NMI": "eval/test_nmi_assigned",
  "ARI": "eval/test_ari_assigned",
  "kNN": "eval/knn_top1",
}
METHODS = ("kmeans", "odc", "secu", "scan", "temi")


def experiment(name: str, args: argparse.Namespace, seed: int) -> Any:
  """Returns the config of a row of the table."""
  temi: Any = temi_cifar10.get_config()
  config: Any
  if name in ("kmeans", "odc"):
    config = odc_folder.get_config()
  elif name == "secu":
    config = secu_cifar10.get_config()
  else:
    config = temi
    config.temi.objective = name
  with config.unlocked(), config.ignore_type():
    if name == "kmeans":
      config.num_epochs = 0
    if name == "secu":
      config.num_epochs = 41
      for key in ("name", "stem", "weights", "train"):
        config.model[key] = temi.model[key]
    config.seed = seed
    config.data.update(temi.data)
    config.augment.update(temi.augment)
    config.data.source = args.data
    config.data.num_threads = args.threads
    config.num_clusters = args.num_clusters
    if args.weights:
      config.model.weights = args.weights
    config.eval.split = "test"
    config.eval.evaluators = ("assignment", "knn")
    # Only the end counts, and what leads to it is to take no time.
    config.eval.every_epochs = config.checkpoint_every_epochs = 10**6
  return config


def main() -> None:
  """Runs all methods, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data", required=True)
  parser.add_argument("--methods", default=",".join(METHODS))
  parser.add_argument("--num_clusters", type=int, default=10)
  parser.add_argument("--weights", default="")
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--workdir", type=pathlib.Path, default="runs/pretrained")
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  found: dict[str, list[dict[str, float]]] = {}
  for seed in range(args.seeds):
    for name in args.methods.split(","):
      workdir = args.workdir / f"{name}_{seed}"
      shutil.rmtree(workdir, ignore_errors=True)  # but not the features
      begin = time.monotonic()
      summary = loop.train(experiment(name, args, seed), workdir)
      minutes = (time.monotonic() - begin) / 60
      values = {column: summary[key] for column, key in COLUMNS.items()}
      found.setdefault(name, []).append(values | {"minutes": minutes})
      text = json.dumps(found, indent=2)
      (args.workdir / "pretrained.json").write_text(text)
  columns = (*COLUMNS, "minutes")
  print(" | ".join(("method", *columns)))
  for name, runs in found.items():
    medians = [
      statistics.median(run[column] for run in runs) for column in columns
    ]
    print(" | ".join((name, *(f"{value:.3f}" for value in medians))))


if __name__ == "__main__":
  main()
