"""Linear classifiers that ask what a frozen network's features tell apart."""

import math
from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from odc_jax.models import norm
from odc_jax.models.heads import LinearHead


class LinearProbes(nnx.Module):
  """Linear classifiers side by side, each on features of its own.

  Source: openselfsup `models/heads/multi_cls_head.py: MultiClsHead` where they
  normalise, `cls_head.py: ClsHead` where they do not.
  """

  def __init__(
    self,
    shapes: Sequence[tuple[int, ...]],
    num_classes: int,
    *,
    normalize: bool,
    rngs: nnx.Rngs,
  ):
    """Creates them.

    Args:
      shapes: of the features of each, for one image: (*space, c).
      num_classes: labels, k.
      normalize: whether a BatchNorm without affine comes first, which has
        statistics of every channel over all places.
      rngs: source of the initial weights.
    """
    self.norms = nnx.List(
      [norm.BatchNorm(shape[-1], affine=False) for shape in shapes]
      if normalize
      else []
    )
    self.heads = nnx.List(
      [LinearHead(math.prod(shape), num_classes, rngs=rngs) for shape in shapes]
    )

  def __call__(
    self, features: list[Float[Array, "b *_"]], rngs: nnx.Rngs | None = None
  ) -> list[Float[Array, "b k"]]:
    """Returns the logits of each.

    Args:
      features: as many as there are classifiers, [b, *space, c].
      rngs: not needed.
    """
    del rngs
    if self.norms:
      features = [
        normalize(x) for normalize, x in zip(self.norms, features, strict=True)
      ]
    return [
      head(x.reshape(x.shape[0], -1))
      for head, x in zip(self.heads, features, strict=True)
    ]
