"""Reverse linear probing: how well labels and attributes tell the cluster.

A linear probe predicts labels from features. This one goes the other way: from
what is known of an image, its label and the attributes of a user's table, to
the cluster that it is in. What it tells on images that it has not learnt from
is a lower bound of the mutual information of concepts and clusters.

Source: Laina, Asano, Vedaldi, Measuring the interpretability of unsupervised
representations via quantized reverse probing, ICLR 2022. Its repository,
iro-cp/ssl-qrp, holds no code.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from odc_jax import mesh as mesh_lib
from odc_jax.distributed import processes
from odc_jax.evals import linear
from odc_jax.evals.inputs import Subject
from odc_jax.files import write_json
from odc_jax.results import attributes
from odc_jax.results.attributes import Column

# Rows whose logits exist at once.
_CHUNK = 4096


class Information(NamedTuple):
  """What concepts tell of the clusters of images, in nats.

  Attributes:
    cross_entropy: Of the probe's prediction of the cluster, CE(q | y).
    entropy: Of the clusters of the same images, H(q).
    top1: Images whose cluster is the likeliest.
  """

  cross_entropy: float
  entropy: float
  top1: float

  @property
  def nats(self) -> float:
    """H(q) - CE(q | y), at most the mutual information I(q; y)."""
    return self.entropy - self.cross_entropy

  @property
  def share(self) -> float:
    """The former over H(q): 1 where the concepts say the cluster.

    0 where they say nothing, or there is one cluster only; below it where the
    probe has learnt what does not hold for other images.
    """
    return self.nats / self.entropy if self.entropy else 0.0


def evaluate(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields `eval/reverse_information_<column>` and `eval/reverse_share_...`.

  Of the label and of each attribute on its own; of more than one also of `all`
  of them together, with `eval/reverse_top1_all`. The even images of the
  training set are learned from, the odd ones tested on; those whose cluster has
  no even image do not count. The attributes that tell each cluster best are
  left in `attributes.json`, by all images.

  Args:
    subject: Its `clusters` are told; nothing where it has none. Reads
      `config.eval.attributes`, the table.

  Raises:
    UserError: The table cannot be read, or has no row of any image.
  """
  path = subject.config.eval.get("attributes", "")
  if subject.clusters is None:
    return
  columns = _columns(subject, path)
  if not columns:
    return
  clusters = np.asarray(subject.clusters)
  if path and subject.folder is not None and processes.is_first():
    described = attributes.describe(
      columns, clusters, subject.config.num_clusters
    )
    write_json(subject.folder / attributes.FILE, described)
  # Clusters without an image to learn from have no number.
  _, seen = np.unique(clusters[::2], return_inverse=True)
  names = {int(c): int(q) for c, q in zip(clusters[::2], seen, strict=True)}
  q = np.array([names.get(int(c), -1) for c in clusters], np.int32)
  for column in columns:
    found = of_column(column, q)
    if found is not None:
      yield f"eval/reverse_information_{column.name}", found.nats
      yield f"eval/reverse_share_{column.name}", found.share
  if len(columns) > 1:
    found = _of_all(subject, columns, q)
    if found is not None:
      yield "eval/reverse_information_all", found.nats
      yield "eval/reverse_share_all", found.share
      yield "eval/reverse_top1_all", found.top1


def of_column(column: Column, q: Int[np.ndarray, "n"]) -> Information | None:
  """Returns what one attribute tells of the clusters.

  A linear map of one indicator per value is a distribution per value: that of
  the even images, and of one more that is spread as all of them are.

  Args:
    column: The attribute.
    q: Clusters from 0, -1 where they do not count.

  Returns:
    None without an image to learn from or to be tested on.
  """
  known = (q >= 0) & (column.codes >= 0)
  train = known & (np.arange(len(q)) % 2 == 0)
  test = known & (np.arange(len(q)) % 2 == 1)
  if not train.any() or not test.any():
    return None
  k = int(q.max()) + 1
  counts = attributes.contingency(
    Column("", column.values, np.where(train, column.codes, -1)),
    np.maximum(q, 0),
    k,
  )
  prior = np.bincount(q[(q >= 0) & (np.arange(len(q)) % 2 == 0)], minlength=k)
  prior = prior / prior.sum()
  table = (counts + prior[:, None]) / (counts.sum(axis=0) + 1)
  codes, clusters = column.codes[test], q[test]
  likeliest = np.argmax(table, axis=0)
  return Information(
    float(-np.mean(np.log(table[clusters, codes]))),
    _entropy(clusters),
    float(np.mean(likeliest[codes] == clusters)),
  )


