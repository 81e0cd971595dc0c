"""Retrieval against scikit-learn and a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from odc_jax import mesh as mesh_lib
from odc_jax.evals import retrieval
from odc_jax.passes.extract import Features
from odc_jax.plan import collectives
from tests.evals.subjects import of_features


def features_of(mesh, x, labels):
  """Features, with pad rows that resemble the first image."""
  padded = np.zeros((len(x) // 8 * 8 + 16, x.shape[1]), np.float32)
  padded[: len(x)] = x
  padded[len(x) :] = x[0]
  rows = jax.device_put(padded, mesh_lib.rows(mesh))
  return Features(rows, rows, jnp.zeros((0, 256), jnp.int8), labels, {})


def evaluate(mesh, train, test=None):
  """Retrieves from features and labels."""
  train, test = (part and features_of(mesh, *part) for part in (train, test))
  return dict(retrieval.evaluate(of_features(train, test)))


def draw(n, seed, classes=4, d=6):
  """Overlapping classes, in rows of all lengths."""
  centers = np.random.default_rng(0).normal(size=(classes, d))
  rng = np.random.default_rng(seed)
  labels = rng.integers(classes, size=n).astype(np.int32)
  x = centers[labels] + 0.8 * rng.normal(size=(n, d))
  x *= rng.uniform(0.1, 10, size=(n, 1))
  return x.astype(np.float32), labels


def ranking(x, query):
  """Rows from the nearest to the farthest; of equal ones the earlier first."""
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  return np.argsort(-(unit @ query) / np.linalg.norm(query), kind="stable")


def loop(x, labels, queries, truth):
  """Recall at 1, 5, 10 and mean average precision, query by query."""
  recalls, precisions = [], []
  for query, label in zip(queries, truth, strict=True):
    relevant = labels[ranking(x, query)] == label
    if relevant.any():
      recalls.append([relevant[:k].any() for k in (1, 5, 10)])
      precisions.append(
        average_precision_score(relevant, -np.arange(len(relevant)))
      )
  return {
    **{
      f"eval/retrieval_recall_at{k}": value
      for k, value in zip((1, 5, 10), np.mean(recalls, axis=0), strict=True)
    },
    "eval/retrieval_map": np.mean(precisions),
  }


def test_recall_and_map_of_a_test_set(mesh):
  (x, labels), (queries, truth) = draw(90, 1), draw(300, 2)
  labels[[3, 50]] = truth[[0, 299]] = -1
  found = evaluate(mesh, (x, labels), (queries, truth))
  known, asked = labels >= 0, truth >= 0
  expected = loop(x[known], labels[known], queries[asked], truth[asked])
  assert found == pytest.approx(expected, rel=1e-5)
  assert 0.5 < found["eval/retrieval_map"] < 0.95
  assert found["eval/retrieval_recall_at1"] < 0.99


def test_a_query_does_not_find_itself(mesh):
  x, labels = draw(101, 1)
  even, odd = np.arange(0, 101, 2), np.arange(1, 101, 2)
  found = evaluate(mesh, (x, labels))
  expected = loop(x[even], labels[even], x[odd], labels[odd])
  assert found == pytest.approx(expected, rel=1e-5)


def test_of_equally_near_images_the_earlier_comes_first(mesh):
  # All along one axis: nothing but the order decides.
  labels = np.zeros(40, np.int32)
  labels[[9, 30]] = 1
  x = np.tile(np.float32([[2.0, 0.0]]), (40, 1))
  queries, truth = np.float32([[1.0, 0.0], [1.0, 0.0]]), np.int32([0, 1])
  found = evaluate(mesh, (x, labels), (queries, truth))
  # The first 0 stands at place 1, the first 1 at 10.
  assert found["eval/retrieval_recall_at1"] == 0.5
  assert found["eval/retrieval_recall_at10"] == 1.0
  expected = loop(x, labels, queries, truth)
  assert found == pytest.approx(expected, rel=1e-5)


def test_queries_without_a_relevant_image_are_left_out(mesh):
  (x, labels), (queries, truth) = draw(90, 1), draw(30, 2)
  truth[:10] = 7
  found = evaluate(mesh, (x, labels), (queries, truth))
  assert found == pytest.approx(loop(x, labels, queries, truth), rel=1e-5)
  for only in (7, -1):
    nothing = queries, np.full(30, only, np.int32)
    assert not evaluate(mesh, (x, labels), nothing)
  assert not evaluate(mesh, nothing, (x, labels))


def test_the_map_of_a_sample_is_called_so(mesh, monkeypatch):
  monkeypatch.setattr(retrieval, "MOST_RANKED", 20)
  (x, labels), (queries, truth) = draw(90, 1), draw(60, 2)
  found = evaluate(mesh, (x, labels), (queries, truth))
  expected = loop(x, labels, queries, truth)
  expected.pop("eval/retrieval_map")
  # Every third one.
  sample = loop(x, labels, queries[::3], truth[::3])
  expected["eval/retrieval_map_20q"] = sample["eval/retrieval_map"]
  assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.optimized
def test_the_index_stays_where_it_is():
  mesh = mesh_lib.make_mesh(8)
  rows, width, queries = 4096, 512, 256
  with jax.set_mesh(mesh):
    index = jax.ShapeDtypeStruct(
      (rows, width), jnp.float32, sharding=mesh_lib.rows(mesh)
    )
    labels = np.zeros(rows, np.int32)
    wanted = np.zeros(queries, np.int32)
    for search in (retrieval._first_relevant, retrieval._average_precisions):
      text = (
        search.lower(index, labels, index, wanted, wanted).compile().as_text()
      )
      found = collectives.collectives(text)
      assert found
      # A whole index would have 8 MB; these are cosines of a device, at most.
      assert max(size for _, _, size in found) <= queries * rows * 4 // 8
      gathered = [size for op, _, size in found if op != "all-to-all"]
      assert max(gathered) <= queries * width * 4
