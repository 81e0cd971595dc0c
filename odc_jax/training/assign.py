"""Assigns images to the clusters of a state, in evaluation mode."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, Int32

from odc_jax import memory
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import spherical
from odc_jax.distributed import processes
from odc_jax.memory import SampleMemory
from odc_jax.passes.extract import Features
from odc_jax.training.programs import Program

# Images that are judged at a time: with 10,000 clusters their scores take
# 40 MB on every device. The rows of a memory are a multiple of it.
CHUNK = mesh_lib.ROW_MULTIPLE


def assigner(
  program: Program,
  mesh: Mesh,
  params: Any,
  method_state: Any,
  found: Features,
  clusters: Int[np.ndarray, "n"],
  num_clusters: int,
) -> Callable[[Features], Int[np.ndarray, "m"]]:
  """Returns what gives every image of a data set a cluster.

  That which the heads vote for, or that of the nearest centroid. All processes
  have to call it.

  Args:
    program: What computed `found`.
    mesh: The devices.
    params: What decides (`Program.evaluated`).
    method_state: The method's, where it votes.
    found: What the network makes of the training set.
    clusters: Of its images; `num_clusters` where one has none.
    num_clusters: k.
  """
  to_any = np.full(CHUNK, -1, np.int32)

  @functools.cache  # and only where it is called: most evaluators do not
  def means():
    own = np.full(found.embeddings.shape[0], num_clusters, np.int32)
    own[: len(clusters)] = clusters
    own_rows = jax.device_put(own, mesh_lib.rows(mesh))
    return centroids(found.embeddings, own_rows, num_clusters)

  def assign(images: Features) -> Int[np.ndarray, "m"]:
    num_images = len(images.labels)
    parts = []
    for start in range(0, num_images, CHUNK):
      (embeddings,) = chunk((images.embeddings,), start)
      judged = program.judge(params, means(), embeddings, to_any, method_state)
      parts.append(processes.to_host(judged.cluster))
    return np.concatenate(parts)[:num_images]

  return assign


@jax.jit
def chunk(arrays: Any, start: int | Int[Array, ""]) -> Any:
  """Returns `CHUNK` rows of each array from `start`, whole on every device."""
  # By index: for a slice the partitioner would gather all rows first.
  index = start + jnp.arange(CHUNK)
  return mesh_lib.replicate(jax.tree.map(lambda array: array[index], arrays))


@functools.partial(jax.jit, static_argnames="num_clusters")
def centroids(
  embeddings: Float[Array, "rows d"],
  clusters: Int32[Array, "rows"],
  num_clusters: int,
) -> Float32[Array, "k d"]:
  """Returns the means of the clusters' unit embeddings, [k, d].

  Args:
    embeddings: [rows, d], row-sharded.
    clusters: int32 [rows], row-sharded; k for a row that has none.
    num_clusters: k.
  """
  unit = spherical.normalize(embeddings)
  samples = SampleMemory(unit, clusters, clusters)
  return memory.recompute(samples, num_clusters).centroids
