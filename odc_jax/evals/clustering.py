"""How well clusters agree with the labels: the run's own, and k-means'."""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Bool, Int

from odc_jax.clustering.kmeans import kmeans as lloyd
from odc_jax.distributed import processes
from odc_jax.evals.inputs import Subject
from odc_jax.evals.scores import accuracy_one_to_one, ami, ari, nmi, purity
from odc_jax.passes.extract import unit

# As many starts as in the literature; iterations end at a fixed point, which is
# usually reached before.
_NUM_STARTS, _NUM_ITERS = 10, 100


def evaluate(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields the agreement of the run's own clusters with the labels.

  On all labelled images of the training set. `eval/acc_labels` only where there
  are as many clusters as classes.

  Args:
    subject: Its `clusters` are compared; nothing where it has none.
  """
  labels, known = _labels(subject)
  if subject.clusters is None or not len(labels):
    return
  clusters = subject.clusters[known]
  yield "eval/nmi_labels", nmi(labels, clusters)
  yield "eval/nmi_geometric_labels", nmi(labels, clusters, "geometric")
  yield "eval/ami_labels", ami(labels, clusters)
  yield "eval/ari_labels", ari(labels, clusters)
  yield "eval/purity_labels", purity(labels, clusters)
  num_clusters = subject.config.num_clusters
  if num_clusters == len(np.unique(labels)):
    accuracy = accuracy_one_to_one(labels, clusters, num_clusters)
    yield "eval/acc_labels", accuracy


def assignment(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields the agreement of assigned clusters with the labels, as published.

  Every image is assigned in evaluation mode, by the heads' vote or the nearest
  centroid; clusters and classes are matched on the images that are scored, as
  by SCAN's and TEMI's codes. The accuracy only where there are as many clusters
  as classes; the test set only where it is not a part of the training set.

  Args:
    subject: Its `assign` is used; nothing where it has none.
  """
  labels, known = _labels(subject)
  if subject.assign is None or not len(labels):
    return
  clusters = subject.assign(subject.train.features)[known]
  yield from _assigned("train", labels, clusters, subject.config.num_clusters)
  test = subject.test
  if test.features is not subject.train.features and len(test.labels):
    clusters = subject.assign(test.features)[test.rows]
    number = subject.config.num_clusters
    yield from _assigned("test", test.labels, clusters, number)


def _assigned(split, labels, clusters, num_clusters):
  if num_clusters == len(np.unique(labels)):
    accuracy = accuracy_one_to_one(labels, clusters, num_clusters)
    yield f"eval/{split}_acc_assigned", accuracy
  yield f"eval/{split}_nmi_assigned", nmi(labels, clusters)
  yield f"eval/{split}_ari_assigned", ari(labels, clusters)


def kmeans(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields the agreement of k-means on the frozen features with the labels.

  All images of the training set are clustered, into as many clusters as there
  are classes; those with a label are compared. The features are the backbone's,
  scaled to unit length.

  Args:
    subject: Its `config.seed` chooses the starts.
  """
  labels, known = _labels(subject)
  if not len(labels):
    return
  num_clusters = len(np.unique(labels))
  features = unit(subject.train.features.features)
  best = None
  for start in range(_NUM_STARTS):
    subject.check()
    found = lloyd(
      features,
      jax.random.fold_in(jax.random.key(subject.config.seed), start),
      num_examples=len(known),
      num_clusters=num_clusters,
      num_iters=_NUM_ITERS,
      init="k-means++",
    )
    if best is None or float(found.inertia) < float(best.inertia):
      best = found
  assert best is not None
  clusters = processes.to_host(best.assignments)[: len(known)][known]
  accuracy = accuracy_one_to_one(labels, clusters, num_clusters)
  yield "eval/kmeans_acc_labels", accuracy
  yield "eval/kmeans_nmi_labels", nmi(labels, clusters)
  geometric = nmi(labels, clusters, "geometric")
  yield "eval/kmeans_nmi_geometric_labels", geometric
  yield "eval/kmeans_ami_labels", ami(labels, clusters)
  yield "eval/kmeans_ari_labels", ari(labels, clusters)


def _labels(
  subject: Subject,
) -> tuple[Int[np.ndarray, "m"], Bool[np.ndarray, "n"]]:
  """Returns the labels that are known, and of which training images."""
  labels = subject.train.features.labels
  known = labels >= 0
  return labels[known], known
