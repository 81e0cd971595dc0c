"""Images that a program has at hand."""

import numpy as np
import pytest
from PIL import Image

from odc_jax.data import decode, sources
from odc_jax.data.given import Given
from odc_jax.errors import UserError


def test_paths_arrays_and_opened_images_are_the_same_pixels(tmp_path):
  pixels = np.random.default_rng(0).integers(256, size=(9, 7, 3), dtype="uint8")
  path = tmp_path / "a.png"
  Image.fromarray(pixels).save(path)
  source = Given([path, str(path), pixels, Image.open(path), path.read_bytes()])
  assert isinstance(source, sources.Source)
  assert len(source) == 5
  assert source.keys == [str(path), str(path), "2", "3", "4"]
  for i in range(5):
    record = source[i]
    assert (record["index"], record["label"]) == (i, None)
    assert record["key"] == source.keys[i]
    np.testing.assert_array_equal(decode.decode(record["image"]), pixels)


def test_none_is_refused():
  with pytest.raises(UserError, match="no images"):
    Given(iter([]))
