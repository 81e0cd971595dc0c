"""Clusters merged into groups, and the description that holds the merges."""

import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from odc_jax.errors import UserError
from odc_jax.files import write_json
from odc_jax.results import (
  table,
  tree,
)


def check_num_groups(num_groups: int | None, num_clusters: int) -> None:
  """Raises a UserError where clusters cannot be merged into so many groups."""
  if num_groups is not None and not 1 <= num_groups <= num_clusters:
    raise UserError(
      f"--num_groups={num_groups} is not between 1 and the {num_clusters} "
      "clusters"
    )
  if num_groups is not None and num_clusters > tree.MOST_CLUSTERS:
    raise UserError(
      f"--num_groups={num_groups}: {num_clusters:,} clusters are too many for "
      "a merge tree; leave the flag out"
    )


def regroup(workdir: pathlib.Path, num_groups: int) -> None:
  """Cuts the merge tree of a finished run anew, and renames no cluster.

  Args:
    workdir: Holds what `write` wrote; the column `group` and `num_groups` of
      its files are set.
    num_groups: How many groups there are to be.

  Raises:
    UserError: There cannot be so many, or the run has not finished.
  """
  path = workdir / "clusters.json"
  if not path.exists():
    raise UserError(
      f"{workdir} has no clusters.json to merge clusters by: finish the run "
      "first, with the same command without --mode"
    )
  groups = groups_of(workdir, num_groups)
  assert groups is not None  # a number was asked for
  read(
    workdir / "clusters.parquet", lambda path: table.set_groups(path, groups)
  )
  summary = describe(workdir)
  write_json(path, summary | {"num_groups": num_groups})


def groups_of(
  workdir: pathlib.Path, num_groups: int | None
) -> Int[np.ndarray, "k"] | None:
  """Returns the group of every cluster of a finished run.

  Args:
    workdir: Holds what `write` wrote.
    num_groups: How many; None: as many as the run's own table has, which may
      be none.

  Raises:
    UserError: There cannot be so many.
  """
  summary = describe(workdir)
  if num_groups is None:
    num_groups = summary["num_groups"]
  sizes = np.array([cluster["size"] for cluster in summary["clusters"]])
  return _cut(np.array(summary["tree"]), num_groups, sizes)


def describe(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns what is in `clusters.json` of a finished run.

  Raises:
    UserError: It is missing or damaged.
  """
  return read(
    workdir / "clusters.json", lambda path: json.loads(path.read_text("utf-8"))
  )


def read(path: pathlib.Path, load: Callable[[pathlib.Path], Any]) -> Any:
  """Returns `load(path)`.

  Raises:
    UserError: The file is missing or damaged.
  """
  try:
    return load(path)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(
      f"{path} is missing or damaged ({reason}); the command that trained the "
      "run writes it again"
    ) from error


def _cut(merges, num_groups, sizes):
  """Returns the group of every cluster, or None where none are wanted."""
  check_num_groups(num_groups, len(sizes))
  return None if num_groups is None else tree.cut(merges, num_groups, sizes)
