"""Exact neighbours: by hand, recorded, and faiss'; what travels for them."""

import re

import faiss
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import neighbors
from odc_jax.plan import collectives
from tests.recordings import load


def put(mesh, x, dtype=np.float32):
  """Splits rows over the devices, behind them those that should not be found.

  They point where the first row points.
  """
  x = np.asarray(x, np.float32)
  padded = np.repeat(100 * x[:1], mesh_lib.padded_rows(len(x) + 1), axis=0)
  padded[: len(x)] = x
  valid = np.arange(len(padded)) < len(x)
  return jax.device_put(
    (jnp.asarray(padded, dtype), jnp.asarray(valid)), mesh_lib.rows(mesh)
  )


def test_four_rows_by_hand(mesh):
  # Directions of 0, 90, 45 and 0 degrees; the last is the longest.
  x = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [10.0, 0.0]]
  found = neighbors.nearest_others(*put(mesh, x), k=2)
  np.testing.assert_array_equal(
    found.rows[:4], [[3, 2], [2, 0], [0, 1], [0, 2]]
  )
  half = np.sqrt(0.5)
  np.testing.assert_allclose(
    found.similarities[:4],
    [[1, half], [half, 0], [half, half], [1, half]],
    atol=1e-6,
  )
  found = neighbors.nearest_others(*put(mesh, x), k=3, metric="dot")
  np.testing.assert_array_equal(
    found.rows[:4], [[3, 2, 1], [2, 0, 3], [3, 1, 0], [0, 2, 1]][:4]
  )


def test_a_query_finds_what_is_equal_to_it(mesh):
  index, valid = put(mesh, [[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
  queries, _ = put(mesh, [[3.0, 0.0], [0.0, -1.0]])
  found = neighbors.nearest(queries, index, valid, k=2)
  np.testing.assert_array_equal(found.rows[:2], [[1, 2], [1, 2]])
  np.testing.assert_allclose(
    found.similarities[:2], [[1, 1], [0, 0]], atol=1e-6
  )


def test_fewer_rows_than_wanted_are_minus_infinity(mesh):
  index, valid = put(mesh, [[0.0, 1.0], [1.0, 0.0]])
  found = neighbors.nearest(index, index, valid, k=3)
  np.testing.assert_array_equal(found.similarities[:2, 2], -np.inf)
  np.testing.assert_array_equal(found.rows[:2, :2], [[0, 1], [1, 0]])


@pytest.mark.parametrize("k", [0, 1024])
def test_more_than_there_are(k):
  with (
    jax.set_mesh(mesh_lib.make_mesh(1)),
    pytest.raises(ValueError, match=rf"k {k} is not in \[1, 1023\]"),
  ):
    neighbors.nearest_others(jnp.ones((1024, 2)), jnp.ones((1024,), bool), k=k)


def test_mining_is_the_official_code_s(golden_temi_mining, mesh):
  trace = load(golden_temi_mining)
  n, _, k, _, _ = trace["hp"]
  found = neighbors.nearest_others(*put(mesh, trace["x"]), k=int(k))
  np.testing.assert_array_equal(found.rows[:n], trace["neighbors"])
  np.testing.assert_allclose(
    found.similarities[:n], trace["similarity"], atol=1e-6
  )


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_exact_search_is_faiss(metric, mesh):
  """In chunks that do not divide the rows, nor lie on one device."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1500, 16)).astype(np.float32)
  found = neighbors.nearest_others(
    *put(mesh, x), k=7, metric=metric, chunk_size=300
  )
  if metric == "cosine":
    x /= np.linalg.norm(x, axis=1, keepdims=True)
  score, rows = faiss.knn(x, x, 8, faiss.METRIC_INNER_PRODUCT)
  others = rows != np.arange(len(x))[:, None]
  # By its inner product a short row may not be among its own neighbours.
  others[others.all(axis=1), -1] = False
  np.testing.assert_array_equal(
    found.rows[:1500], rows[others].reshape(1500, 7)
  )
  np.testing.assert_allclose(
    found.similarities[:1500], score[others].reshape(1500, 7), atol=1e-5
  )


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_any_number_of_devices_finds_the_same(dtype):
  """Whole numbers, so that many are equally similar."""
  x = np.random.default_rng(0).integers(-2, 3, size=(1200, 5))
  found = []
  for devices in (1, 2, 8):
    mesh = mesh_lib.make_mesh(devices)
    with jax.set_mesh(mesh):
      found.append(
        neighbors.nearest_others(
          *put(mesh, x, dtype), k=9, metric="dot", chunk_size=77
        )
      )
  jax.tree.map(np.testing.assert_array_equal, found[0], found[1])
  jax.tree.map(np.testing.assert_array_equal, found[0], found[2])
  # The smaller first of those that are equal.
  products = (x @ x.T).astype(float)
  np.fill_diagonal(products, -np.inf)
  expected = np.argsort(-products, axis=1, kind="stable")[:, :9]
  np.testing.assert_array_equal(found[0].rows[:1200], expected)


def test_what_travels_is_a_chunk():
  mesh = mesh_lib.make_mesh(8)
  d, chunk = 16, 500

  def moved(n):
    rows = mesh_lib.rows(mesh)
    x = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=rows)
    valid = jax.ShapeDtypeStruct((n,), bool, sharding=rows)
    mine = jax.jit(
      neighbors.nearest_others, static_argnames=("k", "chunk_size")
    )
    with jax.set_mesh(mesh):
      text = mine.lower(x, valid, k=3, chunk_size=chunk).compile().as_text()
    return collectives.collectives(text)

  few, many = moved(8 * 1024), moved(64 * 1024)
  assert few == many
  assert sum(size for *_, size in few) == 4 * chunk * (d + 1)
  sizes = {
    int(size) for _, shape, _ in few for size in re.findall(r"\d+", shape)
  }
  assert max(sizes - {32}) == chunk
