"""Our k-means against faiss, on the same rows, from the same start.

  python -m benchmarks.kmeans [--num-examples=200000 --dim=256
    --num-clusters=1000 --iters=20 --devices=1 --repeats=1]

Those are a CPU's defaults. On a GPU or TPU they are ImageNet's, 1,281,167 rows
and 10,000 clusters, and faiss, which runs on the host, is left out unless
--faiss asks for it.

The rows are a mixture of as many unit-norm clusters as are asked for: unit
Gaussian directions plus Gaussian noise of norm --noise, normalised again, as
ODC's rows are. Both start from the same random rows and give the labels of a
final search. Inertia is that of the labels, about their own means, computed
by numpy for both.

Equal work: faiss 1.15 stops once its objective no longer falls; that is turned
off. Ours stops at an exact fixed point, so the default --noise overlaps the
clusters enough not to reach one, and "converged" in the JSON says whether it
did: the times then do not compare. faiss is run with one thread and with all,
and its better time counts, since on a busy machine more can be slower.

FLOPs are those of the scores, 2 N K D an iteration and as many for the final
assignment. They are computed in float32; on an accelerator the table holds them
against its peaks (`benchmarks/peak.py`) in float32 and, what it could do at
most, bfloat16.

Compilation is reported apart. Prints a table and a line of JSON; asserts
nothing.
"""

import argparse
import importlib.metadata
import json
import time

import jax
import numpy as np


def mixture(n: int, d: int, k: int, noise: float) -> np.ndarray:
  """Returns [n, d] unit rows around k random directions."""
  rng = np.random.default_rng(0)
  centers = rng.standard_normal((k, d), np.float32)
  centers /= np.linalg.norm(centers, axis=1, keepdims=True)
  x = rng.standard_normal((n, d), np.float32) * np.float32(noise / d**0.5)
  x += centers[rng.integers(k, size=n)]
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def inertia(x: np.ndarray, labels: np.ndarray, k: int) -> float:
  """Returns the sum of squared distances to the means of the labels."""
  order = np.argsort(labels, kind="stable")
  sizes = np.bincount(labels, minlength=k)
  starts = (np.cumsum(sizes) - sizes)[sizes > 0]
  sums = np.add.reduceat(x[order], starts, axis=0, dtype=np.float64)
  total = np.sum(np.einsum("nd,nd->n", x, x, dtype=np.float64))
  return float(total - np.sum(sums**2 / sizes[sizes > 0, None]))


def run_faiss(faiss, x, init, iters, threads):
  """Returns the seconds, labels and iterations of faiss's k-means."""
  faiss.omp_set_num_threads(threads)
  (n, d), k = x.shape, len(init)
  clustering = faiss.Clustering(d, k)
  clustering.niter = iters
  if hasattr(clustering, "early_stop_threshold"):
    clustering.early_stop_threshold = -1.0
  clustering.max_points_per_centroid = n  # no sub-sampling
  clustering.min_points_per_centroid = 1  # no warning
  faiss.copy_array_to_vector(init.ravel(), clustering.centroids)
  index = faiss.IndexFlatL2(d)
  begin = time.perf_counter()
  clustering.train(x, index)
  _, labels = index.search(x, 1)
  seconds = time.perf_counter() - begin
  iterations = clustering.iteration_stats.size()
  return seconds, labels[:, 0], iterations


