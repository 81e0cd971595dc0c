"""How well clusters of frames agree with segments of sequences."""

from collections.abc import Iterator

import numpy as np

from odc_jax.data.sequences import Sequences
from odc_jax.evals import segment_scores
from odc_jax.evals.inputs import Subject


def evaluate(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields MoF, F1 and mIoU of the run's own clusters of frames.

  Of the frames of the training set that have ground truth. A frame without a
  cluster is wrong.

  Args:
    subject: Of sequences. Its `clusters` are compared; nothing where it has
      none.
  """
  source = subject.train.source
  assert isinstance(source, Sequences)  # as `check_evaluators` made sure
  labels = source.labels.astype(np.int64)
  if subject.clusters is None or not np.any(labels >= 0):
    return
  num_clusters, num_sequences = subject.config.num_clusters, len(source.lengths)
  clusters = subject.clusters.astype(np.int64)
  clusters[clusters == num_clusters] = segment_scores.NO_CLUSTER
  rng = np.random.default_rng(subject.config.seed)

  known = labels >= 0
  of_sequences = np.bincount(
    source.sequence_ids()[known], minlength=num_sequences
  )
  ours = labels[known], clusters[known]
  draws = segment_scores.majority_draws(ours[0], rng)
  found = segment_scores.full(*ours, num_sequences, draws)
  yield "eval/mof_labels", found.mof
  yield "eval/miou_labels", found.miou
  yield "eval/f1_majority_labels", found.f1
  found = segment_scores.per_sequence(*ours, of_sequences, rng)
  yield "eval/mof_sequence_labels", found.mof
  yield "eval/miou_sequence_labels", found.miou
  yield "eval/f1_majority_sequence_labels", found.f1

  counted = known | source.background
  draws = segment_scores.share_draws(ours[0], rng)
  has_background = bool(np.any(source.background))
  if len(draws[0]):  # of one segment none would count
    found = segment_scores.cte(
      labels[counted],
      clusters[counted],
      num_clusters,
      num_sequences,
      draws,
      has_background,
    )
    yield "eval/f1_share_labels", found.f1
    if has_background:
      yield "eval/mof_background_labels", found.mof_background
      yield "eval/miou_background_labels", found.miou_background
