"""Positions of a vision transformer's patches, on grids of any size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def rotation(
  grid: tuple[int, int], size: int
) -> tuple[Float[np.ndarray, "p e"], Float[np.ndarray, "p e"]]:
  """Returns sines and cosines of the patches' places, float32.

  Args:
    grid: rows and columns of patches; each is measured by its own length, so
      that an image of any size spans the same.
    size: channels of a head, e.

  Source: timm layers/pos_embed_sincos.py, RotaryEmbeddingDinoV3.
  """
  periods = 100.0 ** (np.arange(size // 4) / (size // 4))
  y, x = (2 * (np.arange(n) + 0.5) / n - 1 for n in grid)
  places = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2, 1)
  angles = (2 * np.pi * places / periods).reshape(len(places), -1)
  angles = np.tile(angles, 2)
  return np.sin(angles, dtype=np.float32), np.cos(angles, dtype=np.float32)


def resize(
  learnt: Float[Array, "1 n d"],
  old: tuple[int, int],
  new: tuple[int, int],
  how: str = "antialiased",
) -> Float[Array, "1 m d"]:
  """Interpolates the patches' positions; those of tokens before them stay.

  Args:
    learnt: n = old[0] * old[1], or one more.
    old: rows and columns of patches that they were learnt for.
    new: those that there are.
    how: as `Settings.resize`.

  Source: timm layers/pos_embed.py, resample_abs_pos_embed; DINOv2
  dinov2/models/vision_transformer.py, interpolate_pos_encoding.
  """
  if old == new:
    return learnt
  prefix = learnt.shape[1] - math.prod(old)
  rest, x = learnt[:, :prefix], learnt[:, prefix:]
  x = x.reshape(*old, -1)
  if how == "antialiased":
    x = jax.image.resize(x, (*new, x.shape[2]), "bicubic", antialias=True)
  else:
    rows, columns = (
      jnp.asarray(_dinov2_weights(n, m)) for n, m in zip(old, new, strict=True)
    )
    x = jnp.einsum("ph,qw,hwd->pqd", rows, columns, x, precision="highest")
  return jnp.concatenate([rest, x.reshape(1, -1, x.shape[2])], axis=1)


def _dinov2_weights(old: int, new: int) -> Float[np.ndarray, "m n"]:
  """Returns torch's bicubic weights for a scale of (new + 0.1) / old."""
  place = (np.arange(new) + 0.5) * old / (new + 0.1) - 0.5
  taps = np.floor(place).astype(int)[:, None] + np.arange(-1, 3)
  t = np.abs(place[:, None] - taps)
  a = -0.75
  near = ((a + 2) * t - (a + 3)) * t**2 + 1
  far = ((t - 5) * t + 8) * t * a - 4 * a
  weights = np.zeros((new, old), np.float32)
  rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
  np.add.at(
    weights, (rows, np.clip(taps, 0, old - 1)), np.where(t <= 1, near, far)
  )
  return weights


def resize_patches(
  kernel: Float[np.ndarray, "o i p p"], size: int
) -> Float[np.ndarray, "o i q q"]:
  """Returns the kernels of patches of another size that match best.

  Those that give resized patches the same embeddings, by least squares.

  Args:
    kernel: in PyTorch's layout.
    size: side of the new patches, q.

  Source: Beyer et al., "FlexiViT", CVPR 2023, section 3.4.
  """
  old = kernel.shape[2]
  with jax.ensure_compile_time_eval():
    basis = jnp.eye(old**2).reshape(old**2, old, old)
    resized = jax.image.resize(
      basis, (old**2, size, size), "bicubic", antialias=True
    )
  # [new, old]: what a resized patch is of a patch.
  matrix = np.asarray(resized, np.float64).reshape(old**2, -1).T
  flat = kernel.reshape(*kernel.shape[:2], -1) @ np.linalg.pinv(matrix)
  return flat.reshape(*kernel.shape[:2], size, size).astype(np.float32)
