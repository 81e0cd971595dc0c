"""The run's clusters and k-means' against scikit-learn's own numbers."""

import numpy as np
import pytest
from sklearn import metrics
from sklearn.cluster import KMeans

from odc_jax.clustering import kmeans as lloyd
from odc_jax.evals import clustering, scores
from tests.evals.subjects import digits, with_config


def with_labels(subject, labels):
  train = subject.train
  rows = np.flatnonzero(labels >= 0)
  features = train.features._replace(labels=labels)
  train = train._replace(features=features, rows=rows, labels=labels[rows])
  return subject._replace(train=train)


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
  subject = digits(mesh, num_test=0)
  rng = np.random.default_rng(0)
  labels = subject.train.features.labels.copy()
  clusters = np.where(rng.random(256) < 0.6, labels, rng.integers(30, size=256))
  # Nobody knows the labels of these; the clusters have some of their own.
  labels[10:40], clusters[10:20] = -1, 29
  subject = with_labels(subject, labels)._replace(clusters=clusters)
  found = dict(clustering.evaluate(subject))
  known = labels >= 0
  expected = agreement(labels[known], clusters[known])
  expected["purity_labels"] = scores.purity(labels[known], clusters[known])
  assert found == {
    f"eval/{name}": pytest.approx(value) for name, value in expected.items()
  }


def test_accuracy_where_there_are_as_many_clusters_as_classes(mesh):
  subject = digits(mesh)
  labels = subject.train.features.labels
  # Other names for the classes, and the first quarter wrong.
  clusters = (labels + 3) % 10
  clusters[:64] = 3
  ten = with_config(subject._replace(clusters=clusters), num_clusters=10)
  found = dict(clustering.evaluate(ten))
  wrong = np.sum(labels[:64] != 0)
  assert found["eval/acc_labels"] == pytest.approx(1 - wrong / 256)
  eleven = with_config(ten, num_clusters=11)
  assert "eval/acc_labels" not in dict(clustering.evaluate(eleven))


def test_nothing_without_labels_or_clusters(mesh):
  subject = digits(mesh)
  assert subject.clusters is None
  assert not list(clustering.evaluate(subject))
  unknown = with_labels(subject, np.full(256, -1, np.int32))
  assert not list(clustering.kmeans(unknown))
  clusters = np.zeros(256, np.int32)
  assert not list(clustering.evaluate(unknown._replace(clusters=clusters)))


def test_kmeans_is_scikit_learn_s(mesh, monkeypatch):
  subject = digits(mesh)
  labels = subject.train.features.labels.copy()
  # Clustered, but not compared.
  labels[::9] = -1
  results = []

  def keep(*args, **kwargs):
    results.append(lloyd.kmeans(*args, **kwargs))
    return results[-1]

  monkeypatch.setattr(clustering, "lloyd", keep)
  found = dict(clustering.kmeans(with_labels(subject, labels)))
  assert len(results) == 10
  inertias = [float(result.inertia) for result in results]
  assert len(set(inertias)) > 1

  x = np.asarray(subject.train.features.features)[:256]
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
  subject = digits(mesh)
  once, again, other = (
    dict(clustering.kmeans(with_config(subject, seed=seed)))
    for seed in (1, 1, 2)
  )
  assert once == again
  assert once.keys() == other.keys()
