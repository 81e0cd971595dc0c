"""From a run's last checkpoint to a folder that PyTorch's users can load."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from odc_jax import mesh as mesh_lib
from odc_jax.config import check, store
from odc_jax.errors import UserError
from odc_jax.files import write_whole
from odc_jax.interop import card, hub
from odc_jax.interop import names as names_lib
from odc_jax.interop.read import BACKBONE_FILE, NECK_AND_HEAD_FILE
from odc_jax.logs import writer
from odc_jax.methods import METHODS
from odc_jax.models.functional import Tree
from odc_jax.training import checkpoint
from odc_jax.training.programs import assemble

# Written as it is. Not imported: it needs PyTorch, which nothing else does.
_MODEL = pathlib.Path(__file__).with_name("model.py")

# Which PyTorch's libraries look for.
_METADATA = {"format": "pt"}


def write(workdir: pathlib.Path, folder: pathlib.Path) -> str:
  """Writes the network of a run, finished or not: `--mode=export`.

  Args:
    workdir: The work directory; nothing in it is changed.
    folder: Where to write; made if it is not there. Gets `model.safetensors`
      (the backbone alone), `neck_and_head.safetensors`, `config.json` (in
      timm's form), `model.py` (which loads these in PyTorch) and `README.md`
      (a model card).

  Returns:
    What was written, in a sentence.

  Raises:
    UserError: There is no run or no checkpoint that can be read, the folder is
      not one to write to, or the run has no network of its own.
  """
  config = store.read(workdir)
  if check.has_features(config):
    raise UserError(
      f"{workdir} was trained on features of a file and has no network to "
      "export; --mode=assign takes features of new images"
    )
  _check_folder(folder)
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh):
    method = METHODS[config.method]
    program = assemble(config, method, mesh)
    parts = ("step", *program.evaluated_parts)
    if method.vote_names is not None:
      parts += ("method",)
    found = checkpoint.restore_parts(
      workdir, program.shapes, program.shardings, parts
    )
  state = program.shapes._replace(**dict(zip(parts, found, strict=True)))
  params, batch_stats = program.evaluated(state)
  step, names = int(state.step), None
  if method.vote_names is not None:
    names = np.asarray(method.vote_names(state.method))
  weights = state_dict(params, batch_stats, step, names)
  text = card.render(config, step, *_numbers(workdir), hub.recorded(workdir))
  write_files(folder, weights, card.describe(config), text)
  return f"step {step} of {workdir}, written to {folder}"


def write_files(
  folder: pathlib.Path,
  weights: dict[str, dict[str, np.ndarray]],
  description: dict[str, Any],
  text: str,
) -> None:
  """Writes the files of an export.

  Args:
    folder: Made if it is not there.
    weights: As `state_dict` returns them.
    description: What becomes `config.json`.
    text: The model card.

  Raises:
    UserError: The folder cannot be written to.
  """
  neck_and_head = {
    f"{part}.{name}": array
    for part in weights.keys() - {"backbone"}
    for name, array in weights[part].items()
  }
  files = {
    BACKBONE_FILE: _safetensors(weights["backbone"]),
    NECK_AND_HEAD_FILE: _safetensors(neck_and_head),
    "README.md": text.encode(errors="backslashreplace"),
    "config.json": (json.dumps(description, indent=2) + "\n").encode(),
    "model.py": _MODEL.read_bytes(),
  }
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
      write_whole(folder / name, data)
  except OSError as error:
    raise UserError(
      f"cannot write to {folder}: {error}; choose another --output"
    ) from error


def state_dict(
  params: Tree,
  batch_stats: Tree,
  step: int,
  names: np.ndarray | None = None,
) -> dict[str, dict[str, np.ndarray]]:
  """Returns a network as PyTorch holds it.

  Args:
    params: Parameters of the whole network.
    batch_stats: Running statistics of the whole network's BatchNorm.
    step: Steps trained, which become `num_batches_tracked`.
    names: Of a head of heads that vote, `Method.vote_names`.

  Returns:
    "backbone", "neck", "head", "predictor" and "vote", each name -> array, if
    any; the backbone's are torchvision's.
  """
  parts = {"backbone": {}, "neck": {}, "head": {}, "predictor": {}}
  for full_name, leaf in names_lib.by_name(params, batch_stats).items():
    part, name = full_name.split(".", 1)
    parts[part][name] = names_lib.to_torch(np.asarray(leaf))
    if name.endswith("running_var"):
      counter = name.replace("running_var", "num_batches_tracked")
      parts[part][counter] = np.array(step, np.int64)
  if names is not None:
    parts["vote"] = {"names": names.astype(np.int64)}
  return parts


def _safetensors(arrays: dict[str, np.ndarray]) -> bytes:
  return safetensors.numpy.save(dict(sorted(arrays.items())), _METADATA)


def _check_folder(folder: pathlib.Path) -> None:
  """Raises a UserError where something else would be overwritten."""
  if folder.exists() and not folder.is_dir():
    raise UserError(f"{folder} is a file; choose a folder with --output")
  # A work directory, or somebody else's model, has one as well.
  if (folder / "config.json").exists() and not (
    folder / NECK_AND_HEAD_FILE
  ).exists():
    raise UserError(
      f"{folder} holds a config.json that no export wrote; choose another "
      "folder with --output"
    )


def _numbers(workdir: pathlib.Path) -> tuple[dict[str, Any], bool]:
  """Returns the last evaluations, and whether the run has ended."""
  path = workdir / "summary.json"
  if path.exists():
    return json.loads(path.read_text("utf-8")), True
  if (workdir / "metrics.jsonl").exists():
    return writer.last_values(workdir), False
  return {}, False
