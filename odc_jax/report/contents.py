"""The clusters of a run: what the page shows of them, within a budget."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from odc_jax.errors import UserError
from odc_jax.report import sample
from odc_jax.results import annotations, attributes, vectors
from odc_jax.results import table as table_lib

NEAREST_CLUSTERS = 5
# Limits of the page, whatever the size of the data.
IMAGE_BYTES = 7_000_000
# An image's numbers, without its name, and without and with its neighbours.
_NUMBER_BYTES = 60
_NEIGHBOR_BYTES = 100

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
_OPTIONAL = ("cluster_group", "label")
# Of a run that has grown.
_GROWN = ("generation", "is_novel", "is_missing")
# Read for those images alone that are shown.
_KEY = "key"
_NEIGHBORS = "neighbors"
_FILES = ("clusters.parquet", "clusters.json")


class Contents(NamedTuple):
  """The data of the page's script, and the images whose pictures it shows.

  Attributes:
    data: For the script; plain lists, numbers and text. An image is named by
      its place in the columns of `data["images"]`.
    by_worth: Places of all images, those first whose pictures matter most.
    num_first: How many of these the page cannot do without: what stands for
      a cluster, outliers, near-duplicates.
    agreement: Fraction of all images that lie nearest to their own cluster.
    advice: On the number of clusters, or "".
  """

  data: dict[str, Any]
  by_worth: list[int]
  num_first: int
  agreement: float
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
  path = workdir / "clusters.parquet"
  summary, clusters, table, keys = _load(workdir)
  picked = sample.draw(table, clusters)
  neighbors = _NEIGHBORS in pq.read_schema(path).names
  images, place = _images(keys, table, picked, neighbors)
  shown = picked.rows[: len(images["key"])]
  if neighbors:
    images |= _neighbors(path, shown, place)
  representatives = _places(picked.of_clusters["representatives"], place)
  on_map = place[picked.on_map]
  seen = on_map >= 0
  data = {
    "run": annotations.digest(table["index"], table["cluster"]),
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
      "num_outliers": _count(table, table["is_outlier"], len(clusters)),
      "num_elsewhere": _count(table, table["margin"] < 0, len(clusters)),
      "group": _groups(table, len(clusters)),
      "nearest": _nearest(workdir / "centroids.npy", clusters),
      "representatives": representatives,
      "attributes": _attributes(workdir / attributes.FILE, len(clusters)),
    },
    "growth": summary.get("growth"),
    "outliers": _places([picked.outliers], place)[0],
    "num_outliers": int(table["is_outlier"].sum()),
    "compared": neighbors,
    "num_elsewhere": int((table["margin"] < 0).sum()),
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
    "map": {
      "image": on_map[seen].tolist(),
      **_positions(table, picked.on_map[seen]),
    },
  }
  lists = [_places(rows, place) for rows in picked.of_clusters.values()]
  first = sample.unique(
    [*place[picked.important].tolist(), *sample.by_rank(lists)]
  )
  # In any order but the table's: of more pictures than fit, those that do
  # shall come from everywhere.
  rest = np.random.default_rng(0).permutation(len(shown)).tolist()
  first, rest = _there(images, first), _there(images, rest)
  return Contents(
    data=data,
    by_worth=sample.unique([*first, *rest]),
    num_first=len(first),
    agreement=float(np.mean(table["margin"] >= 0)),
    advice=summary.get("advice") or "",
  )


def _there(images: dict[str, list], places: list[int]) -> list[int]:
  """Returns the places of the images whose files are not known to be gone."""
  gone = images.get("is_missing")
  return [i for i in places if not gone[i]] if gone else places


def _load(workdir: pathlib.Path):
  """Returns the summary, its clusters by number, the table, and the names.

  Raises:
    UserError: A file is not as a run leaves it.
  """
  try:
    summary = json.loads((workdir / "clusters.json").read_text("utf-8"))
    path = workdir / "clusters.parquet"
    table = _table(path)
    keys = pq.read_table(path, columns=[_KEY])[_KEY]
    clusters = sorted(summary["clusters"], key=lambda c: c["cluster"])
    if table["cluster"].max(initial=-1) >= len(clusters):
      raise ValueError("one has clusters that the other has not")
  except (ValueError, KeyError, pa.ArrowException) as error:
    raise UserError(
      f"{workdir}: clusters.parquet or clusters.json is not as a run leaves "
      f"it ({error}); the command that trained writes them again"
    ) from error
  return summary, clusters, table, keys


def _table(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the numeric columns; -1 stands for a missing label or group."""
  names = table_lib.names(path)
  if lacking := [name for name in (*_COLUMNS, _KEY) if name not in names]:
    raise ValueError(f"no column {', '.join(lacking)}")
  others = [name for name in (*_COMPARED, *_OPTIONAL, *_GROWN) if name in names]
  columns = [*_COLUMNS, *others]
  table = table_lib.read(path, columns)
  found = {name: np.full(len(table), no) for name, no in _COMPARED.items()}
  for name in columns:
    column = table[name]
    if column.null_count:
      column = pc.fill_null(column, -1)
    found[name] = column.to_numpy()
  return found


