"""How well the run's own clusters agree with the labels."""

from collections.abc import Iterator

import numpy as np
from sklearn import metrics

from odc_jax.evals.subject import Subject


def evaluate(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields NMI, ARI and purity of the run's clusters, where there are labels.

  Of the training set: the run has clusters for nothing else.
  """
  labels, clusters = subject.train.features.labels, subject.clusters
  known = labels >= 0
  if clusters is None or not known.any():
    return
  labels, clusters = labels[known], clusters[known]
  yield "eval/nmi_labels", nmi(labels, clusters)
  yield "eval/ari_labels", float(metrics.adjusted_rand_score(labels, clusters))
  yield "eval/purity_labels", purity(labels, clusters)


def nmi(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the mutual information over the mean of both entropies.

  The arithmetic mean: scikit-learn's default since 0.22. Papers up to 2019,
  DeepCluster's among them, mean the geometric one.
  """
  return float(
    metrics.normalized_mutual_info_score(a, b, average_method="arithmetic")
  )


def purity(labels: np.ndarray, clusters: np.ndarray) -> float:
  """Returns the fraction of images with their cluster's most common label."""
  table = metrics.cluster.contingency_matrix(labels, clusters, sparse=True)
  return float(table.max(axis=0).sum() / len(labels))
