"""Keeps a config in the work directory, and recognises its run by it."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from odc_jax.config import Config, former, options
from odc_jax.errors import UserError
from odc_jax.files import settle, write_json

# Keys that may change when a run goes on: they say how the work is done, and do
# not affect its results.
_MAY_CHANGE = frozenset(
  {
    "config.data.num_threads",
    "config.data.num_workers",
    "config.data.prefetch",
    "config.data.resident",
    "config.data.max_bad_fraction",
    "config.eval.attributes",
    "config.keep_checkpoints",
    "config.method_name",
    "config.on_nan",
  }
)


def read(workdir: pathlib.Path) -> Config:
  """Returns the config that a run was started with, sizes filled in.

  One of an earlier version has this one's keys, and the values of then.

  Args:
    workdir: The work directory.

  Raises:
    UserError: It holds none, or a damaged one.
  """
  path = workdir / "config.json"
  try:
    settle(workdir)
    return ConfigDict(former.upgraded(json.loads(path.read_text("utf-8"))))
  except FileNotFoundError as error:
    raise UserError(
      f"{workdir} holds no run: config.json is missing; train first, with the "
      "same command without --mode"
    ) from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is damaged: {error}; put it back") from error


def write(config: Config, workdir: pathlib.Path, resuming: bool) -> None:
  """Writes `config.json`.

  Args:
    config: A resolved experiment.
    workdir: The work directory; made if it is not there.
    resuming: Whether it holds a run that is to go on.

  Raises:
    UserError: If that run had another config.
  """
  path = workdir / "config.json"
  new = former.dated(json.loads(config.to_json()))
  if resuming:
    try:
      old = former.upgraded(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
      raise UserError(
        f"{workdir} holds a run whose config.json is missing or damaged; put "
        "it back, or choose another --workdir"
      ) from error
    old, now = (
      {name.removeprefix("config."): value for name, value in each.items()}
      for each in (identity(old), identity(new))
    )
    differing = [
      f"config.{name} was {before!r}, is {after!r}"
      for name, before, after in options.differences(old, now)
      # The evaluations do not affect the training.
      if not name.startswith("eval.")
    ]
    if differing:
      raise UserError(
        f"{workdir} holds a run of another config: {'; '.join(differing)}. "
        "Choose another --workdir, or go back to that config"
      )
  workdir.mkdir(parents=True, exist_ok=True)
  # Whole or not at all: a run killed here can be started again.
  write_json(path, new, indent=2)


def identity(config: dict[str, Any]) -> dict[str, Any]:
  """Returns what makes a run this run: the keys that may not change.

  Args:
    config: As `config.json` holds it.

  Returns:
    Dotted name -> value. Where a folder lies is left out: that it is the same
    one, the names of its images show, and of features their digest.
  """
  flat = options.flat(config, "config.")
  for name in ("config.data.source", "config.data.images"):
    kind, colon, _ = flat.get(name, "").partition(":")
    if kind in ("folder", "features", "sequences"):
      flat[name] = kind + colon
  return {k: v for k, v in flat.items() if k not in _MAY_CHANGE}
