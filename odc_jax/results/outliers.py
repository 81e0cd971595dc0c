"""Images that are unlike all others."""

import numpy as np
from jaxtyping import Float

# The threshold lies this many times the distance of the 90th from the 50th
# percentile above the 90th. See docs/results.md.
REACH = 2.0
# Two images whose cosines differ by less are not told apart: where nearly all
# are alike, rounding alone makes no outliers.
LEAST_DISTANCE = 5e-4


def scores(similarities: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "m"]:
  """Scores how unlike its nearest neighbours every image is.

  Sun et al. 2022 (arXiv 2204.06507) tell apart what a network was not trained
  for by the distance of its unit-length embedding to the k-th nearest of the
  training set; the mean over the k is Cleanlab's, and less noisy for small k.

  Args:
    similarities: Cosines to the k nearest images of the training set, as of
      `odc_jax.results.neighbors`: without the image itself where it is one of
      them. -inf where there are fewer than k.

  Returns:
    Half of 1 - the mean cosine, float32 in [0, 1], larger for stranger images.
    NaN where there is no neighbour at all: the image cannot be read.

  Raises:
    ValueError: a similarity is NaN.
  """
  if np.isnan(similarities).any():
    raise ValueError("similarities are NaN")
  there = similarities > -np.inf
  num = there.sum(axis=1)
  total = np.where(there, similarities, 0).sum(axis=1, dtype=np.float64)
  mean = np.divide(total, num, out=np.full(len(num), np.nan), where=num > 0)
  return np.clip((1 - mean) / 2, 0, 1).astype(np.float32)


def threshold(scores: Float[np.ndarray, "n"]) -> float:
  """Returns the score above which an image is an outlier.

  q90 + 2 (q90 - q50) of the square roots, squared. The root of 1 - cosine is
  the distance between unit vectors, up to a factor, and less skewed. It is a
  boxplot's fence (Tukey 1977) with the upper half alone as its measure of
  spread, since a symmetric one fails on what is skewed (Hubert & Vandervieren
  2008), far enough out to follow a heavy tail, and not so far that some
  outliers in a hundred move it much.

  Args:
    scores: Of the training images, each against the others. NaN is left out.

  Returns:
    The threshold, at most 1; an image is an outlier where its score is
    greater. 1 where there are no scores.
  """
  known = scores[~np.isnan(scores)].astype(np.float64)
  if not known.size:
    return 1.0
  middle, high = np.sqrt(np.quantile(known, [0.5, 0.9]))
  fence = (high + REACH * (high - middle)) ** 2
  return float(min(1.0, max(fence, high**2 + LEAST_DISTANCE)))


def novelty_threshold(scores: Float[np.ndarray, "n"]) -> float:
  """Returns the score above which a new image is unlike anything seen.

  The 99th percentile of the training images' own scores: one in a hundred of
  their kind is taken for new by mistake. Lower than `threshold`, which is for
  images that the training set holds in spite of it.

  Args:
    scores: Of the training images, each against the others. NaN is left out.

  Returns:
    The threshold; 1 where there are no scores.
  """
  known = scores[~np.isnan(scores)]
  return float(np.quantile(known, 0.99)) if known.size else 1.0
