"""From encoded bytes to the pixels of one crop, on the host.

Pillow does the decoding and the resizing: it is everywhere, it antialiases,
and it lets other threads run meanwhile.
"""

import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps

from odc_jax.data import opened
from odc_jax.data.opened import AnyImage, DecodeError, Opened

# Names as timm has them in `pretrained_cfg`.
INTERPOLATIONS = {
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
}


# A longer strip is not resized as a whole: 65,000 by 1 pixels would become 17
# GB for the sake of the 200 kB in their middle.
_LONGEST = 16

# Of an image that a program holds and may have given twice: Pillow reads its
# file for whoever asks first, and two threads would read it into each other.
_LOADING = threading.Lock()


class Crop(NamedTuple):
  """Random crops of one kind.

  Attributes:
    size: side of the result, in pixels.
    scale: least and greatest share of the image's area.
    ratio: least and greatest width / height.
    views: how many of them to cut out of every image.
    interpolation: one of `INTERPOLATIONS`.
  """

  size: int
  scale: tuple[float, float]
  ratio: tuple[float, float]
  views: int = 1
  interpolation: str = "bilinear"


def decode(image: AnyImage, long_side: int | None = None) -> Image.Image:
  """Decodes an image to upright RGB.

  Transparent pixels are laid over white, 16-bit grey keeps its upper byte, and
  of an animation the first frame is taken.

  Args:
    image: what `opened.open_image` takes: the bytes of a file, uint8 pixels
      [h, w, 3], [h, w, 1] or [h, w], or an opened Pillow image, which stays as
      it is.
    long_side: for a result that is going to be made smaller: it may already
      come out smaller, with this many pixels or more on its longer side. Saves
      most of the time that a large JPEG takes.

  Returns:
    The image in mode RGB, turned as its EXIF orientation says.

  Raises:
    DecodeError: it cannot be read.
  """
  found = opened.open_image(image)
  shrink = max(found.size) / long_side if long_side else 1.0
  decoded = _finish(found, shrink)
  # What a program holds is not ours to hand on.
  return decoded.copy() if decoded is image else decoded


def random_resized_crops(
  image: AnyImage,
  crops: Sequence[Crop],
  rngs: Sequence[np.random.Generator],
) -> list[UInt8[np.ndarray, "views size size 3"]]:
  """Cuts random rectangles out of an image and resizes them to squares.

  The image is decoded once.

  Args:
    image: as `decode` takes it, or an image that is open already.
    crops: the kinds of crops; with two sizes this is SwAV's multi-crop.
    rngs: one generator per view, counted through all kinds. Three or more
      numbers are drawn from each, and a view depends on no other's.

  Returns:
    An array for each kind. A crop that is the whole image, of the right size,
    is unchanged.

  Raises:
    DecodeError: the image cannot be read.

  Source: torchvision.transforms.RandomResizedCrop; for several kinds
  facebookresearch/swav src/multicropdataset.py.
  """
  found = opened.open_image(image)
  width, height = found.size
  views = [crop for crop in crops for _ in range(crop.views)]
  boxes = [
    sample_box(width, height, crop.scale, crop.ratio, rng)
    for crop, rng in zip(views, rngs, strict=True)
  ]
  shrink = min(
    min(right - left, low - top) / crop.size
    for crop, (left, top, right, low) in zip(views, boxes, strict=True)
  )
  decoded = _finish(found, shrink)
  pixels = []
  for crop, box in zip(views, boxes, strict=True):
    box = _scaled_box(decoded, found, box)
    resized = decoded.resize(
      (crop.size, crop.size), INTERPOLATIONS[crop.interpolation], box=box
    )
    pixels.append(np.asarray(resized))
  firsts = np.cumsum([0, *(crop.views for crop in crops)])
  return [
    np.stack(pixels[first : first + crop.views])
    for first, crop in zip(firsts, crops, strict=False)
  ]


def upright_size(image: AnyImage) -> tuple[int, int]:
  """Returns width and height of an image as a person sees it.

  Reads no more than the header.

  Args:
    image: as `decode` takes it, or an image that is open already.

  Raises:
    DecodeError: the image cannot be read.
  """
  return opened.open_image(image).size


