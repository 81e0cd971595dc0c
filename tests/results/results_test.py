"""All that is written at the end of a run, from arrays alone."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from odc_jax.errors import UserError
from odc_jax.results import groups as groups_lib
from odc_jax.results import vectors, write

N, K, P = 400, 4, 8
BAD = [5, 123]


@pytest.fixture
def given(tmp_path):
  """Four clusters around axes; one image far from all, two the same."""
  rng = np.random.default_rng(0)
  cluster = np.arange(N) % K
  features = np.eye(K, P)[cluster] + rng.normal(0, 0.05, (N, P))
  features[77] = np.eye(P)[6]
  features[9] = features[13]
  features = vectors.unit(features)
  features[BAD] = 0
  np.save(tmp_path / "features.npy", features.astype(np.float16))
  signatures = rng.integers(-20, 21, (N, 256)).astype(np.int8)
  signatures[9] = signatures[13]
  readable = np.ones(N, bool)
  readable[BAD] = False
  return {
    "workdir": tmp_path,
    "keys": [f"{i}.png" for i in range(N)],
    "labels": np.full(N, -1),
    "readable": readable,
    "judged": write.Judged(
      cluster,
      (cluster + (np.arange(N) % 5 == 0)) % K,
      *(np.full(N, value, np.float32) for value in (0.5, 1, 0.2, 0.9)),
    ),
    "centroids": np.eye(K, 3, dtype=np.float32),
    "components": {"mean": np.zeros(9), "components": np.eye(P, 9)},
    "signatures": signatures,
  }


def read(folder):
  described = json.loads((folder / "clusters.json").read_text())
  return pq.read_table(folder / "clusters.parquet").to_pydict(), described


def test_everything_is_there(given, tmp_path):
  write.write(**given, num_groups=2)
  rows, described = read(tmp_path)
  assert len(rows["index"]) == N - 2
  assert np.array(rows["index"])[rows["is_outlier"]].tolist() == [77]
  places = {i: row for row, i in enumerate(rows["index"])}
  duplicates = rows["near_duplicate_group"]
  assert duplicates[places[9]] == duplicates[places[13]] == 0
  assert sum(group is not None for group in duplicates) == 2
  nearest = rows["neighbors"][places[9]]
  assert nearest["ids"][0] == places[13]
  assert nearest["distances"][0] == pytest.approx(0, abs=1e-3)
  assert np.isfinite(rows["projection_x"]).all()
  assert described["num_images"] == N
  assert described["agreement"] == pytest.approx(0.8, abs=0.01)
  assert [c["size"] for c in described["clusters"]] == [100, 99, 100, 99]
  assert len(described["tree"]) == K - 1
  assert set(rows["cluster_group"]) == {0, 1}
  assert described["outlier_threshold"] > described["novelty_threshold"]
  np.testing.assert_array_equal(
    np.load(tmp_path / "centroids.npy"), given["centroids"]
  )
  with np.load(tmp_path / "components.npz") as arrays:
    np.testing.assert_array_equal(arrays["components"], np.eye(P, 9))


def test_twice_is_the_same_and_other_groups_change_nothing_else(
  given, tmp_path
):
  write.write(**given)
  first = read(tmp_path)
  write.write(**given)
  assert read(tmp_path) == first
  assert "cluster_group" not in first[0]
  groups_lib.regroup(tmp_path, 3)
  rows, described = read(tmp_path)
  groups = groups_lib.groups_of(tmp_path, None)
  assert rows.pop("cluster_group") == groups[rows["cluster"]].tolist()
  assert len(set(groups)) == 3
  assert rows == first[0]
  assert described == first[1] | {"num_groups": 3}


def test_names_survive_a_training_that_goes_on(given, tmp_path, capsys):
  write.write(**given)
  saved = {
    "format": "odc_jax annotations",
    "version": 1,
    "run": "before",
    "edited": "2025-01-31T12:00:00.000Z",
    "names": [{"clusters": [2], "name": "hats"}],
    "groups": [],
    "images": [],
    "central": {"2": ["1.png", "17.png", "21.png", "2.png"]},
  }
  (tmp_path / "annotations.json").write_text(json.dumps(saved))
  write.write(**given)
  rows, _ = read(tmp_path)
  # Three of the four images are in cluster 1 now.
  assert rows["cluster_name"] == [
    "hats" if cluster == 1 else None for cluster in rows["cluster"]
  ]
  assert "1 named or merged cluster" in capsys.readouterr().out


def test_clusters_that_lag_behind_the_network_are_told(given, tmp_path):
  write.write(**given)
  assert "lag behind" not in read(tmp_path)[1]["advice"]
  judged = given["judged"]
  given["judged"] = judged._replace(nearest=(judged.cluster + 1) % K)
  write.write(**given)
  advice = read(tmp_path)[1]["advice"]
  assert "Only 0% of the images" in advice
  assert "Train longer" in advice
  assert read(tmp_path)[1]["best_num_groups"] is None


def test_too_many_images_or_clusters_leave_out_what_compares_them(
  given, tmp_path, monkeypatch
):
  monkeypatch.setattr(write, "MOST_COMPARED", N - 1)
  monkeypatch.setattr(write.tree, "MOST_CLUSTERS", K - 1)
  write.write(**given)
  rows, described = read(tmp_path)
  assert set(rows) == {
    "index",
    "key",
    "cluster",
    "cluster_size",
    "similarity",
    "second_cluster",
    "margin",
    "confidence",
  }
  assert described["tree"] is None
  assert described["cuts"] == []
  assert described["outlier_threshold"] is None
  with pytest.raises(UserError, match="too many"):
    groups_lib.regroup(tmp_path, 2)


@pytest.mark.parametrize("num_groups", [0, -1, K + 1])
def test_impossible_groups_are_refused(given, tmp_path, num_groups):
  with pytest.raises(UserError, match=f"num_groups={num_groups} is not"):
    groups_lib.check_num_groups(num_groups, K)
  with pytest.raises(UserError, match="finish the run"):
    groups_lib.regroup(tmp_path, 2)
