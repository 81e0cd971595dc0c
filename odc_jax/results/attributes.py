"""A user's table of attributes: what is known of the images besides labels."""

import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from jaxtyping import Int

from odc_jax.errors import UserError

# What describes the clusters, for the page.
FILE = "attributes.json"
# Columns of numbers with more values than this are cut at their deciles.
_MOST_NUMBERS = 20
# More values of text than this name images rather than describe them.
_MOST_VALUES = 1000
# Names that stand for something else among the scores.
_RESERVED = ("labels", "all")
# Attributes that are told of a cluster.
_NUM_SHOWN = 3
# 99.9 % of a chi-square of one degree of freedom: a G statistic below it is
# what chance gives one attribute in a thousand.
_LEAST_G = 10.83


class Column(NamedTuple):
  """One attribute of the images.

  Attributes:
    name: Of the table's column.
    values: What it can be, as text.
    codes: Which of these each image has; -1 where it is not known.
  """

  name: str
  values: tuple[str, ...]
  codes: Int[np.ndarray, "n"]


def read(
  path: pathlib.Path, keys: Mapping[int, str], num_images: int
) -> list[Column]:
  """Reads a table with a row for every image, or for some of them.

  Rows are found by the column `key`, an image's name as in clusters.parquet,
  or, where there is none, by `index`, its place in the data set. Each other
  column is an attribute: text, true or false, or numbers; numbers of more than
  20 different values are cut at their deciles.

  Args:
    path: A CSV file with a header, or Parquet.
    keys: Index -> key of the images that could be read.
    num_images: n.

  Raises:
    UserError: It cannot be read, or is no such table.
  """
  table = _table(path)
  names = [name for name in table.column_names if name not in ("key", "index")]
  if not names:
    raise UserError(f"{path} has no column of attributes besides the images'")
  for name in names:
    if name in _RESERVED:
      raise UserError(f"{path}: call the column {name!r} something else")
  rows = _rows(path, table, keys, num_images)
  return [_column(path, name, table[name], rows) for name in names]


def describe(
  columns: Sequence[Column],
  clusters: Int[np.ndarray, "n"],
  num_clusters: int,
) -> list[list[tuple[str, float, float]]]:
  """Returns the attributes that tell each cluster best from the others.

  They are ranked by the mutual information of lying in the cluster and having
  the value, of those that are more common in the cluster than elsewhere and
  beyond what chance explains (G-test at 0.001).

  Args:
    columns: The attributes.
    clusters: Of the images, from 0.
    num_clusters: k.

  Returns:
    For each cluster up to three times (attribute, share of its images that
    have it, share of all images that do), the best first.
  """
  found: list[list[tuple[float, str, float, float]]] = [
    [] for _ in range(num_clusters)
  ]
  for column in columns:
    counts = contingency(column, clusters, num_clusters)
    n = counts.sum()
    size, having = counts.sum(axis=1), counts.sum(axis=0)
    # G of the four counts: in the cluster or not, with the value or not.
    g = np.zeros(counts.shape)
    for part, whole in (
      (counts, size[:, None] * having),
      (size[:, None] - counts, size[:, None] * (n - having)),
      (having - counts, (n - size[:, None]) * having),
      (
        n - size[:, None] - having + counts,
        (n - size[:, None]) * (n - having),
      ),
    ):
      ratio = part * float(n) / np.maximum(whole, 1)
      g += 2 * part * np.log(np.where(part > 0, ratio, 1))
    more = counts * float(n) > size[:, None] * having.astype(float)
    for c, v in zip(*np.nonzero(more & (g > _LEAST_G)), strict=True):
      text = f"{column.name} = {column.values[v]}"
      share = float(counts[c, v] / size[c])
      found[c].append((-float(g[c, v]), text, share, float(having[v] / n)))
  return [[entry[1:] for entry in sorted(of)[:_NUM_SHOWN]] for of in found]


def contingency(
  column: Column, clusters: Int[np.ndarray, "n"], num_clusters: int
) -> Int[np.ndarray, "k v"]:
  """Counts the images of every cluster and value, where the latter is known."""
  known, v = column.codes >= 0, len(column.values)
  cells = clusters[known].astype(np.int64) * v + column.codes[known]
  counts = np.bincount(cells, minlength=num_clusters * v)
  return counts.reshape(num_clusters, v)


def _table(path: pathlib.Path) -> pa.Table:
  try:
    if path.suffix.lower() == ".parquet":
      return pq.read_table(path)
    return pa_csv.read_csv(
      path,
      convert_options=pa_csv.ConvertOptions(
        # 000001 is a name, and no number.
        column_types={"key": pa.string()},
        strings_can_be_null=True,
      ),
    )
  except (OSError, ValueError, pa.ArrowException) as error:
    raise UserError(
      f"eval.attributes={str(path)!r} cannot be read as "
      f"{'Parquet' if path.suffix.lower() == '.parquet' else 'CSV'} ({error})"
    ) from error


def _rows(path, table, keys, num_images) -> Int[np.ndarray, "n"]:
  """Returns the row of every image; -1 where it has none."""
  rows = np.full(num_images, -1)
  if "key" in table.column_names:
    places = {key: index for index, key in keys.items()}
    given = table["key"].cast(pa.string()).to_pylist()
  elif "index" in table.column_names:
    places = {index: index for index in keys}
    given = table["index"].to_pylist()
  else:
    raise UserError(
      f"{path} has neither a column key nor index to find the images by"
    )
  for row, name in enumerate(given):
    if name in places:
      rows[places[name]] = row
  if not np.any(rows >= 0):
    raise UserError(
      f"{path} has no row of any image: it names them like "
      f"{given[0] if given else ''!r}, the data set like "
      f"{next(iter(places), '')!r}"
    )
  return rows


def _column(path, name: str, column: pa.ChunkedArray, rows) -> Column:
  """Returns an attribute of the images."""
  kind = column.type
  if pa.types.is_dictionary(kind):
    column = column.cast(kind.value_type)
    kind = column.type
  is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
  if not (is_number or pa.types.is_boolean(kind) or _is_text(kind)):
    raise UserError(
      f"{path}: the column {name!r} is of {kind}; text, true or false, and "
      "numbers are attributes"
    )
  if pa.types.is_floating(kind):
    found = column.to_numpy()  # NaN where there is none
    valid = np.isfinite(found)
    found = found[valid]
  else:
    valid = column.is_valid().to_numpy()
    found = np.array(column.drop_null().to_pylist())
  distinct, codes = np.unique(found, return_inverse=True)
  values = [str(value) for value in distinct.tolist()]
  if is_number and len(distinct) > _MOST_NUMBERS:
    edges = np.unique(np.quantile(found, np.arange(1, 10) / 10))
    codes = np.searchsorted(edges, found, side="right")
    values = [f"below {edges[0]:g}"]
    values += [f"{a:g} to {b:g}" for a, b in itertools.pairwise(edges)]
    values.append(f"{edges[-1]:g} or more")
  elif len(distinct) > _MOST_VALUES:
    raise UserError(
      f"{path}: the column {name!r} has {len(distinct):,} different values, "
      f"more than {_MOST_VALUES:,}: it names the images rather than describes "
      "them; leave it out"
    )
  of_rows = np.full(len(column), -1)
  of_rows[valid] = codes
  of_images = np.where(rows >= 0, of_rows[rows], -1)
  # A name that can stand in that of a scalar.
  return Column(re.sub(r"[^\w-]+", "_", name), tuple(values), of_images)


def _is_text(kind) -> bool:
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)
