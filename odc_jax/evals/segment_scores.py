"""Metrics of segmentations in time: arrays in, numbers out.

Of frames, all sequences one after the other. Labels are ground truth, clusters
what was found; -1 is background in both, and -2 no cluster at all. Two lines of
papers count in two ways, which differ in F1 and in what background is:

* `full` and `per_sequence`: ASOT's, src/metrics.py. Frames whose label is
  background are left out, and no cluster is background.
* `cte`: CTE's, which TOT and most earlier papers have: ute/eval_utils/
  accuracy_class.py and f1_score.py.

Clusters are matched with labels one to one, so that most frames are right.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment
from sklearn import metrics

NUM_DRAWS, NUM_SAMPLES = 50, 15

BACKGROUND = -1
NO_CLUSTER = -2

# Cluster -> the label that it stands for.
Match = dict[int, int]


class Scores(NamedTuple):
  """How well segments were found.

  Attributes:
    mof: Frames that are right, of all frames.
    f1: Of precision and recall of segments.
    miou: Mean over labels of intersection over union.
  """

  mof: float
  f1: float
  miou: float


class WithBackground(NamedTuple):
  """CTE's scores, without frames of background and with them.

  Attributes:
    mof: Frames that are right, of those that are no background.
    f1: Of segments; a mean over the draws.
    miou: Mean over labels but background.
    mof_background: Frames that are right, of all.
    miou_background: The sum of all labels', background's too, over their
      number without background.
  """

  mof: float
  f1: float
  miou: float
  mof_background: float
  miou_background: float


def match(
  labels: Int[np.ndarray, "n"], clusters: Int[np.ndarray, "n"]
) -> Match:
  """Returns the label of each cluster that has one: as many as of the fewer."""
  of_labels, of_clusters, table = _contingency(labels, clusters)
  rows, columns = linear_sum_assignment(table, maximize=True)
  return {
    int(of_clusters[column]): int(of_labels[row])
    for row, column in zip(rows, columns, strict=True)
  }


def full(
  labels: Int[np.ndarray, "n"],
  clusters: Int[np.ndarray, "n"],
  num_sequences: int,
  draws: Int[np.ndarray, "_ s _"],
) -> Scores:
  """Returns ASOT's scores of all frames, matched at once.

  A segment is found where more than half of the frames drawn from it are
  right. Precision is over labels x sequences, recall over segments.

  Args:
    labels: Of the frames, none of them background.
    clusters: Of the frames.
    num_sequences: How many sequences they are of.
    draws: Frames drawn from each segment, as `majority_draws` draws them.
  """
  named = _named(clusters, match(labels, clusters))
  of_labels = np.unique(labels)
  starts = _bounds(labels)[:-1]
  right = named[draws] == labels[starts][None, :, None]
  num_right = np.sum(np.mean(right, axis=2) > 0.5)
  precision = num_right / (num_sequences * len(of_labels) * len(draws))
  recall = num_right / (len(starts) * len(draws) + 1e-8)
  return Scores(
    float(np.mean(named == labels)),
    float(2 * precision * recall / (precision + recall + 1e-8)),
    sum(_iou(labels, named, label) for label in of_labels) / len(of_labels),
  )


def per_sequence(
  labels: Int[np.ndarray, "n"],
  clusters: Int[np.ndarray, "n"],
  lengths: Int[np.ndarray, "v"],
  rng: np.random.Generator,
) -> Scores:
  """Returns the mean of the sequences' own ASOT scores, each matched anew.

  Args:
    labels: As for `full`.
    clusters: As for `full`.
    lengths: Frames of each sequence; a sequence of none does not count.
    rng: Draws frames of segments.
  """
  ends = np.cumsum(lengths)
  found = [
    full(labels[a:b], clusters[a:b], 1, majority_draws(labels[a:b], rng))
    for a, b in zip(ends - lengths, ends, strict=True)
    if b > a
  ]
  return Scores(*np.mean(found, axis=0).tolist())


def majority_draws(
  labels: Int[np.ndarray, "n"], rng: np.random.Generator
) -> Int[np.ndarray, "_ s _"]:
  """Draws frames from every segment, the first of the next one included."""
  bounds = _bounds(labels)
  return _draws(bounds[:-1], bounds[1:], rng)


def cte(
  labels: Int[np.ndarray, "n"],
  clusters: Int[np.ndarray, "n"],
  num_clusters: int,
  num_sequences: int,
  draws: Int[np.ndarray, "_ s _"],
  has_background: bool,
) -> WithBackground:
  """Returns CTE's scores.

  For F1 a segment counts by its share of right frames among those drawn;
  precision is over clusters x sequences, recall over segments. Segments are
  those of all sequences joined, without the last, as the official code has it.

  Args:
    labels: Of the frames.
    clusters: Of the frames.
    num_clusters: K.
    num_sequences: How many sequences they are of.
    draws: Frames drawn from each segment of those that are no background, as
      `share_draws` draws them.
    has_background: Whether -1 among the labels is background, which -1 among
      the clusters then stands for.
  """
  found = _cte_match(labels, clusters, has_background)
  named = _named(clusters, found)
  of_labels = np.unique(labels)
  is_action = labels != BACKGROUND
  ious = {int(label): _iou(labels, named, label) for label in of_labels}
  without = [ious[label] for label in ious if label != BACKGROUND]
  actions, of_actions = labels[is_action], named[is_action]
  if not has_background:
    actions, of_actions = labels, named
  starts = _bounds(actions)[:-2]
  right = of_actions[draws] == actions[starts][None, :, None]
  shares = np.sum(np.mean(right, axis=2), axis=1)
  precision = shares / (num_clusters * num_sequences)
  recall = shares / len(starts)
  each = 2 * precision * recall / (precision + recall + 1e-8)
  return WithBackground(
    float(np.mean(named[is_action] == labels[is_action])),
    float(np.mean(each)),
    float(sum(without) / len(without)),
    float(np.mean(named == labels)),
    float(sum(ious.values()) / len(without)),
  )


def share_draws(
  labels: Int[np.ndarray, "n"], rng: np.random.Generator
) -> Int[np.ndarray, "_ s _"]:
  """Draws frames from every segment but the last, its ends included.

  Args:
    labels: Without frames of background.
    rng: Draws them.
  """
  bounds = _bounds(labels)
  return _draws(bounds[:-2], bounds[1:-1] - 1, rng)


def _draws(first, last, rng):
  shape = (NUM_DRAWS, len(first), NUM_SAMPLES)
  return rng.integers(first[None, :, None], last[None, :, None] + 1, shape)


def _bounds(labels) -> Int[np.ndarray, "_"]:
  """Returns where runs of equal labels start, and the last frame."""
  changes = np.flatnonzero(np.diff(labels)) + 1
  return np.concatenate([[0], changes, [len(labels) - 1]])


def _contingency(labels, clusters):
  """Returns the labels, the clusters, and the frames that they share."""
  of_labels, of_clusters = np.unique(labels), np.unique(clusters)
  table = metrics.cluster.contingency_matrix(labels, clusters)
  chosen = of_clusters != NO_CLUSTER
  return of_labels, of_clusters[chosen], table[:, chosen]


def _cte_match(labels, clusters, has_background) -> Match:
  """Returns the match of CTE: background is that of the ground truth.

  Where no cluster is background, the last cluster is taken for it.
  """
  of_labels, of_clusters, table = _contingency(labels, clusters)
  size = max(table.shape)
  square = np.zeros((size, size), np.int64)
  square[: table.shape[0], : table.shape[1]] = table
  of_clusters = _padded(of_clusters, size)
  of_labels = _padded(of_labels, size)
  if has_background:
    most = square.max()
    row = int(np.flatnonzero(of_labels == BACKGROUND)[0])
    if not np.any(of_clusters == BACKGROUND):
      of_clusters[-1] = BACKGROUND
    column = int(np.flatnonzero(of_clusters == BACKGROUND)[0])
    square[row, :], square[:, column] = 0, 0
    square[row, column] = size * most
  rows, columns = linear_sum_assignment(square, maximize=True)
  return {
    int(of_clusters[column]): int(of_labels[row])
    for row, column in zip(rows, columns, strict=True)
  }


def _padded(found, size) -> np.ndarray:
  """Appends the smallest numbers that are not used."""
  more = (i for i in range(2 * size) if i not in set(found.tolist()))
  return np.array([*found, *(next(more) for _ in range(size - len(found)))])


def _named(clusters, found: Match):
  """Returns the label that every frame's cluster stands for; -3 for none."""
  named = np.full(clusters.shape, -3, np.int64)
  for cluster, label in found.items():
    named[clusters == cluster] = label
  return named


def _iou(labels, named, label) -> float:
  a, b = labels == label, named == label
  return float(np.sum(a & b) / np.sum(a | b))
