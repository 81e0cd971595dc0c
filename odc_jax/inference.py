"""A finished run in use: `run = odc_jax.load("runs/odc_digits")`.

What a run leaves is files; here they become a network that embeds new images,
and clusters that new images are assigned to.
"""

import contextlib
import functools
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from odc_jax import mesh as mesh_lib
from odc_jax.clustering.pca import PCA
from odc_jax.config import store
from odc_jax.data import loader, sources
from odc_jax.data import source as source_lib
from odc_jax.data.bad_images import BadImage
from odc_jax.data.in_memory import Given
from odc_jax.errors import UserError
from odc_jax.logs import progress
from odc_jax.methods import METHODS
from odc_jax.results import annotations as annotations_lib
from odc_jax.results import groups as groups_lib
from odc_jax.results import neighbors, outliers, vectors, write
from odc_jax.results import table as table_lib
from odc_jax.training import checkpoint
from odc_jax.training.programs import assemble

# The columns for new images. Names are a contract: scripts read them.
ASSIGNED = {
  "index": ("its place among the images given", pa.int64()),
  "key": ("its path below the folder, or as it was given", pa.string()),
  "cluster": ("the nearest cluster, or that of the heads' vote", pa.int32()),
  "cluster_group": (
    "the group of clusters that holds it (--num_groups)",
    pa.int32(),
  ),
  "similarity": (
    "cosine of its embedding with the cluster's centroid",
    pa.float32(),
  ),
  "second_cluster": ("the cluster of the next centroid", pa.int32()),
  "margin": ("similarity minus that with the second cluster", pa.float32()),
  "confidence": ("the network's own probability of the cluster", pa.float32()),
  "outlier_score": (
    "half of 1 minus the mean cosine with the ten nearest training images",
    pa.float32(),
  ),
  "is_novel": (
    "less like the training images than 99 % of these are like each other",
    pa.bool_(),
  ),
  "nearest": ("keys of the nearest training images", pa.list_(pa.string())),
  "nearest_similarity": ("their cosines", pa.list_(pa.float32())),
}

_NUM_NEAREST = 5

_NEEDED = (
  "config.json",
  "clusters.parquet",
  "clusters.json",
  "embeddings.npy",
  "centroids.npy",
  "features.npy",
  "components.npz",
)

Images = str | os.PathLike | Iterable[Any]


