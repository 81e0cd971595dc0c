"""Which keys an experiment may hold, and which of them do something in it.

A key that nothing reads is an option that lies: it can be set, and nothing
happens. A misspelt key is one of these, a key of another method, and whatever
belongs to a choice that was not made or to something that is switched off.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from odc_jax.config import Config, former, kinds
from odc_jax.errors import UserError

# Dotted name -> value.
Values = Mapping[str, Any]

# Keys of the sections of evaluators that train, and of one share of the labels.
_LINEAR = (
  "num_epochs",
  "batch_size",
  "image_size",
  "eval_resize",
  "learning_rate",
  "momentum",
  "nesterov",
  "weight_decay",
  "schedule",
  "decay_epochs",
  "decay_rate",
  "train_crops",
  "crop_scale",
  "crop_ratio",
  "flip",
  "jitter",
  "lighting",
  "test_views",
)
_SEMI = (
  "num_epochs",
  "batch_size",
  "image_size",
  "eval_resize",
  "momentum",
  "decay_epochs",
  "decay_rate",
  "crop_scale",
  "crop_ratio",
  "flip",
  "epoch",
)
_PERCENT = ("learning_rates", "head_multipliers", "weight_decay", "list")

# Section -> keys that are read whatever the method, unless `_idle` names them.
_SECTIONS = {
  "data": (
    "source",
    "images",
    "mapping",
    "standardize",
    "split",
    "sampling",
    "image_size",
    "crop_scale",
    "crop_ratio",
    "crop_interpolation",
    "eval_resize",
    "interpolation",
    "resident",
    "num_threads",
    "num_workers",
    "prefetch",
    "on_error",
    "max_bad_fraction",
  ),
  "augment": (
    "flip",
    "rotation",
    "rotation_interpolation",
    "translate",
    "jitter_p",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "gray",
    "blur",
    "blur_sigma",
    "solarize",
    "lighting",
    "mean",
    "std",
    "sobel",
  ),
  "model": (
    "name",
    "stem",
    "width",
    "dtype",
    "init",
    "bn_group_size",
    "weights",
    "train",
    "settings",
    "neck",
    "neck_hidden",
    "embedding_dim",
    "dropout",
    "neck_bn_momentum",
    "group_size",
  ),
  "optimizer": (
    "name",
    "learning_rate",
    "momentum",
    "weight_decay",
    "adapt_all",
    "trust",
    "clip",
    "decay_all",
    "schedule",
    "hold_epochs",
    "warmup_epochs",
    "warmup_from",
    "decay_epochs",
    "decay_rate",
    "num_epochs",
    "final_learning_rate",
  ),
  "eval": (
    "evaluators",
    "split",
    "every_epochs",
    "batch_size",
    "knn.k",
    "knn.temperature",
    *(f"linear_sgd.{key}" for key in _LINEAR),
    *(f"linear_stages.{key}" for key in _LINEAR),
    "linear_stages.pooling",
    "linear_stages.batch_norm",
    "linear_stages.epoch",
    *(f"semi.{key}" for key in _SEMI),
    *(f"semi.percent1.{key}" for key in _PERCENT),
    *(f"semi.percent10.{key}" for key in _PERCENT),
    "attributes",
  ),
}
_COMMON = frozenset(
  {
    "method",
    "seed",
    "num_clusters",
    "num_epochs",
    "batch_size",
    "log_every",
    "checkpoint_every_epochs",
    "keep_checkpoints",
    "on_nan",
    *(f"{name}.{key}" for name, keys in _SECTIONS.items() for key in keys),
  }
)
# Keys for methods whose network has a head.
_OF_HEADS = frozenset(
  {
    "optimizer.head_momentum",
    "optimizer.head_learning_rate",
    "optimizer.head_freeze_epochs",
  }
)

# Keys that the program itself adds once it knows the data.
_ADDED = ("num_examples", "method_name")

# Values of keys that a config may leave out; any other key has to be there.
_DEFAULTS = {
  "extra_clusters": (),
  "eval.attributes": "",
  **{
    f"eval.{section}.{key}": 0
    for section in ("linear_sgd", "linear_stages", "semi")
    for key in ("image_size", "eval_resize")
  },
  "data.images": "",
  "data.mapping": "",
  "data.standardize": "none",
  "data.small_views": 0,
  "data.resident": "off",
  "data.interpolation": "bilinear",
  "data.crop_interpolation": "bilinear",
  "augment.rotation_interpolation": "nearest",
  "model.init": "fan_in",
  "model.bn_group_size": 0,
  "model.train": "all",
  "model.settings": {},
  "model.neck": "nonlinear",
  "model.predictor": False,
  "optimizer.name": "sgd",
  "optimizer.adapt_all": False,
  "optimizer.trust": 0.001,
  "optimizer.clip": False,
  "optimizer.decay_all": True,
  "optimizer.hold_epochs": 0,
  "optimizer.warmup_from": 0.0,
  "optimizer.final_learning_rate": 0.0,
  **dict.fromkeys(_OF_HEADS),
}

# Keys that are for images, and for the network that sees them.
_OF_IMAGES = tuple(
  f"data.{key}"
  for key in (
    "image_size",
    "eval_resize",
    "interpolation",
    "resident",
    "on_error",
    "max_bad_fraction",
  )
)
_OF_NETWORK = tuple(
  f"model.{key}" for key in ("name", "stem", "width", "weights", "settings")
)

# The keys that each neck reads.
_NECKS = {
  "nonlinear": (
    "neck_hidden",
    "embedding_dim",
    "dropout",
    "neck_bn_momentum",
    "group_size",
  ),
  "linear": ("embedding_dim",),
  "mlp2": ("neck_hidden", "embedding_dim"),
  "mlp2_no_bias": ("neck_hidden", "embedding_dim"),
  "mlp2_no_norm": ("neck_hidden", "embedding_dim"),
  "mlp3_bias_last": ("neck_hidden", "embedding_dim"),
  "mlp3_gelu": ("neck_hidden", "embedding_dim"),
  "mlp3": ("neck_hidden", "embedding_dim"),
  "fc": ("neck_hidden", "embedding_dim", "dropout"),
}
_JITTER = (
  "augment.brightness",
  "augment.contrast",
  "augment.saturation",
  "augment.hue",
)


def check(config: Config, method: Any, given: Collection[str] = ()) -> None:
  """Raises a UserError for keys that do nothing, and for keys that lack.

  A file may hold the parameters of what it switches off, so that the command
  line can switch it on; set on the command line itself they are a mistake.

  Args:
    config: An experiment, as the files in `configs/` give it.
    method: Its method, one of `METHODS`; nothing is checked where that does not
      say which keys it reads.
    given: The keys that the command line sets, dotted names.
  """
  flattened = flat(config)
  kinds.check(flattened, is_filled=False)
  if method.KEYS is None:
    return
  held = {
    name: value
    for name, value in (flattened | kinds.by_weights(flattened)).items()
    # Keyword arguments of the network, which refuses those that it lacks.
    if name not in _ADDED and not name.startswith("model.settings.")
  }
  known = {*_COMMON, *method.KEYS}
  if method.HEAD != "none":
    known |= _OF_HEADS
  if unknown := {*held} - known:
    if earlier := sorted(unknown & former.RENAMED.keys()):
      raise UserError(
        f"{earlier[0]} is of an earlier version: it is "
        f"{' and '.join(former.RENAMED[earlier[0]])} now"
      )
    sections = {name.partition(".")[0] for name in known}
    names = sorted(
      {
        name if name.partition(".")[0] in sections else name.partition(".")[0]
        for name in unknown
      }
    )
    similar = difflib.get_close_matches(names[0], known - {*held}, 1)
    raise UserError(
      f"nothing reads {', '.join(names)} with method={config.method!r}: "
      + (f"did you mean {similar[0]}?" if similar else "leave it out")
    )
  values = _DEFAULTS | held
  does_nothing = idle(values, method)
  for name in given:
    if name in does_nothing:
      reasons = does_nothing[name]
      raise UserError(
        f"{name}={values[name]!r} does nothing with "
        + " and ".join(f"{key}={values.get(key)!r}" for key in reasons)
        + f": leave it out, or change --config.{reasons[0]}"
      )
  if lacking := known - {*values, *does_nothing}:
    raise UserError(
      f"the config lacks {', '.join(sorted(lacking))}, which this experiment "
      "reads: add it to a copy of the file"
    )


def idle(values: Values, method: Any = None) -> dict[str, tuple[str, ...]]:
  """Returns the keys that do nothing: name -> the keys that are the reason.

  Args:
    values: Of an experiment: dotted name -> value.
    method: One of `METHODS`; None: what holds whatever the method.
  """
  values = _DEFAULTS | dict(values)
  found = {key: tuple(reasons) for key, *reasons in _idle(values)}
  if method is not None:
    # The method reads its own keys whatever the neck.
    for key in _COMMON & {*(method.KEYS or ())}:
      found.pop(key, None)
    found |= {key: tuple(reasons) for key, *reasons in method.idle(values)}
  return found


def differences(old: Values, new: Values) -> Iterator[tuple[str, Any, Any]]:
  """Yields each key that two experiments disagree on, and its two values.

  Earlier versions' configs held some keys that do nothing, and lacked some that
  came later. Left out, the former make no difference, and the latter have the
  value that stands for what was done then.

  Args:
    old: Dotted name -> value.
    new: Dotted name -> value.
  """
  does_nothing = idle(old).keys() - new.keys() | idle(new).keys() - old.keys()
  for name in sorted({*old, *new} - does_nothing):
    was, now = (values.get(name, _DEFAULTS.get(name)) for values in (old, new))
    if was != now:
      yield name, was, now


def flat(node: Any, name: str = "") -> dict[str, Any]:
  """Returns dotted name -> value of a config, or of nested dicts."""
  found = {}
  for key, value in node.items():
    if isinstance(value, ConfigDict | dict):
      found |= flat(value, f"{name}{key}.")
    else:
      found[f"{name}{key}"] = value
  return found


def _idle(values: Values) -> Iterator[tuple[str, ...]]:
  """Yields each key that does nothing, and the keys that are the reason."""
  off = {name for name, value in values.items() if is_off(value)}

  neck = values["model.neck"]
  reads = _NECKS.get(neck, ())
  for key in _NECKS["nonlinear"]:
    if key == "neck_hidden" and "model.predictor" not in off:
      continue
    if key not in reads:
      yield f"model.{key}", "model.neck"

  if "data.small_views" in off:
    yield "data.small_size", "data.small_views"
    yield "data.small_crop_scale", "data.small_views"
  if values.get("data.on_error") == "fail":
    yield "data.max_bad_fraction", "data.on_error"

  if kinds.is_of_features(values):
    # Nothing is read but the features, and they have passed a network.
    for key in _SECTIONS["augment"]:
      yield f"augment.{key}", "data.source"
    for key in (*_OF_IMAGES, *_OF_NETWORK):
      yield key, "data.source"
  else:
    yield "data.images", "data.source"
  if str(values.get("data.source")).startswith(kinds.SEQUENCES):
    yield "data.images", "data.source"
  else:
    for key in ("mapping", "standardize"):
      yield f"data.{key}", "data.source"
  if values["model.train"] == "head":
    # Images pass the backbone once, by their centres.
    for key in ("crop_scale", "crop_ratio", "crop_interpolation", "resident"):
      yield f"data.{key}", "model.train"
    for key in _SECTIONS["augment"]:
      if key not in ("mean", "std", "sobel"):
        yield f"augment.{key}", "model.train"

  if not str(values.get("model.name")).startswith("resnet"):
    yield "model.init", "model.name"
  if "augment.rotation" in off:
    yield "augment.rotation_interpolation", "augment.rotation"
  if "augment.jitter_p" in off:
    for key in _JITTER:
      yield key, "augment.jitter_p"
  elif off.issuperset(_JITTER):
    yield "augment.jitter_p", *_JITTER
  if "augment.blur" in off:
    yield "augment.blur_sigma", "augment.blur"

  for section in "eval.linear_sgd", "eval.linear_stages":
    if values.get(f"{section}.schedule") != "step":
      yield f"{section}.decay_epochs", f"{section}.schedule"
      yield f"{section}.decay_rate", f"{section}.schedule"
    elif f"{section}.decay_epochs" in off:
      yield f"{section}.decay_rate", f"{section}.decay_epochs"
    if values.get(f"{section}.train_crops") == "fixed":
      yield f"{section}.crop_scale", f"{section}.train_crops"
      yield f"{section}.crop_ratio", f"{section}.train_crops"

  if values["optimizer.name"] != "lars":
    for key in ("adapt_all", "trust", "clip"):
      yield f"optimizer.{key}", "optimizer.name"
  if values["optimizer.name"] != "sgd":
    yield "optimizer.decay_all", "optimizer.name"
  schedule = values.get("optimizer.schedule")
  if schedule != "step":
    yield "optimizer.decay_epochs", "optimizer.schedule"
    yield "optimizer.decay_rate", "optimizer.schedule"
  else:
    if "optimizer.decay_epochs" in off:
      yield "optimizer.decay_rate", "optimizer.decay_epochs"
    if values.get("optimizer.decay_rate") == 1:
      yield "optimizer.decay_epochs", "optimizer.decay_rate"
  if schedule != "cosine":
    yield "optimizer.final_learning_rate", "optimizer.schedule"
    yield "optimizer.num_epochs", "optimizer.schedule"
  if "optimizer.warmup_epochs" in off:
    yield "optimizer.warmup_from", "optimizer.warmup_epochs"


def is_off(value: Any) -> bool:
  """Returns whether a number, or each of several, is 0."""
  return not any(value) if isinstance(value, tuple | list) else not value
