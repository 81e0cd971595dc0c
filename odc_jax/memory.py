"""Sample memory and centroid memory of Online Deep Clustering.

The sample memory holds the last feature and the cluster of every image; its
rows are split over the devices. The centroid memory holds, for every cluster,
its centroid and the running sum and count that the next centroid is made of;
it is replicated. All functions are pure.

Source: OpenSelfSup models/memories/odc_memory.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import assign, split
from odc_jax.clustering.spherical import normalize
from odc_jax.labels import last_occurrence
from odc_jax.mesh import AXIS, REPLICATED, ROWS


class SampleMemory(NamedTuple):
  """The sample memory; rows split over the devices.

  Attributes:
    features: Unit rows; pad rows are zero.
    assignments: Clusters in [0, k); pad rows carry k.
    previous: The assignments when this epoch began.
  """

  features: Float[Array, "n d"]
  assignments: Int[Array, "n"]
  previous: Int[Array, "n"]


class CentroidMemory(NamedTuple):
  """The centroid memory; replicated.

  Attributes:
    centroids: Means of the members at the last refresh. Not unit vectors: the
      official code assigns by the plain dot product with them.
    sums: Running sum of the members' features.
    counts: Number of members.
  """

  centroids: Float[Array, "k d"]
  sums: Float[Array, "k d"]
  counts: Int[Array, "k"]


def gather(
  samples: SampleMemory, index: Int[Array, "b"]
) -> tuple[Float[Array, "b d"], Int[Array, "b"]]:
  """Returns the features and clusters of the images `index`."""
  return samples.features[index], samples.assignments[index]


def blend(
  old: Float[Array, "b d"], new: Float[Array, "b d"], momentum: float
) -> Float[Array, "b d"]:
  """Returns unit rows (1 - momentum) old + momentum new / |new|."""
  mixed = (1 - momentum) * old.astype(jnp.float32) + momentum * normalize(
    new.astype(jnp.float32)
  )
  return normalize(mixed).astype(old.dtype)


def write(
  samples: SampleMemory,
  index: Int[Array, "b"],
  features: Float[Array, "b d"],
  assignments: Int[Array, "b"],
) -> SampleMemory:
  """Writes the rows `index`; of duplicates the last one wins."""
  n = samples.assignments.shape[0]
  # Losing duplicates aim past the end and are dropped.
  index = jnp.where(last_occurrence(index), index, n)
  return samples._replace(
    features=samples.features.at[index].set(
      features.astype(samples.features.dtype), mode="drop"
    ),
    assignments=samples.assignments.at[index].set(assignments, mode="drop"),
  )


def move(
  centroids: CentroidMemory,
  index: Int[Array, "b"],
  old: tuple[Float[Array, "b d"], Int[Array, "b"]],
  new: tuple[Float[Array, "b d"], Int[Array, "b"]],
) -> CentroidMemory:
  """Takes the images' old rows out of the running sums and puts the new in.

  Costs O(b d) instead of the O(n d) of a recomputation.

  Args:
    centroids: The centroid memory; its centroids stay as they are.
    index: The images; of duplicates the last one counts, as in `write`.
    old: Features and clusters that `write` replaced.
    new: Features and clusters that it wrote.

  Returns:
    The centroid memory with new sums and counts.
  """
  k = centroids.counts.shape[0]
  # Whole batch on every device before it meets the replicated sums; else each
  # device would add its share and the devices would all-reduce [k, d].
  index, old, new = mesh_lib.replicate((index, old, new))
  counts_once = last_occurrence(index)

  def add(sums, counts, rows, clusters, sign):
    clusters = jnp.where(counts_once, clusters, k)
    # Rows are first summed by cluster with a matrix product, and each cluster
    # is then added to once: a scatter that adds one row after the other is
    # not deterministic on a GPU.
    same = clusters[:, None] == clusters[None, :]
    totals = jnp.matmul(
      same.astype(jnp.float32), rows.astype(jnp.float32), precision="highest"
    )
    target = jnp.where(last_occurrence(clusters), clusters, k)
    sums = sums.at[target].add(sign * totals, mode="drop")
    counts = counts.at[clusters].add(sign, mode="drop")
    return sums, counts

  sums, counts = add(centroids.sums, centroids.counts, *old, -1)
  sums, counts = add(sums, counts, *new, 1)
  return centroids._replace(sums=sums, counts=counts)


def recompute(samples: SampleMemory, num_clusters: int) -> CentroidMemory:
  """Returns sums, counts and centroids from all rows of the sample memory.

  Exact where `move` carries rounding along. Empty clusters get a centroid of
  zeros. Moves one [k, d] array between the devices.
  """

  def local(features, assignments):
    return jax.lax.psum(
      assign.sum_by_cluster(features, assignments, num_clusters), AXIS
    )

  sums, counts = mesh_lib.per_shard(
    local, in_specs=(ROWS, ROWS), out_specs=(REPLICATED, REPLICATED)
  )(samples.features, samples.assignments)
  zeros = jnp.zeros_like(sums)
  return refresh(CentroidMemory(zeros, sums, counts))


def refresh(centroids: CentroidMemory) -> CentroidMemory:
  """Sets the centroids to the members' means; empty clusters keep theirs."""
  counts = centroids.counts[:, None]
  means = centroids.sums / jnp.maximum(counts, 1).astype(jnp.float32)
  return centroids._replace(
    centroids=jnp.where(counts > 0, means, centroids.centroids)
  )


