"""Crops of images that are resized first, as papers on AlexNet evaluate it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ImageOps

from odc_jax.data.decode import INTERPOLATIONS, AnyImage, resize_short_side


class FixedCrop(NamedTuple):
  """Random crops of the middle of an image that always has the same size.

  Attributes:
    size: side of the result, in pixels.
    resize: short side of the image, and side of its middle, in pixels.
    views: how many of them to cut out of every image.
  """

  size: int
  resize: int
  views: int = 1


def random_fixed_crops(
  image: AnyImage, crop: FixedCrop, rngs: Sequence[np.random.Generator]
) -> UInt8[np.ndarray, "views size size 3"]:
  """Resizes the short side and cuts squares out of the middle at random.

  Args:
    image: as `decode.decode` takes it, or an image that is open already.
    crop: how large all of it is.
    rngs: one generator per view.

  Raises:
    DecodeError: the image cannot be read.

  Source: torchvision.transforms.Resize, CenterCrop and RandomCrop, in
  deepcluster eval_linear.py.
  """
  image = resize_short_side(image, crop.resize)
  first_left = round((image.width - crop.resize) / 2)
  first_top = round((image.height - crop.resize) / 2)
  views = []
  for rng in rngs:
    x, y = rng.integers(0, crop.resize - crop.size + 1, 2).tolist()
    left, top = first_left + x, first_top + y
    views.append(image.crop((left, top, left + crop.size, top + crop.size)))
  return np.stack([np.asarray(view) for view in views])


def ten_crops(
  image: AnyImage, resize: int, crop: int, interpolation: str = "bilinear"
) -> UInt8[np.ndarray, "10 crop crop 3"]:
  """Cuts out the four corners and the centre, then those of the mirrored image.

  Args:
    image: as `decode.decode` takes it, or an image that is open already.
    resize: length of the short side after resizing, in pixels.
    crop: side of the squares that are cut out, in pixels; at most `resize`.
    interpolation: one of `decode.INTERPOLATIONS`, the one of the training.

  Raises:
    DecodeError: the image cannot be read.
    ValueError: `crop` is larger than `resize`.

  Source: torchvision.transforms.Resize and TenCrop.
  """
  if crop > resize:
    raise ValueError(f"crop {crop} is larger than resize {resize}")
  image = resize_short_side(image, resize, INTERPOLATIONS[interpolation])
  right, low = image.width - crop, image.height - crop
  places = [
    (0, 0),
    (right, 0),
    (0, low),
    (right, low),
    (round(right / 2), round(low / 2)),
  ]
  return np.stack(
    [
      np.asarray(whole.crop((left, top, left + crop, top + crop)))
      for whole in (image, ImageOps.mirror(image))
      for left, top in places
    ]
  )
