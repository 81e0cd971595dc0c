"""What is said of each cluster."""

import numpy as np

from odc_jax.results import clusters

CENTROIDS = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0, 0]])
READABLE = np.array([True] * 7 + [False])


def describe(**others):
  columns = {
    "cluster": np.array([0, 0, 0, 0, 1, 1, 2, 0]),
    "similarity": np.array([0.5, 0.9, 0.9, 0.7, 0.2, 0.4, 1.0, 1.0]),
    "margin": np.array([0.3, 0.1, 0.2, -0.1, 0.0, 0.2, 0.9, -1.0]),
    "label": np.array([5, 5, 7, -1, 7, 5, -1, 9]),
    "outlier_score": np.array([0.1, 0.2, 0.8, 0.7, 0.1, 0.9, 0.9, 1.0]),
    "is_outlier": np.array([0, 0, 1, 1, 0, 1, 0, 1], bool),
    "near_duplicate_group": np.array([-1, 3, 3, -1, -1, -1, -1, -1]),
    **others,
  }
  return clusters.describe(columns, READABLE, CENTROIDS)


def test_by_hand():
  first, second, third, empty = describe()
  assert first["size"] == 4
  np.testing.assert_allclose(first["cohesion"], (0.5 + 0.9 + 0.9 + 0.7) / 4)
  # 2 is 1's duplicate; the unreadable image would be the most similar.
  assert first["representatives"] == [1, 3, 0]
  assert first["boundary"] == [3, 1, 2, 0]
  assert first["outliers"] == [2, 3]
  assert (first["label"], first["purity"]) == (5, 2 / 3)
  # Of two labels with one image each the smaller.
  assert (second["label"], second["purity"]) == (5, 0.5)
  assert second["outliers"] == [5]
  assert (third["label"], third["purity"], third["outliers"]) == (
    None,
    None,
    [],
  )
  assert [first["second"], second["second"], third["second"]] == [1, 0, 1]
  assert (empty["size"], empty["cohesion"]) == (0, None)
  assert empty["representatives"] == empty["boundary"] == []


def test_without_labels_and_comparisons():
  columns = {
    "cluster": np.array([0, 1, 2, 0, 0, 1, 2, 2]),
    "similarity": np.linspace(0, 1, 8),
    "margin": np.linspace(0, 1, 8),
    "label": np.full(8, -1),
  }
  found = clusters.describe(columns, READABLE, CENTROIDS)
  assert [c["size"] for c in found] == [3, 2, 2, 0]
  assert found[0]["representatives"] == [4, 3, 0]
  assert all(c["outliers"] == [] and c["purity"] is None for c in found)


def test_means_in_chunks_and_without_rows_of_zeros(monkeypatch):
  monkeypatch.setattr(clusters, "_CHUNK", 3)
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(10, 4)).astype(np.float16)
  rows[[2, 9]] = 0
  cluster = np.array([0, 3, 0, 1, 1, 3, 0, 3, 1, 0])
  found = clusters.means(rows, cluster, 4)
  for i, members in ((0, [0, 6]), (1, [3, 4, 8]), (3, [1, 5, 7])):
    expected = rows[members].astype(float).mean(axis=0)
    np.testing.assert_allclose(found[i], expected, rtol=1e-5)
  np.testing.assert_array_equal(found[2], 0)
