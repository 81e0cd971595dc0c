"""ConvNeXt: a convolutional network with the parts of a transformer.

Attributes bear timm's names; a weight's path is its name there but for the last
part.

Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022; timm
models/convnext.py.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odc_jax.models import convolution
from odc_jax.models.backbone import Backbone, mean_over_places

_INIT = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What tells one ConvNeXt from another; those of ConvNeXt-T.

  Attributes:
    depths: blocks in each of the four stages.
    dims: channels of each.
    eps: of the norms.
  """

  depths: tuple[int, ...] = (3, 3, 9, 3)
  dims: tuple[int, ...] = (96, 192, 384, 768)
  eps: float = 1e-6

  def scaled(self, width: int) -> "Settings":
    """Returns a network with channels in proportion; 64 for these ones."""
    dims = tuple(max(1, dim * width // 64) for dim in self.dims)
    return dataclasses.replace(self, dims=dims)


def describe(shapes: Mapping[str, tuple[int, ...]]) -> Settings:
  """Reads a file's architecture off its names and shapes.

  Args:
    shapes: timm's name -> shape in PyTorch, of all arrays.
  """
  blocks = [
    {match[1] for name in shapes if (match := re.match(pattern, name))}
    for pattern in (rf"stages\.{i}\.blocks\.(\d+)\." for i in range(4))
  ]
  dims = [shapes[f"stages.{i}.blocks.0.conv_dw.weight"][0] for i in range(4)]
  return Settings(tuple(map(len, blocks)), tuple(dims))


class Block(nnx.Module):
  """A kernel for every channel, then an MLP, beside the identity."""

  def __init__(self, dim: int, *, conv: Any, linear: Any, norm: Any):
    """Creates the layers."""
    self.conv_dw = conv(dim, dim, 7, padding=3, feature_group_count=dim)
    self.norm = norm(dim)
    self.mlp = nnx.Dict(fc1=linear(dim, 4 * dim), fc2=linear(4 * dim, dim))
    self.gamma = nnx.Param(jnp.full(dim, 1e-6, jnp.float32))

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Applies the block."""
    y = self.mlp.fc1(self.norm(self.conv_dw(x)))
    y = self.mlp.fc2(jax.nn.gelu(y, approximate=False))
    return x + y * self.gamma[...][None, None, None].astype(x.dtype)


class Stage(nnx.Module):
  """Halves the map, but for the first stage's, and applies its blocks."""

  def __init__(self, inputs: int, dim: int, depth: int, **layers: Any):
    """Creates the layers; `inputs` is 0 in the first stage."""
    self.downsample = nnx.List([])
    if inputs:
      halve = layers["conv"](inputs, dim, 2, strides=2)
      self.downsample = nnx.List([layers["norm"](inputs), halve])
    self.blocks = nnx.List([Block(dim, **layers) for _ in range(depth)])

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
    """Applies the stage: [b, h, w, inputs] -> [b, h/2, w/2, dim]."""
    for layer in [*self.downsample, *self.blocks]:
      x = layer(x)
    return x


class ConvNeXt(Backbone):
  """A ConvNeXt without its classifier."""

  def __init__(
    self,
    settings: Settings | None = None,
    *,
    in_channels: int = 3,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the network.

    Args:
      settings: of the architecture; those of ConvNeXt-T if left out.
      in_channels: channels of the images.
      dtype: what is computed in, and the maps'. Parameters and the statistics
        of norms are float32 in any case.
      rngs: source of the initial weights.
    """
    s = settings or Settings()
    types = {"dtype": dtype, "param_dtype": jnp.float32, "rngs": rngs}

    def conv(inputs, outputs, size, padding="VALID", **kwargs):
      return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        padding=padding,
        kernel_init=_INIT,
        conv_general_dilated=convolution.convolve,
        **types,
        **kwargs,
      )

    linear = functools.partial(nnx.Linear, kernel_init=_INIT, **types)
    norm = functools.partial(
      nnx.LayerNorm, epsilon=s.eps, use_fast_variance=False, **types
    )
    first = conv(in_channels, s.dims[0], 4, strides=4)
    self.stem = nnx.List([first, norm(s.dims[0])])
    self.stages = nnx.List(
      [
        Stage(inputs, dim, depth, conv=conv, linear=linear, norm=norm)
        for inputs, dim, depth in zip(
          (0, *s.dims), s.dims, s.depths, strict=False
        )
      ]
    )
    self.num_features = s.dims[-1]
    self.head = nnx.Dict(norm=norm(self.num_features, dtype=jnp.float32))

  def __call__(
    self, images: Float[Array, "b h w c"]
  ) -> list[Float[Array, "b _ _ _"]]:
    """Computes the feature maps.

    Args:
      images: normalised, [b, h, w, in_channels].

    Returns:
      Five maps in the compute dtype: the stem's, then those of the stages.
    """
    x = images
    for layer in self.stem:
      x = layer(x)
    maps = [x]
    for stage in self.stages:
      maps.append(stage(maps[-1]))
    return maps

  def pooled(self, images: Float[Array, "b h w c"]) -> Float[Array, "b _"]:
    """Averages the last map and normalises the average, float32.

    Args:
      images: normalised.
    """
    mean = mean_over_places(self(images)[-1])
    return self.head.norm(mean).astype(jnp.float32)
