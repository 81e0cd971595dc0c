"""How the images of a run have become more since it began: `growth.json`.

A folder's images are numbered in sorted order when a run begins. Those that
come later follow, so that all others keep their numbers; those that are taken
away keep theirs too. `images.txt` has all of them in this order.
"""

import json
import pathlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from odc_jax.errors import UserError

FILE = "growth.json"


class Growth(NamedTuple):
  """What a collection of images has grown by.

  Attributes:
    sizes: How many images there were when the run began, and after every
      growth, those that were removed included.
    epochs: Of training that each growth has asked for.
    missing: Keys of the images whose files are no longer there.
    tables: Digest of the clusters (`results.annotations.digest`) before every
      growth, by which annotations of that time are known.
  """

  sizes: tuple[int, ...]
  epochs: tuple[int, ...]
  missing: frozenset[str] = frozenset()
  tables: tuple[str, ...] = ()

  def generations(self) -> Int[np.ndarray, "n"]:
    """Returns with which growth every image came; 0: it was always there."""
    sizes, images = np.array(self.sizes), np.arange(self.sizes[-1])
    return np.searchsorted(sizes, images, side="right")


def read(workdir: pathlib.Path) -> Growth | None:
  """Returns how a run has grown; None where it has not.

  Raises:
    UserError: The file is damaged.
  """
  path = workdir / FILE
  try:
    found = json.loads(path.read_text())
    return Growth(
      tuple(map(int, found["sizes"])),
      tuple(map(int, found["epochs"])),
      frozenset(found["missing"]),
      tuple(found["tables"]),
    )
  except FileNotFoundError:
    return None
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise UserError(
      f"{path} is damaged ({error}); put a good copy back"
    ) from error


def to_json(growth: Growth) -> dict:
  """Returns what `growth.json` is to hold."""
  return {**growth._asdict(), "missing": sorted(growth.missing)}


class Change(NamedTuple):
  """In what a folder differs from the list of a run.

  Attributes:
    new: Keys of images that the list has not.
    gone: Keys of those that were there.
    back: Keys of those that were missing.
  """

  new: list[str]
  gone: list[str]
  back: list[str]

  def __str__(self) -> str:
    return " and ".join(
      f"{len(keys):,} {what} ({', '.join(keys[:3])}"
      f"{', ...' if len(keys) > 3 else ''})"
      for what, keys in self._asdict().items()
      if keys
    )


def change(
  kept: Sequence[str], missing: Collection[str], there: Collection[str]
) -> Change:
  """Compares a folder with the list of a run.

  Args:
    kept: Keys of the list.
    missing: Those of them that are known not to be there.
    there: Keys of the images that are there.
  """
  known, now = set(kept), set(there)
  return Change(
    sorted(now - known),
    sorted(known - now - set(missing)),
    sorted(now & set(missing)),
  )
