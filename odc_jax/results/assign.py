"""Assigns a folder of new images to the clusters of a run: `--mode=assign`."""

import os
import pathlib

import numpy as np
import pyarrow.parquet as pq

from odc_jax.errors import UserError
from odc_jax.files import whole, write_whole
from odc_jax.inference import _NEEDED, Run, open_images


def assign_to_file(
  run: Run,
  images: str | os.PathLike,
  path: pathlib.Path,
  num_groups: int | None = None,
) -> str:
  """Assigns a folder of images, of any size: `--mode=assign`.

  Args:
    run: A finished run.
    images: The folder.
    path: The Parquet file to write; images that cannot be read are named beside
      it in a text file of the same name.
    num_groups: As for `Run.assign`.

  Returns:
    What was found, in a sentence or two.

  Raises:
    UserError: As `Run.assign`; and if the file cannot be written.
  """
  for name in _NEEDED:
    if path.absolute() == (run.workdir / name).absolute():
      raise UserError(f"{path} is a file of the run; choose another --output")
  if path.is_dir() or not path.absolute().parent.is_dir():
    raise UserError(
      f"{path} is a folder, or in none; choose a file to write with --output"
    )
  if pathlib.Path(images).expanduser().is_file():
    raise UserError(f"{images} is a file; give its folder as --images")
  source = open_images(images)
  writer, unseen, rows, bad = None, None, 0, []
  try:
    with whole(path) as partial:
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
  said = f"{rows:,} images assigned"
  if unseen is not None:
    said += f", {unseen:,} of them novel"
  if bad:
    said += f"; {len(bad):,} could not be read, named in {bad_path}"
  return f"{said}; written to {path}"
