"""The page of `--help`."""

import pathlib
import sys
import textwrap
from collections.abc import Iterable, Mapping

from absl import flags

_WIDTH = 80
_INDENT = 24


def program() -> str:
  """Returns the command as the user began it."""
  path = sys.argv[0]
  return f"python {path}" if path.endswith(".py") else pathlib.Path(path).name


def page(
  modes: Mapping[str, str],
  sections: Mapping[str, Iterable[flags.FlagHolder]],
  configs: Iterable[str],
) -> str:
  """Returns a page of 80 columns.

  Args:
    modes: Mode -> what it does.
    sections: Title -> flags.
    configs: Names of the configs that come along.
  """
  command = program()
  parts = [
    f"usage: {command} --config=FILE [--config.KEY=VALUE ...] [FLAGS]",
    f"       {command} --mode=MODE --workdir=DIR [FLAGS]",
    "",
    "Clusters images nobody has labelled, and learns to see meanwhile:",
    f"  {command} --config=odc_folder.py --config.data.source=folder:IMAGES",
    f"  {command} --mode=assign --workdir=runs/odc_folder --images=NEW",
    "",
    "modes (--mode=...):",
  ]
  parts += [_entry(name, text) for name, text in modes.items()]
  for title, holders in sections.items():
    parts += ["", f"{title}:"]
    for holder in holders:
      flag = flags.FLAGS[holder.name]
      is_number = isinstance(
        flag.parser, flags.IntegerParser | flags.FloatParser
      )
      value = "N" if is_number else holder.name.upper()
      value = "" if flag.boolean else f"={value}"
      parts.append(_entry(f"--{holder.name}{value}", flag.help))
  parts += [
    "",
    "configs that come along (FILE:quick is a run of a minute):",
  ]
  parts += textwrap.wrap(
    "  ".join(configs), _WIDTH, initial_indent="  ", subsequent_indent="  "
  )
  return "\n".join(parts)


def _entry(name: str, text: str) -> str:
  """Returns a name and, beside it, what it stands for."""
  lines = textwrap.wrap(text, _WIDTH - _INDENT)
  head = f"  {name}"
  first = [f"{head:{_INDENT}}{lines[0]}"]
  if len(head) >= _INDENT:
    first = [head, " " * _INDENT + lines[0]]
  return "\n".join([*first, *(" " * _INDENT + line for line in lines[1:])])
