"""VGG-16 with BatchNorm, equal to torchvision's `vgg16_bn`.

Source: Simonyan & Zisserman, "Very deep convolutional networks for large-scale
image recognition", ICLR 2015, configuration D, with BatchNorm behind every
convolution as in the official DeepCluster code (deepcluster models/vgg16.py).
The fully connected layers are `heads.FullyConnectedNeck`.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from odc_jax.models.plain import PUBLISHED_WIDTH, Conv, Pool, Stack

STAGES = (
  (Conv(64, 3), Conv(64, 3)),
  (Pool(2), Conv(128, 3), Conv(128, 3)),
  (Pool(2), Conv(256, 3), Conv(256, 3), Conv(256, 3)),
  (Pool(2), Conv(512, 3), Conv(512, 3), Conv(512, 3)),
  (Pool(2), Conv(512, 3), Conv(512, 3), Conv(512, 3), Pool(2)),
)


class VGG16(Stack):
  """The five blocks, with 13 convolutions.

  Attributes:
    drops_input: whether dropout comes before the first fully connected layer.
  """

  drops_input = False

  def __init__(
    self,
    *,
    width: int = PUBLISHED_WIDTH,
    in_channels: int = 3,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the network.

    Args:
      width: channels of the first block, 64 as published; the others are
        proportional.
      in_channels: channels of the images; 2 behind a Sobel filter.
      dtype: what convolutions compute in.
      rngs: source of the initial weights.
    """
    super().__init__(
      STAGES, width=width, in_channels=in_channels, dtype=dtype, rngs=rngs
    )
