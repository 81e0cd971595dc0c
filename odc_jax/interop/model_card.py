"""What an export says of itself: timm's config.json, and a model card."""

import inspect
import json
import math
import pathlib
import textwrap
from typing import Any

from odc_jax.config import Config
from odc_jax.data import loader
from odc_jax.interop.read import BACKBONE_FILE, NECK_AND_HEAD_FILE
from odc_jax.logs.scalars import declared
from odc_jax.methods import METHODS
from odc_jax.models import plain
from odc_jax.models.network import STACKS

# Of a stem with its 64 channels timm's and torchvision's blocks are multiples.
_WIDTH = 64

_EXPANSIONS = {"resnet18": 1, "resnet34": 1, "resnet50": 4}

# What the card's Python makes embeddings with, of every neck in
# `models.network.NECKS`: lines of a function of x.
_EMBED = {
  "nonlinear": (
    'x = normalize(linear(x, "neck.fc0"), "neck.bn0").relu()',
    'x = linear(x, "neck.fc1").relu()',
  ),
  "mlp2": (
    'x = normalize(linear(x, "neck.layers.0"), "neck.norms.0").relu()',
    'x = linear(x, "neck.layers.1")',
  ),
  "mlp3": (
    'x = normalize(linear(x, "neck.layers.0"), "neck.norms.0").relu()',
    'x = normalize(linear(x, "neck.layers.1"), "neck.norms.1").relu()',
    'x = normalize(linear(x, "neck.layers.2"), "neck.norms.2")',
  ),
  "fc": (
    'x = linear(x.flatten(1), "neck.fc6").relu()',
    'x = linear(x, "neck.fc7")',
  ),
  "none": (),
}

# Likewise scores, of heads in `models.network.HEADS` that have some.
_SCORES = {
  "linear": 'linear(x, "head.fc_cls")',
  "prototypes": 'torch.matmul(x, parts["head.weights.0"].T)',
  "centers": 'torch.matmul(x, unit(parts["head.weights.0"]).T)',
}

# What these lines call.
_CALLED = {
  "linear(": """def linear(x, name):
  return torch.nn.functional.linear(
    x, parts[f"{name}.weight"], parts[f"{name}.bias"]
  )""",
  "normalize(": """def normalize(x, name):
  return torch.nn.functional.batch_norm(
    x,
    parts[f"{name}.running_mean"],
    parts[f"{name}.running_var"],
    parts.get(f"{name}.weight"),
    parts.get(f"{name}.bias"),
  )""",
  "unit(": """def unit(x):
  return torch.nn.functional.normalize(x)""",
}


def timm_config(config: Config) -> dict[str, Any] | None:
  """Returns what timm's hub form keeps in `config.json`.

  Args:
    config: Of a run, as its work directory has it.

  Returns:
    None for AlexNet, which timm does not have, and VGG, which it has only with
    its fully connected layers.
  """
  model, size = config.model, config.data.image_size
  if model.name in STACKS:
    return None
  in_channels = _in_channels(config)
  return {
    "architecture": model.name,
    "num_classes": 0,
    "num_features": _num_features(model),
    "global_pool": "avg",
    **(
      {"model_args": {"channels": _channels(model)}}
      if model.width != _WIDTH
      else {}
    ),
    "pretrained_cfg": {
      "tag": "odc_jax",
      "custom_load": False,
      "input_size": [in_channels, size, size],
      "fixed_input_size": False,
      "interpolation": "bilinear",
      "crop_pct": _crop_fraction(size, config.data.eval_resize),
      "crop_mode": "center",
      "mean": list(config.augment.mean),
      "std": list(config.augment.std),
      "num_classes": 0,
      # Where it takes other than three channels, timm up to 1.0.30 would leave
      # it random, with no more than a line in the log.
      "first_conv": "conv1" if in_channels == 3 else None,
      "classifier": "fc",
    },
  }


