"""The rows of new images: their columns, and one table of these and a run's."""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from odc_jax.errors import UserError
from odc_jax.results import groups, table

# The columns for new images. Names are a contract: scripts read them.
ASSIGNED = {
  "index": ("its place among the images given", pa.int64()),
  "key": ("its path below the folder, or as it was given", pa.string()),
  "cluster": ("the nearest cluster, or that of the heads' vote", pa.int32()),
  "cluster_group": (
    "the group of clusters that holds it (--num_groups)",
    pa.int32(),
  ),
  "similarity": (
    "cosine of its embedding with the cluster's centroid",
    pa.float32(),
  ),
  "second_cluster": ("the cluster of the next centroid", pa.int32()),
  "margin": ("similarity minus that with the second cluster", pa.float32()),
  "confidence": ("the network's own probability of the cluster", pa.float32()),
  "outlier_score": (
    "half of 1 minus the mean cosine with the ten nearest training images",
    pa.float32(),
  ),
  "is_novel": (
    "less like the training images than 99 % of these are like each other",
    pa.bool_(),
  ),
  "nearest": ("keys of the nearest training images", pa.list_(pa.string())),
  "nearest_similarity": ("their cosines", pa.list_(pa.float32())),
}

# The key of the schema's metadata that tells the clusters of one run from
# those of another, or of the same run at another time.
RUN = "odc_jax.run"

# What a merged table takes over from the rows of new images.
_TAKEN_OVER = (
  "key",
  "cluster",
  "similarity",
  "second_cluster",
  "margin",
  "confidence",
  "outlier_score",
)
# What follows from the cluster alone.
_OF_CLUSTER = ("cluster_size", "cluster_group", "cluster_name")
# The columns that a merged table has besides those of the run's.
MERGED = {
  "is_assigned": (
    "whether the image was assigned later; the run was not made of it",
    pa.bool_(),
  ),
  "is_novel": ("as in the table of new images; none of the run's", pa.bool_()),
  "folder": ("that the key is below, where images are files", pa.string()),
}


def is_assigned(path: pathlib.Path) -> bool:
  """Returns whether a file holds the rows of new images, or nothing yet."""
  try:
    if not path.stat().st_size:
      return True
    names = set(table.names(path))
  except (OSError, pa.ArrowException):
    return False
  return {"key", "cluster", "similarity"} <= names and (
    "cluster_size" not in names
  )


def metadata(folder: str | None, run: str) -> dict[str, bytes]:
  """Returns the metadata of a table of new images.

  Args:
    folder: That the keys are below; None: images are no files.
    run: What tells the run's clusters from others (`annotations.digest`).
  """
  found = {RUN: run.encode()}
  if folder is not None:
    found[table.FOLDER] = os.fsencode(folder)
  return found


def read_all(workdir: pathlib.Path) -> list[pa.Table]:
  """Returns all tables of new images in a work directory, oldest first."""
  paths = [path for path in workdir.glob("*.parquet") if is_assigned(path)]
  paths = [path for path in paths if path.stat().st_size]
  paths.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
  return [groups.read(path, table.read) for path in paths]


def merge(
  clusters: pa.Table, assigned: Iterable[pa.Table], run: str
) -> pa.Table:
  """Returns the rows of a run, followed by those of new images.

  Args:
    clusters: The run's table.
    assigned: Tables of new images, oldest first. Of rows with the same folder
      and key the last one is taken.
    run: As for `metadata`.

  Returns:
    All columns of `clusters`, null where nothing is known of a new image (it
    has no `index`), and those of `MERGED`. `cluster_size` counts the run's
    images alone.

  Raises:
    UserError: A table was assigned to the clusters of another run.
  """
  new: dict[tuple[str | None, str], dict[str, Any]] = {}
  for rows in assigned:
    made_by = (rows.schema.metadata or {}).get(RUN.encode(), run.encode())
    if made_by != run.encode():
      raise UserError(
        "these images were assigned to the clusters of another run, or of this "
        "one before it went on: assign them again"
      )
    folder = _folder(rows)
    names = [n for n in (*_TAKEN_OVER, "is_novel") if n in rows.column_names]
    for row in rows.select(names).to_pylist():
      place = (folder, row["key"])
      new.pop(place, None)
      new[place] = row | {"folder": folder, "is_assigned": True}
  of_cluster = _of_clusters(clusters)
  for row in new.values():
    row |= of_cluster.get(row["cluster"], {})
  fields = [clusters.schema.field(name) for name in clusters.column_names]
  fields += [pa.field(name, kind) for name, (_, kind) in MERGED.items()]
  added = pa.Table.from_pylist(
    [{f.name: row.get(f.name) for f in fields} for row in new.values()],
    pa.schema(fields),
  )
  n = len(clusters)
  own: Mapping[str, pa.Array] = {
    "is_assigned": pa.array([False] * n, pa.bool_()),
    "is_novel": pa.nulls(n, pa.bool_()),
    "folder": pa.array([_folder(clusters)] * n, pa.string()),
  }
  for name, column in own.items():
    clusters = clusters.append_column(name, column)
  merged = pa.concat_tables([clusters.replace_schema_metadata(), added])
  return merged.replace_schema_metadata(table.pandas_metadata(merged))


def _folder(rows: pa.Table) -> str | None:
  folder = (rows.schema.metadata or {}).get(table.FOLDER.encode())
  # Of no UTF-8 text can be made in a column.
  return None if folder is None else folder.decode(errors="backslashreplace")


def _of_clusters(clusters: pa.Table) -> dict[int, dict[str, Any]]:
  names = [name for name in _OF_CLUSTER if name in clusters.column_names]
  rows = clusters.select(["cluster", *names]).to_pylist()
  return {row.pop("cluster"): row for row in rows}
