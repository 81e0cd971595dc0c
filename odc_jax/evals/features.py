"""One pass of the frozen network over a data set."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from odc_jax import memory, processes, xla
from odc_jax import mesh as mesh_lib


class Features(NamedTuple):
  """What the network makes of every image of a data set of n images.

  Attributes:
    features: Pooled backbone, float32, rows split over the devices and padded
      to `memory.padded_rows(n)`; pad rows are zero.
    embeddings: Behind the neck, likewise.
    labels: Ground truth, -1 where unknown, on every host, n of them.
    keys: Index -> name, of the images that this process has read.
  """

  features: Float[Array, "rows c"]
  embeddings: Float[Array, "rows d"]
  labels: np.ndarray
  keys: dict[int, str]


def extractor(
  forward: Callable, mesh: Mesh
) -> Callable[[Any, Any, Iterable[dict[str, Any]], int], Features]:
  """Returns `extract(params, batch_stats, batches, num_examples)`.

  Args:
    forward: (params, batch_stats, uint8 images [b, h, w, 3]) -> Outputs, in
      evaluation mode.
    mesh: Whose devices share the rows.
  """
  rows = mesh_lib.rows(mesh)
  write = writer(forward, mesh)

  def extract(params, batch_stats, batches, num_examples):
    num_rows = memory.padded_rows(num_examples)
    buffers: Any = None
    keys = {}
    for batch in batches:
      # The last batch is filled up with index n, which is a pad row or lies
      # past the end: neither may be written.
      real = batch["index"] < num_examples
      index = np.where(real, batch["index"], num_rows).astype(np.int32)
      arrays = processes.to_devices(
        (batch["image"], index, batch["label"]), mesh
      )
      if buffers is None:
        outputs = jax.eval_shape(forward, params, batch_stats, arrays[0])
        buffers = _empty(outputs, num_rows, rows)
      buffers = write(buffers, params, batch_stats, *arrays)
      named = zip(batch["index"][real].tolist(), batch["key"], strict=False)
      keys.update(named)
    features, embeddings, labels = buffers
    labels = processes.to_host(labels)[:num_examples]
    return Features(features, embeddings, labels, keys)

  return extract


def writer(forward: Callable, mesh: Mesh) -> Callable:
  """Returns `write(buffers, params, batch_stats, images, index, labels)`.

  Jitted: one batch of an extraction. The buffers, features, embeddings and
  labels of the whole data set, are donated; it returns them.
  """
  rows = mesh_lib.rows(mesh)

  @functools.partial(
    jax.jit,
    donate_argnums=0,
    out_shardings=rows,
    compiler_options=xla.compiler_options(mesh),
  )
  def write(buffers, params, batch_stats, images, index, labels):
    outputs = forward(params, batch_stats, images)
    return tuple(
      buffer.at[index].set(new, mode="drop")
      for buffer, new in zip(
        buffers, (outputs.features, outputs.embeddings, labels), strict=True
      )
    )

  return write


def _empty(outputs, num_rows, rows):
  """Returns buffers for what is kept of `num_rows` images."""

  def empty():
    features, embeddings = (
      jnp.zeros((num_rows, part.shape[1]))
      for part in (outputs.features, outputs.embeddings)
    )
    return features, embeddings, jnp.full((num_rows,), -1, jnp.int32)

  return jax.jit(empty, out_shardings=rows)()
