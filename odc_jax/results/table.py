"""`clusters.parquet`: its columns, how it is written, read and changed."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

from odc_jax.files import whole

# Names are a contract: scripts read them. embedding-atlas wants the last four
# as they are.
COLUMNS = {
  "index": "place of the image in the data set, and its row in embeddings.npy",
  "key": "its path below the folder, or its name in the data set",
  "label": "ground truth, where it is known",
  "cluster": "the cluster that it belongs to",
  "cluster_size": "images in that cluster",
  "cluster_group": "the group of clusters that this one was merged into "
  "(--num_groups), 0 being the largest",
  "cluster_name": "what somebody has called the cluster (--annotations)",
  "similarity": "cosine of its embedding with the cluster's centroid",
  "second_cluster": "the cluster of the most similar other centroid",
  "margin": "similarity minus that with the second cluster; below zero where "
  "that one is nearer",
  "confidence": "the network's own probability of the cluster; where many "
  "heads vote, the share of them that is for it",
  "generation": "of a run that has grown (--on_change=extend): with which "
  "growth the image came; 0: it was there when the run began",
  "is_novel": "likewise: it came with the last growth, and is farther from "
  "every centroid than 99 % of the images of before",
  "is_missing": "likewise: its file is no longer there",
  "outlier_score": "half of 1 minus the mean cosine with its ten nearest "
  "images",
  "is_outlier": "unlike the others: its score is beyond the threshold in "
  "clusters.json",
  "near_duplicate_group": "the same number for images that look the same; none "
  "where there is no other",
  "width": "of the upright image, in pixels",
  "height": "likewise",
  "brightness": "mean luma, from 0 (black) to 1 (white)",
  "sharpness": "variance of the Laplacian of its grey levels (0 to 255), at "
  "256 pixels on the longer side",
  "sha256": "digest of the file's bytes, the same for equal files alone",
  "taken": "when, by the camera's clock, where EXIF says it",
  "projection_x": "its horizontal place on a map where similar images lie "
  "together",
  "projection_y": "its vertical place on that map",
  "neighbors": "its ten nearest images: their row numbers in this table, and "
  "their cosine distances",
  "image": "a small picture (--thumbnails): the bytes of a WebP file, and the "
  "key as its path",
}

_TYPES = {
  "index": pa.int64(),
  "key": pa.string(),
  "label": pa.int32(),
  "cluster": pa.int32(),
  "cluster_size": pa.int32(),
  "cluster_group": pa.int32(),
  "similarity": pa.float32(),
  "second_cluster": pa.int32(),
  "margin": pa.float32(),
  "confidence": pa.float32(),
  "generation": pa.int32(),
  "is_novel": pa.bool_(),
  "is_missing": pa.bool_(),
  "outlier_score": pa.float32(),
  "is_outlier": pa.bool_(),
  "near_duplicate_group": pa.int32(),
  "width": pa.int32(),
  "height": pa.int32(),
  "brightness": pa.float32(),
  "sharpness": pa.float32(),
  "sha256": pa.string(),
  "taken": pa.timestamp("ms"),
  "projection_x": pa.float32(),
  "projection_y": pa.float32(),
  "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
}
# Where a number says that there is none.
_NONE = {"label": -1, "near_duplicate_group": -1}
# Integers that may be missing: pandas makes floats of these unless told not to.
_NULLABLE = ("label", "near_duplicate_group", "width", "height")
# Columns -> what they were called once.
_OLD_NAMES = {"cluster_group": "group"}

# The key of the schema's metadata that holds the folder that keys are below.
FOLDER = "odc_jax.folder"

_ROW_GROUP = 100_000
# With pictures, of some kilobytes each.
_ROW_GROUP_OF_PICTURES = 5_000


def write(
  path: str | os.PathLike[str],
  columns: Mapping[str, Any],
  readable: Bool[np.ndarray, "n"],
  folder: str | None = None,
) -> None:
  """Writes a row for every readable image.

  Args:
    path: The file.
    columns: Names of `COLUMNS` but for `index` -> n values; in place of the two
      coordinates `projection`, [n, 2]; `neighbors` as (rows [n, m] with -1
      where there are fewer, cosines [n, m]). Labels and dates that nobody knows
      are left out.
    readable: Which images get a row, [n].
    folder: That the keys are below, for the schema's metadata; None: images
      are no files.

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
  if "taken" in columns and columns["taken"].null_count == len(readable):
    del columns["taken"]
  names = [name for name in COLUMNS if name in columns]
  writer = None
  with whole(path) as partial:
    for start in range(0, len(chosen), _ROW_GROUP):
      rows = chosen[start : start + _ROW_GROUP]
      batch = pa.table(
        {name: _array(name, columns[name], rows, row_of) for name in names},
        metadata=_metadata(names, folder),
      )
      if writer is None:
        writer = pq.ParquetWriter(partial, batch.schema)
      writer.write_table(batch)
    assert writer is not None  # a data set has readable images
    writer.close()


