"""`clusters.parquet`: its columns, and how it is written."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

from odc_jax.files import whole

# Names are a contract: scripts read them. embedding-atlas wants the last three
# as they are.
COLUMNS = {
  "index": "place of the image in the data set, and its row in embeddings.npy",
  "key": "its path below the folder, or its name in the data set",
  "label": "ground truth, where it is known",
  "cluster": "the cluster that it belongs to",
  "cluster_size": "images in that cluster",
  "group": "the group of clusters that this one was merged into "
  "(--num_groups), 0 being the largest",
  "cluster_name": "what somebody has called the cluster (--annotations)",
  "similarity": "cosine of its embedding with the cluster's centroid",
  "second_cluster": "the cluster of the most similar other centroid",
  "margin": "similarity minus that with the second cluster; below zero where "
  "that one is nearer",
  "confidence": "the network's own probability of the cluster; where many "
  "heads vote, the share of them that is for it",
  "outlier_score": "half of 1 minus the mean cosine with its ten nearest "
  "images",
  "is_outlier": "unlike the others: its score is beyond the threshold in "
  "clusters.json",
  "near_duplicate_group": "the same number for images that look the same; none "
  "where there is no other",
  "projection_x": "its horizontal place on a map where similar images lie "
  "together",
  "projection_y": "its vertical place on that map",
  "neighbors": "its ten nearest images: their row numbers in this table, and "
  "their cosine distances",
}

_TYPES = {
  "index": pa.int64(),
  "key": pa.string(),
  "label": pa.int32(),
  "cluster": pa.int32(),
  "cluster_size": pa.int32(),
  "group": pa.int32(),
  "similarity": pa.float32(),
  "second_cluster": pa.int32(),
  "margin": pa.float32(),
  "confidence": pa.float32(),
  "outlier_score": pa.float32(),
  "is_outlier": pa.bool_(),
  "near_duplicate_group": pa.int32(),
  "projection_x": pa.float32(),
  "projection_y": pa.float32(),
}
# Where a number says that there is none.
_NONE = {"label": -1, "near_duplicate_group": -1}

_ROW_GROUP = 100_000


def write(
  path: str | os.PathLike[str],
  columns: Mapping[str, Any],
  readable: Bool[np.ndarray, "n"],
) -> None:
  """Writes a row for every readable image.

  Args:
    path: The file.
    columns: Names of `COLUMNS` but for `index` -> n values; in place of the two
      coordinates `projection`, [n, 2]; `neighbors` as (rows [n, m] with -1
      where there are fewer, cosines [n, m]). Labels that nobody knows are left
      out.
    readable: Which images get a row, [n].

  Raises:
    OSError: It cannot be written.
  """
  columns = dict(columns)
  if "projection" in columns:
    places = columns.pop("projection")
    columns |= {"projection_x": places[:, 0], "projection_y": places[:, 1]}
  chosen = np.flatnonzero(readable)
  columns["index"] = np.arange(len(readable))
  # Neighbours are numbered by rows, and unreadable images have none.
  row_of = np.cumsum(readable) - 1
  if not (np.asarray(columns["label"])[chosen] >= 0).any():
    del columns["label"]
  names = [name for name in COLUMNS if name in columns]
  writer = None
  with whole(path) as partial:
    for start in range(0, len(chosen), _ROW_GROUP):
      rows = chosen[start : start + _ROW_GROUP]
      batch = pa.table(
        {name: _array(name, columns[name], rows, row_of) for name in names}
      )
      if writer is None:
        writer = pq.ParquetWriter(partial, batch.schema)
      writer.write_table(batch)
    assert writer is not None  # a data set has readable images
    writer.close()


def set_groups(
  path: str | os.PathLike[str], groups: Int[np.ndarray, "k"]
) -> None:
  """Sets the column `group` of a table to the groups of its clusters."""

  def column(cluster):
    return pa.array(groups[cluster], pa.int32())

  _set_column(path, "group", column)


def set_cluster_names(
  path: str | os.PathLike[str], names: Mapping[int, str]
) -> None:
  """Sets the column `cluster_name` of a table, which goes without any name."""

  def column(cluster):
    return pa.array([names.get(c) for c in cluster.tolist()], pa.string())

  _set_column(path, "cluster_name", column if names else None)


def _set_column(
  path: str | os.PathLike[str],
  name: str,
  column: Callable[[Int[np.ndarray, "n"]], pa.Array] | None,
) -> None:
  """Puts a column in its place in a table, or takes it out.

  Args:
    path: The table.
    name: Of the column.
    column: From the clusters of the images to their values; None: it goes.
  """
  path = pathlib.Path(path)
  rows = pq.read_table(path)
  if name in rows.column_names:
    rows = rows.drop_columns(name)
  elif column is None:
    return
  if column is not None:
    before = list(COLUMNS)[: list(COLUMNS).index(name)]
    place = sum(other in before for other in rows.column_names)
    rows = rows.add_column(place, name, column(rows["cluster"].to_numpy()))
  with whole(path) as partial:
    pq.write_table(rows, partial, row_group_size=_ROW_GROUP)


def _array(name, values, rows, row_of):
  """Returns the Arrow array of one column for these rows."""
  if name == "neighbors":
    return neighbors_array(row_of, *(part[rows] for part in values))
  if name == "key":
    return pa.array([values[i] for i in rows.tolist()], pa.string())
  values = np.asarray(values)[rows]
  mask = values == _NONE[name] if name in _NONE else None
  return pa.array(values, _TYPES[name], mask=mask)


def neighbors_array(
  row_of: Int[np.ndarray, "n"],
  images: Int[np.ndarray, "b m"],
  cosines: Any,
) -> pa.StructArray:
  """Returns neighbours in embedding-atlas's form: {"ids", "distances"}.

  Args:
    row_of: Image -> row of the table.
    images: Of every row, -1 where there are fewer than m.
    cosines: [b, m].
  """
  there = images >= 0
  offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
  ids = pa.array(row_of[images[there]], pa.int64())
  distances = pa.array(1 - cosines[there], pa.float32())
  offsets = pa.array(offsets, pa.int32())
  return pa.StructArray.from_arrays(
    [
      pa.ListArray.from_arrays(offsets, ids),
      pa.ListArray.from_arrays(offsets, distances),
    ],
    ["ids", "distances"],
  )
