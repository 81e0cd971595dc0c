"""A backbone out of arrays: which network they are of.

How they came out of a file is not known here. Shapes are PyTorch's; names are
timm's, or those of the package efficientnet-lite-pytorch.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from odc_jax.errors import UserError
from odc_jax.models import convnext, efficientnet_lite, vit_settings

# An array's name -> the family whose networks have one of that name.
_MARKS = {
  "patch_embed.proj.weight": "vit",
  "stages.0.blocks.0.conv_dw.weight": "convnext",
  "conv_stem.weight": "efficientnet_lite",
  "_conv_stem.weight": "efficientnet_lite",
}


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
