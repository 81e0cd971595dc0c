"""Sums over the nearest rows of a memory, without a list of them.

What a loss over many neighbours needs (Local Aggregation has 4,096 of every
image): of the k most similar rows of a row-sharded memory, and of those among
them that share a cluster, the sum of e^(similarity / t), and its gradient.
Neither the similarities, [b, n], nor the neighbours, [b, k, d], exist at any
time; what moves between the devices is [b] and [b, d].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from odc_jax import mesh
from odc_jax.clustering import assign


class Sums(NamedTuple):
  """What the loss of every image of a batch is made of.

  Attributes:
    threshold: The smallest similarity in the background B.
    background: Sum of e^((v m_j - 1) / t) over B.
    close: The same over B and the close neighbours C.
    by_background: Gradient of `background` by v.
    by_close: Gradient of `close` by v.
  """

  threshold: Float[Array, "b"]
  background: Float[Array, "b"]
  close: Float[Array, "b"]
  by_background: Float[Array, "b d"]
  by_close: Float[Array, "b d"]


def aggregate(
  bank: Float[Array, "n d"],
  assignments: Int[Array, "n h"],
  v: Float[Array, "b d"],
  own: Int[Array, "b h"],
  *,
  num_examples: int,
  num_background: int,
  temperature: float,
) -> Sums:
  """Sums over the background of every query: its k most similar rows.

  Can be traced. Two passes over the memory: one finds how similar the last row
  of the background is, one adds up. Rows exactly as similar as it belong to it
  too.

  Args:
    bank: [n, d] unit rows, row-sharded.
    assignments: [n, h] their clusters in h clusterings, row-sharded. Rows are
      close if they share the query's cluster in any of them.
    v: [b, d] unit queries.
    own: [b, h] their clusters.
    num_examples: Rows from this one on are padding.
    num_background: k, at most num_examples.
    temperature: t.

  Returns:
    The sums, replicated.
  """
  whole, rows = mesh.REPLICATED, mesh.ROWS
  local = functools.partial(
    _aggregate,
    num_examples=num_examples,
    k=num_background,
    temperature=temperature,
  )
  return mesh.per_shard(local, (rows, rows, whole, whole), whole)(
    bank, assignments, *mesh.replicate((v, own))
  )


def _aggregate(bank, assignments, v, own, *, num_examples, k, temperature):
  """Does so inside `per_shard`: bank and assignments are a device's rows."""
  n, b = bank.shape[0], v.shape[0]
  size = assign.chunk_rows(n, b, None)
  _, valid = assign.global_rows(n, num_examples)

  def similarities(start, fresh):
    rows = assign.slice_rows(bank, start, size)
    s = jnp.matmul(v, rows.T, precision="highest")
    there = fresh & jax.lax.dynamic_slice_in_dim(valid, start, size)
    return rows, jnp.where(there[None, :], s, -jnp.inf)

  def keep_best(best, start, fresh):
    _, s = similarities(start, fresh)
    return jax.lax.top_k(jnp.concatenate([best, s], axis=1), best.shape[1])[0]

  nothing = jnp.full((b, min(k, n)), -jnp.inf)
  best = assign.over_chunks(n, size, keep_best, nothing)
  threshold = _kth_largest(best, k)

  def add(sums, start, fresh):
    rows, s = similarities(start, fresh)
    # s is at most 1; the normaliser Z cancels.
    e = jnp.where(s >= threshold[:, None], jnp.exp((s - 1) / temperature), 0.0)
    theirs = jax.lax.dynamic_slice_in_dim(assignments, start, size)
    is_close = jnp.zeros(s.shape, bool)
    for h in range(theirs.shape[1]):
      is_close |= own[:, h][:, None] == theirs[:, h][None, :]
    close = jnp.where(is_close, e, 0.0)
    found = (
      jnp.sum(e, axis=1),
      jnp.sum(close, axis=1),
      jnp.matmul(e, rows, precision="highest") / temperature,
      jnp.matmul(close, rows, precision="highest") / temperature,
    )
    return jax.tree.map(jnp.add, sums, found)

  one, all_ = jnp.zeros((b,)), jnp.zeros(v.shape)
  sums = assign.over_chunks(n, size, add, (one, one, all_, all_))
  return Sums(threshold, *jax.lax.psum(sums, mesh.AXIS))


def _kth_largest(values: Float[Array, "b m"], k: int) -> Float[Array, "b"]:
  """Returns the k-th largest of all devices' values, row by row.

  By bisection, 32 counts, so that nothing but [b] numbers moves: to gather
  every device's candidates would be [b, k] from each.

  Args:
    values: This device's; of all devices together k or more a row.
    k: Which.
  """
  order = _in_order(values)

  def set_bit(i, found):
    higher = found | (jnp.uint32(1) << (jnp.uint32(31) - i.astype(jnp.uint32)))
    counts = jnp.sum(order >= higher[:, None], axis=1, dtype=jnp.int32)
    return jnp.where(jax.lax.psum(counts, mesh.AXIS) >= k, higher, found)

  zeros = jnp.zeros(values.shape[:1], jnp.uint32)
  found = jax.lax.fori_loop(0, 32, set_bit, zeros)
  # The inverse of `_in_order`.
  bits = jnp.where(found >> 31 == 1, found ^ jnp.uint32(1 << 31), ~found)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _in_order(x: Float[Array, "b m"]) -> UInt32[Array, "b m"]:
  """Returns whole numbers in the order of the floats."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
