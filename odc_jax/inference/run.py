"""A finished run in use: `run = odc_jax.load("runs/odc_digits")`.

What a run leaves is files; here they become a network that embeds new images,
and clusters that new images are assigned to.
"""

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from odc_jax.clustering.pca import PCA
from odc_jax.data import source as source_lib
from odc_jax.data.bad_images import BadImage
from odc_jax.errors import UserError
from odc_jax.inference import assigned as assigned_lib
from odc_jax.inference import network, notebook
from odc_jax.inference.assigned import ASSIGNED
from odc_jax.inference.network import Images
from odc_jax.inference.run_files import RunFiles, mapped
from odc_jax.results import groups as groups_lib
from odc_jax.results import neighbors, outliers, vectors, write

_NUM_NEAREST = 5


class Run(RunFiles):
  """A finished run in use."""

  def features(self, images: Images) -> Float[np.ndarray, "n c"]:
    """Returns the backbone's features of images, averaged over space.

    What transfers to other tasks: for a probe, a search, a classifier. Of a run
    on features from elsewhere, these.

    Args:
      images: As for `embed`.

    Returns:
      float32, not normalised; else as `embed`.

    Raises:
      UserError: As `embed`.
    """
    return self._all(images, "features")

  def embed(self, images: Images) -> Float[np.ndarray, "n d"]:
    """Returns the unit embeddings of images, which the clusters are made of.

    Args:
      images: A folder; or a sequence of paths, uint8 arrays [h, w, 3] or
        [h, w], opened Pillow images, or the bytes of files. Of a run on
        features from elsewhere: features of the same kind, [n, c], or the
        path of a .npy file with such.

    Returns:
      float32, a row for every image, in the order given, a folder's by path;
      zeros for an image that cannot be read.

    Raises:
      UserError: There is no image, or no checkpoint that can be read.
    """
    return vectors.unit(self._all(images, "embeddings"))

  def assign(self, images: Images, num_groups: int | None = None) -> pa.Table:
    """Assigns images to the clusters.

    Args:
      images: As for `embed`.
      num_groups: Of how many groups to name the one that holds the cluster;
        None: of as many as `clusters.parquet` has, which may be none.

    Returns:
      A row for every image that can be read; `ASSIGNED` says what the columns
      are.

    Raises:
      UserError: As `embed`; and if there cannot be so many groups.
    """
    tables, bad = [], []
    for table, unreadable in self.assign_in_parts(
      self.open(images), num_groups
    ):
      tables.append(table)
      bad += unreadable
    _warn(bad)
    return pa.concat_tables(tables)

  def open(self, images: Images) -> source_lib.Source:
    """Returns what can be assigned, a record for each of the images.

    Args:
      images: As for `embed`.

    Raises:
      UserError: There is none, or not what the run was trained on.
    """
    return self._network.open(images)

  def assign_in_parts(
    self, source: source_lib.Source, num_groups: int | None = None
  ) -> Iterator[tuple[pa.Table, list[BadImage]]]:
    """As `assign`, a batch at a time: for more images than fit.

    Args:
      source: The images.
      num_groups: As for `assign`.

    Yields:
      The rows of a batch, and what of it could not be read.
    """
    groups = groups_lib.groups_of(self.workdir, num_groups)
    metadata = assigned_lib.metadata(
      getattr(source, "base", None), self._digest
    )
    for part in self._network.judge(source, "assigning images"):
      there = part.readable
      judged = {name: array[there] for name, array in part.judged.items()}
      cluster = judged.pop("cluster")
      del judged["nearest"]  # of the centroids; below it is images
      columns = {
        **judged,
        "index": part.index[there],
        "key": [part.keys[i] for i in np.flatnonzero(there)],
        "cluster": cluster,
      }
      if groups is not None:
        columns["cluster_group"] = groups[cluster]
      if self._threshold is not None:
        columns |= self._compare(judged["features"])
      columns = {
        name: pa.array(columns[name], kind)
        for name, (_, kind) in ASSIGNED.items()
        if name in columns
      }
      yield pa.table(columns, metadata=metadata), part.bad

  def similar(self, image: Any, num_images: int = 12) -> notebook.Html:
    """Returns the training images that are most like an image.

    Args:
      image: The key or the number of a training image; or, as in a list for
        `embed`, a path, pixels, an opened Pillow image or the bytes of a file.
      num_images: How many at most.

    Raises:
      UserError: As `embed`; or the image cannot be read.
    """
    own, features = self._query(image)
    found, cosines = self._neighbors.search(features, num_images + 1)
    pairs = [
      (int(i), f"{cosine:.2f}, {self._title(self._cluster_of[int(i)])}")
      for i, cosine in zip(found[0], cosines[0], strict=True)
      if int(i) != own and int(i) in self._cluster_of
    ][:num_images]
    title = f"{len(pairs)} most similar images, with their cosines"
    return notebook.gallery([(title, self._pictures(pairs))], title)

  def _all(self, images, name):
    """Returns one of the network's outputs for all images, [n, ...]."""
    found, bad = [], []
    for part in self._network.judge(self.open(images), "embedding images"):
      found.append(np.where(part.readable[:, None], part.judged[name], 0))
      bad += part.bad
    _warn(bad)
    return np.concatenate(found)

  def _compare(self, features):
    """Returns what the most similar training images say of these."""
    images, cosines = self._neighbors.search(
      vectors.unit(self._components.project(features)), write.NUM_NEIGHBORS
    )
    scores = outliers.scores(cosines)
    there = images[:, :_NUM_NEAREST] >= 0
    return {
      "outlier_score": scores,
      "is_novel": scores > self._threshold,
      "nearest": [
        [self._keys[image] for image in row[ok]]
        for row, ok in zip(images[:, :_NUM_NEAREST], there, strict=True)
      ],
      "nearest_similarity": [
        row[ok]
        for row, ok in zip(cosines[:, :_NUM_NEAREST], there, strict=True)
      ],
    }

  def _query(self, image):
    """Returns the number of a training image or -1, and its features [1, p]."""
    if isinstance(image, str) and image in self._number_of:
      image = self._number_of[image]
    if isinstance(image, int | np.integer):
      if int(image) not in self._cluster_of:
        raise UserError(f"no training image has the number {image}")
      rows = self._read("features.npy", mapped)
      return int(image), vectors.unit(np.array(rows[image][None], np.float32))
    features = self.features([image])
    return -1, vectors.unit(self._components.project(features))

  @functools.cached_property
  def _network(self):
    return network.Network(self.workdir, self.config)

  @functools.cached_property
  def _neighbors(self):
    return neighbors.Neighbors(self._read("features.npy", mapped))

  @functools.cached_property
  def _components(self):
    def load(path):
      with path.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)

    return PCA(**self._read("components.npz", load))

  @functools.cached_property
  def _threshold(self):
    return groups_lib.describe(self.workdir)["novelty_threshold"]


def _warn(bad: list[BadImage]) -> None:
  """Tells a program what it gets no row, or a row of zeros, for."""
  if bad:
    warnings.warn(
      f"{len(bad):,} images cannot be read, the first of them {bad[0].key!r}: "
      f"{bad[0].reason}",
      stacklevel=3,
    )
