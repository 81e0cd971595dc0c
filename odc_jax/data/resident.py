"""A data set that lies on the devices: images, or features of a frozen network.

Row i belongs to example i, and the rows are split over the devices as those of
the memories are. They are read once. From then on the host draws the order and
the boxes of the crops, a few bytes an image, as `loader` would; the compiled
step takes the rows it needs, and crops them itself.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int8, Shaped, UInt8

from odc_jax import mesh as mesh_lib
from odc_jax.data import crop, decode, loader
from odc_jax.data.bad_images import BadImage
from odc_jax.data.capacity import Choice
from odc_jax.data.source import Source
from odc_jax.distributed import processes
from odc_jax.mesh import padded_rows

# Images that one thread reads at a time.
_CHUNK = 64


class Images(NamedTuple):
  """The images of a data set of n, on the devices.

  Attributes:
    pixels: In the upper left corner of each row an image; rows are padded.
    sizes: Width and height of every image before it was made to fit, on every
      host.
    labels: Ground truth, -1 where unknown, of the images that this process
      read.
    keys: The names of these.
    smaller: How many of the n were made smaller.
  """

  pixels: UInt8[Array, "rows side side 3"]
  sizes: Int[np.ndarray, "n 2"]
  labels: Int[np.ndarray, " own"]
  keys: list[str]
  smaller: int


class Rows(NamedTuple):
  """A frozen backbone's features of n images, on the devices.

  Attributes:
    features: Padded with rows of zeros.
    signatures: As `passes.extract` makes them; padded with rows of zeros. Of
      features from elsewhere rows of no numbers.
    labels: Ground truth, -1 where unknown.
    keys: The names of the images.
  """

  features: Float[Array, "rows c"]
  signatures: Int8[Array, "rows s"]
  labels: Int[np.ndarray, "n"]
  keys: list[str]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["features"],
  meta_fields=["num_views"],
)
@dataclasses.dataclass(frozen=True)
class Taken:
  """The views of a batch that are still to be taken out of resident features.

  Attributes:
    features: All of them, as `Rows` has them.
    num_views: How often each image is seen; all views are alike.
  """

  features: Any
  num_views: int


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["pixels", "sizes", "boxes"],
  meta_fields=["sides", "interpolation"],
)
@dataclasses.dataclass(frozen=True)
class Cuts:
  """The views of a batch that are still to be cut out of resident images.

  Attributes:
    pixels: All images, as `Images` has them.
    sizes: Width and height of each image of the batch as it lies there, int32
      [b, 2].
    boxes: For every kind of crop: (left, top, right, bottom) of each view, in
      pixels of the image, float32 [b, v, 4].
    sides: Of the crops of each kind, in pixels.
    interpolation: How they are resized; see `crop.crop_views`.
  """

  # JAX also puts other values here, such as shardings, which have no shape.
  pixels: Any
  sizes: Any
  boxes: tuple[Any, ...]
  sides: tuple[int, ...]
  interpolation: str = "bilinear"


def own_rows(num_examples: int, mesh: Mesh) -> range:
  """Returns the rows on this process's devices, the padding included."""
  rows = padded_rows(num_examples)
  each = rows // mesh.size
  devices = list(mesh.devices.flat)
  own = [i for i, device in enumerate(devices) if device in mesh.local_devices]
  return range(own[0] * each, (own[-1] + 1) * each)


def place(
  rows: Shaped[np.ndarray, "n *rest"], mesh: Mesh, dtype: Any = None
) -> Shaped[Array, "_ *rest"]:
  """Puts what is known of every example onto the devices, each once.

  Args:
    rows: Of all examples, such as features of a frozen network. Of a file that
      is mapped into memory, each process reads its own part.
    mesh: The devices.
    dtype: Of the numbers on the devices; None: as they are.

  Returns:
    The same, padded with zeros and split as the memories are.
  """
  own = own_rows(len(rows), mesh)
  part = np.zeros((len(own), *rows.shape[1:]), dtype or rows.dtype)
  known = rows[own.start : own.stop]
  part[: len(known)] = known
  return processes.to_devices(part, mesh)


def take(
  rows: Shaped[Array, "n *rest"], index: Int[Array, " b"]
) -> Shaped[Array, "b *rest"]:
  """Inside `jit`: returns the rows of a batch; zeros beyond the last row.

  What moves between the devices is the batch and nothing that grows with n.

  Args:
    rows: Arrays on the devices, split by rows.
    index: The batch's rows, split over the devices too.
  """

  def local(rows, index):
    # Every device looks for all of the batch among its own rows, and sends each
    # device the part that this one asked for.
    index = jax.lax.all_gather(index, mesh_lib.AXIS, tiled=True)
    here = index - jax.lax.axis_index(mesh_lib.AXIS) * rows.shape[0]
    is_here = (here >= 0) & (here < rows.shape[0])
    found = rows.at[here].get(mode="clip")
    is_here = is_here.reshape(-1, *[1] * (rows.ndim - 1))
    found = jnp.where(is_here, found, 0)
    return jax.lax.psum_scatter(found, mesh_lib.AXIS, tiled=True)

  return mesh_lib.per_shard(
    local,
    in_specs=(mesh_lib.ROWS, mesh_lib.ROWS),
    out_specs=mesh_lib.ROWS,
  )(rows, index)


