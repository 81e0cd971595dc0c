"""Which vision transformer it is, read off the names and shapes of a file."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from odc_jax.errors import UserError

# Not in a file. All models have 64 channels a head, but for SigLIP's so400m
# and DINOv3's 7B.
_HEADS = {1152: 16, 4096: 32}


@dataclasses.dataclass(frozen=True)
class Settings:
  """What tells one vision transformer from another; those of ViT-S/16.

  Attributes:
    dim: channels of a token.
    depth: blocks.
    heads: of the attention.
    hidden: channels within a block's MLP.
    patch: side of a patch, in pixels.
    grid: rows and columns of patches that positions were learnt for.
    positions: "all" tokens have one, or the "patches" alone; or "rope", which
      rotates queries and keys instead and takes images of any size.
    resize: how positions get to another grid: "antialiased" as in timm, or as
      in Meta's code for "dinov2" without registers, with which the published
      figures of torch.hub were made.
    class_token: whether there is one.
    registers: further tokens without a meaning.
    pre_norm: whether there is a norm before the first block; then the patches
      have no bias.
    layer_scale: whether what a block adds is scaled, channel by channel.
    qkv_bias: "all", "none", or "qv" for queries and values alone.
    mlp: "gelu", "quick_gelu", or gated: "swiglu" with two matrices, or
      "packed_swiglu" with both in one.
    eps: of the norms.
    pool: the features: class "token", "mean" of the patches, "token_mean" for
      both, or "attention" of a query that is learnt.
    projection: features that a last matrix makes of these; 0: there is none.
  """

  dim: int = 384
  depth: int = 12
  heads: int = 6
  hidden: int = 1536
  patch: int = 16
  grid: tuple[int, int] = (14, 14)
  positions: str = "all"
  resize: str = "antialiased"
  class_token: bool = True
  registers: int = 0
  pre_norm: bool = False
  layer_scale: bool = False
  qkv_bias: str = "all"
  mlp: str = "gelu"
  eps: float = 1e-6
  pool: str = "token"
  projection: int = 0

  def scaled(self, width: int) -> "Settings":
    """Returns a network with channels in proportion; 64 for these ones."""
    dim, hidden, projection = (
      channels * width // 64
      for channels in (self.dim, self.hidden, self.projection)
    )
    return dataclasses.replace(
      self, dim=dim, hidden=hidden, projection=projection
    )

  @property
  def prefix(self) -> int:
    """Tokens before those of the patches."""
    return self.class_token + self.registers

  @property
  def width(self) -> int:
    """Channels that come out of the pooling."""
    return self.dim * (2 if self.pool == "token_mean" else 1)


def describe(
  shapes: Mapping[str, tuple[int, ...]],
  config: Mapping[str, Any] | None = None,
) -> Settings:
  """Reads a file's architecture off its names and shapes.

  Args:
    shapes: timm's name -> shape in PyTorch, of all arrays.
    config: timm's config.json, if there is one. Taken from it: `global_pool`,
      `num_heads` and `img_size` among `model_args`, and whether the activation
      is CLIP's own (by `architecture`, or because OpenAI's weights are so
      tagged).

  Raises:
    UserError: The number of heads is in neither.
  """
  config = config or {}
  dim, _, patch, _ = shapes["patch_embed.proj.weight"]
  arguments = config.get("model_args") or {}
  heads = arguments.get("num_heads") or _HEADS.get(dim) or dim // 64
  if not heads or dim % heads:
    raise UserError(
      f"{dim} channels do not tell how many heads a vision transformer has; "
      "give its config.json with model_args.num_heads"
    )
  pre_norm = "norm_pre.weight" in shapes
  rope = "pos_embed" not in shapes
  class_token = "cls_token" in shapes
  registers = shapes.get("reg_token", (1, 0, dim))[1]
  positions, grid = "rope", (14, 14)
  if not rope:
    positions, grid = _places(
      shapes["pos_embed"][1], patch, class_token, arguments.get("img_size")
    )
  pool = {"avg": "mean", "map": "attention"}.get(
    config.get("global_pool", ""), "token"
  )
  return Settings(
    dim=dim,
    depth=1 + max(_numbers(shapes, r"blocks\.(\d+)\.")),
    heads=heads,
    hidden=shapes["blocks.0.mlp.fc2.weight"][1],
    patch=patch,
    grid=grid,
    positions=positions,
    class_token=class_token,
    registers=registers,
    pre_norm=pre_norm,
    layer_scale=bool(
      {"blocks.0.ls1.gamma", "blocks.0.gamma_1"} & shapes.keys()
    ),
    qkv_bias=_qkv_bias(shapes),
    mlp=_mlp(shapes, config),
    eps=1e-5 if pre_norm or rope else 1e-6,
    pool="attention" if "attn_pool.latent" in shapes else pool,
    # Other files' heads are classifiers of ImageNet.
    projection=shapes.get("head.weight", (0,))[0] if pre_norm else 0,
  )


def _places(count, patch, class_token, image_size):
  """Returns which tokens have a position, and the grid of the patches.

  Args:
    count: Positions that there are.
    patch: Side of a patch, in pixels.
    class_token: Whether there is one, which may have a position.
    image_size: What the positions were learnt for, in pixels, a number or two;
      None where it is not known. The grid is a square then.
  """
  side = math.isqrt(count)
  grids = [(side, side)]
  if image_size is not None:
    sides = np.broadcast_to(image_size, 2).tolist()
    grids.insert(0, (sides[0] // patch, sides[1] // patch))
  for grid in grids:
    if math.prod(grid) == count:
      return "patches", grid
    if class_token and math.prod(grid) + 1 == count:
      return "all", grid
  # The square is of no whole number; loading the file will say so.
  return ("all" if class_token else "patches"), (side, side)


def _numbers(names, pattern):
  return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def _qkv_bias(shapes):
  if "blocks.0.attn.qkv.bias" in shapes:
    return "all"
  return "qv" if "blocks.0.attn.q_bias" in shapes else "none"


def _mlp(shapes, config):
  if "blocks.0.mlp.fc1_g.weight" in shapes:
    return "swiglu"
  fc1, fc2 = (shapes[f"blocks.0.mlp.fc{n}.weight"] for n in (1, 2))
  if fc1[0] == 2 * fc2[1]:
    return "packed_swiglu"
  # OpenAI's weights come under a name for which timm takes the exact GELU.
  tag = (config.get("pretrained_cfg") or {}).get("tag", "")
  quick = "quickgelu" in config.get("architecture", "") or tag == "openai"
  return "quick_gelu" if quick else "gelu"


def check_image_size(settings: Settings, sides: Sequence[int]) -> None:
  """Raises a UserError where images are not of whole patches.

  Args:
    settings: of the network.
    sides: of the images, in pixels.
  """
  patch = settings.patch
  for side in sides:
    if side % patch:
      nearest = [n * patch for n in (side // patch, side // patch + 1) if n]
      raise UserError(
        f"images of data.image_size={side} are not of whole patches of "
        f"{patch} x {patch}; take --config.data.image_size="
        f"{' or '.join(map(str, nearest))}"
      )