class Run:
  """A finished run.

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
    self.workdir = pathlib.Path(workdir).expanduser()
    for name in _NEEDED:
      if not (self.workdir / name).exists():
        raise UserError(
          f"{self.workdir} holds no finished run: {name} is missing; train to "
          "the end first, with --mode=train"
        )
    self.config = store.read(self.workdir)

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

  def features(self, images: Images) -> Float[np.ndarray, "n c"]:
    """Returns the backbone's features of images, averaged over space.

    What transfers to other tasks: for a probe, a search, a classifier.

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
        [h, w], opened Pillow images, or the bytes of files.

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
      open_images(images), num_groups
    ):
      tables.append(table)
      bad += unreadable
    _warn(bad)
    return pa.concat_tables(tables)

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
    for part in self._judge(source, "assigning images"):
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
      yield pa.table(columns), part.bad

  def _all(self, images, name):
    """Returns one of the network's outputs for all images, [n, ...]."""
    found, bad = [], []
    for part in self._judge(open_images(images), "embedding images"):
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

  def _judge(self, source: source_lib.Source, task: str) -> Iterator["_Part"]:
    """Yields what the network makes of a data set, a batch at a time."""
    mesh, network, judge = self._network
    n = len(source)
    batch_size = min(self.config.eval.batch_size, n)
    done = 0
    batches = loader.eval_batches(
      source,
      batch_size=mesh_lib.divisible(batch_size, mesh),
      resize=self.config.data.eval_resize,
      crop=self.config.data.image_size,
      num_threads=self.config.data.num_threads,
      interpolation=self.config.data.get("interpolation", "bilinear"),
    )
    with (
      contextlib.closing(batches),
      progress.bar(task, n, in_logs=False) as advance,
    ):
      for batch in batches:
        with jax.set_mesh(mesh):
          judged = jax.device_get(judge(*network, batch["image"]))
        count = int(np.sum(batch["index"] < n))  # without the padding
        index = batch["index"][:count]
        bad = {image.index: image for image in batch["bad"]}
        yield _Part(
          index,
          batch["key"][:count],
          ~np.isin(index, list(bad)),
          {k: array[:count] for k, array in judged.items()},
          # A batch looks past its end for a neighbour that can be read.
          [bad[i] for i in sorted(bad) if i in index],
        )
        done += count
        advance(done)

  def _read(self, name, load):
    return groups_lib.read(self.workdir / name, load)

  @functools.cached_property
  def _network(self):
    """The mesh, the network's arrays, and images -> what it makes of
    them: `program.Judgement`, features, embeddings."""
    mesh = mesh_lib.make_mesh()
    with jax.set_mesh(mesh):
      method = METHODS[self.config.method]
      program = assemble(self.config, method, mesh)
      parts = program.evaluated_parts
      if method.vote is not None:
        parts += ("method",)
      found = checkpoint.restore_parts(
        self.workdir, program.shapes, program.shardings, parts
      )
      state = program.shapes._replace(**dict(zip(parts, found, strict=True)))
      params, batch_stats = program.evaluated(state)
      voting = None if method.vote is None else state.method
      centroids = jax.device_put(
        self._read("centroids.npy", np.load), mesh_lib.replicated(mesh)
      )

      @functools.partial(
        jax.jit,
        in_shardings=(None, None, None, None, mesh_lib.rows(mesh)),
        out_shardings=mesh_lib.replicated(mesh),
      )
      def judge(params, batch_stats, centroids, voting, images):
        outputs = program.forward(params, batch_stats, images)
        judged = program.judge(
          params,
          centroids,
          outputs.embeddings,
          np.full(images.shape[0], -1, np.int32),
          voting,
        )
        return judged._asdict() | {
          "features": outputs.features,
          "embeddings": outputs.embeddings,
        }

    return mesh, (params, batch_stats, centroids, voting), judge

  @functools.cached_property
  def _neighbors(self):
    load = functools.partial(np.load, mmap_mode="r")
    return neighbors.Neighbors(self._read("features.npy", load))

  @functools.cached_property
  def _components(self):
    def load(path):
      with path.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)

    return PCA(**self._read("components.npz", load))

  @functools.cached_property
  def _threshold(self):
    return groups_lib.describe(self.workdir)["novelty_threshold"]

  @functools.cached_property
  def _keys(self):
    """Index of a training image -> its key."""
    load = functools.partial(pq.read_table, columns=["index", "key"])
    table = self._read("clusters.parquet", load).to_pydict()
    return dict(zip(table["index"], table["key"], strict=True))


def _warn(bad: list[BadImage]) -> None:
  """Tells a program what it gets no row, or a row of zeros, for."""
  if bad:
    warnings.warn(
      f"{len(bad):,} images cannot be read, the first of them {bad[0].key!r}: "
      f"{bad[0].reason}",
      stacklevel=3,
    )


class _Part(NamedTuple):
  """A batch of images and what the network makes of it."""

  index: Int[np.ndarray, "b"]
  keys: list[str]
  readable: Bool[np.ndarray, "b"]
  judged: dict[str, np.ndarray]
  bad: list[BadImage]


def open_images(images: Images) -> source_lib.Source:
  """Returns the images below a folder, or those of a sequence.

  Raises:
    UserError: There is none.
  """
  if isinstance(images, str | os.PathLike):
    return sources.make(f"folder:{os.fspath(images)}")
  return Given(images)
