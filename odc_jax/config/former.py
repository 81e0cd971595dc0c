"""Configs of earlier versions, with the keys that this one has.

The section `eval` has changed its form: settings of all evaluators side by side
became a section for each, and some numbers that stood in the code became keys.
Of the keys that came later and may be left out, `options` knows the values that
stand for what was done before them. One is different: images were rotated
bilinearly, and a config that leaves out how to is now of nearest neighbours.
"""

from typing import Any

# Key of the section as it was -> the keys that have its value now.
RENAMED = {
  "eval.knn_k": ("eval.knn.k",),
  "eval.knn_temperature": ("eval.knn.temperature",),
  "eval.linear_learning_rate": ("eval.linear_sgd.learning_rate",),
  "eval.linear_epochs": ("eval.linear_sgd.num_epochs",),
  "eval.stages_learning_rate": ("eval.linear_stages.learning_rate",),
  "eval.stages_epochs": ("eval.linear_stages.num_epochs",),
  "eval.probe_batch_size": (
    "eval.linear_sgd.batch_size",
    "eval.linear_stages.batch_size",
    "eval.semi.batch_size",
  ),
  "eval.semi_epochs": ("eval.semi.num_epochs",),
  "eval.semi_learning_rates": (
    "eval.semi.percent1.learning_rates",
    "eval.semi.percent10.learning_rates",
  ),
  "eval.semi_head_multipliers": (
    "eval.semi.percent1.head_multipliers",
    "eval.semi.percent10.head_multipliers",
  ),
  "eval.semi_lists": ("eval.semi.percent1.list", "eval.semi.percent10.list"),
}


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
  """Returns a config as this version would have written it.

  Args:
    config: As `config.json` holds it, of this version or an earlier one.

  Returns:
    The same where nothing in it is of an earlier version; otherwise a copy
    that trains as it did then, and whose evaluators do what they did.
  """
  if _rotates(config):
    config = _rotating(config, "bilinear")
  old = config.get("eval")
  if not isinstance(old, dict):
    return config
  former = {key.removeprefix("eval.") for key in RENAMED} & old.keys()
  if not former:
    return config
  kept = {key: value for key, value in old.items() if key not in former}
  # What the file has of the new sections already is newer.
  return {**config, "eval": {**_sections(config, old), **kept}}


def dated(config: dict[str, Any]) -> dict[str, Any]:
  """Returns a config of this version that cannot be taken for a former one.

  Args:
    config: As `config.json` is to hold it.

  Returns:
    The same, or a copy that says how images are rotated.
  """
  return _rotating(config, "nearest")


def _rotates(config: dict[str, Any]) -> bool:
  """Returns whether images are rotated, which a frozen network never sees."""
  angle = config.get("augment", {}).get("rotation", 0)
  angles = angle if isinstance(angle, list) else [angle]
  return config.get("model", {}).get("train") != "head" and any(angles)


def _rotating(config: dict[str, Any], how: str) -> dict[str, Any]:
  """Returns a config that says how, if it has not said so."""
  augment = config.get("augment")
  if augment is None or "rotation_interpolation" in augment:
    return config
  return {**config, "augment": {**augment, "rotation_interpolation": how}}


def _sections(config: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
  """Returns what the evaluators did: the former keys, and what was fixed."""
  data, augment = config.get("data", {}), config.get("augment", {})
  batch_size = old.get("probe_batch_size", 256)
  # They cut and flipped as the training did.
  views = {
    "image_size": 0,
    "eval_resize": 0,
    "crop_scale": data.get("crop_scale", (0.08, 1.0)),
    "crop_ratio": data.get("crop_ratio", (3 / 4, 4 / 3)),
    "flip": 0.5 if augment.get("flip", 0.5) else 0.0,
  }
  linear = {
    **views,
    "batch_size": batch_size,
    "momentum": 0.9,
    "schedule": "step",
    "decay_rate": 0.1,
    "train_crops": "resized",
    "test_views": "center",
  }
  num_epochs = old.get("linear_epochs", 100)
  stages_epochs = old.get("stages_epochs", 90)
  semi_epochs = old.get("semi_epochs", 20)
  percent = {
    "learning_rates": old.get("semi_learning_rates", (0.001, 0.01, 0.1)),
    "head_multipliers": old.get("semi_head_multipliers", (1, 10, 100)),
  }
  lists = old.get("semi_lists", ("", ""))
  return {
    "knn": {
      "k": old.get("knn_k", 20),
      "temperature": old.get("knn_temperature", 0.07),
    },
    "linear_sgd": {
      **linear,
      "num_epochs": num_epochs,
      "learning_rate": old.get("linear_learning_rate", 30.0),
      "nesterov": False,
      "weight_decay": 0.0,
      "decay_epochs": _at(num_epochs, 0.6, 0.8),
      "jitter": 0.0,
      "lighting": 0.0,
    },
    "linear_stages": {
      **linear,
      "num_epochs": stages_epochs,
      "learning_rate": old.get("stages_learning_rate", 0.01),
      "nesterov": True,
      "weight_decay": 1e-4,
      "decay_epochs": _at(stages_epochs, 1 / 3, 2 / 3),
      "jitter": 0.4,
      "lighting": 0.1,
      "pooling": "mean",
      "batch_norm": True,
      "epoch": "last",
    },
    "semi": {
      **views,
      "num_epochs": semi_epochs,
      "batch_size": batch_size,
      "momentum": 0.9,
      "decay_epochs": _at(semi_epochs, 0.6, 0.8),
      "decay_rate": 0.2,
      "epoch": "last",
      "percent1": {**percent, "weight_decay": 5e-4, "list": lists[0]},
      "percent10": {**percent, "weight_decay": 1e-4, "list": lists[1]},
    },
  }


def _at(num_epochs: int, *fractions: float) -> tuple[int, ...]:
  """Returns the epochs at which the rate fell; not those past the end."""
  epochs = (round(fraction * num_epochs) for fraction in fractions)
  return tuple(epoch for epoch in epochs if epoch < num_epochs)
