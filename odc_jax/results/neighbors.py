"""The most similar images of an image, by cosine.

faiss does the searching. It is imported when the first index is made: it takes
a tenth of a second and brings its own OpenMP threads along.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int

from odc_jax.results import vectors

# Rows that are converted, added or searched at once: 64 MB of float32 at 256
# dimensions.
CHUNK = 65_536

# The share of the true ten nearest that the approximate search has to find, as
# measured on rows of the index.
LEAST_RECALL = 0.95
RECALL_AT = 10
NUM_PROBED = 256
# An inverted file has 4 sqrt(n) lists, trained on so many rows of each.
LISTS_PER_ROOT = 4
ROWS_PER_LIST = 40


class Neighbors:
  """Finds the most similar rows of a table of embeddings.

  Up to `exact_below` rows every similarity is computed. Above, rows are kept
  in float16 in an inverted file, a list for each of about 4 sqrt(n) k-means
  cells (faiss' IVF; Jegou et al. 2011), and only the lists nearest to a query
  are read: as many as it takes for 95 % of the true ten nearest, tried out on
  rows of the index against an exact search.

  The same rows give the same index and the same answers, on the same number of
  threads.

  Attributes:
    num_rows: How many rows can be found: those that are not zero.
    recall: Part of the true ten nearest that is found; 1 where the search is
      exact.
  """

  def __init__(
    self,
    embeddings: Float[np.ndarray, "n d"],
    *,
    exact_below: int = 100_000,
  ):
    """Builds the index.

    Args:
      embeddings: float16 or float32, a row per image, of any length: only
        directions count. May be a memory map; it is read in chunks. A row of
        zeros is an image that cannot be read, and is never found.
      exact_below: Search exactly in fewer rows than this.

    Raises:
      ValueError: a value is not finite.
    """
    import faiss

    self._dim = embeddings.shape[1]
    # Where each row of the index is in the table.
    self._rows = np.concatenate(
      [np.empty(0, np.int64)]
      + [start + there for start, there, _ in _units(embeddings)]
    )
    self.num_rows = len(self._rows)
    self.recall = 1.0
    if self.num_rows < exact_below:
      self._index = faiss.IndexFlatIP(self._dim)
      self._add(embeddings)
    else:
      self._index = inverted = _inverted_file(faiss, embeddings, self._rows)
      self._add(embeddings)
      self.recall = self._choose_nprobe(faiss, inverted, embeddings)

  def search(
    self, queries: Float[np.ndarray, "m d"], k: int
  ) -> tuple[Int[np.ndarray, "m k"], Float[np.ndarray, "m k"]]:
    """Finds the k most similar rows of each query.

    Args:
      queries: float16 or float32, like the embeddings. Nothing is found for a
        row of zeros.
      k: How many to find.

    Returns:
      Rows of the table, int64, most similar first, the smaller row first where
      two are equally similar; and their cosines, float32. -1 and -inf where
      there are fewer than k.

    Raises:
      ValueError: a value is not finite, or there is no k or another d.
    """
    if k < 1:
      raise ValueError(f"k is {k}, not 1 or more")
    if queries.shape[1] != self._dim:
      raise ValueError(
        f"queries have {queries.shape[1]} dimensions, the index {self._dim}"
      )
    rows = np.full((len(queries), k), -1, np.int64)
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    found = min(k, self.num_rows)
    if not found:
      return rows, similarities
    for start, there, unit in _units(queries):
      score, place = self._index.search(unit, found)
      row = np.where(place < 0, -1, self._rows[place])
      score = np.where(place < 0, -np.inf, np.clip(score, -1, 1))
      order = np.lexsort((row, -score), axis=1)
      rows[start + there, :found] = np.take_along_axis(row, order, 1)
      similarities[start + there, :found] = np.take_along_axis(score, order, 1)
    return rows, similarities

  def _add(self, embeddings):
    for _, _, unit in _units(embeddings):
      self._index.add(unit)

  def _choose_nprobe(self, faiss, inverted, embeddings) -> float:
    """Reads as many lists as the recall needs; returns that recall."""
    some = vectors.evenly(self._rows, NUM_PROBED)
    queries = _unit(embeddings[some])
    truth = faiss.ResultHeap(
      len(queries), min(RECALL_AT + 1, self.num_rows), keep_max=True
    )
    base = 0
    for _, _, unit in _units(embeddings):
      score, place = faiss.knn(
        queries, unit, min(truth.k, len(unit)), faiss.METRIC_INNER_PRODUCT
      )
      truth.add_result(score, place + base)
      base += len(unit)
    truth.finalize()
    nprobe, recall = 1, 0.0
    while True:
      inverted.nprobe = nprobe
      _, found = inverted.search(queries, truth.k)
      hits = [
        len(np.intersect1d(a, b)) for a, b in zip(found, truth.I, strict=True)
      ]
      # Every row finds itself: that is no merit.
      recall = (np.mean(hits) - 1) / (truth.k - 1)
      if recall >= LEAST_RECALL or nprobe >= inverted.nlist:
        return float(recall)
      nprobe = min(nprobe + (nprobe + 1) // 2, inverted.nlist)


def neighbors_of_all(
  index: Neighbors,
  embeddings: Float[np.ndarray, "n d"],
  k: int,
  progress: Callable[[int, int], None] | None = None,
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
  """Finds the k most similar other rows of every row of the index.

  Args:
    index: Built from `embeddings`.
    embeddings: The table, as it was given to the index.
    k: How many to find.
    progress: Called with (rows done, rows in all) after every chunk.

  Returns:
    As `Neighbors.search`. A row never finds itself, but does find another one
    that is equal to it.

  Raises:
    ValueError: as `Neighbors.search`.
  """
  n = len(embeddings)
  rows = np.full((n, k), -1, np.int64)
  similarities = np.full((n, k), -np.inf, np.float32)
  for start in range(0, n, CHUNK):
    chunk = slice(start, min(start + CHUNK, n))
    # One more than asked for, as the row itself should be among them. Where it
    # is not, because so many are equal to it, the last one is left out.
    found, score = index.search(embeddings[chunk], k + 1)
    own = found == np.arange(chunk.start, chunk.stop)[:, None]
    own[~own.any(axis=1), -1] = True
    rows[chunk] = found[~own].reshape(-1, k)
    similarities[chunk] = score[~own].reshape(-1, k)
    if progress:
      progress(chunk.stop, n)
  return rows, similarities


def _inverted_file(faiss, embeddings, rows):
  """Returns an empty IVF index, its cells trained on a sample of the rows."""
  d = embeddings.shape[1]
  num_lists = round(LISTS_PER_ROOT * len(rows) ** 0.5)
  num_lists = max(1, min(num_lists, len(rows)))
  index = faiss.IndexIVFScalarQuantizer(
    faiss.IndexFlatIP(d),
    d,
    num_lists,
    faiss.ScalarQuantizer.QT_fp16,
    faiss.METRIC_INNER_PRODUCT,
  )
  index.cp.seed = 0
  index.cp.niter = 6
  index.cp.spherical = True
  index.cp.min_points_per_centroid = 1  # no warning on small tables
  index.train(
    _unit(embeddings[vectors.evenly(rows, ROWS_PER_LIST * num_lists)])
  )
  return index


def _units(
  table: np.ndarray,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """Yields, chunk by chunk, its start, which rows are not zero, and these."""
  for start in range(0, len(table), CHUNK):
    chunk = np.asarray(table[start : start + CHUNK])
    there = np.flatnonzero(chunk.any(axis=1))
    yield start, there, _unit(chunk[there])


def _unit(rows: np.ndarray) -> np.ndarray:
  """Returns rows, none of them zero, in float32 and of length 1."""
  rows = np.ascontiguousarray(rows, np.float32)
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  if not np.isfinite(norms).all():
    raise ValueError("embeddings are not finite; did the run diverge?")
  return rows / norms
