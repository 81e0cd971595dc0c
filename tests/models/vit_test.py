"""Vision transformers of every kind against timm's, from files of theirs."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax.models import positions, vit_settings
from tests.models import recorded
from tests.recordings import load

# Keys of `hp`.
SIZES = (
  *("height", "width", "patch", "dim", "depth", "heads", "hidden"),
  *("prefix", "registers", "e"),
)

# timm's pool -> what the recordings call its result.
POOLS = {"mean": "mean_patch", "token_mean": "cls_mean"}


def follow(path, folder, architecture="vit_small_patch16_224"):
  """Compares all that is recorded of a network, from its tokens to its pool.

  Returns the recording, and the backbone as it was read.
  """
  recording = load(path)
  hp = dict(zip(SIZES, map(int, recording["hp"]), strict=True))
  recorded.write(
    folder,
    recording,
    architecture,
    num_heads=hp["heads"],
    img_size=[hp["height"], hp["width"]],
  )
  images = recorded.channels_last(recording["image"])
  found = recorded.backbone(folder)
  settings = vit_settings.Settings(**found.settings)
  for name in ("patch", "dim", "depth", "heads", "hidden"):
    assert getattr(settings, name) == hp[name], name
  assert (settings.prefix, settings.registers) == (
    hp["prefix"],
    hp["registers"],
  )
  assert settings.eps == pytest.approx(10.0 ** -hp["e"])

  close = functools.partial(np.testing.assert_allclose, rtol=0)
  embedded, tokens, maps, pooled = found.call(
    images, "embed", "tokens", "__call__", "pooled"
  )
  close(embedded, recording["embedded"], atol=1e-4)
  first, *kept, last = tokens
  close(first, recording["embedded"], atol=1e-4)
  for quarter, x in enumerate(kept, 1):
    block = math.ceil(hp["depth"] * quarter / 4) - 1
    close(x, recording["block_tokens"][block], atol=2e-4)
  close(last, recording["tokens"], atol=1e-4)
  if settings.projection:  # of the token that is recorded as pooled
    close(last[:, 0], recording["pooled"], atol=5e-5)
    close(pooled, recording["head"], atol=5e-5)
  else:
    close(pooled, recording["pooled"], atol=5e-5)
  for pool, name in POOLS.items():
    if name in recording:
      other = recorded.backbone(folder, pool=pool)
      close(other.call(images, "pooled")[0], recording[name], atol=5e-5)
  rows, columns = (hp[side] // hp["patch"] for side in ("height", "width"))
  shape = len(images), rows, columns, hp["dim"]
  assert [map_.shape for map_ in maps] == 5 * [shape]
  close(
    np.reshape(maps[-1], (len(images), -1, hp["dim"])),
    recording["tokens"][:, hp["prefix"] :],
    atol=1e-4,
  )
  return recording, found


def test_golden_plain(golden_vit_plain, tmp_path):
  _, found = follow(golden_vit_plain, tmp_path)
  assert not found.settings["layer_scale"]


def test_golden_registers(golden_vit_reg, tmp_path):
  _, found = follow(golden_vit_reg, tmp_path)
  assert found.settings["positions"] == "patches"
  assert found.settings["layer_scale"]


def test_golden_clip(golden_vit_clip, tmp_path):
  recording, found = follow(
    golden_vit_clip, tmp_path, "vit_base_patch16_clip_quickgelu_224"
  )
  assert found.settings["projection"] == recording["head"].shape[1]


def test_golden_siglip(golden_vit_siglip, tmp_path):
  _, found = follow(golden_vit_siglip, tmp_path)
  assert found.settings["pool"] == "attention"
  assert not found.settings["class_token"]


def test_golden_dinov3(golden_vit_dinov3, tmp_path):
  """Also the one with gated MLPs, whose name begins likewise."""
  recording, found = follow(golden_vit_dinov3, tmp_path)
  names = {name.split(".")[-2] for name in recording if ".mlp." in name}
  assert (found.settings["mlp"] == "swiglu") == ("fc1_g" in names)
  height, width, patch, dim, _, heads, *_ = (int(n) for n in recording["hp"])
  turn = positions.rotation((height // patch, width // patch), dim // heads)
  np.testing.assert_allclose(
    np.concatenate(turn, axis=1), recording["rope"], atol=1e-5
  )


def test_golden_positions(golden_vit_pos_resize):
  recording = load(golden_vit_pos_resize)
  old = tuple(int(n) for n in recording["old"])
  cases = sum(name.startswith("new") for name in recording)
  assert cases
  for case in range(cases):
    new = tuple(int(n) for n in recording[f"new{case}"])
    for how, name in (("antialiased", "timm"), ("dinov2", "dinov2_")):
      np.testing.assert_allclose(
        positions.resize(jnp.asarray(recording["pos_embed"]), old, new, how),
        recording[f"{name}{case}"],
        atol=2e-5,
        err_msg=f"{how} {new}",
      )


def test_golden_patches(golden_vit_patch_resize):
  recording = load(golden_vit_patch_resize)
  cases = sum(name.startswith("new") for name in recording)
  assert cases
  for case in range(cases):
    size, width = (int(n) for n in recording[f"new{case}"])
    assert size == width
    np.testing.assert_allclose(
      positions.resize_patches(recording["weight"], size),
      recording[f"weight{case}"],
      atol=2e-5,
    )


@pytest.mark.parametrize(
  ("places", "class_token", "size", "expected"),
  [
    (197, True, None, ("all", (14, 14))),
    (1369, True, 518, ("patches", (37, 37))),
    (196, False, None, ("patches", (14, 14))),
    # A square by chance: 4 rows of 6, and the class.
    (25, True, [32, 48], ("all", (4, 6))),
    (24, False, [32, 48], ("patches", (4, 6))),
    # Of a size that the positions were not learnt for.
    (197, True, 384, ("all", (14, 14))),
  ],
)
def test_the_grid_of_the_positions(places, class_token, size, expected):
  patch = 14 if places == 1369 else 8 if size and places < 30 else 16
  shapes = {
    "patch_embed.proj.weight": (64, 3, patch, patch),
    "pos_embed": (1, places, 64),
    "blocks.0.mlp.fc1.weight": (256, 64),
    "blocks.0.mlp.fc2.weight": (64, 256),
  }
  if class_token:
    shapes["cls_token"] = (1, 1, 64)
  arguments = {} if size is None else {"img_size": size}
  found = vit_settings.describe(shapes, {"model_args": arguments})
  assert (found.positions, found.grid) == expected