def _images(
  all_keys: pa.ChunkedArray,
  table: dict[str, np.ndarray],
  picked: sample.Sample,
  neighbors: bool,
) -> tuple[dict[str, list], np.ndarray]:
  """Returns the columns of the images that fit in, and each row's place.

  Args:
    all_keys: The names of all images.
    table: Their numbers.
    picked: What is wanted.
    neighbors: Whether room is to be left for their neighbours.

  Returns:
    The columns, and int32 [n] with -1 for an image that is not shown.
  """
  numbers = _NUMBER_BYTES + neighbors * _NEIGHBOR_BYTES
  # More than fit even without a name need not be named.
  rows = picked.rows[: IMAGE_BYTES // numbers + 1]
  keys = all_keys.take(rows).to_pylist()
  size = np.cumsum([len(json.dumps(key)) + numbers for key in keys])
  num = int(np.searchsorted(size, IMAGE_BYTES, side="right"))
  rows = picked.rows[:num]
  place = np.full(len(table["index"]), -1, np.int32)
  place[rows] = np.arange(num)
  columns: dict[str, list] = {"key": keys[:num]}
  for name, digits in (
    ("index", None),
    ("cluster", None),
    ("similarity", 3),
    ("second_cluster", None),
    ("margin", 3),
    ("confidence", 3),
    ("outlier_score", 3),
    ("is_outlier", None),
    ("near_duplicate_group", None),
    ("label", None),
    *((name, None) for name in _GROWN),
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


def _neighbors(
  path: pathlib.Path, rows: np.ndarray, place: np.ndarray
) -> dict[str, list[list[int]]]:
  """Returns the neighbours of some images that are on the page themselves.

  Args:
    path: The table.
    rows: Of these images.
    place: Of every row, -1 where it is not shown.

  Returns:
    For each image its neighbours' places, nearest first, and their distances
    in hundredths.
  """
  column = pq.read_table(path, columns=[_NEIGHBORS])[_NEIGHBORS]
  found, distances = [], []
  for of_image in column.take(rows).to_pylist():
    near = place[of_image["ids"]].tolist() if of_image["ids"] else []
    known = [
      (other, round(100 * distance))
      for other, distance in zip(near, of_image["distances"], strict=True)
      if other >= 0
    ]
    found.append([other for other, _ in known])
    distances.append([distance for _, distance in known])
  return {"neighbors": found, "distances": distances}


def _count(table, chosen, num_clusters: int) -> list[int]:
  """Returns how many of the chosen images are in each cluster."""
  return np.bincount(table["cluster"][chosen], minlength=num_clusters).tolist()


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
  if "cluster_group" not in table:
    return None
  groups = np.full(num_clusters, -1)
  groups[table["cluster"]] = table["cluster_group"]
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


def _attributes(path: pathlib.Path, num_clusters: int) -> list | None:
  """Returns what tells each cluster: [attribute, share in it, share of all].

  None where no table of attributes was evaluated.
  """
  if not path.exists():
    return None
  try:
    found = json.loads(path.read_text())
    if len(found) != num_clusters:
      raise ValueError(f"it is of {len(found)} clusters, not {num_clusters}")
    return [
      [[text, round(here, 3), round(of_all, 3)] for text, here, of_all in of]
      for of in found
    ]
  except (ValueError, TypeError) as error:
    raise UserError(
      f"{path} is not as the evaluator leaves it ({error}); remove it, or "
      "evaluate again with --mode=evaluate --evals=reverse"
    ) from error


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
