"""Backbone, neck and head, put together and built from a config."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float

from odc_jax import errors
from odc_jax.models import heads, resnet

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Outputs(NamedTuple):
  """What one forward pass yields, all of it float32.

  Attributes:
    features: the backbone's last map, averaged over space, [b, c].
    embeddings: what the neck makes of them, [b, d].
    logits: what the head makes of those, [b, k].
  """

  features: Float[Array, "b c"]
  embeddings: Float[Array, "b d"]
  logits: Float[Array, "b k"]


class Network(nnx.Module):
  """A backbone, a neck and a head.

  The parameters' top-level keys are the names of these three attributes, and
  the optimiser tells its parts by them.
  """

  def __init__(self, backbone: nnx.Module, neck: nnx.Module, head: nnx.Module):
    """Composes the network.

    Args:
      backbone: images [b, h, w, 3] (or as many channels as it was built for)
        -> list of feature maps [b, h', w', c].
      neck: features [b, c], rngs -> embeddings [b, d].
      head: embeddings [b, d] -> logits [b, k].
    """
    self.backbone = backbone
    self.neck = neck
    self.head = head

  def __call__(
    self, images: Float[Array, "b h w c"], rngs: nnx.Rngs | None = None
  ) -> Outputs:
    """Runs all three.

    Args:
      images: normalised, [b, h, w, c]; c as the backbone was built for.
      rngs: source of the dropout mask; not needed in evaluation.

    Returns:
      The three stages' outputs.
    """
    last = self.backbone(images)[-1]
    # In float32: an average over 49 bfloat16 values would be a rough one.
    features = jnp.mean(last, axis=(1, 2), dtype=jnp.float32)
    embeddings = self.neck(features, rngs)
    return Outputs(features, embeddings, self.head(embeddings))


class Classifier(nnx.Module):
  """A backbone and one linear layer on its pooled last map."""

  def __init__(self, backbone: nnx.Module, head: nnx.Module):
    """Composes the network.

    Args:
      backbone: as a `Network`'s.
      head: features [b, c] -> logits [b, k].
    """
    self.backbone = backbone
    self.head = head

  def __call__(
    self, images: Float[Array, "b h w c"], rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b k"]:
    """Returns the logits, float32.

    Args:
      images: normalised, [b, h, w, c]; c as the backbone was built for.
      rngs: not needed.
    """
    del rngs
    last = self.backbone(images)[-1]
    return self.head(jnp.mean(last, axis=(1, 2), dtype=jnp.float32))


def build(
  config: ml_collections.ConfigDict,
  num_clusters: int,
  rngs: nnx.Rngs,
  *,
  in_channels: int = 3,
) -> Network:
  """Builds the network that a config describes.

  Args:
    config: section with the keys `name`, `stem`, `width`, `dtype`,
      `neck_hidden`, `embedding_dim`, `dropout`, `neck_bn_momentum` and
      `group_size`. The last is the neck's alone: the official backbone's
      BatchNorm is synchronised.
    num_clusters: outputs of the head, k.
    rngs: source of the initial weights.
    in_channels: channels of the images; 2 behind a Sobel filter.

  Returns:
    The network, in training mode.

  Raises:
    UserError: if `name`, `stem` or `dtype` is not one that there is.
  """
  # To a type checker, each value of a ConfigDict may be anything it can hold.
  section: Any = config
  backbone = build_backbone(section, rngs, in_channels=in_channels)
  dtype = DTYPES[section.dtype]
  neck = heads.NonLinearNeck(
    backbone.num_features,
    section.neck_hidden,
    section.embedding_dim,
    dropout=section.dropout,
    bn_momentum=section.neck_bn_momentum,
    group_size=section.group_size,
    dtype=dtype,
    rngs=rngs,
  )
  head = heads.LinearHead(
    section.embedding_dim, num_clusters, dtype=dtype, rngs=rngs
  )
  return Network(backbone, neck, head)


def build_backbone(
  config: ml_collections.ConfigDict, rngs: nnx.Rngs, *, in_channels: int = 3
) -> resnet.ResNet:
  """Builds the backbone that a config describes.

  Args:
    config: section with the keys `name`, `stem`, `width` and `dtype`.
    rngs: source of the initial weights.
    in_channels: channels of the images; 2 behind a Sobel filter.

  Returns:
    The backbone, in training mode.

  Raises:
    UserError: if `name`, `stem` or `dtype` is not one that there is.
  """
  section: Any = config
  _check("name", section.name, resnet.RESNETS)
  _check("stem", section.stem, resnet.STEMS)
  _check("dtype", section.dtype, DTYPES)
  return resnet.RESNETS[section.name](
    stem=section.stem,
    width=section.width,
    in_channels=in_channels,
    dtype=DTYPES[section.dtype],
    rngs=rngs,
  )


def build_classifier(
  config: ml_collections.ConfigDict,
  num_classes: int,
  rngs: nnx.Rngs,
  *,
  in_channels: int = 3,
) -> Classifier:
  """Builds the backbone that a config describes, with a classifier on it.

  Args:
    config: as for `build_backbone`.
    num_classes: outputs, k.
    rngs: source of the initial weights.
    in_channels: channels of the images; 2 behind a Sobel filter.

  Returns:
    The network, in training mode.

  Raises:
    UserError: as for `build_backbone`.
  """
  backbone = build_backbone(config, rngs, in_channels=in_channels)
  head = heads.LinearHead(backbone.num_features, num_classes, rngs=rngs)
  return Classifier(backbone, head)


def _check(key: str, value: str, choices: Iterable[str]) -> None:
  """Raises a UserError that names the choices, if `value` is not among them."""
  if value not in choices:
    raise errors.UserError(
      f"unknown model {key} {value!r}; choose one of {', '.join(choices)}"
    )
