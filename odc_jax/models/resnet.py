"""ResNet-18, -34 and -50, equal to torchvision's down to the padding.

Source: He et al., "Deep residual learning for image recognition", CVPR 2016,
in the form that the official ODC code uses (openselfsup, `style='pytorch'`,
also called v1.5): a bottleneck strides in its 3x3 convolution.

Attributes bear torchvision's names, so that a weight's path here is its name
there but for the last part (`kernel` is `weight`, and a BatchNorm's `scale`,
`mean`, `var` are `weight`, `running_mean`, `running_var`).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odc_jax.models import convolution, norm
from odc_jax.models.backbone import Backbone

STEMS = ("imagenet", "small")

# How kernels start, as arguments of `variance_scaling`. What the variance keeps
# is that of the outputs (OpenSelfSup) or of the gradients (torchvision, and the
# codes of SwAV, CoKe and SeCu); SeLa's leaves PyTorch's default.
INITS: dict[str, tuple[float, Any, Any]] = {
  "fan_in": (2.0, "fan_in", "normal"),
  "fan_out": (2.0, "fan_out", "normal"),
  "torch": (1 / 3, "fan_in", "uniform"),
}


def relu(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Returns max(x, 0), in a form that XLA computes once.

  The gradient of a kernel takes the convolution's input transposed. For that
  XLA works `jax.nn.relu`, which has one operand, out again, together with the
  normalisation before it; on a CPU that reads memory in long strides and takes
  a seventh of the step. What has two operands of full size, as the selection
  here, it works out once. A NaN stays one.
  """
  return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


def _conv(
  in_features: int,
  out_features: int,
  size: int,
  stride: int = 1,
  *,
  init: Any,
  dtype: Any,
  rngs: nnx.Rngs,
) -> nnx.Conv:
  """Returns a square convolution without bias, padded as torch pads."""
  return nnx.Conv(
    in_features,
    out_features,
    (size, size),
    strides=stride,
    # Not "SAME", which at stride 2 pads right and bottom only.
    padding=size // 2,
    use_bias=False,
    # A plain normal, as torch's kaiming_normal_. Flax's he_normal cuts the
    # tails.
    kernel_init=nnx.initializers.variance_scaling(*INITS[init]),
    conv_general_dilated=convolution.convolve,
    dtype=dtype,
    param_dtype=jnp.float32,
    rngs=rngs,
  )


