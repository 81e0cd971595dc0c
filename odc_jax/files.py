"""Paths as they were meant, and files that are there whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

import filelock

# What is to replace files of a folder: while it is written, and once it is
# whole.
_WRITING, _READY = ".replacing-unfinished", ".replacing"


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
    timeout: seconds to wait for another process; -1: until it is done.

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


def begin_replacing(folder: pathlib.Path) -> pathlib.Path:
  """Returns an empty folder for what is to replace files of `folder` together.

  Whatever is in it takes effect with `finish_replacing`, all of it at once.

  Args:
    folder: Of the files and folders to be replaced, or added.
  """
  staging = folder / _WRITING
  shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
  staging.mkdir()
  return staging


def finish_replacing(folder: pathlib.Path) -> None:
  """Replaces files of `folder` by those written since `begin_replacing`.

  One rename decides: a kill before it leaves everything as it was, and after it
  whoever calls `settle` next finishes the work.
  """
  (folder / _WRITING).rename(folder / _READY)
  settle(folder)


def settle(folder: pathlib.Path) -> None:
  """Finishes a replacement of files that was decided on and then cut short.

  To be called before anything in a folder is read that `finish_replacing` may
  have replaced. Without such a replacement it costs a look.

  Raises:
    OSError: A file cannot be replaced.
  """
  ready = folder / _READY
  if not ready.exists():
    return
  lock = folder / f"{_READY}.lock"
  # Of two that meet it here, the second would find one half gone.
  with alone(lock, timeout=-1.0):
    for item in sorted(ready.iterdir()) if ready.exists() else ():
      target = folder / item.name
      if item.is_dir() and target.exists():
        shutil.rmtree(target)
      item.replace(target)
    if ready.exists():
      ready.rmdir()
  lock.unlink(missing_ok=True)
