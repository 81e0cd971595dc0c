"""The description of an export: config.json, and a model card."""

import dataclasses
import inspect
import json
import math
import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

import jinja2

from odc_jax.config import Config
from odc_jax.data import order as order_lib
from odc_jax.interop import recognise, timm_form
from odc_jax.interop.read import BACKBONE_FILE, NECK_AND_HEAD_FILE
from odc_jax.logs.scalars import declared
from odc_jax.methods import METHODS
from odc_jax.models import plain
from odc_jax.models.backbones import STACKS, num_features

_HERE = pathlib.Path(__file__).parent

# Channels of timm's and torchvision's stem, of which the blocks are multiples.
_WIDTH = 64

_RESNETS = ("resnet18", "resnet34", "resnet50")

# The first and the last layer in timm.
_ENDS = {"vit": ("patch_embed.proj", "head"), "convnext": ("stem.0", "head.fc")}


def describe(config: Config) -> dict[str, Any]:
  """Returns `config.json`: timm's form, and what model.py needs beside it.

  Args:
    config: Of a run, as its work directory has it.
  """
  model, size = config.model, config.data.image_size
  in_channels = 2 if config.augment.sobel else 3
  ours: dict[str, Any] = {
    "sobel": config.augment.sobel,
    "neck": _neck(config),
    "head": METHODS[config.method].HEAD,
  }
  form = _form(config)
  arguments = dict(form.arguments)
  first, classifier = "conv1", "fc"
  if model.name in STACKS:
    ours["layers"] = _layers(model)
  elif model.name in _RESNETS:
    ours |= {"stem": model.stem, "width": model.width}
  else:
    first, classifier = _ENDS.get(model.name, ("conv_stem", "classifier"))
    settings = dataclasses.asdict(recognise.settings_of(model))
    ours |= {"name": model.name, "width": model.width, "settings": settings}
    if in_channels != 3:
      arguments["in_chans"] = in_channels
  return {
    "architecture": form.architecture,
    "num_classes": form.num_classes,
    "num_features": form.num_features,
    **({"model_args": arguments} if arguments else {}),
    "pretrained_cfg": {
      "tag": "odc_jax",
      "custom_load": False,
      "input_size": [in_channels, size, size],
      "fixed_input_size": False,
      "interpolation": config.data.get("interpolation", "bilinear"),
      "crop_pct": _crop_fraction(size, config.data.eval_resize),
      "crop_mode": "center",
      "mean": list(config.augment.mean),
      "std": list(config.augment.std),
      "num_classes": form.num_classes,
      # Where it takes other than three channels, timm up to 1.0.30 would leave
      # it random, with no more than a line in the log.
      "first_conv": first if in_channels == 3 else None,
      "classifier": classifier,
    },
    "odc_jax": ours,
  }


def render(
  config: Config,
  step: int,
  numbers: Mapping[str, Any],
  finished: bool,
  weights: Mapping[str, Any],
) -> str:
  """Returns the model card, Markdown with the header of hubs.

  Args:
    config: Of a run, as its work directory has it.
    step: Of the checkpoint.
    numbers: The last value of every evaluation.
    finished: Whether the run has ended.
    weights: What `hub.recorded` says of those that the run began with.
  """
  model, data = config.model, config.data
  form, neck = _form(config), _neck(config)
  in_channels = 2 if config.augment.sobel else 3
  of_timm = model.name not in (*_RESNETS, *STACKS)
  published = model.width == _WIDTH and model.stem == "imagenet"
  start = _weights_name(model.get("weights", ""))
  steps = order_lib.steps_per_epoch(config.num_examples, config.batch_size)
  library = "pytorch" if model.name in STACKS else "timm"
  if of_timm:
    whose, network = "timm", f"{model.name}, width {model.width}"
  else:
    whose = "DeepCluster" if model.name == "alexnet" else "torchvision"
    network = f"{model.name}, {model.stem} stem, width {model.width}"
  return _template().render(
    library=library,
    method=config.method,
    model=model,
    network=network,
    source=_source(config),
    summary=_summary(step, start, form.num_features),
    start=start,
    weights=weights,
    num_examples=config.num_examples,
    num_clusters=config.num_clusters,
    epochs=f"{step / steps:g}",
    step=step,
    batch_size=config.batch_size,
    finished=finished,
    num_features=form.num_features,
    in_channels=in_channels,
    numbers=[
      (name, f"{value:.4g}", declared(name) or "")
      for name, value in numbers.items()
      if name.startswith("eval/")
    ],
    has_scores=METHODS[config.method].HEAD != "none",
    of_timm=of_timm,
    in_timm=of_timm or (published and model.name in _RESNETS),
    half=of_timm and model.get("settings", {}).get("pool") == "token_mean",
    timm_arguments=f'"{model.name}", num_classes=0'
    + (", in_chans=2" if in_channels == 2 else ""),
    in_torchvision=published
    and in_channels == 3
    and (model.name in _RESNETS or model.name == "vgg16"),
    plain=model.name in STACKS,
    whose=whose,
    neck=neck,
    image_size=data.image_size,
    eval_resize=data.eval_resize,
    interpolation=data.get("interpolation", "bilinear"),
    sobel=config.augment.sobel,
    mean=tuple(config.augment.mean),
    std=tuple(config.augment.std),
    backbone_file=BACKBONE_FILE,
    neck_and_head_file=NECK_AND_HEAD_FILE,
    config=json.dumps(_config(config), indent=2),
    paper=_paper(config.method),
  )


