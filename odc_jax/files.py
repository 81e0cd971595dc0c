"""Paths as they were meant, and files that are there whole or not at all."""

import contextlib
import json
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any

import filelock


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a path as a shell would have it, with the user's home for "~".

  Where there is no home, as in a container, "~" stays: nothing is there, and
  whoever looks says so.
  """
  return pathlib.Path(os.path.expanduser(path))


class BusyError(Exception):
  """Another process is at it."""


@contextlib.contextmanager
def alone(path: str | os.PathLike[str], timeout: float = 0.0) -> Iterator[None]:
  """Encloses what no two processes may do at once.

  Where the file system has no locks, nobody is kept out. A process that is
  killed keeps nobody out either.

  Args:
    path: a file that stands for it, made if need be, left behind.
    timeout: seconds to wait for another process.

  Raises:
    BusyError: the other one is not done by then.
    OSError: the file cannot be made.
  """
  lock = filelock.FileLock(path)
  try:
    lock.acquire(timeout=timeout)
  except filelock.Timeout as error:
    raise BusyError(f"{path} is locked") from error
  except NotImplementedError:
    pass
  try:
    yield
  finally:
    lock.release()


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a path to write to, which becomes `path` at the end.

  Several processes may write the same path at once: the last one wins. Where
  the block raises, what was there before is still there.

  Args:
    path: the file, replaced if it exists. Its folder has to exist.

  Raises:
    OSError: it cannot be written.
  """
  path = pathlib.Path(path)
  # Not `tempfile`: its files can be read by nobody but their owner.
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  try:
    yield partial
    with partial.open("rb") as file:
      os.fsync(file.fileno())
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes a file so that nobody, at any time, finds a part of it.

  Args:
    path: the file, replaced if it exists. Its folder has to exist.
    data: what it is to hold.

  Raises:
    OSError: it cannot be written; what was there before is still there.
  """
  with whole(path) as partial, partial.open("xb") as file:
    file.write(data)


def write_json(
  path: str | os.PathLike[str], content: Any, indent: int | None = None
) -> None:
  """Writes what JSON can hold, as `write_whole` does.

  Args:
    path: the file, replaced if it exists. Its folder has to exist.
    content: dicts, lists, text, numbers.
    indent: spaces a level, for people to read; None: one line.

  Raises:
    OSError: it cannot be written.
  """
  write_whole(path, (json.dumps(content, indent=indent) + "\n").encode())
