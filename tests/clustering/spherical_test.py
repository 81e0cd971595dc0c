"""Spherical k-means by hand; the recordings are in the method's test."""

import jax
import jax.numpy as jnp
import numpy as np

from odc_jax import mesh as mesh_lib
from odc_jax.clustering.spherical import random_start, spherical_kmeans

AXES = np.eye(4, dtype=np.float32)
# Two pairs of neighbours; the last is not to be seen.
X = np.stack([AXES[0], AXES[1], AXES[2], -AXES[0], *AXES[[3, 3, 3, 3]]])
VALID = np.arange(8) < 4


def put(mesh, *arrays):
  return jax.device_put(arrays, mesh_lib.rows(mesh))


def test_four_rows_by_hand(mesh):
  start = jnp.array([[1, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 0, -1]])
  found = jax.jit(spherical_kmeans, static_argnums=3)(
    *put(mesh, X, VALID), start, 1
  )
  # Rows 0 and 1 go to the first; 3 has 0 with both others: the second of them.
  half = np.sqrt(0.5)
  np.testing.assert_allclose(
    found.centroids,
    [[half, half, 0, 0], [-half, 0, half, 0], [0, 0, 0, -1]],
    atol=1e-6,
  )
  np.testing.assert_array_equal(found.assignments, [0, 0, 1, 1, 3, 3, 3, 3])


def test_no_iteration_is_one_search_by_the_start(mesh):
  start = jnp.array([[2.0, 0, 0, 0], [0, 1, 1, 0]])
  found = spherical_kmeans(*put(mesh, X, VALID), start, 0)
  np.testing.assert_array_equal(found.centroids, start)
  np.testing.assert_array_equal(found.assignments, [0, 1, 1, 1, 2, 2, 2, 2])


def test_a_mean_of_opposites_is_no_nan(mesh):
  start = jnp.array([[0.0, 0, 0, 1], [0, 1, 0, 0]])
  valid = np.array([True, True, False, True] + [False] * 4)
  found = spherical_kmeans(*put(mesh, X, valid), start, 1)
  np.testing.assert_array_equal(found.centroids, [[0, 0, 0, 0], AXES[1]])


def test_a_start_of_distinct_valid_rows(mesh):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(64, 3)).astype(np.float32)
  valid = np.arange(64) % 3 == 1
  starts = [
    np.asarray(random_start(*put(mesh, x, valid), jax.random.key(seed), 10))
    for seed in range(3)
  ]
  for start in starts:
    rows = [np.flatnonzero((x == row).all(axis=1)).item() for row in start]
    assert len(set(rows)) == 10
    assert valid[rows].all()
  assert not np.array_equal(starts[0], starts[1])
  one = mesh_lib.make_mesh(1)
  with jax.set_mesh(one):
    alone = random_start(*put(one, x, valid), jax.random.key(0), 10)
  np.testing.assert_array_equal(alone, starts[0])