def card(
  config: Config, step: int, numbers: dict[str, Any], finished: bool
) -> str:
  """Returns the model card, Markdown with the header of hubs.

  Args:
    config: Of a run, as its work directory has it.
    step: Of the checkpoint.
    numbers: The last value of every evaluation.
    finished: Whether the run has ended.
  """
  model = config.model
  steps = loader.steps_per_epoch(config.num_examples, config.batch_size)
  start = _name(model.get("weights", ""))
  facts = {
    "method": f"{config.method}, by odc_jax",
    "network": f"{model.name}, {model.stem} stem, width {model.width}, "
    f"computed in {model.dtype}",
    "started from": f"`{start}`" if start else "random weights",
    "images": f"{config.num_examples:,} of `{_source(config)}`; their labels, "
    "if any, were not used",
    "clusters": f"{config.num_clusters:,}",
    "epochs": f"{step / steps:g} ({step:,} steps of {config.batch_size} images)"
    + ("" if finished else "; the run has not ended"),
    "features": f"{_num_features(model):,}, averaged over space",
    "input": f"{config.data.image_size} pixels, {_in_channels(config)} "
    "channels",
  }
  rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
  if step:
    learned = (
      "learned without labels, by predicting clusters that it made itself"
    )
  elif start:
    learned = f"has the weights of `{start}`, not trained further"
  else:
    learned = "has random weights and was not trained"
  summary = textwrap.fill(
    f"The backbone of a network that {learned}. It turns an image into "
    f"{_num_features(model):,} features, for nearest neighbours, a linear "
    "classifier, or fine-tuning.",
    80,
  )
  return f"""---
library_name: {"pytorch" if model.name in STACKS else "timm"}
pipeline_tag: image-feature-extraction
tags:
- image-feature-extraction
- {"pytorch" if model.name in STACKS else "timm"}
- self-supervised-learning
- clustering
- {config.method}
# license: yours to choose; mind that of the images
---

# {model.name} by {config.method} on {_source(config)}

{summary}

| | |
|---|---|
{rows}

## Numbers

{_table(numbers)}

## Use
{_in_pytorch(config)}
{_in_jax(config)}
## Input

{_input(config)}

## Files

{_files(config)}

{_with_neck(config)}
## Config

```json
{json.dumps(_config(config), indent=2)}
```

Paper: {_paper(config.method)}
"""


def _paper(method):
  """Returns what a method's docstring begins with: its paper and its code."""
  doc = inspect.getdoc(METHODS[method]) or ""
  return "\n".join(doc.split("\n\n")[:2])


def _table(numbers):
  """Returns the evaluations as a Markdown table."""
  shown = {k: v for k, v in numbers.items() if k.startswith("eval/")}
  if not shown:
    return "None: the images have no labels, or nothing was evaluated yet."
  rows = [
    f"| `{name}` | {value:.4g} | {declared(name) or ''} |"
    for name, value in shown.items()
  ]
  return "\n".join(["| name | value | what it is |", "|---|---|---|", *rows])


def _files(config):
  """Returns what the files are, a Markdown table."""
  name = config.model.name
  whose = "DeepCluster" if name == "alexnet" else "torchvision"
  files = {
    BACKBONE_FILE: f"the backbone alone, float32, with {whose}'s names",
    NECK_AND_HEAD_FILE: "what made embeddings and cluster scores of the "
    "features",
  }
  if _neck(config) == "nonlinear":
    files[NECK_AND_HEAD_FILE] += ", with OpenSelfSup's names"
  if name not in STACKS:
    files["config.json"] = "for timm"
  return "\n".join(
    [
      "| file | what it is |",
      "|---|---|",
      *(f"| `{file}` | {what} |" for file, what in files.items()),
    ]
  )


def _in_pytorch(config):
  """Returns how to load the backbone in PyTorch."""
  if config.model.name in STACKS:
    return f"{_with_torchvision(config)}{_with_plain_pytorch(config)}"
  return f"{_with_timm(config)}{_with_torchvision(config)}"


def _with_plain_pytorch(config):
  """Returns how to load a backbone that is one convolution upon another."""
  model = config.model
  lines, pooling = [], 0
  for stage in STACKS[model.name]:
    layers = []
    for layer in stage:
      if isinstance(layer, plain.Pool):
        layers.append('"pool"')
        pooling = layer.size
      else:
        channels = plain.scaled(layer.channels, model.width)
        layers.append(f"{(channels, *layer[1:])}")
    lines.append(f"  {', '.join(layers)},")
  listed = "\n".join(lines)
  return f"""
```python
import torch
from safetensors.torch import load_file

# Channels, kernel, stride and padding.
layers = [
{listed}
]
channels, features = {_in_channels(config)}, []
for layer in layers:
  if layer == "pool":
    features.append(torch.nn.MaxPool2d({pooling}, 2))
    continue
  features.append(torch.nn.Conv2d(channels, *layer))
  features += [torch.nn.BatchNorm2d(layer[0]), torch.nn.ReLU()]
  channels = layer[0]
model = torch.nn.Sequential()
model.add_module("features", torch.nn.Sequential(*features))
model.add_module("average", torch.nn.AdaptiveAvgPool2d(1))
model.add_module("flatten", torch.nn.Flatten())
model.load_state_dict(load_file("{BACKBONE_FILE}"))
model.eval()
```
"""


