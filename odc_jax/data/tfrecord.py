"""Random access to TFRecord files, without TensorFlow.

A TFRecord file is a sequence of

    length (uint64, little endian), CRC of it (4 bytes), the bytes, their CRC

so that walking the lengths once gives the place of every record. What was found
is kept in an index beside the files or, where that cannot be written, in the
user's cache directory.

The checksums are not verified. A file that is cut short is found when it is
opened, and a damaged length when it is read; other damage inside a record shows
when what is in it, an image say, is decoded.

Format: tensorflow/core/lib/io/record_writer.h.
"""

import bisect
import contextlib
import hashlib
import io
import itertools
import os
import pathlib
import sys
import zipfile
from collections.abc import Iterable, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Int64

from odc_jax.errors import UserError
from odc_jax.files import write_whole

_INDEX = ".odc_jax_index.npz"
_HEADER, _FOOTER = 12, 4  # bytes around each record
# Walking waits for the disk, and longer for one at the end of a network.
_THREADS = 16


class Part(NamedTuple):
  """Records of one file that follow one another.

  Attributes:
    path: the file.
    skip: records of the file before the first one.
    take: number of records.
    total: records that the file is to hold, by the data set's metadata.
  """

  path: str
  skip: int
  take: int
  total: int


class TfRecords:
  """The records of several files, or of parts of them, one after another.

  Picklable, and any number of threads may read. No file stays open: opening one
  takes microseconds, and a data set may have more of them than a process may
  hold open.
  """

  def __init__(self, parts: Sequence[Part]):
    """Finds where every record is: 8 bytes of memory for each.

    Args:
      parts: what to read, in this order. A file may occur several times.

    Raises:
      UserError: a file is not local, is missing, is cut short, or holds another
        number of records than it should.
    """
    remote = next((part.path for part in parts if "://" in part.path), None)
    if remote:
      raise UserError(
        f"{remote}: TFRecord files can only be read from a local disk; copy "
        "the data set there, or prepare it as array_record"
      )
    bounds = _bounds({part.path for part in parts})
    for part in parts:
      if (found := len(bounds[part.path]) - 1) != part.total:
        raise UserError(
          f"{part.path} holds {found:,} records, not the {part.total:,} of the "
          "data set's dataset_info.json; copy the file again, or prepare the "
          "data set once more"
        )
    self._paths = [part.path for part in parts]
    self._starts = list(
      itertools.accumulate((part.take for part in parts), initial=0)
    )
    # Part k: one more than its records, as each ends where the next begins;
    # so record i of part k begins at [i + k].
    self._bounds = np.concatenate(
      [bounds[p.path][p.skip : p.skip + p.take + 1] for p in parts]
      or [np.zeros(0, np.int64)]
    )

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, index: int) -> bytes:
    """Reads a record.

    Raises:
      IndexError: there is none.
      UserError: the file cannot be read, or has changed since it was opened.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)}")
    part = bisect.bisect_right(self._starts, index) - 1
    begin, end = map(int, self._bounds[index + part : index + part + 2])
    path = self._paths[part]
    with _reading(path), open(path, "rb", buffering=0) as file:
      file.seek(begin)
      data = file.read(end - begin)
    length = end - begin - _HEADER - _FOOTER
    if len(data) < end - begin or _length(data) != length:
      raise UserError(
        f"{path} has no record of {length:,} bytes at byte {begin:,}: it is "
        "damaged or was replaced while it was in use; copy it again or start "
        "again"
      )
    return data[_HEADER:-_FOOTER]


def _length(header: bytes) -> int:
  """Returns the length that is written at the head of a record."""
  return int.from_bytes(header[:8], "little")


@contextlib.contextmanager
def _reading(path: str):
  """Turns what the operating system objects to into a UserError."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{path} cannot be read: {error.strerror}; copy the file again, or "
      "prepare the data set once more"
    ) from error