def deal_with_small_clusters(
  samples: SampleMemory,
  centroids: CentroidMemory,
  min_cluster: int,
  key: Key[Array, ""],
  *,
  metric: str = "dot",
) -> tuple[SampleMemory, CentroidMemory, Int[Array, ""]]:
  """Dissolves clusters below `min_cluster` and splits the largest instead.

  The members of every small cluster go to their nearest other one; then, for
  each cluster thus emptied, the largest cluster at that moment is halved by
  2-means and the emptied one takes a half. The number of clusters stays, and
  so does every centroid but those of the two halves.

  Costs next to nothing while no cluster is small; otherwise a look at all
  assignments and at the rows concerned. One [k, d] array and a few centroids
  move between the devices.

  Args:
    samples: The sample memory.
    centroids: The centroid memory.
    min_cluster: A cluster with fewer members than this is small.
    key: Seeds the 2-means.
    metric: How the members find their new cluster (`assign.nearest`).

  Returns:
    Both memories and the number of clusters that were dissolved.

  Source: odc_memory.py:deal_with_small_clusters, _redirect_empty_clusters.
  """
  small = centroids.counts < min_cluster
  # With nowhere to go the members stay.
  small &= ~jnp.all(small)

  def deal(assignments, centroids):
    return mesh_lib.per_shard(
      lambda *args: _deal_local(*args, key=key, metric=metric),
      in_specs=(ROWS, ROWS, REPLICATED, REPLICATED),
      out_specs=(ROWS, REPLICATED),
    )(samples.features, assignments, centroids, small)

  assignments, centroids = jax.lax.cond(
    jnp.any(small),
    deal,
    lambda *unchanged: unchanged,
    samples.assignments,
    centroids,
  )
  num_dissolved = jnp.sum(small, dtype=jnp.int32)
  return samples._replace(assignments=assignments), centroids, num_dissolved


def _deal_local(features, assignments, centroids, small, *, key, metric):
  """`deal_with_small_clusters` on one device's rows, some cluster small."""
  n, d = features.shape
  k = small.shape[0]

  # Dissolve. Targets are judged by the centroids as they are.
  chunk_size = assign.chunk_rows(n, k, None)
  is_pad = assignments >= k
  leaves = small.at[assignments].get(mode="clip") & ~is_pad
  ids, num_ids = split.member_ids(leaves, chunk_size)
  directions, bias = assign.score_terms(centroids.centroids, metric)
  bias = jnp.where(small, -jnp.inf, bias)

  def reassign(chunk, rows, valid, carry):
    assignments, sums, counts = carry
    targets, _ = assign.best(rows, directions, bias)
    targets = jnp.where(valid, targets, k)
    sums, counts = assign.add_by_cluster(sums, counts, rows, targets)
    assignments = assignments.at[jnp.where(valid, chunk, n)].set(
      targets, mode="drop"
    )
    return assignments, sums, counts

  assignments, sums, counts = split.over_chunks(
    features,
    ids,
    num_ids,
    chunk_size,
    reassign,
    (assignments, jnp.zeros((k, d)), jnp.zeros((k,), jnp.int32)),
  )
  sums, counts = jax.lax.psum((sums, counts), AXIS)
  centroids = CentroidMemory(
    centroids.centroids,
    jnp.where(small[:, None], 0.0, centroids.sums + sums),
    jnp.where(small, 0, centroids.counts + counts),
  )

  # Split. One emptied cluster after the other, in ascending order.
  (empty,) = jnp.nonzero(small, size=k, fill_value=k)
  chunk_size = min(n, split.CHUNK)

  def halve(i, carry):
    assignments, (means, sums, counts) = carry
    source, target = jnp.argmax(counts), empty[i]
    ids, num_ids = split.member_ids(assignments == source, chunk_size)
    leaves = split.two_means(features, ids, num_ids, jax.random.fold_in(key, i))
    assignments = assignments.at[jnp.where(leaves, ids, n)].set(
      target.astype(jnp.int32), mode="drop"
    )

    def add(chunk, rows, valid, carry):
      position, sums = carry
      leaving = jax.lax.dynamic_slice(leaves, (position,), (chunk_size,))
      parts = jnp.stack([valid & ~leaving, valid & leaving])
      sums += jnp.matmul(parts.astype(jnp.float32), rows, precision="highest")
      return position + chunk_size, sums

    _, part_sums = split.over_chunks(
      features, ids, num_ids, chunk_size, add, (0, jnp.zeros((2, d)))
    )
    num_leaving = jnp.sum(leaves, dtype=jnp.int32)
    part_sums, part_counts = jax.lax.psum(
      (part_sums, jnp.stack([num_ids - num_leaving, num_leaving])), AXIS
    )
    pair = jnp.stack([source, target])
    # Nothing leaves a cluster of one: the emptied one keeps its centroid.
    part_means = jnp.where(
      part_counts[:, None] > 0,
      part_sums / jnp.maximum(part_counts, 1)[:, None].astype(jnp.float32),
      means[pair],
    )
    return assignments, CentroidMemory(
      means.at[pair].set(part_means),
      sums.at[pair].set(part_sums),
      counts.at[pair].set(part_counts),
    )

  return jax.lax.fori_loop(0, jnp.sum(small), halve, (assignments, centroids))
