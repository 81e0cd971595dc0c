"""The handwritten digits inside scikit-learn, which are always there."""

from typing import Any

import numpy as np

from odc_jax.data.source import Record
from odc_jax.errors import UserError


class Digits:
  """The 1,797 handwritten digits of 8 x 8 pixels inside scikit-learn."""

  num_classes: int | None = 10
  keys = None

  def __init__(self, split: str = ""):
    """Loads all of it, 115 kB.

    Args:
      split: must be "".

    Raises:
      UserError: a split is named.
    """
    if split:
      raise UserError(f"digits has no split {split!r}: leave the split empty")
    # Late: half a second that other sources need not pay.
    from sklearn import datasets

    digits: Any = datasets.load_digits()
    # The values are 0..16; 255 / 16 is what makes the brightest one white.
    self._images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    self._labels = digits.target.tolist()

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> Record:
    return {
      "image": np.repeat(self._images[index, :, :, None], 3, axis=-1),
      "index": index,
      "key": f"digits/{index:04d}",
      "label": self._labels[index],
    }
