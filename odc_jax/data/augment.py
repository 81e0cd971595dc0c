"""Augmentations of a batch of crops, on the device.

They follow torchvision's transforms in what they compute and in how they draw
their factors. Every function here is pure and made to be traced: an operation
whose strength is 0 leaves no trace in the compiled program.
"""

import functools
import itertools
import math
from typing import Any, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8
from ml_collections import ConfigDict

from odc_jax.data import color

# Keys of the section `augment` that may hold a value for each view: the last
# one is for all further views.
PER_VIEW = (
  "flip",
  "rotation",
  "jitter_p",
  "brightness",
  "contrast",
  "saturation",
  "hue",
  "blur",
  "solarize",
)

# How `rotate` fills pixels, of the key `rotation_interpolation`.
ROTATIONS = ("nearest", "bilinear")

# One stream of random numbers per operation: switching one on, or adding one
# at the end, leaves the others' draws alone.
_FLIP, _ROTATION, _JITTER, _GRAY, _TRANSLATION, _BLUR, _SOLARIZE = range(7)
_LIGHTING = 7


def augment(
  config: Any,
  key: PRNGKeyArray,
  images: UInt8[Array, "b h w 3"],
  index: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
  """Augments one view of a batch and normalises it.

  In order: horizontal flip, rotation, colour jitter, grey, blur, solarisation,
  translation, lighting, normalisation, Sobel filter. What happens to an example
  depends on `key` and its index, not on its place in the batch; a second copy
  of the same example in a batch draws anew.

  Args:
    config: section with `flip` (probability), `rotation` (greatest angle, in
      degrees, either way), `rotation_interpolation` (one of `ROTATIONS`;
      "nearest" if left out), `brightness`, `contrast`, `saturation` (factors
      from [max(0, 1 - x), 1 + x]), `hue` (greatest shift, in turns, at most
      0.5), `jitter_p` and `gray` (probabilities), `blur` (probability),
      `blur_sigma` (least and greatest standard deviation, in pixels),
      `solarize` (probability), `translate` (greatest shift in pixels, either
      way), `lighting` (standard deviation of the draws of `color.light`),
      `mean` and `std` (of values in [0, 1]), `sobel` (whether to end with
      `sobel`).
    key: the step's and the view's.
    images: [b, h, w, 3], 0 to 255.
    index: [b], each image's place in the data set.

  Returns:
    [b, h, w, c], float32; c is 2 with the Sobel filter, else 3.

  Source: OpenSelfSup configs/selfsup/odc/r50_v1.py; blur and solarisation come
  where SwAV's and BYOL's transforms have them.
  """
  keys = _example_keys(key, index)
  return jax.vmap(functools.partial(_augment_image, config))(keys, images)


@overload
def augment_views(
  config: Any,
  key: PRNGKeyArray,
  images: UInt8[Array, "b v h w 3"],
  index: Int[Array, " b"],
) -> Float[Array, "b v h w c"]: ...


@overload
def augment_views(
  config: Any,
  key: PRNGKeyArray,
  images: tuple[UInt8[Array, "b _ _ _ 3"], ...],
  index: Int[Array, " b"],
) -> tuple[Float[Array, "b _ _ _ c"], ...]: ...


def augment_views(
  config: Any,
  key: PRNGKeyArray,
  images: UInt8[Array, "b v h w 3"] | tuple[UInt8[Array, "b _ _ _ 3"], ...],
  index: Int[Array, " b"],
) -> Float[Array, "b v h w c"] | tuple[Float[Array, "b _ _ _ c"], ...]:
  """Augments all views of a batch, each with draws of its own.

  View n is what `augment` makes of it with the key `fold_in(key, n)`: it
  depends neither on how many views there are nor on their sizes.

  Args:
    config: as for `augment`; those of `PER_VIEW` may be tuples.
    key: the step's.
    images: [b, v, h, w, 3], 0 to 255; or, of views of several sizes
      (multi-crop), a tuple of such arrays. Views are counted through the tuple.
    index: [b], each example's place in the data set.

  Returns:
    [b, v, h, w, c] for every array, in a tuple if `images` is one; float32.
  """
  arrays, structure = jax.tree.flatten(images)
  results = []
  first = 0
  for array in arrays:
    # Views with the same recipe are one computation.
    recipes = [of_view(config, first + i) for i in range(array.shape[1])]
    parts, done = [], 0
    for recipe, alike in itertools.groupby(recipes):
      end = done + len(list(alike))
      views = jnp.arange(first + done, first + end)
      view_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, views)
      keys = jax.vmap(_example_keys, (0, None), 1)(view_keys, index)
      of_image = functools.partial(_augment_image, recipe)
      parts.append(jax.vmap(jax.vmap(of_image))(keys, array[:, done:end]))
      done = end
    first += done
    results.append(parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1))
  return jax.tree.unflatten(structure, results)


