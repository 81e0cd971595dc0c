"""What is new in a collection that has grown, and what of it is novel."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# Of the images of before, this share lies farther from every centroid than what
# is called novel.
_SHARE = 0.01


class Grown(NamedTuple):
  """A collection that has grown.

  Attributes:
    generation: With which growth every image came; 0: it was always there.
    missing: Whether its file was removed.
    last: Number of the last growth, of which no image need be.
  """

  generation: Int[np.ndarray, "n"]
  missing: Bool[np.ndarray, "n"]
  last: int


def columns(
  grown: Grown | None,
  similarity: Float[np.ndarray, "n"],
  margin: Float[np.ndarray, "n"],
  readable: Bool[np.ndarray, "n"],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Says which images are new, novel or no longer there.

  Novel is a new image that is less similar to its nearest centroid than 99 % of
  the images of before are to theirs. New are those of the last generation.

  Args:
    grown: Which images came later, and which are gone; None: none.
    similarity: Cosine of an image's embedding with its own centroid.
    margin: By how much less that with the most similar other one is.
    readable: Which images could be read.

  Returns:
    Columns of `clusters.parquet`, and what `clusters.json` says of them; none
    without growth.
  """
  if grown is None:
    return {}, {}
  nearest = np.maximum(similarity, similarity - margin)
  is_new = grown.generation == grown.last
  before = nearest[readable & ~is_new]
  threshold = float(np.quantile(before, _SHARE))
  is_novel = is_new & (nearest < threshold)
  found = {
    "generation": grown.generation,
    "is_novel": is_novel,
    "is_missing": grown.missing,
  }
  return found, {
    "growth": {
      "generation": grown.last,
      "new": int(np.sum(is_new & readable)),
      "novel": int(np.sum(is_novel & readable)),
      "missing": int(np.sum(grown.missing & readable)),
      "novelty_similarity": threshold,
    }
  }
