"""Features from elsewhere: a row of a .npy file for every image.

CLIP's, another program's, those of texts or sounds: a run that trains heads and
memories alone begins with them, and needs neither images nor a network.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from odc_jax.data.folder import Folder
from odc_jax.data.source import Record
from odc_jax.errors import UserError
from odc_jax.files import expanded, write_json

# In the work directory: which rows a run was begun with.
RECORD_FILE = "features.json"

# Rows that are read together, in bytes.
_CHUNK_BYTES = 2**24


class Features:
  """Features of n images, and perhaps the pictures.

  Attributes:
    rows: [n, c], floating-point numbers of any size; may be mapped from a file.
    images: The folder of the pictures, in the order of the rows; None where
      there are none.
    labels: The folder's, int32 [n]; -1 where there are none.
    num_classes: The folder's.
    classes: The folder's.
  """

  def __init__(
    self,
    rows: np.ndarray,
    images: Folder | None = None,
    name: str = "the features",
  ):
    """Reads no row.

    Args:
      rows: As the attribute.
      images: As the attribute.
      name: What messages call the rows.

    Raises:
      UserError: `rows` is no such array, or there are not as many images.
    """
    check(rows, name)
    if images is not None and len(images) != len(rows):
      raise UserError(
        f"{name} has {len(rows):,} rows, but data.images has {len(images):,} "
        "images; give the folder that the features are of, a row for every "
        "image, sorted by path"
      )
    self.rows, self.images, self._name = rows, images, name
    self._digest = ""
    self.labels = np.full(len(rows), -1, np.int32)
    self.num_classes: int | None = None
    self.classes: list[str] | None = None
    if images is not None and images.labels is not None:
      self.labels = np.array(images.labels, np.int32)
      self.num_classes, self.classes = images.num_classes, images.classes

  @property
  def keys(self) -> Sequence[str] | None:
    """The images' names; None where they are only numbered."""
    return None if self.images is None else self.images.keys

  def names(self) -> list[str]:
    """Returns the images' names, or their numbers."""
    return [*(self.keys or map(str, range(len(self))))]

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Record:
    label = int(self.labels[index])
    return {
      "image": self._block(index, index + 1)[0],
      "index": index,
      "key": str(index) if self.keys is None else self.keys[index],
      "label": None if label < 0 else label,
    }

  def digest(self) -> str:
    """Returns the SHA-256 of all rows, in hexadecimal; reads them once.

    Raises:
      UserError: A row has a number that is not finite.
    """
    if not self._digest:
      found = hashlib.sha256(f"{self.rows.dtype} {self.rows.shape}".encode())
      step = max(1, _CHUNK_BYTES // (4 * self.rows.shape[1]))
      for start in range(0, len(self), step):
        self._block(start, start + step)
        part = self.rows[start : start + step]
        found.update(np.ascontiguousarray(part).data)
      self._digest = found.hexdigest()
    return self._digest

  def batches(self, batch_size: int) -> Generator[dict[str, Any]]:
    """Yields every row once, as `loader.eval_batches` does images.

    Args:
      batch_size: Rows of every batch; the last one is filled up with zeros,
        with index n.

    Raises:
      UserError: From the generator: as `digest`.
    """
    n, names = len(self), self.names()
    for start in range(0, n, batch_size):
      part = self._block(start, start + batch_size)
      more = batch_size - len(part)
      yield {
        "image": np.pad(part, ((0, more), (0, 0))),
        "index": np.minimum(np.arange(start, start + batch_size), n),
        "key": names[start : start + batch_size] + [""] * more,
        "bad": [],
      }

  def _block(self, start: int, stop: int) -> Float32[np.ndarray, "_ c"]:
    with np.errstate(over="ignore"):
      block = np.array(self.rows[start:stop], np.float32)
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
      row = start + int(np.argmin(finite))
      raise UserError(
        f"{self._name}: row {row:,} has NaN, or a number that float32 does not "
        "hold; make the features of this image anew, or leave it out"
      )
    return block


def read(path: str, split: str = "", images: Folder | None = None) -> Features:
  """Opens a file of features; it is mapped into memory, not read.

  Args:
    path: A .npy file of floating-point numbers [n, c]; or a folder with such
      files, a split each.
    split: The name of the file in that folder, without `.npy`.
    images: As for `Features`.

  Raises:
    UserError: There is no such file, or it holds something else.
  """
  if not path:
    raise UserError(
      "data source 'features:' names no file; "
      "set --config.data.source=features:/your/features.npy"
    )
  file = expanded(path)
  if file.is_dir():
    there = sorted(p.stem for p in file.glob("*.npy"))
    if split not in there:
      raise UserError(
        f"features:{path} has no split (file) {split!r}: there is "
        f"{', '.join(there[:10]) or 'none'}; name one with --config.data.split "
        "or --config.eval.split, or give the file itself"
      )
    file = file / f"{split}.npy"
  elif split and file.exists():
    raise UserError(
      f"features:{path} is one file and has no split {split!r}: leave the "
      "split empty, or give a folder with a file for each split"
    )
  return Features(mapped(file), images, file.name)


def check_same(source: Any, workdir: pathlib.Path, resuming: bool) -> None:
  """Writes down which features a run begins with, or checks that it has them.

  Args:
    source: The training set; nothing is done unless it is features.
    workdir: The work directory, which exists.
    resuming: Whether it holds a run that is to go on.

  Raises:
    UserError: The rows are not those that the run was begun with; or as
      `Features.digest`.
    OSError: The work directory cannot be written to.
  """
  if not isinstance(source, Features):
    return
  path = workdir / RECORD_FILE
  if not resuming:
    write_json(path, {"rows": len(source), "sha256": source.digest()})
  elif not is_recorded(source, workdir):
    raise UserError(
      f"the features are not those that this run began with, as kept in {path}"
      "; put the old file back, or start in a new --workdir"
    )


def is_recorded(source: Features, workdir: pathlib.Path) -> bool:
  """Returns whether the rows are those that a run was begun with.

  Raises:
    UserError: As `Features.digest`.
  """
  try:
    record = json.loads((workdir / RECORD_FILE).read_text())
  except (OSError, ValueError):
    return False
  return record.get("sha256") == source.digest()


def mapped(path: pathlib.Path) -> np.ndarray:
  """Returns the array in a file."""
  try:
    # Refuses pickled objects: they are no numbers, and reading runs code.
    return np.lib.format.open_memmap(os.fspath(path), mode="r")
  except FileNotFoundError as error:
    raise UserError(
      f"there is no file {path}; give features as "
      "--config.data.source=features:FILE.npy"
    ) from error
  except (OSError, ValueError) as error:
    reason = " ".join(str(error).split())
    raise UserError(
      f"{path} cannot be read as features: {reason}; write it with "
      "numpy.save(FILE, features.astype('float32'))"
    ) from error


def check(rows: np.ndarray, name: str) -> None:
  """Raises a UserError where an array cannot be features."""
  problem = ""
  if rows.ndim != 2 or not rows.shape[1]:
    problem = f"has the shape {list(rows.shape)}, not [images, numbers]"
  elif not len(rows):
    problem = "has no rows"
  elif rows.dtype.kind != "f":
    problem = f"holds {rows.dtype}, not float16, float32 or float64"
  if problem:
    raise UserError(
      f"{name} {problem}; features are a row of floating-point numbers for "
      "every image"
    )
