"""AlexNet with BatchNorm, as DeepCluster trains it.

Source: Krizhevsky et al., "ImageNet classification with deep convolutional
neural networks", NIPS 2012, in the form of the official DeepCluster code
(deepcluster models/alexnet.py): BatchNorm behind every convolution, no groups,
and no local response normalisation. The fully connected layers are
`heads.FullyConnectedNeck`.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from odc_jax.models.plain import PUBLISHED_WIDTH, Conv, Pool, Stack

STAGES = (
  (Conv(96, 11, stride=4, padding=2),),
  (Pool(3), Conv(256, 5, padding=2)),
  (Pool(3), Conv(384, 3)),
  (Conv(384, 3),),
  (Conv(256, 3), Pool(3)),
)


class AlexNet(Stack):
  """The five convolutions.

  Attributes:
    drops_input: whether dropout comes before the first fully connected layer.
  """

  drops_input = True

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
      width: 64 for the published channels, 96 in the first layer; the others
        are proportional.
      in_channels: channels of the images; 2 behind a Sobel filter.
      dtype: what convolutions compute in.
      rngs: source of the initial weights.
    """
    super().__init__(
      STAGES, width=width, in_channels=in_channels, dtype=dtype, rngs=rngs
    )
