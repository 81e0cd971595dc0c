"""What ODC reaches on digits, beside what it starts from.

  python -m benchmarks.digits [--seeds 0 1 2]

Runs `configs/odc_digits.py` with every seed, and the same network untrained
(`num_epochs=0`: the first clustering is all there is). Beside them k-means and
kNN on raw pixels. kNN: k=5, cosine, even rows as index, odd rows as queries.
Prints a table of medians over the seeds and one JSON line.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np
from absl import logging
from sklearn import cluster, datasets, metrics, neighbors

from configs import odc_digits
from odc_jax import train
from odc_jax.evals.clustering import purity

COLUMNS = ("knn_top1", "purity_labels", "nmi_labels", "ari_labels")


def run(seed: int, **overrides) -> dict[str, float]:
  """Returns the summary of one run, with its seconds and its empty clusters."""
  config: Any = odc_digits.get_config()
  config.update({"seed": seed, **overrides})
  with tempfile.TemporaryDirectory() as folder:
    begin = time.perf_counter()
    summary = train.run(config, pathlib.Path(folder) / "run")
    seconds = time.perf_counter() - begin
    lines = (pathlib.Path(folder) / "run" / "metrics.jsonl").read_text()
  empty = [json.loads(x).get("cluster/empty", 0) for x in lines.splitlines()]
  return {**summary, "seconds": seconds, "most_empty": max(empty)}


def raw_pixels(seed: int, num_clusters: int) -> dict[str, float]:
  """Returns the same scores for the pixels themselves."""
  x, labels = datasets.load_digits(return_X_y=True)
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
  """Runs everything and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  results = {
    "k-means on raw pixels, K=10": [raw_pixels(s, 10) for s in args.seeds],
    "k-means on raw pixels, K=30": [raw_pixels(s, 30) for s in args.seeds],
    "random network, K=30": [run(s, num_epochs=0) for s in args.seeds],
    "ODC, K=30": [run(s) for s in args.seeds],
  }
  print(f"\nmedians over seeds {args.seeds}")
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
  trained = results["ODC, K=30"]
  most_empty = max(r["most_empty"] for r in trained)
  print(f"most empty clusters in any log line of ODC's: {most_empty}")
  print(
    json.dumps(
      {
        "benchmark": "digits",
        "seeds": args.seeds,
        "medians": medians,
        "odc_knn_top1": [r["eval/knn_top1"] for r in trained],
        "odc_purity": [r["eval/purity_labels"] for r in trained],
        "most_empty": most_empty,
      }
    )
  )


if __name__ == "__main__":
  main()
