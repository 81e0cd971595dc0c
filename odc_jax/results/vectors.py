"""Rows of vectors: of unit length, and an even choice of them."""

import numpy as np
from jaxtyping import Float, Shaped


def unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
  """Returns rows in float32 and of length 1; rows of zeros stay zero."""
  rows = np.asarray(rows, np.float32)
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.where(norms > 0, norms, 1)


def evenly(
  rows: Shaped[np.ndarray, "n ..."], num: int
) -> Shaped[np.ndarray, "m ..."]:
  """Returns up to `num` of the rows, evenly spread, in their order."""
  num = min(num, len(rows))
  return rows[np.arange(num) * len(rows) // max(num, 1)]
