"""Scores by hand, by their definitions, and against scikit-learn."""

import collections
import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from odc_jax.evals import scores

LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2])
CLUSTERS = np.array([1, 1, 0, 0, 0, 2, 2, 2])


def entropy(*sequences):
  """Joint entropy in nats, from counts."""
  counts = collections.Counter(
    zip(*(s.tolist() for s in sequences), strict=True)
  )
  p = np.array(list(counts.values())) / len(sequences[0])
  return -np.sum(p * np.log(p))


def draw(seed, num_labels=4, num_clusters=9, n=60):
  """Clusters that know something about the labels."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(num_labels, size=n)
  guess = labels * num_clusters // num_labels
  return labels, np.where(
    rng.random(n) < 0.5, guess, rng.integers(num_clusters, size=n)
  )


def test_purity_by_hand():
  # Of 1, both; of 0, two of three; of 2, two of three.
  assert scores.purity(LABELS, CLUSTERS) == 6 / 8
  # One cluster, and one for each: purity is not symmetric.
  assert scores.purity(LABELS, np.zeros(8, int)) == 3 / 8
  assert scores.purity(LABELS, np.arange(8)) == 1


def test_one_to_one_accuracy_by_hand():
  # 1 -> 0 (2), 0 -> 1 (2), 2 -> 2 (2).
  assert scores.accuracy_one_to_one(LABELS, CLUSTERS, 3) == 6 / 8
  # The largest cell first, 0 -> 0, would leave 0 for the rest: 3, not 4.
  labels = np.array([0, 0, 0, 0, 0, 1, 1])
  clusters = np.array([0, 0, 0, 1, 1, 0, 0])
  assert scores.accuracy_one_to_one(labels, clusters, 2) == 4 / 7
  # An empty cluster gets a class, too.
  assert scores.accuracy_one_to_one(LABELS, np.zeros(8, int), 3) == 3 / 8


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_to_one_accuracy_is_the_best_of_all_maps(seed):
  labels, clusters = draw(seed, 5, 5)
  best = max(
    np.mean(np.array(names)[clusters] == labels)
    for names in itertools.permutations(range(5))
  )
  found = scores.accuracy_one_to_one(labels, clusters, 5)
  assert found == pytest.approx(best)


@pytest.mark.parametrize("num_clusters", [2, 4])
def test_one_to_one_needs_as_many_clusters_as_classes(num_clusters):
  with pytest.raises(ValueError, match=f"{num_clusters} clusters.*3 classes"):
    scores.accuracy_one_to_one(LABELS, CLUSTERS % 2, num_clusters)


def test_which_mean_nmi_takes():
  labels, clusters = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])
  # H(labels) = ln 2 is all shared; H(clusters) = 2 ln 2.
  assert scores.nmi(labels, clusters) == pytest.approx(2 / 3)
  assert scores.nmi(clusters, labels) == pytest.approx(2 / 3)
  found = scores.nmi(labels, clusters, "geometric")
  assert found == pytest.approx(np.sqrt(1 / 2))
  assert scores.nmi(labels, labels + 7) == pytest.approx(1)
  assert scores.nmi(labels, np.array([0, 1, 0, 1])) == pytest.approx(0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nmi_and_ari_are_their_formulas(seed):
  labels, clusters = draw(seed)
  h, g = entropy(labels), entropy(clusters)
  shared = h + g - entropy(labels, clusters)
  assert scores.nmi(labels, clusters) == pytest.approx(2 * shared / (h + g))
  found = scores.nmi(labels, clusters, "geometric")
  assert found == pytest.approx(shared / np.sqrt(h * g))

  pairs = list(itertools.combinations(range(len(labels)), 2))
  same_label = np.array([labels[i] == labels[j] for i, j in pairs])
  same_cluster = np.array([clusters[i] == clusters[j] for i, j in pairs])
  both = np.sum(same_label & same_cluster)
  chance = same_label.sum() * same_cluster.sum() / len(pairs)
  most = (same_label.sum() + same_cluster.sum()) / 2
  found = scores.ari(labels, clusters)
  assert found == pytest.approx((both - chance) / (most - chance))


def test_ami_is_what_is_shared_above_chance():
  labels, clusters = draw(0, n=24)
  rng = np.random.default_rng(1)
  h, g = entropy(labels), entropy(clusters)

  def shared(other):
    return h + g - entropy(labels, other)

  chance = np.mean([shared(rng.permutation(clusters)) for _ in range(4000)])
  expected = (shared(clusters) - chance) / ((h + g) / 2 - chance)
  assert scores.ami(labels, clusters) == pytest.approx(expected, abs=0.01)


def devkit_ap(targets, confidence):
  """VOCevalcls.m, line by line."""
  order = sorted(range(len(targets)), key=lambda i: -confidence[i])
  order = [i for i in order if targets[i] != 0]
  recall, precision = [0.0], [0.0]
  true = false = 0
  for i in order:
    true += targets[i] > 0
    false += targets[i] < 0
    recall.append(true / np.sum(targets > 0))
    precision.append(true / (true + false))
  recall.append(1.0)
  precision.append(0.0)
  for i in reversed(range(len(precision) - 1)):
    precision[i] = max(precision[i], precision[i + 1])
  return sum(
    (recall[i] - recall[i - 1]) * precision[i]
    for i in range(1, len(recall))
    if recall[i] != recall[i - 1]
  )


def test_voc_ap_by_hand():
  # Precision at the positives: 1/2, 2/3, 3/5; so 2/3, 2/3, 3/5.
  targets = np.array([-1, 1, 1, -1, 1])
  ranked = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
  assert scores.voc_ap(targets, ranked) == pytest.approx((4 / 3 + 3 / 5) / 3)
  # Difficult ones leave no trace, wherever they stand.
  found = scores.voc_ap(
    np.insert(targets, [0, 2, 5], 0), np.insert(ranked, [0, 2, 5], [9, 3.5, 0])
  )
  assert found == scores.voc_ap(targets, ranked)


@pytest.mark.parametrize("seed", range(5))
def test_voc_ap_is_the_development_kit_s(seed):
  rng = np.random.default_rng(seed)
  targets = rng.choice([1, 0, -1], 80, p=[0.2, 0.1, 0.7])
  ranked = rng.normal(size=80) + targets
  # Ties: the earlier first.
  ranked = np.round(ranked, 1)
  found = scores.voc_ap(targets, ranked)
  assert found == pytest.approx(devkit_ap(targets, ranked))


def test_voc_ap_and_scikit_learn_s():
  # Where precision only falls they agree; else VOC's is higher.
  ranked = -np.arange(9.0)
  falling = np.array([1, 1, -1, 1, -1, -1, 1, -1, -1])
  sklearn = average_precision_score(falling == 1, ranked)
  assert scores.voc_ap(falling, ranked) == pytest.approx(sklearn)
  rising = falling[::-1].copy()
  sklearn = average_precision_score(rising == 1, ranked)
  assert scores.voc_ap(rising, ranked) > sklearn + 0.05


def test_no_positive_has_no_ap():
  with pytest.raises(ValueError, match="no positive"):
    scores.voc_ap(np.array([0, -1]), np.array([1.0, 2.0]))


def test_recall_at():
  first = np.array([0, 4, 5, 0])
  found = [scores.recall_at(first, k) for k in (1, 5, 10)]
  assert found == [0.5, 0.75, 1.0]
