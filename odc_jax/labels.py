"""The cluster of every image: kept, moved, counted, for all methods."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from odc_jax import mesh as mesh_lib
from odc_jax.mesh import AXIS, REPLICATED, ROWS, padded_rows

# `Labels`, or ODC's `SampleMemory`: both have `assignments` and `previous`.
Samples = TypeVar("Samples", bound=Any)


class Labels(NamedTuple):
  """Clusters of every image, for methods that keep no features of them.

  Attributes:
    assignments: A column for each clustering, [0, k) of that one; k where an
      image has none yet, and on pad rows.
    previous: Those of the first clustering when this epoch began, or before
      the last re-clustering.
  """

  assignments: Int[Array, "n h"]
  previous: Int[Array, "n"]


def last_occurrence(index: Int[Array, "b"]) -> Bool[Array, "b"]:
  """Returns which entries are the last with their value.

  JAX leaves the order of duplicate writes open; the memories keep the last.
  """
  same = index[:, None] == index[None, :]
  later = jnp.triu(same, k=1)
  return ~jnp.any(later, axis=1)


def no_labels(num_examples: int, num_clusters: Sequence[int]) -> Labels:
  """Returns labels of images that have no cluster yet.

  Args:
    num_examples: Images; rows are padded.
    num_clusters: k of every clustering.
  """
  n = padded_rows(num_examples)
  none = jnp.array(num_clusters, jnp.int32)
  return Labels(
    jnp.broadcast_to(none[None, :], (n, len(num_clusters))),
    jnp.full((n,), num_clusters[0], jnp.int32),
  )


def relabel(
  labels: Labels,
  sizes: Int[Array, "k"],
  index: Int[Array, "b"],
  clusters: Int[Array, "b h"],
) -> tuple[Labels, Int[Array, "k"], Float[Array, ""]]:
  """Gives images new clusters; of duplicates the last one wins.

  Args:
    labels: Of all images.
    sizes: Images in each cluster of the first clustering, replicated.
    index: The images.
    clusters: Their new clusters in every clustering.

  Returns:
    Labels, sizes, and which share of the batch changed its first cluster.
  """
  n = labels.assignments.shape[0]
  old = labels.assignments[index, 0]
  change = jnp.mean(old != clusters[:, 0])
  target = jnp.where(last_occurrence(index), index, n)
  assignments = labels.assignments.at[target].set(clusters, mode="drop")
  sizes = resize(sizes, index, old, clusters[:, 0])
  return labels._replace(assignments=assignments), sizes, change


def resize(
  sizes: Int[Array, "k"],
  index: Int[Array, "b"],
  old: Int[Array, "b"],
  new: Int[Array, "b"],
) -> Int[Array, "k"]:
  """Returns the sizes of one clustering after images changed their clusters.

  Args:
    sizes: Images in each cluster, replicated.
    index: The images; of duplicates the last one counts.
    old: Their clusters before; k where an image had none.
    new: Their clusters now.
  """
  k = sizes.shape[0]
  # The whole batch on every device before it meets the replicated sizes.
  last, old, new = mesh_lib.replicate((last_occurrence(index), old, new))
  sizes = sizes.at[jnp.where(last, old, k)].add(-1, mode="drop")
  return sizes.at[jnp.where(last, new, k)].add(1, mode="drop")


def cluster_sizes(
  assignments: Int[Array, "n"], num_clusters: int
) -> Int[Array, "k"]:
  """Counts the rows of every cluster; moves one [k] between the devices."""

  def local(assignments):
    sizes = jnp.zeros((num_clusters,), jnp.int32)
    return jax.lax.psum(sizes.at[assignments].add(1, mode="drop"), AXIS)

  return mesh_lib.per_shard(local, in_specs=ROWS, out_specs=REPLICATED)(
    assignments
  )


def first_clustering(
  assignments: Int[Array, "n"] | Int[Array, "n h"],
) -> Int[Array, "n"]:
  """Returns the clusters of the first of several clusterings, or of the one."""
  return assignments if assignments.ndim == 1 else assignments[:, 0]


def at_epoch_start(
  samples: Samples, step: Int[Array, ""], steps_per_epoch: int
) -> Samples:
  """Keeps the current clusters as `previous` at an epoch's first step."""
  previous = jax.lax.cond(
    step % steps_per_epoch == 0,
    lambda: first_clustering(samples.assignments),
    lambda: samples.previous,
  )
  return samples._replace(previous=previous)


def size_scalars(sizes: Int[Array, "k"]) -> dict[str, Array]:
  """Returns what to log of the clusters' sizes: `cluster/...`."""
  share = sizes / jnp.maximum(1, jnp.sum(sizes))
  entropy = -jnp.sum(
    jnp.where(sizes > 0, share * jnp.log(jnp.where(sizes > 0, share, 1)), 0.0)
  )
  return {
    "cluster/empty": jnp.sum(sizes == 0),
    "cluster/min_size": jnp.min(sizes),
    "cluster/max_size": jnp.max(sizes),
    "cluster/entropy": entropy,
  }
