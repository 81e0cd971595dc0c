"""Many small clusterers on the same embeddings, in one batched product."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Perceptrons(nnx.Module):
  """Linear layers with GELU between them, of every head its own.

  Weights of all heads lie in one array, so that a layer of all of them is one
  product: of the first layer a plain one, as all heads see the same rows.
  """

  def __init__(
    self,
    num_heads: int,
    sizes: Sequence[int],
    *,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the layers, N(0, 0.02^2) with bias 0.

    Args:
      num_heads: h.
      sizes: of the input, of every hidden layer, and of the output.
      dtype: what the products are computed in; parameters are float32.
      rngs: source of the initial weights.
    """
    init = nnx.initializers.normal(0.02)
    pairs = list(itertools.pairwise(sizes))
    self.kernels = nnx.List(
      [
        nnx.Param(init(rngs.params(), (num_heads, *pair), jnp.float32))
        for pair in pairs
      ]
    )
    self.biases = nnx.List(
      [nnx.Param(jnp.zeros((num_heads, size))) for _, size in pairs]
    )
    self.dtype = dtype

  def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "h b m"]:
    """Returns what each head makes of the rows, float32."""
    pattern = "bd,hdm->hbm"
    for kernel, bias in zip(self.kernels, self.biases, strict=True):
      if pattern == "hbd,hdm->hbm":
        x = jax.nn.gelu(x, approximate=False)
      x = _product(pattern, x, kernel[...], self.dtype)
      x = x + bias[...][:, None, :]
      pattern = "hbd,hdm->hbm"
    return x


class ClusterHeads(nnx.Module):
  """Heads of TEMI, which are DINO's: an MLP, unit rows, unit directions.

  logit_k = g_k <v_k / |v_k|, z / |z|>, z = mlp(x).

  Source: TEMI model_builders/multi_head.py: DINOHead.
  """

  def __init__(
    self,
    in_features: int,
    num_clusters: int,
    *,
    num_heads: int,
    hidden: Sequence[int] = (512,),
    bottleneck: int = 256,
    scaled: bool = True,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates them.

    Args:
      in_features: size of an embedding, d.
      num_clusters: k.
      num_heads: h.
      hidden: widths of the hidden layers of each.
      bottleneck: size of z.
      scaled: whether g, which starts at 1, is learnt; else it stays 1.
      dtype: what the products are computed in; parameters are float32.
      rngs: source of the initial weights.
    """
    self.mlp = Perceptrons(
      num_heads,
      (in_features, *hidden, bottleneck),
      dtype=dtype,
      rngs=rngs,
    )
    self.last = Directions(
      num_heads, bottleneck, num_clusters, scaled=scaled, dtype=dtype, rngs=rngs
    )

  def __call__(self, x: Float[Array, "b d"]) -> tuple[Array, ...]:
    """Returns the logits, float32: [b, d] -> [b, k] for each head."""
    return tuple(self.last(_unit(self.mlp(x))))

  def prototypes(self) -> tuple[Array, ...]:
    """Returns (): the directions are not in the space of the embeddings."""
    return ()


class Directions(nnx.Module):
  """Cosines to learnt directions, and perhaps a learnt scale of each."""

  def __init__(
    self,
    num_heads: int,
    in_features: int,
    num_clusters: int,
    *,
    scaled: bool,
    dtype: Any,
    rngs: nnx.Rngs,
  ):
    """Creates them; see `ClusterHeads`."""
    # torch's default: uniform within 1 / sqrt(fan_in).
    bound = in_features**-0.5
    shape = (num_heads, in_features, num_clusters)
    self.directions = nnx.Param(
      jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
    )
    self.scales = (
      nnx.Param(jnp.ones((num_heads, num_clusters))) if scaled else None
    )
    self.dtype = dtype

  def __call__(self, z: Float[Array, "h b m"]) -> Float[Array, "h b k"]:
    """Returns the logits of unit rows, float32."""
    cosines = _product(
      "hbm,hmk->hbk", z, _unit(self.directions[...], axis=1), self.dtype
    )
    if self.scales is None:
      return cosines
    return cosines * self.scales[...][:, None, :]


def _product(pattern, x, kernel, dtype):
  return jnp.einsum(
    pattern,
    x.astype(dtype),
    kernel.astype(dtype),
    preferred_element_type=jnp.float32,
  )


def _unit(x, axis=-1):
  """Returns x / max(|x|, 1e-12), whose gradient at 0 is no NaN."""
  squared = jnp.sum(x * x, axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
