"""Principal components, against scikit-learn's."""

import jax
import numpy as np
import pytest
from sklearn import decomposition

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import pca
from tests.recordings import load

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


def test_whitening_as_the_official_code(golden_deepcluster_preprocess, mesh):
  trace = load(golden_deepcluster_preprocess)
  x, p = trace["x"], int(trace["pca_dim"])
  n = len(x)
  padded = np.full((-(-n // 8) * 8, x.shape[1]), 1e3, np.float32)
  padded[:n] = x
  rows = mesh_lib.rows(mesh)
  whiten = jax.jit(pca.whiten, static_argnums=2, out_shardings=rows)
  y = np.asarray(
    whiten(
      jax.device_put(padded, rows),
      jax.device_put(np.arange(len(padded)) < n, rows),
      p,
    )
  )
  assert (y[n:] == 0).all()
  y = y[:n]
  np.testing.assert_allclose(y[:64] @ y.T, trace["gram"], atol=1e-3)
  for expected in (trace["y"], trace["y_oss"]):
    signs = np.sign(np.sum(y * expected, axis=0))
    np.testing.assert_allclose(y * signs[None], expected, atol=1e-3)


def test_whitening_by_the_components_of_fit(mesh):
  """Signs included; a dead column and too many components do no harm."""
  x, counts = draw()
  x[:, 5] = 3
  rows = mesh_lib.rows(mesh)
  arguments = jax.device_put(x, rows), jax.device_put(counts, rows), 100
  y = np.asarray(jax.jit(pca.whiten, static_argnums=2)(*arguments))
  assert y.shape == (ROWS, C)
  assert (y[~counts] == 0).all()
  np.testing.assert_allclose(np.linalg.norm(y[counts], axis=1), 1, rtol=1e-5)
  white = pca.fit(*arguments, -0.5).project(x)
  white /= np.linalg.norm(white, axis=1, keepdims=True)
  np.testing.assert_allclose(y[counts], white[counts], atol=5e-3)


def test_identical_rows_are_whitened_to_numbers(mesh):
  x = jax.device_put(np.full((16, 3), 0.1, np.float32), mesh_lib.rows(mesh))
  y = jax.jit(pca.whiten, static_argnums=2)(x, x[:, 0] > 0, 2)
  assert np.isfinite(y).all()
