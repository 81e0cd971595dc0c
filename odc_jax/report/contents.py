"""The clusters of a run: what the page shows of them, within a budget."""

import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from odc_jax.errors import UserError
from odc_jax.results import vectors

# What bounds the page, whatever the data. Bytes are those of the page.
MAP_POINTS = 20_000
OUTLIERS = 60
DUPLICATE_GROUPS = 40
DUPLICATES_OF_GROUP = 8
NEAREST_CLUSTERS = 5
IMAGE_BYTES = 7_000_000
# An image's numbers, without its name.
_NUMBER_BYTES = 45

_COLUMNS = (
  "index",
  "cluster",
  "similarity",
  "second_cluster",
  "margin",
  "confidence",
)
# Those that a very large run leaves out -> what stands for them.
_COMPARED = {
  "outlier_score": 0.0,
  "is_outlier": False,
  "near_duplicate_group": -1,
  "projection_x": np.nan,
  "projection_y": np.nan,
}
_OPTIONAL = ("group", "label")
# What names an image but is read for those that are shown alone.
_KEY = "key"
# Lists in clusters.json -> what they are called here.
_LISTS = {
  "representatives": "representatives",
  "boundary": "boundary",
  "outliers": "outlier_images",
}
_FILES = ("clusters.parquet", "clusters.json")


class Contents(NamedTuple):
  """What the page's script is given, and whose pictures go with it.

  Attributes:
    data: For the script; plain lists, numbers and text. An image is named by
      its place in the columns of `data["images"]`.
    index: Of each of these images in the data set, int64 [m].
    with_pictures: Places of images, those first whose pictures matter most.
    on_map_only: Places of images that are shown on the map and nowhere else;
      they come last.
    advice: On the number of clusters, or "".
  """

  data: dict[str, Any]
  index: np.ndarray
  with_pictures: list[int]
  on_map_only: list[int]
  advice: str


def missing(workdir: pathlib.Path) -> list[str]:
  """Returns the names of the clusters' files that are not there."""
  return [name for name in _FILES if not (workdir / name).exists()]


def read(workdir: pathlib.Path) -> Contents:
  """Reads the clusters and picks what is shown.

  Deterministic. Of Parquet's columns only those needed are read, and of the
  names only those shown are kept.

  Args:
    workdir: A work directory in which nothing is `missing`.

  Raises:
    UserError: A file is not as a run leaves it.
  """
  try:
    summary = json.loads((workdir / "clusters.json").read_text())
    table = _table(workdir / "clusters.parquet")
    keys = pq.read_table(workdir / "clusters.parquet", columns=[_KEY])[_KEY]
    clusters = sorted(summary["clusters"], key=lambda c: c["cluster"])
    if table["cluster"].max(initial=-1) >= len(clusters):
      raise ValueError("one has clusters that the other has not")
  except (ValueError, KeyError, pa.ArrowException) as error:
    raise UserError(
      f"{workdir}: clusters.parquet or clusters.json is not as a run leaves "
      f"it ({error}); the command that trained writes them again"
    ) from error
  picked = _pick(table, clusters)
  images, place = _images(keys, table, picked)
  lists = {
    _LISTS[name]: _places(rows, place)
    for name, rows in picked.of_clusters.items()
  }
  on_map = place[picked.on_map]
  seen = on_map >= 0
  points = picked.on_map[seen]
  data = {
    "num_images": len(table["index"]),
    "num_clusters": summary["num_clusters"],
    "num_groups": summary.get("num_groups"),
    "tree": _rounded_tree(summary.get("tree")),
    "cuts": summary.get("cuts") or [],
    "best_num_groups": summary.get("best_num_groups"),
    "images": images,
    "label_names": _label_names(keys, table),
    "clusters": {
      "size": [c["size"] for c in clusters],
      "cohesion": _rounded(c["cohesion"] for c in clusters),
      "purity": _rounded(c["purity"] for c in clusters),
      "label": [c["label"] for c in clusters],
      "num_outliers": np.bincount(
        table["cluster"][table["is_outlier"]], minlength=len(clusters)
      ).tolist(),
      "group": _groups(table, len(clusters)),
      "nearest": _nearest(workdir / "centroids.npy", clusters),
      **lists,
    },
    "outliers": _places([picked.outliers], place)[0],
    "num_outliers": int(table["is_outlier"].sum()),
    "duplicates": [
      {"size": size, "images": shown}
      for (size, _), shown in zip(
        picked.duplicates,
        _places([rows for _, rows in picked.duplicates], place),
        strict=True,
      )
    ],
    "num_duplicates": picked.num_duplicates,
    "num_duplicate_groups": picked.num_duplicate_groups,
    "map": {"image": on_map[seen].tolist(), **_positions(table, points)},
  }
  order = _unique([*place[picked.important].tolist(), *_by_rank(lists)])
  return Contents(
    data=data,
    index=table["index"][picked.rows[: len(images["key"])]],
    with_pictures=order,
    on_map_only=_unique([*order, *on_map[seen].tolist()])[len(order) :],
    advice=summary.get("advice") or "",
  )


