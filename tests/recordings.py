"""Reads the recordings of the official code."""

import pathlib

import numpy as np


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns all arrays of a recording."""
  with np.load(path) as archive:
    return dict(archive)


def ragged(trace: dict[str, np.ndarray], name: str, i: int) -> np.ndarray:
  """Returns item i of the ragged list `name`."""
  offsets = trace[f"{name}_off"]
  return trace[f"{name}_flat"][offsets[i] : offsets[i + 1]]
