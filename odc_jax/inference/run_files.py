"""What is read of a finished run without its network."""

import functools
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from odc_jax.config import store
from odc_jax.errors import UserError
from odc_jax.files import expanded
from odc_jax.inference import assigned as assigned_lib
from odc_jax.inference import notebook
from odc_jax.results import annotations as annotations_lib
from odc_jax.results import groups as groups_lib
from odc_jax.results import table as table_lib
from odc_jax.results.originals import Originals

_NEEDED = (
  "config.json",
  "clusters.parquet",
  "clusters.json",
  "embeddings.npy",
  "centroids.npy",
  "features.npy",
  "components.npz",
)


# The longer side of a picture, twice what it has on the screen.
_PICTURE_SIDE = 224

mapped = functools.partial(np.load, mmap_mode="r")


class RunFiles:
  """The files of a finished run, and what a notebook draws of them.

  Attributes:
    workdir: Its work directory.
    config: Its config, with all sizes filled in.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Reads the config; the rest follows when it is first needed.

    Args:
      workdir: What `--workdir` was.

    Raises:
      UserError: No run has finished there.
    """
    self.workdir = expanded(workdir)
    for name in _NEEDED:
      if not os.path.exists(self.workdir / name):
        raise UserError(
          f"{self.workdir} holds no finished run: {name} is missing; train to "
          "the end first, with --mode=train"
        )
    self.config = store.read(self.workdir)
    notebook.register()

  def clusters(self) -> pa.Table:
    """Returns `clusters.parquet`, a row for every training image.

    `results.table.COLUMNS` says what the columns are; `.to_pandas()` makes a
    data frame of them.
    """
    return self._read("clusters.parquet", table_lib.read)

  def annotations(self) -> annotations_lib.Annotations:
    """Returns the names and marks that were made on the page of the run.

    They are in the work directory once `--mode=report --annotations=FILE` has
    taken them in; before that there are none.

    Raises:
      UserError: `annotations.json` is damaged.
    """
    return annotations_lib.load(self.workdir)

  def groups(self, num_groups: int) -> Int[np.ndarray, "k"]:
    """Merges the clusters into fewer groups.

    Args:
      num_groups: From 1 to k.

    Returns:
      The group of every cluster, numbered from the largest.

    Raises:
      UserError: There cannot be so many.
    """
    groups = groups_lib.groups_of(self.workdir, num_groups)
    assert groups is not None  # a number was asked for
    return groups

  def merged(
    self,
    assigned: pa.Table
    | str
    | os.PathLike
    | list[pa.Table | str | os.PathLike]
    | None = None,
  ) -> pa.Table:
    """Returns the run's table, followed by the rows of images assigned later.

    Nothing is written.

    Args:
      assigned: What `assign` returned, or files that `--mode=assign` wrote; of
        images that are in several of them the last row is taken. None: all
        such files in the work directory, oldest first.

    Returns:
      The columns of `clusters()` and those of `inference.assigned.MERGED`; null
      where nothing is known of a new image.

    Raises:
      UserError: A file cannot be read, or has clusters of another run.
    """
    if assigned is None:
      tables = assigned_lib.read_all(self.workdir)
    else:
      several = isinstance(assigned, list | tuple)
      tables = [
        rows
        if isinstance(rows, pa.Table)
        else groups_lib.read(expanded(rows), table_lib.read)
        for rows in (assigned if several else [assigned])
      ]
    return assigned_lib.merge(self.clusters(), tables, self._digest)

  def show(self, num_clusters: int = 12, num_images: int = 8) -> notebook.Html:
    """Returns the largest clusters, each with what is most typical of it.

    Args:
      num_clusters: How many, from the largest.
      num_images: Of each.
    """
    described = groups_lib.describe(self.workdir)["clusters"]
    described = sorted(described, key=lambda c: -c["size"])[:num_clusters]
    parts = [
      (
        f"{self._title(c['cluster'])}, {c['size']:,} images",
        self._pictures([(i, "") for i in c["representatives"][:num_images]]),
      )
      for c in described
      if c["size"]
    ]
    return notebook.gallery(parts, f"the {len(parts)} largest clusters")

  def images(self, cluster: int, num_images: int = 48) -> notebook.Html:
    """Returns the images of a cluster, the most similar to its mean first.

    Args:
      cluster: Its number.
      num_images: How many at most.

    Raises:
      UserError: There is no such cluster.
    """
    rows = self._shown
    own = np.flatnonzero(rows["cluster"].to_numpy() == cluster)
    if not len(own):
      raise UserError(f"no image is in cluster {cluster}; clusters() has all")
    similarity = rows["similarity"].to_numpy()[own]
    own = own[np.argsort(-similarity, kind="stable")][:num_images]
    chosen = rows.take(own)
    captions = [f"{s:.2f}" for s in chosen["similarity"].to_pylist()]
    pairs = list(zip(chosen["index"].to_pylist(), captions, strict=True))
    title = f"{self._title(cluster)}, {len(similarity):,} images"
    return notebook.gallery([(title, self._pictures(pairs))], title)

  def plot_map(self, num_images: int = 5000) -> notebook.Html:
    """Returns the map of the images: a dot for each, coloured by cluster.

    Args:
      num_images: How many at most, drawn by chance, the same every time.

    Raises:
      UserError: The run has no map, being of very many images.
    """
    path = self.workdir / "clusters.parquet"
    if "projection_x" not in groups_lib.read(path, table_lib.names):
      raise UserError(f"{self.workdir} has no map: it is of too many images")
    columns = ["projection_x", "projection_y", "cluster"]
    rows = self._read(
      path.name, functools.partial(table_lib.read, columns=columns)
    )
    x, y, clusters = (rows[name].to_numpy() for name in columns)
    places = np.stack([x, y], axis=1)
    if len(places) > num_images:
      rng = np.random.default_rng(0)
      chosen = np.sort(rng.choice(len(places), num_images, replace=False))
      places, clusters = places[chosen], clusters[chosen]
    names = {c: self._title(c) for c in np.unique(clusters).tolist()}
    said = f"map of {len(places):,} images"
    return notebook.points(places, clusters, names, said)

  def _repr_html_(self) -> str:
    return notebook.overview(self.workdir, self.show(6, 6))

  def _read(self, name: str, load: Callable[[pathlib.Path], Any]) -> Any:
    return groups_lib.read(self.workdir / name, load)

  def _pictures(self, images):
    """Returns the pictures of training images, of (number, caption)."""
    return [
      notebook.Picture(
        self._originals
        and self._originals.picture(self._keys[i], i, _PICTURE_SIDE),
        self._keys[i],
        caption,
      )
      for i, caption in images
    ]

  def _title(self, cluster):
    name = self.annotations().names.get(cluster)
    return f"cluster {cluster}" + (f": {name}" if name else "")

  @functools.cached_property
  def _shown(self):
    columns = ["index", "key", "cluster", "similarity"]
    load = functools.partial(table_lib.read, columns=columns)
    return self._read("clusters.parquet", load)

  @functools.cached_property
  def _keys(self):
    """Index of a training image -> its key."""
    rows = self._shown.to_pydict()
    return dict(zip(rows["index"], rows["key"], strict=True))

  @functools.cached_property
  def _number_of(self):
    return {key: index for index, key in self._keys.items()}

  @functools.cached_property
  def _cluster_of(self):
    rows = self._shown.to_pydict()
    return dict(zip(rows["index"], rows["cluster"], strict=True))

  @functools.cached_property
  def _digest(self):
    rows = self._shown
    index, cluster = (rows[name].to_numpy() for name in ("index", "cluster"))
    return annotations_lib.digest(index, cluster)

  @functools.cached_property
  def _originals(self):
    """The images as they are now; None where they cannot be found."""
    try:
      return Originals(self.workdir)
    except UserError as error:
      warnings.warn(f"there are no pictures: {error}", stacklevel=2)
      return None
