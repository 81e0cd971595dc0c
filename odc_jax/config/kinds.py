"""What the values of a config may be: kinds, and the ranges that make sense.

A command line cannot give a key a value of another kind, but a file can, and
`inf`, `nan` and -1 are numbers to both. And what two of them are that depend on
others' values.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from odc_jax.errors import UserError

# What `data.source` begins with where it is no images.
SEQUENCES = "sequences:"
FEATURES = ("features:", SEQUENCES)

_MOST = 2**31 - 1  # of what is counted: the devices' integers

# Keys by their last part, which means the same in every section; those that
# mean another thing somewhere stand there with the section.
_WHOLE = {
  "seed": (0, 2**32 - 1),
  **dict.fromkeys(("num_clusters", "num_heads", "num_slots"), (1, _MOST)),
  "batch_size": (1, _MOST),
  **dict.fromkeys(("log_every", "keep_checkpoints"), (1, _MOST)),
  **dict.fromkeys(("image_size", "eval_resize", "small_size"), (1, 16_384)),
  # 0: the size of the training.
  **{
    f"eval.{section}.{key}": (0, 16_384)
    for section in ("linear_sgd", "linear_stages", "semi")
    for key in ("image_size", "eval_resize")
  },
  **dict.fromkeys(("num_threads", "num_workers"), (0, 1_024)),
  **dict.fromkeys(("prefetch", "views"), (1, 10_000)),
  "small_views": (0, 10_000),
  "translate": (0, _MOST),
  **dict.fromkeys(("k", "num_neighbors"), (1, _MOST)),
  **dict.fromkeys(("num_background", "num_clusterings"), (1, _MOST)),
  **dict.fromkeys(("width", "embedding_dim", "neck_hidden"), (1, _MOST)),
  **dict.fromkeys(("head_hidden", "head_bottleneck", "pca_dim"), (1, _MOST)),
  **dict.fromkeys(("head_layers", "min_cluster"), (0, _MOST)),
  **dict.fromkeys(("group_size", "bn_group_size"), (0, _MOST)),
  **dict.fromkeys(("kmeans_iters", "sinkhorn_iters"), (1, _MOST)),
  **dict.fromkeys(("centroid_every", "small_cluster_every"), (1, _MOST)),
  "queue_length": (0, _MOST),
}
_NUMBER = {
  **dict.fromkeys(("num_epochs", "hold_epochs", "warmup_epochs"), (0, 1e9)),
  "warm_epochs": (0, 1e9),
  **dict.fromkeys(("head_freeze_epochs", "queue_start_epoch"), (0, 1e9)),
  **{
    f"eval.{section}.num_epochs": (1, 1e9)
    for section in ("linear_sgd", "linear_stages", "semi")
  },
  **dict.fromkeys(("every_epochs", "checkpoint_every_epochs"), (1, _MOST)),
  **dict.fromkeys(("max_bad_fraction", "flip", "jitter_p", "gray"), (0, 1)),
  **dict.fromkeys(("dropout", "neck_bn_momentum"), (0, 1)),
  **dict.fromkeys(("momentum", "head_momentum"), (0, 1)),
  **dict.fromkeys(("prior_momentum", "teacher_momentum"), (0, 1)),
  **dict.fromkeys(("rotation", "brightness", "contrast"), (0, 1e9)),
  **dict.fromkeys(("saturation", "lighting"), (0, 1e9)),
  "hue": (0, 0.5),
  **dict.fromkeys(("learning_rate", "head_learning_rate"), (0, 1e9)),
  **dict.fromkeys(("warmup_from", "final_learning_rate"), (0, 1e9)),
  **dict.fromkeys(("weight_decay", "decay_rate"), (0, 1e9)),
  **dict.fromkeys(("eval.knn.temperature", "dual_learning_rate"), (0, 1e9)),
  **dict.fromkeys(("temperature", "student_temperature"), (1e-6, 1e9)),
  **dict.fromkeys(("slot_temperature", "center_temperature"), (1e-6, 1e9)),
  **dict.fromkeys(("epsilon", "tolerance"), (1e-9, 1e9)),
  **dict.fromkeys(("hard_weight", "prediction_weight", "size_ratio"), (0, 1)),
}
# One for all, or one for each of several.
_NUMBERS = {
  **dict.fromkeys(("blur", "solarize"), (0, 1)),
  **dict.fromkeys(("mean", "std"), (-1e9, 1e9)),
  "decay_epochs": (0, 1e9),
  **dict.fromkeys(("learning_rates", "head_multipliers"), (0, 1e9)),
  "teacher_temperature": (1e-6, 1e9),
  "extra_clusters": (1, _MOST),
}
# Of these, those that are always several.
_SERIES = (
  *("mean", "std", "decay_epochs", "extra_clusters"),
  *("learning_rates", "head_multipliers"),
)
# The least and the greatest of something, above 0.
_PAIRS = ("crop_scale", "small_crop_scale", "crop_ratio", "blur_sigma")
_TEXTS = (
  *("method", "on_nan", "source", "images", "split", "sampling"),
  *("interpolation", "crop_interpolation", "mapping", "standardize"),
  *("resident", "on_error", "name", "stem", "dtype", "weights", "train"),
  *("neck", "schedule", "memory_dtype", "kmeans_init"),
)
_SWITCHES = ("sobel", "adapt_all", "predictor", "nesterov")
_LISTS = ("evaluators",)
# Keys that are left out by being None.
_MAY_BE_NONE = ("head_momentum", "head_learning_rate", "head_freeze_epochs")


def check(values: Mapping[str, Any], is_filled: bool = True) -> None:
  """Raises a UserError for a value that cannot be what its key says.

  Args:
    values: Of an experiment: dotted name -> value.
    is_filled: Whether every "auto" has been replaced. Before that, text may
      stand for a number.
  """
  for name, value in values.items():
    for item in value if isinstance(value, tuple | list) else (value,):
      _check_plain(name, value, item)
    key = name.rpartition(".")[2]
    # Keyword arguments of a network, which have names of their own.
    if name.startswith("model.settings."):
      continue
    is_text = isinstance(value, str) and not is_filled
    if not is_text and not (value is None and key in _MAY_BE_NONE):
      _check_kind(name, key, value)


def by_weights(values: Mapping[str, Any]) -> dict[str, str]:
  """Returns what is trained, and behind which neck, where that is "auto".

  A network that sees already stays as it is, and what it sees is clustered; one
  that begins from random weights is trained with ODC's neck.

  Args:
    values: Dotted name -> value.

  Returns:
    Those of "model.train" and "model.neck" that are "auto", with their values.
  """
  sees = bool(values.get("model.weights")) or is_of_features(values)
  rules = {
    "model.train": "head" if sees else "all",
    "model.neck": "none" if sees else "nonlinear",
  }
  return {
    name: rule for name, rule in rules.items() if values.get(name) == "auto"
  }


def is_of_features(values: Mapping[str, Any]) -> bool:
  """Returns whether the data are features from elsewhere.

  Args:
    values: Dotted name -> value.
  """
  return str(values.get("data.source")).startswith(FEATURES)


def _check_plain(name: str, value: Any, item: Any) -> None:
  """Raises a UserError for what a file of JSON cannot hold."""
  if isinstance(item, float) and not math.isfinite(item):
    raise UserError(f"{name}={value} is no finite number: --config.{name}")
  if type(item) not in (bool, int, float, str, type(None), tuple, list):
    kind = type(item)
    raise UserError(
      f"{name} is a {kind.__module__}.{kind.__qualname__}; give a plain "
      "number, text, True or False, or a tuple of them"
    )


def _check_kind(name: str, key: str, value: Any) -> None:
  if whole := _WHOLE.get(name) or _WHOLE.get(key):
    if not _is_number(value) or value != int(value):
      raise UserError(f"{name}={value!r} is no whole number: --config.{name}")
    _check_range(name, value, (value,), whole)
  elif limits := _NUMBER.get(name) or _NUMBER.get(key):
    # In every view the same, or one for each.
    several = list(_each(value)) if name.startswith("augment.") else [value]
    if not all(map(_is_number, several)):
      raise UserError(f"{name}={value!r} is no number: --config.{name}")
    _check_range(name, value, several, limits)
  elif key in _NUMBERS:
    several = list(_each(value))
    is_series = isinstance(value, tuple | list) or key not in _SERIES
    if not (is_series and all(map(_is_number, several))):
      raise UserError(f"{name}={value!r} has no numbers: --config.{name}=(a,b)")
    _check_range(name, value, several, _NUMBERS[key])
  elif key in _PAIRS:
    pair = list(_each(value))
    if not (
      len(pair) == 2 and all(map(_is_number, pair)) and 0 < pair[0] <= pair[1]
    ):
      raise UserError(
        f"{name}={value} is no pair of a least and a greatest value above 0; "
        f"set both: --config.{name}=(a,b)"
      )
  elif key in _LISTS:
    if isinstance(value, str) or not all(
      isinstance(item, str) for item in _each(value)
    ):
      raise UserError(f"{name}={value!r} is no tuple of names: ('a', 'b')")
  elif key in _TEXTS and not isinstance(value, str):
    raise UserError(f"{name}={value!r} is no text: --config.{name}")
  elif key in _SWITCHES and not isinstance(value, bool):
    raise UserError(f"{name}={value!r} is neither True nor False")


def _check_range(name, value, numbers, limits):
  least, greatest = limits
  for number in numbers:
    if number < least:
      raise UserError(f"{name}={value} is less than {least}: --config.{name}")
    if number > greatest:
      raise UserError(
        f"{name}={value} is more than {greatest:g}: --config.{name}"
      )


def _each(value: Any) -> Iterator[Any]:
  yield from value if isinstance(value, tuple | list) else (value,)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)