def of_view(config: Any, view: int) -> Any:
  """Returns the recipe of one view: of several values for a key, its own.

  Args:
    config: as for `augment_views`.
    view: counted through all views, the large ones first.
  """
  chosen = {
    name: values[min(view, len(values) - 1)]
    for name in PER_VIEW
    if isinstance(values := getattr(config, name), tuple)
  }
  if not chosen:
    return config
  recipe = ConfigDict(config)
  with recipe.unlocked(), recipe.ignore_type():
    recipe.update(chosen)
  return recipe


def normalize(
  config: Any, images: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"]
) -> Float[Array, "b h w c"]:
  """Does to an evaluation image what `augment` ends with.

  Args:
    config: section with `mean` and `std`, of values in [0, 1], and `sobel`.
    images: [b, h, w, 3], 0 to 255; floats where something has been done to
      them.

  Returns:
    [b, h, w, c], float32; c is 2 with the Sobel filter, else 3.
  """
  x = images.astype(jnp.float32) / 255
  return jax.vmap(functools.partial(_standardize, config))(x)


def flipped(
  flip: Bool[Array, ""], image: UInt8[Array, "h w 3"]
) -> UInt8[Array, "h w 3"]:
  """Mirrors the image left to right where `flip`."""
  return jnp.where(flip, image[:, ::-1], image)


def rotate(
  image: UInt8[Array, "h w 3"],
  angle: Float[Array, ""],
  flip: Bool[Array, ""] | bool = False,
  *,
  interpolation: str = "nearest",
) -> Float[Array, "h w 3"]:
  """Turns an image about its centre and fills with zeros.

  Args:
    image: 0 to 255.
    angle: in degrees, counter-clockwise.
    flip: whether to mirror the image first, left to right. Here that costs
      nothing; done by `flipped`, it is done anew at every look-up.
    interpolation: "nearest", which keeps all of an image's detail, or
      "bilinear", which takes four look-ups a pixel and blurs: of what is finer
      than four pixels it leaves 57 % of the energy.

  Returns:
    0 to 255, not rounded.

  Source: torchvision.transforms.functional.rotate of a PIL image, that is
  Pillow's Image.rotate(resample=NEAREST) by default, as the official recipe
  has it (OpenSelfSup configs/selfsup/odc/r50_v1.py), or BILINEAR.
  """
  h, w, _ = image.shape
  radians = angle * (math.pi / 180)
  cos, sin = jnp.cos(radians), jnp.sin(radians)
  # Where each pixel centre comes from. Image rows run downwards.
  y = (jnp.arange(h) + 0.5 - h / 2)[:, None]
  x = (jnp.arange(w) + 0.5 - w / 2)[None, :]
  from_x = cos * x - sin * y + w / 2
  from_y = sin * x + cos * y + h / 2
  from_x = jnp.where(flip, w - from_x, from_x)
  inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
  # Three channels in one word: a quarter of the look-ups' memory traffic, and
  # look-ups are what this costs.
  r, g, b = (image[:, :, i].astype(jnp.int32) for i in range(3))
  packed = (r << 16 | g << 8 | b).reshape(-1)

  def at(row, column):
    pixel = packed.at[row * w + column].get(mode="promise_in_bounds")
    channels = [pixel >> 16, pixel >> 8 & 255, pixel & 255]
    return jnp.stack(channels, -1).astype(jnp.float32)

  if interpolation == "nearest":
    column = jnp.clip(jnp.floor(from_x).astype(jnp.int32), 0, w - 1)
    row = jnp.clip(jnp.floor(from_y).astype(jnp.int32), 0, h - 1)
    return jnp.where(inside[:, :, None], at(row, column), 0)
  # Pillow repeats the edge for the outer half of the outermost pixels.
  from_x = jnp.clip(from_x - 0.5, 0, w - 1)
  from_y = jnp.clip(from_y - 0.5, 0, h - 1)
  left = jnp.floor(from_x).astype(jnp.int32)
  top = jnp.floor(from_y).astype(jnp.int32)
  right = jnp.minimum(left + 1, w - 1)
  low = jnp.minimum(top + 1, h - 1)
  across = (from_x - left)[:, :, None]
  down = (from_y - top)[:, :, None]
  upper = at(top, left) * (1 - across) + at(top, right) * across
  lower = at(low, left) * (1 - across) + at(low, right) * across
  turned = upper * (1 - down) + lower * down
  return jnp.where(inside[:, :, None], turned, 0)


def blur(
  image: Float[Array, "h w 3"], sigma: Float[Array, ""], most: float
) -> Float[Array, "h w 3"]:
  """Blurs as Pillow's `ImageFilter.GaussianBlur(sigma)` does, but unrounded.

  That is not quite a Gaussian: three passes of a box blur in each direction, in
  each of which the image's edge is repeated beyond it.

  Args:
    image: of any range.
    sigma: standard deviation in pixels, within [0, most]. 0 changes nothing,
      to the bit.
    most: greatest sigma, known when tracing.

  Returns:
    The image, blurred.

  Source: Gwosdek et al., "Theoretical foundations of Gaussian convolution by
  extended box filtering", SSVM 2011, equations 7, 11 and 14.
  """
  # A box of length L = sqrt(12 sigma^2 / 3 + 1), three times over, has the
  # variance; its radius r = l + a, where a is the weight of the outermost.
  variance = sigma**2
  l = jnp.floor((jnp.sqrt(4 * variance + 1) - 1) / 2)
  a = (2 * l + 1) * (l * (l + 1) - variance)
  a /= 2 * variance - 6 * (l + 1) ** 2
  radius = l + a
  taps = math.floor((math.sqrt(4 * most**2 + 1) - 1) / 2) + 1
  weights = [
    jnp.clip(radius + 1 - i, 0, 1) / (2 * radius + 1) for i in range(taps + 1)
  ]
  for axis in (1, 0):
    for _ in range(3):
      image = _box_blur(image, weights, axis)
  return image


