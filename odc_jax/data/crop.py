"""Cutting out and resizing, on the devices.

What Pillow's `resize(size, BILINEAR, box=box)` does on the host, antialiasing
included, as two matrix products for each image: every pixel of the result is a
weighted mean of a column's, then of a row's pixels, and the weights follow from
the box. Its shape is the same for every box, so it is compiled once.

The result differs from Pillow's by one level of 255 at most, and by that in
few pixels only: where the sum of floats lies within rounding of a half.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8


def crop_views(
  images: UInt8[Array, "b h w 3"],
  sizes: Int[Array, "b 2"],
  boxes: Float[Array, "b v 4"],
  size: int,
) -> UInt8[Array, "b v {size} {size} 3"]:
  """Cuts boxes out of images and resizes them to squares.

  Args:
    images: in the upper left corner of each row the image, [b, h, w, 3]; what
      lies beyond plays no part.
    sizes: width and height of every image, in pixels.
    boxes: (left, top, right, bottom) of every view, in pixels of the image.
    size: side of the result, in pixels.

  Returns:
    [b, v, size, size, 3].

  Source: Pillow src/libImaging/Resample.c. As there, a row's means are rounded
  before those of the columns are taken.
  """
  _, h, w, _ = images.shape
  left, top, right, bottom = jnp.moveaxis(boxes, -1, 0)
  width, height = sizes[:, None, 0], sizes[:, None, 1]
  across = _weights(left, right, width, w, size)
  down = _weights(top, bottom, height, h, size)
  # In full precision: what a GPU or a TPU makes of float32 by itself is too
  # coarse to round right.
  x = jnp.einsum(
    "bvxj,bijc->bvixc",
    across,
    images.astype(jnp.float32),
    precision="highest",
  )
  x = jnp.einsum("bvyi,bvixc->bvyxc", down, _rounded(x), precision="highest")
  return _rounded(x).astype(jnp.uint8)


def _weights(
  start: Float[Array, "b v"],
  end: Float[Array, "b v"],
  length: Int[Array, "b 1"],
  pixels: int,
  size: int,
) -> Float[Array, "b v {size} {pixels}"]:
  """Returns what every pixel counts for every pixel of the result.

  A triangle about the place where the pixel of the result lies. It reaches to
  the next pixel's place: of the result where that is smaller, else of the
  image. Past the box it may take in more of the image, but none past its edge.
  """
  scale = ((end - start) / size)[:, :, None, None]
  places = (jnp.arange(size) + 0.5)[None, None, :, None]
  center = start[:, :, None, None] + places * scale
  pixel = jnp.arange(pixels)[None, None, None, :]
  distance = jnp.abs(pixel + 0.5 - center) / jnp.maximum(scale, 1)
  weights = jnp.maximum(1 - distance, 0)
  weights = jnp.where(pixel < length[:, :, None, None], weights, 0)
  return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _rounded(x: Float[Array, "b v h w 3"]) -> Float[Array, "b v h w 3"]:
  # Half upwards, as Pillow does, not to even.
  return jnp.floor(x + 0.5)
