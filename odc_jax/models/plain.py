"""Convolutions on top of each other, as AlexNet and VGG have them.

The layers are numbered as in torch's `nn.Sequential`, which is the reason why
ReLUs and poolings are modules here: a weight's path is its official name but
for the last part ("features.4.kernel" is "features.4.weight").
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odc_jax.models import convolution, norm, resnet
from odc_jax.models.backbone import Backbone

# Channels are as published at this width, and proportional to it.
PUBLISHED_WIDTH = 64

# Side of the images that the published fully connected layers are made for.
PUBLISHED_SIZE = 224

# A plain normal of variance 2 / (k^2 C_out), as `_initialize_weights` has it.
_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(NamedTuple):
  """A convolution with bias, which BatchNorm and ReLU follow.

  Attributes:
    channels: that come out of it, at the published width.
    size: of its square kernel.
    stride: of the kernel.
    padding: on every side.
  """

  channels: int
  size: int
  stride: int = 1
  padding: int = 1


class Pool(NamedTuple):
  """A max-pooling at stride 2, without padding.

  Attributes:
    size: of its square windows.
  """

  size: int


# Five of them: the layers that lead from one feature map to the next.
Stages = Sequence[Sequence[Conv | Pool]]


class ReLU(nnx.Module):
  """max(x, 0)."""

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Applies it: [b, h, w, c] -> [b, h, w, c]."""
    return resnet.relu(x)


class MaxPool(nnx.Module):
  """Maxima over square windows at stride 2, without padding."""

  def __init__(self, size: int):
    """Keeps the side of a window, `size`."""
    self.size = size

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """Pools; what no whole window covers at the right and below is lost."""
    return convolution.max_pool(x, self.size, stride=2)


class Stack(Backbone):
  """Convolutions, each with BatchNorm and ReLU, and poolings between them.

  Attributes:
    num_features: channels of the last feature map.
    num_flat: numbers in the last map of an image of the published size.
  """

  def __init__(
    self,
    stages: Stages,
    *,
    width: int = PUBLISHED_WIDTH,
    in_channels: int = 3,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the layers.

    Args:
      stages: what they are; each begins with a convolution or a pooling, and
        ends with a convolution, but for the last, which ends with a pooling.
      width: the channels are proportional to it.
      in_channels: channels of the images.
      dtype: what convolutions compute in. Parameters and the statistics of
        BatchNorm are float32 in any case.
      rngs: source of the initial weights.
    """
    features, layers, ends = in_channels, [], []
    for stage in stages:
      for layer in stage:
        if isinstance(layer, Pool):
          layers.append(MaxPool(layer.size))
          continue
        channels = scaled(layer.channels, width)
        conv = nnx.Conv(
          features,
          channels,
          (layer.size, layer.size),
          strides=layer.stride,
          padding=layer.padding,
          kernel_init=_INIT,
          conv_general_dilated=convolution.convolve,
          dtype=dtype,
          param_dtype=jnp.float32,
          rngs=rngs,
        )
        layers += [conv, norm.BatchNorm(channels), ReLU()]
        features = channels
      ends.append(len(layers) - 1)
    self.features = nnx.List(layers)
    self.ends = tuple(ends)
    self.num_features = features
    self.num_flat = features * last_side(stages, PUBLISHED_SIZE) ** 2

  def __call__(
    self, images: Float[Array, "b h w c"]
  ) -> list[Float[Array, "b _ _ _"]]:
    """Computes the feature maps.

    Args:
      images: normalised, [b, h, w, in_channels].

    Returns:
      Five maps in the compute dtype, each [b, h', w', c]: the first four as
      they come out of a ReLU, before any pooling; the last behind the last
      pooling, as the fully connected layers take it.
    """
    return self._maps(images, self.ends)

  def stage_maps(
    self, images: Float[Array, "b h w c"]
  ) -> list[Float[Array, "b _ _ _"]]:
    """Returns the five maps as they come out of a ReLU, the last one too.

    Args:
      images: normalised, [b, h, w, in_channels].

    Source: deepcluster eval_linear.py (`forward`).
    """
    # Behind the last ReLU comes the last pooling.
    return self._maps(images, (*self.ends[:-1], self.ends[-1] - 1))

  def _maps(self, images, ends):
    """Returns what comes out of some of the layers."""
    x, maps = images, []
    for i, layer in enumerate(self.features):
      x = layer(x)
      if i in ends:
        maps.append(x)
    return maps


def scaled(channels: int, width: int) -> int:
  """Returns the channels that a layer has at a width."""
  return max(1, channels * width // PUBLISHED_WIDTH)


def last_side(stages: Stages, image_size: int) -> int:
  """Returns the side of the last map, 0 where nothing is left of an image.

  Args:
    stages: the layers.
    image_size: side of the images.
  """
  side = image_size
  for layer in (layer for stage in stages for layer in stage):
    if isinstance(layer, Pool):
      side = (side - layer.size) // 2 + 1
    else:
      side = (side + 2 * layer.padding - layer.size) // layer.stride + 1
    if side < 1:
      return 0
  return side
