"""Images given as anything: taken, or refused with a reason in one line."""

import io
import os
import resource
import threading
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, PngImagePlugin

from odc_jax.data import decode, loader, opened
from odc_jax.data.in_memory import Given
from odc_jax.errors import UserError

PIXELS = np.random.default_rng(0).integers(256, size=(60, 100, 3), dtype="u1")


def encode(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def crop(image):
  return decode.resize_center_crop(image, 36, 32)


@pytest.fixture(scope="module")
def pixels():
  return crop(PIXELS)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "WEBP", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_orientation_is_applied_whatever_the_file(kind, orientation):
  # The sun is in another corner in each, so that a wrong turn shows.
  image = Image.new("RGB", (96, 64))
  image.paste((255, 255, 255), (0, 0, 48, 16))
  exif = Image.Exif()
  exif[0x0112] = orientation
  # The same in the format that Pillow's users agree on.
  same = encode(image, "PNG", exif=exif)
  data = encode(image, kind, exif=exif)
  assert opened.open_image(data).size == opened.open_image(same).size
  kinds = [decode.Crop(32, (0.2, 1.0), (0.75, 1.33))]
  for get in (
    crop,
    lambda x: decode.fit(x, 40)[0],
    lambda x: decode.random_resized_crops(x, kinds, [np.random.default_rng(0)])[
      0
    ],
  ):
    assert np.abs(np.int32(get(data)) - get(same)).mean() < 8


def test_an_image_that_a_program_holds_stays_as_it_is():
  data = encode(Image.fromarray(PIXELS).resize((640, 427)), "JPEG")
  image = Image.open(io.BytesIO(data))
  first = crop(image)
  assert image.size == (640, 427)
  np.testing.assert_array_equal(crop(image), first)
  plain = Image.fromarray(PIXELS)
  decoded = decode.decode(plain)
  decoded.thumbnail((8, 8))
  assert plain.size == (100, 60)


def test_one_opened_image_given_often_is_read_once_for_all_threads(pixels):
  image = Image.open(io.BytesIO(encode(Image.fromarray(PIXELS))))
  found = []
  threads = [
    threading.Thread(target=lambda: found.append(crop(image))) for _ in range(8)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(found) == 8
  for one in found:
    np.testing.assert_array_equal(one, pixels)


class Array:
  """An array of some other library."""

  def __init__(self, array):
    self.array = array

  def __array__(self, dtype=None, copy=None):
    if self.array is None:
      raise TypeError("can't convert a\nGPU array")
    return self.array


@pytest.mark.parametrize(
  "same",
  [
    jnp.asarray(PIXELS),
    Array(PIXELS),
    np.ascontiguousarray(PIXELS[::-1, ::-1])[::-1, ::-1],
    np.asfortranarray(PIXELS),
    np.repeat(PIXELS, 2, 1)[:, ::2],
    memoryview(encode(Image.fromarray(PIXELS))),
    bytearray(encode(Image.fromarray(PIXELS))),
    Image.fromarray(PIXELS),
  ],
  ids=["jax", "other", "negative", "fortran", "strided", "view", "bytearray",
       "pillow"],
)  # fmt: skip
def test_pixels_of_any_library_in_any_order_are_the_same(same, pixels):
  np.testing.assert_array_equal(crop(same), pixels)


@pytest.mark.parametrize(
  ("image", "says"),
  [
    (None, "it is a NoneType"),
    ([1, 2], "it is a list"),
    ({"image": PIXELS}, "it is a dict"),
    (io.BytesIO(b"abc"), "it is a BytesIO"),
    (Array(None), "can't convert a GPU array"),
    (np.float32(PIXELS), r"float32 \[60x100x3\], not uint8"),
    (PIXELS.astype(">u2"), r"uint16|>u2"),
    (PIXELS.astype(bool), "bool"),
    (PIXELS.astype(object), "object"),
    (PIXELS.transpose(2, 0, 1), r"\[3x60x100\]"),
    (PIXELS[None], r"\[1x60x100x3\]"),
    (np.uint8(3), "uint8 "),
    (os.fsencode(__file__), "these bytes are a path"),
  ],
  ids=lambda value: type(value).__name__,
)
def test_what_is_no_image_is_refused_by_what_it_is(image, says):
  with pytest.raises(decode.DecodeError, match=says) as error:
    crop(image)
  assert "\n" not in str(error.value)


def test_every_mode_of_pillows_is_read_or_refused_with_a_reason():
  read = "1 L P RGB RGBA CMYK YCbCr LAB HSV LA PA RGBX RGBa I;16 I;16B"
  for mode in read.split():
    assert crop(Image.new(mode, (50, 40))).shape == (32, 32, 3)
  for mode, says in (("I", "mode I"), ("F", "mode F"), ("La", "from La")):
    with pytest.raises(decode.DecodeError, match=says):
      crop(Image.new(mode, (50, 40)))
  grey = np.uint16([[0, 256], [51200, 65535]])
  header = b"P5 2 2 65535\n"
  got = np.asarray(decode.decode(header + grey.astype(">u2").tobytes()))
  np.testing.assert_array_equal(got[..., 0], [[0, 1], [200, 255]])


def test_a_png_with_large_texts_is_read_and_turned(pixels):
  image = Image.fromarray(PIXELS)
  for packed in (True, False):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("prompt", "x" * 2_000_000, zip=packed)
    info.add_text("other", "y" * 900_000, zip=packed)
    info.add_text("more", "z" * 900_000, zip=packed)
    np.testing.assert_array_equal(crop(encode(image, pnginfo=info)), pixels)
  np.testing.assert_array_equal(
    crop(encode(image, icc_profile=bytes(3_000_000))), pixels
  )
  # The text that says which way is up is kept.
  info = PngImagePlugin.PngInfo()
  info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
  info.add_text("prompt", "x" * 2_000_000, zip=True)
  assert opened.open_image(encode(image, pnginfo=info)).size == (60, 100)
  # What is not is no reason: the damage is.
  damaged = encode(image, icc_profile=zlib.compress(bytes(3_000_000)))[:-900]
  with pytest.raises(decode.DecodeError):
    crop(damaged)


def test_a_strip_of_one_pixel_takes_little_memory():
  ramp = np.repeat(np.uint8(np.arange(12_000) % 251)[None, :, None], 3, 2)
  data = encode(Image.fromarray(ramp))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  middle = decode.resize_center_crop(data, 146, 128)
  squashed = decode.resize_squash(data, 146, 128)
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown < 100_000  # kB; resized as a whole it is a million
  assert squashed.shape == (128, 128, 3)
  # As the whole, resized where that is small enough, is in its middle.
  short = ramp[:, 5_990:6_010]
  want = decode.resize_center_crop(short, 146, 128)
  assert np.abs(np.int32(middle) - want).max() <= 1


_CUT = encode(Image.fromarray(PIXELS), "JPEG")
_FILES = st.sampled_from(
  [
    encode(Image.fromarray(PIXELS[:9, :9]), kind)
    for kind in ("PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM")
  ]
  + [_CUT]
)


@st.composite
def _damaged(draw):
  data = bytearray(draw(_FILES))
  for _ in range(draw(st.integers(0, 4))):
    data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
  return bytes(data[: draw(st.integers(0, len(data)))])


_OBJECTS = st.one_of(
  _damaged(),
  _damaged(),
  st.binary(max_size=64),
  st.text(max_size=8),
  st.none(),
  st.integers(),
  st.floats(),
  hnp.arrays(
    st.sampled_from(["u1", ">u2", "f4", "?", "c8", "U3", "O"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
  ),
  st.lists(st.integers(), max_size=3),
  st.builds(object),
)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged files
@settings(max_examples=120, deadline=None)
@given(st.lists(_OBJECTS, max_size=4))
def test_a_list_of_anything_is_read_or_refused_in_one_line(images):
  source, text = _tried(lambda: Given(images), UserError)
  if source is None:
    assert not images, text
    return
  for i in range(len(source)):
    found, text = _tried(
      lambda i=i: crop(source[i]["image"]),
      (decode.DecodeError, OSError, ValueError),
    )
    assert text if found is None else found.shape == (32, 32, 3)
  bad = []
  found, text = _tried(lambda: loader.read_one(source, 0, crop, bad), UserError)
  if found is None:
    assert len(bad) == len(source)
    assert repr(source.keys[0]) in text


def _tried(call, errors):
  """Returns what comes of a call, or None and what it says instead."""
  try:
    return call(), ""
  except errors as error:
    text = str(error)
  assert "\n" not in text
  return None, text
