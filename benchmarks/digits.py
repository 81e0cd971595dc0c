"""What ODC reaches on digits, beside what it starts from.

  python -m benchmarks.digits [--seeds 0 1 2]

Runs `configs/odc_digits.py` with every seed, and the same network untrained
(`num_epochs=0`: the first clustering is all there is). Beside them k-means and
kNN on raw pixels. kNN: k=5, cosine, even rows as index, odd rows as queries.
Prints a table of medians over the seeds, what the runs hand over is worth, and
one JSON line. With --keep=DIR the runs stay there.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from sklearn import cluster, datasets, metrics, neighbors

import odc_jax
from configs import odc_digits
from odc_jax.evals.scores import purity
from odc_jax.training import loop

COLUMNS = ("knn_top1", "purity_labels", "nmi_labels", "ari_labels")


def run(workdir: pathlib.Path, seed: int, **overrides) -> dict[str, float]:
  """Returns the summary of one run, with its seconds and its empty clusters."""
  config: Any = odc_digits.get_config()
  config.update({"seed": seed, **overrides})
  begin = time.perf_counter()
  summary = loop.train(config, workdir)
  seconds = time.perf_counter() - begin
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  empty = [json.loads(line).get("cluster/empty", 0) for line in lines]
  return {**summary, "seconds": seconds, "most_empty": max(empty)}


def use(workdir: pathlib.Path) -> dict[str, float]:
  """Returns what a run that is used for new images gets right.

  Novel images are 200 each of negatives of digits, noise of 8 x 8 and of
  32 x 32 pixels, and pieces of scikit-learn's two photographs. Digits that are
  shifted by a pixel are not novel.
  """
  trained = odc_jax.load(workdir)
  table = trained.clusters().to_pydict()
  digits: Any = datasets.load_digits()
  pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
  rng = np.random.default_rng(0)
  scenes = datasets.load_sample_images().images
  corners = rng.integers(300, size=(200, 2))
  novel = {
    "negatives": list(255 - pixels[:200]),
    "noise": list(rng.integers(256, size=(200, 8, 8), dtype=np.uint8)),
    "fine noise": list(rng.integers(256, size=(200, 32, 32), dtype=np.uint8)),
    "photographs": [
      scenes[i % 2][y : y + 120, x : x + 120]
      for i, (y, x) in enumerate(corners)
    ],
  }
  shifted = np.roll(pixels, 1, axis=2)[::9]
  novel = {"shifted digits": list(shifted), **novel}
  again = trained.assign(list(pixels))
  same = again["cluster"].to_numpy() == np.array(table["cluster"])
  groups = trained.groups(10)[table["cluster"]]
  return {
    "assigned again": float(np.mean(same)),
    "ARI of 10 groups": float(
      metrics.adjusted_rand_score(table["label"], groups)
    ),
    **{
      f"{name} called novel": float(
        np.mean(trained.assign(images)["is_novel"].to_numpy())
      )
      for name, images in novel.items()
    },
  }


def raw_pixels(seed: int, num_clusters: int) -> dict[str, float]:
  """Returns the same scores for the pixels themselves."""
  digits: Any = datasets.load_digits()
  x, labels = digits.data, digits.target
  found = cluster.KMeans(
    num_clusters,
    n_init=10,  # pyright: ignore[reportArgumentType] (inferred from "auto")
    random_state=seed,
  ).fit_predict(x)
  knn = neighbors.KNeighborsClassifier(5, metric="cosine")
  knn.fit(x[::2], labels[::2])
  return {
    "eval/knn_top1": float(np.mean(knn.predict(x[1::2]) == labels[1::2])),
    "eval/purity_labels": purity(labels, found),
    "eval/nmi_labels": float(
      metrics.normalized_mutual_info_score(labels, found)
    ),
    "eval/ari_labels": float(metrics.adjusted_rand_score(labels, found)),
  }


def main() -> None:
  """Parses the flags."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--keep", type=pathlib.Path, metavar="DIR")
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  with tempfile.TemporaryDirectory() as folder:
    measure(args.seeds, args.keep or pathlib.Path(folder))


def measure(seeds: Sequence[int], folder: pathlib.Path) -> None:
  """Runs everything below a folder and prints."""
  results = {
    "k-means on raw pixels, K=10": [raw_pixels(s, 10) for s in seeds],
    "k-means on raw pixels, K=30": [raw_pixels(s, 30) for s in seeds],
    "random network, K=30": [
      run(folder / f"random_{s}", s, num_epochs=0) for s in seeds
    ],
    "ODC, K=30": [run(folder / f"odc_{s}", s) for s in seeds],
  }
  uses = [use(folder / f"odc_{s}") for s in seeds]
  print(f"\nmedians over seeds {seeds}")
  print("| | kNN top-1 | purity | NMI | ARI | seconds |")
  print("|---|---|---|---|---|---|")
  medians = {}
  for name, runs in results.items():
    medians[name] = {
      column: statistics.median(r[f"eval/{column}"] for r in runs)
      for column in COLUMNS
    }
    seconds = [r["seconds"] for r in runs if "seconds" in r]
    cells = [f"{medians[name][column]:.3f}" for column in COLUMNS]
    cells.append(f"{statistics.median(seconds):.0f}" if seconds else "")
    print(f"| {name} | {' | '.join(cells)} |")
  print()
  for name in uses[0]:
    values = [found[name] for found in uses]
    print(f"{name:28} {statistics.median(values):.3f}  {np.round(values, 3)}")
  trained = results["ODC, K=30"]
  most_empty = max(r["most_empty"] for r in trained)
  print(f"most empty clusters in any log line of ODC's: {most_empty}")
  print(
    json.dumps(
      {
        "benchmark": "digits",
        "seeds": seeds,
        "uses": uses,
        "medians": medians,
        "odc_knn_top1": [r["eval/knn_top1"] for r in trained],
        "odc_purity": [r["eval/purity_labels"] for r in trained],
        "most_empty": most_empty,
      }
    )
  )


if __name__ == "__main__":
  main()
