"""What sits on a backbone: ODC's neck, and linear classifiers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odc_jax.models import norm


class NonLinearNeck(nnx.Module):
  """fc, BatchNorm without affine, ReLU, dropout, fc, ReLU.

  The last ReLU makes the embeddings non-negative, and with them every row of
  ODC's sample memory.

  Source: OpenSelfSup `models/necks.py: NonLinearNeckV0`.
  """

  def __init__(
    self,
    in_features: int,
    hidden: int = 512,
    out: int = 256,
    *,
    dropout: float = 0.5,
    bn_momentum: float = 0.001,
    group_size: int = 0,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the neck.

    Args:
      in_features: channels of the pooled backbone, c.
      hidden: width between the two layers, m.
      out: size of an embedding, d.
      dropout: probability with which a hidden unit is dropped in training.
      bn_momentum: weight of a batch in the running statistics. Officially a
        hundredth of the usual one.
      group_size: examples that share BatchNorm statistics; 0 means all. The
        official code does not synchronise this layer.
      dtype: what the layers compute in; parameters are float32.
      rngs: source of the initial weights.
    """

    def linear(size_in: int, size_out: int) -> nnx.Linear:
      # A plain normal, as torch's kaiming_normal_, and not Flax's he_normal,
      # which cuts the tails. The bias is 0.
      init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
      return nnx.Linear(
        size_in,
        size_out,
        kernel_init=init,
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
      )

    self.fc0 = linear(in_features, hidden)
    self.bn0 = norm.BatchNorm(
      hidden, momentum=bn_momentum, affine=False, group_size=group_size
    )
    # Given no generator of its own: the caller's key decides every mask.
    self.drop = nnx.Dropout(dropout)
    self.fc1 = linear(hidden, out)

  def hidden(self, features: Float[Array, "b c"]) -> Float[Array, "b m"]:
    """Returns the hidden units before dropout: [b, c] -> [b, m]."""
    return jax.nn.relu(self.bn0(self.fc0(features)))

  def project(self, z: Float[Array, "b m"]) -> Float[Array, "b d"]:
    """Returns the embeddings of hidden units, float32: [b, m] -> [b, d]."""
    return jax.nn.relu(self.fc1(z)).astype(jnp.float32)

  def __call__(
    self, features: Float[Array, "b c"], rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b d"]:
    """Computes the embeddings.

    Args:
      features: pooled output of the backbone, [b, c].
      rngs: source of the dropout mask; not needed in evaluation.

    Returns:
      Embeddings, not normalised, float32, [b, d].

    Raises:
      ValueError: in training with dropout, if there is no `rngs`.
    """
    return self.project(self.drop(self.hidden(features), rngs=rngs))


class LinearHead(nnx.Module):
  """One linear layer, initially N(0, 0.01^2) with bias 0.

  Source: openselfsup `models/heads/cls_head.py: ClsHead`.
  """

  def __init__(
    self,
    in_features: int,
    num_classes: int,
    *,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: size of an embedding, d.
      num_classes: clusters or labels, k.
      dtype: what the layer computes in; parameters are float32.
      rngs: source of the initial weights.
    """
    self.fc = nnx.Linear(
      in_features,
      num_classes,
      kernel_init=nnx.initializers.normal(0.01),
      dtype=dtype,
      param_dtype=jnp.float32,
      rngs=rngs,
    )

  def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
    """Returns the logits, float32: [b, d] -> [b, k]."""
    return self.fc(x).astype(jnp.float32)


class LinearProbes(nnx.Module):
  """Linear classifiers side by side, each on features of its own.

  Source: openselfsup `models/heads/multi_cls_head.py: MultiClsHead` where they
  normalise, `cls_head.py: ClsHead` where they do not.
  """

  def __init__(
    self,
    sizes: Sequence[int],
    num_classes: int,
    *,
    normalize: bool,
    rngs: nnx.Rngs,
  ):
    """Creates them.

    Args:
      sizes: of the features of each.
      num_classes: labels, k.
      normalize: whether a BatchNorm without affine comes first.
      rngs: source of the initial weights.
    """
    self.norms = nnx.List(
      [norm.BatchNorm(size, affine=False) for size in sizes]
      if normalize
      else []
    )
    self.heads = nnx.List(
      [LinearHead(size, num_classes, rngs=rngs) for size in sizes]
    )

  def __call__(
    self, features: list[Float[Array, "b _"]], rngs: nnx.Rngs | None = None
  ) -> list[Float[Array, "b k"]]:
    """Returns the logits of each.

    Args:
      features: as many as there are classifiers, [b, d].
      rngs: not needed.
    """
    del rngs
    if self.norms:
      features = [
        normalize(x) for normalize, x in zip(self.norms, features, strict=True)
      ]
    return [head(x) for head, x in zip(self.heads, features, strict=True)]