def views(
  cuts: Cuts, index: Int[Array, " b"]
) -> tuple[UInt8[Array, "b _ _ _ 3"], ...]:
  """Inside `jit`: returns the pixels that the loader would have given.

  Args:
    cuts: Of the batch, on the devices.
    index: Its images.

  Returns:
    [b, v, h, w, 3] for every kind of crop.
  """
  images = take(cuts.pixels, index)
  return tuple(
    crop.crop_views(images, cuts.sizes, boxes, side, cuts.interpolation)
    for boxes, side in zip(cuts.boxes, cuts.sides, strict=True)
  )


def taken(
  rows: Taken, index: Int[Array, " b"] | Int[Array, "b v"]
) -> tuple[Float[Array, "b _ c"], ...]:
  """Inside `jit`: returns the features of a batch, a row for every view.

  Args:
    rows: Of the batch, on the devices.
    index: Its images; or the image of every view, each of which then has rows
      of its own.
  """
  if index.ndim == 1:
    features = take(rows.features, index)
    return (jnp.repeat(features[:, None], rows.num_views, axis=1),)
  views = [take(rows.features, index[:, i]) for i in range(index.shape[1])]
  return (jnp.stack(views, axis=1),)


def read(
  source: Source,
  choice: Choice,
  mesh: Mesh,
  *,
  num_threads: int,
  met: Callable[[list[BadImage]], None],
  advance: Callable[[int], None] = lambda done: None,
) -> Images:
  """Reads all images, each process those of its own rows.

  Args:
    source: the data set.
    choice: with a `side`.
    mesh: the devices.
    num_threads: that decode.
    met: is told of images that cannot be read. In place of such a one stands
      the next one that can, without a label, as in the loader.
    advance: is told how many images this process has read; called equally often
      in all processes.

  Raises:
    UserError: a hundred images in a row cannot be read; and what `met` raises.
  """
  n, own = len(source), own_rows(len(source), mesh)
  side = choice.side
  pixels = np.zeros((len(own), side, side, 3), np.uint8)
  sizes = np.ones((len(own), 2), np.int32)
  labels = np.full(len(own), -1, np.int32)
  keys: list[str] = []
  starts = grain.MapDataset.source(range(own.start, own.stop, _CHUNK))
  chunks = iter(
    starts.map(_ReadImages(source, choice.most)).to_iter_dataset(
      loader.read_options(num_threads, 2)
    )
  )
  row = 0
  with contextlib.closing(chunks):
    for number, (records, bad) in enumerate(chunks):
      met(bad)
      for image, size, label, key in records:
        h, w, _ = image.shape
        if max(h, w) > side:
          # Few: the others of the sample were smaller.
          wider = max(h, w) - side
          side += wider
          pixels = np.pad(pixels, ((0, 0), (0, wider), (0, wider), (0, 0)))
        pixels[row, :h, :w] = image
        sizes[row], labels[row] = size, label
        keys.append(key)
        row += 1
      advance(min(len(own), (number + 1) * _CHUNK))
  wider = max(processes.gather(side)) - side
  if wider:
    pixels = np.pad(pixels, ((0, 0), (0, wider), (0, wider), (0, 0)))
  all_sizes = processes.to_host(processes.to_devices(sizes, mesh))[:n]
  return Images(
    processes.to_devices(pixels, mesh),
    all_sizes,
    labels[:row],
    keys,
    int(np.sum(all_sizes.max(axis=1) > choice.most)),
  )


class _ReadImages:
  """First row of a chunk -> its records and the images that cannot be read."""

  def __init__(self, source: Source, most: int):
    self.source = source
    self.most = most

  def __call__(self, start: int):
    bad: list[BadImage] = []
    records = []
    fit = functools.partial(decode.fit, most=self.most)
    for i in range(start, min(start + _CHUNK, len(self.source))):
      met = len(bad)
      (image, size), record = loader.read_one(self.source, i, fit, bad)
      label, key = record["label"], record["key"]
      if len(bad) > met:  # the record is a neighbour's
        label, key = None, bad[met].key
      records.append((image, size, -1 if label is None else label, key))
    return records, bad