def main() -> None:
  """Runs both and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--num-examples", type=int)
  parser.add_argument("--dim", type=int, default=256)
  parser.add_argument("--num-clusters", type=int)
  parser.add_argument("--iters", type=int, default=20)
  parser.add_argument("--noise", type=float, default=8.0)
  parser.add_argument("--devices", type=int, default=1)
  parser.add_argument("--repeats", type=int, default=1)
  parser.add_argument("--chunk-size", type=int, default=None)
  parser.add_argument("--faiss", action=argparse.BooleanOptionalAction)
  args = parser.parse_args()

  # Only counts on a CPU; has to be set before anything asks for a device.
  jax.config.update("jax_num_cpu_devices", args.devices)
  from benchmarks import peak
  from odc_jax import mesh as mesh_lib
  from odc_jax.clustering.kmeans import kmeans

  on_cpu = jax.default_backend() == "cpu"
  n = args.num_examples or (200_000 if on_cpu else 1_281_167)
  k = args.num_clusters or (1000 if on_cpu else 10_000)
  faiss, no_faiss = None, "left out"
  if on_cpu if args.faiss is None else args.faiss:
    try:
      import faiss
    except ImportError:
      no_faiss = "not installed: pip install faiss-cpu"
  x = mixture(n, args.dim, k, args.noise)
  init = x[np.random.default_rng(1).choice(n, k, replace=False)]

  mesh = mesh_lib.make_mesh(args.devices)
  with jax.set_mesh(mesh):
    padded = np.pad(x, ((0, -n % args.devices), (0, 0)))
    memory = jax.device_put(padded, mesh_lib.rows(mesh))
    start = jax.device_put(init, mesh_lib.replicated(mesh))
    fit = jax.jit(
      lambda x, init, key, num_iters: kmeans(
        x,
        key,
        num_examples=n,
        num_clusters=k,
        num_iters=num_iters,
        init=init,
        chunk_size=args.chunk_size,
      )
    )
    begin = time.perf_counter()
    key, iters = jax.random.key(0), jax.numpy.int32(args.iters)
    fit = fit.lower(memory, start, key, iters).compile()
    compilation = time.perf_counter() - begin
    ours, theirs = [], {}
    all_threads = faiss.omp_get_max_threads() if faiss else 0
    faiss_labels, faiss_iterations = None, None
    # In turns, so that whatever else the machine does hits both.
    for _ in range(args.repeats):
      begin = time.perf_counter()
      result = jax.block_until_ready(fit(memory, start, key, iters))
      ours.append(time.perf_counter() - begin)
      for threads in sorted({1, all_threads} if faiss else ()):
        seconds, faiss_labels, faiss_iterations = run_faiss(
          faiss, x, init, args.iters, threads
        )
        theirs[threads] = min(seconds, theirs.get(threads, seconds))
    before = fit(memory, start, key, iters - 1)
    converged = np.array_equal(before.centroids, result.centroids)
    labels = np.asarray(result.assignments)[:n]

  flops = 2.0 * n * args.dim * k * (args.iters + 1) / min(ours)
  peaks = {
    dtype: peak.of_devices(dtype, args.devices)
    for dtype in ("float32", "bfloat16")
  }
  fractions = {dtype: flops / most for dtype, most in peaks.items() if most}
  report = {
    "benchmark": "kmeans",
    "num_examples": n,
    "dim": args.dim,
    "num_clusters": k,
    "iters": args.iters,
    "noise": args.noise,
    "devices": args.devices,
    "platform": jax.default_backend(),
    "device": jax.devices()[0].device_kind,
    "flops_per_second": flops,
    "fraction_of_peak": fractions,
    "seconds": round(min(ours), 3),
    "compile_seconds": round(compilation, 3),
    "inertia": inertia(x, labels, k),
    "empty": int(k - len(np.unique(labels))),
    "converged": converged,
  }
  print(
    f"k-means, {n} x {args.dim}, {k} clusters, {args.iters} iterations, "
    f"best of {args.repeats}"
  )
  print(f"{'':10}{'seconds':>10}{'ratio':>8}{'inertia':>14}{'ratio':>10}")
  if faiss_labels is None:
    print(f"faiss     {no_faiss}")
    report["faiss"] = None
    ratio, inertia_ratio = "", ""
  else:
    theirs_inertia = inertia(x, faiss_labels, k)
    report["faiss"] = {
      "version": importlib.metadata.version("faiss-cpu"),
      "iterations": faiss_iterations,
      "seconds_by_threads": {t: round(s, 3) for t, s in theirs.items()},
      "inertia": theirs_inertia,
      "empty": int(k - len(np.unique(faiss_labels))),
    }
    report["time_ratio"] = round(min(ours) / min(theirs.values()), 4)
    report["inertia_ratio"] = round(report["inertia"] / theirs_inertia, 6)
    print(
      f"{'faiss':10}{min(theirs.values()):10.2f}{1:8.2f}{theirs_inertia:14.1f}{1:10.5f}"
    )
    ratio = f"{report['time_ratio']:.2f}"
    inertia_ratio = f"{report['inertia_ratio']:.5f}"
  print(
    f"{'odc_jax':10}{min(ours):10.2f}{ratio:>8}{report['inertia']:14.1f}"
    f"{inertia_ratio:>10}   (compiled in {compilation:.1f} s)"
  )
  print(
    f"{flops / 1e12:.3f} TFLOP/s"
    + "".join(
      f", {100 * fraction:.1f} % of the {dtype} peak"
      for dtype, fraction in fractions.items()
    )
  )
  print(json.dumps(report))


if __name__ == "__main__":
  main()
