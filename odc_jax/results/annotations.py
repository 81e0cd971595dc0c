"""Annotations made on the page: names of clusters, marks of images.

`annotations.json` is what the page saves and what a work directory keeps:

    {"format": "odc_jax annotations", "version": 1, "run": digest,
     "edited": "2025-01-31T12:00:00.000Z",
     "names": [{"clusters": [5, 12], "name": "dresses"}],
     "groups": [{"clusters": [5, 7, 12], "name": "clothes"}],
     "images": [{"key": "a/1.jpg", "mark": "exclude"}],
     "central": {"5": ["a/1.jpg"], "7": [], "12": []}}

`names` are of one cluster, or of several that are taken for one; `groups` are
of clusters that stay apart. `central` has the most typical images of every
cluster that is spoken of: by these it is found again in another run.
"""

import hashlib
import json
import pathlib
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Int

from odc_jax.data import growth
from odc_jax.errors import UserError
from odc_jax.files import write_json
from odc_jax.results import groups, table

FILE = "annotations.json"
MARKS = ("keep", "exclude", "wrong cluster")
_FORMAT, _VERSION = "odc_jax annotations", 1


class Annotations(NamedTuple):
  """Names of a run's clusters and marks of its images.

  Attributes:
    names: Cluster -> its name. Clusters that were merged share one.
    merges: Clusters that are taken for one: lists of two or more.
    groups: Name -> clusters that belong together, and stay apart.
    marks: Key of an image -> "keep", "exclude" or "wrong cluster".
  """

  names: dict[int, str]
  merges: list[list[int]]
  groups: dict[str, list[int]]
  marks: dict[str, str]


def digest(index: Int[np.ndarray, "n"], cluster: Int[np.ndarray, "n"]) -> str:
  """Returns what tells a clustering from others.

  Args:
    index: Of the images in the data set.
    cluster: Of each of them.
  """
  both = np.stack([index, cluster]).astype("<i8")
  return hashlib.sha256(both.tobytes()).hexdigest()[:16]