def read(
  path: str | os.PathLike[str], columns: Sequence[str] | None = None
) -> pa.Table:
  """Reads a table, also of a run that called some columns otherwise.

  Args:
    path: The table.
    columns: Those to read, by their names of today; None: all.

  Raises:
    OSError: It cannot be read.
    pyarrow.ArrowException: It is damaged, or lacks a column.
  """
  there = set(pq.read_schema(path).names)
  old = {new: name for new, name in _OLD_NAMES.items() if new not in there}
  if columns is not None:
    columns = [old.get(name, name) for name in columns]
  rows = pq.read_table(path, columns=columns)
  new = {name: now for now, name in old.items()}
  renamed = rows.rename_columns([new.get(n, n) for n in rows.column_names])
  return renamed.replace_schema_metadata(rows.schema.metadata)


def names(path: str | os.PathLike[str]) -> list[str]:
  """Returns the columns of a table, by their names of today."""
  new = {name: now for now, name in _OLD_NAMES.items()}
  there: list[str] = pq.read_schema(path).names
  return [new.get(name, name) for name in there]


def set_groups(
  path: str | os.PathLike[str], groups: Int[np.ndarray, "k"]
) -> None:
  """Sets the column `cluster_group` to the groups of the clusters."""

  def column(rows):
    return pa.array(groups[rows["cluster"].to_numpy()], pa.int32())

  _set_column(path, "cluster_group", column)


def set_cluster_names(
  path: str | os.PathLike[str], names: Mapping[int, str]
) -> None:
  """Sets the column `cluster_name` of a table, which goes without any name."""

  def column(rows):
    clusters = rows["cluster"].to_pylist()
    return pa.array([names.get(c) for c in clusters], pa.string())

  _set_column(path, "cluster_name", column if names else None)


def set_images(
  path: str | os.PathLike[str],
  pictures: Callable[[pa.Table], Sequence[bytes | None]],
) -> None:
  """Sets the column `image`, in the form of the datasets library.

  Args:
    path: The table.
    pictures: From some rows to the files of their pictures; None: there is no
      picture.
  """

  def column(rows):
    files = pictures(rows)
    keys = rows["key"].to_pylist()
    images = [
      None if file is None else {"bytes": file, "path": key}
      for file, key in zip(files, keys, strict=True)
    ]
    return pa.array(images, _TYPES["image"])

  _set_column(path, "image", column)


def _set_column(
  path: str | os.PathLike[str],
  name: str,
  column: Callable[[pa.Table], pa.Array] | None,
) -> None:
  """Puts a column in its place in a table, or takes it out.

  A part of the table is in memory at a time.

  Args:
    path: The table.
    name: Of the column.
    column: From some rows of the table to their values; None: it goes.
  """
  path = pathlib.Path(path)
  former = {name, _OLD_NAMES.get(name, name)}

  def changed(rows):
    rows = rows.drop_columns([n for n in former if n in rows.column_names])
    if column is None:
      return rows
    before = list(COLUMNS)[: list(COLUMNS).index(name)]
    place = sum(other in before for other in rows.column_names)
    return rows.add_column(place, name, column(rows))

  with pq.ParquetFile(path) as file:
    if column is None and not former & {*file.schema_arrow.names}:
      return
    size = _ROW_GROUP
    if "image" in (name, *file.schema_arrow.names):
      size = _ROW_GROUP_OF_PICTURES
    writer = None
    with whole(path) as partial:
      for batch in file.iter_batches(size):
        part = changed(pa.Table.from_batches([batch]))
        if writer is None:
          metadata = file.schema_arrow.metadata
          writer = pq.ParquetWriter(
            partial, part.schema.with_metadata(metadata)
          )
        writer.write_table(part.replace_schema_metadata(metadata))
      assert writer is not None  # a table has rows
      writer.close()


def pandas_metadata(rows: pa.Table) -> dict[str, bytes]:
  """Returns what tells pandas to keep integers where some are missing.

  Without it they become floats. Other readers ignore it.

  Args:
    rows: A table.
  """
  return _pandas_metadata(
    {
      field.name: field.type.bit_width
      for field in rows.schema
      if pa.types.is_integer(field.type) and rows[field.name].null_count
    }
  )


def _pandas_metadata(bits: Mapping[str, int]) -> dict[str, bytes]:
  """Returns the metadata for columns of integers, of so many bits."""
  columns = [
    {
      "name": name,
      "field_name": name,
      "pandas_type": f"int{width}",
      "numpy_type": f"Int{width}",  # pandas' integers with a missing value
      "metadata": None,
    }
    for name, width in bits.items()
  ]
  pandas = {"index_columns": [], "column_indexes": [], "columns": columns}
  return {"pandas": json.dumps(pandas).encode()}


def _metadata(names: Sequence[str], folder: str | None) -> dict[str, bytes]:
  """Returns the metadata of the schema."""
  metadata = _pandas_metadata({n: 32 for n in _NULLABLE if n in names})
  if folder is not None:
    metadata[FOLDER] = os.fsencode(folder)
  return metadata


def _array(name, values, rows, row_of):
  """Returns the Arrow array of one column for these rows."""
  if name == "neighbors":
    return neighbors_array(row_of, *(part[rows] for part in values))
  if name == "key":
    return pa.array([values[i] for i in rows.tolist()], pa.string())
  if isinstance(values, pa.Array):
    return values.take(pa.array(rows))
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