def _walk(path: str, size: int) -> Int64[np.ndarray, " m"]:
  """Returns where each record of a file begins, and where the last one ends.

  Raises:
    UserError: the last one does not end where the file does.
  """
  bounds = [0]
  with _reading(path), open(path, "rb", buffering=0) as file:
    while bounds[-1] < size:
      file.seek(bounds[-1])
      bounds.append(bounds[-1] + _HEADER + _length(file.read(8)) + _FOOTER)
  if bounds[-1] > size:
    raise UserError(
      f"{path} is cut short or damaged: it has {size:,} bytes, and record "
      f"{len(bounds) - 2:,} would end at byte {bounds[-1]:,}; copy the file "
      "again, or prepare the data set once more"
    )
  return np.array(bounds, np.int64)


# ------------------------------------------------------------------ the index


class _State(NamedTuple):
  """A file of the folder as it was when it was walked."""

  name: str
  size: int  # bytes
  mtime: int  # nanoseconds


# `_walk`'s result for each of them.
_Index = dict[_State, np.ndarray]


def _bounds(paths: Iterable[str]) -> dict[str, np.ndarray]:
  """Returns what `_walk` does, for each path, from the index where possible."""
  found = {}
  folders: dict[str, dict[str, _State]] = {}
  for path in paths:
    folder, name = os.path.split(path)
    with _reading(path):
      status = os.stat(path)
    state = _State(name, status.st_size, status.st_mtime_ns)
    folders.setdefault(folder, {})[path] = state
  for folder, states in folders.items():
    index = _load(folder)
    stale = {p: s for p, s in states.items() if s not in index}
    if stale:
      print(
        f"looking for the records of {len(stale)} files in {folder}; this is "
        "done once",
        file=sys.stderr,
        flush=True,
      )
      with futures.ThreadPoolExecutor(_THREADS) as pool:
        sizes = [state.size for state in stale.values()]
        walked = pool.map(_walk, stale, sizes)
        fresh = dict(zip(stale.values(), walked, strict=True))
      names = {state.name for state in fresh}
      index = {s: b for s, b in index.items() if s.name not in names} | fresh
      _save(folder, index)
    found |= {path: index[state] for path, state in states.items()}
  return found


def _places(folder: str) -> list[pathlib.Path]:
  """Returns where the index of a folder may be: beside the data, or not."""
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  digest = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()
  return [
    pathlib.Path(folder, _INDEX),
    pathlib.Path(cache, "odc_jax", f"{digest[:16]}.npz"),
  ]


def _load(folder: str) -> _Index:
  """Returns what is in both places; a damaged index is no index."""
  index = {}
  for place in _places(folder):
    try:
      # Opened here, as np.load leaves a damaged file open.
      with place.open("rb") as data, np.load(data) as file:
        states = map(
          _State,
          file["names"].tolist(),
          file["sizes"].tolist(),
          file["mtimes"].tolist(),
        )
        bounds = np.split(file["bounds"], file["splits"])
        index |= dict(zip(states, bounds, strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
      continue
  return index


def _save(folder: str, index: _Index) -> None:
  """Writes an index to the first place that takes it.

  Several processes may do so at once: each leaves a whole index, of which the
  last one stays. What it lacks is walked again when it is needed.
  """
  data = io.BytesIO()
  names, sizes, mtimes = zip(*index, strict=True)
  np.savez(
    data,
    names=np.array(names),
    sizes=np.array(sizes, np.int64),
    mtimes=np.array(mtimes, np.int64),
    bounds=np.concatenate(list(index.values())),
    splits=np.cumsum([len(bounds) for bounds in index.values()])[:-1],
  )
  beside, elsewhere = _places(folder)
  try:
    write_whole(beside, data.getvalue())
    return
  except OSError:
    pass
  try:
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    write_whole(elsewhere, data.getvalue())
  except OSError as error:
    logging.warning(
      "the index of %s can be kept neither there nor in %s (%s): every start "
      "has to read through the files",
      folder,
      elsewhere.parent,
      error.strerror,
    )