class _Picked(NamedTuple):
  """Rows of the table, by what they are shown as.

  Attributes:
    rows: All of them, each once, the most important ones first.
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


def _table(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the numeric columns; -1 stands for a missing label or group."""
  names = pq.read_schema(path).names
  if lacking := [name for name in (*_COLUMNS, _KEY) if name not in names]:
    raise ValueError(f"no column {', '.join(lacking)}")
  others = [name for name in (*_COMPARED, *_OPTIONAL) if name in names]
  columns = [*_COLUMNS, *others]
  table = pq.read_table(path, columns=columns)
  found = {name: np.full(len(table), no) for name, no in _COMPARED.items()}
  for name in columns:
    column = table[name]
    if column.null_count:
      column = pc.fill_null(column, -1)
    found[name] = column.to_numpy()
  return found


def _pick(table: dict[str, np.ndarray], clusters: list[dict]) -> _Picked:
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
  worst = np.argsort(-table["outlier_score"][flagged], kind="stable")
  outliers = flagged[worst[:OUTLIERS]].tolist()
  duplicates, num_duplicates, num_groups = _duplicates(
    table["near_duplicate_group"]
  )
  placed = np.flatnonzero(
    np.isfinite(table["projection_x"]) & np.isfinite(table["projection_y"])
  )
  if len(placed) > MAP_POINTS:
    draw = np.random.default_rng(0)
    placed = np.sort(draw.choice(placed, MAP_POINTS, replace=False))
  by_size = np.argsort([-c["size"] for c in clusters], kind="stable")
  representatives = of_clusters["representatives"]
  important = [
    *(row for c in by_size for row in representatives[c][:1]),
    *outliers,
    *(row for _, rows in duplicates for row in rows),
  ]
  # The map before the rest: with 10,000 clusters that would leave it no room.
  return _Picked(
    rows=np.array(
      _unique([*important, *placed.tolist(), *_by_rank(of_clusters)]), np.int64
    ),
    important=np.array(_unique(important), np.int64),
    of_clusters=of_clusters,
    outliers=outliers,
    duplicates=duplicates,
    num_duplicates=num_duplicates,
    num_duplicate_groups=num_groups,
    on_map=placed,
  )


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


def _images(
  all_keys: pa.ChunkedArray, table: dict[str, np.ndarray], picked: _Picked
) -> tuple[dict[str, list], np.ndarray]:
  """Returns the columns of the images that fit in, and each row's place.

  Args:
    all_keys: The names of all images.
    table: Their numbers.
    picked: What is wanted.

  Returns:
    The columns, and int32 [n] with -1 for an image that is not shown.
  """
  keys = all_keys.take(picked.rows).to_pylist()
  size = np.cumsum([len(json.dumps(key)) + _NUMBER_BYTES for key in keys])
  num = int(np.searchsorted(size, IMAGE_BYTES, side="right"))
  rows = picked.rows[:num]
  place = np.full(len(table["index"]), -1, np.int32)
  place[rows] = np.arange(num)
  columns: dict[str, list] = {"key": keys[:num]}
  for name, digits in (
    ("cluster", None),
    ("similarity", 3),
    ("second_cluster", None),
    ("margin", 3),
    ("confidence", 3),
    ("outlier_score", 2),
    ("is_outlier", None),
    ("label", None),
  ):
    if name not in table:
      continue
    values = table[name][rows]
    if digits is None:
      columns[name] = values.astype(np.int64).tolist()
    else:
      columns[name] = _rounded(values.tolist(), digits)
  return columns, place


