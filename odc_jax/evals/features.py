"""One pass of the frozen network over a data set."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from odc_jax import memory
from odc_jax import mesh as mesh_lib


class Features(NamedTuple):
  """What the network makes of every image of a data set of n images.

  Attributes:
    features: Pooled backbone, float32, rows split over the devices and padded
      to `memory.padded_rows(n)`; pad rows are zero.
    embeddings: Behind the neck, likewise.
    labels: Ground truth, -1 where unknown, on the host, n of them.
    keys: Names of the images, n of them.
  """

  features: Float[Array, "rows c"]
  embeddings: Float[Array, "rows d"]
  labels: np.ndarray
  keys: list[str]

  @property
  def num_examples(self) -> int:
    """Images in the data set, without padding."""
    return len(self.keys)


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

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=(rows, rows))
  def write(buffers, params, batch_stats, images, index):
    outputs = forward(params, batch_stats, images)
    return tuple(
      buffer.at[index].set(new, mode="drop")
      for buffer, new in zip(
        buffers, (outputs.features, outputs.embeddings), strict=True
      )
    )

  def extract(params, batch_stats, batches, num_examples):
    num_rows = memory.padded_rows(num_examples)
    buffers: Any = None
    labels, keys = [], []
    for batch in batches:
      images = jax.device_put(batch["image"], rows)
      if buffers is None:
        buffers = _zeros(
          jax.eval_shape(forward, params, batch_stats, images), num_rows, rows
        )
      # The last batch is filled up with index n, which is a pad row or lies
      # past the end: neither may be written.
      real = batch["index"] < num_examples
      index = np.where(real, batch["index"], num_rows).astype(np.int32)
      buffers = write(
        buffers, params, batch_stats, images, jax.device_put(index, rows)
      )
      labels.append(batch["label"][real])
      keys.extend(batch["key"][: int(real.sum())])
    features, embeddings = buffers
    return Features(features, embeddings, np.concatenate(labels), keys)

  return extract


def _zeros(outputs, num_rows, rows):
  """Returns buffers for the features and embeddings of `num_rows` images."""

  def zeros():
    return tuple(
      jnp.zeros((num_rows, part.shape[1]))
      for part in (outputs.features, outputs.embeddings)
    )

  return jax.jit(zeros, out_shardings=(rows, rows))()
