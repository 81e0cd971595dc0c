"""The inputs of an evaluator: a frozen network, and images."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from odc_jax.config import Config
from odc_jax.data.source import Source
from odc_jax.passes.extract import Features


class Split(NamedTuple):
  """Labelled images to learn from, or to be tested on.

  Attributes:
    source: The data set that they belong to.
    features: What the network makes of all of that data set.
    rows: Which of its images have a label and belong to this split.
    labels: Their labels, from 0.
  """

  source: Source
  features: Features
  rows: Int[np.ndarray, "m"]
  labels: Int[np.ndarray, "m"]

  def row_labels(self) -> Int[np.ndarray, "rows"]:
    """Returns a label for every row of the features; -1 outside the split."""
    labels = np.full(self.features.features.shape[0], -1, np.int32)
    labels[self.rows] = self.labels
    return labels


class Subject(NamedTuple):
  """A frozen network and the data that evaluators try it on.

  Attributes:
    config: The experiment; `eval` is the section for evaluators.
    mesh: The devices.
    params: Parameters of the whole network.
    batch_stats: Running statistics of the whole network.
    forward: (params, batch_stats, uint8 images [b, h, w, 3]) -> `Outputs` in
      evaluation mode, to be jitted.
    maps: (params, batch_stats, uint8 images [b, h, w, 3]) -> the backbone's
      five feature maps, from the stem's to the last, [b, h', w', c], to be
      jitted.
    train: What a classifier may learn from.
    test: What it is tested on. Where there is no test set, `train` has the even
      rows of the training set and `test` the odd ones.
    clusters: The run's own cluster of every image of the training set, [n];
      None for a network without clusters.
    check: To be called once a batch by what takes long: raises `StoppedError`
      where a signal asks to end.
    assign: What the network makes of all images of a data set -> the cluster
      that each is assigned to; None for a network without clusters.
    folder: Where an evaluator leaves what is more than a number; None: nowhere.
  """

  config: Config
  mesh: Mesh
  params: Any
  batch_stats: Any
  forward: Callable[..., Any]
  maps: Callable[..., Any]
  train: Split
  test: Split
  clusters: Int[np.ndarray, "n"] | None
  check: Callable[[], None]
  assign: Callable[[Features], Int[np.ndarray, "m"]] | None = None
  folder: pathlib.Path | None = None


def at_size(subject: Subject, section: Config) -> Subject:
  """Returns a network to be tried on images of the size that a section says.

  Args:
    subject: Whose config has the size of the training, which 0 stands for.
    section: `eval.linear_sgd`, `eval.linear_stages` or `eval.semi`; of it
      `image_size` and `eval_resize`, in pixels.
  """
  sizes = {
    key: section.get(key)
    for key in ("image_size", "eval_resize")
    if section.get(key)
  }
  if not sizes:
    return subject
  config: Config = ConfigDict(subject.config).copy_and_resolve_references()
  config.data.update(sizes)
  return subject._replace(config=config)


def splits(
  train: Source,
  train_features: Features,
  test: Source | None,
  test_features: Features | None,
) -> tuple[Split, Split]:
  """Returns what to learn from, and what to be tested on.

  Args:
    train: The training set.
    train_features: Of all of it.
    test: A labelled data set of its own, or None.
    test_features: Of all of that.
  """
  labels = train_features.labels
  rows = np.flatnonzero(labels >= 0)
  if test is not None and test_features is not None:
    test_labels = test_features.labels
    test_rows = np.flatnonzero(test_labels >= 0)
    return (
      Split(train, train_features, rows, labels[rows]),
      Split(test, test_features, test_rows, test_labels[test_rows]),
    )
  even, odd = rows[rows % 2 == 0], rows[rows % 2 == 1]
  return (
    Split(train, train_features, even, labels[even]),
    Split(train, train_features, odd, labels[odd]),
  )
