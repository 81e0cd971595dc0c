"""Modules behind a backbone: necks, predictors, classifiers, prototypes."""

import itertools
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


class Standardized(nnx.Module):
  """Features with mean 0 and variance 1 in every dimension; nothing to learn.

  In training by the batch's statistics, in evaluation by running ones.
  """

  def __init__(self, num_features: int):
    """Creates the running statistics of features [b, num_features]."""
    self.norms = nnx.List([norm.BatchNorm(num_features, affine=False)])

  def __call__(
    self, features: Float[Array, "b c"], rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b c"]:
    """Returns them standardised, float32; `rngs` is not needed."""
    del rngs
    return self.norms[0](features.astype(jnp.float32))


class Projection(nnx.Module):
  """Linear layers with BatchNorm and ReLU, or GELU, between them.

  The projection of SwAV (`mlp2`), that of CoKe and SeCu on ImageNet (`mlp3`),
  and the predictor of the latter two; without the last bias those of BYOL,
  without the others MIRA's (`mlp3_bias_last`), with GELU CARP's (`mlp3_gelu`),
  and without BatchNorm solo-learn's projection of SimCLR.

  Source: SwAV src/resnet50.py: projection_head; SeCu secu/builder.py,
  secu/builder_imagenet.py; BYOL utils/networks.py: MLP; solo-learn
  methods/simclr.py; CARP modules/carp_head.py.
  """

  def __init__(
    self,
    sizes: Sequence[int],
    *,
    norm_hidden: bool = True,
    norm_last: bool = False,
    bias_hidden: bool = True,
    bias_last: bool = True,
    gelu: bool = False,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the layers.

    Args:
      sizes: of the input, of every hidden layer, and of the output.
      norm_hidden: whether a BatchNorm follows every hidden layer.
      norm_last: whether one follows the last layer too.
      bias_hidden: whether the hidden layers have biases.
      bias_last: whether the last layer has one.
      gelu: whether the hidden layers end in a GELU, the exact one, in place of
        a ReLU; the weights then start as CARP's and DINO's, N(0, 0.02^2).
      dtype: what the layers compute in; parameters are float32.
      rngs: source of the initial weights.
    """
    # torch's default: uniform within 1 / sqrt(fan_in).
    init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    if gelu:
      # Officially cut off at 2, which is a hundred deviations.
      init = nnx.initializers.normal(0.02)
    self.gelu = gelu
    self.layers = nnx.List(
      [
        nnx.Linear(
          size_in,
          size_out,
          use_bias=bias_last if i == len(sizes) - 2 else bias_hidden,
          kernel_init=init,
          dtype=dtype,
          param_dtype=jnp.float32,
          rngs=rngs,
        )
        for i, (size_in, size_out) in enumerate(itertools.pairwise(sizes))
      ]
    )
    normed = sizes[1:-1] if norm_hidden else ()
    if norm_last:
      normed = sizes[1:]
    self.norms = nnx.List([norm.BatchNorm(size) for size in normed])

  def __call__(
    self, x: Float[Array, "b c"], rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b d"]:
    """Projects, float32: [b, c] -> [b, d].

    Args:
      x: features, or embeddings where this is a predictor.
      rngs: not needed.
    """
    del rngs
    for i, layer in enumerate(self.layers):
      x = layer(x)
      if i < len(self.norms):
        x = self.norms[i](x)
      if i < len(self.layers) - 1:
        x = jax.nn.gelu(x, approximate=False) if self.gelu else jax.nn.relu(x)
    return x.astype(jnp.float32)


class FullyConnectedNeck(nnx.Module):
  """The first two fully connected layers of AlexNet and VGG.

  The embeddings are what comes before the second ReLU: DeepCluster clusters
  these. The head begins with that ReLU.

  Source: deepcluster models/alexnet.py, models/vgg16.py, main.py (the last
  ReLU is cut for the features and appended again for training).
  """

  flattens = True

  def __init__(
    self,
    in_features: int,
    hidden: int = 4096,
    out: int = 4096,
    *,
    dropout: float = 0.5,
    drop_input: bool = True,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the layers, N(0, 0.01^2) with bias 0.

    Args:
      in_features: size of the flattened last map.
      hidden: width of the first layer.
      out: of the second, d.
      dropout: probability with which a unit is dropped in training.
      drop_input: whether inputs are dropped too (AlexNet, not VGG).
      dtype: what the layers compute in; parameters are float32.
      rngs: source of the initial weights.
    """

    def linear(size_in: int, size_out: int) -> nnx.Linear:
      return nnx.Linear(
        size_in,
        size_out,
        kernel_init=nnx.initializers.normal(0.01),
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
      )

    self.fc6 = linear(in_features, hidden)
    self.fc7 = linear(hidden, out)
    self.drop = nnx.Dropout(dropout)
    self.drop_input = drop_input

  def __call__(
    self, x: Float[Array, "b m"], rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b d"]:
    """Returns the second layer before its ReLU, float32: [b, m] -> [b, d].

    Args:
      x: the flattened last map.
      rngs: source of the dropout masks; not needed in evaluation.
    """
    if self.drop_input:
      x = self.drop(x, rngs=rngs)
    x = self.drop(jax.nn.relu(self.fc6(x)), rngs=rngs)
    return self.fc7(x).astype(jnp.float32)


class LinearHeads(nnx.Module):
  """Linear classifiers on the same embeddings, one for each clustering."""

  def __init__(
    self,
    in_features: int,
    num_clusters: Sequence[int],
    *,
    relu: bool = False,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates them.

    Args:
      in_features: size of an embedding, d.
      num_clusters: of every clustering, k.
      relu: whether the embeddings first pass a ReLU.
      dtype: what the layers compute in; parameters are float32.
      rngs: source of the initial weights.
    """
    self.heads = nnx.List(
      [LinearHead(in_features, k, dtype=dtype, rngs=rngs) for k in num_clusters]
    )
    self.relu = relu

  def __call__(self, x: Float[Array, "b d"]) -> tuple[Array, ...]:
    """Returns the logits, float32: [b, d] -> [b, k] for each clustering."""
    if self.relu:
      x = jax.nn.relu(x)
    return tuple(head(x) for head in self.heads)

  def prototypes(self) -> tuple[Array, ...]:
    """Returns (): these have biases, and their lengths mean something."""
    return ()


class Prototypes(nnx.Module):
  """Vectors whose dot products with the embeddings are the logits.

  Source: SwAV src/resnet50.py: MultiPrototypes. The step keeps them at unit
  length (`methods.swav.prepare`).
  """

  def __init__(
    self,
    in_features: int,
    num_clusters: Sequence[int],
    *,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates them.

    Args:
      in_features: size of an embedding, d.
      num_clusters: of every clustering, k.
      dtype: what the products are computed in; parameters are float32.
      rngs: source of the initial weights.
    """
    init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    self.kernels = nnx.List(
      [
        nnx.Param(init(rngs.params(), (in_features, k), jnp.float32))
        for k in num_clusters
      ]
    )
    self.dtype = dtype

  def __call__(self, x: Float[Array, "b d"]) -> tuple[Array, ...]:
    """Returns the logits, float32: [b, d] -> [b, k] for each clustering."""
    return tuple(_scores(x, kernel[...], self.dtype) for kernel in self.kernels)

  def prototypes(self) -> tuple[Array, ...]:
    """Returns the vectors, [k, d] for each clustering."""
    return tuple(kernel[...].T for kernel in self.kernels)


class UnitPrototypes(Prototypes):
  """Vectors that are scaled to unit length where they are used.

  Their own lengths remain, and matter to LARS and to weight decay. Source:
  torch's weight_norm with g = 1 fixed, as MIRA and CARP have it.
  """

  def __call__(self, x: Float[Array, "b d"]) -> tuple[Array, ...]:
    """Returns the logits, float32: [b, d] -> [b, k] for each clustering."""
    return tuple(_scores(x, unit.T, self.dtype) for unit in self.prototypes())

  def prototypes(self) -> tuple[Array, ...]:
    """Returns the unit vectors, [k, d] for each clustering."""
    return _unit_rows(self.kernels)


class Centers(nnx.Module):
  """Unit vectors that learn from the logits; the embeddings do not.

  Source: SeCu secu/builder.py: the centres are parameters, normalised where
  they are used, and meet detached features.
  """

  def __init__(
    self, in_features: int, num_clusters: Sequence[int], *, rngs: nnx.Rngs
  ):
    """Creates them: normal, scaled to unit length.

    Args:
      in_features: size of an embedding, d.
      num_clusters: of every clustering, k.
      rngs: source of the initial weights.
    """

    def centers(k):
      x = jax.random.normal(rngs.params(), (in_features, k))
      return nnx.Param(x / jnp.linalg.norm(x, axis=0, keepdims=True))

    self.kernels = nnx.List([centers(k) for k in num_clusters])

  def __call__(self, x: Float[Array, "b d"]) -> tuple[Array, ...]:
    """Returns cosines of unit rows, float32: [b, d] -> [b, k] each."""
    x = jax.lax.stop_gradient(x)
    return tuple(
      jnp.matmul(x, center.T, precision="highest")
      for center in self.prototypes()
    )

  def prototypes(self) -> tuple[Array, ...]:
    """Returns the unit vectors, [k, d] for each clustering."""
    return _unit_rows(self.kernels)


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
    fc: Any = self.fc
    logits = _scores(x, fc.kernel[...], fc.dtype or jnp.float32)
    return logits + fc.bias[...][None]


def _unit_rows(kernels: Any) -> tuple[Array, ...]:
  """Returns the columns of matrices at unit length: [d, k] -> [k, d] each."""
  return tuple(
    (kernel[...] / jnp.linalg.norm(kernel[...], axis=0, keepdims=True)).T
    for kernel in kernels
  )


def _scores(x: Array, kernel: Array, dtype: Any) -> Array:
  """Returns x @ kernel, of factors in `dtype`, as float32: [b, d] -> [b, k].

  Left in bfloat16 the sums would have three digits, and SwAV's codes, which
  divide them by 0.05, be wrong by factors of up to e^0.08. The official codes
  compute in float16, or wholly in float32.
  """
  return jnp.matmul(
    x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32
  )
