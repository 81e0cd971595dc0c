"""The tree against scipy's, its cuts by hand, and what is said of K."""

import numpy as np
import pytest
from scipy.cluster import hierarchy
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from odc_jax.results import tree


def random_clusters(k, d=8, seed=0):
  rng = np.random.default_rng(seed)
  centroids = rng.standard_normal((k, d)).astype(np.float32)
  return centroids, rng.integers(1, 9, k)


def unit(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_equal_sizes_are_scipys_ward():
  centroids, _ = random_clusters(60)
  expected = hierarchy.linkage(unit(centroids), "ward")
  for size in (1, 17):
    merges = tree.merge_tree(centroids, np.full(60, size))
    np.testing.assert_array_equal(merges[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    np.testing.assert_allclose(merges[:, 2], expected[:, 2], atol=1e-5)


def test_sizes_weigh_as_repeated_rows_would():
  centroids, sizes = random_clusters(40)
  merges = tree.merge_tree(centroids, sizes)
  # As many rows as a cluster has images, which scipy merges first, at 0.
  expected = hierarchy.linkage(np.repeat(unit(centroids), sizes, 0), "ward")
  np.testing.assert_allclose(
    merges[:, 2] * sizes.mean() ** 0.5, expected[-39:, 2], atol=1e-5
  )
  for num in (2, 5, 17):
    groups = tree.cut(merges, num, sizes)
    truth = hierarchy.fcluster(expected, num, "maxclust")
    assert adjusted_rand_score(np.repeat(groups, sizes), truth) == 1


def test_by_hand():
  # Cosines: 0 and 3 the same direction, 1 and 2 nearly so.
  centroids = np.array([[1, 0], [0, 1], [0.1, 1], [5, 0]], np.float32)
  merges = tree.merge_tree(centroids, np.array([4, 1, 2, 1]))
  np.testing.assert_array_equal(
    merges[:, [0, 1, 3]], [[0, 3, 2], [1, 2, 2], [4, 5, 4]]
  )
  assert merges[0, 2] == 0
  # sqrt(2 * 0.5 * 1 / 1.5) times the chord, as the mean size is 2.
  chord = (2 - 2 / 1.01**0.5) ** 0.5
  assert merges[1, 2] == pytest.approx((2 / 3) ** 0.5 * chord, rel=1e-3)
  # Images 5 and 3 in two groups; by clusters alone, 2 and 2.
  np.testing.assert_array_equal(tree.cut(merges, 2), [0, 1, 1, 0])
  sizes = np.array([1, 9, 1, 1])
  np.testing.assert_array_equal(tree.cut(merges, 2, sizes), [1, 0, 0, 1])
  np.testing.assert_array_equal(tree.cut(merges, 3, sizes), [1, 0, 2, 1])
  np.testing.assert_array_equal(tree.cut(merges, 1), 0)


@pytest.mark.parametrize("k", [2, 3, 50])
def test_a_valid_linkage_with_nested_cuts(k):
  centroids, sizes = random_clusters(k)
  sizes[::3] = 0
  centroids[::6] = 0
  merges = tree.merge_tree(centroids, sizes)
  assert hierarchy.is_valid_linkage(merges)
  assert hierarchy.is_monotonic(merges)
  assert merges[-1, 3] == k
  finer = tree.cut(merges, k, sizes)
  np.testing.assert_array_equal(np.sort(finer), np.arange(k))
  for num in reversed(range(1, k)):
    groups = tree.cut(merges, num, sizes)
    assert groups.dtype == np.int32
    totals = np.bincount(groups, weights=sizes, minlength=num)
    assert (np.diff(totals) <= 0).all()
    first = [np.flatnonzero(groups == g)[0] for g in range(num)]
    for g in np.flatnonzero(np.diff(totals) == 0):
      assert first[g] < first[g + 1]
    # Two of the finer groups are one; the others are as they were.
    pairs = set(zip(finer.tolist(), groups.tolist(), strict=True))
    assert len(pairs) == num + 1
    finer = groups


def test_empty_clusters_do_not_disturb():
  centroids, sizes = random_clusters(30)
  merges = tree.merge_tree(centroids, sizes)
  more = np.concatenate([np.zeros((2, 8), np.float32), centroids])
  more = np.insert(more, 10, -centroids[5], axis=0)
  more_sizes = np.insert(np.concatenate([[0, 0], sizes]), 10, 0)
  alive = np.flatnonzero(more_sizes)
  with_empty = tree.merge_tree(more, more_sizes)
  np.testing.assert_array_equal(with_empty[:3, 2], 0)
  np.testing.assert_allclose(with_empty[3:, 2], merges[:, 2], atol=1e-6)
  for num in (1, 2, 7, 30):
    groups = tree.cut(with_empty, num, more_sizes)[alive]
    assert adjusted_rand_score(groups, tree.cut(merges, num, sizes)) == 1


def test_only_empty_clusters():
  merges = tree.merge_tree(np.zeros((3, 2), np.float32), np.zeros(3, int))
  assert hierarchy.is_valid_linkage(merges)
  np.testing.assert_array_equal(merges[:, 2], 0)


def test_renumbered_clusters_have_the_same_groups():
  centroids, sizes = random_clusters(50)
  order = np.random.default_rng(1).permutation(50)
  merges = tree.merge_tree(centroids, sizes)
  shuffled = tree.merge_tree(centroids[order], sizes[order])
  for num in (2, 10, 30):
    one = tree.cut(merges, num, sizes)[order]
    other = tree.cut(shuffled, num, sizes[order])
    assert adjusted_rand_score(one, other) == 1


def test_too_few_and_too_many_clusters(monkeypatch):
  one = np.ones((1, 2), np.float32)
  assert tree.merge_tree(one, np.ones(1, int)) is None
  monkeypatch.setattr(tree, "MOST_CLUSTERS", 3)
  assert tree.merge_tree(np.ones((4, 2), np.float32), np.ones(4, int)) is None
  assert tree.merge_tree(one.repeat(3, 0), np.ones(3, int)) is not None


def test_what_is_not_finite_is_refused():
  with pytest.raises(ValueError, match="not finite"):
    tree.merge_tree(np.full((3, 2), np.nan, np.float32), np.ones(3, int))


@pytest.mark.parametrize("num", [0, 5, -1])
def test_a_cut_out_of_range_is_refused(num):
  merges = tree.merge_tree(*random_clusters(4))
  with pytest.raises(ValueError, match="not within 1 to 4"):
    tree.cut(merges, num)


def test_candidates():
  assert tree.candidates(1) == []
  assert tree.candidates(2) == [2]
  assert tree.candidates(5) == [2, 3, 4, 5]
  many = tree.candidates(10_000)
  assert many[-1] == 10_000
  assert many[:29] == list(range(2, 31))
  assert len(many) < 100


def blobs(n=2000, kinds=6, k=30):
  """Images of well separated kinds, each split into k / kinds clusters."""
  rng = np.random.default_rng(0)
  kind = rng.integers(kinds, size=n)
  clusters = (kind + kinds * rng.integers(k // kinds, size=n)).astype(np.int32)
  embeddings = np.eye(kinds, 12)[kind] + 0.05 * rng.standard_normal((n, 12))
  embeddings = embeddings.astype(np.float16)
  sums = np.zeros((k, 12), np.float32)
  np.add.at(sums, clusters, embeddings)
  return embeddings, clusters, sums


def test_silhouettes_by_hand():
  # Three directions, two of them near each other, an image at each.
  embeddings = np.array([[1, 0], [0.6, 0.8], [-1, 0], [0, 0]], np.float32)
  clusters = np.array([0, 1, 2, 2], np.int32)
  centroids = embeddings[:3]
  merges = tree.merge_tree(centroids, np.ones(3, int))
  sizes = np.array([1, 1, 2])
  weighted = centroids * sizes[:, None]
  pair = unit(weighted[:2].sum(0, keepdims=True))[0]
  a = 1 - embeddings[:2] @ pair
  b = 1 - embeddings[:2] @ embeddings[2]
  expected = np.mean([*(b - a) / b, 1])
  ((num, value), (_, whole)) = tree.silhouettes(
    embeddings, clusters, centroids, merges, [2, 3]
  )
  assert num == 2
  assert value == pytest.approx(expected, abs=1e-6)
  assert whole == pytest.approx(1)


def test_silhouettes_find_the_kinds(monkeypatch):
  embeddings, clusters, centroids = blobs()
  sizes = np.bincount(clusters)
  merges = tree.merge_tree(centroids, sizes)
  numbers = tree.candidates(30)
  cuts = tree.silhouettes(embeddings, clusters, centroids, merges, numbers)
  assert [num for num, _ in cuts] == numbers
  assert max(cuts, key=lambda cut: cut[1])[0] == 6
  assert tree.advice(30, len(embeddings), cuts)[0] == 6
  # A sample tells the same, and so do unreadable images.
  embeddings[:100] = 0
  clusters[100:200] = -1
  monkeypatch.setattr(tree, "NUM_SAMPLED", 500)
  sampled = tree.silhouettes(embeddings, clusters, centroids, merges, [6])
  assert sampled[0][1] == pytest.approx(dict(cuts)[6], abs=0.01)


def test_a_group_of_empty_clusters_is_nobodys_nearest():
  embeddings, clusters, centroids = blobs(k=6)
  more = np.concatenate([centroids, centroids[:1]])
  merges = tree.merge_tree(more, np.bincount(clusters, minlength=7))
  cuts = dict(tree.silhouettes(embeddings, clusters, more, merges, [6, 7]))
  assert cuts[6] == pytest.approx(cuts[7])


def test_one_group_has_no_silhouette():
  embeddings, clusters, centroids = blobs()
  merges = tree.merge_tree(centroids, np.bincount(clusters))
  with pytest.raises(ValueError, match="no silhouette"):
    tree.silhouettes(embeddings, clusters, centroids, merges, [1])


def test_merging_finds_the_digits_better_than_as_many_clusters():
  from sklearn.cluster import KMeans

  images, labels = load_digits(return_X_y=True)
  images = unit(images).astype(np.float32)
  found = KMeans(30, n_init=1, random_state=0).fit(images)
  sizes = np.bincount(found.labels_)
  merges = tree.merge_tree(found.cluster_centers_, sizes)
  groups = tree.cut(merges, 10, sizes)[found.labels_]
  ten = KMeans(10, n_init=1, random_state=0).fit(images).labels_
  merged = adjusted_rand_score(labels, groups)
  assert merged > 0.65
  assert merged > adjusted_rand_score(labels, ten)


@pytest.mark.parametrize(
  ("k", "n", "cuts", "best", "words"),
  [
    (30, 1797, [(10, 0.5)], 10, ["59.9 images", "3.0 times 10", "is enough"]),
    (30, 1797, [(2, 0.4), (7, 0.5)], 7, ["--num_groups=7 "]),
    (30, 1797, [(9, 0.4), (14, 0.69), (25, 0.7)], 14, ["2.1 times 14"]),
    (12, 9000, [(2, 0.2), (12, 0.5)], 12, ["1.0 times 12", "num_clusters=60"]),
    (12, 300, [(12, 0.5)], 12, ["too few images for a larger"]),
    (100, 1000, [(20, 0.5)], None, ["10.0 images", "lower num_clusters"]),
    (30, 1797, [(2, 0.11), (30, 0.1)], 2, ["No number of groups", "0.11"]),
    (30, 1797, [(2, -0.2), (3, -0.3)], 2, ["No number of groups", "-0.20"]),
    (30_000, 10**7, [], None, ["30,000 clusters", "several times"]),
  ],
)  # fmt: skip
def test_advice_says_the_numbers(k, n, cuts, best, words):
  number, text = tree.advice(k, n, cuts)
  assert number == best
  assert "\n" not in text
  for word in words:
    assert word in text
