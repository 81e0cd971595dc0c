"""Lloyd's k-means over a row-sharded memory.

What the official code asks of faiss (third_party/clustering.py: 20 iterations,
one run, no sub-sampling, labels from a final search), with two differences:

* an empty cluster takes half of the largest one, where faiss draws the one to
  split at random (Clustering.cpp: split_clusters); no randomness is left once
  the start is chosen;
* clusters that the final search leaves empty are filled, each with one row.
  ODC's memory starts from these clusters and cannot start from an empty one
  (odc_memory.py: init_memory asserts it).

An iteration is one pass over each device's own rows and one sum of [k, d] + [k]
over the devices. Nothing that grows with n moves between them.

The sums by cluster are scatter-adds. They repeat bit by bit on a CPU and a TPU;
on a GPU only with `--xla_gpu_deterministic_ops=true` in XLA_FLAGS.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from odc_jax import mesh
from odc_jax.clustering import assign

# By how much faiss moves the two halves of a split cluster apart.
_SPLIT = 1 / 1024


class KMeans(NamedTuple):
  """A clustering, each part consistent with the assignments.

  Attributes:
    centroids: [k, d] float32 means of the clusters' rows, replicated.
    assignments: [n] int32 cluster of each row, k on padding; row-sharded.
    sizes: [k] int32 rows in each cluster, none of them 0; replicated.
    inertia: Sum of the squared distances of the rows to their centroids.
  """

  centroids: Float32[Array, "k d"]
  assignments: Int32[Array, "n"]
  sizes: Int32[Array, "k"]
  inertia: Float32[Array, ""]


def kmeans(
  x: Float[Array, "n d"],
  key: Array,
  *,
  num_examples: int,
  num_clusters: int,
  num_iters: int | Int32[Array, ""] = 20,
  init: Literal["random", "k-means++"] | Float[Array, "k d"] = "random",
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> KMeans:
  """Clusters the rows by Euclidean distance.

  For ODC and DeepCluster the caller normalises the rows. The result is the same
  on any number of devices, up to float rounding. Iterations stop early at a
  fixed point, which changes nothing but the time.

  After `num_iters` iterations the rows are assigned a last time; the centroids
  returned are the means of that assignment, which is why they are not exactly
  the ones it was made with.

  Args:
    x: [n, d] row-sharded, of any float type; n, which includes the padding, is
      a multiple of the number of devices. Summed in float32.
    key: For the start. Nothing else is random.
    num_examples: Rows from this one on are padding, whatever they hold.
    num_clusters: k.
    num_iters: Lloyd iterations at most; may be traced.
    init: The first centroids: "random", k distinct rows; "k-means++", each row
      drawn with a probability proportional to its squared distance from those
      drawn before, at the price of k passes over the memory (k x n x d
      multiplications, as in an iteration, but at the speed of the main memory:
      as long as some tens of iterations); or the [k, d] centroids themselves.
    chunk_size: Rows a device takes at a time; None: see `assign.assign_all`.
    precision: Of the matmuls; see `assign.nearest`.

  Returns:
    The clustering. Every cluster has a row, even where there are fewer than k
    distinct ones.

  Raises:
    ValueError: There are fewer examples than clusters, more than rows, or
      `init` is unknown or of the wrong shape.

  Source: facebookresearch/deepcluster clustering.py: run_kmeans; faiss
  Clustering.cpp. k-means++: Arthur & Vassilvitskii, SODA 2007.
  """
  assign.check_num_examples(num_examples, x.shape[0])
  if not 1 <= num_clusters <= num_examples:
    raise ValueError(
      f"num_clusters {num_clusters} is not in [1, num_examples "
      f"{num_examples}]: every cluster needs a row"
    )
  if isinstance(init, str):
    if init not in _SEEDING:
      raise ValueError(f"init {init!r} is none of {', '.join(_SEEDING)}")
    start, seeding = None, init
  else:
    if init.shape != (num_clusters, x.shape[1]):
      raise ValueError(
        f"init has shape {init.shape}, not {(num_clusters, x.shape[1])}"
      )
    start, seeding = init, None
  return _kmeans(
    x,
    key,
    start,
    num_examples=num_examples,
    num_clusters=num_clusters,
    num_iters=num_iters,
    seeding=seeding,
    chunk_size=chunk_size,
    precision=precision,
  )


@functools.partial(
  jax.jit,
  static_argnames=(
    "num_examples",
    "num_clusters",
    "seeding",
    "chunk_size",
    "precision",
  ),
)
def _kmeans(
  x,
  key,
  start,
  *,
  num_examples,
  num_clusters,
  num_iters,
  seeding,
  chunk_size,
  precision,
):
  k = num_clusters

  def local(x, key, start, num_iters):
    size = assign.chunk_rows(x.shape[0], k, chunk_size)
    if seeding is None:
      centroids = start.astype(jnp.float32)
    else:
      centroids = _SEEDING[seeding](x, key, num_examples, k)

    def unfinished(carry):
      i, _, moved = carry
      return (i < num_iters) & moved

    def iterate(carry):
      i, centroids, _ = carry
      _, means, sizes = _search(x, centroids, num_examples, size, precision)
      means = _split_largest(means, sizes)
      return i + 1, means, jnp.any(means != centroids)

    _, centroids, _ = jax.lax.while_loop(
      unfinished, iterate, (0, centroids, True)
    )
    assignments, means, sizes = _search(
      x, centroids, num_examples, size, precision
    )

    def fill(_):
      distances = _distances(x, centroids, assignments, size)
      filled = _fill_empty(assignments, distances, sizes, num_examples)
      return filled, *_means(x, filled, k)

    def keep(_):
      return assignments, means, sizes

    assignments, means, sizes = jax.lax.cond(
      jnp.any(sizes == 0), fill, keep, None
    )
    distances = _distances(x, means, assignments, size)
    inertia = jax.lax.psum(jnp.sum(distances), mesh.AXIS)
    return means, assignments, sizes, inertia

  rows, whole = mesh.ROWS, mesh.REPLICATED
  cluster = mesh.per_shard(
    local, (rows, whole, whole, whole), (whole, rows, whole, whole)
  )
  return KMeans(*cluster(x, key, start, num_iters))


# Everything below runs inside `per_shard`: x, assignments and distances are one
# device's rows, centroids and sizes are whole and the same on every device.


def _search(x, centroids, num_examples, chunk_size, precision):
  """One pass: the nearest centroid of each row, the new means, the sizes."""
  k = centroids.shape[0]
  directions, bias = assign.score_terms(centroids, "l2")
  _, valid = assign.global_rows(x.shape[0], num_examples)

  def step(carry, start, fresh):
    assignments, sums, sizes = carry
    rows = assign.slice_rows(x, start, chunk_size)
    found, _ = assign.best(rows, directions, bias, precision)
    is_row = jax.lax.dynamic_slice_in_dim(valid, start, chunk_size)
    found = jnp.where(is_row, found, k)
    assignments = jax.lax.dynamic_update_slice_in_dim(
      assignments, found, start, 0
    )
    sums, sizes = assign.add_by_cluster(
      sums, sizes, rows, jnp.where(fresh, found, k)
    )
    return assignments, sums, sizes

  assignments, sums, sizes = assign.over_chunks(
    x.shape[0],
    chunk_size,
    step,
    (jnp.full(x.shape[0], k, jnp.int32), *_nothing(k, x.shape[1])),
  )
  return assignments, *_reduce_means(sums, sizes)


def _means(x, assignments, k):
  """The means and sizes of given clusters."""
  return _reduce_means(*assign.sum_by_cluster(x, assignments, k))


def _nothing(k, d):
  return jnp.zeros((k, d), jnp.float32), jnp.zeros(k, jnp.int32)


def _reduce_means(sums, sizes):
  sums, sizes = jax.lax.psum((sums, sizes), mesh.AXIS)
  return sums / jnp.maximum(sizes, 1)[:, None], sizes


def _distances(x, centroids, assignments, chunk_size):
  """Squared distance of each row to its centroid, 0 on padding.

  From the differences, not from inner products, so that it is exactly 0 where
  row and centroid are equal and accurate where they are close.
  """
  k = centroids.shape[0]

  def step(distances, start, _):
    rows = assign.slice_rows(x, start, chunk_size)
    labels = jax.lax.dynamic_slice_in_dim(assignments, start, chunk_size)
    difference = rows - centroids[jnp.minimum(labels, k - 1)]
    found = jnp.sum(difference * difference, axis=1)
    found = jnp.where(labels < k, found, 0)
    return jax.lax.dynamic_update_slice_in_dim(distances, found, start, 0)

  zeros = jnp.zeros(x.shape[0], jnp.float32)
  return assign.over_chunks(x.shape[0], chunk_size, step, zeros)


# Empty clusters.


def _split_largest(centroids, sizes):
  """Gives each empty cluster half of the largest one.

  As faiss: copy the centroid, move the two apart by a factor 1 +- 1/1024 whose
  sign alternates over the coordinates, count half of the rows as moved.
  """
  sign = jnp.where(jnp.arange(centroids.shape[1]) % 2 == 0, _SPLIT, -_SPLIT)

  def any_empty(carry):
    _, sizes = carry
    return jnp.min(sizes) == 0

  def split(carry):
    centroids, sizes = carry
    empty, largest = jnp.argmin(sizes), jnp.argmax(sizes)
    centroid = centroids[largest]
    # With n >= k rows the largest has two or more: half of it is not 0.
    half = sizes[largest] // 2
    centroids = centroids.at[empty].set(centroid * (1 + sign))
    centroids = centroids.at[largest].set(centroid * (1 - sign))
    return centroids, sizes.at[empty].set(half).at[largest].add(-half)

  centroids, _ = jax.lax.while_loop(any_empty, split, (centroids, sizes))
  return centroids


def _fill_empty(assignments, distances, sizes, num_examples):
  """Moves one row into each empty cluster: those farthest from their centroid.

  Each cluster keeps its nearest row, and of all the others the farthest move.
  That is what taking the farthest row whose cluster has more than one, again
  and again, would give, without a pass for every empty cluster.
  """
  k = sizes.shape[0]
  rows, valid = assign.global_rows(assignments.shape[0], num_examples)
  clusters = jnp.minimum(assignments, k - 1)  # in range on padding too

  def smallest_by_cluster(values):
    return jax.lax.pmin(
      jax.ops.segment_min(values, assignments, num_segments=k), mesh.AXIS
    )

  is_nearest = distances == smallest_by_cluster(distances)[clusters]
  keepers = smallest_by_cluster(
    jnp.where(is_nearest, rows, jnp.iinfo(jnp.int32).max)
  )
  movable = valid & (rows != keepers[clusters])
  # The bits of floats that are not negative are in the order of the floats.
  order = jax.lax.bitcast_convert_type(distances, jnp.int32)
  empty = sizes == 0
  ranks = _rank_largest(jnp.where(movable, order, -1), jnp.sum(empty))
  (targets,) = jnp.nonzero(empty, size=k, fill_value=k)
  target = targets.at[ranks].get(mode="fill", fill_value=k)
  return jnp.where(target < k, target, assignments).astype(jnp.int32)


def _rank_largest(values, count):
  """Numbers the `count` largest values of all devices in the order of rows.

  By bisection, 31 counts, instead of a sort: `top_k` would have to gather
  `count` candidates from every device, which for a large `count` is everything.

  Args:
    values: [n] int32, this device's; negative ones are no candidates. There
      must be at least `count` candidates. Of equal ones, earlier rows win.
    count: How many to number; may be traced.

  Returns:
    [n] int32: 0 to count - 1 on the chosen, and int32's maximum on the others.
  """

  def total(mask):
    return jax.lax.psum(jnp.sum(mask, dtype=jnp.int32), mesh.AXIS)

  def set_bit(i, threshold):
    higher = threshold | (1 << (30 - i))
    return jnp.where(total(values >= higher) >= count, higher, threshold)

  # The `count`-th largest value, bit by bit.
  threshold = jax.lax.fori_loop(0, 31, set_bit, jnp.int32(0))
  above, equal = values > threshold, values == threshold
  chosen = above | (equal & (_number(equal) < count - total(above)))
  return jnp.where(chosen, _number(chosen), jnp.iinfo(jnp.int32).max)


def _number(mask):
  """How many True come before each element, over all devices."""
  counts = jnp.cumsum(mask, dtype=jnp.int32)
  totals = jax.lax.all_gather(counts[-1], mesh.AXIS)  # one number a device
  earlier = jnp.arange(totals.shape[0]) < jax.lax.axis_index(mesh.AXIS)
  return jnp.sum(jnp.where(earlier, totals, 0)) + counts - mask


# Starts. The noise belongs to the row, by its number, so that the start does
# not depend on how many devices there are.


def _per_row(draw, key, rows):
  return jax.vmap(lambda row: draw(jax.random.fold_in(key, row)))(rows)


def _take(x, ids):
  """Rows of the whole memory by number: each device adds what it has."""
  rows = ids - jax.lax.axis_index(mesh.AXIS) * x.shape[0]
  mine = (rows >= 0) & (rows < x.shape[0])
  # Clipped: a negative index would count from the end.
  rows = jnp.clip(rows, 0, x.shape[0] - 1)
  taken = assign.widened(x, rows, lambda x, rows: x[rows])
  return jax.lax.psum(jnp.where(mine[:, None], taken, 0), mesh.AXIS)


def random_rows(x, key, valid, k):
  """Inside `per_shard`: k distinct rows, those with the largest noise.

  Args:
    x: This device's rows.
    key: The same on every device.
    valid: Which of the rows may be drawn; if all devices together have fewer
      than k, row 0 stands in for the others.
    k: How many.

  Returns:
    [k, d] float32, the same on every device.
  """
  rows, _ = assign.global_rows(x.shape[0], 0)
  noise = _per_row(jax.random.bits, key, rows) >> 1
  values = jnp.where(valid, noise.astype(jnp.int32), -1)
  ranks = _rank_largest(values, k)
  ids = jnp.zeros(k, jnp.int32).at[ranks].set(rows, mode="drop")
  return _take(x, jax.lax.psum(ids, mesh.AXIS))


def _random(x, key, num_examples, k):
  _, valid = assign.global_rows(x.shape[0], num_examples)
  return random_rows(x, key, valid, k)


def _plus_plus(x, key, num_examples, k):
  """k-means++: each next row with probability proportional to D^2.

  Drawn as the largest of log D^2 plus Gumbel noise, which needs no running sum
  over the rows.
  """
  rows, valid = assign.global_rows(x.shape[0], num_examples)

  def pick(i, log_weights):
    noise = _per_row(jax.random.gumbel, jax.random.fold_in(key, i), rows)
    # Where all rows are drawn, or equal to one that is, all are -inf: row 0.
    values = jnp.where(valid, log_weights + noise, -jnp.inf)
    largest = jax.lax.pmax(jnp.max(values), mesh.AXIS)
    first = jnp.min(jnp.where(values < largest, jnp.iinfo(jnp.int32).max, rows))
    return _take(x, jax.lax.pmin(first, mesh.AXIS)[None])

  def add(i, carry):
    centroids, squared = carry
    centroid = pick(i, jnp.log(squared))
    difference = assign.widened(x, i, lambda x, _: x) - centroid
    squared = jnp.minimum(squared, jnp.sum(difference * difference, axis=1))
    return centroids.at[i].set(centroid[0]), squared

  # All equal, so that the first is drawn uniformly; more than any distance.
  squared = jnp.full(x.shape[0], jnp.finfo(jnp.float32).max)
  centroids = jnp.zeros((k, x.shape[1]), jnp.float32)
  centroids, _ = jax.lax.fori_loop(0, k, add, (centroids, squared))
  return centroids


_SEEDING = {"random": _random, "k-means++": _plus_plus}
