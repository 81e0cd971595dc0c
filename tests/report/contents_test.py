"""What the page's script is given."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from odc_jax import report
from odc_jax.errors import UserError
from odc_jax.report import contents, sample
from tests.report import runs


def test_lists_of_a_cluster_name_its_own_images_best_first(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  data = contents.read(workdir).data
  images = data["images"]
  for c in range(5):
    shown = data["clusters"]["representatives"][c]
    assert len(shown) == 8
    assert {images["cluster"][i] for i in shown} == {c}
    similar = [images["similarity"][i] for i in shown]
    assert similar == sorted(similar, reverse=True)


def test_nearest_clusters_are_those_of_the_centroids(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  nearest = contents.read(workdir).data["clusters"]["nearest"]
  centroids = np.load(workdir / "centroids.npy")
  cosine = centroids @ centroids.T - 2 * np.eye(5)
  for c in range(5):
    order = np.argsort(-cosine[c])[:4]
    assert [other for other, _ in nearest[c]] == order.tolist()
    assert nearest[c][0][1] == pytest.approx(cosine[c].max(), abs=0.006)
  (workdir / "centroids.npy").unlink()
  nearest = contents.read(workdir).data["clusters"]["nearest"]
  assert nearest[0] == [[int(cosine[0].argmax()), None]]


def test_images_that_were_not_compared_have_a_page(tmp_path):
  """As of a run of more images than one host compares with each other."""
  workdir, _ = runs.small_run(tmp_path)
  path = workdir / "clusters.parquet"
  table = pq.read_table(path).drop_columns(
    [
      "outlier_score",
      "is_outlier",
      "near_duplicate_group",
      "projection_x",
      "projection_y",
      "neighbors",
    ]
  )
  pq.write_table(table, path)
  data = runs.read(report.write(workdir))
  assert len(data["images"]["key"]) > 30
  assert data["outliers"] == []
  assert data["duplicates"] == []
  assert data["map"]["image"] == []


def test_two_clusters(tmp_path):
  workdir, _ = runs.small_run(tmp_path, num_clusters=2)
  data = contents.read(workdir).data
  assert [[other for other, _ in x] for x in data["clusters"]["nearest"]] == [
    [1],
    [0],
  ]
  assert len(data["tree"]) == 1
  assert data["clusters"]["group"] is None


def test_an_empty_cluster_has_nothing_and_is_nobodys_neighbour(tmp_path):
  workdir, _ = runs.small_run(tmp_path, num_full=4)
  data = contents.read(workdir).data["clusters"]
  assert data["size"] == [15, 15, 15, 15, 0]
  assert data["representatives"][4] == data["nearest"][4] == []
  assert data["cohesion"][4] is None
  assert all(4 not in [other for other, _ in x] for x in data["nearest"])


def test_groups_are_those_that_the_table_has(tmp_path):
  workdir, _ = runs.small_run(tmp_path, num_groups=3)
  data = contents.read(workdir).data
  assert data["num_groups"] == 3
  assert sorted(set(data["clusters"]["group"])) == [0, 1, 2]


def test_attributes_that_tell_a_cluster_come_from_their_file(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  assert contents.read(workdir).data["clusters"]["attributes"] is None
  path = workdir / "attributes.json"
  told = [[["hat = yes", 0.83333, 0.5]], [], [], [], []]
  path.write_text(json.dumps(told))
  found = contents.read(workdir).data["clusters"]["attributes"]
  assert found == [[["hat = yes", 0.833, 0.5]], [], [], [], []]
  path.write_text(json.dumps(told[:-1]))
  with pytest.raises(UserError, match=r"4 clusters, not 5.*evals=reverse"):
    contents.read(workdir)


def test_without_labels_nothing_speaks_of_them(tmp_path):
  workdir, _ = runs.small_run(tmp_path, labelled=False)
  path = report.write(workdir)
  assert "label" not in runs.read(path)["images"]
  assert "NMI with the labels" not in path.read_text()
  assert "NMI with the previous epoch" in path.read_text()


def test_neighbours_are_those_of_the_table(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  images = contents.read(workdir).data["images"]
  table = pq.read_table(workdir / "clusters.parquet").to_pylist()
  for i, index in enumerate(images["index"]):
    near = table[index]["neighbors"]
    keys = [table[row]["key"] for row in near["ids"]]
    assert [images["key"][j] for j in images["neighbors"][i]] == keys
    assert images["distances"][i] == [round(100 * x) for x in near["distances"]]


def test_of_a_sample_the_neighbours_are_in_it(tmp_path, monkeypatch):
  workdir, _ = runs.small_run(tmp_path)
  monkeypatch.setattr(contents, "IMAGE_BYTES", 20 * 172)
  data = contents.read(workdir).data
  images = data["images"]
  assert len(images["key"]) == 20
  # Every cluster still has its first image.
  assert all(data["clusters"]["representatives"])
  assert all(0 <= j < 20 for near in images["neighbors"] for j in near)
  assert sum(map(len, images["neighbors"])) > 0
  assert [*map(len, images["neighbors"])] == [*map(len, images["distances"])]


def test_the_map_is_a_sample(tmp_path, monkeypatch):
  workdir, _ = runs.small_run(tmp_path)
  monkeypatch.setattr(sample, "MAP_POINTS", 20)
  data = contents.read(workdir).data
  assert len(data["map"]["image"]) == 20
  # The images that are not on it are on the page all the same.
  assert sorted(data["images"]["index"]) == list(range(60))


def test_where_none_is_flagged_the_least_usual_are_shown(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  path = workdir / "clusters.parquet"
  table = pq.read_table(path)
  at = table.column_names.index("is_outlier")
  table = table.set_column(at, "is_outlier", [np.zeros(60, bool)])
  pq.write_table(table, path)
  data = contents.read(workdir).data
  assert data["num_outliers"] == 0
  shown = [data["images"]["index"][i] for i in data["outliers"]]
  scores = table["outlier_score"].to_numpy()
  assert shown == np.argsort(-scores, kind="stable")[:20].tolist()


def test_the_name_of_a_run_is_that_of_its_clusters(tmp_path):
  first, _ = runs.small_run(tmp_path)
  name = contents.read(first).data["run"]
  assert contents.read(first).data["run"] == name
  other, _ = runs.small_run(tmp_path, num_full=4)
  assert contents.read(other).data["run"] != name


def test_what_is_worth_most_comes_first(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  shown = contents.read(workdir)
  assert sorted(shown.by_worth) == list(range(60))
  data = shown.data
  firsts = [places[0] for places in data["clusters"]["representatives"]]
  assert set(shown.by_worth[:5]) == set(firsts)
  listed = {
    *(i for places in data["clusters"]["representatives"] for i in places),
    *data["outliers"],
    *(i for group in data["duplicates"] for i in group["images"]),
  }
  assert listed <= set(shown.by_worth[: shown.num_first])
  clusters = json.loads((workdir / "clusters.json").read_text())["clusters"]
  boundary = [index for c in clusters for index in c["boundary"]]
  first = {
    data["images"]["index"][i] for i in shown.by_worth[: shown.num_first]
  }
  assert set(boundary) <= first
