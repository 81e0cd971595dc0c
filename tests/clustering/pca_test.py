"""Principal components, against scikit-learn's."""

import jax
import numpy as np
import pytest
from sklearn import decomposition

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import pca

N, ROWS, C = 700, 1024, 24


def draw():
  rng = np.random.default_rng(0)
  x = np.zeros((ROWS, C), np.float32)
  # Far from the origin, with variances that fall by a thousand.
  x[:N] = rng.normal(size=(N, C)) * np.logspace(0, -1.5, C) + 20
  x[[3, 77]] = 1e3  # not to be counted
  counts = np.arange(ROWS) < N
  counts[[3, 77]] = False
  return x, counts


@pytest.mark.parametrize("num_components", [5, 100])
def test_as_scikit_learn(mesh, num_components):
  x, counts = draw()
  rows = mesh_lib.rows(mesh)
  found = pca.fit(
    jax.device_put(x, rows), jax.device_put(counts, rows), num_components
  )
  p = min(num_components, C)
  expected = decomposition.PCA(p).fit(x[counts].astype(np.float64))
  np.testing.assert_allclose(found.mean, expected.mean_, rtol=1e-5)
  cosines = np.sum(found.components * expected.components_, axis=1)
  np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-3)
  largest = np.abs(found.components).argmax(axis=1)
  assert (found.components[np.arange(p), largest] > 0).all()
  np.testing.assert_allclose(
    np.abs(found.project(x[counts])),
    np.abs(expected.transform(x[counts])),
    atol=2e-3,
  )


def test_in_chunks_as_at_once(mesh, monkeypatch):
  x, counts = draw()
  rows = mesh_lib.rows(mesh)
  arguments = (jax.device_put(x, rows), jax.device_put(counts, rows), C)
  whole = pca.fit(*arguments)
  monkeypatch.setattr(pca.assign, "chunk_rows", lambda n, k, size: min(n, 100))
  pca._moments.clear_cache()
  parts = pca.fit(*arguments)
  pca._moments.clear_cache()
  np.testing.assert_allclose(parts.components, whole.components, atol=1e-3)


def test_whitened_components_have_variance_one_and_dead_ones_nothing(mesh):
  x, counts = draw()
  x[:, 5] = 3  # which says nothing
  rows = mesh_lib.rows(mesh)
  arguments = (jax.device_put(x, rows), jax.device_put(counts, rows), C)
  white = pca.fit(*arguments, -0.5).project(x[counts])
  np.testing.assert_allclose(white.std(axis=0)[:-1], 1, rtol=2e-3)
  assert white.std(axis=0)[-1] < 1
  plain, half = pca.fit(*arguments), pca.fit(*arguments, -0.25)
  variances = plain.project(x[counts]).var(axis=0)[:-1]
  np.testing.assert_allclose(
    half.project(x[counts]).var(axis=0)[:-1], variances**0.5, rtol=5e-3
  )
