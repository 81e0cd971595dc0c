"""Opens an image, whatever it was given as. Decodes no pixel yet."""

import io
import os
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

# An image as a record holds it, or as a program has it: the bytes of a file,
# pixels, an opened Pillow image, or an array of another library.
AnyImage = Any

_ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 swap width and height

_PNG = b"\x89PNG\r\n\x1a\n"
# Texts and colour profiles, which Pillow unpacks whether they are asked for or
# not, and which it refuses where they are large.
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# The texts that may say which way is up.
_PNG_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_MOST_TEXT = 1 << 20

_LONGEST_PATH = 4096


class DecodeError(ValueError):
  """The bytes are no image that can be read; the message says why."""


class Opened(NamedTuple):
  """An image whose header was read.

  Attributes:
    image: Pillow's.
    is_ours: whether nobody else holds it, so that it may be changed.
    orientation: the EXIF tag's, 1 to 8, as far as Pillow leaves it to us.
    size: upright width and height, in pixels.
  """

  image: Image.Image
  is_ours: bool
  orientation: int
  size: tuple[int, int]


def open_image(image: AnyImage) -> Opened:
  """Reads the header of an image.

  Args:
    image: the bytes of a file (also `bytearray`, `memoryview`); uint8 pixels
      [h, w, 3], [h, w, 1] or [h, w], of NumPy or of a library whose arrays
      NumPy can read, JAX's and PyTorch's among them; or an opened Pillow image.

  Raises:
    DecodeError: it is none of these, or cannot be read.
  """
  if isinstance(image, Image.Image):
    return _opened(image, False)
  if isinstance(image, bytearray | memoryview):
    image = bytes(image)
  if isinstance(image, bytes):
    return _opened(_of_bytes(image), True)
  if not hasattr(image, "__array__"):
    raise DecodeError(
      f"it is a {type(image).__name__}, not a path, the bytes of a file, an "
      "array or a Pillow image"
    )
  try:
    pixels = np.asarray(image)
  except Exception as error:  # on a GPU, part of a gradient, ...
    raise reason_of(error) from error
  return _opened(_of_pixels(pixels), True)


def reason_of(error: Exception) -> DecodeError:
  """Returns what Pillow raised as an error with one line of reason."""
  text = " ".join(str(error).split())
  return DecodeError(text or type(error).__name__)


def _opened(image: Image.Image, is_ours: bool) -> Opened:
  orientation = _orientation(image)
  width, height = image.size
  size = (height, width) if orientation in (5, 6, 7, 8) else (width, height)
  if 0 in size:
    raise DecodeError("it has no pixels")
  return Opened(image, is_ours, orientation, size)


def _orientation(image: Image.Image) -> int:
  if image.format == "TIFF":  # Pillow turns these itself, and their size
    return 1
  try:
    orientation = image.getexif().get(_ORIENTATION, 1)
  except Exception:  # a broken EXIF block does not break the image
    return 1
  return orientation if orientation in range(1, 9) else 1


def _of_pixels(pixels: np.ndarray) -> Image.Image:
  if pixels.ndim == 3 and pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  shape = pixels.shape
  fits = pixels.ndim == 2 or (pixels.ndim == 3 and shape[-1] == 3)
  if pixels.dtype != np.uint8 or not fits or 0 in shape:
    shown = "x".join(map(str, shape))
    raise DecodeError(
      f"pixels are {pixels.dtype} [{shown}], not uint8 [h, w, 3] or [h, w]"
    )
  return Image.fromarray(np.ascontiguousarray(pixels))


def _of_bytes(data: bytes) -> Image.Image:
  if not data:
    raise DecodeError("the file is empty")
  if data.startswith(_PNG):
    data = _without_large_texts(data)
  try:
    return Image.open(io.BytesIO(data))
  except Image.UnidentifiedImageError as error:
    if len(data) < _LONGEST_PATH and b"\0" not in data and os.path.exists(data):
      raise DecodeError(
        "these bytes are a path, not the content of a file; os.fsdecode makes "
        "text of it"
      ) from error
    # Pillow's own text names a BytesIO object.
    raise DecodeError("not an image in any known format") from error
  except Exception as error:  # as where the pixels are decoded
    raise reason_of(error) from error


def _without_large_texts(data: bytes) -> bytes:
  """Returns a PNG without texts and profiles that are large once unpacked.

  None says anything of the pixels but, at times, which way is up.
  """
  kept, total, start = [_PNG], 0, len(_PNG)
  while start + 8 <= len(data):
    length = int.from_bytes(data[start : start + 4])
    kind = data[start + 4 : start + 8]
    end = start + 12 + length
    if kind in _PNG_TEXTS:
      content = data[start + 8 : end - 4]
      size = _unpacked_size(content)
      total += size
      is_needed = content.startswith(_PNG_ORIENTATION)
      if (size if is_needed else total) > _MOST_TEXT:
        start = end
        continue
    kept.append(data[start:end])
    start = end
  whole = b"".join(kept)
  # What is cut short stays so.
  return data if len(whole) == len(data) else whole + data[start:]


def _unpacked_size(content: bytes) -> int:
  """Returns a bound of the size of a text, `_MOST_TEXT` + 1 if larger."""
  # keyword, 0, and in one place or another the stream that zlib made.
  size = len(content)
  for place in range(content.find(b"\0") + 1, min(size, 200)):
    if content[place] & 0x0F == 8:  # how such a stream begins
      try:
        unpacked = zlib.decompressobj().decompress(
          content[place:], _MOST_TEXT + 1
        )
      except zlib.error:
        continue
      size = max(size, len(unpacked))
  return size
