"""Balanced assignment by optimal transport: the Sinkhorn-Knopp algorithm.

Both methods that use it look for a matrix with given marginals among those of
the form diag(r) M diag(c). SwAV takes a few iterations on a batch and keeps
the soft result; SeLa iterates on all images until nothing moves and keeps the
largest entries. Everything is in the log domain: SeLa's probabilities to the
25th power are below the smallest float32.

Between the devices move sums over their rows, [k], and scalars.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from odc_jax import mesh
from odc_jax.clustering import assign

# A solve tests its error in every tenth iteration, the first included.
_TEST_EVERY = 10

# The least mean relative change that float32 resolves. The official criterion
# is a sum over the images, in float64; on ImageNet it asks for little more than
# this, on larger data sets for less.
_RESOLUTION = 2.0**-24

# Where the probabilities are so sharp that there is no end in sight.
_MOST_ITERS = 10_001


def sinkhorn_codes(
  scores: Float[Array, "b k"],
  epsilon: float,
  num_iters: int,
  more_scores: Float[Array, "q k"] | None = None,
) -> Float[Array, "b k"]:
  """Returns soft codes that use all prototypes about equally.

  Q = exp(scores / epsilon), then `num_iters` times: every prototype's column
  is scaled to the sum b / k, every example's row to the sum 1. It ends on the
  rows; the columns' sums are approximate.

  Plain array code over the global batch: with the rows split over devices,
  only sums and maxima over rows, [k], move.

  Args:
    scores: Of a batch with the prototypes.
    epsilon: The larger, the softer.
    num_iters: At least 1.
    more_scores: Of further examples, which take part and get no code (SwAV's
      queue).

  Source: SwAV main_swav.py: distributed_sinkhorn.
  """
  # The official scalings by 1 / k, 1 / b and b cancel on the rows.
  groups = [scores] if more_scores is None else [scores, more_scores]
  log_q = [group.astype(jnp.float32) / epsilon for group in groups]
  for _ in range(num_iters):
    columns = functools.reduce(
      jnp.logaddexp, [jax.nn.logsumexp(part, axis=0) for part in log_q]
    )
    log_q = [jax.nn.log_softmax(part - columns[None, :]) for part in log_q]
  return jnp.exp(log_q[0])


class Transport(NamedTuple):
  """A solution of `optimal_transport`.

  Attributes:
    assignments: Cluster of every row, k on padding; row-sharded.
    log_r: Logarithm of the clusters' scalings; replicated.
    num_iters: How many iterations it took.
  """

  assignments: Int32[Array, "n"]
  log_r: Float32[Array, "k"]
  num_iters: Int32[Array, ""]


@functools.partial(
  jax.jit, static_argnames=("power", "tolerance", "num_examples", "chunk_size")
)
def optimal_transport(
  log_p: Float32[Array, "n k"],
  *,
  power: float,
  tolerance: float,
  num_examples: int,
  chunk_size: int | None = None,
) -> Transport:
  """Assigns the rows to k clusters of equal size, at the least cost.

  With A = P^power, from c_i = 1 / N on:
    r_k <- (1 / k) / sum_i A_ik c_i,  c_i <- (1 / N) / sum_k A_ik r_k
  until sum_i |c_i(before) / c_i - 1| is within the tolerance, which is tested
  in the iterations 0, 10, 20 ...; then argmax_k r_k A_ik.

  Args:
    log_p: Log-probabilities, row-sharded, with padding.
    power: Lambda; the larger, the closer to the unsmoothed problem.
    tolerance: Of the sum over all N. Where it is below N / 2^24, which float32
      cannot tell from 0, N / 2^24 counts.
    num_examples: N; rows from this one on are padding, whatever they hold.
    chunk_size: Rows a device takes at a time; None: see `assign.assign_all`.

  Returns:
    The assignments, in the scaling of the official code.

  Source: self-label sinkhornknopp.py: optimize_L_sk.
  """
  assign.check_num_examples(num_examples, log_p.shape[0])
  k = log_p.shape[1]
  log_k, log_n = math.log(k), math.log(num_examples)
  tolerance = max(tolerance, num_examples * _RESOLUTION)

  def local(log_p):
    n = log_p.shape[0]
    size = assign.chunk_rows(n, k, chunk_size)
    _, is_row = assign.global_rows(n, num_examples)

    def log_a(start):
      """Returns a chunk of log A, and which of its rows are images."""
      rows = assign.slice_rows(log_p, start, size)
      counts = jax.lax.dynamic_slice_in_dim(is_row, start, size)
      # Zero the padding: it may hold a NaN, which masking later would keep.
      return power * jnp.where(counts[:, None], rows, 0), counts

    def over_chunks(step, carry):
      return assign.over_chunks(n, size, step, carry)

    # The first r, as c is uniform: log sum_i A_ik, chunk after chunk.
    def add_exponentials(carry, start, fresh):
      values, counts = log_a(start)
      values = jnp.where((counts & fresh)[:, None], values, -jnp.inf)
      return jnp.logaddexp(carry, jax.nn.logsumexp(values, axis=0))

    log_sums = over_chunks(add_exponentials, jnp.full((k,), -jnp.inf))
    largest = jax.lax.pmax(log_sums, mesh.AXIS)
    sums = jax.lax.psum(jnp.exp(log_sums - largest), mesh.AXIS)
    log_r = log_n - log_k - largest - jnp.log(sums)

    def scale(i, log_r, decrease):
      """Returns k times the columns' sums after c, and the error.

      The error is exact where both c are nearly the same, which the difference
      of their logarithms would not be: with q_ik = N c_i A_ik r_k, whose rows
      have the sum 1, c_i(before) / c_i = 1 / sum_k q_ik (r_k(before) / r_k).
      """

      def step(carry, start, fresh):
        columns, error = carry
        values, counts = log_a(start)
        counts, values = counts & fresh, values + log_r[None, :]
        log_rows = jax.nn.logsumexp(values, axis=1, keepdims=True)
        q = jnp.exp(values - log_rows)
        q = jnp.where(counts[:, None], q, 0)
        moved = jnp.sum(q * decrease[None, :], axis=1)
        # c was 1 / N before the first iteration.
        ratio = jnp.where(
          i == 0, jnp.expm1(log_rows[:, 0]), -moved / (1 + moved)
        )
        error += jnp.sum(jnp.where(counts, jnp.abs(ratio), 0))
        return columns + jnp.sum(q, axis=0), error

      nothing = jnp.zeros((k,), jnp.float32), jnp.float32(0)
      columns, error = jax.lax.psum(over_chunks(step, nothing), mesh.AXIS)
      return columns * (k / num_examples), error

    def unfinished(carry):
      i, _, _, finished = carry
      return ~finished & (i < _MOST_ITERS)

    def iterate(carry):
      i, log_r, decrease, _ = carry
      columns, error = scale(i, log_r, decrease)
      finished = (i % _TEST_EVERY == 0) & ~(error > tolerance)
      # r <- r (1 / k) / (column sum): the same r, and what is added to its
      # logarithm becomes small.
      renewed = jnp.where(finished, log_r, log_r - jnp.log(columns))
      return i + 1, renewed, jnp.expm1(log_r - renewed), finished

    zeros = jnp.zeros((k,), jnp.float32)
    num_iters, log_r, _, _ = jax.lax.while_loop(
      unfinished, iterate, (jnp.int32(0), log_r, zeros, False)
    )

    def choose(assignments, start, _):
      values, counts = log_a(start)
      found = jnp.argmax(values + log_r[None, :], axis=1).astype(jnp.int32)
      return jax.lax.dynamic_update_slice_in_dim(
        assignments, jnp.where(counts, found, k), start, 0
      )

    assignments = over_chunks(choose, jnp.zeros((n,), jnp.int32))
    return assignments, log_r, num_iters

  return Transport(
    *mesh.per_shard(
      local, mesh.ROWS, (mesh.ROWS, mesh.REPLICATED, mesh.REPLICATED)
    )(log_p)
  )
