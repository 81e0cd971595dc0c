"""A backbone out of arrays: which network they are of, and its parameters.

How they came out of a file is not known here. Shapes are PyTorch's; names are
timm's, or those of the package efficientnet-lite-pytorch.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from odc_jax.errors import UserError
from odc_jax.models import (
  backbones,
  convnext,
  efficientnet_lite,
  positions,
  vit_settings,
)
from odc_jax.models.functional import Tree, functional

# An array's name -> the family whose networks have one of that name.
_MARKS = {
  "patch_embed.proj.weight": "vit",
  "stages.0.blocks.0.conv_dw.weight": "convnext",
  "conv_stem.weight": "efficientnet_lite",
  "_conv_stem.weight": "efficientnet_lite",
}

# Names in a file beside a backbone: classifiers, and parts that only training
# needs.
_OTHERS = ("classifier.", "head.", "head_dist.", "mask_token")

_MOST_NAMED = 4


class Pretrained(NamedTuple):
  """A backbone and its weights.

  Attributes:
    name: for `model.name`.
    settings: for `model.settings`: numbers, strings and tuples of them.
    params: as the backbone's `init` returns them; NumPy arrays, float32.
    batch_stats: as the backbone's `init` returns them; NumPy, float32.
  """

  name: str
  settings: dict[str, Any]
  params: Tree
  batch_stats: Tree


def family(names: Iterable[str]) -> str:
  """Returns "vit", "convnext", "efficientnet_lite", or "" for another."""
  names = set(names)
  return next((_MARKS[mark] for mark in _MARKS if mark in names), "")


def describe(
  shapes: Mapping[str, tuple[int, ...]],
  config: Mapping[str, Any] | None = None,
) -> tuple[str, dict[str, Any]]:
  """Returns what `model.name` and `model.settings` have to be for a file.

  Args:
    shapes: name -> shape in PyTorch, of all arrays.
    config: timm's config.json, if there is one, for what names and shapes do
      not tell; as the families' `describe` say.

  Raises:
    UserError: The arrays are of no family here, or the family has no such
      network.
  """
  kind = family(shapes)
  if kind == "vit":
    name, settings = "vit", vit_settings.describe(shapes, config)
  elif kind == "convnext":
    name, settings = "convnext", convnext.describe(shapes)
  elif kind == "efficientnet_lite":
    name, settings = efficientnet_lite.describe(
      efficientnet_lite.rename(shapes), config
    )
  else:
    raise UserError(
      "these are the arrays of no vision transformer, ConvNeXt or "
      f"EfficientNet-Lite; their names begin with {', '.join(list(shapes)[:3])}"
    )
  return name, dataclasses.asdict(settings)


def read(
  arrays: Mapping[str, np.ndarray],
  config: Mapping[str, Any] | None = None,
  **changes: Any,
) -> Pretrained:
  """Returns the backbone that arrays are of, with these for its weights.

  Args:
    arrays: name -> array in PyTorch's layout. Classifiers among them are left
      out.
    config: as for `describe`.
    changes: of the settings that `describe` finds: another `pool` or `resize`,
      another `patch` (whose kernels are then interpolated).

  Raises:
    UserError: As `describe`; or arrays are missing, have other shapes than the
      network, or have no place in it.
  """
  name, settings = describe({n: a.shape for n, a in arrays.items()}, config)
  settings |= changes
  if settings.get("pool") != "attention" and "pool" in changes:
    settings["projection"] = 0  # which is made for the file's own pooling
    arrays = {n: a for n, a in arrays.items() if not n.startswith("attn_pool.")}
  if name.startswith("efficientnet"):
    arrays = efficientnet_lite.rename(arrays)
  if "patch" in changes:
    kernel = positions.resize_patches(
      arrays["patch_embed.proj.weight"], settings["patch"]
    )
    arrays = {**arrays, "patch_embed.proj.weight": kernel}
  section = ml_collections.ConfigDict(
    {
      "name": name,
      "stem": "imagenet",
      "width": 64,
      "dtype": "float32",
      "settings": settings,
    }
  )
  backbone = functional(lambda rngs: backbones.build(section, rngs))
  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  return Pretrained(name, settings, *_fill(shapes, arrays))


def _fill(shapes, arrays):
  """Returns (params, batch_stats) with the arrays for leaves."""
  left, wrong = dict(arrays), []

  def take(path, leaf):
    name = _torch_name(path, leaf)
    if name not in left:
      wrong.append(f"{name} is missing")
      return leaf
    array = _to_ours(np.asarray(left.pop(name), np.float32))
    if array.shape != leaf.shape:
      wrong.append(f"{name} would be {list(leaf.shape)} here, and is not")
    return array

  filled = jax.tree_util.tree_map_with_path(take, shapes)
  wrong += [
    f"{name} has no place"
    for name in left
    if not name.startswith(_OTHERS) and not name.endswith("num_batches_tracked")
  ]
  if wrong:
    more = len(wrong) - _MOST_NAMED
    listed = "; ".join(wrong[:_MOST_NAMED])
    raise UserError(
      f"a network of another kind: {listed}"
      + (f"; and {more} more" if more > 0 else "")
    )
  return filled


def _torch_name(path, leaf):
  """Returns the name in PyTorch of a leaf of (params, batch_stats)."""
  *parts, last = (str(entry.key) for entry in path[1:])
  renamed = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
  }
  return ".".join([*parts, renamed.get(last, last)])


def _to_ours(array):
  """[out, in, h, w] -> [h, w, in, out]; [out, in] -> [in, out]."""
  axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
  return array if axes is None else np.ascontiguousarray(array.transpose(axes))
