"""Networks that come from timm go back there, by model.py and by name."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from odc_jax import UserError
from odc_jax.interop import card, export, hub, recognise
from odc_jax.interop.load import load_into
from tests.interop import pytorch_test as both
from tests.interop.families import FAMILIES, VITS, of_family
from tests.interop.networks import (
  assert_equal,
  experiment,
  random_weights,
  zeros,
)
from tests.models import recorded

# One of every sort; the rest with the tests marked torch.
SOME = ("both", "clip openai", "dinov3 plus", "convnext", "lite of timm")


@pytest.mark.parametrize(
  "kind",
  [
    pytest.param(kind, marks=() if kind in SOME else pytest.mark.torch)
    for kind in FAMILIES
  ],
)
def test_what_is_written_comes_back(tmp_path, kind):
  """And says itself which network it is."""
  config = of_family(kind)
  weights = random_weights(config)
  both.write(config, weights, tmp_path)
  found = recognise.network(hub.resolve(tmp_path))
  with config.unlocked():
    config.model.name = found["model.name"]
    config.model.width = found["model.width"]
    config.model.settings = found["model.settings"]
  assert not found["augment.sobel"]
  loaded = load_into(tmp_path, *zeros(config), model=config.model)
  assert loaded.parts == ("backbone", "neck", "head")
  assert_equal(loaded[:2], weights)


@pytest.mark.parametrize(
  ("prefix", "beside"),
  [
    ("", ("head.weight", "mask_token")),
    ("model.module.", ("head.weight",)),
    ("teacher.backbone.", ("dino_head.mlp.0.weight",)),
    ("state_dict.backbone.", ("state_dict.head.fc_cls.weight",)),
  ],
)
def test_transformers_are_found_in_whatever_holds_them(
  tmp_path, prefix, beside
):
  config = of_family("dinov2")
  config.model.settings.heads = 1  # of 64 channels, as the file will not say
  weights = random_weights(config)
  backbone = export.state_dict(*weights, 0)["backbone"]
  arrays = {f"{prefix}{name}": array for name, array in backbone.items()}
  if prefix == "teacher.backbone.":
    arrays |= {
      f"student.backbone.{name}": a + 1 for name, a in backbone.items()
    }
  arrays |= {name: np.ones((3, 5), np.float32) for name in beside}
  path = tmp_path / "weights.safetensors"
  safetensors.numpy.save_file(arrays, path)
  found = recognise.network(hub.resolve(path))
  assert found["model.name"] == "vit"
  assert found["model.settings"] == dict(config.model.settings) | {
    **{"class_token": True, "pre_norm": False, "qkv_bias": "all"},
    **{"mlp": "gelu", "eps": 1e-6, "pool": "token", "projection": 0},
    "resize": "antialiased",
  }
  loaded = load_into(path, *zeros(config), ("backbone",), config.model)
  assert_equal(loaded.params["backbone"], weights[0]["backbone"])


def test_settings_that_the_file_does_not_have_are_named(tmp_path):
  """Not seen in shapes: how a token is pooled may change, the MLP may not."""
  config = of_family("plain")
  both.write(config, random_weights(config), tmp_path)
  empty = zeros(config)
  config.model.settings.pool = "mean"
  load_into(tmp_path, *empty, ("backbone",), config.model)
  with config.unlocked():
    config.model.settings.mlp = "quick_gelu"
    config.model.settings.heads = 4
  with pytest.raises(UserError) as caught:
    load_into(tmp_path, *empty, ("backbone",), config.model)
  assert "it has heads=2, not 4, mlp=gelu, not quick_gelu;" in str(caught.value)
  resnet = experiment(name="resnet18", stem="small", width=4)
  with pytest.raises(UserError, match=r"--config\.model\.name=vit$"):
    load_into(tmp_path, *zeros(resnet), ("backbone",), resnet.model)


def test_the_projection_goes_with_its_pooling(tmp_path):
  config = of_family("clip")
  both.write(config, random_weights(config), tmp_path)
  weights = hub.resolve(tmp_path)
  assert recognise.network(weights)["model.settings"]["projection"] == 24
  asked = recognise.network(weights, {"pool": "mean"})["model.settings"]
  assert (asked["pool"], asked["projection"]) == ("mean", 0)
  with config.unlocked():
    config.model.settings = asked
  loaded = load_into(tmp_path, *zeros(config), ("backbone",), config.model)
  assert "head" not in loaded.params["backbone"]


def test_patches_of_another_size_are_interpolated(tmp_path):
  config = of_family("plain")
  weights = random_weights(config)
  both.write(config, weights, tmp_path)
  config.model.settings.patch = 16
  loaded = load_into(tmp_path, *zeros(config), ("backbone",), config.model)
  found = loaded.params["backbone"]["patch_embed"]["proj"]["kernel"]
  before = weights[0]["backbone"]["patch_embed"]["proj"]["kernel"]
  assert found.shape == (16, 16, 3, 64)
  # A patch has the embedding that it had before it was enlarged.
  patch = np.random.default_rng(0).uniform(0, 1, (8, 8, 3)).astype(np.float32)
  large = jax.image.resize(patch, (16, 16, 3), "bicubic")
  np.testing.assert_allclose(
    np.einsum("hwc,hwcd->d", large, found),
    np.einsum("hwc,hwcd->d", patch, before),
    atol=1e-3,
  )


@pytest.mark.parametrize(
  "names",
  [
    ["patch_embed.proj.weight"],
    ["stages.0.blocks.0.conv_dw.weight"],
    ["_conv_stem.weight"],
    ["patch_embed.proj.weight", "blocks.0.mlp.fc2.weight"],
  ],
)
def test_parts_of_networks_are_refused(tmp_path, names):
  path = tmp_path / "weights.safetensors"
  safetensors.numpy.save_file(
    {name: np.ones((8, 3, 4, 4), np.float32) for name in names}, path
  )
  with pytest.raises(UserError, match=str(path)) as caught:
    recognise.network(hub.resolve(path))
  assert "\n" not in str(caught.value)


def test_networks_that_timm_lacks_are_refused():
  wide = of_family("lite", width=32)
  with pytest.raises(
    UserError, match=r"no efficientnet_lite0 of model\.width=32"
  ):
    card.describe(wide)
  placed = of_family("plain")
  placed.model.settings.resize = "dinov2"
  card.describe(placed)  # whose positions are where they were learnt
  placed.data.image_size = 48
  with pytest.raises(UserError, match=r"resize=dinov2 places 8 x 8 positions"):
    card.describe(placed)


@pytest.mark.torch
@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("kind", FAMILIES)
def test_features_in_timm(torch, tmp_path, monkeypatch, kind, size):
  """At the size that positions were learnt for, and at another."""
  import timm

  config = of_family(kind)
  config.data.image_size, config.data.eval_resize = size, size + 8
  weights = random_weights(config)
  text = both.write(config, weights, tmp_path)
  both.enter(tmp_path, monkeypatch)
  images = both.photographs(config)
  expected = both.outputs_here(config, weights, images)
  model = both.run_block(text, "from model import")["model"]
  seen = both.for_torch(torch, images)
  with torch.no_grad():
    both.assert_close("model.py", model(seen), expected.features)
    both.assert_close("embeddings", model.embed(seen), expected.embeddings)
    both.assert_close("scores", model.scores(seen), expected.logits[0])
    theirs = both.run_block(text, "import timm\n")["model"]
    if VITS.get(kind, {}).get("pool") == "token_mean":
      half = expected.features.shape[1] // 2
      expected = expected._replace(features=expected.features[:, :half])
    both.assert_close("local-dir", theirs(seen), expected.features)
  described = json.loads((tmp_path / "config.json").read_text())
  assert described["pretrained_cfg"]["input_size"] == [3, size, size]
  wanted = timm.data.resolve_model_data_config(theirs)
  np.testing.assert_allclose(wanted["mean"], config.augment.mean)


_S = {"embed_dim": 128, "depth": 3, "num_heads": 2, "img_size": 64}

# A model of timm's, and what makes it small. Heads have 64 channels.
THEIRS = {
  "augreg": ("vit_small_patch16_224", _S),
  "dino": ("vit_small_patch8_224", _S),
  "dinov2": ("vit_small_patch14_dinov2", _S | {"img_size": 70}),
  "registers": ("vit_small_patch14_reg4_dinov2", _S | {"img_size": 70}),
  "giant": ("vit_giant_patch14_dinov2", _S | {"img_size": 70}),
  "clip": ("vit_base_patch16_clip_224", _S),
  "clip openai": ("vit_base_patch16_clip_quickgelu_224", _S),
  "siglip": ("vit_base_patch16_siglip_224", _S),
  "dinov3": ("vit_small_patch16_dinov3", _S),
  "dinov3 plus": ("vit_small_plus_patch16_dinov3", _S),
  "dinov3 qkvb": ("vit_small_patch16_dinov3_qkvb", _S),
  "convnext": (
    "convnext_tiny",
    {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)},
  ),
  "lite": ("tf_efficientnet_lite0", {}),
  "lite of timm": ("efficientnet_lite0", {}),
}


@pytest.mark.torch
@pytest.mark.parametrize("kind", THEIRS)
def test_features_of_timms_networks_here(torch, tmp_path, kind):
  """From random weights, by the folder that timm itself writes."""
  import timm

  architecture, arguments = THEIRS[kind]
  torch.manual_seed(0)
  theirs = timm.create_model(architecture, **arguments)
  theirs.eval()
  with torch.no_grad():
    for name, array in theirs.state_dict().items():
      if name.endswith("running_var"):
        array.uniform_(0.5, 2)
      elif array.ndim == 1 and name.endswith("weight"):
        array.uniform_(0.4, 1)
      elif array.ndim == 1 or name.endswith(("token", "pos_embed", "latent")):
        array.normal_(0, 0.3)
  timm.models.save_for_hf(
    theirs, tmp_path, model_args=arguments, safe_serialization=True
  )
  found = recorded.backbone(tmp_path)
  rng = np.random.default_rng(0)
  side = arguments.get("img_size", 64)
  images = rng.normal(size=(2, side, side, 3)).astype(np.float32)
  with torch.no_grad():
    seen = both.for_torch(torch, images)
    features = theirs.forward_head(
      theirs.forward_features(seen), pre_logits=True
    )
    if "clip" in kind:  # whose classifier is the projection
      features = theirs.head(features)
  with jax.default_matmul_precision("highest"):
    (ours,) = found.call(images, "pooled")
  both.assert_close(f"{architecture} here", ours, features)
