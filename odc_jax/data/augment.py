"""Augmentations of a batch of crops, on the device.

They follow torchvision's transforms in what they compute and in how they draw
their factors. Every function here is pure and made to be traced: an operation
whose strength is 0 leaves no trace in the compiled program.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L


def augment(
  config: Any,
  key: PRNGKeyArray,
  images: UInt8[Array, "b h w 3"],
  index: Int[Array, " b"],
) -> Float[Array, "b h w 3"]:
  """Augments one view of a batch and normalises it.

  In order: horizontal flip, rotation, colour jitter, grey, translation,
  normalisation. What happens to an example depends on `key` and its index, not
  on its place in the batch; a second copy of the same example in a batch
  draws anew.

  Args:
    config: section with `flip` (probability), `rotation` (greatest angle, in
      degrees, either way), `brightness`, `contrast`, `saturation` (factors
      from [max(0, 1 - x), 1 + x]), `hue` (greatest shift, in turns, at most
      0.5), `jitter_p` and `gray` (probabilities), `translate` (greatest shift
      in pixels, either way), `mean` and `std` (of values in [0, 1]).
    key: the step's and the view's.
    images: [b, h, w, 3], 0 to 255.
    index: [b], each image's place in the data set.

  Returns:
    [b, h, w, 3], float32.

  Source: OpenSelfSup configs/selfsup/odc/r50_v1.py.
  """
  keys = jax.vmap(
    lambda i, n: jax.random.fold_in(jax.random.fold_in(key, i), n)
  )(index, _copies_before(index))
  # One stream per operation: switching one on leaves the others' draws alone.
  flip, rotation, jitter, gray, translation = (
    jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in range(5)
  )
  # Flip and rotation come while a pixel is still four bytes or fewer.
  if config.flip:
    images = jax.vmap(lambda k, x: flipped(_chance(k, config.flip), x))(
      flip, images
    )
  if config.rotation:
    most = config.rotation
    angles = jax.vmap(
      lambda k: jax.random.uniform(k, minval=-most, maxval=most)
    )(rotation)
    x = jax.vmap(rotate)(images, angles) / 255
  else:
    x = images.astype(jnp.float32) / 255
  if config.jitter_p and (
    config.brightness or config.contrast or config.saturation or config.hue
  ):
    x = jax.vmap(lambda k, x: _jitter(config, k, x))(jitter, x)
  if config.gray:
    x = jax.vmap(
      lambda k, x: jnp.where(_chance(k, config.gray), luminance(x), x)
    )(gray, x)
  if config.translate:
    most = config.translate
    shifts = jax.vmap(lambda k: jax.random.randint(k, (2,), -most, most + 1))(
      translation
    )
    x = jax.vmap(lambda x, s: translate(x, s, most))(x, shifts)
  return _standardize(config, x)


def normalize(
  config: Any, images: UInt8[Array, "b h w 3"]
) -> Float[Array, "b h w 3"]:
  """Does to an evaluation image what `augment` ends with.

  Args:
    config: section with `mean` and `std`, of values in [0, 1].
    images: [b, h, w, 3], 0 to 255.

  Returns:
    [b, h, w, 3], float32.
  """
  return _standardize(config, images.astype(jnp.float32) / 255)


def flipped(
  flip: Bool[Array, ""], image: UInt8[Array, "h w 3"]
) -> UInt8[Array, "h w 3"]:
  """Mirrors the image left to right where `flip`."""
  return jnp.where(flip, image[:, ::-1], image)


def rotate(
  image: UInt8[Array, "h w 3"], angle: Float[Array, ""]
) -> Float[Array, "h w 3"]:
  """Turns an image about its centre, bilinearly, and fills with zeros.

  Args:
    image: 0 to 255.
    angle: in degrees, counter-clockwise.

  Returns:
    0 to 255, not rounded.

  Source: torchvision.transforms.functional.rotate of a PIL image, that is
  Pillow's Image.rotate(resample=BILINEAR).
  """
  h, w, _ = image.shape
  radians = angle * (math.pi / 180)
  cos, sin = jnp.cos(radians), jnp.sin(radians)
  # Where each pixel centre comes from. Image rows run downwards.
  y = (jnp.arange(h) + 0.5 - h / 2)[:, None]
  x = (jnp.arange(w) + 0.5 - w / 2)[None, :]
  from_x = cos * x - sin * y + w / 2
  from_y = sin * x + cos * y + h / 2
  inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
  # Pillow repeats the edge for the outer half of the outermost pixels.
  from_x = jnp.clip(from_x - 0.5, 0, w - 1)
  from_y = jnp.clip(from_y - 0.5, 0, h - 1)
  left = jnp.floor(from_x).astype(jnp.int32)
  top = jnp.floor(from_y).astype(jnp.int32)
  right = jnp.minimum(left + 1, w - 1)
  low = jnp.minimum(top + 1, h - 1)
  # Three channels in one word: a quarter of the look-ups' memory traffic, and
  # look-ups are what this costs.
  r, g, b = (image[:, :, i].astype(jnp.int32) for i in range(3))
  packed = (r << 16 | g << 8 | b).reshape(-1)

  def at(row, column):
    pixel = packed.at[row * w + column].get(mode="promise_in_bounds")
    channels = [pixel >> 16, pixel >> 8 & 255, pixel & 255]
    return jnp.stack(channels, -1).astype(jnp.float32)

  across = (from_x - left)[:, :, None]
  down = (from_y - top)[:, :, None]
  upper = at(top, left) * (1 - across) + at(top, right) * across
  lower = at(low, left) * (1 - across) + at(low, right) * across
  turned = upper * (1 - down) + lower * down
  return jnp.where(inside[:, :, None], turned, 0)


def luminance(image: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
  """Returns the grey image, in all three channels."""
  r, g, b = _LUMINANCE
  # Not a matmul: that would run in bfloat16 on a TPU.
  grey = r * image[:, :, 0] + g * image[:, :, 1] + b * image[:, :, 2]
  return jnp.broadcast_to(grey[:, :, None], image.shape)


def brighten(
  image: Float[Array, "h w 3"], factor: Float[Array, ""]
) -> Float[Array, "h w 3"]:
  """Blends with black: 0 gives black, 1 the image, more is brighter."""
  return _blend(image, jnp.zeros_like(image), factor)


def contrast(
  image: Float[Array, "h w 3"], factor: Float[Array, ""]
) -> Float[Array, "h w 3"]:
  """Blends with the image's mean luminance."""
  mean = jnp.broadcast_to(luminance(image).mean(), image.shape)
  return _blend(image, mean, factor)


