"""The operations on colours against Pillow, which torchvision's calls."""

import colorsys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from odc_jax.data import color

LEVEL = 1 / 255


def noise():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.6])
@pytest.mark.parametrize(
  ("ours", "theirs"),
  [
    (color.brighten, ImageEnhance.Brightness),
    (color.contrast, ImageEnhance.Contrast),
    (color.saturate, ImageEnhance.Color),
  ],
)
def test_blends_are_those_of_pillow(ours, theirs, factor):
  image = noise()
  want = np.asarray(theirs(Image.fromarray(image)).enhance(factor)) / 255
  got = ours(jnp.float32(image) / 255, jnp.float32(factor))
  # Pillow rounds the grey image, and its mean, before it blends, and then
  # truncates: up to half a level times |1 - factor|, and one more.
  np.testing.assert_allclose(got, want, atol=1.5 * LEVEL)


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.3])
def test_hue_is_that_of_hsv(shift):
  image = noise().astype(np.float32) / 255
  image[0, :3] = [[0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1]]
  want = np.zeros_like(image)
  for at in np.ndindex(image.shape[:2]):
    h, s, v = colorsys.rgb_to_hsv(*image[at])
    want[at] = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
  got = color.shift_hue(jnp.asarray(image), jnp.float32(shift))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_hue_is_near_that_of_pillow():
  image = noise()
  hsv = np.array(Image.fromarray(image).convert("HSV"))
  hsv[..., 0] += np.uint8(51)  # wraps round; a fifth of a turn
  want = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB")) / 255
  got = color.shift_hue(jnp.float32(image) / 255, jnp.float32(51 / 256))
  # Pillow keeps hue and saturation in 8 bits: a level of hue is 6 / 255 of a
  # channel's way from bottom to top.
  np.testing.assert_allclose(got, want, atol=7 * LEVEL)
  assert np.abs(got - want).mean() < 1.5 * LEVEL


def test_lighting_moves_the_colour_along_the_axes():
  image = jnp.asarray(noise() / 255, jnp.float32)
  # One standard deviation along the first axis, which is nearly grey, and
  # minus two along the second.
  got = color.light(image, jnp.array([1.0, -2.0, 0.0])) - image
  red = 0.2175 * -0.5675 - 2 * 0.0188 * 0.7192
  green = 0.2175 * -0.5808 - 2 * 0.0188 * -0.0045
  blue = 0.2175 * -0.5836 - 2 * 0.0188 * -0.6948
  want = np.broadcast_to([red, green, blue], image.shape)
  np.testing.assert_allclose(got, want, atol=1e-6)
