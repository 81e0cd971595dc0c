"""Vision transformers as timm has them: one class for all that are in use.

DINO, DINOv2 (also with registers), DINOv3, CLIP, SigLIP, MAE and augreg differ
in the dozen switches of `vit_settings`. Attributes bear timm's names; a
weight's path is its name there but for the last part.

Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; timm
models/vision_transformer.py and models/eva.py.
"""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from odc_jax.models import convolution, positions, vit_settings
from odc_jax.models.backbone import Backbone
from odc_jax.models.vit_settings import Settings

_INIT = nnx.initializers.truncated_normal(0.02)


class Mlp(nnx.Module):
  """Two linear layers with an activation, which may be gated."""

  def __init__(self, s: Settings, kind: str, *, linear: Any):
    """Creates the layers; `linear` makes one of sizes (in, out)."""
    self.kind = kind
    if kind == "swiglu":
      self.fc1_g = linear(s.dim, s.hidden)
      self.fc1_x = linear(s.dim, s.hidden)
    else:
      factor = 2 if kind == "packed_swiglu" else 1
      self.fc1 = linear(s.dim, factor * s.hidden)
    self.fc2 = linear(s.hidden, s.dim)

  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Applies the layers: [..., d] -> [..., d]."""
    if self.kind == "swiglu":
      return self.fc2(jax.nn.silu(self.fc1_g(x)) * self.fc1_x(x))
    x = self.fc1(x)
    if self.kind == "packed_swiglu":
      gate, x = jnp.split(x, 2, axis=-1)
      return self.fc2(jax.nn.silu(gate) * x)
    if self.kind == "quick_gelu":
      return self.fc2(x * jax.nn.sigmoid(1.702 * x))
    return self.fc2(jax.nn.gelu(x, approximate=False))


class Attention(nnx.Module):
  """Attention of all tokens to all."""

  def __init__(self, s: Settings, *, linear: Any):
    """Creates the projections."""
    self.heads, self.prefix = s.heads, s.prefix
    self.qkv = linear(s.dim, 3 * s.dim, use_bias=s.qkv_bias == "all")
    if s.qkv_bias == "qv":
      self.q_bias = nnx.Param(jnp.zeros(s.dim, jnp.float32))
      self.v_bias = nnx.Param(jnp.zeros(s.dim, jnp.float32))
    self.partial_bias = s.qkv_bias == "qv"
    self.proj = linear(s.dim, s.dim)

  def __call__(
    self,
    x: Float[Array, "b n d"],
    rotation: tuple[Float[np.ndarray, "p e"], ...] | None,
  ) -> Float[Array, "b n d"]:
    """Lets the tokens look at each other.

    Args:
      x: tokens.
      rotation: sines and cosines for the p patches, which are the last tokens.
    """
    qkv = self.qkv(x)
    if self.partial_bias:
      q, v = self.q_bias[...], self.v_bias[...]
      bias = jnp.concatenate([q, jnp.zeros_like(q), v])
      qkv += bias[None, None].astype(x.dtype)
    q, k, v = _heads(qkv, 3, self.heads)
    if rotation is not None:
      q, k = (_rotate(a, rotation, self.prefix) for a in (q, k))
    return self.proj(_attend(q, k, v))


def _heads(x, count, heads):
  """[b, n, count h e] -> `count` arrays [b, n, h, e]."""
  x = x.reshape(*x.shape[:2], count, heads, -1)
  return [x[:, :, i] for i in range(count)]


def _attend(q, k, v):
  x = jax.nn.dot_product_attention(q, k, v)
  return x.reshape(*x.shape[:2], -1)


def _rotate(x, rotation, prefix):
  """Turns the patches' halves [a, b] to [a cos - b sin, b cos + a sin]."""
  sin, cos = (a[:, None].astype(x.dtype) for a in rotation)
  rest, x = x[:, :prefix], x[:, prefix:]
  a, b = jnp.split(x, 2, axis=-1)
  turned = x * cos[None] + jnp.concatenate([-b, a], axis=-1) * sin[None]
  return jnp.concatenate([rest, turned], axis=1)


class Block(nnx.Module):
  """Attention, then an MLP, each beside the identity."""

  def __init__(self, s: Settings, *, linear: Any, norm: Any):
    """Creates the block's layers."""
    self.norm1, self.norm2 = norm(s.dim), norm(s.dim)
    self.attn = Attention(s, linear=linear)
    self.mlp = Mlp(s, s.mlp, linear=linear)
    # DINOv3 is of another class in timm, with other names.
    self.scales = () if not s.layer_scale else ("ls1.gamma", "ls2.gamma")
    if s.layer_scale:
      gammas = [nnx.Param(jnp.full(s.dim, 1e-5, jnp.float32)) for _ in range(2)]
      if s.positions == "rope":
        self.scales = "gamma_1", "gamma_2"
        self.gamma_1, self.gamma_2 = gammas
      else:
        self.ls1, self.ls2 = (nnx.Dict(gamma=gamma) for gamma in gammas)

  def __call__(
    self, x: Float[Array, "b n d"], turn: Any
  ) -> Float[Array, "b n d"]:
    """Applies the block to tokens; `turn` is Attention's `rotation`."""
    attended = self.attn(self.norm1(x), turn)
    x = x + self._scaled(attended, 0)
    return x + self._scaled(self.mlp(self.norm2(x)), 1)

  def _scaled(self, x, which):
    if not self.scales:
      return x
    gamma = operator.attrgetter(self.scales[which])(self)
    return x * gamma[...][None, None].astype(x.dtype)