def of_probe(
  weights: Float[np.ndarray, "m k"],
  bias: Float[np.ndarray, "k"],
  concepts: Float[np.ndarray, "n m"],
  q: Int[np.ndarray, "n"],
) -> Information:
  """Returns what a linear probe tells of the clusters of images.

  Args:
    weights: Of concepts on clusters.
    bias: Of clusters.
    concepts: Of the images.
    q: Their clusters, from 0.
  """
  total, hits = 0.0, 0
  for start in range(0, len(q), _CHUNK):
    rows = slice(start, start + _CHUNK)
    logits = concepts[rows].astype(np.float64) @ weights + bias
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[np.arange(len(logits)), q[rows]]
    total += float(np.sum(np.log(np.exp(logits).sum(axis=1)) - own))
    hits += int(np.sum(np.argmax(logits, axis=1) == q[rows]))
  return Information(total / len(q), _entropy(q), hits / len(q))


def _of_all(
  subject: Subject, columns: Sequence[Column], q: Int[np.ndarray, "n"]
) -> Information | None:
  """Returns what all attributes together tell, by logistic regression.

  The objective and its optimum are those of `linear.last_lbfgs`, of concepts
  as they are: 0 or 1.
  """
  known = (q >= 0) & np.any([c.codes >= 0 for c in columns], axis=0)
  train = np.flatnonzero(known[::2]) * 2
  test = np.flatnonzero(known[1::2]) * 2 + 1
  if not len(train) or not len(test):
    return None
  mesh, m = subject.mesh, sum(len(column.values) for column in columns)
  padded = np.zeros((mesh_lib.divisible(len(train), mesh), m), np.float32)
  padded[: len(train)] = _concepts(columns, train)
  y = np.full(len(padded), -1, np.int32)
  y[: len(train)] = q[train]
  # The same on every host, of which each places its own rows.
  x = jax.make_array_from_callback(
    padded.shape, mesh_lib.rows(mesh), lambda place: padded[place]
  )
  mean, deviation = jax.device_put(
    (np.zeros(m, np.float32), np.ones(m, np.float32)),
    mesh_lib.replicated(mesh),
  )
  weights, bias = linear.regress(
    x,
    y,
    mean,
    deviation,
    int(q.max()) + 1,
    1 / len(train),
    subject,
  )
  return of_probe(weights, bias, _concepts(columns, test), q[test])


def _concepts(columns: Sequence[Column], rows) -> Float[np.ndarray, "n m"]:
  """Returns an indicator for every value of every attribute, of some images."""
  return np.concatenate(
    [
      (column.codes[rows, None] == np.arange(len(column.values))[None])
      for column in columns
    ],
    axis=1,
  ).astype(np.float32)


def _columns(subject: Subject, path: str) -> list[Column]:
  """Returns the label, where it is known, and the attributes of the table."""
  columns = []
  features = subject.train.features
  if np.any(features.labels >= 0):
    values, codes = np.unique(features.labels, return_inverse=True)
    if values[0] < 0:
      values, codes = values[1:], codes - 1
    names = tuple(str(value) for value in values.tolist())
    columns.append(Column("labels", names, codes))
  if path:
    keys: dict[int, str] = {}
    for part in processes.gather(list(features.keys.items())):
      keys.update((int(index), key) for index, key in part)
    n = len(features.labels)
    columns += attributes.read(pathlib.Path(path), keys, n)
  return columns


def _entropy(q: Int[np.ndarray, "n"]) -> float:
  """Returns the entropy of the clusters' frequencies, in nats."""
  share = np.bincount(q) / len(q)
  share = share[share > 0]
  return float(-np.sum(share * np.log(share)))
