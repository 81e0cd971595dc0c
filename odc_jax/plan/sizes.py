"""Works out what a planned run holds: on devices, on the host and on disk."""

import functools
import math
from typing import Any

import jax
from jax.sharding import Mesh

from odc_jax import mesh as mesh_lib
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.data import loader
from odc_jax.evals import knn
from odc_jax.passes import extract
from odc_jax.plan.table import _num_bytes, _tree_bytes
from odc_jax.training.programs import Program

# Two steps are under way, and the next batch is on its way.
_BATCHES_ON_DEVICE = 3
# Estimates: a photograph of 12 megapixels while it is decoded, the path and
# the object of an image's name, and what `evals.scores.nmi` takes for two
# clusterings with 10,000 clusters each (measured: 88 bytes an image).
_DECODED_BYTES = 36_000_000
_NAME_BYTES = 90
_NMI_BYTES = 88

# What a frozen backbone has left of the images.
KEPT = "features of all images"


def host_bytes(
  config: Config,
  state_bytes: int,
  num_processes: int,
  kept_bytes: int = 0,
) -> dict[str, int]:
  """Returns estimates of the memory of one process: part -> bytes.

  Args:
    config: A resolved experiment.
    state_bytes: Of the parts of the state on this process's devices, each
      part once: what it writes of a checkpoint.
    num_processes: That share every batch.
    kept_bytes: Of a frozen backbone's features, those on this process's
      devices.
  """
  data, n = config.data, config.num_examples
  image = 3 * data.image_size**2
  views = sum(3 * c.views * c.size**2 for c in loader.crops(data))
  features = {}
  if config_lib.is_frozen(config):
    views = 4  # an image's number
    features["features on their way"] = kept_bytes
  threads = max(1, data.num_threads) * max(1, data.num_workers)
  held = loader.num_batches_held(data) + _BATCHES_ON_DEVICE
  eval_batches = max(2, data.num_threads)
  if config_lib.has_features(config):
    threads = eval_batches = 0  # no image is read
  return {
    "training batches": held * config.batch_size // num_processes * views,
    "evaluation batches": (
      eval_batches * config.eval.batch_size // num_processes * image
    ),
    "images being decoded": 2 * threads * _DECODED_BYTES,
    "names of the images": n * _NAME_BYTES,
    **features,
    "clusters, twice": 2 * 4 * n,
    "comparing them": _NMI_BYTES * n,
    "a checkpoint": state_bytes,
  }


def disk_bytes(config: Config, outputs: Any) -> dict[str, int]:
  """Returns what a frozen backbone's features take on disk: part -> bytes.

  Args:
    config: A resolved experiment.
    outputs: The shapes of what the network makes of one image.
  """
  if not config_lib.is_frozen(config) or config_lib.has_features(config):
    return {}
  n = config.num_examples
  features, _, signatures, labels = extracted_shapes(config, outputs)
  return {
    "features": n * _row_bytes(features),
    "thumbnails": n * _row_bytes(signatures),
    "labels": n * _row_bytes(labels),
    "names of the images": n * _NAME_BYTES,
  }


def _row_bytes(array):
  return math.prod(array.shape[1:]) * array.dtype.itemsize


def parts_of(config: Config, program: Program, mesh: Mesh) -> dict[str, int]:
  """Returns what of a training state and its batches lies on each device."""
  shapes, where = program.shapes, program.shardings
  samples, rest = 0, 0
  for leaf, sharding in zip(
    jax.tree.leaves(shapes.method), jax.tree.leaves(where.method), strict=True
  ):
    if sharding.spec == mesh_lib.REPLICATED:
      rest += _num_bytes(leaf, sharding)
    else:
      samples += _num_bytes(leaf, sharding)
  batch = program.batch
  kept = {}
  if shapes.teacher is not None:
    kept["teacher"] = _tree_bytes(
      (shapes.teacher, shapes.teacher_stats),
      (where.teacher, where.teacher_stats),
    )
  if config_lib.is_frozen(config):
    # What a batch takes its rows from is there once.
    batch = {"index": batch["index"]}
    features, _, signatures, _ = extracted_shapes(config, program.outputs)
    arrays = [features, signatures]
    if config_lib.has_features(config):
      arrays.remove(signatures)
    kept[KEPT] = sum(_num_bytes(array, mesh_lib.rows(mesh)) for array in arrays)
  batch = sum(
    _num_bytes(leaf, mesh_lib.rows(mesh)) for leaf in jax.tree.leaves(batch)
  )
  return {
    "parameters": _tree_bytes(shapes.params, where.params),
    "optimizer": _tree_bytes(shapes.opt_state, where.opt_state),
    "batch statistics": _tree_bytes(shapes.batch_stats, where.batch_stats),
    "sample memory": samples,
    "centroid memory": rest,
    **kept,
    "batches": _BATCHES_ON_DEVICE * batch,
  }


def phases_of(
  config: Config,
  program: Program,
  usages: dict[str, Any],
  parts: dict[str, int],
  state_bytes: int,
  mesh: Mesh,
) -> dict[str, dict[str, int]]:
  """Returns what each phase of a run takes per device, by part."""
  rows = mesh_lib.padded_rows(config.num_examples) // mesh.size
  outputs = program.outputs
  features_bytes = 4 * rows * outputs.features.shape[1]

  def added(name):
    return usages[name].added if name in usages else 0

  there: dict[str, int] = {"state": state_bytes}
  training = {"batches": parts["batches"], "step": added("step")}
  if config_lib.is_frozen(config):
    # The features are the host's until the pass has ended.
    size = config.data.image_size
    batch_size = mesh_lib.divisible(config.eval.batch_size, mesh)
    images = batch_size * 3 * size**2 // mesh.size
    phases = {}
    if not config_lib.has_features(config):
      phases["features"] = there | {
        "images": 2 * images,
        "network": added("features"),
      }
    there[KEPT] = parts[KEPT]
    phases["embeddings"] = there | {"neck": added("embeddings")}
    phases["training"] = there | training
    there["embeddings of all images"] = 4 * rows * outputs.embeddings.shape[1]
  else:
    phases = {"training": there | training}
    there[KEPT] = sum(
      part.size * part.dtype.itemsize // mesh.size
      for part in extracted_shapes(config, outputs)
    )
    phases["extraction"] = there | {"network": added("extraction")}
  if "clustering" in usages:
    # An augmented pass keeps no more of an image than a pass for the evaluation
    # does, unless there are several views.
    phases["clustering"] = there | {"clustering": added("clustering")}
  if "knn" in config.eval.evaluators:
    phases["kNN, estimated"] = there | {
      "their unit vectors": features_bytes,
      "similarities, twice": 2 * 4 * knn.CHUNK * rows,
    }
  return phases


def extracted_shapes(config: Config, outputs: Any) -> Any:
  """Returns the shapes of what an extraction keeps of all images."""
  return jax.eval_shape(
    functools.partial(
      extract.empty, outputs, mesh_lib.padded_rows(config.num_examples)
    )
  )
