"""Describes each cluster by numbers and by a few of its images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from odc_jax.results import vectors

_REPRESENTATIVES = 8
_BOUNDARY = 4
_OUTLIERS = 4

_CHUNK = 65_536


def describe(
  columns: Mapping[str, Any],
  readable: Bool[np.ndarray, "n"],
  centroids: Float[np.ndarray, "k d"],
) -> list[dict[str, Any]]:
  """Describes the clusters, in their order.

  Args:
    columns: Of the table (`table.COLUMNS`), n values each.
    readable: Which images there are.
    centroids: Of the k clusters, in any space.

  Returns:
    For every cluster: `cluster`, `size`, `cohesion` (mean similarity of its
    images), `second` (the cluster of the most similar centroid), `purity` and
    `label` (the most common one, and its share of the labelled images; None
    without), and images by index: `representatives` (most similar to the
    centroid first; of near-duplicates one), `boundary` (smallest margin
    first), `outliers` (highest score first).
  """
  k = len(centroids)
  chosen = np.flatnonzero(readable)
  cluster = np.asarray(columns["cluster"])[chosen]
  sizes = np.bincount(cluster, minlength=k)
  sums = np.bincount(cluster, columns["similarity"][chosen], minlength=k)
  labels, shares = _majority(cluster, np.asarray(columns["label"])[chosen], k)
  seconds = _nearest_other(centroids, sizes)
  central = _best(cluster, -columns["similarity"][chosen], k)
  boundary = _best(cluster, columns["margin"][chosen], k)
  flagged, scores, duplicate = None, None, None
  if "is_outlier" in columns:
    scores = columns["outlier_score"][chosen]
    flagged = np.flatnonzero(columns["is_outlier"][chosen])
    far = _best(cluster[flagged], -scores[flagged], k)
    duplicate = columns["near_duplicate_group"][chosen]

  described = []
  for i in range(k):
    representatives = _without_repeats(central(i), duplicate, _REPRESENTATIVES)
    outliers = [] if flagged is None else flagged[far(i)[:_OUTLIERS]]
    described.append(
      {
        "cluster": i,
        "size": int(sizes[i]),
        "cohesion": float(sums[i] / sizes[i]) if sizes[i] else None,
        "second": int(seconds[i]),
        "purity": None if shares[i] < 0 else float(shares[i]),
        "label": None if shares[i] < 0 else int(labels[i]),
        "representatives": chosen[representatives].tolist(),
        "boundary": chosen[boundary(i)[:_BOUNDARY]].tolist(),
        "outliers": chosen[outliers].tolist() if len(outliers) else [],
      }
    )
  return described


def means(
  features: Float[np.ndarray, "n p"],
  cluster: Int[np.ndarray, "n"],
  num_clusters: int,
) -> Float[np.ndarray, "k p"]:
  """Returns the mean of each cluster's rows; zeros for an empty one.

  Args:
    features: May be a memory map; rows of zeros are left out.
    cluster: Of every row.
    num_clusters: k.
  """
  sums = np.zeros((num_clusters, features.shape[1]))
  counts = np.zeros(num_clusters)
  for start in range(0, len(features), _CHUNK):
    rows = np.asarray(features[start : start + _CHUNK], np.float64)
    there = np.flatnonzero(rows.any(axis=1))
    own = cluster[start : start + _CHUNK][there]
    # A matrix product with a one in every column: np.add.at is slow.
    member = sparse.csr_array(
      (np.ones(len(own)), (own, there)), shape=(num_clusters, len(rows))
    )
    sums += member @ rows
    counts += np.bincount(own, minlength=num_clusters)
  return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)


def _best(cluster, cost, k):
  """Returns i -> positions of cluster i's images, the least cost first."""
  order = np.lexsort((cost, cluster))
  starts = np.searchsorted(cluster[order], np.arange(k + 1))
  return lambda i: order[starts[i] : starts[i + 1]]


def _without_repeats(positions, duplicate, count):
  """Returns the first positions, only one of each group of duplicates."""
  if duplicate is None:
    return positions[:count]
  found, seen = [], set()
  for position in positions:
    group = int(duplicate[position])
    if group >= 0 and group in seen:
      continue
    seen.add(group)
    found.append(position)
    if len(found) == count:
      break
  return np.array(found, np.int64)


def _majority(cluster, labels, k):
  """Returns each cluster's most common label and its share, or -1."""
  best, shares = np.full(k, -1), np.full(k, -1.0)
  known = labels >= 0
  if not known.any():
    return best, shares
  width = int(labels.max()) + 1
  # Not [k, width]: ten thousand clusters may meet twenty thousand classes.
  pairs, counts = np.unique(
    cluster[known].astype(np.int64) * width + labels[known], return_counts=True
  )
  of_pair = pairs // width
  totals = np.bincount(of_pair, counts, minlength=k)
  # Ascending, so that the largest is written last; of equals the smallest
  # label.
  order = np.lexsort((-pairs, counts))
  best[of_pair[order]] = (pairs % width)[order]
  shares[of_pair[order]] = counts[order]
  return best, np.where(totals > 0, shares / np.maximum(totals, 1), -1.0)


def _nearest_other(centroids, sizes, chunk=1024):
  """Returns the cluster of the most similar other centroid (cosine)."""
  unit = vectors.unit(centroids)
  nearest = np.zeros(len(unit), np.int64)
  for start in range(0, len(unit), chunk):
    rows = np.arange(start, min(start + chunk, len(unit)))
    cosines = unit[rows] @ unit.T
    cosines[:, sizes == 0] = -2  # an empty cluster is near to nobody
    cosines[np.arange(len(rows)), rows] = -3
    nearest[rows] = cosines.argmax(axis=1)
  return nearest
