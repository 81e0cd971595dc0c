"""Writes the tables of a run. Host code alone: NumPy in, files out."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int, Int8

from odc_jax.files import whole, write_json
from odc_jax.logs import progress
from odc_jax.results import (
  annotations,
  clusters,
  duplicates,
  growth,
  neighbors,
  outliers,
  projection,
  table,
  tree,
)
from odc_jax.results.groups import _cut

# Nearest images that are kept of every image, and that its outlier score and
# its near-duplicates are looked for among.
NUM_NEIGHBORS = 10

# More images than this one host does not compare with each other: their table
# has no neighbours, outliers, near-duplicates and positions.
MOST_COMPARED = 20_000_000


# Below it the network has moved on from what the clusters were made of. Digits
# have 0.9 after 70 epochs, CIFAR-10 has 0.2 after one.
_LOW_AGREEMENT = 0.5


class Judged(NamedTuple):
  """Each image's place among the clusters (`training.judge.Judgement`).

  Attributes:
    cluster: Its own.
    nearest: The cluster of the most similar centroid.
    similarity: Cosine of its embedding with the centroid of its own.
    second_cluster: The most similar of the others.
    margin: Similarity minus that with the second.
    confidence: The classifier's probability of its own.
  """

  cluster: Int[np.ndarray, "n"]
  nearest: Int[np.ndarray, "n"]
  similarity: Float[np.ndarray, "n"]
  second_cluster: Int[np.ndarray, "n"]
  margin: Float[np.ndarray, "n"]
  confidence: Float[np.ndarray, "n"]


def write(
  workdir: pathlib.Path,
  *,
  keys: Sequence[str],
  labels: Int[np.ndarray, "n"],
  readable: Bool[np.ndarray, "n"],
  judged: Judged,
  centroids: Float[np.ndarray, "k d"],
  components: Mapping[str, np.ndarray],
  signatures: Int8[np.ndarray, "n s"],
  num_groups: int | None = None,
  facts: Mapping[str, pa.Array] | None = None,
  folder: str | None = None,
  grown: growth.Grown | None = None,
) -> None:
  """Writes all but the two arrays with a row for every image.

  Clusters live in the space of the embeddings. Which images are alike, and
  which like no other, the backbone's features tell better: the neck keeps
  little but the cluster (docs/results.md).

  Args:
    workdir: Where `features.npy` is already.
    keys: Names of all n images.
    labels: Ground truth, -1 where unknown.
    readable: Which of them could be read; the others get no row.
    judged: One entry per image; entries of unreadable images are ignored.
    centroids: Of the clusters.
    components: The arrays of `components.npz`, by name.
    signatures: Grey thumbnails (`evals.features.signature`).
    num_groups: How many groups to merge the clusters into; None: no column.
    facts: Further columns of the table, of n values each (`data.facts`).
    folder: That the keys are below; None: images are no files.
    grown: Which images came later, and which are gone; None: no columns.

  Raises:
    UserError: There cannot be so many groups.
  """
  features = np.load(workdir / "features.npy", mmap_mode="r")
  _save_arrays(workdir, centroids, components)
  num_clusters = len(centroids)
  sizes = np.bincount(judged.cluster[readable], minlength=num_clusters)
  means = clusters.means(features, judged.cluster, num_clusters)
  merges = tree.merge_tree(means, sizes)
  groups = _cut(merges, num_groups, sizes)
  columns = _columns(keys, labels, sizes, judged)
  if groups is not None:
    columns["cluster_group"] = groups[judged.cluster]
  near = judged.similarity, judged.margin
  found, of_growth = growth.columns(grown, *near, readable)
  columns |= {**(facts or {}), **found}
  thresholds = {"outlier_threshold": None, "novelty_threshold": None}
  if len(features) <= MOST_COMPARED:
    compared, thresholds = _compare(features, readable, signatures)
    columns |= compared
  table.write(workdir / "clusters.parquet", columns, readable, folder)

  cuts = []
  if merges is not None:
    cuts = tree.silhouettes(
      features, judged.cluster, means, merges, tree.candidates(num_clusters)
    )
  agreement = float(np.mean((judged.nearest == judged.cluster)[readable]))
  best, advice = _advise(num_clusters, int(readable.sum()), cuts, agreement)
  summary = {
    "num_clusters": num_clusters,
    "num_images": len(features),
    "num_groups": num_groups,
    "agreement": agreement,
    **thresholds,
    **of_growth,
    "tree": None if merges is None else merges.tolist(),
    "cuts": [{"num_groups": g, "silhouette": s} for g, s in cuts],
    "best_num_groups": best,
    "advice": advice,
    "clusters": clusters.describe(columns, readable, means),
  }
  write_json(workdir / "clusters.json", summary)
  if (workdir / annotations.FILE).exists():
    print(annotations.apply(workdir, workdir / annotations.FILE))


def _columns(keys, labels, sizes, judged):
  """Returns the columns that every table has, of n values each."""
  return {
    "key": keys,
    "label": labels,
    "cluster": judged.cluster,
    "cluster_size": sizes[judged.cluster],
    "similarity": judged.similarity,
    "second_cluster": judged.second_cluster,
    "margin": judged.margin,
    "confidence": judged.confidence,
  }


def _save_arrays(workdir, centroids, components):
  """Writes `centroids.npy` and `components.npz`."""
  with whole(workdir / "centroids.npy") as path, path.open("wb") as file:
    np.save(file, centroids)
  with whole(workdir / "components.npz") as path, path.open("wb") as file:
    np.savez(file, allow_pickle=False, **components)


def _compare(features, readable, signatures):
  """Compares every image with every other one.

  Args:
    features: [n, c], of unit length; zeros for an unreadable image.
    readable: Which images could be read, [n].
    signatures: Grey thumbnails, [n, s].

  Returns:
    The columns of `clusters.parquet` that follow from it (neighbors, outlier
    score, near-duplicate group, position on the map), and the thresholds of
    the outlier score for the training images and for new ones.
  """
  with progress.bar("comparing the images", len(features)) as advance:
    index = neighbors.Neighbors(features)
    rows, similarities = neighbors.neighbors_of_all(
      index, features, NUM_NEIGHBORS, lambda done, _: advance(done)
    )
  del index  # as large as the features, and the map needs memory too
  # An image whose features are zero has no neighbours: the greatest score.
  scores = np.nan_to_num(outliers.scores(similarities), nan=1.0)
  thresholds = {
    "outlier_threshold": outliers.threshold(scores[readable]),
    "novelty_threshold": outliers.novelty_threshold(scores[readable]),
  }
  columns = {
    "outlier_score": scores,
    "is_outlier": scores > thresholds["outlier_threshold"],
    "near_duplicate_group": duplicates.groups(rows, signatures),
    "neighbors": (rows, similarities),
  }
  with progress.bar("drawing the map", len(features)) as advance:
    columns["projection"] = np.nan_to_num(projection.project(features))
    advance(len(features))
  return columns, thresholds


def _advise(num_clusters, num_images, cuts, agreement):
  """Returns the best number of groups, or None, and a sentence of advice."""
  if agreement < _LOW_AGREEMENT:
    return None, (
      f"Only {agreement:.0%} of the images lie nearest to the centroid of "
      "their own cluster: the clusters lag behind the network. Train longer "
      "before you use them, or judge their number."
    )
  return tree.advice(num_clusters, num_images, cuts)
