"""Every pass over a whole memory, to be compiled at any size."""

import jax
import jax.numpy as jnp

from odc_jax import memory
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import assign, neighbors, pca
from odc_jax.clustering.kmeans import kmeans
from odc_jax.clustering.spherical import random_start, spherical_kmeans
from odc_jax.memory import CentroidMemory, SampleMemory

NAMES = (
  "assign",
  "recompute",
  "small clusters",
  "k-means",
  "k-means++",
  "whiten",
  "spherical k-means",
  "neighbours",
)

NUM_NEIGHBORS = 10


def lower(name, mesh, n, d, k, dtype):
  """Lowers a pass over n rows; nothing of that size is allocated."""
  rows = mesh_lib.rows(mesh)
  x = jax.ShapeDtypeStruct((n, d), dtype, sharding=rows)
  clusters = jax.ShapeDtypeStruct((n,), jnp.int32, sharding=rows)
  samples = SampleMemory(x, clusters, clusters)
  means = jax.ShapeDtypeStruct((k, d), jnp.float32)
  centroids = CentroidMemory(
    means, means, jax.ShapeDtypeStruct((k,), jnp.int32)
  )
  key = jax.eval_shape(lambda: jax.random.key(0))

  def cluster(init):
    return lambda x, key: kmeans(
      x, key, num_examples=n - 5, num_clusters=k, init=init
    )

  def spherical(x, valid, key):
    return spherical_kmeans(x, valid, random_start(x, valid, key, k))

  def deal(samples, centroids, key):
    # 2-means is part of it.
    return memory.deal_with_small_clusters(samples, centroids, 20, key)

  with jax.set_mesh(mesh):
    if name == "assign":
      assign_all = jax.jit(assign.assign_all, static_argnums=(2, 3))
      return assign_all.lower(x, means, n - 5, "dot")
    if name == "recompute":
      recompute = jax.jit(memory.recompute, static_argnums=1)
      return recompute.lower(samples, k)
    if name == "small clusters":
      return jax.jit(deal, donate_argnums=0).lower(samples, centroids, key)
    valid = jax.ShapeDtypeStruct((n,), bool, sharding=rows)
    if name == "whiten":
      return jax.jit(pca.whiten, static_argnums=2).lower(x, valid, d)
    if name == "neighbours":
      mine = jax.jit(neighbors.nearest_others, static_argnames="k")
      return mine.lower(x, valid, k=NUM_NEIGHBORS)
    if name == "spherical k-means":
      return jax.jit(spherical).lower(x, valid, key)
    init = {"k-means": "random", "k-means++": "k-means++"}[name]
    return jax.jit(cluster(init)).lower(x, key)
