"""Networks out of PyTorch's files: what they hold, and into ours with it.

Files are data. No code in them is executed, and PyTorch itself is needed for
its own format only: `.safetensors` are read without it.
"""

import importlib
import os
import pathlib
import pickle
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from odc_jax.config import Config
from odc_jax.distributed import processes
from odc_jax.errors import UserError
from odc_jax.interop import names
from odc_jax.models import plain
from odc_jax.models.functional import Tree
from odc_jax.models.network import STACKS

# What an export holds, and the first of them a hub's.
BACKBONE_FILE = "model.safetensors"
NECK_AND_HEAD_FILE = "neck_and_head.safetensors"

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

# What stands beside the stages in a file, and is no part of the backbone.
_HEADS = re.compile(
  r"(fc|fc_cls|heads?|neck|classifier|linear|mlp|project\w*|predict\w*|"
  r"prototypes|top_layer|last_layer|queue\w*|memory\w*|centroids|sobel|"
  r"pre_logits)(\.|$)"
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

# Their first layer; the official code wraps what is under `features` alone.
_FIRST = re.compile(r"(?:^|.*\.)features\.(module\.)?0\.weight$")

# The names of what they are made of, whatever their depth.
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_LAYER = re.compile(
  rf"conv1\.weight$|bn1\.{_NORM}$|"
  rf"layer[1-4]\.\d+\.(conv[123]\.weight|bn[123]\.{_NORM})$|"
  rf"layer[1-4]\.0\.downsample\.(0\.weight|1\.{_NORM})$|"
  rf"features\.\d+\.{_NORM}$"
)

_STEMS = {7: "imagenet", 3: "small"}  # by the size of the first kernel

_NARROW = ("F4", "F6_", "F8_")  # safetensors' names of floats below 16 bits

_MOST_NAMED = 4

# What a run takes over. Not the head: it knows clusters that the run does not
# have, and officially too starts afresh after the first clustering.
_TO_START = ("backbone", "neck")


class Loaded(NamedTuple):
  """A network that has taken from a file what fits.

  Attributes:
    params: Of the whole network; NumPy arrays where they are the file's.
    batch_stats: Likewise.
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
      config.model.weights, shapes.params, shapes.batch_stats, _TO_START
    )


def initialize(
  config: Config, params: Tree, batch_stats: Tree, shardings: Any
) -> tuple[Tree, Tree]:
  """Returns the network that a fresh run starts with.

  All processes have to call, and have to see the file.

  Args:
    config: An experiment; `model.weights` names a file or an export's folder,
      or is "".
    params: Random ones.
    batch_stats: Likewise.
    shardings: With `params` and `batch_stats`, where every leaf is to lie.

  Returns:
    Parameters and batch statistics: those given where there is no file; else
    the file's backbone, and its neck if it has one that fits.

  Raises:
    UserError: As `load_into`.
  """
  path = config.model.weights
  if not path:
    return params, batch_stats
  loaded = load_into(path, params, batch_stats, _TO_START)
  processes.say(f"weights of {' and '.join(loaded.parts)} from {path}")
  for remark in loaded.remarks:
    processes.say(remark)
  return jax.device_put(
    (loaded.params, loaded.batch_stats),
    (shardings.params, shardings.batch_stats),
  )


def load_into(
  path: str | os.PathLike,
  params: Tree,
  batch_stats: Tree,
  parts: Iterable[str] = ("backbone", "neck", "head"),
) -> Loaded:
  """Puts the network of a file into ours.

  Args:
    path: As for `read`.
    params: Arrays or shapes of our network.
    batch_stats: Likewise.
    parts: Which to take; neck and head only where the file has OpenSelfSup's
      names for them, and the shapes fit.

  Raises:
    UserError: The file cannot be read; holds no network of ours, or several
      that it is not clear which to take of; or one of other shapes, or with
      other layers. Says what it seems to hold and how to ask for that.
  """
  weights = read(path)
  ours = {
    name: names.torch_shape(leaf)
    for name, leaf in names.by_name(params, batch_stats).items()
  }
  found, others = _backbone(path, weights)
  wanted = _part(ours, "backbone.")
  _check_backbone(path, found, wanted)
  taken = {f"backbone.{name}": found[name] for name in wanted}
  loaded, remarks = ["backbone"], []
  for part in ("neck", "head"):
    there = _part(others, f"{part}.")
    if part not in parts or not there:
      continue
    wanted = _part(ours, f"{part}.")
    # Unknown ones too: SimCLR's neck has the same names, and a scale more.
    wrong = _wrong(there, wanted) + _unknown(there, wanted)
    if wrong:
      remarks.append(f"without the {part} of {path}: {_few(wrong)}")
      continue
    loaded.append(part)
    taken |= {f"{part}.{name}": there[name] for name in wanted}
  for name, array in taken.items():
    if not np.all(np.isfinite(array)):
      raise UserError(f"{path}: {name} has values that are not finite")
  replaced = names.replace(
    params,
    batch_stats,
    {
      # Copies: a safetensors file is mapped, not read.
      name: names.from_torch(np.array(array, np.float32))
      for name, array in taken.items()
    },
  )
  return Loaded(*replaced, tuple(loaded), tuple(remarks))


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns all arrays in a file.

  Args:
    path: A `.safetensors` file, one that `torch.save` wrote, or the folder of
      an export.

  Returns:
    Arrays in PyTorch's layout by their names; names of what they are nested in
    stand before theirs: "state_dict.module.conv1.weight".

  Raises:
    UserError: It cannot be read, or not without executing what is in it; or
      PyTorch is needed and missing.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    files = [path / BACKBONE_FILE, path / NECK_AND_HEAD_FILE]
    arrays = read(files[0])
    return arrays | (read(files[1]) if files[1].exists() else {})
  if not path.exists():
    raise UserError(
      f"there is no file {path}; give weights as --config.model.weights=FILE"
    )
  if path.suffix == ".safetensors":
    return _read_safetensors(path)
  return _read_torch(path)


def _read_safetensors(path):
  try:
    with safetensors.safe_open(path, "np") as file:
      names_there = file.keys()  # `file` itself cannot be iterated over
      for name in names_there:
        dtype = file.get_slice(name).get_dtype()
        if dtype.startswith(_NARROW):  # which `load_file` would stumble over
          raise UserError(
            f"{path}: {name} is {dtype}, which NumPy does not have; save "
            "it as float32"
          )
    return safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{path} is no readable safetensors: {error}") from error


def _read_torch(path):
  # Late, and only here: nothing else needs it. By name, because a type checker
  # that does not find it takes this very file for it.
  try:
    torch: Any = importlib.import_module("torch")
  except ImportError as error:
    raise UserError(
      f"PyTorch is needed to read {path}: pip install torch; or save it as "
      ".safetensors where PyTorch is"
    ) from error
  tensors: dict[str, Any] = {}

  def walk(name, node):
    if isinstance(node, Mapping):
      for key, child in node.items():
        walk(f"{name}.{key}" if name else str(key), child)
    elif isinstance(node, torch.Tensor):
      tensors[name] = node.detach()

  try:
    # Unpickling is executing; with this, only what makes tensors is allowed.
    walk("", torch.load(path, map_location="cpu", weights_only=True))
  except pickle.UnpicklingError as error:
    needs = re.search(r"GLOBAL (\S+)", str(error))
    needs = f" ({needs.group(1)})" if needs else ""
    raise UserError(
      f"{path} holds more than arrays{needs}, or is no file of PyTorch's; "
      "nothing in it was executed. If you trust where it comes from, save the "
      "weights alone: content = torch.load(PATH, weights_only=False), and "
      "torch.save(content.state_dict(), NEW) where that is a network, "
      "torch.save(content['state_dict'], NEW) where it is a dictionary"
    ) from error
  except Exception as error:  # of other formats, or cut short
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(f"{path} cannot be read by PyTorch: {reason}") from error
  arrays = {}
  for name, tensor in tensors.items():
    if tensor.dtype == torch.bfloat16:  # which NumPy does not have
      tensor = tensor.float()
    try:
      arrays[name] = tensor.numpy()
    except (TypeError, RuntimeError) as error:
      raise UserError(
        f"{path}: {name} ({tensor.layout}, {tensor.dtype}) is nothing that "
        "NumPy has; save it dense, as float32"
      ) from error
  return arrays


def _backbone(path, weights):
  """Returns the arrays of the file's backbone, and those beside it.

  Returns:
    Name in torchvision -> array; and "neck." and "head." with OpenSelfSup's or
    our own names -> array, among others.
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
    raise UserError(f"{path} {_other(weights)}")
  prefixes = list(candidates)
  for word in _PREFERRED:
    preferred = [p for p in prefixes if word in p.split(".")]
    prefixes = preferred or prefixes
  if len(prefixes) > 1:
    raise UserError(
      f"{path} holds several networks, {', '.join(prefixes)}: save the one to "
      "take alone"
    )
  prefix = prefixes[0]
  found = {
    candidates[prefix](name): array
    for name, array in _part(weights, prefix).items()
  }
  others = _part(weights, prefix.removesuffix("backbone."))
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


def _part(arrays, prefix):
  """Returns the arrays whose names begin so, without the beginning."""
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


def _check_backbone(path, found, wanted):
  """Raises a UserError if the file's backbone is not like ours."""
  found = {name: a for name, a in found.items() if not _HEADS.match(name)}
  wrong, unknown = _wrong(found, wanted), _unknown(found, wanted)
  if not wrong and not unknown:
    return
  strange = {n: a for n, a in found.items() if not _LAYER.match(n)}
  # These first: they rule out every network here, whatever the shapes.
  texts = [*dict.fromkeys(_unknown(strange, wanted) + wrong + unknown)]
  problem = f"{path} does not fit the network: {_few(texts)}"
  theirs = _describe({name: array.shape for name, array in found.items()})
  ours = _describe(wanted)
  flags = [
    f"--config.{key}={value}"
    for key, value in theirs.items()
    if value != ours[key]
  ]
  if flags and not strange:
    raise UserError(f"{problem}. It seems to hold another: {' '.join(flags)}")
  remedies = []
  if not wanted.keys() <= found.keys():
    remedies.append("save the backbone whole")
  if any(not name.startswith(("layer", "features")) for name in strange):
    remedies.append("save it without what is no part of the backbone")
  remedies.append(
    f"layers other than those of {', '.join([*_DEPTHS, *STACKS])} are not here"
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


def _describe(shapes):
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
