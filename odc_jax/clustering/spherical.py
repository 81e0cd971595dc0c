"""Spherical k-means over row-sharded unit rows, as DeepCluster-v2 has it.

Beside Lloyd's (`kmeans`) it is plain: rows go to the centroid of the largest
dot product, centroids are means scaled to unit length, empty clusters keep
theirs and may stay empty.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from odc_jax import mesh
from odc_jax.clustering import assign
from odc_jax.clustering.kmeans import random_rows


class SphericalKMeans(NamedTuple):
  """A clustering.

  Attributes:
    centroids: [k, d] float32 unit rows, replicated; the assignments are made
      with exactly these.
    assignments: [n] int32 cluster of each row, k where a row is not valid;
      row-sharded.
  """

  centroids: Float32[Array, "k d"]
  assignments: Int32[Array, "n"]


def random_start(
  x: Float[Array, "n d"], valid: Bool[Array, "n"], key: Array, num_clusters: int
) -> Float32[Array, "k d"]:
  """Draws k distinct valid rows, of which there must be as many.

  Args:
    x: [n, d] row-sharded.
    valid: Which rows there are, [n] row-sharded.
    key: Decides, on any number of devices alike.
    num_clusters: k.

  Returns:
    [k, d] replicated.
  """
  return mesh.per_shard(
    lambda x, key, valid: random_rows(x, key, valid, num_clusters),
    (mesh.ROWS, mesh.REPLICATED, mesh.ROWS),
    mesh.REPLICATED,
  )(x, key, valid)


def spherical_kmeans(
  x: Float[Array, "n d"],
  valid: Bool[Array, "n"],
  start: Float[Array, "k d"],
  num_iters: int = 10,
) -> SphericalKMeans:
  """Clusters unit rows by their dot product.

  Can be traced. An iteration is two passes over each device's own rows and one
  sum of [k, d] + [k] over the devices.

  Args:
    x: [n, d] row-sharded, of any float type; summed in float32.
    valid: Which rows there are, [n] row-sharded; others have no part.
    start: The first centroids, [k, d] replicated.
    num_iters: Of E and M steps; a last E step follows.

  Returns:
    The clustering.

  Source: swav main_deepclusterv2.py:cluster_memory.
  """
  k = start.shape[0]

  def e_step(centroids):
    nearest = assign.assign_all(x, centroids, x.shape[0], "dot")
    return jnp.where(valid, nearest, k)

  def m_step(centroids, assignments):
    sums, counts = mesh.per_shard(
      lambda x, assignments: jax.lax.psum(
        assign.sum_by_cluster(x, assignments, k), mesh.AXIS
      ),
      (mesh.ROWS, mesh.ROWS),
      mesh.REPLICATED,
    )(x, assignments)
    counts = counts[:, None]
    means = jnp.where(counts > 0, sums / jnp.maximum(counts, 1), centroids)
    # torch's guard: a mean of opposite rows may vanish.
    norms = jnp.linalg.norm(means, axis=1, keepdims=True)
    return means / jnp.maximum(norms, 1e-12)

  centroids = jax.lax.fori_loop(
    0,
    num_iters,
    lambda _, centroids: m_step(centroids, e_step(centroids)),
    start.astype(jnp.float32),
  )
  return SphericalKMeans(centroids, e_step(centroids))


def normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Returns x / (|x| + 1e-10), row by row."""
  return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
