"""What a run hands over: seconds, memory and recall of each part.

  python -m benchmarks.results [--num-examples=100000 --dim=256
    --num-clusters=1000 --noise=0.8 --num-neighbors=10 --exact-below=100000]
  python -m benchmarks.results --whole [--num-examples ...]

With --whole all of it at once, as at the end of a run: clusters.parquet,
clusters.json and, without pictures, report.html.

The embeddings are a mixture of as many unit-length clusters as are asked for:
random directions plus Gaussian noise of norm --noise, normalised again, in
float16 in a file that is mapped into memory, as a run keeps them. Signatures
are noise: the time of the near duplicates does not depend on them.

Memory is the peak of the whole process while a part runs, with the pages of
the file that are in memory. Recall is that of the nearest of 1,000 rows against
an exact search. Prints a table and a line of JSON; asserts nothing.
"""

import argparse
import contextlib
import json
import os
import pathlib
import resource
import tempfile
import time

import numpy as np

from configs import odc_cifar10
from odc_jax import report
from odc_jax.results import (
  duplicates,
  neighbors,
  outliers,
  projection,
  tree,
  write,
)

CHUNK = 65_536
NUM_QUERIES = 1000


def write_embeddings(path, n, centers, clusters, noise) -> None:
  """Writes [n, d] float16 unit rows around the centers of their clusters."""
  rng = np.random.default_rng(0)
  d = centers.shape[1]
  table = np.lib.format.open_memmap(path, "w+", np.float16, (n, d))
  for start in range(0, n, CHUNK):
    own = clusters[start : start + CHUNK]
    x = rng.standard_normal((len(own), d), np.float32)
    x *= np.float32(noise / d**0.5)
    x += centers[own]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    table[start : start + len(own)] = x
  table.flush()


def recall(embeddings, found) -> float:
  """Returns the part of the true nearest other rows that was found."""
  n, k = found.shape
  num = min(NUM_QUERIES, n)
  some = np.arange(num) * n // num
  queries = np.asarray(embeddings[some], np.float32)
  best = np.full((num, k), -np.inf, np.float32)
  rows = np.full((num, k), -1)
  for start in range(0, n, CHUNK):
    chunk = np.asarray(embeddings[start : start + CHUNK], np.float32)
    score = queries @ chunk.T
    inside = np.flatnonzero((some >= start) & (some < start + len(chunk)))
    score[inside, some[inside] - start] = -np.inf
    row = np.arange(start, start + len(chunk))
    row = np.broadcast_to(row, score.shape)
    score = np.concatenate([best, score], axis=1)
    row = np.concatenate([rows, row], axis=1)
    top = np.argpartition(-score, k - 1, axis=1)[:, :k]
    best = np.take_along_axis(score, top, 1)
    rows = np.take_along_axis(row, top, 1)
  pairs = zip(found[some], rows, strict=True)
  return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in pairs]))


