"""Small pictures of large images."""

import io

import numpy as np
import pytest
from PIL import Image

from odc_jax.data import decode, thumbnails


def opened(data):
  image = Image.open(io.BytesIO(data))
  assert image.format == "WEBP"
  return image


def test_the_longer_side_is_as_asked_for():
  wide = np.zeros((300, 1200, 3), np.uint8)
  assert opened(thumbnails.encode(wide, 64)).size == (64, 16)
  thin = np.zeros((2000, 3, 3), np.uint8)
  assert opened(thumbnails.encode(thin, 64)).size == (1, 64)


def test_eight_by_eight_pixels_stay_as_they_are():
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  shown = opened(thumbnails.encode(pixels, 96)).convert("RGB")
  np.testing.assert_array_equal(np.asarray(shown), pixels)


def test_a_jpeg_decoded_small_is_upright_and_looks_the_same():
  draw = np.random.default_rng(0)
  image = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8))
  image = image.resize((1600, 1200), Image.Resampling.BICUBIC)
  exif = Image.Exif()
  exif[0x0112] = 6  # turn by 90 degrees
  file = io.BytesIO()
  image.save(file, "JPEG", quality=95, exif=exif)
  assert max(decode.decode(file.getvalue(), long_side=192).size) < 800
  shown = opened(thumbnails.encode(file.getvalue(), 96)).convert("RGB")
  assert shown.size == (72, 96)
  whole = decode.decode(file.getvalue()).resize((72, 96))
  error = np.abs(np.asarray(shown, int) - np.asarray(whole, int)).mean()
  assert error < 8


def test_what_is_no_image_is_refused():
  with pytest.raises(decode.DecodeError):
    thumbnails.encode(b"no image", 64)
