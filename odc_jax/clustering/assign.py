"""The nearest centroid of every row, for a batch and for a whole memory."""

import functools
from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from odc_jax import mesh

Metric = Literal["l2", "dot", "cosine"]
Carry = TypeVar("Carry")

# Bytes of scores, [chunk, k] float32, that a full pass holds at a time. On a
# CPU the maximum is taken while they are still in the cache: twice as fast as
# with 64 MB. An accelerator would rather have few large matmuls.
_CPU_SCORE_BYTES = 4 << 20
_ACCELERATOR_SCORE_BYTES = 64 << 20

_HIGHEST = jax.lax.Precision.HIGHEST


def nearest(
  x: Float[Array, "n d"],
  centroids: Float[Array, "k d"],
  metric: Metric = "l2",
  precision: jax.lax.PrecisionLike = _HIGHEST,
) -> tuple[Int32[Array, "n"], Float32[Array, "n"]]:
  """Finds the nearest centroid of each row of a batch.

  All scores, [n, k], exist at once; for a whole memory use `assign_all`.

  Args:
    x: [n, d] rows, of any float type; computed in float32.
    centroids: [k, d].
    metric: "l2" (Euclidean), "dot" (inner product) or "cosine".
    precision: Of the matmul. The default keeps float32: left to themselves,
      TPUs round to bfloat16 and GPUs to TF32, which moves rows between close
      centroids.

  Returns:
    assignments: [n] int32; of equally near centroids the one of smallest index.
    score: [n] float32, larger is nearer: minus the squared distance for "l2",
      the inner product for "dot", the cosine for "cosine".

  Raises:
    ValueError: The metric is none of the three.
  """
  directions, bias = score_terms(centroids, metric)
  assignments, score = best(x, directions, bias, precision)
  x = x.astype(jnp.float32)
  if metric == "l2":
    # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2), which may round to below zero.
    score = jnp.minimum(2 * score - jnp.sum(x * x, axis=1), 0)
  elif metric == "cosine":
    score = score / _norm(x)[:, 0]
  return assignments, score


def assign_all(
  x: Float[Array, "n d"],
  centroids: Float[Array, "k d"],
  num_examples: int,
  metric: Metric = "l2",
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = _HIGHEST,
) -> Int32[Array, "n"]:
  """Assigns every row of a row-sharded memory to its nearest centroid.

  Each device goes through its own rows in chunks; nothing is communicated.

  Args:
    x: [n, d] row-sharded; n, which includes the padding, is a multiple of the
      number of devices.
    centroids: [k, d] replicated.
    num_examples: Rows from this one on are padding.
    metric: As in `nearest`.
    chunk_size: Rows a device takes at a time. None: as many as keep the scores,
      chunk_size * k * 4 bytes, within 4 MB on a CPU and 64 MB elsewhere.
    precision: As in `nearest`.

  Returns:
    [n] int32 row-sharded assignments; k on padded rows.

  Raises:
    ValueError: The metric is unknown, or num_examples is not in [0, n].
  """
  check_num_examples(num_examples, x.shape[0])
  return _assign_all(x, centroids, num_examples, metric, chunk_size, precision)


@functools.partial(
  jax.jit,
  static_argnames=("num_examples", "metric", "chunk_size", "precision"),
)
def _assign_all(x, centroids, num_examples, metric, chunk_size, precision):
  k = centroids.shape[0]

  def local(x, centroids):
    directions, bias = score_terms(centroids, metric)
    _, valid = global_rows(x.shape[0], num_examples)
    size = chunk_rows(x.shape[0], k, chunk_size)

    def step(assignments, start, _):
      rows = slice_rows(x, start, size)
      found, _ = best(rows, directions, bias, precision)
      return jax.lax.dynamic_update_slice_in_dim(assignments, found, start, 0)

    start = jnp.zeros(x.shape[0], jnp.int32)
    assignments = over_chunks(x.shape[0], size, step, start)
    return jnp.where(valid, assignments, k)

  return mesh.per_shard(local, (mesh.ROWS, mesh.REPLICATED), mesh.ROWS)(
    x, centroids
  )


# The parts of a pass, for those that do more than assign (kmeans).


def score_terms(
  centroids: Float[Array, "k d"], metric: Metric
) -> tuple[Float32[Array, "k d"], Float32[Array, "k"]]:
  """Returns what makes `x @ directions.T + bias` largest at the nearest.

  To be computed once, before the chunks: [k, d] and [k].
  """
  centroids = centroids.astype(jnp.float32)
  if metric == "l2":
    return centroids, -0.5 * jnp.sum(centroids * centroids, axis=1)
  bias = jnp.zeros(centroids.shape[0], jnp.float32)
  if metric == "dot":
    return centroids, bias
  if metric == "cosine":
    return centroids / _norm(centroids), bias
  raise ValueError(f"metric {metric!r} is none of 'l2', 'dot', 'cosine'")


def best(
  x: Float[Array, "n d"],
  directions: Float32[Array, "k d"],
  bias: Float32[Array, "k"],
  precision: jax.lax.PrecisionLike = _HIGHEST,
) -> tuple[Int32[Array, "n"], Float32[Array, "n"]]:
  """Returns the smallest index of the largest `x @ directions.T + bias`."""
  scores = jax.lax.dot_general(
    x.astype(jnp.float32),
    directions,
    (((1,), (1,)), ((), ())),  # x @ directions.T without the transpose
    precision=precision,
  )
  scores = scores + bias[None, :]
  largest = jnp.max(scores, axis=1)
  # This is argmax, which XLA does not vectorise on a CPU: there it would take
  # longer than the matmul. "Not smaller" rather than "equal", so that a row of
  # NaNs gets an index that exists and is not taken for padding.
  k = directions.shape[0]
  index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  index = jnp.where(scores < largest[:, None], k, index)
  return jnp.min(index, axis=1), largest


