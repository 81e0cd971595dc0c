"""k-nearest-neighbour classification of frozen features, on the devices."""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import neighbors
from odc_jax.distributed import processes
from odc_jax.evals.inputs import Subject

# Queries at once; the devices share a copy of their features.
CHUNK = 65_536

# DINO and mmselfsup report these.
PUBLISHED_KS = (10, 20, 100, 200)
PUBLISHED_TEMPERATURE = 0.07


def evaluate(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields kNN's top-1 on the backbone's features, where there are labels.

  Yields:
    `eval/knn_top1`, with the config's `eval.knn.k` and `eval.knn.temperature`:
    one number to watch a run by. `eval/knn_top1_k10` and so on: with the
    published numbers of neighbours and the published temperature, of those
    numbers that the index has.

  Source: mmselfsup and DINO `knn_eval.py`.
  """
  train, test = subject.train, subject.test
  if not len(train.rows) or not len(test.rows):
    return
  own = subject.config.eval.knn
  ks = [k for k in PUBLISHED_KS if k <= len(train.rows)]
  cosines, classes = nearest(
    train.features.features,
    train.row_labels(),
    test.features.features,
    test.rows,
    k=max(own.k, *ks, 1),
  )

  def top1(k, temperature):
    predicted = vote(cosines, classes, k=k, temperature=temperature)
    return float(np.mean(predicted == test.labels))

  yield "eval/knn_top1", top1(own.k, own.temperature)
  for k in ks:
    yield f"eval/knn_top1_k{k}", top1(k, PUBLISHED_TEMPERATURE)


def nearest(
  index: Float[Array, "rows c"],
  labels: np.ndarray,
  queries: Float[Array, "query_rows c"],
  wanted: np.ndarray,
  *,
  k: int,
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
  """Finds the most similar rows of `index` for rows of `queries`.

  Similarity is the cosine; see `neighbors.nearest`.

  Args:
    index: Features, rows split over the devices; may be padded.
    labels: Classes of the first rows of `index`; rows with -1, and rows past
      the end, are not in the index.
    queries: Features, rows split over the devices.
    wanted: Which rows of `queries` to look up.
    k: How many; fewer are found if the index has fewer.

  Returns:
    The cosines, falling, and the classes of what was found.
  """
  rows = index.shape[0]
  padded = np.full((rows,), -1, np.int32)
  padded[: len(labels)] = labels
  k = min(k, int((padded >= 0).sum()))

  mesh = jax.sharding.get_mesh()
  split = mesh_lib.rows(mesh)
  valid = jax.jit(lambda valid: valid, out_shardings=split)(padded >= 0)
  take = jax.jit(lambda queries, chunk: queries[chunk], out_shardings=split)
  size = mesh_lib.divisible(min(CHUNK, len(wanted)), mesh)
  found = []
  for start in range(0, len(wanted), size):
    chunk = wanted[start : start + size]
    # The last chunk repeats a row: one shape, one compilation.
    filled = np.pad(chunk, (0, size - len(chunk)), mode="edge")
    own = take(queries, filled.astype(np.int32))
    closest, cosines = (
      processes.to_host(array)[: len(chunk)]
      for array in neighbors.nearest(own, index, valid, k=k)
    )
    found.append((cosines, padded[closest]))
  return (
    np.concatenate([cosines for cosines, _ in found]),
    np.concatenate([classes for _, classes in found]),
  )


def vote(
  cosines: Float[np.ndarray, "q n"],
  classes: Int[np.ndarray, "q n"],
  *,
  k: int,
  temperature: float,
) -> Int[np.ndarray, "q"]:
  """Returns the class that the nearest neighbours vote for.

  Args:
    cosines: Of the neighbours, falling.
    classes: Theirs.
    k: How many of them vote.
    temperature: A neighbour's vote weighs exp(cosine / temperature); 0: every
      vote weighs the same. Of classes with equal votes the smallest wins.
  """
  cosines, classes = cosines[:, :k].astype(np.float64), classes[:, :k]
  num_classes = int(classes.max()) + 1
  weights = np.ones_like(cosines)
  if temperature:
    # Only ratios count: relative to the nearest none overflows.
    weights = np.exp((cosines - cosines[:, :1]) / temperature)
  rows = np.arange(len(classes))[:, None]
  votes = np.bincount(
    (rows * num_classes + classes).ravel(),
    weights.ravel(),
    minlength=len(classes) * num_classes,
  )
  return np.argmax(votes.reshape(-1, num_classes), axis=1)
