"""Which clusters belong together: a tree over them, and where to cut it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster import hierarchy

# Memory grows with the square: 20,000 clusters take 3 GB.
MOST_CLUSTERS = 20_000
# Images that a silhouette is taken of.
NUM_SAMPLED = 10_000


def merge_tree(
  centroids: Float[np.ndarray, "k d"], sizes: Int[np.ndarray, "k"]
) -> Float[np.ndarray, "k-1 4"] | None:
  """Merges the clusters two by two, the most similar first.

  Average linkage on the cosine between centroids; docs/results.md compares it
  to others. An empty cluster is merged first, at height 0, into the cluster
  with the most similar centroid, so that it never stands as a group of its own
  while others are merged.

  Args:
    centroids: A row per cluster, of any length: only directions count.
    sizes: Images in each cluster.

  Returns:
    The linkage as scipy.cluster.hierarchy has it: a row [left, right, height,
    clusters below] for each merge, where 0..k-1 are the clusters and k + i is
    what row i made. None above 20,000 clusters and below 2.

  Raises:
    ValueError: a centroid is not finite.
  """
  k = len(centroids)
  if not 2 <= k <= MOST_CLUSTERS:
    return None
  if not np.isfinite(centroids).all():
    raise ValueError("centroids are not finite; did the run diverge?")
  unit = _unit(centroids)
  alive = np.flatnonzero(sizes > 0)
  if not len(alive):
    alive = np.arange(1)
  rows = []
  node = np.arange(k)  # what a cluster has become
  for empty in np.delete(np.arange(k), alive):
    into = alive[np.argmax(unit[alive] @ unit[empty])]
    rows.append((node[into], empty, 0.0))
    node[into] = k + len(rows) - 1
  if len(alive) > 1:
    ids = np.concatenate([node[alive], np.arange(k + len(rows), 2 * k - 1)])
    merges = hierarchy.linkage(_distances(unit[alive]), "average")
    for left, right, height, _ in merges:
      rows.append((ids[int(left)], ids[int(right)], height))
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
  return numbers + [num_clusters] * (num_clusters >= 2)


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
  rows = np.flatnonzero(known)
  rows = rows[
    np.arange(min(NUM_SAMPLED, len(rows)))
    * len(rows)
    // max(1, min(NUM_SAMPLED, len(rows)))
  ]
  sample = np.asarray(embeddings[rows], np.float32)
  there = sample.any(axis=1)
  sample, own = _unit(sample[there]), clusters[rows[there]]
  weighted = _unit(centroids) * sizes[:, None]
  found = []
  for number in candidates:
    if number < 2:
      raise ValueError(f"{number} groups have no silhouette")
    group = cut(tree, number, sizes)
    sums = np.zeros((number, weighted.shape[1]), np.float64)
    np.add.at(sums, group, weighted)
    distance = 1 - sample @ _unit(sums.astype(np.float32)).T
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
    The number of groups that stand apart best, None without cuts; and a
    sentence or two with this run's numbers.
  """
  mean_size = num_images / num_clusters
  text = f"{num_clusters:,} clusters hold {mean_size:,.1f} images on average."
  if not cuts:
    return None, text
  best, silhouette = max(cuts, key=lambda cut: (cut[1], -cut[0]))
  return best, f"{text} {best} groups stand apart best ({silhouette:.2f})."


def _unit(rows: np.ndarray) -> np.ndarray:
  """Returns rows in float32 and of length 1; zero rows stay zero."""
  rows = np.asarray(rows, np.float32)
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.where(norms > 0, norms, 1)


def _distances(unit: np.ndarray) -> np.ndarray:
  """Returns 1 - cosine between all rows, condensed as scipy's pdist."""
  k = len(unit)
  condensed = np.empty(k * (k - 1) // 2)
  begin = 0
  for start in range(0, k, 1024):
    block = 1 - unit[start : start + 1024] @ unit.T
    for i, row in enumerate(block, start):
      condensed[begin : begin + k - 1 - i] = row[i + 1 :]
      begin += k - 1 - i
  return np.clip(condensed, 0, 2, out=condensed)
