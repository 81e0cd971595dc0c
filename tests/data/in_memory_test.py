"""Images that a program has at hand."""

import io
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from odc_jax import inference
from odc_jax.data import decode, loader
from odc_jax.data import source as source_lib
from odc_jax.data.bad_images import BadImage
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


@pytest.mark.parametrize(
  ("images", "says"),
  [
    (5, "not a int"),
    (None, "not a NoneType"),
    ({"a.png", "b.png"}, "a set was given, and images need an order"),
    ({"a.png": 1}, "a dict was given, and images need an order"),
    (io.BytesIO(b"a\nb\n"), "an opened file was given"),
    (bytearray(b"PNG"), "one image was given alone"),
    (jnp.zeros((9, 7, 3), "uint8"), "one image was given alone"),
    (np.array(None), "one image was given alone"),
  ],
  ids=lambda value: type(value).__name__,
)
def test_what_holds_no_images_in_an_order_is_refused(images, says):
  with pytest.raises(UserError, match=says):
    Given(images)


def test_images_come_in_arrays_of_any_library_and_paths_in_any_sequence():
  images = np.random.default_rng(0).integers(256, size=(3, 5, 4, 3), dtype="u1")
  source = Given(jnp.asarray(images))
  for i in range(3):
    np.testing.assert_array_equal(source[i]["image"], images[i])
  for names in (np.array(["a", "b"]), ("a", "b"), iter("ab")):
    assert Given(names).keys == ["a", "b"]


def test_what_is_no_file_is_not_waited_for(tmp_path):
  pipe = tmp_path / "pipe.jpg"
  os.mkfifo(pipe)
  for path, says in (
    (pipe, "no regular file"),
    ("/dev/zero", "no regular file"),
    (tmp_path, "a folder"),
    ("~nobody-of-that-name/a", "No such file"),
    ("x" * 5000, "too long"),
  ):
    with pytest.raises(OSError, match=says):
      Given([path])[0]


def test_a_file_is_no_folder(tmp_path):
  path = tmp_path / "a.png"
  Image.new("RGB", (4, 3)).save(path)
  with pytest.raises(UserError, match=r"a\.png is a file.*list of it: \[path"):
    inference.open_images(str(path))


def test_the_first_of_a_row_is_named_and_no_disk_blamed_for_arrays():
  source = Given([b"junk"] * 6)
  with pytest.raises(UserError, match=r"6 images.*from '0' \(not an") as error:
    loader.read_one(source, 0, decode.decode, [BadImage(9, "9", "earlier")])
  assert "disk" not in str(error.value)
  with pytest.raises(UserError, match=r"the only image.*is the disk still"):
    loader.read_one(Given(["/no/such"]), 0, decode.decode, [])
