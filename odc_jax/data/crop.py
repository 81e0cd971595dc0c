"""Cutting out and resizing, on the devices.

What Pillow's `resize(size, resample, box=box)` does on the host, antialiasing
included, as two matrix products for each image: every pixel of the result is a
weighted mean of a row's, then of a column's pixels, and the weights follow from
the box. Its shape is the same for every box, so it is compiled once.

The result differs from Pillow's by one level of 255, in a few values of a
hundred: where a mean lies so near to a half that it depends on how the weights
are rounded. As there are two means, it may be two levels, in one of 10,000.
Bicubic means that go beyond black or white are cut off after either product; of
long images Pillow may take the columns first, and then cuts off others.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8


def crop_views(
  images: UInt8[Array, "b h w 3"],
  sizes: Int[Array, "b 2"],
  boxes: Float[Array, "b v 4"],
  size: int,
  interpolation: str = "bilinear",
) -> UInt8[Array, "b v {size} {size} 3"]:
  """Cuts boxes out of images and resizes them to squares.

  Args:
    images: in the upper left corner of each row the image, [b, h, w, 3]; what
      lies beyond plays no part.
    sizes: width and height of every image, in pixels.
    boxes: (left, top, right, bottom) of every view, in pixels of the image.
    size: side of the result, in pixels.
    interpolation: "bilinear" or "bicubic", as in `decode.INTERPOLATIONS`.

  Returns:
    [b, v, size, size, 3].

  Source: Pillow src/libImaging/Resample.c. As there, a row's means are rounded
  before those of the columns are taken.
  """
  _, h, w, _ = images.shape
  left, top, right, bottom = jnp.moveaxis(boxes, -1, 0)
  width, height = sizes[:, None, 0], sizes[:, None, 1]
  kernel = _KERNELS[interpolation]
  across = _weights(left, right, width, w, size, kernel)
  down = _weights(top, bottom, height, h, size, kernel)
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
  kernel: Callable[[Array], Array],
) -> Float[Array, "b v {size} {pixels}"]:
  """Returns what every pixel counts for every pixel of the result.

  They follow the kernel about the place where the pixel of the result lies. Its
  unit is from there to the next pixel's place: of the result where that is
  smaller, else of the image. Past the box it may take in more of the image, but
  nothing past its edge.
  """
  scale = ((end - start) / size)[:, :, None, None]
  places = (jnp.arange(size) + 0.5)[None, None, :, None]
  center = start[:, :, None, None] + places * scale
  pixel = jnp.arange(pixels)[None, None, None, :]
  distance = jnp.abs(pixel + 0.5 - center) / jnp.maximum(scale, 1)
  weights = kernel(distance)
  weights = jnp.where(pixel < length[:, :, None, None], weights, 0)
  return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _triangle(distance):
  return jnp.maximum(1 - distance, 0)


def _cubic(distance):
  """Keys 1981 with a = -0.5, as in Pillow."""
  a = -0.5
  near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
  far = (((distance - 5) * distance + 8) * distance - 4) * a
  return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}


def _rounded(x: Float[Array, "b v h w 3"]) -> Float[Array, "b v h w 3"]:
  # Half upwards, as Pillow does, not to even.
  return jnp.clip(jnp.floor(x + 0.5), 0, 255)
