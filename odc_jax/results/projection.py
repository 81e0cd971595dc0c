"""A map of the images: two dimensions for the eye."""

import numpy as np
import threadpoolctl
from jaxtyping import Float

from odc_jax.results import vectors
from odc_jax.results.neighbors import Neighbors

# t-SNE's distances are those of the first principal components (van der Maaten
# & Hinton 2008, section 4.2 take 30).
NUM_COMPONENTS = 50
PERPLEXITY = 30.0
# 250 of them exaggerated. scikit-learn's 1,000 take twice as long, and keep
# neighbours no better (docs/results.md).
NUM_ITERATIONS = 500
# An image that is no landmark lies among so many of them.
NUM_ANCHORS = 5


def project(
  embeddings: Float[np.ndarray, "n d"],
  *,
  seed: int = 0,
  max_landmarks: int = 10_000,
) -> Float[np.ndarray, "n 2"]:
  """Lays the images out in a plane so that similar ones lie together.

  Up to `max_landmarks` images, evenly spread over the rows, are laid out by
  t-SNE from a PCA (Kobak & Berens 2019: it keeps the large-scale order). Each
  of the others lies at the mean of its most similar landmarks, weighted by how
  much more similar they are than the next one. Distances between far groups,
  and the density of a group, mean nothing.

  The same on every call: one thread, because sums in another order would give
  another map.

  Args:
    embeddings: float16 or float32, a row per image, of any length: only
      directions count. May be a memory map. A row of zeros is an image that
      cannot be read.
    seed: Of t-SNE.
    max_landmarks: See above.

  Returns:
    Positions, float32; NaN for an image that cannot be read.

  Raises:
    ValueError: a value is not finite.
  """
  positions = np.full((len(embeddings), 2), np.nan, np.float32)
  rows = np.flatnonzero(np.any(embeddings, axis=1))
  landmarks = vectors.evenly(rows, max_landmarks)
  chosen = np.asarray(embeddings[landmarks], np.float32)
  index = Neighbors(chosen, exact_below=len(chosen) + 1)  # refuses NaN
  positions[landmarks] = _tsne(vectors.unit(chosen), seed)
  others = np.setdiff1d(rows, landmarks, assume_unique=True)
  if len(others):
    positions[others] = _among(index, positions[landmarks], embeddings, others)
  return positions


def _tsne(rows: np.ndarray, seed: int) -> np.ndarray:
  """Returns [n, 2] positions of unit rows."""
  n, d = rows.shape
  if (rows == rows[:1]).all():  # one, or all alike
    return np.zeros((n, 2), np.float32)
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE

  with threadpoolctl.threadpool_limits(1):
    components = PCA(min(NUM_COMPONENTS, n, d), svd_solver="full")
    reduced = components.fit_transform(rows).astype(np.float32)
    start = np.zeros((n, 2), np.float32)
    start[:, : reduced.shape[1]] = reduced[:, :2]
    spread = start[:, 0].std()
    return TSNE(
      # scikit-learn wants it below n, and sensible is a third of that.
      perplexity=min(PERPLEXITY, max((n - 1) / 3, 0.5)),
      init=start / spread * 1e-4,
      max_iter=NUM_ITERATIONS,
      random_state=seed,
      n_jobs=1,
    ).fit_transform(reduced)


def _among(index, positions, embeddings, rows) -> np.ndarray:
  """Returns [len(rows), 2] positions among the landmarks of the index."""
  result = np.empty((len(rows), 2), np.float32)
  chunk = 16_384
  for start in range(0, len(rows), chunk):
    some = embeddings[rows[start : start + chunk]]
    found, similarity = index.search(some, NUM_ANCHORS + 1)
    anchors = min(NUM_ANCHORS, index.num_rows)
    weights = similarity[:, :anchors] - np.maximum(similarity[:, -1:], -1)
    weights += 1e-6  # equally similar ones: the plain mean
    weights /= weights.sum(axis=1, keepdims=True)
    result[start : start + chunk] = np.einsum(
      "na,nac->nc", weights, positions[found[:, :anchors]]
    )
  return result
