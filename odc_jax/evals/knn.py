"""k-nearest-neighbour classification of frozen features, on the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odc_jax import mesh as mesh_lib
from odc_jax.evals.features import Features
from odc_jax.memory import normalize
from odc_jax.mesh import AXIS, REPLICATED, ROWS

# Queries at once; a device holds this many times its rows of similarities.
CHUNK = 256


def evaluate(config, train: Features, test: Features | None, clusters):
  """Yields `eval/knn_top1`, where there are labels.

  Without a test set the even rows of the training set are the index and its
  odd rows the queries.

  Args:
    config: Reads `eval.knn_k` and `eval.knn_temperature`.
    train: The training set.
    test: The held-out set or None.
    clusters: Unused.
  """
  del clusters
  index_labels = train.labels
  queries = train if test is None else test
  truth = queries.labels
  wanted = np.flatnonzero(truth >= 0)
  if test is None:
    is_even = np.arange(len(index_labels)) % 2 == 0
    wanted = wanted[wanted % 2 == 1]
    index_labels = np.where(is_even, index_labels, -1)
  if not len(wanted) or not (index_labels >= 0).any():
    return
  predicted = classify(
    train.features,
    index_labels,
    queries.features,
    wanted,
    k=config.eval.knn_k,
    temperature=config.eval.knn_temperature,
  )
  yield "eval/knn_top1", float(np.mean(predicted == truth[wanted]))


def classify(
  index: Float[Array, "rows c"],
  labels: np.ndarray,
  queries: Float[Array, "query_rows c"],
  wanted: np.ndarray,
  *,
  k: int,
  temperature: float,
) -> np.ndarray:
  """Classifies rows of `queries` by the most similar rows of `index`.

  Similarity is the cosine. Each device searches its own rows; k candidates a
  device and query are all that travels.

  Args:
    index: Features, rows split over the devices; may be padded.
    labels: Classes of the first rows of `index`; rows with -1, and rows past
      the end, are not in the index.
    queries: Features, rows split over the devices.
    wanted: Which rows of `queries` to classify.
    k: Neighbours that vote; fewer if the index has fewer.
    temperature: A neighbour's vote weighs exp(cosine / temperature); 0: every
      vote weighs the same. Of classes with equal votes the smallest wins.

  Returns:
    A class for every wanted row, int64.
  """
  rows = index.shape[0]
  padded = np.full((rows,), -1, np.int32)
  padded[: len(labels)] = labels
  k = min(k, int((padded >= 0).sum()))
  num_classes = int(padded.max()) + 1

  index_unit, query_unit = _normalize(index), _normalize(queries)
  predicted = []
  for start in range(0, len(wanted), CHUNK):
    chunk = wanted[start : start + CHUNK]
    # The last chunk repeats a row: one shape, one compilation.
    filled = np.pad(chunk, (0, CHUNK - len(chunk)), mode="edge")
    out = _classify_chunk(
      index_unit,
      padded,
      query_unit,
      filled.astype(np.int32),
      k=k,
      temperature=temperature,
      num_classes=num_classes,
    )
    predicted.append(np.asarray(out)[: len(chunk)])
  return np.concatenate(predicted).astype(np.int64)


_normalize = jax.jit(normalize)


@functools.partial(jax.jit, static_argnames=("k", "temperature", "num_classes"))
def _classify_chunk(
  index: Float[Array, "rows c"],
  labels: Int[Array, "rows"],
  queries: Float[Array, "query_rows c"],
  wanted: Int[Array, "q"],
  *,
  k: int,
  temperature: float,
  num_classes: int,
) -> Int[Array, "q"]:
  def local(index, labels, chunk):
    similarity = jnp.matmul(chunk, index.T, precision="highest")
    similarity = jnp.where(labels[None, :] >= 0, similarity, -jnp.inf)
    top, rows = jax.lax.top_k(similarity, min(k, index.shape[0]))
    candidates = jax.lax.all_gather(
      (top, labels[rows]), AXIS, axis=1, tiled=True
    )
    top, where = jax.lax.top_k(candidates[0], k)
    return top, jnp.take_along_axis(candidates[1], where, axis=1)

  top, classes = mesh_lib.per_shard(
    local, in_specs=(ROWS, ROWS, REPLICATED), out_specs=(REPLICATED, REPLICATED)
  )(index, labels, mesh_lib.replicate(queries[wanted]))
  if temperature:
    # Only ratios count: relative to the nearest none overflows.
    weights = jnp.exp((top - top[:, :1]) / temperature)
  else:
    weights = jnp.ones_like(top)
  votes = jnp.sum(
    jax.nn.one_hot(classes, num_classes) * weights[..., None], axis=1
  )
  return mesh_lib.replicate(jnp.argmax(votes, axis=1))
