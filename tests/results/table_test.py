"""The table of all images: its columns, and what opens it."""

import numpy as np
import pyarrow.parquet as pq

from odc_jax.results import table

N = 5
READABLE = np.array([True, False, True, True, True])


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
    **others,
  }


def test_rows_are_the_readable_images_and_neighbours_count_rows(tmp_path):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE)
  found = pq.read_table(path)
  assert found.column_names == [
    c for c in table.COLUMNS if c not in ("group", "cluster_name")
  ]
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
      c for c in table.COLUMNS if c != "cluster_name"
    ]
    assert found["group"].to_pylist() == [
      groups[c] for c in before["cluster"].to_pylist()
    ]
    assert found.drop_columns("group") == before
  assert [p.name for p in tmp_path.iterdir()] == ["clusters.parquet"]


def test_names_are_set_and_taken_out_again(tmp_path):
  path = tmp_path / "clusters.parquet"
  table.write(path, columns(), READABLE)
  before = pq.read_table(path)
  table.set_cluster_names(path, {1: "hats"})
  table.set_groups(path, np.array([4, 5]))
  table.set_cluster_names(path, {0: "shoes", 1: "hats"})
  found = pq.read_table(path)
  assert found.column_names == list(table.COLUMNS)
  assert found["cluster_name"].to_pylist() == ["hats", "hats", "shoes", "shoes"]
  table.set_cluster_names(path, {})
  assert pq.read_table(path).drop_columns("group") == before
