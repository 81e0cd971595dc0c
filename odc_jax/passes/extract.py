"""One pass of the frozen network over a data set."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int8, UInt8

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import spherical
from odc_jax.config import Config
from odc_jax.data import feed, resident
from odc_jax.distributed import compiler, processes

# Rows of features, of any length, to unit length.
unit = jax.jit(spherical.normalize)

# Side of the grey thumbnail by which near-duplicates are told.
_SIGNATURE_SIDE = 16


class Features(NamedTuple):
  """The network's outputs for all n images of a data set.

  Attributes:
    features: Pooled backbone, float32, rows split over the devices and padded
      to `memory.padded_rows(n)`; pad rows are zero.
    embeddings: Outputs of the neck, float32, with the same layout.
    signatures: Small grey thumbnails, int8, with the same layout; see
      `signature`.
    labels: Ground truth, -1 where unknown, on every host, n of them.
    keys: Index -> name, of the images that this process has read.
  """

  features: Float[Array, "rows c"]
  embeddings: Float[Array, "rows d"]
  signatures: Int8[Array, "rows s"]
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
    num_rows = mesh_lib.padded_rows(num_examples)
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
        outputs = jax.eval_shape(
          lambda *batch: forward(params, batch_stats, _pixels(*batch)),
          *arrays[:2],
        )
        buffers = jax.jit(
          functools.partial(empty, outputs, num_rows), out_shardings=rows
        )()
      buffers = write(buffers, params, batch_stats, *arrays)
      named = zip(batch["index"][real].tolist(), batch["key"], strict=False)
      keys.update(named)
    features, embeddings, signatures, labels = buffers
    labels = processes.to_host(labels)[:num_examples]
    return Features(features, embeddings, signatures, labels, keys)

  return extract


def writer(forward: Callable, mesh: Mesh) -> Callable:
  """Returns `write(buffers, params, batch_stats, images, index, labels)`.

  Jitted: one batch of an extraction; of images on the devices it takes what is
  to be cut out. The buffers, as `empty` makes them, are donated; it returns
  them.
  """
  rows = mesh_lib.rows(mesh)

  @functools.partial(
    jax.jit,
    donate_argnums=0,
    out_shardings=rows,
    compiler_options=compiler.compiler_options(mesh),
  )
  def write(buffers, params, batch_stats, images, index, labels):
    images = _pixels(images, index)
    outputs = forward(params, batch_stats, images)
    return tuple(
      buffer.at[index].set(new, mode="drop")
      for buffer, new in zip(
        buffers,
        (outputs.features, outputs.embeddings, signature(images), labels),
        strict=True,
      )
    )

  return write


def _pixels(images, index):
  """Returns the centre crops of a batch, wherever the images are."""
  if not isinstance(images, resident.Cuts):
    return images
  (views,) = resident.views(images, index)
  return views[:, 0]


@contextlib.contextmanager
def reading(
  data: feed.Source | feed.Images,
  config: Config,
  mesh: Mesh,
  *,
  squash: bool = False,
  ten_crops: bool = False,
  first_batch: int = 0,
) -> Iterator[Iterator[dict[str, Any]]]:
  """Encloses a pass over a data set: every image once, by centre crops.

  Args:
    data: Where its images are.
    config: Reads `data` and `eval.batch_size`, which is made divisible.
    mesh: Whose devices share a batch.
    squash: Whether to squash images to squares instead of cutting; of those
      that are with the host.
    ten_crops: Whether an image's batch row has ten crops, in batches of a tenth
      of the images; likewise.
    first_batch: Number of the batch to begin with; likewise.

  Yields:
    The batches of `feed.eval_batches`, with this process's rows.
  """
  batch_size = config.eval.batch_size
  if ten_crops:
    batch_size = max(1, batch_size // 10)
  batches = feed.eval_batches(
    data,
    batch_size=mesh_lib.divisible(batch_size, mesh),
    resize=config.data.eval_resize,
    crop=config.data.image_size,
    num_threads=config.data.num_threads,
    interpolation=config.data.get("interpolation", "bilinear"),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **({"squash": True} if squash else {}),
    **({"ten_crops": True} if ten_crops else {}),
    **({"first_batch": first_batch} if first_batch else {}),
  )
  with contextlib.closing(batches):
    yield batches


def empty(outputs: Any, num_rows: int) -> tuple[Array, ...]:
  """Returns buffers for what is kept of `num_rows` images.

  Args:
    outputs: Of the network, or their shapes.
    num_rows: With the padding.

  Returns:
    Features and embeddings, float32; signatures, int8; labels, int32.
  """
  return (
    jnp.zeros((num_rows, outputs.features.shape[1])),
    jnp.zeros((num_rows, outputs.embeddings.shape[1])),
    jnp.zeros((num_rows, _SIGNATURE_SIDE**2), jnp.int8),
    jnp.full((num_rows,), -1, jnp.int32),
  )


def signature(images: UInt8[Array, "b h w 3"]) -> Int8[Array, "b s"]:
  """Returns what images look like from afar, whatever a network makes of them.

  A grey thumbnail of 16 x 16, minus its mean, scaled to length 127: the dot
  product of two, over 127^2, is the correlation of the thumbnails. A flat image
  has zeros.

  Args:
    images: [b, h, w, 3].

  Returns:
    [b, 256].
  """
  gray = jnp.mean(images.astype(jnp.float32), axis=-1)
  side = _SIGNATURE_SIDE
  small = jax.image.resize(gray, (gray.shape[0], side, side), "linear")
  small = small.reshape(gray.shape[0], side**2)
  small = small - jnp.mean(small, axis=1, keepdims=True)
  length = jnp.linalg.norm(small, axis=1, keepdims=True)
  # Below one grey level it is rounding that would be compared.
  unit = jnp.where(length > side, small / jnp.maximum(length, 1e-10), 0)
  return jnp.round(127 * unit).astype(jnp.int8)
