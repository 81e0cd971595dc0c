"""The nearest rows among all rows, by exact search on the devices.

Queries and index are split over the devices by rows. The index goes round in
chunks: every device gets one from whichever holds it, scores it against its own
queries, and keeps the best so far. So a device never holds more than its share,
a chunk, and a block of scores; and the order in which rows are met, which
decides between equals, does not depend on how many devices there are.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from odc_jax import mesh
from odc_jax.clustering import assign

Metric = Literal["cosine", "dot"]

# Rows of the index that go round at a time: 12 MB of 768 float32.
CHUNK = 4096

_HIGHEST = jax.lax.Precision.HIGHEST


class Neighbors(NamedTuple):
  """The nearest rows of every query, nearest first; row-sharded.

  Attributes:
    rows: Which rows of the index; where two are equally similar, the smaller
      first.
    similarities: Cosines or inner products; -inf where the index has fewer
      than k rows.
  """

  rows: Int32[Array, "m k"]
  similarities: Float32[Array, "m k"]


def nearest(
  queries: Float[Array, "m d"],
  index: Float[Array, "n d"],
  valid: Bool[Array, "n"],
  *,
  k: int,
  metric: Metric = "cosine",
  chunk_size: int = CHUNK,
  precision: jax.lax.PrecisionLike = _HIGHEST,
) -> Neighbors:
  """Finds the k most similar rows of the index for every query.

  Can be traced. A device computes m n d / devices products, and n d numbers
  travel in all, a chunk at a time.

  Args:
    queries: [m, d] row-sharded, of any float type.
    index: [n, d] row-sharded, of any float type; computed in float32.
    valid: Which rows of the index there are, [n] row-sharded.
    k: How many to find.
    metric: "cosine", to which a row of zeros is as near as any other, or "dot",
      the inner product.
    chunk_size: Rows of the index that go round at a time.
    precision: Of the products; see `assign.nearest`.

  Returns:
    The neighbours.

  Raises:
    ValueError: There are fewer than k rows.
  """
  return _nearest(
    queries, index, valid, k, metric, chunk_size, precision, skip_own=False
  )


def nearest_others(
  x: Float[Array, "n d"],
  valid: Bool[Array, "n"],
  *,
  k: int,
  metric: Metric = "cosine",
  chunk_size: int = CHUNK,
  precision: jax.lax.PrecisionLike = _HIGHEST,
) -> Neighbors:
  """Finds the k most similar other rows of every row.

  A row is never its own neighbour, but an equal one is. TEMI's official code
  has it so for up to 80,000 rows; above, it leaves out another row in place of
  the own one, by mistake.

  Args:
    x: [n, d] row-sharded, of any float type.
    valid: Which rows there are, [n] row-sharded; more than k. What is found
      for the others means nothing.
    k: How many to find.
    metric: As for `nearest`.
    chunk_size: As for `nearest`.
    precision: As for `nearest`.

  Returns:
    The neighbours.

  Raises:
    ValueError: As `nearest` does.

  Source: TEMI gen_embeds.py: compute_neighbors.
  """
  return _nearest(x, x, valid, k, metric, chunk_size, precision, skip_own=True)


@functools.partial(
  jax.jit,
  static_argnames=("k", "metric", "chunk_size", "precision", "skip_own"),
)
def _nearest(
  queries, index, valid, k, metric, chunk_size, precision, *, skip_own
):
  n = index.shape[0]
  if not 1 <= k <= n - skip_own:
    raise ValueError(f"k {k} is not in [1, {n - skip_own}]")

  def local(queries, index, valid):
    m = queries.shape[0]
    size = min(chunk_size, index.shape[0])
    block = assign.chunk_rows(m, size, None)
    first_query = jax.lax.axis_index(mesh.AXIS) * m

    def visit(found, start, fresh):
      chunk, there = _fetch(index, valid, start, size)
      there = (there > 0) & fresh
      chunk = _scaled(chunk, metric)
      rows = start + jnp.arange(size, dtype=jnp.int32)

      def compare(found, begin, unseen):
        block_queries = _scaled(
          assign.slice_rows(queries, begin, block), metric
        )
        scores = jax.lax.dot_general(
          block_queries, chunk, (((1,), (1,)), ((), ())), precision=precision
        )
        allowed = there[None, :]
        if skip_own:
          own = first_query + begin + jnp.arange(block)
          allowed = allowed & (rows[None, :] != own[:, None])
        scores = jnp.where(allowed, scores, -jnp.inf)
        return _merge(found, begin, unseen, rows, scores, k)

      return assign.over_chunks(m, block, compare, found)

    # Flat: of [m, k] a TPU would pad k to 128 lanes.
    nothing = Neighbors(
      jnp.zeros((m * k,), jnp.int32), jnp.full((m * k,), -jnp.inf)
    )
    found = assign.over_chunks(n, size, visit, nothing)
    return Neighbors(*(x.reshape(m, k) for x in found))

  rows: Any = mesh.ROWS
  return mesh.per_shard(local, (rows, rows, rows), Neighbors(rows, rows))(
    queries, index, valid
  )


def _fetch(index, valid, start, chunk_size):
  """Rows [start, start + chunk_size) of the whole index, on every device.

  Each device adds what it has of them.
  """
  first = start - jax.lax.axis_index(mesh.AXIS) * index.shape[0]
  begin = jnp.clip(first, 0, index.shape[0] - chunk_size)
  here = begin + jnp.arange(chunk_size) - first
  mine = (here >= 0) & (here < chunk_size)
  mine &= jax.lax.dynamic_slice_in_dim(valid, begin, chunk_size)
  rows = assign.slice_rows(index, begin, chunk_size)
  return jax.lax.psum(
    jax.tree.map(
      lambda x: jnp.roll(x, begin - first, axis=0),
      (jnp.where(mine[:, None], rows, 0), mine.astype(jnp.int32)),
    ),
    mesh.AXIS,
  )


def _scaled(x, metric):
  """Returns rows whose inner products are the metric's similarities."""
  if metric == "dot":
    return x
  norms = jnp.linalg.norm(x, axis=1, keepdims=True)
  return x / jnp.maximum(norms, 1e-12)


def _merge(found, begin, unseen, rows, scores, k):
  """Keeps the best of what was found and a block of scores.

  Args:
    found: [m k], of all queries of this device.
    begin: The first query of the block.
    unseen: Which of its queries have not met this chunk yet.
    rows: The chunk's rows.
    scores: [block, chunk].
    k: How many to keep.
  """
  block = scores.shape[0]
  before = Neighbors(
    *(
      jax.lax.dynamic_slice_in_dim(x, begin * k, block * k).reshape(block, k)
      for x in found
    )
  )
  # The earlier results come first, because their rows are smaller, and `top_k`
  # takes the first of equals.
  best, place = jax.lax.top_k(
    jnp.concatenate([before.similarities, scores], axis=1), k
  )
  candidates = jnp.concatenate(
    [before.rows, jnp.broadcast_to(rows[None, :], scores.shape)], axis=1
  )
  after = Neighbors(jnp.take_along_axis(candidates, place, axis=1), best)

  def write(x, old, new):
    kept = jnp.where(unseen[:, None], new, old)
    return jax.lax.dynamic_update_slice_in_dim(x, kept.ravel(), begin * k, 0)

  return jax.tree.map(write, found, before, after)
