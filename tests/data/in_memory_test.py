"""Images that a program has at hand."""

import os

import numpy as np
import pytest
from PIL import Image

from odc_jax.data import decode
from odc_jax.data import source as source_lib
from odc_jax.data.in_memory import Given
from odc_jax.errors import UserError


def test_paths_arrays_and_opened_images_are_the_same_pixels(tmp_path):
  pixels = np.random.default_rng(0).integers(256, size=(9, 7, 3), dtype="uint8")
  path = tmp_path / "a.png"
  Image.fromarray(pixels).save(path)
  source = Given([path, str(path), pixels, Image.open(path), path.read_bytes()])
  assert isinstance(source, source_lib.Source)
  assert len(source) == 5
  assert source.keys == [str(path), str(path), "2", "3", "4"]
  for i in range(5):
    record = source[i]
    assert (record["index"], record["label"]) == (i, None)
    assert record["key"] == source.keys[i]
    np.testing.assert_array_equal(decode.decode(record["image"]), pixels)


def test_one_alone_is_refused():
  pixels = np.zeros((9, 7, 3), "uint8")
  for image in (pixels, pixels[..., 0], Image.fromarray(pixels), b"PNG"):
    with pytest.raises(UserError, match=r"give a list of it: \[image\]"):
      Given(image)
  assert len(Given(np.stack([pixels] * 4))) == 4


def test_a_path_of_any_bytes_has_a_key_that_can_be_printed(tmp_path):
  (key,) = Given([os.fsdecode(b"/a/\xff\n.png")]).keys
  assert key == r"/a/\xff\n.png"


def test_none_is_refused():
  with pytest.raises(UserError, match="no images"):
    Given(iter([]))
