"""Checks a config against the data, and keeps it in the work directory."""

from typing import Any

from ml_collections import ConfigDict

from odc_jax.config import Config, kinds, options
from odc_jax.errors import UserError

_ON_NAN = ("stop", "rollback")
# Keys that name one of a few.
_CHOICES = {
  "data.crop_interpolation": ("bilinear", "bicubic"),
  "augment.rotation_interpolation": ("nearest", "bilinear"),
  **{
    f"eval.{section}.{key}": known
    for section in ("linear_sgd", "linear_stages")
    for key, known in (
      ("schedule", ("step", "cosine", "inverse_sqrt")),
      ("train_crops", ("resized", "fixed")),
      ("test_views", ("center", "ten_logits", "ten_softmax")),
    )
  },
  "eval.linear_stages.pooling": ("mean", "max"),
  "eval.linear_stages.epoch": ("last", "best"),
  "eval.semi.epoch": ("last", "best"),
}


def resolve(config: Config, num_examples: int, num_devices: int) -> Config:
  """Returns a copy that also holds `num_examples`.

  Args:
    config: An experiment, as the files in `configs/` give it.
    num_examples: Images in the training set.
    num_devices: Devices in the mesh.

  Raises:
    UserError: If the sizes do not go together.
  """
  source, batch_size = config.data.source, config.batch_size
  check_values(config)
  if config.on_nan not in _ON_NAN:
    raise UserError(
      f"unknown on_nan {config.on_nan!r}; choose {' or '.join(_ON_NAN)}"
    )
  if num_examples < 2:
    raise UserError(
      f"{source} has one image only; clustering needs two or more"
    )
  first, *others = clusterings(config)
  if not 1 < first <= num_examples:
    raise UserError(
      f"num_clusters={first} is not between 2 and the {num_examples} images "
      f"of {source}; choose another with "
      f"--config.num_clusters={max(2, min(10, num_examples // 4))}"
    )
  for k in others:
    if not 1 < k <= num_examples:
      raise UserError(
        f"extra_clusters has {k}, not between 2 and the {num_examples} images "
        f"of {source}; choose others with --config.extra_clusters=(a,b,...)"
      )
  if not 0 < batch_size <= num_examples:
    raise UserError(
      f"batch_size={batch_size} is not between 1 and the {num_examples} "
      f"images of {source}; choose another with --config.batch_size"
    )
  if batch_size % num_devices:
    raise UserError(
      f"batch_size={batch_size} cannot be split over {num_devices} devices; "
      f"take a multiple of {num_devices} with --config.batch_size"
    )
  group_size = config.model.get("group_size", 0)
  if group_size and batch_size % group_size:
    raise UserError(
      f"model.group_size={group_size} does not divide batch_size={batch_size}; "
      "0 makes one group of the batch"
    )
  bn_group_size = config.model.get("bn_group_size", 0)
  if 0 < bn_group_size < batch_size and batch_size % bn_group_size:
    raise UserError(
      f"model.bn_group_size={bn_group_size} does not divide batch_size="
      f"{batch_size}; 0 makes one group of the batch"
    )
  config = ConfigDict(config).copy_and_resolve_references()
  with config.unlocked():
    config.num_examples = num_examples
  return config


def clusterings(config: Config) -> tuple[int, ...]:
  """Returns k of every clustering: the one handed over, then the others."""
  return config.num_clusters, *config.get("extra_clusters", ())


def training(config: Config) -> str:
  """Returns which parts are trained: "all" of them, or only the "head".

  Raises:
    UserError: `model.train` is neither.
  """
  found = config.model.get("train", "all")
  if found == "auto":
    found = kinds.by_weights(options.flat(config))["model.train"]
  if found not in ("all", "head"):
    raise UserError(f"unknown model.train {found!r}; choose all or head")
  return found


def is_frozen(config: Config) -> bool:
  """Returns whether images pass the backbone once, before training."""
  return training(config) == "head"


def has_features(config: Config) -> bool:
  """Returns whether a data set is features from elsewhere, no images."""
  return config.data.source.startswith(kinds.FEATURES)


def steps_per_epoch(config: Config) -> int:
  """Returns the whole batches in the data set."""
  return config.num_examples // config.batch_size


def check_values(config: Config) -> None:
  """Raises a UserError where a value makes no sense, whatever the data."""
  kinds.check(options.flat(config))
  for name, known in _CHOICES.items():
    value = _value(config, name)
    if value is not None and value not in known:
      raise UserError(
        f"unknown {name} {value!r}; choose {', '.join(known)} with "
        f"--config.{name}"
      )
  for section in "linear_sgd", "linear_stages", "semi":
    _check_decay(config, f"eval.{section}")


def _check_decay(config: Config, section: str) -> None:
  """Raises a UserError where a rate is to fall when all is over."""
  if _value(config, f"{section}.schedule") not in (None, "step"):
    return
  num_epochs = _value(config, f"{section}.num_epochs")
  decay_epochs = _value(config, f"{section}.decay_epochs") or ()
  if num_epochs is not None and any(at >= num_epochs for at in decay_epochs):
    raise UserError(
      f"{section}.decay_epochs={tuple(decay_epochs)} are not all within the "
      f"{num_epochs} epochs of {section}.num_epochs: set both"
    )


def choose(choices: dict[str, Any], name: Any, what: str) -> Any:
  """Returns `choices[name]`.

  Raises:
    UserError: If there is no such name; says which there are.
  """
  if not isinstance(name, str) or name not in choices:
    raise UserError(f"unknown {what} {name!r}; choose {', '.join(choices)}")
  return choices[name]


def _value(config: Config, name: str) -> Any:
  """Returns what stands there, or None: not every method has every key."""
  *sections, key = name.split(".")
  for part in sections:
    config = config.get(part, {})
  return config.get(key)
