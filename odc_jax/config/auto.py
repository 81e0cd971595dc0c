"""Sizes that follow from the data: what "auto" in a config stands for.

The yardstick is ImageNet with the published hyper-parameters: 1,281,167 images,
10,000 clusters (128 images each), clusters below 20 images (0.16 of the mean)
dissolved, 440 epochs with one decay after 10/11 of them. The number of clusters
on a frozen backbone has another.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from odc_jax.config import Config, check
from odc_jax.errors import UserError

AUTO = "auto"


def fill(
  config: Config,
  num_examples: int,
  num_devices: int,
  of_method: Mapping[str, Callable[..., tuple[int, str]]],
) -> tuple[Config, list[str]]:
  """Replaces every "auto" by a number.

  A key that may be "auto" holds text, so that a number given for it on the
  command line arrives as text; it becomes a number here too.

  Args:
    config: An experiment, as the files in `configs/` give it.
    num_examples: Images in the training set, n below.
    num_devices: Devices in the mesh.
    of_method: Sizes of the method's own, as `Method.AUTO` has them.

  Returns:
    A copy with numbers, and a line for each of them: its value and why.

  Raises:
    UserError: If the text is neither "auto" nor a number.
  """
  config = ConfigDict(config).copy_and_resolve_references()
  lines = []
  with config.unlocked(), config.ignore_type():
    for name, (rule, parse) in _rules(of_method):
      value = config
      for part in name.split("."):
        value = value.get(part, {})  # another method has other sections
      if not isinstance(value, str):
        continue
      if value == AUTO:
        if rule is None:
          continue
        value, reason = rule(config, num_examples, num_devices)
        if reason:
          lines.append(f"{name} = {value}: {reason}")
      else:
        value = _parsed(name, value, parse)
      config.update_from_flattened_dict({name: value})
  return config, lines


def _batch_size(config, n, num_devices):
  """Returns n / 16 in powers of two."""
  size = 2 ** (max(8, min(256, n // 16)).bit_length() - 1)
  size = min(n, -(-size // num_devices) * num_devices)
  return size, (
    f"{n:,} images / 16, as a power of two from 8 to 256"
    + (f", split over {num_devices} devices" if num_devices > 1 else "")
  )


def _num_clusters(config, n, num_devices):
  least = max(2, min(10, n // 4))
  if check.is_frozen(config):
    # ImageNet's 10,000 are for what a network is to learn from; here they are
    # what somebody looks at. Mardia, Kent, Bibby, Multivariate Analysis, 1979,
    # section 13; docs/data.md has what it gave.
    return max(least, min(100_000, round(math.sqrt(n / 2)))), (
      f"the square root of {n:,} images / 2, {least} to 100,000. Several times "
      "as many as there are things to tell apart is right: groups are merged "
      "more easily than split"
    )
  return max(least, min(100_000, round(n / 128))), (
    f"{n:,} images / 128, as ImageNet's 10,000; {least} to 100,000. Several "
    "times as many as there are things to tell apart is right"
  )


def _num_epochs(config, n, num_devices):
  return max(100, min(400, round(10_000_000 / n))), (
    f"10,000,000 / {n:,} images, 100 to 400"
  )


def _decay_epochs(config, n, num_devices):
  epoch = config.num_epochs * 10 / 11
  return (round(epoch, 2),), (
    f"10/11 of {config.num_epochs} epochs, as for ImageNet"
  )


def _eval_every(config, n, num_devices):
  every = max(1, round(config.num_epochs / 20))
  return every, "20 times in the run, or every epoch"


def _checkpoint_every(config, n, num_devices):
  steps = max(1, n // max(1, config.batch_size))
  return max(1, round(500 / steps)), (
    f"about every 500 steps, of which an epoch has {steps}"
  )


def _eval_resize(config, n, num_devices):
  if config.model.weights:  # which say it, and may not have been asked yet
    return AUTO, ""
  size = round(config.data.image_size * 256 / 224)
  return size, f"256/224 of {config.data.image_size} pixels, as for ImageNet"


def _same_as_num_epochs(config, n, num_devices):
  return config.num_epochs, ""


def _number_of(text: str) -> int | float:
  number = float(text)
  if not math.isfinite(number):  # later rules reckon with it
    raise ValueError(text)
  return int(number) if number.is_integer() else number


def _numbers_of(text: str) -> tuple[float, ...]:
  return tuple(float(part) for part in text.strip("()").split(",") if part)


# In order: a later rule reads what an earlier one wrote. None, and where there
# are weights `eval_resize`: `interop.describe` has filled it in.
_RULES: dict[str, tuple[Callable[..., tuple[Any, str]] | None, Callable]] = {
  "batch_size": (_batch_size, int),
  "num_clusters": (_num_clusters, int),
  "num_epochs": (_num_epochs, _number_of),
  "optimizer.num_epochs": (_same_as_num_epochs, _number_of),
  "optimizer.decay_epochs": (_decay_epochs, _numbers_of),
  "eval.every_epochs": (_eval_every, int),
  "checkpoint_every_epochs": (_checkpoint_every, int),
  "data.image_size": (None, int),
  "data.eval_resize": (_eval_resize, int),
  "augment.mean": (None, _numbers_of),
  "augment.std": (None, _numbers_of),
  "model.embedding_dim": (None, int),
}


def _rules(of_method) -> Iterator[tuple[str, tuple[Callable | None, Callable]]]:
  """Yields every rule; the method's own follow the number of clusters."""
  for name, rule in _RULES.items():
    yield name, rule
    if name == "num_clusters":
      for own, size in of_method.items():
        yield own, (lambda config, n, _, size=size: size(config, n), int)


def _parsed(name: str, text: str, parse: Callable) -> Any:
  try:
    return parse(text)
  except ValueError as error:
    kinds = {int: "a whole number", _numbers_of: "numbers between commas"}
    raise UserError(
      f"{name}={text!r} is neither auto nor {kinds.get(parse, 'a number')}; "
      f"choose another with --config.{name}"
    ) from error
