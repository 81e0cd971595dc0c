"""Crops on the devices, against those that Pillow makes on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from odc_jax.data import boxes, crop, decode
from odc_jax.data.decode import Crop

crop_views = jax.jit(crop.crop_views, static_argnames=("size", "interpolation"))


def smooth(rng, side):
  """Something like a photograph: neighbours are alike."""
  coarse = rng.integers(0, 256, (side // 6, side // 6, 3), dtype=np.uint8)
  large = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
  return np.asarray(large)


def noise(rng, side):
  return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def on_canvas(image, sizes, side):
  """Puts the corner of an image, of every size, into squares of one size."""
  canvas = np.full((len(sizes), side, side, 3), 77, np.uint8)
  for row, (width, height) in zip(canvas, sizes, strict=True):
    row[:height, :width] = image[:height, :width]
  return canvas


def assert_as_pillow(ours, theirs):
  """One level, in few values; a level of the first pass can make it two."""
  difference = np.abs(ours.astype(int) - theirs)
  assert difference.max() <= 2
  assert np.mean(difference > 0) < 0.1
  assert np.mean(difference > 1) < 1e-4


@pytest.mark.parametrize("image_of", [smooth, noise])
@pytest.mark.parametrize("size", [8, 32, 96, 130])
def test_random_crops_are_those_of_pillow(image_of, size):
  rng = np.random.default_rng(0)
  image = image_of(rng, 96)
  sizes = rng.integers(5, 97, (60, 2)).astype(np.int32)
  sizes[0] = 96
  kind = Crop(size, (0.08, 1.0), (3 / 4, 4 / 3), views=2)
  (drawn,) = boxes.random_boxes(0, 1, np.arange(60), sizes, [kind])
  ours = crop_views(on_canvas(image, sizes, 96), sizes, drawn, size=size)
  theirs = [
    [
      Image.fromarray(image[:height, :width]).resize(
        (size, size), Image.Resampling.BILINEAR, box=tuple(box)
      )
      for box in views
    ]
    for (width, height), views in zip(sizes, drawn, strict=True)
  ]
  assert_as_pillow(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("interpolation", decode.INTERPOLATIONS)
@pytest.mark.parametrize(("resize", "size"), [(36, 32), (73, 64), (20, 20)])
def test_center_crops_are_those_of_evaluation(resize, size, interpolation):
  rng = np.random.default_rng(1)
  image = smooth(rng, 96)
  sizes = rng.integers(10, 97, (40, 2)).astype(np.int32)
  drawn = boxes.center_boxes(sizes, resize, size)
  ours = crop_views(
    on_canvas(image, sizes, 96),
    sizes,
    drawn,
    size=size,
    interpolation=interpolation,
  )
  theirs = [
    decode.resize_center_crop(
      image[:height, :width], resize, size, interpolation
    )
    for width, height in sizes
  ]
  assert_as_pillow(np.asarray(ours)[:, 0], np.asarray(theirs))


def test_bicubic_means_beyond_black_and_white_are_cut_off():
  rng = np.random.default_rng(3)
  image = 255 * rng.integers(0, 2, (30, 40, 3)).astype(np.uint8)
  drawn = np.array([[[0, 0, 40, 30.0]]], "f")
  ours = crop_views(
    image[None], np.array([[40, 30]]), drawn, size=50, interpolation="bicubic"
  )
  theirs = Image.fromarray(image).resize((50, 50), Image.Resampling.BICUBIC)
  assert_as_pillow(np.asarray(ours[0, 0]), np.asarray(theirs))
  assert np.mean((np.asarray(theirs) % 255) == 0) > 0.3


def test_a_crop_that_is_the_whole_image_is_the_image():
  image = noise(np.random.default_rng(2), 24)
  sizes, drawn = np.array([[24, 24]]), np.array([[[0, 0, 24, 24.0]]], "f")
  ours = crop_views(on_canvas(image, sizes, 40), sizes, drawn, size=24)
  np.testing.assert_array_equal(ours[0, 0], image)


def test_weights_by_hand():
  """Four pixels made two: a triangle over the four nearest of them."""

  def weights(length):
    box = jnp.zeros((1, 1)), jnp.full((1, 1), 4.0)
    return crop._weights(
      *box, jnp.array(length), pixels=5, size=2, kernel=crop._triangle
    )[0, 0]

  # At the edge there is none beyond: 3 + 3 + 1 instead of 1 + 3 + 3 + 1.
  expected = np.array([[3, 3, 1, 0, 0], [0, 1, 3, 3, 0]]) / 7
  np.testing.assert_allclose(weights([[4]]), expected, rtol=1e-6)
  # Past the box, but in the image: it counts.
  expected[1] = np.array([0, 1, 3, 3, 1]) / 8
  np.testing.assert_allclose(weights([[5]]), expected, rtol=1e-6)
