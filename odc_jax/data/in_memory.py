"""Images that a program has at hand: paths, arrays, opened files."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from odc_jax.data.folder import printable
from odc_jax.data.source import Record
from odc_jax.errors import UserError


class Given:
  """A sequence of images, in its order and without labels."""

  num_classes: int | None = None

  def __init__(self, images: Any):
    """Opens nothing yet.

    Args:
      images: A sequence of paths of files; or of what `decode` takes: bytes of
        a file, uint8 pixels [h, w, 3] or [h, w], opened Pillow images. A path
        is its own key, others are keyed by their number.

    Raises:
      UserError: There is none, or one that is not in a list.
    """
    if isinstance(images, bytes | Image.Image) or (
      isinstance(images, np.ndarray) and images.ndim < 4
    ):
      raise UserError("one image was given alone; give a list of it: [image]")
    self._images = list(images)
    if not self._images:
      raise UserError("no images were given")
    self._keys = [
      printable(os.fspath(image)) if _is_path(image) else str(i)
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
      image = pathlib.Path(image).expanduser().read_bytes()
    return {
      "image": image,
      "index": index,
      "key": self._keys[index],
      "label": None,
    }


def _is_path(image: Any) -> bool:
  return isinstance(image, str | os.PathLike)