def peak_gigabytes() -> float:
  """Returns the peak of resident memory since `forget_peak`."""
  try:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20
  except OSError:  # not Linux: the peak since the start
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def forget_peak() -> None:
  """Begins a new peak, where the system can."""
  with contextlib.suppress(OSError):
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def write_history(workdir: pathlib.Path, n: int, k: int) -> None:
  """Writes what a report says of a run, of the config for folders."""
  config = json.loads(odc_cifar10.get_config().to_json_best_effort())
  config |= {"num_clusters": k, "num_epochs": 1, "num_examples": n}
  config["data"]["source"] = "folder:/not/there"
  (workdir / "config.json").write_text(json.dumps(config))
  line = {"step": 0, "epoch": 0.0, "time": 0.0, "train/loss": float(np.log(k))}
  (workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
  (workdir / "summary.json").write_text("{}")


def write_whole(workdir, centers, clusters, signatures) -> None:
  """Writes what is written at the end of a run."""
  n = len(clusters)
  half = np.full(n, 0.5, np.float32)
  second = (clusters + 1) % len(centers)
  write.write(
    workdir,
    keys=[f"some/folder/of/images/{i:08d}.jpg" for i in range(n)],
    labels=np.full(n, -1, np.int32),
    readable=np.ones(n, bool),
    judged=write.Judged(clusters, clusters, half, second, half, half),
    centroids=centers,
    components={"mean": centers[0], "components": centers[:1]},
    signatures=signatures,
  )


def show(args, parts) -> None:
  """Prints a table of the parts."""
  print(
    f"{args.num_examples} x {args.dim}, {args.num_clusters} clusters, "
    f"{args.num_neighbors} neighbours"
  )
  print(f"{'':20}{'seconds':>10}{'peak GB':>10}")
  for name, part in parts.items():
    print(f"{name:20}{part['seconds']:10.2f}{part['peak_gigabytes']:10.2f}")


def main() -> None:
  """Runs every part and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--num-examples", type=int, default=100_000)
  parser.add_argument("--dim", type=int, default=256)
  parser.add_argument("--num-clusters", type=int, default=1000)
  parser.add_argument("--noise", type=float, default=0.8)
  parser.add_argument("--num-neighbors", type=int, default=10)
  parser.add_argument("--exact-below", type=int, default=100_000)
  parser.add_argument("--whole", action="store_true")
  args = parser.parse_args()
  n, k = args.num_examples, args.num_clusters

  rng = np.random.default_rng(1)
  centers = rng.standard_normal((k, args.dim), np.float32)
  centers /= np.linalg.norm(centers, axis=1, keepdims=True)
  clusters = rng.integers(k, size=n, dtype=np.int32)
  signatures = rng.integers(-20, 21, (n, 256), np.int8)

  parts = {}

  def measure(name, function, *arguments, **options):
    forget_peak()
    begin = time.perf_counter()
    result = function(*arguments, **options)
    parts[name] = {
      "seconds": round(time.perf_counter() - begin, 2),
      "peak_gigabytes": round(peak_gigabytes(), 2),
    }
    return result

  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "features.npy")
    write_embeddings(path, n, centers, clusters, args.noise)
    if args.whole:
      workdir = pathlib.Path(folder)
      write_history(workdir, n, k)
      measure("results", write_whole, workdir, centers, clusters, signatures)
      measure("report", report.write, workdir)
      megabytes = {
        name: round((workdir / name).stat().st_size / 2**20, 1)
        for name in ("clusters.parquet", "clusters.json", "report.html")
      }
      show(args, parts)
      print(megabytes)
      print(
        json.dumps(
          {
            "benchmark": "results, whole",
            **vars(args),
            "cores": os.cpu_count(),
            "parts": parts,
            "megabytes": megabytes,
          }
        )
      )
      return
    table = np.load(path, mmap_mode="r")
    index = measure(
      "index", neighbors.Neighbors, table, exact_below=args.exact_below
    )
    rows, similarities = measure(
      "neighbors", neighbors.neighbors_of_all, index, table, args.num_neighbors
    )
    expected = index.recall
    del index
    found = recall(table, rows)
    scores = measure("outlier scores", outliers.scores, similarities)
    limit = measure("outlier threshold", outliers.threshold, scores)
    measure("near duplicates", duplicates.groups, rows, signatures)
    measure("projection", projection.project, table)
    sizes = np.bincount(clusters, minlength=k)
    merges = measure("tree", tree.merge_tree, centers, sizes)
    if merges is not None:
      numbers = tree.candidates(k)
      measure(
        "silhouettes",
        tree.silhouettes,
        *(table, clusters, centers, merges, numbers),
      )

  show(args, parts)
  share = float(np.mean(scores > limit))
  print(
    f"recall {found:.3f} (tried out: {expected:.3f}); "
    f"{share:.3%} outliers above {limit:.3f}"
  )
  line = {
    "benchmark": "results",
    **vars(args),
    "cores": os.cpu_count(),
    "parts": parts,
    "recall": found,
    "recall_tried_out": expected,
    "outliers": share,
  }
  print(json.dumps(line))


if __name__ == "__main__":
  main()
