"""Trains and evaluates: python run.py --config=configs/odc_digits.py"""

import pathlib
import re
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
  modes = {"train": train.run}
  # A shell leaves the ~ of --workdir=~/x to us.
  workdir = pathlib.Path(workdir).expanduser()
  summary = modes[MODE.value](CONFIG.value, workdir)
  for name, value in summary.items():
    print(f"{name:28} {value:.4f}")
  print(f"written to {workdir}")


def _run_name(config_file: str) -> str:
  """configs/odc_digits.py:quick -> odc_digits_quick."""
  path, _, variant = config_file.partition(":")
  return "_".join(filter(None, [pathlib.Path(path).stem, variant]))


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; what is wrong with them becomes one clear line.

  Raises:
    UserError: Unknown flag or key, wrong type, config that cannot be loaded.
  """
  try:
    rest = flags.FLAGS(argv)
    if CONFIG.value is None:
      raise UserError("no config given; try --config=configs/odc_digits.py")
    # A file that is not there is noticed on the first access only.
    _ = CONFIG.value.method
  except flags.Error as error:
    # ml_collections puts a traceback into the message; its last line says it.
    last = str(error).strip().splitlines()[-1].strip("; ")
    raise UserError(last) from error
  except (AttributeError, KeyError) as error:
    # It names the key that it misses, but not the flag that it came from.
    key = re.search(r"\w+", str(error).replace("\\n", " "))
    key = key.group() if key else "?"
    flag = next((arg for arg in argv if f".{key}=" in f"{arg}="), key)
    similar = re.search(r'Did you mean \\*"(\w+)', str(error))
    raise UserError(
      f"the config has no key {flag.partition('=')[0].lstrip('-')}"
      + (f"; did you mean {similar.group(1)}?" if similar else "")
      + " (the file given as --config shows all keys)"
    ) from error
  except OSError as error:
    last = str(error).strip().splitlines()[-1].strip()
    raise UserError(f"cannot read the config: {last}") from error
  except ValueError as error:
    raise UserError(f"cannot load the config: {error}") from error
  return rest


if __name__ == "__main__":
  try:
    app.run(main, flags_parser=_parse)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("stopped; the same command starts again", file=sys.stderr)
    sys.exit(130)
