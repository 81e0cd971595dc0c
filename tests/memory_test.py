"""The memories against rows worked by hand and sums recomputed in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax import labels as labels_lib
from odc_jax import memory
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import spherical
from odc_jax.memory import CentroidMemory, SampleMemory
from odc_jax.plan import collectives

write = jax.jit(memory.write)
move = jax.jit(memory.move)
recompute = jax.jit(memory.recompute, static_argnums=1)
deal = jax.jit(
  memory.deal_with_small_clusters, static_argnames=("min_cluster", "metric")
)


def make_samples(mesh, features, assignments, k, rows, dtype=np.float32):
  """A row-sharded memory of `rows` rows; `previous` is told apart."""
  n, d = np.shape(features)
  padded = np.zeros((rows, d), np.float32)
  padded[:n] = features
  clusters = np.full((rows,), k, np.int32)
  clusters[:n] = assignments
  samples = SampleMemory(jnp.asarray(padded, dtype), clusters, clusters[::-1])
  return jax.device_put(samples, mesh_lib.rows(mesh))


def sums_of(samples, k):
  """Sums and counts of the clusters, in NumPy and float64."""
  features = np.asarray(samples.features, np.float64)
  clusters = np.asarray(samples.assignments)
  real = clusters < k
  sums = np.zeros((k, features.shape[1]))
  np.add.at(sums, clusters[real], features[real])
  return sums, np.bincount(clusters[real], minlength=k)


def make_centroids(samples, means):
  """A centroid memory with the given centroids and the true sums."""
  sums, counts = sums_of(samples, len(means))
  return CentroidMemory(
    jnp.asarray(means, jnp.float32),
    jnp.asarray(sums, jnp.float32),
    jnp.asarray(counts, jnp.int32),
  )


def check_sums(samples, centroids, atol=1e-5):
  sums, counts = sums_of(samples, len(centroids.counts))
  np.testing.assert_array_equal(centroids.counts, counts)
  np.testing.assert_allclose(centroids.sums, sums, rtol=1e-5, atol=atol)


# Rows.


def test_padded_rows_are_multiples_of_1024():
  rows = [mesh_lib.padded_rows(n) for n in (1, 1023, 1024, 1025, 50_000)]
  assert rows == [1024, 1024, 1024, 2048, 50_176]


def test_normalize_by_hand_and_zero_stays_zero():
  unit = spherical.normalize(jnp.array([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]]))
  np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0], [0, -1]], rtol=1e-6)


def test_blend_by_hand():
  old = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
  new = jnp.array([[0.0, 4.0], [3.0, 0.0], [0.0, -9.0], [0.0, 0.0]])
  found = memory.blend(old, new, 0.25)
  # (.75, .25), then opposite rows, of which the heavier wins, then nothing
  # new.
  r = np.sqrt(0.625)
  expected = [[0.75 / r, 0.25 / r], [1, 0], [0, 1], [0.6, 0.8]]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  # All of the new row, none of the old.
  found = memory.blend(old, new, 1.0)
  np.testing.assert_allclose(found, [[0, 1], [1, 0], [0, -1], [0, 0]])


def test_blend_rounds_to_the_memory_s_type_at_the_end():
  rng = np.random.default_rng(0)
  old = jnp.asarray(rng.normal(size=(50, 6)), jnp.bfloat16)
  new = jnp.asarray(rng.normal(size=(50, 6)), jnp.float32)
  found = memory.blend(old, new, 0.5)
  assert found.dtype == jnp.bfloat16
  o, f = np.asarray(old, np.float64), np.asarray(new, np.float64)
  mixed = 0.5 * o + 0.5 * f / np.linalg.norm(f, axis=1, keepdims=True)
  mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
  # One rounding to 8 bits.
  found = np.asarray(found, np.float64)
  np.testing.assert_allclose(found, mixed, rtol=1.01 / 256)


def test_last_occurrence_by_hand():
  last = labels_lib.last_occurrence(jnp.array([3, 1, 3, 3, 1, 0]))
  np.testing.assert_array_equal(last, [False, False, False, True, True, True])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_write_by_hand(mesh, dtype):
  start = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]]
  samples = make_samples(mesh, start, [0, 1, 2, 0], 3, 8, dtype)
  # Image 2 comes twice; 8 lies past the end.
  index = jnp.array([2, 0, 2, 8], jnp.int32)
  features = jnp.array([[5.0, 1.0], [6.0, 1.0], [7.0, 1.0], [8.0, 1.0]])
  clusters = jnp.array([0, 1, 2, 1], jnp.int32)
  after = write(samples, index, features, clusters)
  expected = np.zeros((8, 2))
  expected[:4] = [[6, 1], [2, 0], [7, 1], [4, 0]]
  np.testing.assert_array_equal(after.features.astype(jnp.float32), expected)
  assert after.features.dtype == dtype
  np.testing.assert_array_equal(after.assignments, [1, 1, 2, 0, 3, 3, 3, 3])
  np.testing.assert_array_equal(after.previous, samples.previous)


def test_gather_by_hand(mesh):
  samples = make_samples(mesh, [[1.0], [2.0], [3.0]], [2, 0, 1], 3, 8)
  features, clusters = memory.gather(samples, jnp.array([2, 0, 2]))
  np.testing.assert_array_equal(features, [[3], [1], [3]])
  np.testing.assert_array_equal(clusters, [1, 2, 1])


# Sums and centroids.


def test_move_by_hand(mesh):
  del mesh
  centroids = CentroidMemory(
    jnp.array([[9.0], [8.0], [7.0]]),
    jnp.array([[10.0], [20.0], [0.0]]),
    jnp.array([2, 3, 0], jnp.int32),
  )
  # Image 5 comes twice, and only its second new row was written; both of its
  # old rows are what the memory held. Image 6 stays in its cluster.
  old = (jnp.array([[4.0], [4.0], [1.0], [2.0]]), jnp.array([0, 0, 1, 1]))
  new = (jnp.array([[50.0], [6.0], [3.0], [7.0]]), jnp.array([1, 2, 1, 0]))
  after = move(centroids, jnp.array([5, 5, 6, 4]), old, new)
  np.testing.assert_array_equal(after.sums, [[10 - 4 + 7], [20 - 3 + 3], [6]])
  np.testing.assert_array_equal(after.counts, [2, 2, 1])
  np.testing.assert_array_equal(after.centroids, centroids.centroids)


def test_thirty_steps_of_moves_equal_a_recomputation(mesh):
  n, d, k, b = 40, 5, 6, 24
  rng = np.random.default_rng(0)
  samples = make_samples(
    mesh, rng.normal(size=(n, d)), rng.integers(k, size=n), k, 48
  )
  centroids = recompute(samples, k)
  means = np.array(centroids.centroids)
  features = np.array(samples.features)
  clusters = np.array(samples.assignments)
  num_duplicates = 0
  for _ in range(30):
    index = rng.integers(n, size=b).astype(np.int32)
    num_duplicates += b - len(set(index.tolist()))
    rows = rng.normal(size=(b, d)).astype(np.float32)
    targets = rng.integers(k, size=b).astype(np.int32)
    index, new = jnp.asarray(index), (jnp.asarray(rows), jnp.asarray(targets))
    old = memory.gather(samples, index)
    samples = write(samples, index, *new)
    centroids = move(centroids, index, old, new)
    # One after the other, as NumPy's loop does.
    for i, row, target in zip(np.asarray(index), rows, targets, strict=True):
      features[i], clusters[i] = row, target
  assert num_duplicates > 100
  np.testing.assert_array_equal(samples.features, features)
  np.testing.assert_array_equal(samples.assignments, clusters)
  np.testing.assert_array_equal(samples.features[n:], 0)
  np.testing.assert_array_equal(samples.assignments[n:], k)
  check_sums(samples, centroids)
  np.testing.assert_array_equal(centroids.centroids, means)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_recompute_by_hand(mesh, dtype):
  rows = [[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]]
  samples = make_samples(mesh, rows, [0, 2, 0, 2], 3, 8, dtype)
  centroids = recompute(samples, 3)
  np.testing.assert_array_equal(centroids.sums, [[4, 3], [0, 0], [-1, 2]])
  np.testing.assert_array_equal(centroids.counts, [2, 0, 2])
  # Not unit vectors.
  np.testing.assert_array_equal(
    centroids.centroids, [[2, 1.5], [0, 0], [-0.5, 1]]
  )
  assert centroids.sums.dtype == centroids.centroids.dtype == jnp.float32


def test_recompute_leaves_pad_rows_out_whatever_they_hold(mesh):
  samples = make_samples(mesh, np.ones((11, 2)), [0, 1] * 5 + [0], 2, 16)
  junk = samples.features.at[11:].set(1e30)
  centroids = recompute(samples._replace(features=junk), 2)
  np.testing.assert_array_equal(centroids.sums, [[6, 6], [5, 5]])
  np.testing.assert_array_equal(centroids.counts, [6, 5])


def test_refresh_by_hand_and_empty_clusters_keep_theirs():
  before = CentroidMemory(
    jnp.array([[1.0, 1.0], [5.0, 6.0], [0.0, 0.0], [2.0, 2.0]]),
    jnp.array([[4.0, 2.0], [0.0, 0.0], [3.0, -3.0], [7.0, 0.0]]),
    jnp.array([2, 0, 3, 1], jnp.int32),
  )
  after = memory.refresh(before)
  np.testing.assert_array_equal(
    after.centroids, [[2, 1], [5, 6], [1, -1], [7, 0]]
  )
  np.testing.assert_array_equal(after.sums, before.sums)
  np.testing.assert_array_equal(after.counts, before.counts)


# Small clusters. All hand-made cases share their sizes, and so one program.
K, D, ROWS, MIN = 4, 2, 24, 3


def check_unchanged(before, after):
  jax.tree.map(np.testing.assert_array_equal, before, tuple(after))


def one_small(mesh):
  """Two members of cluster 3, nearest by dot to 0, cosine to 1, l2 to 2.

  To their own centroid they would be nearest by cosine and l2. Cluster 0 is
  the largest; its two rows on the left are a part of their own.
  """
  groups = [
    [[5.0, 5.0], [5.1, 5.0], [5.0, 5.2], [5.2, 5.1], [-5.0, 5.0], [-5.1, 5.0]],
    [[0.1, 0.0], [0.2, 0.0], [0.0, 0.1]],
    [[1.2, 0.4], [1.3, 0.4], [1.2, 0.5]],
    [[1.0, 0.0], [1.0, 0.02]],
  ]
  features = np.concatenate(groups)
  clusters = np.repeat(np.arange(K), [len(group) for group in groups])
  # Interleaved, so that every device has some of several clusters.
  order = np.random.default_rng(0).permutation(len(features))
  samples = make_samples(mesh, features[order], clusters[order], K, ROWS)
  means = [[10.0, 10.0], [0.1, 0.0], [1.2, 0.4], [1.0, 0.01]]
  return samples, make_centroids(samples, means), order


@pytest.mark.parametrize(
  ("metric", "target"), [("dot", 0), ("cosine", 1), ("l2", 2)]
)
def test_one_small_cluster_by_hand(mesh, metric, target):
  samples, centroids, order = one_small(mesh)
  after, moved, dissolved = deal(
    samples, centroids, MIN, jax.random.key(0), metric=metric
  )
  assert dissolved == 1
  # In the order of `one_small`'s groups: the rows on the left take the
  # emptied cluster, being fewer.
  expected = np.array([0] * 4 + [3] * 2 + [1] * 3 + [2] * 3 + [target] * 2)
  np.testing.assert_array_equal(after.assignments[:14], expected[order])
  np.testing.assert_array_equal(after.assignments[14:], K)
  check_sums(after, moved)
  # The centroids of the halves are their means; the others stay, even that
  # of the cluster that took the members in.
  sums, counts = sums_of(after, K)
  np.testing.assert_allclose(
    moved.centroids[jnp.array([0, 3])],
    (sums / counts[:, None])[[0, 3]],
    rtol=1e-6,
  )
  np.testing.assert_array_equal(moved.centroids[1:3], centroids.centroids[1:3])
  np.testing.assert_array_equal(after.features, samples.features)
  np.testing.assert_array_equal(after.previous, samples.previous)


def test_renaming_the_clusters_renames_the_result(mesh):
  samples, centroids, _ = one_small(mesh)
  key = jax.random.key(0)
  after, moved, _ = deal(samples, centroids, MIN, key, metric="dot")
  # Cluster c is called new[c]; padding keeps its name.
  new = np.array([2, 3, 1, 0, K])
  old = np.argsort(new[:K])

  def rename(samples, centroids):
    renamed = jnp.asarray(new, jnp.int32)[samples.assignments]
    return (
      samples._replace(assignments=renamed),
      jax.tree.map(lambda x: x[jnp.asarray(old)], centroids),
    )

  found = deal(*rename(samples, centroids), MIN, key, metric="dot")
  check_unchanged(rename(after, moved), found[:2])


def test_no_small_cluster_changes_nothing(mesh):
  rng = np.random.default_rng(0)
  # Exactly `min_cluster` members are enough.
  clusters = np.repeat([2, 0, 3, 1], [MIN, 5, 7, 4])
  samples = make_samples(mesh, rng.normal(size=(19, D)), clusters, K, ROWS)
  centroids = make_centroids(samples, rng.normal(size=(K, D)))
  # Sums of which rounding has already eaten some.
  centroids = centroids._replace(sums=centroids.sums + 0.125)
  *after, dissolved = deal(
    samples, centroids, MIN, jax.random.key(0), metric="dot"
  )
  check_unchanged((samples, centroids), after)
  assert dissolved == 0


def test_where_all_clusters_are_small_the_members_stay(mesh):
  clusters = [0, 0, 1, 3, 3]
  samples = make_samples(mesh, np.eye(5)[:, :D], clusters, K, ROWS)
  centroids = make_centroids(samples, np.ones((K, D)))
  *after, dissolved = deal(
    samples, centroids, MIN, jax.random.key(0), metric="dot"
  )
  check_unchanged((samples, centroids), after)
  assert dissolved == 0


def test_the_largest_at_that_moment_is_halved(mesh):
  """Cluster 0 is three lumps: it is halved twice, clusters 1 and 2 small."""
  lump = np.array([[1.0, 0.0]]) + 0.1 * np.random.default_rng(0).normal(
    size=(17, D)
  )
  lump[8:13] += [3.0, 0.0]
  lump[13:16] += [99.0, 0.0]
  top = [[0.0, 50.0], [0.0, 51.0], [0.0, 52.0]]
  # The 17th row of the lumps is alone in cluster 1, 2 is empty.
  clusters = [0] * 16 + [1] + [3] * 3
  samples = make_samples(mesh, np.concatenate([lump, top]), clusters, K, ROWS)
  means = [[20.0, 0.0], [1.0, 0.0], [30.0, 0.0], [0.0, 20.0]]
  centroids = make_centroids(samples, means)
  after, moved, dissolved = deal(
    samples, centroids, MIN, jax.random.key(3), metric="dot"
  )
  assert dissolved == 2
  # First the far three leave for cluster 1, then the five for cluster 2.
  expected = [0] * 8 + [2] * 5 + [1] * 3 + [0] + [3] * 3
  np.testing.assert_array_equal(after.assignments[:20], expected)
  check_sums(after, moved)
  sums, counts = sums_of(after, K)
  np.testing.assert_allclose(
    moved.centroids[:3], (sums / counts[:, None])[:3], rtol=1e-5
  )
  np.testing.assert_array_equal(moved.centroids[3], centroids.centroids[3])


def test_a_halved_cluster_makes_way_for_the_next_largest(mesh):
  """Cluster 0 of ten is halved, after which cluster 3 of seven is larger."""
  right, top = np.zeros((10, D)), np.zeros((7, D))
  right[:, 0] = [10, 10, 10, 10, 10, 30, 30, 30, 30, 10]
  top[:, 1] = [10, 10, 10, 30, 30, 30, 30]
  clusters = [0] * 9 + [2] + [3] * 7
  samples = make_samples(mesh, np.concatenate([right, top]), clusters, K, ROWS)
  means = [[20.0, 0.0], [1.0, 0.0], [30.0, 0.0], [0.0, 20.0]]
  after, moved, dissolved = deal(
    samples,
    make_centroids(samples, means),
    MIN,
    jax.random.key(0),
    metric="dot",
  )
  assert dissolved == 2
  expected = [0] * 5 + [1] * 4 + [0] + [2] * 3 + [3] * 4
  np.testing.assert_array_equal(after.assignments[:17], expected)
  np.testing.assert_allclose(
    moved.centroids, [[10, 0], [30, 0], [0, 10], [0, 30]], rtol=1e-6
  )
  check_sums(after, moved)


def test_identical_rows_are_halved(mesh):
  features = np.concatenate([np.full((7, D), 0.6), np.eye(6)[:, :D]])
  clusters = [1] * 7 + [0] * 3 + [2] * 3
  samples = make_samples(mesh, features, clusters, K, ROWS)
  centroids = make_centroids(samples, np.ones((K, D)))
  after, moved, dissolved = deal(
    samples, centroids, MIN, jax.random.key(0), metric="dot"
  )
  assert dissolved == 1
  np.testing.assert_array_equal(moved.counts, [3, 4, 3, 3])
  check_sums(after, moved)
  np.testing.assert_allclose(moved.centroids[1], [0.6, 0.6], rtol=1e-6)
  np.testing.assert_allclose(moved.centroids[3], [0.6, 0.6], rtol=1e-6)


def test_a_cluster_of_one_is_not_halved(mesh):
  clusters = [2, 0, 1]
  samples = make_samples(mesh, np.eye(3)[:, :D] + 1, clusters, K, ROWS)
  centroids = make_centroids(samples, np.full((K, D), 7.0))
  after, moved, dissolved = deal(
    samples, centroids, 1, jax.random.key(0), metric="dot"
  )
  assert dissolved == 1
  np.testing.assert_array_equal(after.assignments, samples.assignments)
  check_sums(after, moved)
  # The one that stays empty keeps its centroid.
  np.testing.assert_array_equal(moved.centroids[1:], centroids.centroids[1:])


def test_random_memories_on_one_and_eight_devices():
  n, d, k, rows, small = 300, 6, 12, 304, 10
  rng = np.random.default_rng(1)
  features = rng.normal(size=(n, d))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  weights = np.array([0, 1, 2, 3, 20, 40, 60, 80, 30, 30, 20, 20.0])
  clusters = rng.choice(k, size=n, p=weights / weights.sum())
  found = []
  for num_devices in (1, 8):
    mesh = mesh_lib.make_mesh(num_devices)
    with jax.set_mesh(mesh):
      samples = make_samples(mesh, features, clusters, k, rows, jnp.bfloat16)
      before = recompute(samples, k)
      after, moved, dissolved = deal(
        samples, before, small, jax.random.key(1), metric="cosine"
      )
    was_small = np.asarray(before.counts) < small
    assert dissolved == was_small.sum() == 4
    check_sums(after, moved)
    counts = np.asarray(moved.counts)
    assert counts.sum() == n
    assert counts.min() >= 1
    np.testing.assert_array_equal(after.assignments[n:], k)
    # Who changed clusters was dissolved, or left a halved one for an emptied
    # one: nobody else joins an emptied one.
    old, new = clusters, np.asarray(after.assignments)[:n]
    stayed_large = ~was_small[old] & ~was_small[new]
    np.testing.assert_array_equal(old[stayed_large], new[stayed_large])
    # Dissolved ones go to the nearest allowed centroid; some left it since.
    means = np.asarray(before.centroids, np.float64)
    scores = (
      np.asarray(samples.features, np.float64)[:n]
      @ (
        means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
      ).T
    )
    scores[:, was_small] = -np.inf
    nearest = scores.argmax(1)
    landed = was_small[old] & ~was_small[new]
    assert landed.any()
    np.testing.assert_array_equal(new[landed], nearest[landed])
    # A centroid either stays or is its members' mean.
    sums, _ = sums_of(after, k)
    stays = (np.asarray(moved.centroids) == np.asarray(before.centroids)).all(1)
    assert not stays[was_small].any()
    assert 1 <= (~stays & ~was_small).sum() <= 4
    np.testing.assert_allclose(
      np.asarray(moved.centroids)[~stays],
      (sums / counts[:, None])[~stays],
      rtol=1e-5,
      atol=1e-6,
    )
    found.append((after.assignments, moved))
  np.testing.assert_array_equal(found[0][0], found[1][0])
  for one, eight in zip(*(moved for _, moved in found), strict=True):
    np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-5)


# What travels.


@pytest.mark.optimized
def test_no_collective_grows_with_the_data_set():
  k, d = 16, 8
  mesh = mesh_lib.make_mesh(8)

  def compiled(function, n, *args):
    rows = mesh_lib.rows(mesh)
    ints = jax.ShapeDtypeStruct((n,), jnp.int32, sharding=rows)
    features = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=rows)
    samples = SampleMemory(features, ints, ints)
    with jax.set_mesh(mesh):
      text = function.lower(samples, *args).compile().as_text()
    found = collectives.collectives(text)
    assert found
    return found

  means = jax.ShapeDtypeStruct((k, d), jnp.float32)
  counts = jax.ShapeDtypeStruct((k,), jnp.int32)
  centroids = CentroidMemory(means, means, counts)
  # Neither number is one at which the loops' chunks would change size.
  few, many = (compiled(recompute, n, k) for n in (1024, 8192))
  assert few == many
  assert sum(size for _, _, size in many) == 4 * k * d + 4 * k
  few, many = (
    compiled(deal, n, centroids, 20, jax.random.key(0)) for n in (1024, 8192)
  )
  assert few == many


def test_new_labels_by_hand(mesh):
  """Image 5 twice in a batch: the last counts. Image 0 had no cluster."""
  labels = labels_lib.no_labels(1030, (3, 7))
  assert labels.assignments.shape == (2048, 2)
  assert np.all(np.asarray(labels.assignments) == [3, 7])
  assert np.all(labels.previous == 3)
  labels = jax.device_put(labels, mesh_lib.rows(mesh))
  sizes = jnp.zeros((3,), jnp.int32)
  relabel = jax.jit(labels_lib.relabel)
  index = jnp.array([5, 0, 5, 9, 11, 2, 4, 1])
  clusters = jnp.array(
    [[0, 1], [1, 6], [2, 2], [2, 3], [0, 0], [1, 1], [2, 2], [2, 2]]
  )
  labels, sizes, change = relabel(labels, sizes, index, clusters)
  assert change == 1
  np.testing.assert_array_equal(sizes, [1, 2, 4])
  np.testing.assert_array_equal(labels.assignments[5], [2, 2])
  np.testing.assert_array_equal(labels.assignments[0], [1, 6])
  np.testing.assert_array_equal(labels.assignments[3], [3, 7])
  again = jnp.array([9, 9, 9, 9, 0, 2, 3, 4])
  clusters = jnp.zeros((8, 2), jnp.int32)
  labels, sizes, change = relabel(labels, sizes, again, clusters)
  assert change == 1
  np.testing.assert_array_equal(sizes, [6, 0, 2])
  counts = labels_lib.cluster_sizes(labels.assignments[:, 0], 3)
  np.testing.assert_array_equal(counts, sizes)

  before = labels_lib.at_epoch_start(labels, jnp.int32(7), 7)
  assert np.all(before.previous == labels.assignments[:, 0])
  same = labels_lib.at_epoch_start(labels, jnp.int32(8), 7)
  assert np.all(same.previous == 3)


def test_scalars_of_sizes_by_hand():
  found = labels_lib.size_scalars(jnp.array([2, 0, 6]))
  assert found["cluster/empty"] == 1
  assert (found["cluster/min_size"], found["cluster/max_size"]) == (0, 6)
  expected = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
  np.testing.assert_allclose(found["cluster/entropy"], expected, rtol=1e-6)
  assert (
    labels_lib.size_scalars(jnp.zeros((3,), jnp.int32))["cluster/entropy"] == 0
  )
