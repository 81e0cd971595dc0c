"""Operations on the colours of one image, on the device.

They follow torchvision's transforms in what they compute and in how they draw
their factors; `augment` says in which order an image goes through them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L

# How the colours of ImageNet's pixels vary, in [0, 1]: standard deviations
# along the principal axes, and these axes as columns over (red, green, blue).
_COLOR_DEVIATIONS = (0.2175, 0.0188, 0.0045)
_COLOR_AXES = (
  (-0.5675, 0.7192, 0.4009),
  (-0.5808, -0.0045, -0.8140),
  (-0.5836, -0.6948, 0.4203),
)


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

  n = jnp.array([5.0, 3.0, 1.0]).reshape(1, 1, 3)  # red, green, blue
  k = n + sixths[:, :, None]
  k -= 6 * jnp.floor(k / 6)  # with jnp.mod, all of it takes seven times as long
  lower = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
  return value[:, :, None] - chroma[:, :, None] * lower


def solarize(image: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
  """Inverts what is in the brighter half of the range.

  Args:
    image: 0 to 1.

  Returns:
    0 to 0.5.

  Source: Pillow's ImageOps.solarize(threshold=128): of 256 levels the upper
  128 are inverted, each of which is greater than its inverse.
  """
  return jnp.minimum(image, 1 - image)


def light(
  image: Float[Array, "h w 3"], alpha: Float[Array, "3"]
) -> Float[Array, "h w 3"]:
  """Shifts the colour along the principal axes of ImageNet's pixels.

  Args:
    image: 0 to 1.
    alpha: how far along each axis, in standard deviations of the pixels.

  Returns:
    The image plus one colour; it may leave [0, 1], as in the original.

  Source: Krizhevsky et al., "ImageNet classification with deep convolutional
  neural networks", NIPS 2012, section 4.1; numbers of OpenSelfSup
  datasets/pipelines/transforms.py: Lighting.
  """
  along = alpha * jnp.array(_COLOR_DEVIATIONS)
  # Not a matmul: that would run in bfloat16 on a TPU.
  shift = jnp.sum(jnp.array(_COLOR_AXES) * along[None, :], axis=1)
  return image + shift[None, None, :]


def jitter(config, key, image):
  """Brightness, contrast, saturation and hue, in an order drawn per image.

  Under vmap a branch per operation would compute all four at each of the four
  places. But three of them are one blend with another image, so that a place
  costs one blend with a chosen image; and hue, the expensive operation, is
  computed once, between the blends before it and those after it.

  Source: torchvision.transforms.ColorJitter.
  """
  apply_key, factor_key, order_key, place_key, hue_key = jax.random.split(
    key, 5
  )
  strengths = (config.brightness, config.contrast, config.saturation)
  active = [op for op, strength in enumerate(strengths) if strength]
  blend = _draw_blends(config, factor_key, order_key, active)

  def blend_all(image, on):
    if not active:
      return image
    # A loop, so that every place's result is kept. Else XLA fuses the places
    # into one expression, which works out a pixel of each place once for every
    # use that the next one makes of it: five times the time on a CPU.
    return jax.lax.fori_loop(
      0, len(active), lambda slot, x: blend(slot, x, on(slot)), image
    )

  # Asked at every step, rather than once at the end: so nothing has to keep,
  # or work out twice, the image that all began with.
  applied = jax.random.bernoulli(apply_key, config.jitter_p)
  if not config.hue:
    return blend_all(image, lambda slot: applied)
  # Equally likely to come before, between and after the others.
  place = jax.random.randint(place_key, (), 0, len(active) + 1)
  shift = jax.random.uniform(hue_key, minval=-config.hue, maxval=config.hue)
  image = blend_all(image, lambda slot: applied & (slot < place))
  image = jnp.where(applied, shift_hue(image, shift), image)
  return blend_all(image, lambda slot: applied & (slot >= place))


def _draw_blends(config, factor_key, order_key, active):
  """Returns f(slot, image, on) -> image: the active blends in random order."""
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

  return blend


def _blend(image, other, factor):
  return jnp.clip(factor * image + (1 - factor) * other, 0, 1)
