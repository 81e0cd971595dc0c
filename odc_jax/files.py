"""Files that are there whole or not at all."""

import os
import pathlib
import uuid


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes a file so that nobody, at any time, finds a part of it.

  Several processes may write the same path at once: the last one wins.

  Args:
    path: the file, replaced if it exists. Its folder has to exist.
    data: what it is to hold.

  Raises:
    OSError: it cannot be written; what was there before is still there.
  """
  path = pathlib.Path(path)
  # Not `tempfile`: its files can be read by nobody but their owner.
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  try:
    with partial.open("xb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
