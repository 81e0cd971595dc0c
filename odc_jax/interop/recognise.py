"""Which network a file holds, and where in it.

A network is found by its layers' names, in whatever it is nested, and told from
others by its layers' shapes.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from odc_jax.errors import UserError
from odc_jax.models import plain
from odc_jax.models.network import STACKS

Arrays: TypeAlias = dict[str, np.ndarray]

# Of several networks in a file, those whose names have one of these words are
# taken, the words in this order: averaged ones before those that they average,
# as their authors evaluate them, and MoCo's query encoder, as theirs do.
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
NETWORKS = (*_DEPTHS, *STACKS)

# The first layer of the latter; the official code wraps what is under
# `features` alone.
_FIRST = re.compile(r"(?:^|.*\.)features\.(module\.)?0\.weight$")

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
  candidates = {}
  for mark, rename in (
    ("layer1.0.conv1.weight", lambda name: name),
    ("4.0.conv1.weight", _child),
  ):
    for name in weights:
      if name == mark or name.endswith(f".{mark}"):
        candidates[name.removesuffix(mark)] = rename
  if not candidates:  # only then: a ResNet's children may be in `features` too
    for name in weights:
      if match := _FIRST.match(name):
        prefix = name.removesuffix(f"features.{match[1] or ''}0.weight")
        candidates[prefix] = _without_wrapper
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
  found = {
    candidates[prefix](name): array
    for name, array in part(weights, prefix).items()
  }
  others = part(weights, prefix.removesuffix("backbone."))
  return found, _fully_connected(found) | others


def _child(name):
  """Returns "4.0.conv1.weight" as "layer1.0.conv1.weight"."""
  first, _, rest = name.partition(".")
  return f"{_CHILDREN.get(first, first)}.{rest}"


def _without_wrapper(name):
  """Returns "features.module.0.weight" as "features.0.weight"."""
  return re.sub(r"^features\.module\.", "features.", name)


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
    "holds no ResNet, AlexNet or VGG; its names begin with "
    f"{', '.join(list(weights)[:3])}"
  )


def part(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  """Returns the arrays whose names begin so, without the beginning."""
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


def describe(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns config key -> value of a network, or {} if it is none of ours.

  Args:
    shapes: Name in torchvision -> shape in PyTorch.
  """
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
