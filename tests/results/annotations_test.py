"""Names and marks: read, checked, and found again in another run."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from odc_jax.errors import UserError
from odc_jax.results import annotations, table


def write_table(folder, clusters, keys=None):
  """A table of images a, b, c ..., each in a cluster; returns its digest."""
  folder.mkdir(exist_ok=True)
  keys = keys or [chr(ord("a") + i) for i in range(len(clusters))]
  index = np.arange(len(keys))
  clusters = np.array(clusters)
  pq.write_table(
    pa.table(
      {
        "index": index,
        "key": keys,
        "cluster": pa.array(clusters, pa.int32()),
        "cluster_size": np.bincount(clusters)[clusters],
        "similarity": np.ones(len(keys)),
      }
    ),
    folder / "clusters.parquet",
  )
  return annotations.digest(index, clusters)


def content(run, **changes):
  return {
    "format": "odc_jax annotations",
    "version": 1,
    "run": run,
    "edited": "2025-01-31T12:00:00.000Z",
    "names": [
      {"clusters": [0], "name": "hats"},
      {"clusters": [1, 2], "name": ""},
    ],
    "groups": [{"clusters": [0, 2], "name": "clothes"}],
    "images": [{"key": "a", "mark": "keep"}, {"key": "e", "mark": "exclude"}],
    "central": {"0": ["a", "b"], "1": ["c", "d"], "2": ["e", "f"]},
  } | changes


def save(path, what):
  path.write_text(json.dumps(what))
  return path


def names_in(folder):
  return pq.read_table(folder / "clusters.parquet")["cluster_name"].to_pylist()


def test_a_run_takes_in_what_was_saved_of_it(tmp_path):
  run = write_table(tmp_path / "run", [0, 0, 1, 1, 2, 2, 3])
  path = save(tmp_path / "saved.json", content(run))
  said = annotations.apply(tmp_path / "run", path)
  assert said == ("annotations: 2 named or merged clusters, 2 marked images")
  merged = "clusters 1, 2"
  assert names_in(tmp_path / "run") == ["hats"] * 2 + [merged] * 4 + [None]
  columns = pq.read_schema(tmp_path / "run" / "clusters.parquet").names
  known = [name for name in table.COLUMNS if name in columns]
  assert columns == known
  found = annotations.load(tmp_path / "run")
  assert found.names == {0: "hats", 1: merged, 2: merged}
  assert found.merges == [[1, 2]]
  assert found.groups == {"clothes": [0, 2]}
  assert found.marks == {"a": "keep", "e": "exclude"}
  # Again, with less: what was there before is replaced.
  less = content(run, names=[], groups=[], images=[])
  annotations.apply(tmp_path / "run", save(path, less))
  columns = pq.read_schema(tmp_path / "run" / "clusters.parquet").names
  assert "cluster_name" not in columns
  assert annotations.load(tmp_path / "run") == ({}, [], {}, {})


def test_without_a_file_there_are_none(tmp_path):
  assert annotations.load(tmp_path) == ({}, [], {}, {})


def test_names_follow_the_images_into_another_run(tmp_path):
  # 0 is 2 now; of 1 both and of 2 one image are in 0; the other is nowhere.
  write_table(tmp_path / "run", [2, 2, 0, 0, 0, 1], [*"abcde", "z"])
  path = save(tmp_path / "saved.json", content("another"))
  said = annotations.apply(tmp_path / "run", path)
  assert "2 named or merged clusters, 2 marked images" in said
  assert "Not found" not in said
  assert names_in(tmp_path / "run") == ["hats"] * 2 + [None] * 4
  kept = annotations.read(tmp_path / "run" / annotations.FILE)
  assert kept["names"] == [
    {"clusters": [2], "name": "hats"},
    {"clusters": [0], "name": ""},
  ]
  assert kept["groups"] == [{"clusters": [0, 2], "name": "clothes"}]
  assert kept["central"] == {"2": ["a", "b"], "0": ["c", "d", "e"]}
  # What was written is of this run: nothing moves a second time.
  path = tmp_path / "run" / annotations.FILE
  before = path.read_text()
  annotations.apply(tmp_path / "run", path)
  assert path.read_text() == before


def test_a_name_whose_images_are_spread_is_not_guessed(tmp_path):
  write_table(tmp_path / "run", [0, 1, 2, 2, 2, 3])
  said = annotations.apply(
    tmp_path / "run", save(tmp_path / "saved.json", content("another"))
  )
  assert "Not found again: 'hats', 'clothes'" in said
  assert annotations.load(tmp_path / "run").names == {}


def test_a_cluster_that_two_names_claim_gets_the_one_with_more(tmp_path):
  write_table(tmp_path / "run", [0, 0, 0, 1])
  saved = content(
    "another",
    names=[
      {"clusters": [4], "name": "one"},
      {"clusters": [5], "name": "two"},
    ],
    groups=[],
    central={"4": ["a"], "5": ["b", "c"]},
  )
  said = annotations.apply(
    tmp_path / "run", save(tmp_path / "saved.json", saved)
  )
  assert annotations.load(tmp_path / "run").names == {0: "two"}
  assert "Not found again: 'one'" in said


def test_marks_of_images_that_are_gone_are_kept_and_counted(tmp_path):
  run = write_table(tmp_path / "run", [0, 1, 2, 3])
  said = annotations.apply(
    tmp_path / "run", save(tmp_path / "saved.json", content(run))
  )
  assert "2 marked images, 1 of which the run does not have" in said
  assert annotations.load(tmp_path / "run").marks["e"] == "exclude"


@pytest.mark.parametrize(
  ("what", "words"),
  [
    ({"format": "another"}, "format 'another'"),
    ({"version": 2}, "version 2, known is 1"),
    (
      {"images": [{"key": "a", "mark": "shred"}]},
      "mark 'shred'; there is keep",
    ),
    ({"names": [{"clusters": ["0"], "name": ""}]}, "cluster '0'"),
    ({"names": [{"clusters": [-1], "name": ""}]}, "cluster -1"),
    ({"names": [{"clusters": [0], "name": 7}]}, "a name is no text"),
    ({"central": {}}, "'0'"),
    (
      {"names": [{"clusters": [0, 1], "name": ""}] * 2},
      "cluster 0 twice",
    ),
  ],
)
def test_what_is_no_annotations_file_is_refused(tmp_path, what, words):
  run = write_table(tmp_path / "run", [0, 0, 1, 1, 2, 2])
  path = save(tmp_path / "saved.json", content(run, **what))
  with pytest.raises(UserError, match=words):
    annotations.apply(tmp_path / "run", path)
  assert not (tmp_path / "run" / annotations.FILE).exists()


def test_no_json_and_no_file(tmp_path):
  run = write_table(tmp_path / "run", [0, 0, 1, 1, 2, 2])
  (tmp_path / "saved.json").write_text("[")
  with pytest.raises(UserError, match="not as the page saves"):
    annotations.apply(tmp_path / "run", tmp_path / "saved.json")
  with pytest.raises(UserError, match="check --annotations"):
    annotations.apply(tmp_path / "run", tmp_path / "nowhere.json")
  path = save(tmp_path / "saved.json", content(run))
  with pytest.raises(UserError, match=r"clusters\.parquet is missing"):
    annotations.apply(tmp_path, path)
