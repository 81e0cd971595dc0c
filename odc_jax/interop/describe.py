"""Fills in what the weights determine: the network and its input images."""

from typing import Any

from ml_collections import ConfigDict

from odc_jax.config import Config, check, kinds, options
from odc_jax.config.auto import AUTO
from odc_jax.data import features, sequences
from odc_jax.errors import UserError
from odc_jax.interop import hub, recognise
from odc_jax.models.backbones import FEATURES, num_features
from odc_jax.models.network import keeps_size

# Keys that timm's config.json determines.
_FROM_CONFIG = (
  "data.image_size",
  "data.eval_resize",
  "data.interpolation",
  "augment.mean",
  "augment.std",
)

# What stands for these where there are no images, and nothing reads it.
_OF_NO_IMAGES = {
  "data.image_size": 1,
  "data.eval_resize": 1,
  "data.interpolation": "bilinear",
  "augment.mean": (0.0, 0.0, 0.0),
  "augment.std": (1.0, 1.0, 1.0),
}

# A network without weights, for images as large as an epoch on one GPU allows;
# ImageNet's statistics. How the images are resized follows from their size.
_RANDOM = {
  "model.name": "resnet18",
  "data.image_size": 128,
  "data.interpolation": "bilinear",
  "augment.mean": (0.485, 0.456, 0.406),
  "augment.std": (0.229, 0.224, 0.225),
}
_RANDOM_EMBEDDING_DIM = 128

_AUTO = ("model.name", *_FROM_CONFIG, "model.embedding_dim")


def fill(config: Config) -> tuple[Config, list[str]]:
  """Replaces "auto" by what the weights of `model.weights` say.

  Where the data are features from elsewhere they stand for the network.

  Args:
    config: An experiment. These may be "auto": `model.train` and `model.neck`,
      which follow from whether there are weights; `model.name` (then also
      `model.stem`, `model.width` and `augment.sobel` follow from the weights,
      and what `model.settings` leaves open), `data.image_size`,
      `data.eval_resize`, `data.interpolation`, `augment.mean`, `augment.std`;
      and `model.embedding_dim`, which is then the length of the backbone's
      features, for an experiment without a neck.

  Returns:
    A copy without those, and lines that say what the network is. Without
    weights it is a ResNet-18; `data.eval_resize` is then left to `config.auto`.

  Raises:
    UserError: The weights are not there; or they do not say, and the config
      does not either. Features are not there, or a network is to be trained.
  """
  if chosen := kinds.by_weights(options.flat(config)):
    config = ConfigDict(config).copy_and_resolve_references()
    for name, value in chosen.items():
      section, key = name.split(".")
      config[section][key] = value
  if check.has_features(config):
    return _of_features(config)
  wanted = [name for name in _AUTO if _value(config, name) == AUTO]
  if not wanted:
    return config, []
  if not config.model.weights:
    return _random(config, wanted)
  weights = hub.resolve(config.model.weights)
  config = ConfigDict(config).copy_and_resolve_references()
  found = _found(weights, wanted, dict(config.model.get("settings", {})))
  with config.unlocked(), config.ignore_type():
    for name in found:
      section, key = name.split(".")
      if name in wanted or name not in _FROM_CONFIG:
        config[section][key] = found[name]
    if "model.embedding_dim" in wanted:
      config.model.embedding_dim = num_features(config.model)
  lines = [f"{found.get('model.name', config.model.name)} from {weights.name}"]
  if weights.trained_on:
    lines[0] += f", trained on {weights.trained_on}"
  if weights.licence:
    lines[0] += f"; licence {weights.licence}"
  return config, lines


def _random(config: Config, wanted: list[str]) -> tuple[Config, list[str]]:
  """Does it where there are no weights to follow."""
  config = ConfigDict(config).copy_and_resolve_references()
  with config.unlocked(), config.ignore_type():
    for name in wanted:
      if name in _RANDOM:
        section, key = name.split(".")
        config[section][key] = _RANDOM[name]
    if "model.embedding_dim" in wanted:
      config.model.embedding_dim = (
        num_features(config.model)
        if keeps_size(config.model)
        else _RANDOM_EMBEDDING_DIM
      )
  about = f"{config.model.name} from random weights"
  return config, [f"{about}, for images of {config.data.image_size} pixels"]


def _of_features(config: Config) -> tuple[Config, list[str]]:
  """Does it where features stand for the network and its images."""
  if not check.is_frozen(config):
    raise UserError(
      f"data.source={config.data.source} has no images to train a network on: "
      "--config.model.train=head"
    )
  _, _, path = config.data.source.partition(":")
  if config.data.source.startswith(kinds.SEQUENCES):
    files = sequences.find(path, config.data.split)
    size = sequences.width(files)
    line = (
      f"{size:,} features of every frame, of {len(files):,} sequences in {path}"
    )
  else:
    rows: Any = features.read(path, config.data.split).rows
    size = rows.shape[1]
    line = f"{size:,} features of every image, from {rows.filename}"
  config = ConfigDict(config).copy_and_resolve_references()
  with config.unlocked(), config.ignore_type():
    for name, value in _OF_NO_IMAGES.items():
      if _value(config, name) in (None, AUTO):
        section, key = name.split(".")
        config[section][key] = value
    config.augment.sobel = False
    config.model.name, config.model.weights = FEATURES, ""
    config.model.settings = {"size": size}
    width = _value(config, "model.embedding_dim")
    if width == AUTO or (width is not None and keeps_size(config.model)):
      config.model.embedding_dim = size
  return config, [line]


def _found(weights: hub.Weights, wanted, settings) -> dict[str, Any]:
  found: dict[str, Any] = {}
  if "model.name" in wanted:
    found = recognise.network(weights, settings)
  known = weights.preprocessing
  if known is not None:
    size = known.image_size
    found |= {
      "data.image_size": size,
      # As timm does it, which rounds down.
      "data.eval_resize": int(size / known.crop_fraction),
      "data.interpolation": known.interpolation,
      "augment.mean": known.mean,
      "augment.std": known.std,
    }
  for name in wanted:
    if name not in found and name != "model.embedding_dim":
      raise UserError(
        f"{weights.name} does not say what {name} is to be; set it: "
        f"--config.{name}=..."
      )
  return found


def _value(config: Config, name: str) -> Any:
  section, key = name.split(".")
  return config[section].get(key)
