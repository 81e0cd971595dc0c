"""k-nearest-neighbour classification of frozen features, on the devices."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odc_jax import mesh as mesh_lib
from odc_jax.evals.inputs import Subject
from odc_jax.mesh import AXIS, REPLICATED, ROWS
from odc_jax.passes.extract import unit

# Queries at once; a device holds this many times its rows of similarities.
CHUNK = 256

# What DINO and mmselfsup report.
PUBLISHED_KS = (10, 20, 100, 200)
PUBLISHED_TEMPERATURE = 0.07


def evaluate(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields kNN's top-1 on the backbone's features, where there are labels.

  Yields:
    `eval/knn_top1`, with the config's `eval.knn_k` and `eval.knn_temperature`:
    one number to watch a run by. `eval/knn_top1_k10` and so on: with the
    published numbers of neighbours and the published temperature, of those
    numbers that the index has.

  Source: mmselfsup and DINO `knn_eval.py`.
  """
  train, test = subject.train, subject.test
  if not len(train.rows) or not len(test.rows):
    return
  own = subject.config.eval
  ks = [k for k in PUBLISHED_KS if k <= len(train.rows)]
  cosines, classes = nearest(
    train.features.features,
    train.row_labels(),
    test.features.features,
    test.rows,
    k=max(own.knn_k, *ks, 1),
  )

  def top1(k, temperature):
    predicted = vote(cosines, classes, k=k, temperature=temperature)
    return float(np.mean(predicted == test.labels))

  yield "eval/knn_top1", top1(own.knn_k, own.knn_temperature)
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

  Similarity is the cosine. Each device searches its own rows; k candidates a
  device and query are all that travels.

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

  index_unit, query_unit = unit(index), unit(queries)
  found = []
  for start in range(0, len(wanted), CHUNK):
    chunk = wanted[start : start + CHUNK]
    # The last chunk repeats a row: one shape, one compilation.
    filled = np.pad(chunk, (0, CHUNK - len(chunk)), mode="edge")
    top, classes = _nearest_chunk(
      index_unit, padded, query_unit, filled.astype(np.int32), k=k
    )
    found.append((np.asarray(top)[: len(chunk)], np.asarray(classes)))
  return (
    np.concatenate([top for top, _ in found]),
    np.concatenate([classes[: len(top)] for top, classes in found]),
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


@functools.partial(jax.jit, static_argnames=("k",))
def _nearest_chunk(
  index: Float[Array, "rows c"],
  labels: Int[Array, "rows"],
  queries: Float[Array, "query_rows c"],
  wanted: Int[Array, "q"],
  *,
  k: int,
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
  def local(index, labels, chunk):
    similarity = jnp.matmul(chunk, index.T, precision="highest")
    similarity = jnp.where(labels[None, :] >= 0, similarity, -jnp.inf)
    top, rows = jax.lax.top_k(similarity, min(k, index.shape[0]))
    candidates = jax.lax.all_gather(
      (top, labels[rows]), AXIS, axis=1, tiled=True
    )
    top, where = jax.lax.top_k(candidates[0], k)
    return top, jnp.take_along_axis(candidates[1], where, axis=1)

  return mesh_lib.per_shard(
    local, in_specs=(ROWS, ROWS, REPLICATED), out_specs=(REPLICATED, REPLICATED)
  )(index, labels, mesh_lib.replicate(queries[wanted]))
