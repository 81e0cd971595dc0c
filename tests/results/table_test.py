"""The table of all images: its columns, and what opens it."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from odc_jax.results import table

N = 5
TAKEN = datetime.datetime(2019, 7, 4, 12, 30, 1)
READABLE = np.array([True, False, True, True, True])
# What a table has only once it is asked for.
OF_GROWTH = ("generation", "is_novel", "is_missing")
LATER = ("cluster_group", "cluster_name", "image", *OF_GROWTH)


def columns(**others):
  return {
    "key": [f"{i}.png" for i in range(N)],
    "label": np.array([3, 3, -1, 0, 3]),
    "cluster": np.array([1, 0, 1, 0, 0]),
    "cluster_size": np.array([2, 2, 2, 2, 2]),
    "similarity": np.linspace(0, 1, N),
    "second_cluster": np.array([0, 1, 0, 1, 1]),
    "margin": np.full(N, 0.25),
    "confidence": np.full(N, 0.5),
    "outlier_score": np.full(N, 0.125),
    "is_outlier": np.array([False, False, True, False, False]),
    "near_duplicate_group": np.array([-1, -1, 0, -1, 0]),
    "neighbors": (
      np.array([[2, 3], [-1, -1], [4, -1], [0, 2], [2, 0]]),
      np.array([[1, 0.5], [0, 0], [0.75, 0], [0.5, 0.25], [0.75, 0.5]]),
    ),
    "projection": np.arange(2 * N).reshape(N, 2),
    "width": pa.array([8, None, 9, None, 8], pa.int32()),
    "height": pa.array([6, None, 7, None, 6], pa.int32()),
    "brightness": pa.array([0.5] * N, pa.float32()),
    "sharpness": pa.array([None, 1, 2, 3, 4], pa.float32()),
    "sha256": pa.array(["aa", None, "bb", None, "aa"]),
    "taken": pa.array([None, None, TAKEN, None, None], pa.timestamp("ms")),
    **others,
  }


def test_rows_are_the_readable_images_and_neighbours_count_rows(tmp_path):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE)
  found = pq.read_table(path)
  assert found.column_names == [c for c in table.COLUMNS if c not in LATER]
  found = found.to_pydict()
  assert found["index"] == [0, 2, 3, 4]
  assert found["key"] == ["0.png", "2.png", "3.png", "4.png"]
  assert found["label"] == [3, None, 0, 3]
  assert found["near_duplicate_group"] == [None, 0, None, 0]
  assert found["projection_y"] == [1, 5, 7, 9]
  assert found["neighbors"] == [
    {"ids": [1, 2], "distances": [0, 0.5]},
    {"ids": [3], "distances": [0.25]},
    {"ids": [0, 1], "distances": [0.5, 0.75]},
    {"ids": [1, 0], "distances": [0.25, 0.5]},
  ]


def test_facts_keep_their_types_and_what_is_missing(tmp_path):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE, "/some/folder")
  found = pq.read_table(path)
  assert found["width"].to_pylist() == [8, 9, None, 8]
  assert found["sharpness"].to_pylist() == [None, 2, 3, 4]
  assert found["sha256"].to_pylist() == ["aa", "bb", None, "aa"]
  assert found["taken"].to_pylist() == [None, TAKEN, None, None]
  assert found.schema.metadata[table.FOLDER.encode()] == b"/some/folder"
  unknown = pa.nulls(N, pa.timestamp("ms"))
  table.write(path, columns(taken=unknown), READABLE)
  found = pq.read_table(path)
  assert "taken" not in found.column_names
  assert table.FOLDER.encode() not in found.schema.metadata


def test_pandas_keeps_integers_where_some_are_missing(tmp_path):
  pd = pytest.importorskip("pandas")
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE)
  table.set_groups(path, np.array([4, 5]))
  for frame in (
    pd.read_parquet(path),
    table.read(path).to_pandas(),
    pd.read_parquet(path, columns=["label", "width", "index", "cluster_group"]),
  ):
    assert str(frame["label"].dtype) == "Int32"
    assert str(frame["width"].dtype) == "Int32"
    assert str(frame["index"].dtype) == "int64"
    assert str(frame["cluster_group"].dtype) == "int32"
    assert frame["label"].isna().tolist() == [False, True, False, False]
    assert frame["width"].dropna().tolist() == [8, 9, 8]
  again = tmp_path / "again.parquet"
  pd.read_parquet(path)[["label"]].to_parquet(again)
  assert str(pd.read_parquet(again)["label"].dtype) == "Int32"


def test_pandas_is_told_of_every_column_of_integers_that_has_holes(tmp_path):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE)
  found = pq.read_table(path)
  said = json.loads(found.schema.metadata[b"pandas"])["columns"]
  assert {column["name"] for column in said} == {
    field.name
    for field in found.schema
    if pa.types.is_integer(field.type) and found[field.name].null_count
  }
  assert {column["numpy_type"] for column in said} == {"Int32"}


def test_a_table_of_before_is_read_and_changed_under_the_new_name(tmp_path):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE)
  table.set_groups(path, np.array([4, 5]))
  now = pq.read_table(path)
  names = ["group" if n == "cluster_group" else n for n in now.column_names]
  pq.write_table(now.rename_columns(names), path)
  assert "cluster_group" in table.names(path)
  assert table.read(path) == now
  some = table.read(path, ["index", "cluster_group"])
  assert some == now.select(["index", "cluster_group"])
  table.set_groups(path, np.array([5, 4]))
  changed = pq.read_table(path)
  assert changed.column_names == now.column_names
  assert changed["cluster_group"].to_pylist() == [
    9 - g for g in now["cluster_group"].to_pylist()
  ]


def test_pictures_are_set_in_the_form_of_datasets(tmp_path, monkeypatch):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE, "/some/folder")
  before = pq.read_table(path)
  monkeypatch.setattr(table, "_ROW_GROUP_OF_PICTURES", 3)

  def pictures(rows):
    return [None if i == 2 else b"%d" % i for i in rows["index"].to_pylist()]

  for _ in range(2):
    table.set_images(path, pictures)
    assert pq.ParquetFile(path).num_row_groups == 2
    found = pq.read_table(path)
    assert found.column_names[-1] == "image"
    assert found["image"].to_pylist() == [
      {"bytes": b"0", "path": "0.png"},
      None,
      {"bytes": b"3", "path": "3.png"},
      {"bytes": b"4", "path": "4.png"},
    ]
    assert found.drop_columns("image") == before
    assert found.schema.metadata == before.schema.metadata
  # Pictures stay where another column changes.
  table.set_groups(path, np.array([4, 5]))
  assert pq.read_table(path)["image"] == found["image"]


def test_labels_that_nobody_knows_are_no_column(tmp_path):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(label=np.array([-1, 7, -1, -1, -1])), READABLE)
  assert "label" not in pq.read_table(path).column_names


def test_many_rows_are_written_in_parts(tmp_path, monkeypatch):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE)
  whole = pq.read_table(path)
  monkeypatch.setattr(table, "_ROW_GROUP", 3)
  table.write(path, columns(), READABLE)
  assert pq.ParquetFile(path).num_row_groups == 2
  assert pq.read_table(path) == whole


def test_groups_are_set_and_set_again(tmp_path):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE)
  before = pq.read_table(path)
  for groups in ([4, 5], [0, 0]):
    table.set_groups(path, np.array(groups))
    found = pq.read_table(path)
    assert found.column_names == [
      c for c in table.COLUMNS if c not in LATER or c == "cluster_group"
    ]
    assert found["cluster_group"].to_pylist() == [
      groups[c] for c in before["cluster"].to_pylist()
    ]
    assert found.drop_columns("cluster_group") == before
  assert [p.name for p in tmp_path.iterdir()] == ["clusters.parquet"]


def test_names_are_set_and_taken_out_again(tmp_path):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE)
  before = pq.read_table(path)
  table.set_cluster_names(path, {1: "hats"})
  table.set_groups(path, np.array([4, 5]))
  table.set_cluster_names(path, {0: "shoes", 1: "hats"})
  found = pq.read_table(path)
  rest = ("image", *OF_GROWTH)
  assert found.column_names == [c for c in table.COLUMNS if c not in rest]
  assert found["cluster_name"].to_pylist() == ["hats", "hats", "shoes", "shoes"]
  table.set_cluster_names(path, {})
  assert pq.read_table(path).drop_columns("cluster_group") == before