def _box_blur(image, weights, axis):
  """Adds neighbours up to len(weights) - 1 away; the edges are repeated."""
  taps = len(weights) - 1
  size = image.shape[axis]
  width = [(0, 0)] * 3
  width[axis] = (taps, taps)
  # Without the barrier XLA works out every neighbour's padding, one by one.
  padded = jax.lax.optimization_barrier(jnp.pad(image, width, mode="edge"))

  def at(offset):
    start = taps + offset
    return jax.lax.slice_in_dim(padded, start, start + size, axis=axis)

  result = weights[0] * at(0)
  for i in range(1, taps + 1):
    result += weights[i] * (at(-i) + at(i))
  return result


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


def sobel(image: Float[Array, "h w 3"]) -> Float[Array, "h w 2"]:
  """Takes the gradients, leftwards and upwards, of the channels' mean.

  Args:
    image: normalised. Beyond its edges lie zeros.

  Returns:
    Leftwards and upwards, each eight times the mean slope per pixel.

  Source: the fixed first layers of DeepCluster's networks, models/alexnet.py.
  """
  h, w, _ = image.shape
  mean = (image[:, :, 0] + image[:, :, 1] + image[:, :, 2]) / 3
  padded = jnp.pad(mean, 1)

  def smooth(axis):
    """Weighs three neighbours by 1, 2, 1."""
    before, here, after = (
      jax.lax.slice_in_dim(padded, i, i + image.shape[axis], axis=axis)
      for i in range(3)
    )
    return before + 2 * here + after

  down, across = smooth(0), smooth(1)
  return jnp.stack([down[:, :w] - down[:, 2:], across[:h] - across[2:]], -1)


def _example_keys(key, index):
  """Returns a key for every row of the batch, [b]."""
  return jax.vmap(
    lambda i, n: jax.random.fold_in(jax.random.fold_in(key, i), n)
  )(index, _copies_before(index))


def _augment_image(config, key, image):
  """Augments one view of one example: [h, w, 3] -> [h, w, c]."""
  stream = functools.partial(jax.random.fold_in, key)
  # Flip and rotation come while a pixel is still four bytes or fewer.
  flip = jnp.array(False)
  if config.flip:
    flip = _chance(stream(_FLIP), config.flip)
  if config.rotation:
    most = config.rotation
    angle = jax.random.uniform(stream(_ROTATION), minval=-most, maxval=most)
    kind = config.get("rotation_interpolation", "nearest")
    x = rotate(image, angle, flip, interpolation=kind) / 255
  else:
    if config.flip:
      image = flipped(flip, image)
    x = image.astype(jnp.float32) / 255
  if config.jitter_p and (
    config.brightness or config.contrast or config.saturation or config.hue
  ):
    x = color.jitter(config, stream(_JITTER), x)
  if config.gray:
    x = jnp.where(_chance(stream(_GRAY), config.gray), color.luminance(x), x)
  if config.blur:
    least, most = config.blur_sigma
    chance_key, sigma_key = jax.random.split(stream(_BLUR))
    sigma = jax.random.uniform(sigma_key, minval=least, maxval=most)
    x = blur(x, jnp.where(_chance(chance_key, config.blur), sigma, 0), most)
  if config.solarize:
    x = jnp.where(
      _chance(stream(_SOLARIZE), config.solarize), color.solarize(x), x
    )
  if config.translate:
    most = config.translate
    shift = jax.random.randint(stream(_TRANSLATION), (2,), -most, most + 1)
    x = translate(x, shift, most)
  if config.lighting:
    x = color.light(
      x, config.lighting * jax.random.normal(stream(_LIGHTING), (3,))
    )
  return _standardize(config, x)


def _copies_before(index: Int[Array, " b"]) -> Int[Array, " b"]:
  """Returns how many earlier rows of the batch hold the same example."""
  same = index[:, None] == index[None, :]
  return jnp.tril(same, -1).sum(1, dtype=jnp.int32)


def _chance(key, p: float) -> Bool[Array, ""]:
  return jax.random.bernoulli(key, p)


def _standardize(config, image):
  mean = jnp.asarray(config.mean, jnp.float32).reshape(1, 1, 3)
  std = jnp.asarray(config.std, jnp.float32).reshape(1, 1, 3)
  image = (image - mean) / std
  return sobel(image) if config.sobel else image
