"""Agreement with the labels against scikit-learn and counts by hand."""

import collections
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax.evals import clustering
from odc_jax.evals.features import Features
from tests.evals.features import subject

LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2], np.int32)
CLUSTERS = np.array([5, 5, 3, 3, 3, 9, 9, 9], np.int32)


def entropy(*sequences):
  """Joint entropy in nats, from counts."""
  counts = collections.Counter(
    zip(*(s.tolist() for s in sequences), strict=True)
  )
  p = np.array(list(counts.values())) / len(sequences[0])
  return -np.sum(p * np.log(p))


def formulas(labels, clusters):
  """NMI with the arithmetic mean, ARI over pairs, purity over clusters."""
  h, g = entropy(labels), entropy(clusters)
  nmi = (h + g - entropy(labels, clusters)) / ((h + g) / 2)
  pairs = list(itertools.combinations(range(len(labels)), 2))
  same_label = np.array([labels[i] == labels[j] for i, j in pairs])
  same_cluster = np.array([clusters[i] == clusters[j] for i, j in pairs])
  both = np.sum(same_label & same_cluster)
  chance = same_label.sum() * same_cluster.sum() / len(pairs)
  most = (same_label.sum() + same_cluster.sum()) / 2
  majority = sum(
    collections.Counter(labels[clusters == c].tolist()).most_common(1)[0][1]
    for c in set(clusters.tolist())
  )
  return {
    "eval/nmi_labels": nmi,
    "eval/ari_labels": (both - chance) / (most - chance),
    "eval/purity_labels": majority / len(labels),
  }


def evaluate(labels, clusters):
  rows = jnp.zeros((1024, 2))
  signatures = jnp.zeros((1024, 256), jnp.int8)
  train = Features(rows, rows, signatures, labels, {})
  return dict(clustering.evaluate(subject(train, clusters=clusters)))


def test_purity_by_hand():
  # Of 5, both; of 3, two of three; of 9, two of three.
  assert clustering.purity(LABELS, CLUSTERS) == 6 / 8
  # One cluster, and one for each: purity is not symmetric.
  assert clustering.purity(LABELS, np.zeros(8, np.int32)) == 3 / 8
  assert clustering.purity(LABELS, np.arange(8)) == 1


def test_nmi_means_the_entropies_arithmetically():
  labels, clusters = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])
  # H(labels) = ln 2 is all shared; H(clusters) = 2 ln 2. Geometric: .707.
  assert clustering.nmi(labels, clusters) == pytest.approx(2 / 3)
  assert clustering.nmi(clusters, labels) == pytest.approx(2 / 3)
  assert clustering.nmi(labels, labels + 7) == pytest.approx(1)
  assert clustering.nmi(labels, np.array([0, 1, 0, 1])) == pytest.approx(0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_three_are_their_formulas(seed):
  rng = np.random.default_rng(seed)
  labels = rng.integers(4, size=60)
  clusters = np.where(
    rng.random(60) < 0.5, 2 * labels, rng.integers(9, size=60)
  )
  expected = pytest.approx(formulas(labels, clusters))
  assert evaluate(labels, clusters) == expected
  # Neither names nor order count.
  order, names = rng.permutation(60), rng.permutation(9)
  assert evaluate(labels[order], names[clusters][order]) == expected


def test_images_without_a_label_do_not_count():
  labels = np.insert(LABELS, [0, 4, 8], -1)
  clusters = np.insert(CLUSTERS, [0, 4, 8], [5, 7, 9])
  assert evaluate(labels, clusters) == pytest.approx(formulas(LABELS, CLUSTERS))


def test_without_labels_there_is_nothing():
  assert evaluate(np.full(8, -1, np.int32), CLUSTERS) == {}
