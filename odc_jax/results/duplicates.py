"""Images that are nearly the same picture."""

import numpy as np
from jaxtyping import Int, Int8
from scipy import sparse
from scipy.sparse import csgraph

# Correlation of two thumbnails from which on they show the same picture. See
# docs/results.md for what copies and what different images have.
LEAST_CORRELATION = 0.96
CHUNK = 65_536


def groups(
  neighbor_rows: Int[np.ndarray, "n k"],
  signatures: Int8[np.ndarray, "n s"],
) -> Int[np.ndarray, "n"]:
  """Groups the near duplicates among images and their neighbours.

  Features say who may be a duplicate, thumbnails who is: features alone
  also put different images of one kind together. Two images are linked where
  one is a neighbour of the other and their thumbnails correlate at
  `LEAST_CORRELATION` or above; a group is all that is linked, directly or
  through others.

  Args:
    neighbor_rows: Rows of the most similar images, -1 where there are fewer.
    signatures: A thumbnail of 16x16 grey values, less their mean, scaled to
      length 127, rounded. Of a flat image (one colour), all zeros: it is a
      duplicate of flat neighbours, and of no others. Without a column nothing
      is known of the pictures, and no image has a duplicate.

  Returns:
    The group of every image, int32 [n], numbered from 0 in the order of their
    first members; -1 for an image that has no duplicate.
  """
  n, k = neighbor_rows.shape
  if not signatures.shape[1]:
    return np.full(n, -1, np.int32)
  length = np.empty(n, np.float32)
  for start in range(0, n, CHUNK):
    some = signatures[start : start + CHUNK].astype(np.float32)
    length[start : start + CHUNK] = np.linalg.norm(some, axis=1)
  left, right = [], []
  for start in range(0, n, CHUNK):
    own = np.arange(start, min(start + CHUNK, n))
    some = signatures[own].astype(np.float32)
    for j in range(k):
      other = neighbor_rows[own, j]
      dot = np.einsum("ns,ns->n", some, signatures[other], dtype=np.float32)
      # Two flat images: 0 >= 0.
      same = dot >= LEAST_CORRELATION * length[own] * length[other]
      same &= (length[own] > 0) == (length[other] > 0)
      same &= (other >= 0) & (other != own)
      left.append(own[same])
      right.append(other[same])
  first, second = np.concatenate(left), np.concatenate(right)
  graph = sparse.coo_array(
    (np.ones(len(first), np.int8), (first, second)), shape=(n, n)
  )
  _, component = csgraph.connected_components(graph, directed=False)
  sizes = np.bincount(component)
  member = np.flatnonzero(sizes[component] > 1)
  result = np.full(n, -1, np.int32)
  # scipy does not promise any order of the components.
  _, firsts, where = np.unique(
    component[member], return_index=True, return_inverse=True
  )
  number = np.empty(len(firsts), np.int32)
  number[np.argsort(firsts)] = np.arange(len(firsts))
  result[member] = number[where]
  return result