def _with_timm(config):
  """Returns how to load the backbone with timm."""
  changes = _timm_changes(config)
  if not changes:
    return f"""
```python
import timm

model = timm.create_model("local-dir:.", pretrained=True).eval()
# Before timm 1.0.29: timm.create_model({_timm_arguments(config)}, \
checkpoint_path="{BACKBONE_FILE}")
```

`local-dir:` takes this folder's path, `hf-hub:` the name that you upload it
under.
"""
  lines = "\n".join(changes)
  return f"""
timm has no name for this network, so that `local-dir:` and `hf-hub:` refuse it;
one of timm's has to be changed before it takes the weights:

```python
import timm
import torch
from safetensors.torch import load_file

model = timm.create_model({_timm_arguments(config)})
{lines}
model.load_state_dict(load_file("{BACKBONE_FILE}"))
model.eval()
```
"""


def _timm_arguments(config):
  model = config.model
  arguments = [f'"{model.name}"', "num_classes=0"]
  if model.width != _WIDTH:
    arguments.append(f"channels={tuple(_channels(model))}")
  if _in_channels(config) != 3:
    arguments.append(f"in_chans={_in_channels(config)}")
  return ", ".join(arguments)


def _timm_changes(config):
  """Returns what turns timm's network into this one, lines of Python."""
  model, width = config.model, config.model.width
  changes = _stem_changes(config, channels_are_given=True)
  if width == _WIDTH:
    return changes
  # timm's stem has 64 channels whatever `channels` says.
  changes.insert(1, f"model.bn1 = torch.nn.BatchNorm2d({width})")
  first = "model.layer1[0]"
  if _EXPANSIONS[model.name] == 1:
    return [
      *changes,
      f"{first}.conv1 = {_conv(width, width, 3, 1)}",
      f"{first}.downsample = None",
    ]
  wide = width * _EXPANSIONS[model.name]
  return [
    *changes,
    f"{first}.conv1 = {_conv(width, width, 1, 1)}",
    f"{first}.downsample = torch.nn.Sequential(\n"
    f"  {_conv(width, wide, 1, 1)}, torch.nn.BatchNorm2d({wide})\n)",
  ]


def _stem_changes(config, channels_are_given):
  """Returns what turns a stem of 64 channels into ours."""
  model, channels = config.model, _in_channels(config)
  small = model.stem == "small"
  changes = []
  other_channels = channels != 3 and not channels_are_given
  if small or model.width != _WIDTH or other_channels:
    size, stride = (3, 1) if small else (7, 2)
    conv = _conv(channels, model.width, size, stride)
    changes.append(f"model.conv1 = {conv}")
  if small:
    changes.append("model.maxpool = torch.nn.Identity()")
  return changes


def _conv(channels_in, channels_out, size, stride):
  return (
    f"torch.nn.Conv2d({channels_in}, {channels_out}, {size}, {stride}, "
    f"{size // 2}, bias=False)"
  )


def _with_torchvision(config):
  """Returns how to load the backbone with torchvision, if that has it."""
  model, channels = config.model, _in_channels(config)
  if model.width != _WIDTH or model.name == "alexnet":  # or another AlexNet
    return ""
  if model.name in STACKS:
    function = f"{model.name}_bn"
    lines = [
      "model.avgpool = torch.nn.AdaptiveAvgPool2d(1)",
      "model.classifier = torch.nn.Identity()",
    ]
    if channels != 3:
      first = f"torch.nn.Conv2d({channels}, {_WIDTH}, 3, padding=1)"
      lines.append(f"model.features[0] = {first}")
  else:
    function = model.name
    lines = [
      "model.fc = torch.nn.Identity()",
      *_stem_changes(config, channels_are_given=False),
    ]
  changes = "".join(f"{line}\n" for line in lines)
  return f"""
```python
import torch
import torchvision
from safetensors.torch import load_file

model = torchvision.models.{function}()
{changes}model.load_state_dict(load_file("{BACKBONE_FILE}"))
model.eval()
```
"""


