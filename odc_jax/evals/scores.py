"""Metrics of clusters, rankings and scores: arrays in, one number out.

Labels are ground truth, clusters what was found; both are whole numbers [n],
one for each image.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn import metrics


def accuracy_one_to_one(
  labels: Int[np.ndarray, "n"],
  clusters: Int[np.ndarray, "n"],
  num_clusters: int,
) -> float:
  """Returns the best accuracy where each cluster stands for one class.

  The clusters are matched with the classes one to one (Hungarian algorithm) so
  that as many images as possible lie in the cluster of their class: the ACC of
  the literature on image clustering.

  Args:
    labels: Of the images.
    clusters: Of the images, from 0; some may be empty.
    num_clusters: As many as there are classes among the labels.

  Raises:
    ValueError: The two numbers differ. A map of several clusters to a class is
      another measure: see `purity`.
  """
  num_classes = len(np.unique(labels))
  if num_classes != num_clusters:
    raise ValueError(
      f"{num_clusters} clusters cannot be matched one to one with "
      f"{num_classes} classes"
    )
  # A row for every class, a column for every cluster that is not empty.
  table = metrics.cluster.contingency_matrix(labels, clusters)
  rows, columns = linear_sum_assignment(table, maximize=True)
  return float(table[rows, columns].sum() / len(labels))


def nmi(
  a: Int[np.ndarray, "n"],
  b: Int[np.ndarray, "n"],
  average: Literal["arithmetic", "geometric"] = "arithmetic",
) -> float:
  """Returns the mutual information over the mean of both entropies.

  Args:
    a: Labels or clusters.
    b: Labels or clusters of the same images.
    average: Which mean: the arithmetic one is scikit-learn's default since
      0.22; papers up to 2019, DeepCluster's among them, mean the geometric one.
  """
  return float(
    metrics.normalized_mutual_info_score(a, b, average_method=average)
  )


def ami(labels: Int[np.ndarray, "n"], clusters: Int[np.ndarray, "n"]) -> float:
  """Returns the mutual information above chance, over the mean entropy's.

  0 for random clusters, however many: unlike NMI, which grows with them.
  """
  return float(metrics.adjusted_mutual_info_score(labels, clusters))


def ari(labels: Int[np.ndarray, "n"], clusters: Int[np.ndarray, "n"]) -> float:
  """Returns the adjusted Rand index: agreement on pairs, above chance."""
  return float(metrics.adjusted_rand_score(labels, clusters))


def purity(
  labels: Int[np.ndarray, "n"], clusters: Int[np.ndarray, "n"]
) -> float:
  """Returns the fraction of images with their cluster's most common label.

  Many clusters may share a label: it is 1 where every image has a cluster of
  its own.
  """
  table = metrics.cluster.contingency_matrix(labels, clusters, sparse=True)
  return float(table.max(axis=0).sum() / len(labels))


def voc_ap(
  targets: Int[np.ndarray, "n"], scores: Float[np.ndarray, "n"]
) -> float:
  """Returns the average precision of one class, as in Pascal VOC since 2010.

  The area below the precision-recall curve after precision has been made to
  fall with recall: at each positive image it is the highest precision reached
  there or further down the ranking. `sklearn.metrics.average_precision_score`
  takes the precision at the image itself, so it is lower or equal; where
  precision falls all the way, both agree. VOC's own measure in 2007 was
  another, with 11 points; benchmarks of representations on VOC2007 use this
  one.

  Args:
    targets: 1 present, 0 difficult, -1 absent; images with 0 do not count.
    scores: Higher where the class is more likely. Of equal scores the earlier
      image comes first, as in VOC's development kit.

  Raises:
    ValueError: No image has a 1.

  Source: VOCdevkit VOCevalcls.m of 2010; calculate_ap in
  fair_self_supervision_benchmark tools/svm/svm_helper.py.
  """
  counts = targets != 0
  targets, scores = targets[counts], scores[counts]
  positive = targets[np.argsort(-scores, kind="stable")] == 1
  if not positive.any():
    raise ValueError("the average precision of no positive image is undefined")
  precision = np.cumsum(positive) / np.arange(1, len(positive) + 1)
  falling = np.maximum.accumulate(precision[::-1])[::-1]
  # Recall rises by the same amount at every positive.
  return float(np.mean(falling[positive]))


def recall_at(first: Int[np.ndarray, "q"], k: int) -> float:
  """Returns the fraction of queries with a relevant item among the k nearest.

  Args:
    first: Place of each query's first relevant item, from 0.
    k: How many items count.
  """
  return float(np.mean(first < k))
