"""One clustering out of many: heads are re-labelled to agree, and vote.

Two heads that find the same clusters number them differently. Head after head
is re-numbered to agree as well as it can with the votes of those before it, an
assignment problem on a table of [k, k] counts, and votes with them; then all
are matched to the votes of all, until nothing changes. No round lowers the
number of agreeing pairs of heads, summed over the images: it is convex in the
numberings, and a round maximises its tangent. Only tables of counts leave the
devices; no pair of images is ever compared, as co-association would.

Against co-association (Fred & Jain 2005), the bipartite graph of images and
clusters (Fern & Brodley 2004) and k-means on the heads' labels (Topchy et al.
2005) it was chosen by measurement: docs/methods.md, TEMI.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from odc_jax import mesh
from odc_jax.clustering import assign

# Rounds of matching all to all; a fixed point is usually reached before.
_NUM_ROUNDS = 20


class Ensemble(NamedTuple):
  """The clustering that several heads vote for.

  Attributes:
    clusters: [n] the cluster with the most votes, of equal ones the smallest; k
      where the heads have none. Row-sharded.
    confidence: [n] share of the heads that voted for it; 0 where they have
      none. Row-sharded.
    names: [h, k] what each head's cluster is called in the ensemble, on the
      host. With it heads vote on new images: `vote`.
  """

  clusters: Int32[Array, "n"]
  confidence: Float32[Array, "n"]
  names: Int32[np.ndarray, "h k"]


def agree(
  assignments: Int[Array, "n h"],
  num_clusters: int,
  order: Sequence[int],
) -> Ensemble:
  """Makes one clustering of many.

  Permuting a head's cluster numbers, or the images, changes nothing but the
  numbers. The first head of `order` keeps its numbers at first.

  Args:
    assignments: [n, h] row-sharded, of every image by every head; k where it
      has none.
    num_clusters: k.
    order: The heads, from that to be trusted most, as by the lowest loss.

  Returns:
    The ensemble.

  Source: re-labelling and voting: Dudoit & Fridlyand, Bioinformatics 19(9),
  2003; cumulative: Ayad & Kamel, IEEE TPAMI 30(1), 2008. Hungarian: Kuhn 1955,
  as scipy has it.
  """
  names = np.tile(np.arange(num_clusters, dtype=np.int32), (len(order), 1))
  for i in range(1, len(order)):
    voters = np.zeros(len(order), bool)
    voters[list(order[:i])] = True
    names[order[i]] = _match(
      _table(assignments, names, voters, np.int32(order[i]))
    )
  everyone = np.ones(len(order), bool)
  for _ in range(_NUM_ROUNDS):
    before = names
    names = np.stack(
      [
        _match(_table(assignments, before, everyone, np.int32(head)))
        for head in range(len(order))
      ]
    )
    if np.array_equal(names, before):
      break
  return Ensemble(*vote(assignments, names), names)


def vote(
  assignments: Int[Array, "n h"], names: Int32[np.ndarray, "h k"]
) -> tuple[Int32[Array, "n"], Float32[Array, "n"]]:
  """Returns the clusters with the most votes, and the shares of the heads.

  Args:
    assignments: [n, h] row-sharded; k where a head has none.
    names: [h, k] what each head's cluster is called.

  Returns:
    As in `Ensemble`.
  """
  return _vote(assignments, names)


def likeliest(logits: Sequence[Float[Array, "b k"]]) -> Int32[Array, "b h"]:
  """Returns the likeliest cluster of each head: [b, k] of each -> [b, h]."""
  found = [jnp.argmax(scores, axis=1) for scores in logits]
  return jnp.stack(found, axis=1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def by_every_head(
  head: Callable, params: Any, rows: Float[Array, "n d"]
) -> Int32[Array, "n h"]:
  """Returns the clusters of all rows by every head, a chunk at a time.

  Args:
    head: (params, rows [b, d]) -> logits, [b, k] of each head.
    params: Of the heads.
    rows: [n, d] row-sharded, pad rows too.
  """
  shapes = jax.eval_shape(head, params, rows)
  h, k = len(shapes), shapes[0].shape[1]

  def local(rows, params):
    n = rows.shape[0]
    size = assign.chunk_rows(n, h * k, None)

    def step(found, start, _):
      chunk = jax.lax.dynamic_slice_in_dim(rows, start, size)
      new = likeliest(head(params, chunk))
      return jax.lax.dynamic_update_slice_in_dim(found, new, start, 0)

    return assign.over_chunks(n, size, step, jnp.zeros((n, h), jnp.int32))

  return mesh.per_shard(local, (mesh.ROWS, mesh.REPLICATED), mesh.ROWS)(
    rows, params
  )


def shares(
  assignments: Int[Array, "b h"], names: Int[Array, "h k"]
) -> Float32[Array, "b k"]:
  """Returns the share of the heads that voted for each cluster.

  Its argmax is the cluster of `vote`. To be traced; [b, k] exist at once.

  Args:
    assignments: [b, h], of images that need not be those of `agree`.
    names: [h, k] what each head's cluster is called.
  """
  votes = _votes(assignments, names, jnp.ones(len(names), bool))
  return votes / jnp.float32(len(names))


def _match(table: Int32[Array, "k k"]) -> Int32[np.ndarray, "k"]:
  """Returns a name for each of a head's clusters, so that most images agree."""
  _, names = scipy.optimize.linear_sum_assignment(
    np.asarray(table), maximize=True
  )
  return names.astype(np.int32)


