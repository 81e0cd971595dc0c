"""The network of this folder in PyTorch.

  from model import load

  model = load()                    # reads the files beside this one
  features = model(images)          # [n, c]; images [n, 3, h, w], normalised
  embeddings = model.embed(images)  # [n, d], which the clusters are made of
  scores = model.scores(images)     # [n, k]; the largest is the cluster's

Needs torch and safetensors, and timm for the networks that come from there. The
backbone alone is `model.backbone`, with the names of `model.safetensors`.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

Arrays = Mapping[str, torch.Tensor]

# Blocks in each stage.
DEPTHS = {
  "resnet18": (2, 2, 2, 2),
  "resnet34": (3, 4, 6, 3),
  "resnet50": (3, 4, 6, 3),
}

# The layers of each neck, by the names of their arrays.
NECKS = {
  "nonlinear": ("fc0", "bn0", "relu", "fc1", "relu"),
  "mlp2": ("layers.0", "norms.0", "relu", "layers.1"),
  "mlp2_no_bias": ("layers.0", "norms.0", "relu", "layers.1"),
  "mlp2_no_norm": ("layers.0", "relu", "layers.1"),
  "mlp3_bias_last": (
    *("layers.0", "norms.0", "relu"),
    *("layers.1", "norms.1", "relu"),
    "layers.2",
  ),
  "mlp3_gelu": (
    *("layers.0", "norms.0", "gelu"),
    *("layers.1", "norms.1", "gelu"),
    "layers.2",
  ),
  "mlp3": (
    *("layers.0", "norms.0", "relu"),
    *("layers.1", "norms.1", "relu"),
    *("layers.2", "norms.2"),
  ),
  "fc": ("flatten", "fc6", "relu", "fc7"),
  "standardized": ("norms.0",),
  "none": (),
}
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "flatten": nn.Flatten}


def conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
  """Returns a convolution without bias that keeps the size, but for strides."""
  return nn.Conv2d(channels, out, size, stride, size // 2, bias=False)


class Block(nn.Module):
  """Two 3x3 convolutions, or three with 1x1 around them, and a shortcut."""

  def __init__(self, channels: int, width: int, stride: int, bottleneck: bool):
    """Creates the layers."""
    super().__init__()
    if bottleneck:
      layers = [(width, 1, 1), (width, 3, stride), (width * 4, 1, 1)]
    else:
      layers = [(width, 3, stride), (width, 3, 1)]
    self.depth, out = len(layers), layers[-1][0]
    self.downsample = nn.Sequential()
    if stride != 1 or channels != out:
      self.downsample = nn.Sequential(
        conv(channels, out, 1, stride), nn.BatchNorm2d(out)
      )
    for i, (width, size, stride) in enumerate(layers, 1):
      self.add_module(f"conv{i}", conv(channels, width, size, stride))
      self.add_module(f"bn{i}", nn.BatchNorm2d(width))
      channels = width

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[n, c, h, w] -> [n, out, h / stride, w / stride]."""
    y = x
    for i in range(1, self.depth + 1):
      y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
      y = y.relu() if i < self.depth else y
    return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
  """A residual network up to its last map."""

  def __init__(self, name: str, stem: str, width: int, in_channels: int):
    """Creates the layers: the small stem is for images of 32 pixels."""
    super().__init__()
    small, bottleneck = stem == "small", name == "resnet50"
    self.conv1 = conv(in_channels, width, 3 if small else 7, 1 if small else 2)
    self.bn1 = nn.BatchNorm2d(width)
    self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
    channels, stages = width, []
    for i, depth in enumerate(DEPTHS[name]):
      stage = nn.Sequential()
      for j in range(depth):
        stride = 2 if i and not j else 1
        stage.append(Block(channels, width * 2**i, stride, bottleneck))
        channels = width * 2**i * (4 if bottleneck else 1)
      stages.append(stage)
    self.layer1, self.layer2, self.layer3, self.layer4 = stages

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[n, c, h, w] -> [n, features, h', w']."""
    x = self.maxpool(self.bn1(self.conv1(x)).relu())
    return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Plain(nn.Module):
  """Convolutions on top of each other: AlexNet and VGG up to their last map."""

  def __init__(self, layers: Sequence[Sequence[int]], in_channels: int):
    """Creates [channels, kernel, stride, padding], or [size] of a pooling."""
    super().__init__()
    self.features = nn.Sequential()
    for layer in layers:
      if len(layer) == 1:
        self.features.append(nn.MaxPool2d(layer[0], 2))
        continue
      out, size, stride, padding = layer
      self.features.append(nn.Conv2d(in_channels, out, size, stride, padding))
      self.features.append(nn.BatchNorm2d(out))
      self.features.append(nn.ReLU())
      in_channels = out

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[n, c, h, w] -> [n, features, h', w']."""
    return self.features(x)


def neck(kind: str, arrays: Arrays) -> nn.Sequential:
  """Returns what makes embeddings of features, with its arrays in it."""
  made = nn.Sequential()
  for name in NECKS[kind]:
    prefix = f"neck.{name}."
    own = {k[len(prefix) :]: a for k, a in arrays.items() if prefix in k}
    if name in ACTIVATIONS:
      layer = ACTIVATIONS[name]()
    elif "running_mean" in own:
      layer = nn.BatchNorm1d(len(own["running_mean"]), affine="weight" in own)
    else:
      out, size = own["weight"].shape
      layer = nn.Linear(size, out, bias="bias" in own)
    layer.load_state_dict(own)
    made.append(layer)
  return made


