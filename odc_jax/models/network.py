"""Backbone, neck and head, put together and built from a config."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float

from odc_jax import errors
from odc_jax.models import backbones, cluster_heads, heads, norm
from odc_jax.models.backbone import Backbone, mean_over_places
from odc_jax.models.backbones import DTYPES, STACKS


class Outputs(NamedTuple):
  """The outputs of a forward pass for one view, all of them float32.

  Attributes:
    features: the backbone's, [b, c]: most often its last map, averaged over
      space.
    embeddings: what the neck makes of it, [b, d]; unit rows where the network
      normalises.
    logits: what the head makes of those, [b, k] for each of its clusterings.
    predictions: what the predictor makes of the embeddings, [b, d] unit rows;
      None without a predictor.
    prediction_logits: what the head makes of the predictions.
    prototypes: a head's vectors, [k, d] for each clustering, where the logits
      are dot products with such.
  """

  features: Float[Array, "b c"]
  embeddings: Float[Array, "b d"]
  logits: tuple[Float[Array, "b _"], ...] = ()
  predictions: Float[Array, "b d"] | None = None
  prediction_logits: tuple[Float[Array, "b _"], ...] = ()
  prototypes: tuple[Float[Array, "_ d"], ...] = ()


class Network(nnx.Module):
  """A backbone, a neck, a head and perhaps a predictor.

  The parameters' top-level keys are the names of these attributes, and the
  optimiser tells its parts by them.
  """

  def __init__(
    self,
    backbone: Backbone,
    neck: nnx.Module | None,
    head: nnx.Module | None,
    predictor: nnx.Module | None = None,
    *,
    unit: bool = False,
    views_together: bool | Literal["sizes"] = True,
    bn_group_size: int = 0,
  ):
    """Composes the network.

    Args:
      backbone: of images [b, h, w, 3], or as many channels as it was built for.
      neck: features [b, c], rngs -> embeddings [b, d]. One whose `flattens` is
        true takes the whole last map instead, [b, c h' w']. None: the features
        are the embeddings.
      head: embeddings [b, d] -> logits, [b, k] for each clustering; with
        `prototypes()`. None: there is no head, the method has centroids.
      predictor: embeddings [b, d] -> predictions [b, d].
      unit: whether embeddings and predictions get unit length (the predictor
        takes the embeddings as the neck gives them).
      views_together: whether the views of a batch are one batch to BatchNorm
        (those of one size in the backbone, all of them behind it), as SwAV
        does it; "sizes": those of each array of the tuple are, in the backbone
        and behind it; else each view has statistics of its own.
      bn_group_size: images, consecutive in the batch, whose views share
        BatchNorm statistics; a batch of no more is one group, and so is any
        with 0. For all BatchNorm but that of a neck with groups of its own.
    """
    self.backbone = backbone
    self.neck = neck
    self.head: Any = head
    self.predictor = predictor
    self.unit = unit
    self.views_together = views_together
    self.bn_group_size = bn_group_size

  def __call__(self, images: Any, rngs: nnx.Rngs | None = None) -> Any:
    """Runs all parts.

    Args:
      images: normalised, [b, h, w, c], c as the backbone was built for; or,
        in training, a tuple of [b, v, h, w, c]: views of one or several sizes.
        Features [b, c], or views of them [b, v, c], pass the backbone by.
      rngs: source of the dropout mask; not needed in evaluation.

    Returns:
      The parts' outputs; of views a tuple, `Outputs` for each of them.
    """
    if not isinstance(images, tuple):
      return self._outputs(*self._pooled(images), rngs)
    if not self.views_together:
      self._group(images[0].shape[0], self.backbone, self.neck, self.predictor)
      return tuple(
        self._outputs(*self._pooled(kind[:, view]), rngs)
        for kind in images
        for view in range(kind.shape[1])
      )
    if self.views_together == "sizes":
      kinds = [self._together((kind,), rngs) for kind in images]
      return tuple(view for kind in kinds for view in kind)
    return self._together(images, rngs)

  def _together(self, images, rngs):
    """Returns the outputs of views that are one batch to BatchNorm."""
    pooled = [self._pooled_views(kind) for kind in images]
    features, inputs = (
      jnp.concatenate(parts, axis=1) for parts in zip(*pooled, strict=True)
    )
    b, v = features.shape[:2]
    self._group(b, self.neck, self.predictor, num_views=v)
    outputs = self._outputs(
      features.reshape(b * v, -1), inputs.reshape(b * v, -1), rngs
    )
    return tuple(_view(outputs, view, v) for view in range(v))

  def _group(self, num_images, *parts, num_views=1):
    """Sets how many rows of a batch of views share BatchNorm statistics."""
    images = self.bn_group_size
    if not images:
      return
    rows = images * num_views if images < num_images else 0
    for part in parts:
      if part is not None and not isinstance(part, heads.NonLinearNeck):
        part.set_attributes(
          norm.BatchNorm, group_size=rows, raise_if_not_found=False
        )

  def _pooled(self, images):
    """Returns the features, [b, c], and what the neck takes, [b, m]."""
    if images.ndim == 2:
      return images, images
    if getattr(self.neck, "flattens", False):
      last = self.backbone(images)[-1]
      # In torch's order, in which its fully connected layers are saved.
      flat = last.transpose(0, 3, 1, 2).reshape(last.shape[0], -1)
      return mean_over_places(last), flat
    features = self.backbone.pooled(images)
    return features, features

  def _pooled_views(self, images):
    """Does the same to views of one size: [b, v, ...] -> [b, v, _]."""
    b, v = images.shape[:2]
    self._group(b, self.backbone, num_views=v)
    # Examples stay side by side: no device hands over a view of its own.
    flat = self._pooled(images.reshape(b * v, *images.shape[2:]))
    return tuple(array.reshape(b, v, -1) for array in flat)

  def _outputs(self, features, inputs, rngs):
    embeddings = inputs if self.neck is None else self.neck(inputs, rngs)
    predictions = None
    if self.predictor is not None:
      predictions = self.predictor(embeddings)
    if self.unit:
      embeddings = _unit(embeddings)
      predictions = None if predictions is None else _unit(predictions)
    if self.head is None:
      return Outputs(features, embeddings, predictions=predictions)
    return Outputs(
      features,
      embeddings,
      self.head(embeddings),
      predictions,
      () if predictions is None else self.head(predictions),
      self.head.prototypes(),
    )


def _view(outputs: Outputs, view: int, num_views: int) -> Outputs:
  """Takes one view out of the outputs of all, [b v, ...]."""

  def of(array):
    return array.reshape(-1, num_views, *array.shape[1:])[:, view]

  taken = jax.tree.map(of, outputs._replace(prototypes=()))
  return taken._replace(prototypes=outputs.prototypes)


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
  """Returns x / |x|, as torch's F.normalize guards it."""
  # Not through the norm of a zero row, whose gradient is NaN.
  squared = jnp.sum(x * x, axis=1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


class Classifier(nnx.Module):
  """A backbone and one linear layer on its features."""

  def __init__(self, backbone: Backbone, head: nnx.Module):
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
    return self.head(self.backbone.pooled(images))


def build(
  config: ml_collections.ConfigDict,
  num_clusters: int | Sequence[int],
  rngs: nnx.Rngs,
  *,
  in_channels: int = 3,
  head: str = "linear",
  views_together: bool | Literal["sizes"] = True,
) -> Network:
  """Builds the network that a config describes.

  Args:
    config: section with the keys that `backbones.build` reads, `neck` (one of
      `NECKS`; "nonlinear" if left out), and what that neck reads of
      `neck_hidden`, `embedding_dim`, `dropout`, `neck_bn_momentum` and
      `group_size`. The last is the neck's alone: the official backbone's
      BatchNorm is synchronised, over groups of `bn_group_size` images if there
      is one. `predictor`, if there is one, is whether there is to be a
      predictor.
    num_clusters: outputs of the head, k, of every clustering.
    rngs: source of the initial weights.
    in_channels: channels of the images; 2 behind a Sobel filter.
    head: one of `HEADS`, as the method wants it. All but those of `ANY_LENGTH`
      see unit embeddings. "clusterers" reads `head_layers`, `head_hidden` and
      `head_bottleneck`.
    views_together: as for `Network`.

  Returns:
    The network, in training mode.

  Raises:
    UserError: if `name`, `stem`, `dtype` or `neck` is not one that there is, or
      if that neck is not for that backbone.
  """
  # To a type checker, each value of a ConfigDict may be anything it can hold.
  section: Any = config
  backbone = backbones.build(section, rngs, in_channels=in_channels)
  dtype = DTYPES[section.dtype]
  kind = section.get("neck", "nonlinear")
  backbones.check_choice("neck", kind, NECKS)
  neck = NECKS[kind](section, backbone, dtype, rngs)
  size = backbone.num_features if keeps_size(section) else section.embedding_dim
  if isinstance(num_clusters, int):
    num_clusters = (num_clusters,)
  make_head = HEADS[head]
  predictor = None
  if section.get("predictor", False):
    predictor = heads.Projection(
      (size, section.neck_hidden, size),
      bias_last=kind != "mlp2_no_bias",
      dtype=dtype,
      rngs=rngs,
    )
  return Network(
    backbone,
    neck,
    make_head(section, size, num_clusters, dtype, rngs),
    predictor,
    unit=head not in ANY_LENGTH,
    views_together=views_together,
    bn_group_size=section.get("bn_group_size", 0),
  )


def _nonlinear(section, backbone, dtype, rngs):
  return heads.NonLinearNeck(
    backbone.num_features,
    section.neck_hidden,
    section.embedding_dim,
    dropout=section.dropout,
    bn_momentum=section.neck_bn_momentum,
    group_size=section.group_size,
    dtype=dtype,
    rngs=rngs,
  )


def _mlp(section, backbone, dtype, rngs, *, num_hidden, **choices):
  hidden = (section.neck_hidden,) * num_hidden
  return heads.Projection(
    (backbone.num_features, *hidden, section.embedding_dim),
    **choices,
    dtype=dtype,
    rngs=rngs,
  )


def _fully_connected(section, backbone, dtype, rngs):
  if section.name not in STACKS:
    raise errors.UserError(
      f"model.neck='fc' is for {' and '.join(STACKS)}, not {section.name}"
    )
  return heads.FullyConnectedNeck(
    backbone.num_flat,
    section.neck_hidden,
    section.embedding_dim,
    dropout=section.dropout,
    drop_input=backbone.drops_input,
    dtype=dtype,
    rngs=rngs,
  )


# Necks, which turn a backbone's features into embeddings: (section `model`,
# backbone, dtype, rngs) -> module, or None where the features are the
# embeddings.
NECKS: dict[str, Callable[..., Any]] = {
  "nonlinear": _nonlinear,
  "linear": lambda section, backbone, dtype, rngs: heads.Projection(
    (backbone.num_features, section.embedding_dim), dtype=dtype, rngs=rngs
  ),
  "mlp2": functools.partial(_mlp, num_hidden=1),
  # BYOL's; its predictor has no last bias either.
  "mlp2_no_bias": functools.partial(_mlp, num_hidden=1, bias_last=False),
  # MIRA's.
  "mlp3_bias_last": functools.partial(_mlp, num_hidden=2, bias_hidden=False),
  # CARP's.
  "mlp3_gelu": functools.partial(_mlp, num_hidden=2, gelu=True),
  "mlp2_no_norm": functools.partial(_mlp, num_hidden=1, norm_hidden=False),
  "mlp3": functools.partial(_mlp, num_hidden=2, norm_last=True),
  "fc": _fully_connected,
  "standardized": lambda _, backbone, *__: heads.Standardized(
    backbone.num_features
  ),
  "none": lambda *_: None,
}


def keeps_size(section: Any) -> bool:
  """Returns whether the embeddings are as long as the features.

  Args:
    section: as for `build`.
  """
  return section.get("neck", "nonlinear") in ("standardized", "none")


def _linear_heads(section, size, num_clusters, dtype, rngs):
  # The last ReLU of fully connected layers is behind the embeddings.
  behind = section.get("neck", "nonlinear") == "fc"
  return heads.LinearHeads(
    size, num_clusters, relu=behind, dtype=dtype, rngs=rngs
  )


def _clusterers(section, size, num_clusters, dtype, rngs):
  return cluster_heads.ClusterHeads(
    size,
    num_clusters[0],
    num_heads=len(num_clusters),
    hidden=(section.head_hidden,) * section.head_layers,
    bottleneck=section.head_bottleneck,
    dtype=dtype,
    rngs=rngs,
  )


def _unit_prototypes(_, size, num_clusters, dtype, rngs):
  return heads.UnitPrototypes(size, num_clusters, dtype=dtype, rngs=rngs)


# Heads, which turn embeddings into logits: (section `model`, d, every k, dtype,
# rngs) -> module, or None where the method has none.
HEADS: dict[str, Callable[..., Any]] = {
  "linear": _linear_heads,
  "prototypes": lambda _, size, ks, dtype, rngs: heads.Prototypes(
    size, ks, dtype=dtype, rngs=rngs
  ),
  "unit_prototypes": _unit_prototypes,
  # The same, of embeddings as the neck gives them.
  "directions": _unit_prototypes,
  "centers": lambda _, size, ks, dtype, rngs: heads.Centers(
    size, ks, rngs=rngs
  ),
  "clusterers": _clusterers,
  "none": lambda *_: None,
}
# Those that see embeddings of any length.
ANY_LENGTH = ("linear", "clusterers", "directions")


def build_classifier(
  config: ml_collections.ConfigDict,
  num_classes: int,
  rngs: nnx.Rngs,
  *,
  in_channels: int = 3,
) -> Classifier:
  """Builds the backbone that a config describes, with a classifier on it.

  Args:
    config: as for `backbones.build`.
    num_classes: outputs, k.
    rngs: source of the initial weights.
    in_channels: channels of the images; 2 behind a Sobel filter.

  Returns:
    The network, in training mode.

  Raises:
    UserError: as for `backbones.build`.
  """
  backbone = backbones.build(config, rngs, in_channels=in_channels)
  head = heads.LinearHead(backbone.num_features, num_classes, rngs=rngs)
  return Classifier(backbone, head)
