"""kNN classification against scikit-learn and a vote counted in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from odc_jax import mesh as mesh_lib
from odc_jax.evals import knn
from odc_jax.passes.extract import Features
from tests.evals.subjects import of_features

N, CLASSES, D = 90, 4, 6


def draw(num_examples, seed):
  """Overlapping classes, in rows of all lengths."""
  centers = np.random.default_rng(0).normal(size=(CLASSES, D))
  rng = np.random.default_rng(seed)
  labels = rng.integers(CLASSES, size=num_examples)
  x = centers[labels] + 0.8 * rng.normal(size=(num_examples, D))
  x *= rng.uniform(0.1, 10, size=(num_examples, 1))
  return x.astype(np.float32), labels.astype(np.int32)


def on_mesh(mesh, x, padding=None):
  """Splits the rows over the devices, behind them rows of `padding`."""
  rows = -(-(len(x) + 1) // 8) * 8
  padded = np.zeros((rows, x.shape[1]), np.float32)
  padded[: len(x)] = x
  if padding is not None:
    padded[len(x) :] = padding
  return jax.device_put(padded, mesh_lib.rows(mesh))


def classify(mesh, x, labels, queries, k=5, temperature=0.0, **kwargs):
  cosines, classes = knn.nearest(
    on_mesh(mesh, x, **kwargs),
    labels,
    on_mesh(mesh, queries),
    np.arange(len(queries)),
    k=k,
  )
  return knn.vote(cosines, classes, k=k, temperature=temperature)


def sklearn_classify(x, labels, queries, k=5):
  model = KNeighborsClassifier(k, metric="cosine", weights="uniform")
  return model.fit(x, labels).predict(queries)


def vote(x, labels, queries, k, temperature):
  """Sums exp(cosine / temperature) of the k nearest, query by query."""
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  classes = []
  for query in queries.astype(np.float64):
    cosine = unit @ (query / np.linalg.norm(query))
    votes = np.zeros(CLASSES)
    for i in np.argsort(-cosine)[:k]:
      votes[labels[i]] += np.exp(cosine[i] / temperature)
    classes.append(np.argmax(votes))
  return np.array(classes)


def test_equal_votes_are_scikit_learn_s(mesh):
  x, labels = draw(N, 1)
  # More than are searched for at once.
  queries, truth = draw(300, 2)
  found = classify(mesh, x, labels, queries)
  np.testing.assert_array_equal(found, sklearn_classify(x, labels, queries))
  assert found.dtype == np.int64
  assert 0.5 < np.mean(found == truth) < 0.95


def test_votes_weigh_exp_of_cosine_over_temperature(mesh):
  x, labels = draw(N, 1)
  queries, _ = draw(200, 2)
  expected = vote(x, labels, queries, 30, 0.1)
  found = classify(mesh, x, labels, queries, k=30, temperature=0.1)
  np.testing.assert_array_equal(found, expected)
  # With equal votes it would have been something else.
  assert np.any(expected != sklearn_classify(x, labels, queries, 30))


def test_a_low_temperature_neither_overflows_nor_vanishes(mesh):
  # Cosines of 0, .1 and .4 with the first query, where exp(.4 / .002) is
  # infinite, and of -1, -1 and -.9 with the third, where all of them are 0.
  x = np.array([[0.0, 1.0], [0.1, 1.0], [0.5, 1.0]], np.float32)
  labels = np.array([0, 0, 1], np.int32)
  queries = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.0]])
  found = classify(mesh, x, labels, queries, k=3, temperature=0.002)
  np.testing.assert_array_equal(found, [1, 0, 1, 0])


def test_rows_without_a_label_and_padding_are_not_in_the_index(mesh):
  x, labels = draw(N, 1)
  queries, _ = draw(40, 2)
  # Unlabelled copies of the queries, and pad rows that resemble one.
  x = np.concatenate([queries, x])
  hidden = np.concatenate([np.full(40, -1, np.int32), labels])
  found = classify(mesh, x, hidden, queries, padding=queries[0])
  expected = sklearn_classify(x[40:], labels, queries)
  np.testing.assert_array_equal(found, expected)


def test_fewer_rows_than_neighbours(mesh):
  x, labels = draw(12, 1)
  queries, _ = draw(20, 2)
  labels[:9] = -1
  labels[9:] = [3, 1, 3]
  # All three vote, wherever the query lies; on eight devices most have none.
  found = classify(mesh, x, labels, queries, k=5)
  np.testing.assert_array_equal(found, 3)


def test_of_equal_votes_the_smallest_class_wins(mesh):
  x, _ = draw(12, 1)
  labels = np.full(12, -1, np.int32)
  labels[[2, 5, 7, 11]] = [3, 1, 3, 1]
  found = classify(mesh, x, labels, x, k=4)
  np.testing.assert_array_equal(found, 1)


def test_only_the_wanted_rows_in_their_order(mesh):
  x, labels = draw(N, 1)
  wanted = np.array([7, 3, 80, 3])
  index = on_mesh(mesh, x)
  cosines, classes = knn.nearest(index, labels, index, wanted, k=5)
  found = knn.vote(cosines, classes, k=5, temperature=0.0)
  expected = sklearn_classify(x, labels, x[wanted])
  np.testing.assert_array_equal(found, expected)


# The evaluator.

NO_SIGNATURES = jnp.zeros((0, 256), jnp.int8)


def evaluate(train, test=None, k=5, temperature=0.0):
  section = {"knn": {"k": k, "temperature": temperature}}
  return dict(knn.evaluate(of_features(train, test, config={"eval": section})))


def features_of(mesh, x, labels):
  """The embeddings would classify differently."""
  embeddings = on_mesh(mesh, x[::-1].copy())
  keys = {i: str(i) for i in range(len(x))}
  return Features(on_mesh(mesh, x), embeddings, NO_SIGNATURES, labels, keys)


def test_even_rows_classify_odd_ones(mesh):
  x, labels = draw(N + 1, 1)
  labels[[4, 5, 20, 33]] = -1
  found = evaluate(features_of(mesh, x, labels))
  even, odd = (
    np.array([i for i in range(N + 1) if i % 2 == part and labels[i] >= 0])
    for part in (0, 1)
  )
  predicted = sklearn_classify(x[even], labels[even], x[odd])
  assert found["eval/knn_top1"] == np.mean(predicted == labels[odd])


def test_a_test_set_is_classified_by_the_whole_training_set(mesh):
  (x, labels), (queries, truth) = draw(N, 1), draw(50, 2)
  labels[4] = truth[7] = truth[49] = -1
  found = evaluate(
    features_of(mesh, x, labels),
    features_of(mesh, queries, truth),
    k=7,
    temperature=0.1,
  )
  known = truth >= 0

  def top1(k, temperature):
    x_known, labels_known = x[labels >= 0], labels[labels >= 0]
    predicted = vote(x_known, labels_known, queries[known], k, temperature)
    return np.mean(predicted == truth[known])

  assert found == {
    "eval/knn_top1": top1(7, 0.1),
    "eval/knn_top1_k10": top1(10, 0.07),
    "eval/knn_top1_k20": top1(20, 0.07),
    # There are 89 to choose from: a hundred would be another protocol.
  }


@pytest.mark.parametrize("known", [[], [3, 5], [2, 4]])
def test_without_labels_on_both_sides_there_is_nothing(known):
  labels = np.full(N, -1, np.int32)
  labels[known] = 1
  x = jnp.ones((96, D))
  assert evaluate(Features(x, x, NO_SIGNATURES, labels, {})) == {}


def test_without_labels_in_the_test_set_there_is_nothing():
  x, labels = draw(N, 1)
  rows = jnp.asarray(x)
  train = Features(rows, rows, NO_SIGNATURES, labels, {})
  test = train._replace(labels=np.full(N, -1, np.int32))
  assert evaluate(train, test) == {}
