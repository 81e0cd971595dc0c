"""A file's network in place of ours: checked first, then taken over."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from odc_jax.config import Config
from odc_jax.distributed import processes
from odc_jax.errors import UserError
from odc_jax.interop import hub, names, recognise
from odc_jax.models import positions, pretrained
from odc_jax.models.functional import Tree

# Names in a file beside the stages, which are no part of the backbone.
_HEADS = re.compile(
  r"(fc|fc_cls|heads?|neck|classifier|linear|mlp|project\w*|predict\w*|"
  r"prototypes|top_layer|last_layer|queue\w*|memory\w*|centroids|sobel|"
  r"pre_logits|head_dist|mask_token|vote)(\.|$)"
)

# The names of what they are made of, whatever their depth.
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_LAYER = re.compile(
  rf"conv1\.weight$|bn1\.{_NORM}$|"
  rf"layer[1-4]\.\d+\.(conv[123]\.weight|bn[123]\.{_NORM})$|"
  rf"layer[1-4]\.0\.downsample\.(0\.weight|1\.{_NORM})$|"
  rf"features\.\d+\.{_NORM}$"
)

_MOST_NAMED = 4

# What takes the image, in one network or another.
_FIRSTS = (
  *("conv1.weight", "features.0.weight", "patch_embed.proj.weight"),
  *("stem.0.weight", "conv_stem.weight"),
)

# Settings of a network of timm's that a file may be read with: they say what is
# done with the same weights.
_READ_WITH = {"pool", "patch", "resize"}

_PATCHES = "patch_embed.proj.weight"

# The parts that a run takes over. Not the head: it knows clusters that the run
# does not have, and officially too starts afresh after the first clustering.
_TO_START = ("backbone", "neck")


class Loaded(NamedTuple):
  """A network that has taken from a file what fits.

  Attributes:
    params: Parameters of the whole network; NumPy arrays where they are the
      file's.
    batch_stats: Running statistics, in the same form.
    parts: What is the file's: "backbone", and perhaps "neck" and "head".
    remarks: What of the others is there and does not fit, and why.
  """

  params: Tree
  batch_stats: Tree
  parts: tuple[str, ...]
  remarks: tuple[str, ...]


def check(config: Config, shapes: Any) -> None:
  """Raises what `initialize` would, before anything is computed.

  Args:
    config: An experiment.
    shapes: With `params` and `batch_stats`, as `jax.eval_shape` gives them.

  Raises:
    UserError: As `load_into`.
  """
  if config.model.weights:
    load_into(
      config.model.weights,
      shapes.params,
      shapes.batch_stats,
      _TO_START,
      config.model,
    )


def initialize(
  config: Config, params: Tree, batch_stats: Tree, shardings: Any
) -> tuple[Tree, Tree]:
  """Returns the network that a fresh run starts with.

  All processes have to call, and have to see the file.

  Args:
    config: An experiment; `model.weights` is for `hub.resolve`, or "".
    params: Random parameters of the whole network.
    batch_stats: Running statistics as they begin.
    shardings: With `params` and `batch_stats`, where every leaf is to lie.

  Returns:
    Parameters and batch statistics: those given where there is no file; else
    the file's backbone, and its neck if it has one that fits.

  Raises:
    UserError: As `load_into`.
  """
  name = config.model.weights
  if not name:
    return params, batch_stats
  loaded = load_into(name, params, batch_stats, _TO_START, config.model)
  processes.say(f"weights of {' and '.join(loaded.parts)} from {name}")
  for remark in loaded.remarks:
    processes.say(remark)
  return jax.device_put(
    (loaded.params, loaded.batch_stats),
    (shardings.params, shardings.batch_stats),
  )


def keep_digest(config: Config, workdir: pathlib.Path, resuming: bool) -> None:
  """Writes down which weights a run begins with, or checks that it has them.

  Args:
    config: An experiment.
    workdir: The work directory, which exists.
    resuming: Whether it holds a run that is to go on.

  Raises:
    UserError: A run would go on with other weights.
    OSError: The work directory cannot be written to.
  """
  name = config.model.weights
  if not name:
    (workdir / hub.RECORD_FILE).unlink(missing_ok=True)
  elif resuming:
    hub.check_same(workdir, name)
  else:
    hub.record(workdir, hub.resolve(name))


def load_into(
  name: str | os.PathLike,
  params: Tree,
  batch_stats: Tree,
  parts: Iterable[str] = ("backbone", "neck", "head"),
  model: Config | None = None,
) -> Loaded:
  """Puts the network of a file into ours.

  Args:
    name: As for `hub.resolve`.
    params: Parameters of our network, arrays or shapes.
    batch_stats: Running statistics of our network, arrays or shapes.
    parts: Which to take; neck and head only where the file has OpenSelfSup's
      names for them, and the shapes fit.
    model: The section of our config, for what names and shapes do not tell of
      networks of timm's, and what is asked for of the settings that a file
      may be read with: `pool`, `patch`, `resize`.

  Raises:
    UserError: The file is not there or cannot be read; holds no network of
      ours, or several that it is not clear which to take of; or one of other
      shapes, or with other layers. Says what it seems to hold and how to ask
      for that.
  """
  weights = hub.resolve(name)
  arrays = weights.arrays()
  ours = {
    name: names.torch_shape(leaf)
    for name, leaf in names.by_name(params, batch_stats).items()
  }
  found, others = recognise.backbone(name, arrays)
  wanted = recognise.part(ours, "backbone.")
  # Some backbones have a "head." of their own.
  others = {
    layer: array
    for layer, array in others.items()
    if layer not in wanted or found.get(layer) is not array
  }
  if pretrained.family(found):
    found = _of_timm(name, found, weights.config, model)
  _check_backbone(name, found, wanted)
  taken = {f"backbone.{layer}": found[layer] for layer in wanted}
  loaded, remarks = ["backbone"], []
  for part in ("neck", "head"):
    there = recognise.part(others, f"{part}.")
    if part not in parts or not there:
      continue
    wanted = recognise.part(ours, f"{part}.")
    # Unknown ones too: SimCLR's neck has the same names, and a scale more.
    wrong = _wrong(there, wanted) + _unknown(there, wanted)
    if wrong:
      remarks.append(f"without the {part} of {name}: {_few(wrong)}")
      continue
    loaded.append(part)
    taken |= {f"{part}.{layer}": there[layer] for layer in wanted}
  for layer, array in taken.items():
    if array.dtype.kind in "biuc":
      raise UserError(
        f"{name}: {layer} is {array.dtype}, not floating point: quantised, or "
        "no weights at all; save them as float32"
      )
    if not np.all(np.isfinite(array)):
      raise UserError(f"{name}: {layer} has values that are not finite")
  replaced = names.replace(
    params,
    batch_stats,
    {
      # Copies: some files are mapped, not read.
      layer: names.from_torch(np.array(array, np.float32))
      for layer, array in taken.items()
    },
  )
  return Loaded(*replaced, tuple(loaded), tuple(remarks))


def _of_timm(source, arrays, described, model):
  """Returns the arrays of a network of timm's as ours would have them.

  Args:
    source: What to call the file.
    arrays: Of its backbone, by timm's names.
    described: What its config.json says.
    model: The section of our config, or None.

  Raises:
    UserError: They are of another network than that of our config.
  """
  if model is None:
    return arrays
  shapes = {name: array.shape for name, array in arrays.items()}
  name, _ = recognise.architecture(source, shapes, described, {})
  if name != model.name:
    raise UserError(
      f"{source} does not fit the network: it seems to hold another: "
      f"--config.model.name={name}"
    )
  ours = dataclasses.asdict(recognise.settings_of(model))
  asked = {key: ours[key] for key in _READ_WITH & ours.keys()}
  _, theirs = recognise.architecture(source, shapes, described, asked)
  if told := [
    f"{key}={value}, not {ours[key]}"
    for key, value in theirs.items()
    if ours[key] != value
  ]:
    raise UserError(
      f"{source} does not fit model.settings: it has {', '.join(told)}; "
      "--config.model.name=auto leaves them to it"
    )
  if ours.get("pool") != "attention":
    arrays = {
      layer: array
      for layer, array in arrays.items()
      if not layer.startswith("attn_pool.")
    }
  kernel = arrays.get(_PATCHES)
  if kernel is not None and kernel.shape[2] != ours["patch"]:
    resized = positions.resize_patches(
      np.asarray(kernel, np.float32), ours["patch"]
    )
    arrays = {**arrays, _PATCHES: resized}
  return arrays


def _check_backbone(source, found, wanted):
  """Raises a UserError if a file's backbone is not like ours."""
  found = {
    name: array
    for name, array in found.items()
    if name in wanted or not _HEADS.match(name)
  }
  wrong, unknown = _wrong(found, wanted), _unknown(found, wanted)
  if not wrong and not unknown:
    return
  strange = {n: a for n, a in found.items() if not _LAYER.match(n)}
  # These first: they rule out every network here, whatever the shapes.
  texts = [*dict.fromkeys(_unknown(strange, wanted) + wrong + unknown)]
  problem = f"{source} does not fit the network: {_few(texts)}"
  theirs = recognise.describe(
    {name: array.shape for name, array in found.items()}
  )
  ours = recognise.describe(wanted)
  flags = [
    f"--config.{key}={value}"
    for key, value in theirs.items()
    if value != ours.get(key)
  ]
  if flags and not strange:
    raise UserError(f"{problem}. It seems to hold another: {' '.join(flags)}")
  first = next((name for name in _FIRSTS if name in wanted), "")
  there = found[first].shape if first in found else ()
  if len(there) == 4 and there[1] != wanted[first][1]:
    # In front of all other layers: the images' channels.
    raise UserError(
      f"{problem}. Its first layer takes images of {there[1]} channels, and "
      f"here they have {wanted[first][1]}"
      + (
        ": save it with that layer's weights repeated 3 times and divided by 3"
        if (there[1], wanted[first][1]) == (1, 3)
        else ""
      )
    )
  remedies = []
  if not wanted.keys() <= found.keys():
    remedies.append("save the backbone whole")
  if any(not name.startswith(("layer", "features")) for name in strange):
    remedies.append("save it without what is no part of the backbone")
  remedies.append(
    f"layers other than those of {', '.join(recognise.NETWORKS)} are not here"
  )
  advice = "; ".join(remedies)
  raise UserError(f"{problem}. {advice[0].upper()}{advice[1:]}")


def _wrong(found, wanted):
  """Returns a text for each array that is missing or of another shape."""
  texts = []
  for name, shape in wanted.items():
    if name not in found:
      texts.append(f"{name} {list(shape)} is missing")
    elif found[name].shape != shape:
      texts.append(f"{name} is {list(found[name].shape)}, not {list(shape)}")
  return texts


def _unknown(found, wanted):
  """Returns a text for each array that there is no place for."""
  return [
    f"{name} {list(array.shape)} has no place"
    for name, array in found.items()
    if name not in wanted and not name.endswith("num_batches_tracked")
  ]


def _few(texts):
  more = len(texts) - _MOST_NAMED
  return "; ".join(
    texts[:_MOST_NAMED] + ([f"and {more} more"] if more > 0 else [])
  )
