import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import assign
from odc_jax.plan import collectives

# Four rows and three centroids, worked by hand.
X = [[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]]
CENTROIDS = [[1.0, 1.0], [0.0, 1.0], [4.0, 2.0]]


@pytest.mark.parametrize(
  ("metric", "assignments", "score"),
  [
    ("l2", [0, 1, 2, 1], [-1.0, -1.0, -2.0, -2.0]),
    ("dot", [2, 2, 2, 1], [4.0, 4.0, 18.0, 0.0]),
    ("cosine", [2, 1, 0, 1], [2 / 5**0.5, 1.0, 1.0, 0.0]),
  ],
)
def test_nearest_by_hand(metric, assignments, score):
  found = assign.nearest(jnp.array(X), jnp.array(CENTROIDS), metric)
  np.testing.assert_array_equal(found[0], assignments)
  assert found[0].dtype == jnp.int32
  np.testing.assert_allclose(found[1], score, rtol=1e-6, atol=1e-6)


def test_unknown_metric():
  # Without the check of the signature, which is there in tests only.
  score_terms = inspect.unwrap(assign.score_terms)
  with pytest.raises(ValueError, match="'l1' is none of"):
    score_terms(jnp.array(CENTROIDS), "l1")


def test_ties_go_to_the_smallest_index():
  x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  centroids = jnp.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  for metric in ("l2", "dot", "cosine"):
    assignments, _ = assign.nearest(x, centroids, metric)
    np.testing.assert_array_equal(assignments, [1, 0])


def test_a_row_of_nans_is_not_taken_for_padding():
  x = jnp.array([[jnp.nan, 0.0], [0.0, 1.0]])
  assignments, score = assign.nearest(x, jnp.array(CENTROIDS))
  np.testing.assert_array_equal(assignments, [0, 1])
  assert jnp.isnan(score[0])


def _memory(n, d, dtype=np.float32):
  return np.random.default_rng(0).normal(size=(n, d)).astype(dtype)


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 1000])
def test_assign_all_is_nearest_and_pads(mesh, metric, chunk_size):
  x, centroids = _memory(160, 12), jnp.array(_memory(9, 12)[::-1].copy())
  x[150:] = np.inf
  padded = jax.device_put(x, mesh_lib.rows(mesh))
  found = assign.assign_all(padded, centroids, 150, metric, chunk_size)
  expected, _ = assign.nearest(jnp.array(x[:150]), centroids, metric)
  np.testing.assert_array_equal(found[:150], expected)
  np.testing.assert_array_equal(found[150:], 9)
  assert found.sharding.is_equivalent_to(mesh_lib.rows(mesh), 1)


def test_half_precision_rows(mesh):
  x = jnp.array(_memory(64, 12)).astype(jnp.bfloat16)
  centroids = jnp.array(_memory(5, 12))
  found = assign.assign_all(x, centroids, 64)
  expected = assign.assign_all(x.astype(jnp.float32), centroids, 64)
  np.testing.assert_array_equal(found, expected)


def test_no_such_number_of_examples(mesh):
  x = jnp.array(_memory(64, 12))
  with pytest.raises(ValueError, match=r"65 is not in \[0, 64\]"):
    assign.assign_all(x, x[:3], 65)


@pytest.mark.optimized
def test_no_communication_and_bounded_temporaries():
  n, d, k = 8 * 4096, 4, 512
  mesh = mesh_lib.make_mesh(8)
  with jax.set_mesh(mesh):
    x = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=mesh_lib.rows(mesh))
    centroids = jax.ShapeDtypeStruct((k, d), jnp.float32)
    assign_all = jax.jit(assign.assign_all, static_argnums=(2, 3, 4))
    compiled = assign_all.lower(x, centroids, n, "l2", 64).compile()
  assert collectives.collectives(compiled.as_text()) == []
  # A few blocks of scores; all of a device's scores would be 8 MB.
  assert compiled.memory_analysis().temp_size_in_bytes < 6 * 64 * k * 4
