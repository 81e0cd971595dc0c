"""Which clusters belong together: a tree over them, and where to cut it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from odc_jax.results import vectors

# Memory grows with the square: 20,000 clusters take 1.6 GB.
MOST_CLUSTERS = 20_000
# Recommended clusters for each class that is looked for. DeepCluster's users
# find ten classes with about a hundred clusters, and not with ten.
LEAST_PER_GROUP = 2
WANTED_PER_GROUP = 5
# ImageNet's min_cluster in ODC.
FEW_IMAGES = 20
# As a share of the greatest silhouette: splitting a compact cluster changes it
# little.
PLATEAU = 0.97
# Below, "no substantial structure" (Kaufman & Rousseeuw 1990).
LEAST_SILHOUETTE = 0.25
# Images that a silhouette is taken of.
NUM_SAMPLED = 10_000


def merge_tree(
  centroids: Float[np.ndarray, "k d"], sizes: Int[np.ndarray, "k"]
) -> Float[np.ndarray, "k-1 4"] | None:
  """Merges the clusters two by two, the most similar first.

  Ward's linkage of the unit-length centroids, each with the weight of its
  images: the merge that adds least to the squared distances of images to their
  centroids. docs/results.md compares it to others. An empty cluster is merged
  first, at height 0, into the cluster with the most similar centroid, or the
  first one where its own is zero, so that it never stands as a group of its own
  while others are merged.

  Args:
    centroids: A row per cluster, of any length: only directions count.
    sizes: Images in each cluster.

  Returns:
    The linkage as scipy.cluster.hierarchy has it: a row [left, right, height,
    clusters below] for each merge, where 0..k-1 are the clusters and k + i is
    what row i made; heights as of scipy's "ward", with sizes relative to their
    mean. None above 20,000 clusters and below 2.

  Raises:
    ValueError: a centroid is not finite.
  """
  k = len(centroids)
  if not 2 <= k <= MOST_CLUSTERS:
    return None
  if not np.isfinite(centroids).all():
    raise ValueError("centroids are not finite; did the run diverge?")
  unit = vectors.unit(centroids)
  alive = np.flatnonzero(sizes > 0)
  if not len(alive):
    alive = np.arange(1)
  rows = []
  node = np.arange(k)  # what a cluster has become
  for empty in np.delete(np.arange(k), alive):
    into = alive[np.argmax(unit[alive] @ unit[empty])]
    rows.append((node[into], empty, 0.0))
    node[into] = k + len(rows) - 1
  ids = np.concatenate([node[alive], np.arange(k + len(rows), 2 * k - 1)])
  for left, right, height in _ward(unit[alive], sizes[alive]):
    rows.append((ids[left], ids[right], height))
  below = np.ones(2 * k - 1)
  tree = np.empty((k - 1, 4))
  for i, (left, right, height) in enumerate(rows):
    below[k + i] = below[left] + below[right]
    tree[i] = min(left, right), max(left, right), height, below[k + i]
  return tree


def cut(
  tree: Float[np.ndarray, "m 4"],
  num_groups: int,
  sizes: Int[np.ndarray, "k"] | None = None,
) -> Int[np.ndarray, "k"]:
  """Cuts a tree into groups of clusters.

  Cuts are nested: with one group less, two of the groups are one.

  Args:
    tree: As of `merge_tree`.
    num_groups: From 1 to the number of clusters.
    sizes: Images in each cluster; without them each counts for one.

  Returns:
    The group of every cluster, int32 [k], numbered from 0 by falling total
    size; of equal ones, that with the smallest cluster comes first.

  Raises:
    ValueError: `num_groups` is out of range.
  """
  k = len(tree) + 1
  if not 1 <= num_groups <= k:
    raise ValueError(f"num_groups is {num_groups}, not within 1 to {k}")
  top = np.arange(2 * k - 1)  # the node at which the cut is, for each below
  for i in reversed(range(k - 1)):
    if i < k - num_groups:
      children = tree[i, :2].astype(np.int64)
      top[children] = top[k + i]
  _, first, group = np.unique(top[:k], return_index=True, return_inverse=True)
  total = np.bincount(group, weights=sizes)
  number = np.empty(num_groups, np.int32)
  number[np.lexsort((first, -total))] = np.arange(num_groups)
  return number[group]


def candidates(num_clusters: int) -> list[int]:
  """Returns the numbers of groups worth a look: all to 30, then each 10th part.

  Args:
    num_clusters: K; the last candidate, unless it is below 2.
  """
  numbers = []
  number = 2
  while number < num_clusters:
    numbers.append(number)
    number += max(1, number // 10) if number >= 30 else 1
  return [*numbers, num_clusters] if num_clusters >= 2 else []


def silhouettes(
  embeddings: Float[np.ndarray, "n d"],
  clusters: Int[np.ndarray, "n"],
  centroids: Float[np.ndarray, "k d"],
  tree: Float[np.ndarray, "m 4"],
  candidates: Sequence[int],
) -> list[tuple[int, float]]:
  """Measures how well the groups of each cut stand apart.

  The simplified silhouette (Hruschka et al. 2004): (b - a) / max(a, b), where
  a is the distance of an image to the centroid of its group and b that to the
  nearest other one; the mean over up to 10,000 images, evenly spread over the
  rows. The distance is 1 - cosine. A group's centroid is the mean of those of
  its clusters, weighted by their sizes.

  Args:
    embeddings: A row per image, of any length; may be a memory map. Zero rows
      are left out.
    clusters: The cluster of every image; images with -1 are left out.
    centroids: A row per cluster.
    tree: As of `merge_tree`.
    candidates: Numbers of groups, from 2 to k.

  Returns:
    (number of groups, silhouette in [-1, 1]) for each candidate.

  Raises:
    ValueError: a candidate is out of range.
  """
  known = clusters >= 0
  sizes = np.bincount(clusters[known], minlength=len(centroids))
  rows = vectors.evenly(np.flatnonzero(known), NUM_SAMPLED)
  sample = np.asarray(embeddings[rows], np.float32)
  there = sample.any(axis=1)
  sample, own = vectors.unit(sample[there]), clusters[rows[there]]
  weighted = vectors.unit(centroids) * sizes[:, None]
  found = []
  for number in candidates:
    if number < 2:
      raise ValueError(f"{number} groups have no silhouette")
    group = cut(tree, number, sizes)
    sums = np.zeros((number, weighted.shape[1]), np.float64)
    np.add.at(sums, group, weighted)
    distance = 1 - sample @ vectors.unit(sums).T
    # Groups of empty clusters only are nobody's nearest.
    distance[:, np.bincount(group, weights=sizes) == 0] = np.inf
    at = np.arange(len(sample)), group[own]
    a = distance[at].copy()
    distance[at] = np.inf
    b = distance.min(axis=1)
    with np.errstate(invalid="ignore"):
      value = np.where(np.isinf(b), 0, (b - a) / np.maximum(a, b))
    found.append((int(number), float(np.mean(np.nan_to_num(value)))))
  return found


def advice(
  num_clusters: int,
  num_images: int,
  cuts: Sequence[tuple[int, float]],
) -> tuple[int | None, str]:
  """Says what the run tells about the choice of K.

  Args:
    num_clusters: K.
    num_images: n.
    cuts: As of `silhouettes`; may be empty.

  Returns:
    The smallest number of groups that stand apart about as well as any, None
    without cuts or with too few images; and some sentences with this run's
    numbers.
  """
  mean_size = num_images / num_clusters
  text = f"{num_clusters:,} clusters hold {mean_size:,.1f} images on average. "
  if mean_size < FEW_IMAGES:
    few = (
      f"Below {FEW_IMAGES} they mean little: lower num_clusters, or add images."
    )
    return None, text + few
  most = max((value for _, value in cuts), default=0.0)
  best, silhouette = min(
    (cut for cut in cuts if cut[1] >= min(most, PLATEAU * most)),
    default=(None, 0.0),
  )
  if best is None or silhouette < LEAST_SILHOUETTE:
    if best:
      text += (
        "No number of groups of them stands out (the best silhouette is "
        f"{silhouette:.2f}, with {best:,} groups). "
      )
    text += "Choose K several times the number of kinds that you hope to find."
    return best, text
  text += (
    f"They stand apart well as {best:,} groups (silhouette {silhouette:.2f}); "
    f"--num_groups={best} writes these. K should be several times the number "
    f"of kinds that you hope to find: it is {num_clusters / best:.1f} times "
    f"{best:,}, "
  )
  wanted = WANTED_PER_GROUP * best
  if num_clusters >= LEAST_PER_GROUP * best:
    text += "which is enough."
  elif num_images >= FEW_IMAGES * wanted:
    text += f"so num_clusters={wanted} may tell more of them apart."
  else:
    text += "and there are too few images for a larger one."
  return best, text


def _ward(
  points: np.ndarray, sizes: np.ndarray
) -> list[tuple[int, int, float]]:
  """Merges weighted points by Ward's criterion, the cheapest merge first.

  scipy has no weights. The chain of nearest neighbours (Murtagh 1983) needs the
  distances of one point at a time, and Lance & Williams's formula gives those
  of a merged one.

  Args:
    points: [m, d].
    sizes: [m], positive.

  Returns:
    (left, right, height) of m - 1 merges; 0..m-1 are the points, m + i is what
    merge i made. Heights are scipy's, with sizes relative to their mean.
  """
  m = len(points)
  if m < 2:
    return []
  size = sizes / sizes.mean()
  squared = points @ points.T
  squared *= -2
  squared += 2
  np.maximum(squared, 0, out=squared)
  for i in range(m):
    squared[i] *= 2 * size[i] * size / (size[i] + size)
  np.fill_diagonal(squared, np.inf)

  merges, heights = [], np.zeros(2 * m - 1)
  node = np.arange(m)  # what stands in each row; -1 once it is merged away
  chain, steps = [], []  # rows, and the distance of each to the one before
  while len(merges) < m - 1:
    if not chain:
      chain, steps = [int(np.argmax(node >= 0))], [np.inf]
    i = chain[-1]
    j = int(np.argmin(squared[i]))
    # Strictly nearer than the one before, or rounding might lead in circles.
    if squared[i, j] < steps[-1]:
      steps.append(squared[i, j])
      chain.append(j)
      continue
    j = chain[-2]
    distance = steps[-1]
    del chain[-2:], steps[-2:]
    new = m + len(merges)
    left, right = int(node[i]), int(node[j])
    heights[new] = max(distance**0.5, heights[left], heights[right])
    merges.append((left, right))
    row = (size[i] + size) * squared[i] + (size[j] + size) * squared[j]
    row = (row - size * distance) / (size[i] + size[j] + size)
    row[[i, j]] = np.inf
    squared[i] = squared[:, i] = row
    squared[j] = squared[:, j] = np.inf
    size[i] += size[j]
    node[i], node[j] = new, -1

  # The chain finds them in another order; stable, so that what a merge needs
  # comes before it.
  order = np.argsort(heights[m:], kind="stable")
  number = np.arange(2 * m - 1)
  number[m + order] = m + np.arange(m - 1)
  result = []
  for i in order:
    left, right = merges[i]
    result.append((int(number[left]), int(number[right]), heights[m + i]))
  return result
