"""Which network a file holds, and where in it.

A network is found by its layers' names, in whatever it is nested, and told from
others by its layers' shapes.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from odc_jax.config import Config
from odc_jax.errors import UserError
from odc_jax.interop import hub
from odc_jax.models import (
  convnext,
  efficientnet_lite,
  plain,
  pretrained,
  vit_settings,
)
from odc_jax.models.backbones import STACKS

Arrays: TypeAlias = dict[str, np.ndarray]

# Where a file has several networks, those whose names have one of these words
# are taken, the words in this order: averaged ones before those that they
# average, as their authors evaluate them, and MoCo's query encoder, as theirs
# do.
_PREFERRED = (
  "teacher",
  "state_dict_ema",
  "ema_state_dict",
  "model_ema",
  "backbone",
  "encoder_q",
  "online_net",
  "online_network",
)

# Where torchvision's children stand in `nn.Sequential(*children)`.
_CHILDREN = {
  "0": "conv1",
  "1": "bn1",
  "4": "layer1",
  "5": "layer2",
  "6": "layer3",
  "7": "layer4",
}

# Blocks in every stage, and convolutions in a block.
_DEPTHS = {
  "resnet18": ((2, 2, 2, 2), 2),
  "resnet34": ((3, 4, 6, 3), 2),
  "resnet50": ((3, 4, 6, 3), 3),
}

# Networks that a file may hold.
NETWORKS = (
  *(*_DEPTHS, *STACKS),
  *("vision transformers, ConvNeXt and EfficientNet-Lite under timm's names",),
)

# The first layer of the latter; the official code wraps what is under
# `features` alone.
_FIRST = re.compile(r"(?:^|.*\.)features\.(module\.)?0\.weight$")

# The settings of networks of timm's, but for EfficientNet-Lite's.
_SETTINGS = {"vit": vit_settings.Settings, "convnext": convnext.Settings}

_STEMS = {7: "imagenet", 3: "small"}  # by the size of the first kernel


def backbone(
  source: str | os.PathLike, weights: Arrays
) -> tuple[Arrays, Arrays]:
  """Finds the backbone among everything that a file holds.

  Args:
    source: What to call the file.
    weights: All its arrays by their names.

  Returns:
    Name in torchvision -> array; and "neck." and "head." with OpenSelfSup's or
    our own names -> array, among others.

  Raises:
    UserError: There is none, or there are several and none is to be preferred.
  """
  candidates: dict[str, Callable[[Arrays], Arrays]] = {}
  for mark, rename in (
    ("layer1.0.conv1.weight", dict),
    ("4.0.conv1.weight", _children),
  ):
    for name in weights:
      if name == mark or name.endswith(f".{mark}"):
        candidates[name.removesuffix(mark)] = rename
  for name in weights:
    for place in [0, *(match.end() for match in re.finditer(r"\.", name))]:
      if pretrained.family([name[place:]]):
        candidates[name[:place]] = efficientnet_lite.rename
  if not candidates:  # only then: a ResNet's children may be in `features` too
    for name in weights:
      if match := _FIRST.match(name):
        prefix = name.removesuffix(f"features.{match[1] or ''}0.weight")
        candidates[prefix] = _without_wrappers
  if not candidates:
    raise UserError(f"{source} {_other(weights)}")
  prefixes = list(candidates)
  for word in _PREFERRED:
    preferred = [p for p in prefixes if word in p.split(".")]
    prefixes = preferred or prefixes
  if len(prefixes) > 1:
    raise UserError(
      f"{source} holds several networks, {', '.join(prefixes)}: save the one "
      "to take alone"
    )
  prefix = prefixes[0]
  try:
    found = candidates[prefix](part(weights, prefix))
  except UserError as error:  # the layers have no other names
    raise UserError(f"{source}: {error}") from error
  others = part(weights, prefix.removesuffix("backbone."))
  return found, _fully_connected(found) | others


def _children(arrays):
  """Returns "4.0.conv1.weight" as "layer1.0.conv1.weight"."""

  def renamed(name):
    first, _, rest = name.partition(".")
    return f"{_CHILDREN.get(first, first)}.{rest}"

  return {renamed(name): array for name, array in arrays.items()}


def _without_wrappers(arrays):
  """Returns "features.module.0.weight" as "features.0.weight"."""
  return {
    re.sub(r"^features\.module\.", "features.", name): array
    for name, array in arrays.items()
  }


def _fully_connected(found):
  """Returns DeepCluster's and torchvision's linear layers by our names.

  Args:
    found: Names without what they are nested in -> array. In `classifier` the
      layers stand among ReLUs and dropout: 1 and 4 of AlexNet, 0 and 3 of VGG.
  """
  layers = sorted(
    int(match[1])
    for name in found
    if (match := re.match(r"classifier\.(\d+)\.weight$", name))
  )
  places = {"top_layer": "head.fc_cls"}
  for layer, ours in zip(layers, ("neck.fc6", "neck.fc7"), strict=False):
    places[f"classifier.{layer}"] = ours
  return {
    f"{ours}.{kind}": found[f"{theirs}.{kind}"]
    for theirs, ours in places.items()
    for kind in ("weight", "bias")
    if f"{theirs}.{kind}" in found
  }


def _other(weights):
  """Returns what a file without a network of ours holds."""
  if not weights:
    return "holds no arrays"
  return (
    f"holds no ResNet and none of the others here ({', '.join(NETWORKS[3:])}); "
    "its names begin with "
    f"{', '.join(list(weights)[:3])}"
  )


def part(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  """Returns the arrays whose names begin so, without the beginning."""
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


def network(
  weights: hub.Weights, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns config key -> value of the network that weights are of.

  Args:
    weights: Found by `hub.resolve`.
    settings: Of `model.settings`, those that are asked for.

  Returns:
    "model.name", "model.stem", "model.width", "model.settings" (of networks of
    timm's; else {}) and "augment.sobel".

  Raises:
    UserError: They cannot be read, or are of no network here.
  """
  arrays, _ = backbone(weights.name, weights.arrays())
  shapes = {name: array.shape for name, array in arrays.items()}
  if pretrained.family(shapes):
    name, found = architecture(
      weights.name, shapes, weights.config, settings or {}
    )
    return {
      "model.name": name,
      "model.stem": "imagenet",
      "model.width": weights.config.get("odc_jax", {}).get("width", 64),
      "model.settings": found,
      "augment.sobel": _in_channels(shapes) == 2,
    }
  described = describe(shapes)
  if not described:
    raise UserError(
      f"{weights.name} holds a network of other layers than those of "
      f"{', '.join(NETWORKS)}"
    )
  return described | {"model.settings": {}}