def global_rows(
  num_rows: int, num_examples: int
) -> tuple[Int32[Array, "n"], Bool[Array, "n"]]:
  """Inside `per_shard`: the global numbers of this device's rows.

  And whether each is an example rather than padding.
  """
  first = jax.lax.axis_index(mesh.AXIS) * num_rows
  rows = first + jnp.arange(num_rows, dtype=jnp.int32)
  return rows, rows < num_examples


def chunk_rows(num_rows: int, k: int, chunk_size: int | None) -> int:
  """Returns how many of `num_rows` rows to score against k at a time."""
  if chunk_size is None:
    budget = _CPU_SCORE_BYTES if _on_cpu() else _ACCELERATOR_SCORE_BYTES
    chunk_size = max(1, budget // (4 * k))
  num_chunks = -(-num_rows // chunk_size)
  return -(-num_rows // num_chunks)  # evenly, so that the last is no remnant


def over_chunks(
  num_rows: int,
  chunk_size: int,
  step: Callable[[Carry, Int32[Array, ""], Bool[Array, "c"]], Carry],
  carry: Carry,
) -> Carry:
  """Folds `step` over chunks of rows.

  The last chunk begins early where the rows do not divide, rather than having
  a size of its own or copying the rows into a padded array.

  Args:
    num_rows: How many rows there are.
    chunk_size: Rows in each chunk, at most num_rows.
    step: From the carry, the chunk's first row and whether each of its rows is
      seen for the first time, to the next carry.
    carry: What the first step starts from.

  Returns:
    The last carry.
  """

  def body(i, carry):
    start = jnp.minimum(i * chunk_size, num_rows - chunk_size)
    fresh = start + jnp.arange(chunk_size) >= i * chunk_size
    return step(carry, start, fresh)

  return jax.lax.fori_loop(0, -(-num_rows // chunk_size), body, carry)


def slice_rows(
  x: Float[Array, "n d"], start: Int32[Array, ""], chunk_size: int
) -> Float32[Array, "c d"]:
  """Returns rows [start, start + chunk_size) in float32."""
  return widened(
    x,
    start,
    lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, chunk_size),
  )


def widened(
  x: Float[Array, "n d"],
  where: Array,
  take: Callable[[Array, Array], Array],
) -> Float32[Array, "c d"]:
  """Returns `take(x, where)` in float32, in a loop that changes `where`."""
  if x.dtype == jnp.bfloat16 and _on_cpu():
    # On a CPU XLA can neither slice nor gather bfloat16. It would convert the
    # whole memory, once, before the loop. Integers it leaves as they are, and
    # the barrier keeps the view of them inside the loop.
    x, where = jax.lax.optimization_barrier((x, where))
    bits = take(jax.lax.bitcast_convert_type(x, jnp.uint16), where)
    return jax.lax.bitcast_convert_type(bits, x.dtype).astype(jnp.float32)
  return take(x, where).astype(jnp.float32)


def sum_by_cluster(
  x: Float[Array, "n d"], assignments: Int32[Array, "n"], k: int
) -> tuple[Float32[Array, "k d"], Int32[Array, "k"]]:
  """Inside `per_shard`: sums and counts of this device's rows, in chunks."""
  n, d = x.shape
  chunk_size = chunk_rows(n, d, None)

  def step(carry, start, fresh):
    sums, counts = carry
    rows = slice_rows(x, start, chunk_size)
    labels = jax.lax.dynamic_slice_in_dim(assignments, start, chunk_size)
    return add_by_cluster(sums, counts, rows, jnp.where(fresh, labels, k))

  nothing = jnp.zeros((k, d), jnp.float32), jnp.zeros(k, jnp.int32)
  return over_chunks(n, chunk_size, step, nothing)


def add_by_cluster(
  sums: Float32[Array, "k d"],
  counts: Int32[Array, "k"],
  rows: Float[Array, "m d"],
  clusters: Int32[Array, "m"],
) -> tuple[Float32[Array, "k d"], Int32[Array, "k"]]:
  """Adds rows to their clusters' sums and counts; rows of cluster k to none.

  Args:
    sums: [k, d].
    counts: [k].
    rows: [m, d], of any float type.
    clusters: [m] int32, 0 to k.

  Returns:
    Both, updated in place inside `jit`: a segment sum of every chunk of a pass
    would touch all of [k, d] every time.
  """
  sums = sums.at[clusters].add(rows.astype(jnp.float32), mode="drop")
  return sums, counts.at[clusters].add(1, mode="drop")


def check_num_examples(num_examples: int, num_rows: int) -> None:
  """Raises ValueError unless there are rows for the examples."""
  if not 0 <= num_examples <= num_rows:
    raise ValueError(f"num_examples {num_examples} is not in [0, {num_rows}]")


def _on_cpu() -> bool:
  """Whether the devices compiled for, which need not exist, are CPUs."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and device.platform == "cpu"


def _norm(x):
  # The official code's guard against an all-zero row.
  return jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-10
