"""What an export says of itself: timm's config.json, and a model card."""

import inspect
import json
import math
import pathlib
import textwrap
from typing import Any

from odc_jax.config import Config
from odc_jax.data import loader
from odc_jax.interop.torch import BACKBONE_FILE, NECK_AND_HEAD_FILE
from odc_jax.methods import METHODS
from odc_jax.metrics import declared

# Of a stem with its 64 channels timm's and torchvision's blocks are multiples.
_WIDTH = 64

_EXPANSIONS = {"resnet18": 1, "resnet34": 1, "resnet50": 4}


def timm_config(config: Config) -> dict[str, Any]:
  """Returns what timm's hub form keeps in `config.json`.

  Args:
    config: Of a run, as its work directory has it.
  """
  model, size = config.model, config.data.image_size
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
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- image-feature-extraction
- timm
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
{_with_timm(config)}{_with_torchvision(config)}
{_in_jax(config)}
## Input

{_input(config)}

## Files

| file | what it is |
|---|---|
| `{BACKBONE_FILE}` | the backbone alone, float32, with torchvision's names |
| `{NECK_AND_HEAD_FILE}` | what made embeddings and cluster scores of the \
features, with OpenSelfSup's names |
| `config.json` | for timm |

{_with_neck()}
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
  if config.model.width != _WIDTH:
    return ""
  changes = "".join(
    f"{line}\n" for line in _stem_changes(config, channels_are_given=False)
  )
  return f"""
```python
import torch
import torchvision
from safetensors.torch import load_file

model = torchvision.models.{config.model.name}()
model.fc = torch.nn.Identity()
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


def _with_neck():
  return f"""Embeddings, which the clusters are made of, and cluster scores:

```python
import torch
from safetensors.torch import load_file

parts = load_file("{NECK_AND_HEAD_FILE}")


def embed(features):
  x = torch.nn.functional.linear(
    features, parts["neck.fc0.weight"], parts["neck.fc0.bias"]
  )
  x = torch.nn.functional.batch_norm(
    x, parts["neck.bn0.running_mean"], parts["neck.bn0.running_var"]
  ).relu()
  return torch.nn.functional.linear(
    x, parts["neck.fc1.weight"], parts["neck.fc1.bias"]
  ).relu()


def scores(embeddings):
  return torch.nn.functional.linear(
    embeddings, parts["head.fc_cls.weight"], parts["head.fc_cls.bias"]
  )
```
"""


def _in_channels(config):
  return 2 if config.augment.sobel else 3


def _channels(model):
  return [model.width * 2**stage for stage in range(4)]


def _num_features(model):
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