def _places(lists, place: np.ndarray) -> list[list[int]]:
  """Turns rows into places, without those that are not shown."""
  return [
    [int(p) for p in place[rows] if p >= 0] if rows else [] for rows in lists
  ]


def _by_rank(lists: dict[str, list[list[int]]]) -> Iterator[int]:
  """Yields the first of every cluster's list, then the second of every ..."""
  longest = max(map(len, itertools.chain(*lists.values())), default=0)
  for rank in range(longest):
    for rows in itertools.chain(*lists.values()):
      if len(rows) > rank:
        yield rows[rank]


def _positions(table, rows) -> dict[str, list[int]]:
  """Returns x and y in whole numbers from 0 to 9,999, on one scale."""
  x, y = table["projection_x"][rows], table["projection_y"][rows]
  if not len(rows):
    return {"x": [], "y": []}
  span = max(np.ptp(x), np.ptp(y)) or 1.0
  found = {}
  for name, values in (("x", x), ("y", y)):
    middle = (float(values.max()) + float(values.min())) / 2
    scaled = (values - middle) / span * 9999 + 9999 / 2
    found[name] = np.round(scaled).astype(int).tolist()
  return found


def _groups(table, num_clusters: int) -> list[int] | None:
  """Returns the group of every cluster, where the user asked for groups."""
  if "group" not in table:
    return None
  groups = np.full(num_clusters, -1)
  groups[table["cluster"]] = table["group"]
  return groups.tolist()


def _nearest(path: pathlib.Path, clusters: list[dict]) -> list[list]:
  """Returns the nearest other clusters of each, [cluster, cosine], in order.

  Without centroids it is the one that `clusters.json` names.
  """
  full = np.array([c["size"] > 0 for c in clusters])
  if not path.exists():
    return [
      [[c["second"], None]] if c["size"] and c["second"] is not None else []
      for c in clusters
    ]
  centroids = vectors.unit(np.load(path))
  nearest = []
  count = min(NEAREST_CLUSTERS, max(0, int(full.sum()) - 1))
  # 512 rows against 10,000 clusters are 20 MB.
  for first in range(0, len(clusters), 512):
    cosine = centroids[first : first + 512] @ centroids.T
    cosine[:, ~full] = -np.inf
    own = np.arange(len(cosine))
    cosine[own, first + own] = -np.inf
    top = np.argpartition(-cosine, min(count, cosine.shape[1] - 1), axis=1)
    for row, candidates in zip(cosine, top[:, :count], strict=True):
      candidates = candidates[np.argsort(-row[candidates], kind="stable")]
      nearest.append([[int(c), round(float(row[c]), 2)] for c in candidates])
  return [
    found if is_full else []
    for found, is_full in zip(nearest, full, strict=True)
  ]


def _label_names(keys: pa.ChunkedArray, table) -> dict[int, str]:
  """Returns label -> the folder that all its images lie in, where that is so.

  A folder of class folders has its labels from there; for other data sets a
  number is all that is known.
  """
  if "label" not in table:
    return {}
  labels, first = np.unique(table["label"], return_index=True)
  first = first[labels >= 0]
  labels = labels[labels >= 0].tolist()
  folders = [
    key.rpartition("/")[0].rpartition("/")[2]
    for key in keys.take(first).to_pylist()
  ]
  # digits/0003 lies in one folder whatever its label.
  if len(set(folders)) < len(folders) or "" in folders or len(folders) < 2:
    return {}
  return dict(zip(labels, folders, strict=True))


def _rounded_tree(tree) -> list[list] | None:
  if not tree:
    return None
  return [[int(a), int(b), round(h, 3), int(size)] for a, b, h, size in tree]


def _rounded(values: Iterable[float | None], digits: int = 3) -> list:
  """Rounds; None for what is missing or not finite, which JSON has not."""
  return [
    round(value, digits) if value is not None and np.isfinite(value) else None
    for value in values
  ]


def _unique(values: Iterable[int]) -> list[int]:
  """Returns each value once, where it stands first, without -1."""
  return [value for value in dict.fromkeys(values) if value >= 0]
