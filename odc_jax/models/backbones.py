"""All backbones, by the names that a config has for them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import ml_collections
from flax import nnx

from odc_jax.errors import UserError
from odc_jax.models import (
  alexnet,
  convnext,
  efficientnet_lite,
  given,
  plain,
  resnet,
  vgg,
  vit,
  vit_settings,
)
from odc_jax.models.backbone import Backbone

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# The name of what stands for a network where features come from elsewhere.
FEATURES = "features"

# The layers of those that are one convolution upon another, whose maps shrink
# until nothing is left of a small image.
STACKS: dict[str, plain.Stages] = {
  "alexnet": alexnet.STAGES,
  "vgg16": vgg.STAGES,
}


def _resnet(make, section, **arguments):
  init = section.get("init", "fan_in")
  check_choice("init", init, resnet.INITS)
  return make(stem=section.stem, width=section.width, init=init, **arguments)


def _stack(make, section, **arguments):
  return make(width=section.width, **arguments)


def _efficientnet_lite(section, **arguments):
  settings = _settings(efficientnet_lite.Settings, section)
  return efficientnet_lite.EfficientNetLite(
    section.name, settings, width=section.width, **arguments
  )


def _vit(section, **arguments):
  settings = _settings(vit_settings.Settings, section)
  return vit.ViT(settings.scaled(section.width), **arguments)


def _convnext(section, **arguments):
  settings = _settings(convnext.Settings, section)
  return convnext.ConvNeXt(settings.scaled(section.width), **arguments)


def _given(section, **_):
  return given.Given(_settings(given.Settings, section))


def _settings(kind: Any, section: Any) -> Any:
  """Returns what `model.settings` holds, a `kind`; its defaults for the rest.

  Raises:
    UserError: There is a setting that a `kind` does not have.
  """
  given = {
    name: tuple(value) if isinstance(value, list | tuple) else value
    for name, value in dict(section.get("settings", {})).items()
  }
  known = [field.name for field in dataclasses.fields(kind)]
  for name in given:
    check_choice(f"settings of {section.name}:", name, known)
  return kind(**given)


# (section `model`, in_channels=, dtype=, rngs=) -> Backbone.
BACKBONES: dict[str, Callable[..., Backbone]] = {
  **{
    name: functools.partial(_resnet, make)
    for name, make in resnet.RESNETS.items()
  },
  "alexnet": functools.partial(_stack, alexnet.AlexNet),
  "vgg16": functools.partial(_stack, vgg.VGG16),
  **dict.fromkeys(efficientnet_lite.MULTIPLES, _efficientnet_lite),
  "vit": _vit,
  "convnext": _convnext,
  FEATURES: _given,
}


def build(
  config: ml_collections.ConfigDict, rngs: nnx.Rngs, *, in_channels: int = 3
) -> Any:
  """Builds the backbone that a config describes.

  Args:
    config: section with the keys `name`, `stem`, `width` and `dtype`; perhaps
      `init` ("fan_in" if left out), which a ResNet starts from; and perhaps
      `settings`, what the network differs in from others of its name:
      the fields of `Settings` in `vit_settings`, `convnext`,
      `efficientnet_lite` and `given`. The width is 64 for the published
      channels, to which all layers are proportional.
    rngs: source of the initial weights.
    in_channels: channels of the images; 2 behind a Sobel filter.

  Returns:
    The backbone, in training mode.

  Raises:
    UserError: if `name`, `stem`, `dtype`, `init` or a setting is not one that
      there is.
  """
  section: Any = config
  check_choice("name", section.name, BACKBONES)
  stems = resnet.STEMS if section.name in resnet.RESNETS else resnet.STEMS[:1]
  if section.stem not in stems:
    raise UserError(
      f"{section.name} has no stem {section.stem!r}; "
      f"--config.model.stem={' or '.join(stems)}"
    )
  check_choice("dtype", section.dtype, DTYPES)
  return BACKBONES[section.name](
    section, in_channels=in_channels, dtype=DTYPES[section.dtype], rngs=rngs
  )


def input_shape(
  config: ml_collections.ConfigDict, image_size: int
) -> tuple[tuple[int, ...], Any]:
  """Returns the shape and the type of one image as a network is given it.

  Args:
    config: as for `build`.
    image_size: side of the images; not of features from elsewhere.
  """
  section: Any = config
  if section.name == FEATURES:
    return (_settings(given.Settings, section).size,), jnp.float32
  return (image_size, image_size, 3), jnp.uint8


def num_features(config: ml_collections.ConfigDict) -> int:
  """Returns the length of a backbone's features; no weight is computed.

  Args:
    config: as for `build`.

  Raises:
    UserError: as `build`.
  """
  return nnx.eval_shape(lambda: build(config, nnx.Rngs(0))).num_features


def check_image_size(
  config: ml_collections.ConfigDict, image_size: int
) -> None:
  """Raises a UserError where a network cannot take images of a size.

  Args:
    config: as for `network.build`.
    image_size: side of the images.
  """
  section: Any = config
  if section.name == "vit":
    settings = _settings(vit_settings.Settings, section)
    vit_settings.check_image_size(settings, (image_size,))
  if section.name not in STACKS:
    return
  found, made_for = (
    plain.last_side(STACKS[section.name], size)
    for size in (image_size, plain.PUBLISHED_SIZE)
  )
  remedy = f"take --config.data.image_size={plain.PUBLISHED_SIZE}"
  if not found:
    raise UserError(
      f"{section.name} leaves nothing of images of data.image_size={image_size}"
      f"; {remedy}"
    )
  if section.get("neck") == "fc" and found != made_for:
    raise UserError(
      f"data.image_size={image_size} gives {section.name} a last map of "
      f"{found} x {found}, but model.neck='fc' takes {made_for} x {made_for}; "
      f"{remedy}, or another neck"
    )


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
  """Raises a UserError that names the choices, if `value` is not among them.

  Args:
    key: of the section `model`, that has the value.
    value: what was chosen.
    choices: what there is.
  """
  if value not in choices:
    raise UserError(
      f"unknown model {key} {value!r}; choose one of {', '.join(choices)}"
    )
