"""Trains and evaluates: python run.py --config=configs/odc_digits.py"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from odc_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="the experiment, a file of configs/"
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "where to write; default: runs/<name of the config>"
)
MODE = flags.DEFINE_enum(
  "mode", "train", ["train"], "train: train or go on, then evaluate"
)


def main(argv: list[str]) -> None:
  """Calls the function of the mode."""
  if len(argv) > 1:
    raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
  # Orbax tells of its every move.
  logging.set_verbosity(logging.WARNING)
  # Late: JAX takes a second to import, and wrong flags should not wait for it.
  from odc_jax import train

  config_name = config_flags.get_config_filename(flags.FLAGS["config"])
  workdir = WORKDIR.value or f"runs/{_run_name(config_name)}"
  summary = train.run(CONFIG.value, pathlib.Path(workdir))
  for name, value in summary.items():
    print(f"{name:28} {value:.4f}")
  print(f"written to {workdir}")


def _run_name(config_file: str) -> str:
  """configs/odc_digits.py:quick -> odc_digits_quick."""
  path, _, variant = config_file.partition(":")
  return "_".join(filter(None, [pathlib.Path(path).stem, variant]))


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; what is wrong with them becomes a UserError."""
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    raise UserError(str(error).replace("\n", "; ")) from error
  except (AttributeError, KeyError) as error:
    # ml_collections names the key it misses, but not the flag it came from.
    key = str(error).strip("\"'").split("'")[0]
    flag = next(
      (a for a in argv[1:] if f".{key}=" in a or a.endswith(f".{key}")), key
    )
    raise UserError(
      f"the config has no key {flag.partition('=')[0].lstrip('-')!r}; "
      "config.json of a run lists all keys"
    ) from error
  except (OSError, ImportError) as error:
    raise UserError(f"cannot read the config: {error}") from error
  if CONFIG.value is None:
    raise UserError("no config given; try --config=configs/odc_digits.py")
  return rest


if __name__ == "__main__":
  try:
    app.run(main, flags_parser=_parse)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
