"""Sorts the images of a run into folders: `--mode=sort`.

The originals are read and never touched; all that is written lies in one new
folder, and is undone by deleting it.
"""

import csv
import os
import pathlib
import re
import shutil
import unicodedata
import uuid
from collections.abc import Sequence

import pyarrow as pa

from odc_jax.data.folder import printable
from odc_jax.errors import UserError
from odc_jax.logs import progress
from odc_jax.results import annotations, groups, table
from odc_jax.results.originals import Originals

BY = ("cluster", "group")
AS = ("link", "copy", "list")

# What is where, in the new folder.
LIST = "images.csv"
# The paths of a folder's images, where only these are wanted.
_PATHS = "images.txt"

# What file systems and shells of one kind or another do not take.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_MOST_BYTES = 100  # of a folder that somebody has named
_LONGEST_NAME = 255  # in bytes, what file systems take


def sort(
  workdir: pathlib.Path,
  output: pathlib.Path,
  by: str = "cluster",
  how: str = "link",
) -> str:
  """Writes a folder of images for every cluster or group.

  Images that were marked "exclude" are left out.

  Args:
    workdir: Of a finished run over a folder of images.
    output: The folder to make; it may be there if it is empty.
    by: One of `BY`.
    how: One of `AS`: links to the originals, copies of them, or lists of their
      paths.

  Returns:
    What was written and what was not, in a sentence or two.

  Raises:
    UserError: The folder cannot be made, or there is nothing to sort.
  """
  _check_output(output)
  originals = Originals(workdir)
  if originals.folder is None:
    raise UserError(
      "--mode=sort sorts files, and the images of this run are none: "
      "clusters.parquet says which image is in which cluster"
    )
  if _is_below(output, pathlib.Path(originals.folder)):
    raise UserError(
      f"{output} is inside {originals.folder}, whose images would then be "
      "there twice; choose another --output"
    )
  rows, excluded = _rows(workdir, by)
  keys = rows["key"].to_pylist()
  folders = _folders(workdir, rows, by)
  paths = [originals.path(key) for key in keys]
  missing = [k for k, path in zip(keys, paths, strict=True) if path is None]
  if len(missing) == len(keys):
    raise UserError(
      f"none of the images of {workdir} is in {originals.folder} any more; put "
      "them back, or sort where they are"
    )
  partial = output.absolute().with_name(f".{output.name}.{uuid.uuid4().hex}")
  try:
    partial.mkdir()
    num_folders = _write(
      partial, list(zip(folders, keys, paths, strict=True)), how
    )
    partial.replace(output)  # an empty folder may be there
  except OSError as error:
    hint = ", or --sort_as=copy" if how == "link" else ""
    raise UserError(
      f"cannot write {output}: {error.strerror or error}; choose another "
      f"--output{hint}"
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  num = len(keys) - len(missing)
  what = {"link": "links to", "copy": "copies of", "list": "the paths of"}[how]
  said = (
    f"{what} {num:,} images in {num_folders:,} folders of {output}; "
    f"{LIST} there says what is where"
  )
  if missing:
    said += (
      f". {len(missing):,} are not in {originals.folder} any more, the first "
      f"of them {missing[0]!r}"
    )
  if excluded:
    said += f'. {excluded:,} marked "exclude" were left out'
  return f"{said}. To undo it, delete the folder"


def safe_name(text: str) -> str:
  """Returns a name for a folder that every file system takes.

  Args:
    text: Whatever somebody has called it.
  """
  name = _UNSAFE.sub("_", unicodedata.normalize("NFC", text))
  while len(name.encode()) > _MOST_BYTES:
    name = name[:-1]
  # A dot in front hides it, Windows drops dots and spaces at the end.
  name = name.strip(" .")
  return f"_{name}" if not name or _RESERVED.match(name) else name


def _check_output(output: pathlib.Path) -> None:
  """Raises a UserError where a folder cannot be made without losing another."""
  if output.is_symlink() or (output.exists() and not output.is_dir()):
    raise UserError(f"{output} is there already; choose another --output")
  if output.is_dir() and any(output.iterdir()):
    raise UserError(
      f"{output} is not empty, and nothing is overwritten; choose another "
      "--output, or delete it"
    )
  if not output.absolute().parent.is_dir():
    raise UserError(
      f"{output.absolute().parent} is no folder; choose another --output"
    )


def _is_below(path: pathlib.Path, folder: pathlib.Path) -> bool:
  return path.resolve().is_relative_to(folder.resolve())


def _rows(workdir: pathlib.Path, by: str) -> tuple[pa.Table, int]:
  """Returns the rows to sort, and how many are left out as marked."""
  path = workdir / "clusters.parquet"
  there = groups.read(path, table.names)
  if by == "group" and "cluster_group" not in there:
    raise UserError(
      f"{workdir} has no groups: make some with --mode=report --num_groups=10"
    )
  wanted = ("key", "cluster", "cluster_name", "cluster_group")
  wanted = [name for name in wanted if name in there]
  rows = groups.read(path, lambda path: table.read(path, wanted))
  marks = annotations.load(workdir).marks
  kept = [marks.get(key) != "exclude" for key in rows["key"].to_pylist()]
  if not any(kept):
    raise UserError(
      'every image is marked "exclude"; take marks back on the page'
    )
  return rows.filter(pa.array(kept)), kept.count(False)


def _folders(workdir: pathlib.Path, rows: pa.Table, by: str) -> list[str]:
  """Returns the name of every image's folder."""
  clusters = rows["cluster"].to_pylist()
  if by == "group":
    numbers = rows["cluster_group"].to_pylist()
    members: dict[int, set[int]] = {}
    for cluster, group in zip(clusters, numbers, strict=True):
      members.setdefault(group, set()).add(cluster)
    called = annotations.load(workdir).groups
    names = {
      group: name
      for group, own in members.items()
      for name, theirs in called.items()
      if own == {*theirs} & {*clusters}
    }
  else:
    numbers = clusters
    column = [None] * len(rows)
    if "cluster_name" in rows.column_names:
      column = rows["cluster_name"].to_pylist()
    names = dict(zip(clusters, column, strict=True))
  width = len(str(max(numbers)))
  taken = _Names()
  # Clusters of one name share a folder; two names never do.
  of_text: dict[str, str] = {}
  folders = {}
  for number in sorted(set(numbers)):
    text = names.get(number) or f"{by}-{number:0{width}d}"
    if text not in of_text:
      of_text[text] = taken.free(safe_name(text))
    folders[number] = of_text[text]
  return [folders[number] for number in numbers]


class _Names:
  """Names that are taken in a folder, also where case and accents fold."""

  def __init__(self):
    # The list stands beside the folders, and so does a folder's list of paths.
    self._taken = {LIST, _PATHS}
    self._next: dict[str, int] = {}

  def free(self, name: str) -> str:
    """Returns the name, or the first `name (2).jpg` that is free; takes it."""
    stem, suffix = os.path.splitext(name)
    number = self._next.get(self._folded(name), 1)
    while True:
      end = f" ({number}){suffix}"
      while len(os.fsencode(stem + end)) > _LONGEST_NAME:
        stem = stem[:-1]
      new = name if number == 1 else stem + end
      number += 1
      if self._folded(new) not in self._taken:
        self._taken.add(self._folded(new))
        self._next[self._folded(name)] = number
        return new

  @staticmethod
  def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _write(
  output: pathlib.Path,
  images: Sequence[tuple[str, str, str | None]],
  how: str,
) -> int:
  """Writes the folders and the list of what is where.

  Args:
    output: An empty folder.
    images: Folder, key and path of each; without a path it is gone.
    how: One of `AS`.

  Returns:
    How many folders there are.
  """
  taken: dict[str, _Names] = {}
  with (
    (output / LIST).open("w", encoding="utf-8", newline="") as file,
    progress.bar("sorting", len(images)) as advance,
  ):
    writer = csv.writer(file)
    writer.writerow(("folder", "name", "key", "path"))
    for done, (folder, key, path) in enumerate(images, 1):
      if path is None:
        continue
      if folder not in taken:
        (output / folder).mkdir()
        taken[folder] = _Names()
      name = ""
      if how == "list":
        with (output / folder / _PATHS).open("a", encoding="utf-8") as paths:
          paths.write(f"{printable(path)}\n")
      else:
        name = taken[folder].free(os.path.basename(path))
        if how == "copy":
          shutil.copy2(path, output / folder / name)
        else:
          (output / folder / name).symlink_to(path)
      writer.writerow((folder, printable(name), key, printable(path)))
      advance(done)
  return len(taken)
