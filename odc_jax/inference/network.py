"""The network of a finished run, and what it makes of new images."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from odc_jax import mesh as mesh_lib
from odc_jax.config import Config, check
from odc_jax.data import features as features_lib
from odc_jax.data import loader, sequences, sources
from odc_jax.data import source as source_lib
from odc_jax.data.bad_images import BadImage
from odc_jax.data.in_memory import Given
from odc_jax.errors import UserError
from odc_jax.files import expanded
from odc_jax.logs import progress
from odc_jax.methods import METHODS
from odc_jax.results import groups
from odc_jax.training import checkpoint
from odc_jax.training.programs import assemble

Images = str | os.PathLike | np.ndarray | Iterable[Any]


def open_images(images: Images) -> source_lib.Source:
  """Returns the images below a folder, or those of a sequence.

  Raises:
    UserError: There is none.
  """
  if isinstance(images, str | os.PathLike):
    if os.path.isfile(expanded(images)):
      raise UserError(
        f"{os.fspath(images)} is a file; give its folder as --images, or from "
        "Python a list of it: [path]"
      )
    return sources.make(f"folder:{os.fspath(images)}")
  return Given(images)


class Part(NamedTuple):
  """A batch of images and what the network makes of it."""

  index: Int[np.ndarray, "b"]
  keys: list[str]
  readable: Bool[np.ndarray, "b"]
  judged: dict[str, np.ndarray]
  bad: list[BadImage]


class Network:
  """The last checkpoint of a run, restored when it is first needed."""

  def __init__(self, workdir: pathlib.Path, config: Config):
    """Remembers where it is.

    Args:
      workdir: Of a finished run.
      config: Its config.
    """
    self._workdir, self._config = workdir, config

  def open(self, images: Images) -> source_lib.Source:
    """Returns what can be judged, a record for each of the images.

    Args:
      images: As for `Run.embed`.

    Raises:
      UserError: There is none, or not what the run was trained on.
    """
    if not check.has_features(self._config):
      return open_images(images)
    size = self._config.model.settings["size"]
    if isinstance(images, np.ndarray):
      found = features_lib.Features(images)
    elif isinstance(images, str | os.PathLike):
      found = self._read(os.fspath(images))
    else:
      raise UserError(
        "this run knows features, no images: give an array [n, "
        f"{size}] of features of the same kind, or a .npy file"
      )
    if found.rows.shape[1] != size:
      raise UserError(
        f"these are {found.rows.shape[1]:,} features of every image, and the "
        f"run was trained on {size:,}: make them with the same network"
      )
    return found

  def _read(self, path: str) -> features_lib.Features:
    """Returns the rows of a file, or those of sequences."""
    kind, _, _ = self._config.data.source.partition(":")
    path = path.removeprefix(f"{kind}:")
    if kind == "features":
      return features_lib.read(path)
    standardize = self._config.data.get("standardize", "none")
    return sequences.read(path, standardize=standardize, has_truth=False)

  def judge(self, source: source_lib.Source, task: str) -> Iterator[Part]:
    """Yields what the network makes of a data set, a batch at a time.

    Args:
      source: The images.
      task: What it is done for, to be said.

    Raises:
      UserError: There is no checkpoint that can be read.
    """
    mesh, network, judge = self._restored
    n = len(source)
    batch_size = min(self._config.eval.batch_size, n)
    done = 0
    batches = self._batches(source, mesh_lib.divisible(batch_size, mesh))
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
        yield Part(
          index,
          batch["key"][:count],
          ~np.isin(index, list(bad)),
          {k: array[:count] for k, array in judged.items()},
          # A batch looks past its end for a neighbour that can be read.
          [bad[i] for i in sorted(bad) if i in index],
        )
        done += count
        advance(done)

  def _batches(self, source, batch_size):
    if isinstance(source, features_lib.Features):
      return source.batches(batch_size)
    return loader.eval_batches(
      source,
      batch_size=batch_size,
      resize=self._config.data.eval_resize,
      crop=self._config.data.image_size,
      num_threads=self._config.data.num_threads,
      interpolation=self._config.data.get("interpolation", "bilinear"),
    )

  @functools.cached_property
  def _restored(self):
    """The mesh, the network's arrays, and images -> what it makes of
    them: `program.Judgement`, features, embeddings."""
    mesh = mesh_lib.make_mesh()
    with jax.set_mesh(mesh):
      method = METHODS[self._config.method]
      program = assemble(self._config, method, mesh)
      parts = program.evaluated_parts
      if method.vote is not None:
        parts += ("method",)
      found = checkpoint.restore_parts(
        self._workdir, program.shapes, program.shardings, parts
      )
      state = program.shapes._replace(**dict(zip(parts, found, strict=True)))
      params, batch_stats = program.evaluated(state)
      voting = None if method.vote is None else state.method
      centroids = jax.device_put(
        groups.read(self._workdir / "centroids.npy", np.load),
        mesh_lib.replicated(mesh),
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
