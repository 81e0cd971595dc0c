"""Times the memory part of an ODC step: python -m benchmarks.memory

Everything a step does besides the network: blend and write a batch of rows,
assign them, move the running sums, refresh the centroids (every 10 steps),
look for small clusters. Then one step in which a cluster is dissolved and the
largest is split. Beside it, in the same run, the same work in NumPy as the
official code does it on the host (odc_memory.py, odc_hook.py): all centroids
from all features, all counts from all labels.

Prints a table and one JSON line.
"""

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from odc_jax import memory
from odc_jax import mesh as mesh_lib
from odc_jax.memory import SampleMemory
from odc_jax.methods import odc
from odc_jax.models.network import Outputs


def make_config(args) -> ConfigDict:
  """Returns what `odc.after_step` reads."""
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": args.num_examples,
      "num_clusters": args.num_clusters,
      "batch_size": args.batch_size,
      "odc": {
        "momentum": 0.5,
        "assign_metric": "dot",
        "centroid_every": 10,
        "small_cluster_every": 1,
        "min_cluster": 20,
      },
    }
  )


def make_data(args) -> tuple[np.ndarray, np.ndarray]:
  """Returns unit features around random centres, and their clusters.

  One cluster has five times the usual size: the one that will be split.
  """
  rng = np.random.default_rng(0)
  n, d, k = args.num_examples, args.dim, args.num_clusters
  clusters = rng.permutation(np.arange(n) % k).astype(np.int32)
  clusters[rng.choice(n, 4 * n // k, replace=False)] = 0
  centers = np.abs(rng.standard_normal((k, d), np.float32))
  features = np.abs(
    centers[clusters] + 0.5 * rng.standard_normal((n, d), np.float32)
  )
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  return features, clusters


def time_ours(args, features, clusters) -> dict[str, float]:
  """Returns seconds per step and per step with a split."""
  config = make_config(args)
  n, k = args.num_examples, args.num_clusters
  mesh = mesh_lib.make_mesh()
  rows = mesh_lib.rows(mesh)
  padding = mesh_lib.padded_rows(n) - n
  with jax.set_mesh(mesh):
    features = np.pad(features, ((0, padding), (0, 0)))
    assignments = np.pad(clusters, (0, padding), constant_values=k)
    samples = SampleMemory(
      features=jax.device_put(features, rows),
      assignments=jax.device_put(assignments, rows),
      previous=jax.device_put(assignments, rows),
    )
    recompute = jax.jit(memory.recompute, static_argnums=1)
    state = odc.ODCState(samples, recompute(samples, k), jnp.int32(0))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, embeddings, index, t):
      views = (Outputs(embeddings, embeddings),)
      return odc.after_step(config, state, views, None, {"index": index}, t)

    rng = np.random.default_rng(1)

    def batch():
      index = rng.integers(n, size=args.batch_size, dtype=np.int32)
      noise = rng.standard_normal((args.batch_size, args.dim), np.float32)
      embeddings = np.abs(features[index] + 0.1 * noise)
      return jax.device_put((embeddings, index), rows)

    batches = [batch() for _ in range(20)]
    # Steps 0 to 19 hold two refreshes and no end of an epoch.
    state, _ = step(state, *batches[0], jnp.int32(1))
    jax.block_until_ready(state)
    seconds = []
    for _ in range(args.repeats):
      start = time.perf_counter()
      dissolved = 0
      for t, b in enumerate(batches, start=1):
        state, aux = step(state, *b, jnp.int32(t))
        dissolved += aux["cluster/dissolved"]
      jax.block_until_ready(state)
      seconds.append((time.perf_counter() - start) / len(batches))
      assert dissolved == 0, "no cluster is to be small here"
    usual = min(seconds)

    # All but five members of the last cluster go to cluster 1.
    seconds = []
    for i in range(args.repeats):
      small = k - 1 - i
      members = np.flatnonzero(np.asarray(state.samples.assignments) == small)
      new = state.samples.assignments.at[members[5:]].set(1)
      samples = state.samples._replace(assignments=jax.device_put(new, rows))
      centroids = recompute(samples, k)._replace(
        centroids=state.centroids.centroids
      )
      state = state._replace(samples=samples, centroids=centroids)
      jax.block_until_ready(state)
      start = time.perf_counter()
      state, aux = step(state, *batches[i], jnp.int32(i + 1))
      jax.block_until_ready(state)
      seconds.append(time.perf_counter() - start)
      assert aux["cluster/dissolved"] == 1
  return {"step": usual, "split": min(seconds) - usual}


def time_official(args, features, clusters) -> dict[str, float]:
  """Returns seconds of the official order of operations in NumPy."""
  n, k = args.num_examples, args.num_clusters
  features, labels = features.copy(), clusters.copy()

  def refresh():
    # Sorted once, then a mean for every cluster: _compute_centroids.
    order = np.argsort(labels)
    ends = np.cumsum(np.bincount(labels, minlength=k))
    return np.stack(
      [
        features[order[start:end]].mean(axis=0)
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
      ]
    )

  start = time.perf_counter()
  centroids = refresh()
  refreshing = time.perf_counter() - start
  rng = np.random.default_rng(1)
  start = time.perf_counter()
  for _ in range(args.repeats):
    index = rng.integers(n, size=args.batch_size)
    noise = rng.standard_normal((args.batch_size, args.dim), np.float32)
    new = np.abs(features[index] + 0.1 * noise)
    new = 0.5 * features[index] + 0.5 * new / np.linalg.norm(
      new, axis=1, keepdims=True
    )
    features[index] = new / np.linalg.norm(new, axis=1, keepdims=True)
    labels[index] = np.argmax(features[index] @ centroids.T, axis=1)
    np.bincount(labels, minlength=k)  # small clusters
    np.bincount(labels, minlength=k)  # loss weights
  step = (time.perf_counter() - start) / args.repeats
  return {"step": step + refreshing / 10, "refresh": refreshing}


def main() -> None:
  """Parses the sizes, measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--num-examples", type=int, default=1_281_167)
  parser.add_argument("--dim", type=int, default=256)
  parser.add_argument("--num-clusters", type=int, default=10_000)
  parser.add_argument("--batch-size", type=int, default=512)
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  features, clusters = make_data(args)
  ours = time_ours(args, features, clusters)
  numpy = time_official(args, features, clusters)
  print(
    f"N={args.num_examples} D={args.dim} K={args.num_clusters} "
    f"B={args.batch_size} on {jax.device_count()} {jax.default_backend()} "
    f"device(s), jax {jax.__version__}"
  )
  print("                                    ms")
  print(f"step, refresh every 10   {1000 * ours['step']:13.1f}")
  print(f"a split, on top of it    {1000 * ours['split']:13.1f}")
  print(f"official order in NumPy  {1000 * numpy['step']:13.1f}")
  print(f"  of which a refresh / 10{100 * numpy['refresh']:13.1f}")
  print(f"ratio of the steps       {numpy['step'] / ours['step']:13.1f}")
  print(
    json.dumps(
      {
        "benchmark": "memory",
        **vars(args),
        "backend": jax.default_backend(),
        "step_s": ours["step"],
        "split_s": ours["split"],
        "numpy_step_s": numpy["step"],
        "numpy_refresh_s": numpy["refresh"],
      }
    )
  )


if __name__ == "__main__":
  main()
