"""Small networks of every family that comes from timm."""

from tests.interop.networks import experiment

_SMALL = {"dim": 64, "depth": 2, "heads": 2, "hidden": 96, "patch": 8}
_V3 = {
  **{"positions": "rope", "registers": 4, "layer_scale": True, "eps": 1e-5},
  **{"qkv_bias": "none"},
}

# Name -> `model.settings` of a vision transformer.
VITS = {
  "plain": {},
  "mean": {"pool": "mean"},
  "both": {"pool": "token_mean", "layer_scale": True},
  "dinov2": {"layer_scale": True, "positions": "patches", "registers": 4},
  "dinov2 giant": {"layer_scale": True, "mlp": "packed_swiglu"},
  "clip": {"pre_norm": True, "eps": 1e-5, "projection": 24},
  "clip openai": {
    **{"pre_norm": True, "eps": 1e-5, "projection": 24, "mlp": "quick_gelu"},
  },
  "siglip": {"class_token": False, "positions": "patches", "pool": "attention"},
  "dinov3": _V3,
  "dinov3 mean": _V3 | {"pool": "mean"},
  "dinov3 plus": _V3 | {"mlp": "swiglu", "qkv_bias": "qv"},
}

# Name -> the name and the settings of another network.
OTHERS = {
  "convnext": ("convnext", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
  "lite": ("efficientnet_lite0", {}),
  "lite of timm": ("efficientnet_lite1", {"eps": 1e-5, "padding": "torch"}),
}

FAMILIES = (*VITS, *OTHERS)


def of_family(kind, **model):
  """Returns a config of one of `FAMILIES`, for images of 64 pixels."""
  if kind in VITS:
    name, settings = "vit", _SMALL | {"grid": (8, 8)} | VITS[kind]
  else:
    name, settings = OTHERS[kind]
  config = experiment(stem="imagenet", width=64)
  with config.unlocked():
    config.model.update({"name": name, "settings": settings, **model})
  config.data.image_size, config.data.eval_resize = 64, 72
  config.augment.mean = (0.485, 0.456, 0.406)
  config.augment.std = (0.229, 0.224, 0.225)
  return config