def read(path: pathlib.Path) -> dict[str, Any]:
  """Reads `annotations.json`.

  Raises:
    UserError: It is not there, or is something else.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    _check(content)
  except OSError as error:
    raise UserError(
      f"{path} cannot be read ({error.strerror}); check --annotations"
    ) from error
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(
      f"{path} is not as the page saves its annotations ({error}); save them "
      "again"
    ) from error
  return content


def load(workdir: pathlib.Path) -> Annotations:
  """Returns the annotations of a work directory, which may be none.

  Raises:
    UserError: The file is damaged.
  """
  path = workdir / FILE
  if not path.exists():
    return Annotations({}, [], {}, {})
  content = read(path)
  return Annotations(
    names=_names(content),
    merges=[x["clusters"] for x in content["names"] if len(x["clusters"]) > 1],
    groups={x["name"]: x["clusters"] for x in content["groups"]},
    marks={x["key"]: x["mark"] for x in content["images"]},
  )


def apply(workdir: pathlib.Path, path: pathlib.Path) -> str:
  """Takes annotations into a finished run.

  Names go to the clusters that the same images are in now; of a run that has
  grown since, to those with the same numbers. What was annotated before is
  replaced.

  Args:
    workdir: Of the run; its `annotations.json` is written, and the column
      `cluster_name` of its table.
    path: What was saved, of this run or of another one over these images.

  Returns:
    What was taken over and what was not, in a sentence or two.

  Raises:
    UserError: As `read`; and where no run has finished.
  """
  content = read(path)
  columns = ["index", "key", "cluster"]
  rows = groups.read(
    workdir / "clusters.parquet",
    lambda path: pq.read_table(path, columns=columns),
  )
  clusters = rows["cluster"].to_numpy()
  run = digest(rows["index"].to_numpy(), clusters)
  of_key = dict(zip(rows["key"].to_pylist(), clusters.tolist(), strict=True))
  if content["run"] == run or content["run"] in _of_before(workdir):
    lost = []
    content["run"] = run
  else:
    content, lost = _found_again(content, of_key)
    content["run"] = run
  write_json(workdir / FILE, content, indent=1)
  table.set_cluster_names(workdir / "clusters.parquet", _names(content))
  gone = sum(image["key"] not in of_key for image in content["images"])
  num_names = len(content["names"])
  num_marks = len(content["images"])
  said = (
    f"annotations: {num_names} named or merged {_s(num_names, 'cluster')}, "
    f"{num_marks} marked {_s(num_marks, 'image')}"
  )
  if gone:
    said += f", {gone} of which the run does not have"
  if lost:
    said += (
      f". Not found again: {', '.join(lost)}; the images are spread over other "
      "clusters now"
    )
  return said


def _s(number: int, noun: str) -> str:
  return noun if number == 1 else f"{noun}s"


def _check(content: Any) -> None:
  """Raises a ValueError or its like where the content is something else."""
  if content["format"] != _FORMAT:
    raise ValueError(f"format {content['format']!r}")
  if content["version"] != _VERSION:
    raise ValueError(f"version {content['version']!r}, known is {_VERSION}")
  if not isinstance(content["run"], str):
    raise ValueError("run is no text")
  seen = set()
  for named in (*content["names"], *content["groups"]):
    if not isinstance(named["name"], str):
      raise ValueError("a name is no text")
    for cluster in named["clusters"]:
      if type(cluster) is not int or cluster < 0:
        raise ValueError(f"cluster {cluster!r}")
      if not all(isinstance(k, str) for k in content["central"][str(cluster)]):
        raise ValueError(f"the images of cluster {cluster} are no names")
  for named in content["names"]:
    if seen & set(named["clusters"]):
      raise ValueError(f"cluster {min(seen & set(named['clusters']))} twice")
    seen |= set(named["clusters"])
  for image in content["images"]:
    if not isinstance(image["key"], str) or image["mark"] not in MARKS:
      raise ValueError(f"mark {image['mark']!r}; there is {', '.join(MARKS)}")


def _of_before(workdir: pathlib.Path) -> tuple[str, ...]:
  """Returns digests of the clusters that a run had before it grew.

  Clusters keep their numbers when a run grows.
  """
  grown = growth.read(workdir)
  return () if grown is None else grown.tables


def _names(content: dict[str, Any]) -> dict[int, str]:
  """Returns cluster -> name; of merged clusters without one, their numbers."""
  return {
    cluster: named["name"]
    or "clusters " + ", ".join(map(str, sorted(named["clusters"])))
    for named in content["names"]
    for cluster in named["clusters"]
    if named["name"] or len(named["clusters"]) > 1
  }


def _found_again(
  content: dict[str, Any], of_key: dict[str, int]
) -> tuple[dict[str, Any], list[str]]:
  """Moves names to the clusters that their images are in now.

  A cluster is found again where more than half of its central images that are
  still there are in one cluster. Where two names claim a cluster, it is given
  to the one with more images in it.

  Args:
    content: Of another run.
    of_key: Key of an image -> its cluster in this run.

  Returns:
    The content for this run, and what could not be placed.
  """
  now, votes = {}, {}
  for cluster, keys in content["central"].items():
    there = Counter(of_key[key] for key in keys if key in of_key)
    most = there.most_common(1)
    if most and 2 * most[0][1] > there.total():
      now[int(cluster)], votes[int(cluster)] = most[0]

  def moved(named):
    return sorted({now[c] for c in named["clusters"] if c in now})

  claims: dict[int, tuple[int, int]] = {}
  for place, named in enumerate(content["names"]):
    for new in moved(named):
      hits = sum(votes[c] for c in named["clusters"] if now.get(c) == new)
      if hits > claims.get(new, (0, 0))[0]:
        claims[new] = hits, place
  names, groups, lost = [], [], []
  for place, named in enumerate(content["names"]):
    own = [new for new in moved(named) if claims[new][1] == place]
    if own:
      names.append({**named, "clusters": own})
    else:
      lost.append(_called(named))
  for named in content["groups"]:
    if own := moved(named):
      groups.append({**named, "clusters": own})
    else:
      lost.append(_called(named))
  central: dict[str, list[str]] = {}
  for old, new in now.items():
    keys = central.setdefault(str(new), [])
    keys += [
      key for key in content["central"][str(old)] if of_key.get(key) == new
    ]
  return {
    **content,
    "names": names,
    "groups": groups,
    "central": central,
  }, lost


def _called(named: dict[str, Any]) -> str:
  numbers = ", ".join(map(str, named["clusters"]))
  return repr(named["name"]) if named["name"] else f"clusters {numbers}"
