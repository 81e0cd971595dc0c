"""Images that a program has at hand: paths, arrays, opened files."""

import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from PIL import Image

from odc_jax.data.folder import printable, read_file
from odc_jax.data.source import Record
from odc_jax.errors import UserError


class Given:
  """A sequence of images, in its order and without labels."""

  num_classes: int | None = None

  def __init__(self, images: Any):
    """Opens nothing yet.

    Args:
      images: A sequence of paths of files; or of what `decode` takes: bytes of
        a file, uint8 pixels [h, w, 3] or [h, w], opened Pillow images; or one
        array of images, [n, h, w, 3]. A path is its own key, others are keyed
        by their number.

    Raises:
      UserError: There is none, or it is nothing that has images in an order.
    """
    self._images = _listed(images)
    if not self._images:
      raise UserError("no images were given")
    self._keys = [
      printable(os.fsdecode(image)) if _is_path(image) else str(i)
      for i, image in enumerate(self._images)
    ]

  @property
  def keys(self) -> Sequence[str]:
    """The keys of all records, in their order."""
    return self._keys

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> Record:
    image = self._images[index]
    if _is_path(image):
      image = read_file(os.fsdecode(image))
    return {
      "image": image,
      "index": index,
      "key": self._keys[index],
      "label": None,
    }


def _listed(images: Any) -> list[Any]:
  """Returns the images one by one.

  Raises:
    UserError: They have no order, or there is only one, and not in a list.
  """
  single = bytes | bytearray | memoryview | Image.Image
  # Arrays of any library. Paths may come in one of a single axis.
  axes = getattr(images, "ndim", 1) if hasattr(images, "__array__") else 1
  is_array = axes != 1
  if isinstance(images, single) or (is_array and axes < 4):
    raise UserError("one image was given alone; give a list of it: [image]")
  if hasattr(images, "read"):
    raise UserError(
      "an opened file was given; give a list of paths, or of what is in the "
      "files: [file.read()]"
    )
  if isinstance(images, Set | Mapping):
    raise UserError(
      f"a {type(images).__name__} was given, and images need an order; give a "
      "list of them"
    )
  if is_array:
    try:
      images = np.asarray(images)  # at once, not one by one from the device
    except Exception as error:
      text = " ".join(str(error).split())
      raise UserError(f"the images cannot be read by NumPy: {text}") from error
  try:
    return list(images)
  except TypeError as error:
    raise UserError(
      f"images are a folder, or a sequence of paths, arrays or opened images, "
      f"not a {type(images).__name__}"
    ) from error


def _is_path(image: Any) -> bool:
  return isinstance(image, str | os.PathLike)