def saturate(
  image: Float[Array, "h w 3"], factor: Float[Array, ""]
) -> Float[Array, "h w 3"]:
  """Blends with the grey image."""
  return _blend(image, luminance(image), factor)


def shift_hue(
  image: Float[Array, "h w 3"], shift: Float[Array, ""]
) -> Float[Array, "h w 3"]:
  """Turns the hue of HSV.

  Args:
    image: 0 to 1.
    shift: in turns; 1 is all the way round.

  Returns:
    0 to 1.

  Source: torchvision.transforms.functional.adjust_hue; the way back is the
  closed form f(n) = v - c max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6.
  """
  r, g, b = image[:, :, 0], image[:, :, 1], image[:, :, 2]
  value = jnp.maximum(jnp.maximum(r, g), b)
  chroma = value - jnp.minimum(jnp.minimum(r, g), b)
  divisor = jnp.where(chroma == 0, 1, chroma)
  # In sixths of a turn. A grey pixel has chroma 0, so its hue plays no part.
  sixths = jnp.where(
    value == r,
    (g - b) / divisor,
    jnp.where(value == g, (b - r) / divisor + 2, (r - g) / divisor + 4),
  )
  sixths = sixths + 6 * shift

  def channel(n):
    k = jnp.mod(n + sixths, 6)
    return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

  return jnp.stack([channel(5), channel(3), channel(1)], -1)


def translate(
  image: Float[Array, "h w 3"], shift: Int[Array, "2"], most: int
) -> Float[Array, "h w 3"]:
  """Moves an image by whole pixels and fills with zeros.

  Args:
    image: of any range.
    shift: (down, right) in pixels, each within [-most, most].
    most: greatest shift, known when tracing.

  Returns:
    The image, moved.
  """
  padded = jnp.pad(image, ((most, most), (most, most), (0, 0)))
  start = (most - shift[0], most - shift[1], 0)
  return jax.lax.dynamic_slice(padded, start, image.shape)


def _copies_before(index: Int[Array, " b"]) -> Int[Array, " b"]:
  """Returns how many earlier rows of the batch hold the same example."""
  same = index[:, None] == index[None, :]
  return jnp.tril(same, -1).sum(1, dtype=jnp.int32)


def _chance(key, p: float) -> Bool[Array, ""]:
  return jax.random.bernoulli(key, p)


def _blend(image, other, factor):
  return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def _jitter(config, key, image):
  """Brightness, contrast, saturation and hue, in an order drawn per image.

  Under vmap a branch per operation would compute all four at each of the four
  places. But three of them are one blend with another image, so that a place
  costs one blend with a chosen image; and hue, the dear one, is computed once,
  between the blends that come before it and those that come after.

  Source: torchvision.transforms.ColorJitter.
  """
  apply_key, factor_key, order_key, place_key, hue_key = jax.random.split(
    key, 5
  )
  strengths = (config.brightness, config.contrast, config.saturation)
  active = [op for op, strength in enumerate(strengths) if strength]
  blends = _draw_blends(config, factor_key, order_key, active)
  result = image
  if config.hue:
    # Equally likely to come before, between and after the others.
    place = jax.random.randint(place_key, (), 0, len(active) + 1)
    for slot, blend in enumerate(blends):
      result = blend(result, slot < place)
    shift = jax.random.uniform(hue_key, minval=-config.hue, maxval=config.hue)
    result = shift_hue(result, shift)
    for slot, blend in enumerate(blends):
      result = blend(result, slot >= place)
  else:
    for blend in blends:
      result = blend(result, True)
  return jnp.where(_chance(apply_key, config.jitter_p), result, image)


def _draw_blends(config, factor_key, order_key, active):
  """Returns the active blends in random order, as f(image, on) -> image."""
  if not active:
    return []
  strengths = jnp.array(
    [
      (config.brightness, config.contrast, config.saturation)[op]
      for op in active
    ]
  )
  factors = jax.random.uniform(
    factor_key,
    strengths.shape,
    minval=jnp.maximum(0, 1 - strengths),
    maxval=1 + strengths,
  )
  order = jax.random.permutation(order_key, len(active))

  def blend(slot, image, on):
    op = jnp.array(active)[order[slot]]
    other = jnp.zeros_like(image)
    grey = luminance(image)
    if config.contrast:
      other = jnp.where(op == 1, grey.mean(), other)
    if config.saturation:
      other = jnp.where(op == 2, grey, other)
    # A factor of 1 changes nothing, to the bit.
    return _blend(image, other, jnp.where(on, factors[order[slot]], 1))

  return [functools.partial(blend, slot) for slot in range(len(active))]


def _standardize(config, images):
  mean = jnp.asarray(config.mean, jnp.float32).reshape(1, 1, 1, 3)
  std = jnp.asarray(config.std, jnp.float32).reshape(1, 1, 1, 3)
  return (images - mean) / std
