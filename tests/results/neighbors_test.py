"""Neighbours against scikit-learn's brute force, and where rows are odd."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from odc_jax.results import neighbors
from odc_jax.results.neighbors import Neighbors, neighbors_of_all


@pytest.fixture(scope="module")
def clustered():
  """3,000 float16 unit rows around 60 directions."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((60, 32))[rng.integers(60, size=3000)]
  x += 0.8 * rng.standard_normal(x.shape)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return x.astype(np.float16)


def brute_force(rows, queries, k):
  nearest = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")
  distances, found = nearest.fit(rows).kneighbors(queries)
  return found, 1 - distances


def test_by_hand():
  table = np.array([[1, 0], [0, 2], [3, 4], [-1, 0]], np.float32)
  rows, similarities = Neighbors(table).search(table[:1] * 7, 3)
  np.testing.assert_array_equal(rows, [[0, 2, 1]])
  np.testing.assert_allclose(similarities, [[1, 0.6, 0]], atol=1e-6)
  rows, similarities = neighbors_of_all(Neighbors(table), table, 2)
  np.testing.assert_array_equal(rows, [[2, 1], [2, 0], [1, 0], [1, 2]])
  np.testing.assert_allclose(
    similarities, [[0.6, 0], [0.8, 0], [0.8, 0.6], [0, -0.6]], atol=1e-6
  )


@pytest.mark.parametrize("chunk", [65_536, 700])
def test_exact_search_is_brute_force(clustered, chunk, monkeypatch):
  monkeypatch.setattr(neighbors, "CHUNK", chunk)
  table = clustered.astype(np.float32)
  expected_rows, expected = brute_force(table, table, 6)
  index = Neighbors(clustered)
  done = []
  rows, similarities = neighbors_of_all(
    index, clustered, 5, lambda *progress: done.append(progress)
  )
  assert (index.recall, index.num_rows) == (1, 3000)
  np.testing.assert_array_equal(expected_rows[:, 0], np.arange(3000))
  np.testing.assert_allclose(similarities, expected[:, 1:], atol=1e-5)
  # Two may be equally similar, up to rounding.
  assert np.mean(rows == expected_rows[:, 1:]) > 0.999
  assert done[-1] == (3000, 3000)
  assert len(done) == -(-3000 // chunk)


def test_approximate_search_finds_what_it_promises(clustered):
  index = Neighbors(clustered, exact_below=3000)
  rows, similarities = neighbors_of_all(index, clustered, 10)
  table = clustered.astype(np.float32)
  truth, expected = brute_force(table, table, 11)
  hits = [
    len(np.intersect1d(a, b)) for a, b in zip(rows, truth[:, 1:], strict=True)
  ]
  assert index.recall >= neighbors.LEAST_RECALL
  assert np.mean(hits) / 10 == pytest.approx(index.recall, abs=0.02)
  assert np.all(similarities <= expected[:, 1:] + 1e-3)  # float16
  assert not np.any(rows == np.arange(3000)[:, None])


@pytest.mark.parametrize("exact_below", [10_000, 100])
def test_the_same_twice_and_from_a_file(clustered, exact_below, tmp_path):
  np.save(tmp_path / "embeddings.npy", clustered)
  table = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
  first, second = (
    neighbors_of_all(Neighbors(x, exact_below=exact_below), x, 4)
    for x in (clustered, table)
  )
  np.testing.assert_array_equal(first[0], second[0])
  np.testing.assert_array_equal(first[1], second[1])


def test_rows_in_another_order(clustered):
  order = np.random.default_rng(1).permutation(3000)
  _, similarities = neighbors_of_all(Neighbors(clustered), clustered, 5)
  shuffled = clustered[order]
  _, shuffled_similarities = neighbors_of_all(Neighbors(shuffled), shuffled, 5)
  np.testing.assert_allclose(
    shuffled_similarities, similarities[order], atol=1e-6
  )


@pytest.mark.parametrize("exact_below", [10_000, 100])
def test_an_image_that_cannot_be_read_is_neither_found_nor_searched(
  clustered, exact_below
):
  table = clustered.copy()
  gone = np.arange(0, 3000, 7)
  table[gone] = 0
  index = Neighbors(table, exact_below=exact_below)
  rows, similarities = neighbors_of_all(index, table, 5)
  assert index.num_rows == 3000 - len(gone)
  assert not np.isin(rows, gone).any()
  assert (rows[gone] == -1).all()
  assert np.isneginf(similarities[gone]).all()
  there = np.delete(np.arange(3000), gone)
  assert (rows[there] >= 0).all()
  dense = table[there].astype(np.float32)
  expected = brute_force(dense, dense, 6)[1][:, 1:]
  assert np.mean(np.abs(similarities[there] - expected) < 1e-3) > 0.9


@pytest.mark.parametrize("exact_below", [100, 1])
def test_a_duplicate_is_found_and_the_row_itself_never(exact_below):
  rng = np.random.default_rng(0)
  table = rng.standard_normal((40, 8)).astype(np.float32)
  table[[3, 17]] = table[9]
  # More equal ones than are asked for.
  table[20:] = table[20]
  index = Neighbors(table, exact_below=exact_below)
  rows, similarities = neighbors_of_all(index, table, 4)
  assert not np.any(rows == np.arange(40)[:, None])
  assert set(rows[3, :2]) == {9, 17}
  assert set(rows[9, :2]) == {3, 17}
  np.testing.assert_allclose(similarities[20:], 1, atol=1e-3)
  assert (rows[20:] >= 20).all()
  for row in rows:
    assert len(set(row)) == 4


def test_fewer_than_asked_for():
  table = np.array([[1, 0], [0, 0], [1, 1]], np.float16)
  rows, similarities = Neighbors(table).search(table, 4)
  np.testing.assert_array_equal(
    rows, [[0, 2, -1, -1], [-1] * 4, [2, 0, -1, -1]]
  )
  assert np.isneginf(similarities[rows < 0]).all()
  rows, _ = neighbors_of_all(Neighbors(table), table, 3)
  np.testing.assert_array_equal(rows, [[2, -1, -1], [-1] * 3, [0, -1, -1]])


def test_nothing_to_find():
  table = np.zeros((3, 2), np.float32)
  rows, _ = Neighbors(table).search(np.ones((1, 2), np.float32), 2)
  np.testing.assert_array_equal(rows, [[-1, -1]])
  assert neighbors_of_all(Neighbors(table), table, 2)[0].max() == -1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad):
  table = np.ones((5, 3), np.float32)
  table[2, 1] = bad
  with pytest.raises(ValueError, match="not finite"):
    Neighbors(table)
  with pytest.raises(ValueError, match="not finite"):
    Neighbors(np.ones((5, 3), np.float32)).search(table, 1)


def test_queries_that_cannot_be_searched_are_refused():
  index = Neighbors(np.ones((5, 3), np.float32))
  with pytest.raises(ValueError, match="4 dimensions, the index 3"):
    index.search(np.ones((5, 4), np.float32), 1)
  with pytest.raises(ValueError, match="k is 0"):
    index.search(np.ones((5, 3), np.float32), 0)


def test_faiss_and_jax_are_not_imported_before_they_are_needed():
  code = (
    "import sys; from odc_jax.results import duplicates, neighbors, outliers, "
    "projection, tree; print('faiss' in sys.modules, 'jax' in sys.modules)"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert out.stdout.split() == ["False", "False"]