def _template():
  """Returns the card's text with gaps for the run's values."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  return environment.get_template("card.md.jinja")


def _summary(step, start, length):
  """Returns in a sentence or two what the network is."""
  if step:
    learned = (
      "learned without labels, by predicting clusters that it made itself"
    )
  elif start:
    learned = f"has the weights of `{start}`, not trained further"
  else:
    learned = "has random weights and was not trained"
  return textwrap.fill(
    f"The backbone of a network that {learned}. It turns an image into "
    f"{length:,} features, for nearest neighbours, a "
    "linear classifier, or fine-tuning.",
    80,
  )


def _paper(method):
  """Returns what a method's module begins with: its paper and its code."""
  doc = inspect.getdoc(inspect.getmodule(METHODS[method].init)) or ""
  return "\n".join(doc.split("\n\n")[:2])


def _form(config):
  """Returns how timm makes, or would make, a network."""
  model = config.model
  if model.name in STACKS:
    return timm_form.Form(model.name, {}, 0, num_features(model))
  if model.name in _RESNETS:
    channels = [model.width * 2**stage for stage in range(4)]
    arguments = {} if model.width == _WIDTH else {"channels": channels}
    return timm_form.Form(model.name, arguments, 0, num_features(model))
  return timm_form.of(model, config.data.image_size)


def _neck(config):
  return config.model.get("neck", "nonlinear")


def _layers(model):
  """Returns AlexNet's or VGG's layers as model.py takes them."""
  return [
    [layer.size]
    if isinstance(layer, plain.Pool)
    else [plain.scaled(layer.channels, model.width), *layer[1:]]
    for stage in STACKS[model.name]
    for layer in stage
  ]


def _crop_fraction(size, resize):
  """Returns size / resize, such that timm, which cuts, gets `resize` back."""
  fraction = size / resize
  while math.floor(size / fraction) < resize:
    fraction = math.nextafter(fraction, 0)
  return fraction


def _source(config):
  """Returns the data source without the path, which is nobody's business."""
  kind, colon, name = config.data.source.partition(":")
  # After the colon there is a path, or for tfds a name, also with slashes.
  return f"{kind}{colon}{name if kind == 'tfds' else _name(name)}"


def _config(config):
  """Returns the config without paths of the machine that it ran on."""
  shown = json.loads(config.to_json())
  shown["data"]["source"] = _source(config)
  shown["model"]["weights"] = _weights_name(shown["model"].get("weights", ""))
  for part in shown["eval"].get("semi", {}).values():
    if isinstance(part, dict):  # one share of the labels
      part["list"] = _name(part["list"])
  if "attributes" in shown["eval"]:
    shown["eval"]["attributes"] = _name(shown["eval"]["attributes"])
  return shown


def _weights_name(weights):
  """Returns what `model.weights` is, a path without its folders."""
  return weights if weights.startswith(("hf:", "pip:")) else _name(weights)


def _name(path):
  """Returns the last part of a path."""
  return pathlib.PurePath(path).name