class AttentionPool(nnx.Module):
  """One query that is learnt looks at all tokens, as in SigLIP."""

  def __init__(self, s: Settings, *, linear: Any, norm: Any, rngs: nnx.Rngs):
    """Creates the query and its layers."""
    self.heads = s.heads
    self.latent = nnx.Param(_INIT(rngs.params(), (1, 1, s.dim), jnp.float32))
    self.q = linear(s.dim, s.dim)
    self.kv = linear(s.dim, 2 * s.dim)
    self.proj = linear(s.dim, s.dim)
    self.norm = norm(s.dim)
    self.mlp = Mlp(s, s.mlp, linear=linear)

  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
    """Pools tokens."""
    latent = jnp.broadcast_to(self.latent[...], (len(x), 1, x.shape[2]))
    (q,) = _heads(self.q(latent.astype(x.dtype)), 1, self.heads)
    k, v = _heads(self.kv(x), 2, self.heads)
    z = self.proj(_attend(q, k, v))
    return (z + self.mlp(self.norm(z)))[:, 0]


class ViT(Backbone):
  """A vision transformer without its classifier.

  Attributes:
    settings: what was built.
    num_features: length of the features.
  """

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
      settings: of the architecture; those of ViT-S/16 if left out.
      in_channels: channels of the images.
      dtype: what is computed in, and the tokens' between blocks. Parameters,
        the statistics of norms and the softmax are float32 in any case.
      rngs: source of the initial weights.
    """
    s = self.settings = settings or Settings()
    types = {"dtype": dtype, "param_dtype": jnp.float32, "rngs": rngs}
    linear = functools.partial(nnx.Linear, kernel_init=_INIT, **types)
    # Not with E x^2 - (E x)^2, which loses a variance far from zero.
    norm = functools.partial(
      nnx.LayerNorm, epsilon=s.eps, use_fast_variance=False, **types
    )

    def token(count):
      return nnx.Param(_INIT(rngs.params(), (1, count, s.dim), jnp.float32))

    self.cls_token = token(1) if s.class_token else None
    self.reg_token = token(s.registers) if s.registers else None
    places = math.prod(s.grid) + (s.positions == "all") * s.class_token
    self.pos_embed = None if s.positions == "rope" else token(places)
    self.patch_embed = nnx.Dict(
      proj=nnx.Conv(
        in_channels,
        s.dim,
        (s.patch, s.patch),
        strides=s.patch,
        padding="VALID",
        use_bias=not s.pre_norm,
        kernel_init=_INIT,
        conv_general_dilated=convolution.convolve,
        **types,
      )
    )
    self.norm_pre = norm(s.dim) if s.pre_norm else None
    self.blocks = nnx.List(
      [Block(s, linear=linear, norm=norm) for _ in range(s.depth)]
    )
    self.norm = norm(s.dim)
    if s.pool == "attention":
      self.attn_pool = AttentionPool(s, linear=linear, norm=norm, rngs=rngs)
    self.head = linear(s.width, s.projection) if s.projection else None
    self.num_features = s.projection or s.width

  def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
    """Returns the first block's tokens: [class, registers, patches by rows].

    Args:
      images: normalised; sides are multiples of the patches'.

    Raises:
      UserError: They are not.
    """
    s = self.settings
    vit_settings.check_image_size(s, images.shape[1:3])
    x = self.patch_embed.proj(images)
    grid = x.shape[1], x.shape[2]
    x = x.reshape(len(x), -1, s.dim)

    def placed(x):
      assert self.pos_embed is not None
      learnt = self.pos_embed[...]
      return x + positions.resize(learnt, s.grid, grid, s.resize).astype(
        x.dtype
      )

    if s.positions == "patches":
      x = placed(x)
    prefix = [
      jnp.broadcast_to(token[...].astype(x.dtype), (len(x), *token.shape[1:]))
      for token in (self.cls_token, self.reg_token)
      if token is not None
    ]
    x = jnp.concatenate([*prefix, x], axis=1)
    if s.positions == "all":
      x = placed(x)
    return x if self.norm_pre is None else self.norm_pre(x)

  def tokens(
    self, images: Float[Array, "b h w c"]
  ) -> list[Float[Array, "b n d"]]:
    """Returns the tokens at five depths; the last are normalised.

    Args:
      images: normalised.
    """
    s = self.settings
    turn = None
    if s.positions == "rope":
      grid = images.shape[1] // s.patch, images.shape[2] // s.patch
      turn = positions.rotation(grid, s.dim // s.heads)
    x = self.embed(images)
    kept = [x]
    ends = [math.ceil(s.depth * quarter / 4) for quarter in (1, 2, 3)]
    for i, block in enumerate(self.blocks, 1):
      x = block(x, turn)
      kept += [x] * ends.count(i)
    return [*kept, self.norm(x)]

  def __call__(
    self, images: Float[Array, "b h w c"]
  ) -> list[Float[Array, "b _ _ d"]]:
    """Returns the patches' tokens as five maps, [b, h / patch, w / patch, d].

    Args:
      images: normalised.
    """
    rows = images.shape[1] // self.settings.patch
    return [
      x[:, self.settings.prefix :].reshape(len(x), rows, -1, x.shape[2])
      for x in self.tokens(images)
    ]

  def pooled(self, images: Float[Array, "b h w c"]) -> Float[Array, "b _"]:
    """Pools the last tokens, and projects where there is a projection.

    Args:
      images: normalised.
    """
    s = self.settings
    x = self.tokens(images)[-1]
    if s.pool == "attention":
      x = self.attn_pool(x)
    else:
      mean = jnp.mean(x[:, s.prefix :], axis=1, dtype=jnp.float32)
      pooled = {"token": x[:, 0], "mean": mean}
      names = s.pool.split("_")
      x = jnp.concatenate([pooled[n].astype(jnp.float32) for n in names], 1)
    x = x if self.head is None else self.head(x)
    return x.astype(jnp.float32)