def fit(
  image: AnyImage, most: int
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
  """Decodes all of an image, made smaller where it is too long.

  Args:
    image: as `decode` takes it, or an image that is open already.
    most: greatest length of a side of the result, in pixels.

  Returns:
    The image, of `fitting_size`, and its width and height before.

  Raises:
    DecodeError: the image cannot be read.
  """
  found = opened.open_image(image)
  size = found.size
  decoded = _finish(found, max(size) / most)
  if max(size) > most:
    width, height = fitting_size(np.array(size), most).tolist()
    box = _scaled_box(decoded, found, (0, 0, *size))
    decoded = decoded.resize(
      (width, height), Image.Resampling.BILINEAR, box=box
    )
  return np.asarray(decoded), size


def fitting_size(
  sizes: Int[np.ndarray, "*b 2"], most: int
) -> Int[np.ndarray, "*b 2"]:
  """Returns widths and heights after `fit`.

  Args:
    sizes: width and height before, in pixels.
    most: greatest length of a side afterwards.
  """
  long = sizes.max(axis=-1, keepdims=True)
  smaller = np.maximum(np.rint(sizes * most / long), 1).astype(sizes.dtype)
  return np.where(long > most, smaller, sizes)


def resize_center_crop(
  image: AnyImage, resize: int, crop: int, interpolation: str = "bilinear"
) -> UInt8[np.ndarray, "crop crop 3"]:
  """Resizes the short side and cuts out the centre, for evaluation.

  Args:
    image: as `decode` takes it, or an image that is open already.
    resize: length of the short side after resizing, in pixels.
    crop: side of the square that is cut out, in pixels; at most `resize`.
    interpolation: one of `INTERPOLATIONS`, as the network was trained with.

  Returns:
    The centre. An image of `resize` by `resize` pixels is not resampled.

  Raises:
    DecodeError: the image cannot be read.
    ValueError: `crop` is larger than `resize`.

  Source: torchvision.transforms.Resize and CenterCrop.
  """
  if crop > resize:
    raise ValueError(f"crop {crop} is larger than resize {resize}")
  found = opened.open_image(image)
  decoded = _finish(found, min(found.size) / resize)
  filter = INTERPOLATIONS[interpolation]
  sides = _with_short_side(found.size, resize)
  # Python's round to even, as in torchvision.
  left, top = (round((side - crop) / 2) for side in sides)
  middle = left, top, left + crop, top + crop
  if max(sides) <= _LONGEST * resize:
    whole = _scaled_box(decoded, found, (0, 0, *found.size))
    resized = decoded.resize(sides, filter, box=whole)
    return np.asarray(resized.crop(middle))
  x, y = (full / side for full, side in zip(found.size, sides, strict=True))
  box = (left * x, top * y, (left + crop) * x, (top + crop) * y)
  box = _scaled_box(decoded, found, box)
  return np.asarray(decoded.resize((crop, crop), filter, box=box))


def resize_squash(
  image: AnyImage, resize: int, crop: int
) -> UInt8[np.ndarray, "crop crop 3"]:
  """Resizes the short side, then the whole image to a square.

  Nothing is cut off, and whatever is not square is distorted.

  Args:
    image: as `decode` takes it, or an image that is open already.
    resize: length of the short side after the first resizing, in pixels.
    crop: side of the square, in pixels.

  Raises:
    DecodeError: the image cannot be read.

  Source: torchvision.transforms.Resize(resize) and Resize((crop, crop)), in
  OpenSelfSup configs/benchmarks/extract_info/voc07.py.
  """
  found = opened.open_image(image)
  decoded = _finish(found, min(found.size) / resize)
  whole = _scaled_box(decoded, found, (0, 0, *found.size))
  width, height = (
    min(side, _LONGEST * resize)
    for side in _with_short_side(found.size, resize)
  )
  resized = decoded.resize(
    (width, height), Image.Resampling.BILINEAR, box=whole
  )
  return np.asarray(resized.resize((crop, crop), Image.Resampling.BILINEAR))


def resize_short_side(
  image: AnyImage,
  resize: int,
  filter: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
  """Returns the upright image with a short side of `resize` pixels.

  Args:
    image: as `decode` takes it, or an image that is open already.
    resize: length of the short side, in pixels.
    filter: what resamples.

  Raises:
    DecodeError: the image cannot be read; or is a strip that would become
      longer than a hundred times its width.
  """
  found = opened.open_image(image)
  sides = _with_short_side(found.size, resize)
  if max(sides) > 100 * resize:
    raise DecodeError(
      f"{found.size[0]} x {found.size[1]} pixels are a strip, too long to be "
      "resized by its short side"
    )
  decoded = _finish(found, min(found.size) / resize)
  whole = _scaled_box(decoded, found, (0, 0, *found.size))
  return decoded.resize(sides, filter, box=whole)


def _with_short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
  """Returns width and height where the short side is that long."""
  width, height = size
  return short * width // min(size), short * height // min(size)


def _finish(found: Opened, shrink: float = 1) -> Image.Image:
  """Decodes an open image to upright RGB.

  Args:
    found: the image.
    shrink: how much smaller than the file than the result is going to be. A
      JPEG is then decoded at the next lower of 1/2, 1/4 and 1/8, which skips
      most of the inverse transform.

  Returns:
    The image in mode RGB; the one that was given, where it is just that.

  Raises:
    DecodeError: it cannot be read.
  """
  image = found.image
  try:
    if not found.is_ours:
      with _LOADING:
        image.load()
    elif shrink >= 2 and image.format == "JPEG":
      factor = next(f for f in (8, 4, 2) if shrink >= f)
      image.draft(None, (image.width // factor, image.height // factor))
    image.load()
    if found.orientation != 1:
      image = ImageOps.exif_transpose(image)
    return _to_rgb(image)
  except DecodeError:
    raise
  # Broken files raise whatever the decoder tripped over: OSError, SyntaxError,
  # struct.error, EOFError, DecompressionBombError ...
  except Exception as error:
    raise opened.reason_of(error) from error


def _scaled_box(
  image: Image.Image,
  found: Opened,
  box: Sequence[float | int],
) -> tuple[float, float, float, float]:
  """Turns a box in the file's upright pixels into one in the decoded image's.

  A JPEG may have come out at 1/2, 1/4 or 1/8 of its size, rounded up: what it
  gained by rounding lies where the stored image has its right and lower edge.

  Raises:
    DecodeError: the image has another size than its header says.
  """
  width, height = found.size
  for factor in (1, 2, 4, 8):
    if (-(-width // factor), -(-height // factor)) == image.size:
      break
  else:
    raise DecodeError(
      f"its header says {width} x {height} pixels, but it has "
      f"{image.width} x {image.height}"
    )
  x = y = 0.0
  if found.orientation in (2, 3, 6, 7):
    x = image.width - width / factor
  if found.orientation in (3, 4, 7, 8):
    y = image.height - height / factor
  left, top, right, low = (edge / factor for edge in box)
  return left + x, top + y, right + x, low + y


def _to_rgb(image: Image.Image) -> Image.Image:
  """Converts any of Pillow's modes."""
  if image.mode == "RGB":
    return image
  if image.mode.startswith("I;16"):
    # convert() clips at 255: everything but the darkest 1/256 turns white.
    grey = np.asarray(image) >> 8
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
  if image.mode == "I" and image.format == "PPM":
    # 16 bits a pixel, which Pillow widens, and stretches where it was less.
    grey = np.asarray(image) >> 8
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
  if image.mode in ("I", "F"):
    raise DecodeError(
      f"32-bit pixels (mode {image.mode}) have no defined white; "
      "convert the image to 8 or 16 bits"
    )
  if image.has_transparency_data:
    # Whatever colour lies beneath transparent pixels was never meant to be
    # seen; dropping alpha would show it.
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
  return image.convert("RGB")


def sample_box(
  width: int,
  height: int,
  scale: Sequence[float],
  ratio: Sequence[float],
  rng: np.random.Generator,
) -> tuple[int, int, int, int]:
  """Draws a crop (left, top, right, bottom).

  Source: torchvision.transforms.RandomResizedCrop.get_params.
  """
  low, high = math.log(ratio[0]), math.log(ratio[1])
  for _ in range(10):
    area = width * height * rng.uniform(scale[0], scale[1])
    aspect = math.exp(rng.uniform(low, high))
    w = round(math.sqrt(area * aspect))
    h = round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top = int(rng.integers(0, height - h + 1))
      left = int(rng.integers(0, width - w + 1))
      return left, top, left + w, top + h
  # The largest centred box of an allowed shape.
  w, h = width, height
  if width / height < ratio[0]:
    h = round(w / ratio[0])
  elif width / height > ratio[1]:
    w = round(h * ratio[1])
  # A very long, thin image can round to nothing.
  w, h = max(w, 1), max(h, 1)
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h
