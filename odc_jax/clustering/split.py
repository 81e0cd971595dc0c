"""2-means that halves one cluster, inside a pass over row-sharded features.

Everything here runs inside `mesh.per_shard`: each device holds its own rows
and the ids of those among them that belong to the cluster; only centroids and
candidate rows, never members, travel between devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from odc_jax.clustering import assign
from odc_jax.mesh import AXIS

# Ten restarts are what the official call, KMeans(n_clusters=2, max_iter=20),
# meant in the scikit-learn of its time. scikit-learn also tries two candidates
# for each seed; more restarts are our substitute.
NUM_RESTARTS = 16
MAX_ITERS = 20
# Rows that are held at once: 4 MB at 256 dimensions.
CHUNK = 4096


def over_chunks(
  features: Float[Array, "n d"],
  ids: Int[Array, "m"],
  num_ids: Int[Array, ""],
  chunk_size: int,
  body: Callable[
    [Int[Array, "c"], Float[Array, "c d"], Bool[Array, "c"], Any], Any
  ],
  carry: Any,
) -> Any:
  """Folds `body(ids, rows, valid, carry)` over the rows that `ids` names.

  Args:
    features: This device's rows.
    ids: Row numbers, the first `num_ids` of them in use; at least
      `chunk_size` longer than the most that can be in use.
    num_ids: How many ids are in use; decides how many chunks are visited.
    chunk_size: Rows per call of `body`.
    body: Gets ids, float32 rows and which of them are in use.
    carry: What is folded.

  Returns:
    The last carry.
  """

  def visit(j, carry):
    chunk = jax.lax.dynamic_slice(ids, (j * chunk_size,), (chunk_size,))
    valid = j * chunk_size + jnp.arange(chunk_size) < num_ids
    rows = assign.widened(
      features, chunk, lambda x, ids: x.at[ids].get(mode="clip")
    )
    return body(chunk, rows, valid, carry)

  num_chunks = (num_ids + chunk_size - 1) // chunk_size
  return jax.lax.fori_loop(0, num_chunks, visit, carry)


def member_ids(
  mask: Bool[Array, "n"], chunk_size: int
) -> tuple[Int[Array, "m"], Int[Array, ""]]:
  """Returns the row numbers where `mask` holds, padded for `over_chunks`."""
  n = mask.shape[0]
  # The fill value lies past the end: writes to it are dropped.
  (ids,) = jnp.nonzero(mask, size=n + chunk_size, fill_value=n)
  return ids.astype(jnp.int32), jnp.sum(mask, dtype=jnp.int32)


def two_means(
  features: Float[Array, "n d"],
  ids: Int[Array, "m"],
  num_ids: Int[Array, ""],
  key: Key[Array, ""],
) -> Bool[Array, "m"]:
  """Halves the rows named by `ids` by 2-means: k-means++ seeds, best restart.

  The result does not depend on the number of devices but for rounding. When
  the rows cannot be told apart every second one is taken.

  Args:
    features: This device's rows of the sample memory.
    ids: This device's members of the cluster, as from `member_ids`.
    num_ids: How many of them there are on this device.
    key: The same key on every device.

  Returns:
    For every id whether it leaves: the smaller part does, so that most keep
    their cluster and with it their row of the classifier.

  Source: OpenSelfSup models/memories/odc_memory.py:_partition_max_cluster.
  """
  first_row = jax.lax.axis_index(AXIS) * features.shape[0]
  members = _Members(features, ids, num_ids, first_row)
  centers = _lloyd(members, _seeds(members, key))
  _, sizes, sse = _evaluate(members, centers)
  best = jnp.argmin(sse)
  smaller = jnp.where(sizes[1, best] <= sizes[0, best], 1, 0)

  def side(chunk, rows, valid, carry):
    position, leaves = carry
    to_a, to_b = (
      _square_distance(rows, centers[part, best][None])[:, 0] for part in (0, 1)
    )
    in_part = jnp.where(smaller == 1, to_b < to_a, to_b >= to_a)
    leaves = jax.lax.dynamic_update_slice(leaves, in_part & valid, (position,))
    return position + members.chunk_size, leaves

  _, leaves = members.fold(side, (0, jnp.zeros(ids.shape, bool)))

  # Identical rows: k-means finds one part only. Take every second member.
  leaving, num_members = jax.lax.psum((jnp.sum(leaves), num_ids), AXIS)
  shard = jax.lax.axis_index(AXIS)
  all_num_ids = jax.lax.all_gather(num_ids, AXIS)
  before = jnp.sum(
    jnp.where(jnp.arange(all_num_ids.shape[0]) < shard, all_num_ids, 0)
  )
  position = jnp.arange(ids.shape[0])
  every_second = (before + position) % 2 == 1
  return jnp.where(
    (leaving == 0) | (leaving == num_members),
    every_second & (position < num_ids),
    leaves,
  )


class _Members(NamedTuple):
  """The rows of one cluster on this device.

  Attributes:
    features: As for `two_means`.
    ids: As for `two_means`.
    num_ids: As for `two_means`.
    first_row: The number of this device's first row among all devices' rows.
  """

  features: Float[Array, "n d"]
  ids: Int[Array, "m"]
  num_ids: Int[Array, ""]
  first_row: Int[Array, ""]

  @property
  def chunk_size(self) -> int:
    """Rows that are held at once; what `member_ids` padded the ids by."""
    return self.ids.shape[0] - self.features.shape[0]

  def fold(self, body, carry):
    """Folds `body` over the rows, as `over_chunks` does."""
    return over_chunks(
      self.features, self.ids, self.num_ids, self.chunk_size, body, carry
    )


def _seeds(members, key):
  """Draws k-means++ seeds for every restart, [2, r, d]."""
  key_a, key_b = jax.random.split(key)
  seed_a = _sample(members, key_a, lambda rows: jnp.zeros((1, 1)))
  seed_b = _sample(
    members, key_b, lambda rows: jnp.log(_square_distance(rows, seed_a))
  )
  return jnp.stack([seed_a, seed_b])


def _sample(members, key, log_weight):
  """Draws a row for every restart with probability exp(log_weight), [r, d]."""

  def body(chunk, rows, valid, carry):
    best, picked = carry
    # Noise by global row number: the same on any number of devices.
    noise = jax.vmap(
      lambda i: jax.random.gumbel(jax.random.fold_in(key, i), (NUM_RESTARTS,))
    )(members.first_row + chunk)
    score = jnp.where(valid[:, None], noise + log_weight(rows), -jnp.inf)
    top = jnp.max(score, axis=0)
    # This is argmax. With that, fused with the product in `log_weight`,
    # libtpu 0.0.42 crashes when it compiles for the two cores of a v4.
    number = jax.lax.broadcasted_iota(jnp.int32, score.shape, 0)
    winner = jnp.min(
      jnp.where(score < top[None], members.chunk_size, number), axis=0
    )
    better = top > best
    return (
      jnp.where(better, top, best),
      jnp.where(better[:, None], rows[winner], picked),
    )

  best, picked = members.fold(
    body,
    (
      jnp.full((NUM_RESTARTS,), -jnp.inf),
      jnp.zeros((NUM_RESTARTS, members.features.shape[1]), jnp.float32),
    ),
  )
  all_best = jax.lax.all_gather(best, AXIS)
  all_picked = jax.lax.all_gather(picked, AXIS)
  return all_picked[jnp.argmax(all_best, axis=0), jnp.arange(NUM_RESTARTS)]


def _square_distance(rows, centers):
  """Returns the squared distances of rows [c, d] and centres [r, d], [c, r]."""
  dot = jnp.matmul(rows, centers.T, precision="highest")
  return jnp.maximum(
    jnp.sum(rows**2, axis=1)[:, None]
    - 2 * dot
    + jnp.sum(centers**2, axis=1)[None, :],
    0.0,
  )


def _evaluate(members, centers):
  """Assigns the rows to the nearer of two centres, in one pass.

  Args:
    members: The rows.
    centers: Of every restart, [2, r, d].

  Returns:
    The sums of both parts [2, r, d], their sizes [2, r], and the sum of the
    squared distances to the nearer centre [r]; of all devices' rows.
  """

  def body(chunk, rows, valid, carry):
    sums, sizes, sse = carry
    to_a = _square_distance(rows, centers[0])
    to_b = _square_distance(rows, centers[1])
    in_b = (to_b < to_a) & valid[:, None]
    in_a = ~in_b & valid[:, None]
    parts = jnp.stack([in_a, in_b]).astype(jnp.float32)  # [2, c, r]
    sums += jnp.einsum("pcr,cd->prd", parts, rows, precision="highest")
    sizes += jnp.sum(parts, axis=1)
    nearest = jnp.where(valid[:, None], jnp.minimum(to_a, to_b), 0.0)
    return sums, sizes, sse + jnp.sum(nearest, axis=0)

  zeros = (
    jnp.zeros_like(centers),
    jnp.zeros((2, NUM_RESTARTS), jnp.float32),
    jnp.zeros((NUM_RESTARTS,), jnp.float32),
  )
  return jax.lax.psum(members.fold(body, zeros), AXIS)


def _lloyd(members, centers):
  """Moves the centres [2, r, d] to their parts' means until none moves."""

  def iterate(carry):
    i, _, centers, _ = carry
    sums, sizes, sse = _evaluate(members, centers)
    means = jnp.where(
      sizes[..., None] > 0, sums / jnp.maximum(sizes, 1)[..., None], centers
    )
    # The loop ends when no restart moves any more.
    return i + 1, jnp.any(means != centers), means, sse

  _, _, centers, _ = jax.lax.while_loop(
    lambda carry: (carry[0] < MAX_ITERS) & carry[1],
    iterate,
    (0, jnp.bool_(True), centers, jnp.zeros((NUM_RESTARTS,))),
  )
  return centers
