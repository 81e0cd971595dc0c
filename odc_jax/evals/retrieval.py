"""Retrieval of images of the same class by their frozen features.

The queries are the test images, the index the training images, which are
ranked by the cosine of their backbone features. Images of equal cosine stand in
the order of the data set. A query without an image of its class in the index
has nothing to find and is left out.

An index of n images stays split over the devices; what travels is the n
cosines of some queries at a time.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from odc_jax import mesh as mesh_lib
from odc_jax.evals.inputs import Subject
from odc_jax.evals.scores import recall_at
from odc_jax.mesh import AXIS, REPLICATED, ROWS
from odc_jax.passes.extract import unit
from odc_jax.results.vectors import evenly

# Whole rankings of more queries would take hours with a large index.
MOST_RANKED = 2000

# Queries at once; a device holds so many times its rows of cosines.
_CHUNK = 256
# Queries that each device ranks at once; it holds so many times the cosines of
# the whole index, and the sort some copies of them.
_RANKED_AT_ONCE = 32


def evaluate(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields recall at 1, 5 and 10, and the mean average precision.

  With more than 2,000 queries the average precision, whose ranking of the whole
  index takes long, is that of 2,000, evenly spread: `eval/retrieval_map_2000q`
  instead of `eval/retrieval_map`.

  Args:
    subject: What to search in, and for what.
  """
  train, test = subject.train, subject.test
  # A query without a relevant image has nothing to find.
  found = np.isin(test.labels, train.labels)
  rows, labels = test.rows[found], test.labels[found]
  if not len(rows):
    return
  index = unit(train.features.features)
  queries = unit(test.features.features)
  search = (index, train.row_labels(), queries)
  first = first_relevant(*search, rows, labels, subject.check)
  for k in (1, 5, 10):
    yield f"eval/retrieval_recall_at{k}", recall_at(first, k)
  ranked = evenly(np.arange(len(rows)), MOST_RANKED)
  precisions = average_precisions(
    *search, rows[ranked], labels[ranked], subject.check
  )
  sample = f"_{MOST_RANKED}q" if len(ranked) < len(rows) else ""
  yield f"eval/retrieval_map{sample}", float(np.mean(precisions))


def first_relevant(
  index: Float[Array, "rows c"],
  index_labels: Int[np.ndarray, "rows"],
  queries: Float[Array, "query_rows c"],
  wanted: Int[np.ndarray, "q"],
  labels: Int[np.ndarray, "q"],
  check: Callable[[], None],
) -> Int[np.ndarray, "q"]:
  """Returns the place of each query's first image of its class, from 0.

  Args:
    index: Unit rows, split over the devices.
    index_labels: Their labels; rows with -1 are not in the index.
    queries: Unit rows, split over the devices.
    wanted: Which rows of `queries` to search for.
    labels: Their labels, each of which is in the index.
    check: Is called before every chunk.
  """
  return _in_chunks(
    _first_relevant, _CHUNK, index, index_labels, queries, wanted, labels, check
  )


def average_precisions(
  index: Float[Array, "rows c"],
  index_labels: Int[np.ndarray, "rows"],
  queries: Float[Array, "query_rows c"],
  wanted: Int[np.ndarray, "q"],
  labels: Int[np.ndarray, "q"],
  check: Callable[[], None],
) -> Float[np.ndarray, "q"]:
  """Returns the average precision of each query over the whole index.

  The arguments are those of `first_relevant`.
  """
  return _in_chunks(
    _average_precisions,
    _RANKED_AT_ONCE * jax.sharding.get_mesh().size,
    index,
    index_labels,
    queries,
    wanted,
    labels,
    check,
  )


def average_precision(
  relevant: Bool[Array, "q n"],
) -> Float[Array, "q"]:
  """Returns the mean precision at the relevant items of each ranking.

  Not interpolated: `sklearn.metrics.average_precision_score` where no two
  scores are equal.

  Args:
    relevant: Which items are, the first in the ranking first; at least one in
      each.
  """
  hits = jnp.cumsum(relevant, axis=1, dtype=jnp.int32)
  precision = hits / jnp.arange(1, relevant.shape[1] + 1)[None, :]
  return jnp.sum(jnp.where(relevant, precision, 0), axis=1) / hits[:, -1]


def _in_chunks(
  search, size, index, index_labels, queries, wanted, labels, check
):
  """Calls `search` for `size` queries at a time; joins what it returns."""
  results = []
  for start in range(0, len(wanted), size):
    check()
    rows, truth = (x[start : start + size] for x in (wanted, labels))
    # The last chunk repeats a query: one shape, one compilation.
    fill = (0, size - len(rows))
    found = search(
      index,
      index_labels,
      queries,
      np.pad(rows, fill, mode="edge").astype(np.int32),
      np.pad(truth, fill, mode="edge").astype(np.int32),
    )
    results.append(np.asarray(found)[: len(rows)])
  return np.concatenate(results)


@jax.jit
def _first_relevant(
  index: Float[Array, "rows c"],
  index_labels: Int[Array, "rows"],
  queries: Float[Array, "query_rows c"],
  wanted: Int[Array, "q"],
  labels: Int[Array, "q"],
) -> Int[Array, "q"]:
  def local(index, index_labels, chunk, labels):
    cosine = _cosines(chunk, index)
    cosine = jnp.where(index_labels[None, :] >= 0, cosine, -jnp.inf)
    relevant = index_labels[None, :] == labels[:, None]
    place = jnp.arange(index.shape[0]) + (
      jax.lax.axis_index(AXIS) * index.shape[0]
    )
    place = place[None, :]
    nearest = jnp.max(jnp.where(relevant, cosine, -jnp.inf), axis=1)
    nearest = jax.lax.pmax(nearest, AXIS)[:, None]
    # Of equally near ones the first, and so are the others counted.
    tied = cosine == nearest
    last = jnp.iinfo(place.dtype).max
    first = jnp.min(jnp.where(relevant & tied, place, last), axis=1)
    first = jax.lax.pmin(first, AXIS)[:, None]
    before = (cosine > nearest) | (tied & (place < first))
    return jax.lax.psum(jnp.sum(before, axis=1), AXIS)

  return mesh_lib.per_shard(
    local, in_specs=(ROWS, ROWS, REPLICATED, REPLICATED), out_specs=REPLICATED
  )(index, index_labels, mesh_lib.replicate(queries[wanted]), labels)


@jax.jit
def _average_precisions(
  index: Float[Array, "rows c"],
  index_labels: Int[Array, "rows"],
  queries: Float[Array, "query_rows c"],
  wanted: Int[Array, "q"],
  labels: Int[Array, "q"],
) -> Float[Array, "q"]:
  def local(index, index_labels, chunk, labels):
    # Each device has some columns of all queries; it gets all of some queries.
    cosine = jax.lax.all_to_all(
      _cosines(chunk, index), AXIS, split_axis=0, concat_axis=1, tiled=True
    )
    distance = jnp.where(index_labels[None, :] >= 0, -cosine, jnp.inf)
    relevant = index_labels[None, :] == labels[:, None]
    _, ranked = jax.lax.sort((distance, relevant), num_keys=1, is_stable=True)
    return average_precision(ranked)

  found = mesh_lib.per_shard(
    local, in_specs=(ROWS, REPLICATED, REPLICATED, ROWS), out_specs=ROWS
  )(index, index_labels, mesh_lib.replicate(queries[wanted]), labels)
  return mesh_lib.replicate(found)


def _cosines(chunk, index):
  return jnp.matmul(chunk, index.T, precision="highest")
