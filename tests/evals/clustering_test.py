"""The run's clusters and k-means' against scikit-learn's own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from sklearn import metrics
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from configs import temi_digits
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import kmeans as lloyd
from odc_jax.config import check as config_lib
from odc_jax.evals import clustering, scores
from odc_jax.methods import METHODS
from odc_jax.passes.extract import Features
from odc_jax.training.assign import assigner
from odc_jax.training.programs import assemble
from tests.evals.subjects import of_features


def digits(mesh, labels=None, clusters=None, **config):
  """The pixels of 256 digits for features, and their labels or others."""
  data = load_digits()
  padded = np.zeros((1024, 64), np.float32)
  padded[:256] = data.data[:256]
  # What pad rows hold does not count.
  padded[256:] = 10 * data.data[256:1024]
  rows = jax.device_put(padded, mesh_lib.rows(mesh))
  labels = data.target[:256] if labels is None else labels
  train = Features(rows, rows, jnp.zeros((0, 256), jnp.int8), labels, {})
  return of_features(train, clusters=clusters, config={"seed": 0, **config})


LABELS = load_digits().target[:256]


def agreement(labels, clusters):
  return {
    "nmi_labels": metrics.normalized_mutual_info_score(labels, clusters),
    "nmi_geometric_labels": metrics.normalized_mutual_info_score(
      labels, clusters, average_method="geometric"
    ),
    "ami_labels": metrics.adjusted_mutual_info_score(labels, clusters),
    "ari_labels": metrics.adjusted_rand_score(labels, clusters),
  }


def test_the_run_s_clusters_of_the_labelled_images(mesh):
  rng = np.random.default_rng(0)
  labels = LABELS.copy()
  clusters = np.where(rng.random(256) < 0.6, labels, rng.integers(30, size=256))
  # Nobody knows the labels of these; the clusters have some of their own.
  labels[10:40], clusters[10:20] = -1, 29
  run = digits(mesh, labels, clusters, num_clusters=30)
  found = dict(clustering.evaluate(run))
  known = labels >= 0
  expected = agreement(labels[known], clusters[known])
  expected["purity_labels"] = scores.purity(labels[known], clusters[known])
  assert found == {
    f"eval/{name}": pytest.approx(value) for name, value in expected.items()
  }


def test_accuracy_where_there_are_as_many_clusters_as_classes(mesh):
  # Other names for the classes, and the first quarter wrong.
  clusters = (LABELS + 3) % 10
  clusters[:64] = 3
  ten = digits(mesh, clusters=clusters, num_clusters=10)
  found = dict(clustering.evaluate(ten))
  wrong = np.sum(LABELS[:64] != 0)
  assert found["eval/acc_labels"] == pytest.approx(1 - wrong / 256)
  eleven = digits(mesh, clusters=clusters, num_clusters=11)
  assert "eval/acc_labels" not in dict(clustering.evaluate(eleven))


def test_assigned_images_of_both_sets_against_their_labels(mesh):
  """Three images in four of a class by their label, the others wrong."""
  labels = LABELS.copy()
  labels[:10] = -1
  run = digits(mesh, labels, num_clusters=10)
  data = run.train.features
  test = data._replace(labels=LABELS[::-1].copy())
  asked = []

  def assign(features):
    asked.append(features)
    wrong = np.arange(256) % 4 == 0
    return np.where(wrong, 0, (features.labels + 3) % 10)

  whole = of_features(data, test, config={"num_clusters": 10})
  found = dict(clustering.assignment(whole._replace(assign=assign)))
  assert [features is data for features in asked] == [True, False]
  for split, truth in (("train", labels), ("test", test.labels)):
    known = truth >= 0
    clusters = np.where(np.arange(256) % 4 == 0, 0, (truth + 3) % 10)[known]
    truth = truth[known]
    # The wrong ones are right where the class is the one matched to 0.
    assert found[f"eval/{split}_acc_assigned"] == pytest.approx(
      np.mean(clusters == (truth + 3) % 10)
    )
    assert found[f"eval/{split}_nmi_assigned"] == pytest.approx(
      metrics.normalized_mutual_info_score(truth, clusters)
    )
    assert found[f"eval/{split}_ari_assigned"] == pytest.approx(
      metrics.adjusted_rand_score(truth, clusters)
    )
  assert len(found) == 6
  # Without a test set of its own, and with more clusters than classes.
  alone = digits(mesh, labels, num_clusters=11)._replace(assign=assign)
  assert dict(clustering.assignment(alone)).keys() == {
    "eval/train_nmi_assigned",
    "eval/train_ari_assigned",
  }
  assert not list(clustering.assignment(alone._replace(assign=None)))


HEADS, CLUSTERS, SIZE = 3, 4, 5


def voting_heads(mesh):
  """Three heads of TEMI's on five numbers, students and teachers at random."""
  config = temi_digits.get_config()
  config.num_clusters, config.temi.num_heads = CLUSTERS, HEADS
  config.model.head_hidden, config.model.head_bottleneck = 7, 6
  config.model.name = "features"
  with config.unlocked():
    config.model.settings = {"size": SIZE}
  config = config_lib.resolve(config, 256, mesh.size)
  method = METHODS[config.method]
  program = assemble(config, method, mesh)
  rng = np.random.default_rng(0)

  def drawn():
    return jax.tree.map(
      lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype),
      program.shapes.params,
    )

  state = method.init(config, 256, jax.random.key(0))
  names = np.array([rng.permutation(CLUSTERS) for _ in range(HEADS)])
  state = state._replace(names=jnp.asarray(names, jnp.int32))
  return config, program, drawn(), drawn(), state


