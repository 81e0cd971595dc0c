"""A network's name and arguments in timm: of those that come from there.

`timm.create_model(architecture, num_classes=..., **arguments)` makes it, with
the names that our weights have. All sizes are given, so that any member of a
family will do for its name, if it has what cannot be given: the norms' epsilon
and the kind of MLP.

Source: timm 1.0.31, models/vision_transformer.py, eva.py, convnext.py and
efficientnet.py.
"""

import math
from typing import Any, NamedTuple

from odc_jax.config import Config
from odc_jax.errors import UserError
from odc_jax.interop import recognise
from odc_jax.models import vit_settings

_PUBLISHED_WIDTH = 64

_POOLS = {
  "token": "token",
  "mean": "avg",
  "token_mean": "token",  # model.py adds the other half
  "attention": "map",
}


class Form(NamedTuple):
  """The arguments with which timm creates a network.

  Attributes:
    architecture: The name that `timm.create_model` takes.
    arguments: Further keyword arguments of `timm.create_model`.
    num_classes: Length of the projection, a classifier to timm; 0 without one.
    num_features: Length of the features.
  """

  architecture: str
  arguments: dict[str, Any]
  num_classes: int
  num_features: int


def of(model: Config, image_size: int) -> Form:
  """Returns how timm makes a network.

  Args:
    model: The section of a config; its `name` is that of a vision transformer,
      a ConvNeXt or an EfficientNet-Lite.
    image_size: Of the images, in pixels.

  Raises:
    UserError: timm cannot make it.
  """
  settings: Any = recognise.settings_of(model)
  if model.name == "convnext":
    settings = settings.scaled(model.width)
    arguments = {"depths": [*settings.depths], "dims": [*settings.dims]}
    return Form("convnext_tiny", arguments, 0, settings.dims[-1])
  if model.name == "vit":
    return _vit(settings.scaled(model.width), image_size)
  if model.width != _PUBLISHED_WIDTH:
    raise UserError(
      f"timm has no {model.name} of model.width={model.width}, so that there "
      f"is no export of it; only of {_PUBLISHED_WIDTH}"
    )
  kind = "tf_" if settings.padding == "SAME" else ""
  arguments = {"bn_eps": settings.eps}
  return Form(f"{kind}{model.name}", arguments, 0, 1280)  # of all five


def _vit(s: vit_settings.Settings, image_size: int) -> Form:
  """Returns how timm makes a vision transformer."""
  rope = s.positions == "rope"
  arguments: dict[str, Any] = {
    "patch_size": s.patch,
    "embed_dim": s.dim,
    "depth": s.depth,
    "num_heads": s.heads,
    "mlp_ratio": _ratio(s.hidden, s.dim),
    "global_pool": _POOLS[s.pool],
    "class_token": s.class_token,
    "init_values": 1e-5 if s.layer_scale else None,
    # Images may have any size that the patches divide.
    "dynamic_img_size": True,
  }
  if rope:
    arguments |= {"num_reg_tokens": s.registers, "img_size": image_size}
    plus = "plus_" if s.mlp == "swiglu" else ""
    bias = "_qkvb" if s.qkv_bias == "qv" else ""
    architecture = f"vit_small_{plus}patch16_dinov3{bias}"
    return Form(architecture, arguments, s.projection, s.projection or s.width)
  grid = math.ceil(image_size / s.patch)
  if s.resize != "antialiased" and s.grid != (grid, grid):
    raise UserError(
      f"model.settings.resize={s.resize} places {s.grid[0]} x {s.grid[1]} "
      f"positions on {grid} x {grid} patches in a way that timm does not "
      "have, so that there is no export; train with resize=antialiased"
    )
  arguments |= {
    "img_size": [side * s.patch for side in s.grid],
    "reg_tokens": s.registers,
    "no_embed_class": s.positions == "patches",
    "qkv_bias": s.qkv_bias == "all",
    "fc_norm": False,  # which "avg" would move behind the pooling
  }
  if s.mlp == "packed_swiglu":
    architecture = "vit_giant_patch14_dinov2"
    arguments["mlp_ratio"] = _ratio(2 * s.hidden, s.dim)
  elif s.pre_norm:
    quick = "quickgelu_" if s.mlp == "quick_gelu" else ""
    architecture = f"vit_base_patch16_clip_{quick}224"
  elif s.pool == "attention":
    architecture = "vit_base_patch16_siglip_224"
  else:
    architecture = "vit_small_patch16_224"
  return Form(architecture, arguments, s.projection, s.projection or s.width)


def _ratio(hidden, dim):
  """Returns hidden / dim, such that int(dim * ratio) gives `hidden` back."""
  ratio = hidden / dim
  while int(dim * ratio) < hidden:
    ratio = math.nextafter(ratio, math.inf)
  return ratio