class Model(nn.Module):
  """Backbone, neck and head, in evaluation mode."""

  backbone: Any
  weight: torch.Tensor | None
  bias: torch.Tensor | None

  def __init__(self, config: Mapping[str, Any], parts: Arrays):
    """Creates them.

    Args:
      config: What `config.json` holds.
      parts: What `neck_and_head.safetensors` holds.
    """
    super().__init__()
    ours = config["odc_jax"]
    self.sobel, self.head = ours["sobel"], ours["head"]
    self.neck_kind = ours["neck"]
    channels = 2 if self.sobel else 3
    name = config["architecture"]
    self.of_timm = "settings" in ours
    self.both = self.of_timm and ours["settings"].get("pool") == "token_mean"
    if self.of_timm:
      import timm  # of which the other networks have no need

      self.backbone = timm.create_model(
        name, num_classes=config["num_classes"], **config["model_args"]
      )
    elif name in DEPTHS:
      self.backbone = ResNet(name, ours["stem"], ours["width"], channels)
    else:
      self.backbone = Plain(ours["layers"], channels)
    self.neck = neck(self.neck_kind, parts)
    weight = "fc_cls.weight" if self.head == "linear" else "weights.0"
    self.register_buffer("weight", parts.get(f"head.{weight}"))
    self.register_buffer("bias", parts.get("head.fc_cls.bias"))
    self.voters = None
    if self.head == "clusterers":
      self.voters = Voters(parts)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Returns the features, [n, c], of normalised images [n, 3, h, w]."""
    last = self.last(images)
    if self.both:
      patches = last[:, self.backbone.num_prefix_tokens :]
      return torch.cat([last[:, 0], patches.mean(1)], 1)
    return last if self.of_timm else last.mean((2, 3))

  def last(self, images: torch.Tensor) -> torch.Tensor:
    """Returns what features are made of: the last map, [n, c, h', w'].

    Or the last tokens, [n, t, c], or what timm makes of them, [n, c].
    """
    x = sobel(images) if self.sobel else images
    return self.backbone.forward_features(x) if self.both else self.backbone(x)

  def embed(self, images: torch.Tensor) -> torch.Tensor:
    """Returns embeddings, [n, d].

    Unit ones, but in front of a linear head, of directions, and of heads that
    vote.
    """
    whole = self.neck_kind == "fc"
    x = self.neck(self.last(images) if whole else self(images))
    plain = self.head in ("linear", "clusterers", "directions")
    return x if plain else nn.functional.normalize(x)

  def scores(self, images: torch.Tensor) -> torch.Tensor:
    """Returns a score for every cluster, [n, k]; there has to be a head."""
    x, weight = self.embed(images), self.weight
    if self.voters is not None:
      return self.voters(x)
    if weight is None:
      raise ValueError("the method of this run has no head: compare embeddings")
    if self.head in ("centers", "unit_prototypes", "directions"):
      weight = nn.functional.normalize(weight)
    if self.neck_kind == "fc":  # whose last ReLU is behind the embeddings
      x = x.relu()
    return nn.functional.linear(x, weight, self.bias)


class Voters(nn.Module):
  """Heads that each choose a cluster: an MLP, then cosines to directions."""

  directions: torch.Tensor
  scales: torch.Tensor
  names: torch.Tensor

  def __init__(self, parts: Arrays):
    """Takes the heads' arrays, and which cluster each choice is a vote for."""
    super().__init__()
    self.depth = sum(name.startswith("head.mlp.kernels.") for name in parts)
    for i in range(self.depth):
      self.register_buffer(f"kernel{i}", parts[f"head.mlp.kernels.{i}"])
      self.register_buffer(f"bias{i}", parts[f"head.mlp.biases.{i}"].T)
    self.register_buffer("directions", parts["head.last.directions"])
    self.register_buffer("scales", parts["head.last.scales"].T)
    self.register_buffer("names", parts["vote.names"])

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the share of the heads that vote for each cluster, [n, k]."""
    if (self.names < 0).any():
      raise ValueError("the heads vote once the run has ended: finish it")
    for i in range(self.depth):
      kernel, bias = getattr(self, f"kernel{i}"), getattr(self, f"bias{i}")
      x = (nn.functional.gelu(x) if i else x) @ kernel + bias[:, None]
    cosines = nn.functional.normalize(x, dim=2) @ nn.functional.normalize(
      self.directions, dim=1
    )
    chosen = (cosines * self.scales[:, None]).argmax(2)  # [heads, n]
    votes = self.names.gather(1, chosen)
    k = self.names.shape[1]
    return nn.functional.one_hot(votes, k).float().mean(0)


def sobel(images: torch.Tensor) -> torch.Tensor:
  """Returns the gradients of grey images: [n, 3, h, w] -> [n, 2, h, w]."""
  across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
  kernels = torch.stack([across, across.T])[:, None].to(images)
  grey = images.mean(1, keepdim=True)
  return nn.functional.conv2d(grey, kernels, padding=1)


def load(folder: str | os.PathLike = pathlib.Path(__file__).parent) -> Model:
  """Returns the network of an export.

  Args:
    folder: With the files of the export; the one that this file lies in.
  """
  folder = pathlib.Path(folder)
  model = Model(
    json.loads((folder / "config.json").read_text("utf-8")),
    load_file(folder / "neck_and_head.safetensors"),
  )
  model.backbone.load_state_dict(load_file(folder / "model.safetensors"))
  return model.eval()