def architecture(
  source: str | os.PathLike,
  shapes: Mapping[str, tuple[int, ...]],
  config: Mapping[str, Any],
  settings: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
  """Returns `model.name` and `model.settings` of a network of timm's.

  Args:
    source: What to call the file.
    shapes: timm's name -> shape in PyTorch.
    config: timm's config.json, or {}; an export's says it all.
    settings: Those that are asked for.

  Raises:
    UserError: There is no such network here, or a part of one.
  """
  try:
    name, found = pretrained.describe(shapes, config)
  except UserError as error:
    raise UserError(f"{source}: {error}") from error
  except (LookupError, ValueError, TypeError, ArithmeticError) as error:
    raise UserError(
      f"{source} holds no whole network: {error} is missing or misshapen"
    ) from error
  pool = found.get("pool")
  found |= _tupled(config.get("odc_jax", {}).get("settings", {}))
  found |= _tupled(settings)
  if found.get("pool") not in (pool, "attention"):
    found["projection"] = 0  # which is made for the file's own pooling
  return name, found


def settings_of(model: Config) -> Any:
  """Returns the `Settings` of a network of timm's that a config asks for.

  Args:
    model: The section; its `name` is one of these networks'.
  """
  kind = _SETTINGS.get(model.name, efficientnet_lite.Settings)
  return kind(**_tupled(dict(model.get("settings", {}))))


def _tupled(settings):
  """Returns settings with tuples, for which JSON and ConfigDict have lists."""
  return {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in settings.items()
  }


def _in_channels(shapes):
  firsts = ("patch_embed.proj.weight", "stem.0.weight", "conv_stem.weight")
  return next(shapes[name][1] for name in firsts if name in shapes)


def describe(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns config key -> value of a network, or {} if it is none of ours.

  Args:
    shapes: Name in torchvision -> shape in PyTorch. Of networks of timm's only
      the family and the channels are told from these.
  """
  if kind := pretrained.family(shapes):
    return {"model.name": kind, "augment.sobel": _in_channels(shapes) == 2}
  if "features.0.weight" in shapes:
    return _describe_stack(shapes)
  blocks = {
    name.split(".")[0] + name.split(".")[1]: name
    for name in shapes
    if re.match(r"layer\d\.\d+\.", name)
  }
  depths = tuple(
    sum(block.startswith(f"layer{stage}") for block in blocks)
    for stage in range(1, 5)
  )
  convs = 3 if "layer1.0.conv3.weight" in shapes else 2
  name = next((n for n, d in _DEPTHS.items() if d == (depths, convs)), None)
  first = shapes.get("conv1.weight", ())
  inner = shapes.get("layer1.0.conv2.weight", ())
  if name is None or len(first) != 4 or first[2] not in _STEMS:
    return {}
  if inner[:2] != (first[0], first[0]):  # wider blocks, or groups
    return {}
  return {
    "model.name": name,
    "model.stem": _STEMS[first[2]],
    "model.width": first[0],
    "augment.sobel": first[1] == 2,
  }


def _describe_stack(shapes):
  """Does so for convolutions without shortcuts."""
  found = [
    (int(name.split(".")[1]), shape[0], shape[2])
    for name, shape in shapes.items()
    if len(shape) == 4
  ]
  for name, stages in STACKS.items():
    convs, place = [], 0
    for layer in (layer for stage in stages for layer in stage):
      if isinstance(layer, plain.Conv):
        convs.append((place, layer))
      # A convolution is followed by BatchNorm and ReLU.
      place += 3 if isinstance(layer, plain.Conv) else 1
    # The last: it has most channels, and no rounding of the division.
    (*_, (_, widest)), (*_, (_, channels, _)) = convs, sorted(found)
    width = channels * plain.PUBLISHED_WIDTH // widest.channels
    expected = [
      (place, plain.scaled(conv.channels, width), conv.size)
      for place, conv in convs
    ]
    if sorted(found) == expected:
      return {
        "model.name": name,
        "model.stem": "imagenet",
        "model.width": width,
        "augment.sobel": shapes["features.0.weight"][1] == 2,
      }
  return {}