def _in_jax(config):
  """Returns how to start from the export in odc_jax."""
  model, data, shown = config.model, config.data, config.augment
  return f"""In odc_jax, to start from it with images of your own:

```sh
python run.py --config=configs/odc_folder.py \\
  --config.data.source=folder:/your/images \\
  --config.data.image_size={data.image_size} \\
  --config.data.eval_resize={data.eval_resize} \\
  --config.model.weights=/path/to/this/folder \\
  --config.model.name={model.name} --config.model.stem={model.stem} \\
  --config.model.width={model.width} --config.augment.sobel={shown.sobel} \\
  --config.augment.mean="{tuple(shown.mean)}" \\
  --config.augment.std="{tuple(shown.std)}"
```
"""


def _input(config):
  """Returns what the network wants to be shown."""
  size, resize = config.data.image_size, config.data.eval_resize
  text = f"""Resize the short side to {resize} pixels (bilinear, antialiased), \
crop the
central {size} x {size}, scale to [0, 1], subtract the mean and divide by the
standard deviation:

```python
from torchvision import transforms

transform = transforms.Compose([
  transforms.Resize({resize}),
  transforms.CenterCrop({size}),
  transforms.ToTensor(),
  transforms.Normalize({tuple(config.augment.mean)}, {
    tuple(config.augment.std)
  }),
])
```"""
  if not config.augment.sobel:
    return text
  return f"""The network does not see colours, but two channels of gradients.

{text}

and then, of a batch of such images, the Sobel filter:

```python
import torch


def sobel(images):
  across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
  kernels = torch.stack([across, across.T])[:, None]
  grey = images.mean(1, keepdim=True)
  return torch.nn.functional.conv2d(grey, kernels, padding=1)
```

timm's transforms know nothing of the filter."""


def _with_neck(config):
  """Returns how to make embeddings and cluster scores of features."""
  neck, head = _neck(config), METHODS[config.method].HEAD
  lines, scores = [*_EMBED[neck]], _SCORES.get(head, "")
  if neck == "fc":  # whose last ReLU is behind the embeddings
    scores = scores.replace("(x,", "(x.relu(),")
  lines.append("return x" if head == "linear" else "return unit(x)")
  takes = "what `model.features` gives" if neck == "fc" else "features"
  functions = ["\n  ".join([f"def embed(x):  # {takes}", *lines])]
  if scores:
    functions.append(f"def scores(x):  # embeddings\n  return {scores}")
  called = [
    code
    for call, code in _CALLED.items()
    if any(call in function for function in functions)
  ]
  code = "\n\n\n".join([*called, *functions])
  what = " and cluster scores" if scores else ""
  return f"""Embeddings, which the clusters are made of,{what}:

```python
import torch
from safetensors.torch import load_file

parts = load_file("{NECK_AND_HEAD_FILE}")


{code}
```
"""


def _neck(config):
  return config.model.get("neck", "nonlinear")


def _in_channels(config):
  return 2 if config.augment.sobel else 3


def _channels(model):
  return [model.width * 2**stage for stage in range(4)]


def _num_features(model):
  if model.name in STACKS:
    *_, last = (
      layer
      for stage in STACKS[model.name]
      for layer in stage
      if isinstance(layer, plain.Conv)
    )
    return plain.scaled(last.channels, model.width)
  return _channels(model)[-1] * _EXPANSIONS[model.name]


def _crop_fraction(size, resize):
  """Returns size / resize, such that timm, which cuts, gets `resize` back."""
  fraction = size / resize
  while math.floor(size / fraction) < resize:
    fraction = math.nextafter(fraction, 0)
  return fraction


def _source(config):
  """Returns the data source without the path, which is nobody's business."""
  kind, colon, name = config.data.source.partition(":")
  # What follows is a path, but for tfds a name, and may have slashes too.
  return f"{kind}{colon}{name if kind == 'tfds' else _name(name)}"


def _config(config):
  """Returns the config without paths of the machine that it ran on."""
  shown = json.loads(config.to_json())
  shown["data"]["source"] = _source(config)
  shown["model"]["weights"] = _name(shown["model"].get("weights", ""))
  if "semi_lists" in shown["eval"]:
    shown["eval"]["semi_lists"] = [*map(_name, shown["eval"]["semi_lists"])]
  return shown


def _name(path):
  """Returns the last part of a path."""
  return pathlib.PurePath(path).name