@jax.jit
def _table(assignments, names, voters, head):
  """Counts the votes that the images of each of a head's clusters have.

  Args:
    assignments: [n, h] row-sharded.
    names: [h, k].
    voters: [h] bool, whose votes count.
    head: Whose clusters.

  Returns:
    [k, k] int32: [c, m] votes for m of the images in its cluster c.
  """
  k = names.shape[1]

  def local(assignments, names, voters, head):
    n = assignments.shape[0]
    size = assign.chunk_rows(n, k, None)

    def step(table, start, fresh):
      rows = jax.lax.dynamic_slice_in_dim(assignments, start, size)
      own = jnp.where(fresh, jnp.take(rows, head, axis=1), k)
      return table.at[own].add(_votes(rows, names, voters), mode="drop")

    table = jnp.zeros((k, k), jnp.int32)
    table = assign.over_chunks(n, size, step, table)
    return jax.lax.psum(table, mesh.AXIS)

  whole = mesh.REPLICATED
  return mesh.per_shard(local, (mesh.ROWS, whole, whole, whole), whole)(
    assignments, names, voters, head
  )


@jax.jit
def _vote(assignments, names):
  h, k = names.shape

  def local(assignments, names):
    n = assignments.shape[0]
    size = assign.chunk_rows(n, k, None)

    def step(found, start, _):
      rows = jax.lax.dynamic_slice_in_dim(assignments, start, size)
      votes = _votes(rows, names, jnp.ones(h, bool))
      most = jnp.max(votes, axis=1)
      clusters = jnp.where(most > 0, jnp.argmax(votes, axis=1), k)
      new = clusters.astype(jnp.int32), most / jnp.float32(h)
      return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0),
        found,
        new,
      )

    nothing = jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.float32)
    return assign.over_chunks(n, size, step, nothing)

  return mesh.per_shard(
    local, (mesh.ROWS, mesh.REPLICATED), (mesh.ROWS, mesh.ROWS)
  )(assignments, names)


def _votes(
  rows: Int[Array, "c h"], names: Int[Array, "h k"], voters: Bool[Array, "h"]
) -> Int32[Array, "c k"]:
  """Counts every image's votes; a head without a cluster for it has none."""
  c, k = rows.shape[0], names.shape[1]
  named = jnp.take_along_axis(names, jnp.minimum(rows.T, k - 1), axis=1).T
  named = jnp.where((rows < k) & voters[None, :], named, k)
  votes = jnp.zeros((c, k), jnp.int32)
  return votes.at[jnp.arange(c)[:, None], named].add(1, mode="drop")