def voted(head, names, rows):
  """The vote in NumPy: each head's likeliest, by the names they agreed on."""
  (w, w_last), (b, b_last) = (
    [np.float64(layers[i]) for i in "01"]
    for layers in (head["mlp"]["kernels"], head["mlp"]["biases"])
  )
  votes = np.zeros((len(rows), CLUSTERS))
  for h in range(HEADS):
    x = rows @ w[h] + b[h]
    x = x * scipy.special.ndtr(x)  # GELU
    z = x @ w_last[h] + b_last[h]
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    v = np.float64(head["last"]["directions"][h])
    logits = z @ (v / np.linalg.norm(v, axis=0)) * head["last"]["scales"][h]
    votes[np.arange(len(rows)), names[h][logits.argmax(axis=1)]] += 1
  return votes.argmax(axis=1)


def test_heads_that_vote_assign_images(mesh):
  config, program, params, teacher, state = voting_heads(mesh)
  rng = np.random.default_rng(1)
  rows = rng.normal(size=(2048, SIZE)).astype(np.float32)
  train, test = (
    Features(
      jax.device_put(part, mesh_lib.rows(mesh)),
      jax.device_put(part, mesh_lib.rows(mesh)),
      jnp.zeros((0, 256), jnp.int8),
      rng.integers(CLUSTERS, size=count),
      {},
    )
    for part, count in ((rows[:1024], 256), (rows[1024:], 100))
  )
  clusters = rng.integers(CLUSTERS, size=256)
  assign = assigner(
    program, mesh, {**params, **teacher}, state, train, clusters, CLUSTERS
  )
  run = of_features(train, test, clusters=clusters, config=config.to_dict())
  found = dict(clustering.assignment(run._replace(assign=assign)))
  assert len(found) == 6
  for split, features in (("train", train), ("test", test)):
    truth = features.labels
    given = np.asarray(features.embeddings)[: len(truth)]
    expected = voted(teacher["head"], np.asarray(state.names), given)
    np.testing.assert_array_equal(assign(features), expected)
    by_students = voted(params["head"], np.asarray(state.names), given)
    unnamed = voted(teacher["head"], [np.arange(CLUSTERS)] * HEADS, given)
    for other in (by_students, unnamed):
      assert np.mean(other == expected) < 0.9
    assert found[f"eval/{split}_ari_assigned"] == pytest.approx(
      metrics.adjusted_rand_score(truth, expected)
    )
    assert found[f"eval/{split}_nmi_assigned"] == pytest.approx(
      metrics.normalized_mutual_info_score(truth, expected)
    )
    assert found[f"eval/{split}_acc_assigned"] == pytest.approx(
      scores.accuracy_one_to_one(truth, expected, CLUSTERS)
    )


def test_nothing_without_labels_or_clusters(mesh):
  assert not list(clustering.evaluate(digits(mesh)))
  unknown = digits(mesh, np.full(256, -1), np.zeros(256, int), num_clusters=1)
  assert not list(clustering.evaluate(unknown))
  assert not list(clustering.kmeans(unknown))


def test_kmeans_is_scikit_learn_s(mesh, monkeypatch):
  labels = LABELS.copy()
  # Clustered, but not compared.
  labels[::9] = -1
  results = []

  def keep(*args, **kwargs):
    results.append(lloyd.kmeans(*args, **kwargs))
    return results[-1]

  monkeypatch.setattr(clustering, "lloyd", keep)
  found = dict(clustering.kmeans(digits(mesh, labels)))
  assert len(results) == 10
  inertias = [float(result.inertia) for result in results]
  assert len(set(inertias)) > 1

  x = load_digits().data[:256]
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  expected = KMeans(10, n_init=10, random_state=0).fit(x)
  assert min(inertias) == pytest.approx(expected.inertia_, rel=0.02)

  best = results[int(np.argmin(inertias))]
  clusters, known = np.asarray(best.assignments)[:256], labels >= 0
  values = agreement(labels[known], clusters[known])
  values["acc_labels"] = scores.accuracy_one_to_one(
    labels[known], clusters[known], 10
  )
  assert found == {
    f"eval/kmeans_{name}": pytest.approx(value)
    for name, value in values.items()
  }
  theirs = agreement(labels[known], expected.labels_[known])
  for name, value in theirs.items():
    assert found[f"eval/kmeans_{name}"] == pytest.approx(value, abs=0.1)


def test_kmeans_is_the_seed_s(mesh):
  once, again, other = (
    dict(clustering.kmeans(digits(mesh, seed=seed))) for seed in (1, 1, 2)
  )
  assert once == again
  assert once.keys() == other.keys()