class _Block(nnx.Module):
  """The base of both kinds of residual block: the shortcut."""

  expansion: int

  def __init__(
    self,
    in_features: int,
    width: int,
    stride: int,
    *,
    init: str,
    dtype: Any,
    rngs: nnx.Rngs,
  ):
    """Creates the shortcut's projection where the shape changes."""
    out_features = width * self.expansion
    self.downsample = nnx.List([])
    if stride != 1 or in_features != out_features:
      self.downsample = nnx.List(
        [
          _conv(
            in_features,
            out_features,
            1,
            stride,
            init=init,
            dtype=dtype,
            rngs=rngs,
          ),
          norm.BatchNorm(out_features),
        ]
      )

  def shortcut(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
    """Returns `x`, brought to the shape of the block's output."""
    for module in self.downsample:
      x = module(x)
    return x


class BasicBlock(_Block):
  """Two 3x3 convolutions; the first strides."""

  expansion = 1

  def __init__(
    self,
    in_features: int,
    width: int,
    stride: int,
    *,
    init: str,
    dtype: Any,
    rngs: nnx.Rngs,
  ):
    """Creates the block: `in_features` channels in, `width` out."""
    types = {"init": init, "dtype": dtype, "rngs": rngs}
    conv = functools.partial(_conv, **types)
    self.conv1 = conv(in_features, width, 3, stride)
    self.bn1 = norm.BatchNorm(width)
    self.conv2 = conv(width, width, 3)
    self.bn2 = norm.BatchNorm(width)
    super().__init__(in_features, width, stride, **types)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
    """Applies the block: [b, h, w, c] -> [b, h/stride, w/stride, width]."""
    y = relu(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    return relu(y + self.shortcut(x))


class Bottleneck(_Block):
  """1x1, 3x3, 1x1 convolutions; the 3x3 strides (v1.5)."""

  expansion = 4

  def __init__(
    self,
    in_features: int,
    width: int,
    stride: int,
    *,
    init: str,
    dtype: Any,
    rngs: nnx.Rngs,
  ):
    """Creates the block: `in_features` channels in, 4 `width` out."""
    types = {"init": init, "dtype": dtype, "rngs": rngs}
    conv = functools.partial(_conv, **types)
    self.conv1 = conv(in_features, width, 1)
    self.bn1 = norm.BatchNorm(width)
    self.conv2 = conv(width, width, 3, stride)
    self.bn2 = norm.BatchNorm(width)
    self.conv3 = conv(width, width * self.expansion, 1)
    self.bn3 = norm.BatchNorm(width * self.expansion)
    super().__init__(in_features, width, stride, **types)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
    """Applies the block: [b, h, w, c] -> [b, h/stride, w/stride, 4 width]."""
    y = relu(self.bn1(self.conv1(x)))
    y = relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return relu(y + self.shortcut(x))


class ResNet(Backbone):
  """A residual network without its classifier.

  Attributes:
    num_features: channels of the last feature map.
  """

  def __init__(
    self,
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    *,
    stem: str = "imagenet",
    width: int = 64,
    in_channels: int = 3,
    init: str = "fan_in",
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the network.

    Args:
      block: what the stages are built from.
      depths: blocks in each of the four stages.
      stem: "imagenet" reduces fourfold before the first stage (7x7 at stride
        2, then max-pooling); "small", for images of about 32 pixels, not at
        all (3x3 at stride 1).
      width: channels of the stem; the stages scale with it.
      in_channels: channels of the images.
      init: one of `INITS`: kernels are N(0, 2 / fan), or uniform within
        1 / sqrt(fan_in).
      dtype: what convolutions compute in. Parameters and the statistics of
        BatchNorm are float32 in any case.
      rngs: source of the initial weights.

    Raises:
      ValueError: if `stem` is not one of `STEMS`, or `init` of `INITS`.
    """
    if stem not in STEMS:
      raise ValueError(f"unknown stem {stem!r}; one of {', '.join(STEMS)}")
    if init not in INITS:
      raise ValueError(f"unknown init {init!r}; one of {', '.join(INITS)}")
    self.stem = stem
    types = {"init": init, "dtype": dtype, "rngs": rngs}
    size, stride = (7, 2) if stem == "imagenet" else (3, 1)
    self.conv1 = _conv(in_channels, width, size, stride, **types)
    self.bn1 = norm.BatchNorm(width)

    features = width
    stages = []
    for i, depth in enumerate(depths):
      blocks = []
      for j in range(depth):
        stride = 2 if i > 0 and j == 0 else 1
        blocks.append(block(features, width * 2**i, stride, **types))
        features = width * 2**i * block.expansion
      stages.append(nnx.List(blocks))
    self.layer1, self.layer2, self.layer3, self.layer4 = stages
    self.num_features = features

  def __call__(
    self, images: Float[Array, "b h w c"]
  ) -> list[Float[Array, "b _ _ _"]]:
    """Computes the feature maps.

    Args:
      images: normalised, [b, h, w, in_channels].

    Returns:
      Five maps in the compute dtype: the stem's after its ReLU and before
      any pooling, then those of the four stages. Each is [b, h', w', c].
    """
    x = relu(self.bn1(self.conv1(images)))
    maps = [x]
    if self.stem == "imagenet":
      x = convolution.max_pool(x, 3, stride=2, padding=1)
    for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
      for block in stage:
        x = block(x)
      maps.append(x)
    return maps


RESNETS = {
  "resnet18": functools.partial(ResNet, BasicBlock, (2, 2, 2, 2)),
  "resnet34": functools.partial(ResNet, BasicBlock, (3, 4, 6, 3)),
  "resnet50": functools.partial(ResNet, Bottleneck, (3, 4, 6, 3)),
}
