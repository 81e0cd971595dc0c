"""Which images the page shows, where it cannot show all of them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

# Limits of the page, whatever the size of the data.
MAP_POINTS = 20_000
OUTLIERS = 60
# Shown where none is flagged: somebody has to be the least usual.
LEAST_USUAL = 20
DUPLICATE_GROUPS = 40
DUPLICATES_OF_GROUP = 8
# Of a collection that has grown: the most unlike its clusters first.
NEW = 200
# Lists in clusters.json whose images are on the page, whatever is left out.
_LISTS = ("representatives", "boundary", "outliers")


class Sample(NamedTuple):
  """Rows of the table, by what they are shown as.

  Attributes:
    rows: All of the table's, each once, the most important ones first.
    important: Those that stand before the points of the map in `rows`.
    of_clusters: Name of a list -> rows of every cluster.
    outliers: Of the whole data set.
    duplicates: (size, rows) of the largest groups of near-duplicates.
    num_duplicates: Images in all such groups.
    num_duplicate_groups: How many groups there are.
    on_map: A sample, drawn uniformly.
  """

  rows: np.ndarray
  important: np.ndarray
  of_clusters: dict[str, list[list[int]]]
  outliers: list[int]
  duplicates: list[tuple[int, list[int]]]
  num_duplicates: int
  num_duplicate_groups: int
  on_map: np.ndarray


def draw(table: dict[str, np.ndarray], clusters: list[dict]) -> Sample:
  """Picks rows of the table, always the same ones.

  Args:
    table: Its numeric columns.
    clusters: Of `clusters.json`, in their order.
  """
  index = table["index"]

  def rows_of(indices) -> list[int]:
    at = np.searchsorted(index, indices)
    # An image that could not be read has no row.
    return [
      int(row)
      for row, i in zip(at, indices, strict=True)
      if row < len(index) and index[row] == i
    ]

  of_clusters = {name: [rows_of(c[name]) for c in clusters] for name in _LISTS}
  flagged = np.flatnonzero(table["is_outlier"])
  most = OUTLIERS if len(flagged) else LEAST_USUAL
  if not len(flagged):
    flagged = np.flatnonzero(table["outlier_score"] > 0)
  worst = np.argsort(-table["outlier_score"][flagged], kind="stable")
  outliers = flagged[worst[:most]].tolist()
  duplicates, num_duplicates, num_groups = _duplicates(
    table["near_duplicate_group"]
  )
  placed = np.flatnonzero(
    np.isfinite(table["projection_x"]) & np.isfinite(table["projection_y"])
  )
  if len(placed) > MAP_POINTS:
    rng = np.random.default_rng(0)
    placed = np.sort(rng.choice(placed, MAP_POINTS, replace=False))
  by_size = np.argsort([-c["size"] for c in clusters], kind="stable")
  representatives = of_clusters["representatives"]
  important = [
    *(row for c in by_size for row in representatives[c][:1]),
    *outliers,
    *(row for _, rows in duplicates for row in rows),
    *_new(table),
  ]
  # The map before the lists: with 10,000 clusters these leave it no room.
  rows = unique(
    [*important, *placed.tolist(), *by_rank([*of_clusters.values()])]
  )
  others = np.ones(len(index), bool)
  others[rows] = False
  others = np.random.default_rng(0).permutation(np.flatnonzero(others))
  return Sample(
    rows=np.concatenate([np.array(rows, np.int64), others]),
    important=np.array(unique(important), np.int64),
    of_clusters=of_clusters,
    outliers=outliers,
    duplicates=duplicates,
    num_duplicates=num_duplicates,
    num_duplicate_groups=num_groups,
    on_map=placed,
  )


def _new(table: dict[str, np.ndarray]) -> list[int]:
  """Returns the images of the last growth, those first that are far off."""
  generation = table.get("generation")
  if generation is None or not generation.max():
    return []
  new = np.flatnonzero(generation == generation.max())
  far = np.argsort(table["similarity"][new], kind="stable")
  return new[far[:NEW]].tolist()


def _duplicates(group: np.ndarray) -> tuple[list, int, int]:
  """Returns the largest groups, how many images are in any, and how many."""
  rows = np.flatnonzero(group >= 0)
  names, inverse, sizes = np.unique(
    group[rows], return_inverse=True, return_counts=True
  )
  largest = np.argsort(-sizes, kind="stable")[:DUPLICATE_GROUPS]
  shown = [
    (
      int(sizes[g]),
      rows[np.flatnonzero(inverse == g)[:DUPLICATES_OF_GROUP]].tolist(),
    )
    for g in largest
  ]
  return shown, len(rows), len(names)


def by_rank(lists: list[list[list[int]]]) -> Iterator[int]:
  """Yields the first of every cluster's list, then the second of every ..."""
  longest = max(map(len, itertools.chain(*lists)), default=0)
  for rank in range(longest):
    for rows in itertools.chain(*lists):
      if len(rows) > rank:
        yield rows[rank]


def unique(values: Iterable[int]) -> list[int]:
  """Returns each value once, where it stands first, without -1."""
  return [value for value in dict.fromkeys(values) if value >= 0]
