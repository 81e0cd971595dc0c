"""The common base of all backbones."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Backbone(nnx.Module):
  """Turns images into feature maps, and these into one vector an image.

  A call takes images [b, h, w, c], as many channels as it was built for, and
  returns a list of five feature maps [b, h', w', c'] in the compute dtype, from
  the first layers' to the last.

  Attributes:
    num_features: length of that vector.
  """

  num_features: int

  def stage_maps(
    self, images: Float[Array, "b h w c"]
  ) -> list[Float[Array, "b _ _ _"]]:
    """Returns five maps to put classifiers on: those of a call, most often.

    Args:
      images: normalised.
    """
    return self(images)

  def pooled(self, images: Float[Array, "b h w c"]) -> Float[Array, "b _"]:
    """Returns `num_features` an image, float32: the last map's averages.

    Args:
      images: normalised.
    """
    return mean_over_places(self(images)[-1])


def mean_over_places(
  x: Float[Array, "b h w c"],
) -> Float[Array, "b c"]:
  """Returns a map's averages over space, float32."""
  # In float32: an average over 49 bfloat16 values would be a rough one.
  return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
