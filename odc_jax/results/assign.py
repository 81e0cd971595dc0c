"""Assigns a folder of new images to the clusters of a run: `--mode=assign`."""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq

from odc_jax.data.folder import counted
from odc_jax.errors import UserError
from odc_jax.files import whole, write_whole
from odc_jax.inference import Run, is_assigned


def assign_to_file(
  run: Run,
  images: str | os.PathLike,
  path: pathlib.Path,
  num_groups: int | None = None,
) -> str:
  """Assigns a folder of images, of any size: `--mode=assign`.

  Nothing is overwritten: where there are such rows already, the new ones get
  the next free name (`assigned_2.parquet`). `Run.merged` puts all together.

  Args:
    run: A finished run.
    images: The folder; of a run on features a .npy file.
    path: The Parquet file to write, or what its name begins with; images that
      cannot be read are named beside it in a text file of the same name.
    num_groups: As for `Run.assign`.

  Returns:
    What was found, in a sentence or two.

  Raises:
    UserError: As `Run.assign`; and if the file cannot be written.
  """
  _check(path, run.workdir)
  source = run.open(images)
  writer, unseen, rows, bad = None, None, 0, []
  wanted = path
  try:
    with _claimed(wanted) as path, whole(path) as partial:
      for table, unreadable in run.assign_in_parts(source, num_groups):
        writer = writer or pq.ParquetWriter(partial, table.schema)
        writer.write_table(table)
        rows += len(table)
        bad += unreadable
        if "is_novel" in table.column_names:
          unseen = (unseen or 0) + int(np.sum(table["is_novel"].to_numpy()))
      assert writer is not None  # there is an image
      writer.close()
    bad_path = path.with_name(f"{path.name}.bad_images.txt")
    bad_path.unlink(missing_ok=True)
    if bad:
      lines = [f"{b.index}\t{b.key}\t{' '.join(b.reason.split())}" for b in bad]
      write_whole(bad_path, "".join(f"{line}\n" for line in lines).encode())
  except OSError as error:
    raise UserError(
      f"cannot write {path}: {error}; choose another --output"
    ) from error
  said = ""
  if path != wanted:
    said = f"{wanted} is there already and stays as it is. "
  said += f"{rows:,} images assigned"
  if unseen is not None:
    said += f", {unseen:,} of them novel"
  if passed_over := getattr(source, "passed_over", None):
    said += f"; passed over: {counted(passed_over)}"
  if bad:
    said += f"; {len(bad):,} could not be read, named in {bad_path}"
  return f"{said}; written to {path}"


def _check(path: pathlib.Path, workdir: pathlib.Path) -> None:
  """Raises a UserError where the rows may not be written."""
  if path.is_dir() or not path.absolute().parent.is_dir():
    raise UserError(
      f"{path} is a folder, or in none; choose a file to write with --output"
    )
  place = path.resolve().parent
  inside = place.is_relative_to(workdir.resolve())
  # Also names that the run has not written yet, such as warnings.jsonl.
  own = inside and (place != workdir.resolve() or path.suffix != ".parquet")
  there = path.exists() and not is_assigned(path)
  if own or (inside and there):
    raise UserError(f"{path} is a file of the run; choose another --output")
  if there:
    raise UserError(
      f"{path} is there already, and no table of --mode=assign; choose another "
      "--output"
    )


@contextlib.contextmanager
def _claimed(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the path, or one like it that is free, and holds it meanwhile.

  Two programs at once get two files. Where the block raises, there is none.

  Raises:
    OSError: No file can be made there.
  """
  for number in itertools.count(1):
    name = path.name if number == 1 else f"{path.stem}_{number}{path.suffix}"
    free = path.with_name(name)
    try:
      free.open("xb").close()
      break
    except FileExistsError:
      continue
  try:
    yield free
  except BaseException:
    free.unlink(missing_ok=True)
    raise
