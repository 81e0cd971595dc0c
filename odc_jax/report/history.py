"""Reads the records of a run: config, scalars, warnings."""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from odc_jax.config import former, options
from odc_jax.config.store import identity
from odc_jax.errors import UserError
from odc_jax.files import settle

REFERENCES = pathlib.Path(__file__).parent / "references"

# name -> (epochs, values), both in order.
Series = dict[str, tuple[list[int], list[float]]]


class History(NamedTuple):
  """A run, as its small files tell it.

  Attributes:
    config: `config.json`.
    lines: Of `metrics.jsonl`: step, epoch, scalars by name.
    summary: `summary.json`; of a run that is not done, what was measured last.
    finished: Whether it is done.
    findings: Of `warnings.jsonl`; none where all is well.
    bad_images: Of `bad_images.txt`: data set, index, key, reason.
  """

  config: dict[str, Any]
  lines: list[dict[str, Any]]
  summary: dict[str, Any]
  finished: bool
  findings: list[dict[str, Any]]
  bad_images: list[list[str]]


def read(workdir: pathlib.Path) -> History:
  """Reads a work directory, of a run that is done or under way.

  Raises:
    UserError: There is no such folder, or no run in it has logged anything.
  """
  if not workdir.is_dir():
    raise UserError(
      f"{workdir}: there is no such work directory; check --workdir"
    )
  settle(workdir)
  lines = _json_lines(workdir / "metrics.jsonl")
  if not lines:
    raise UserError(
      f"{workdir} has no metrics.jsonl with a line in it, so there is nothing "
      "to report; train first, or check --workdir"
    )
  try:
    config = json.loads((workdir / "config.json").read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(
      f"{workdir}: config.json is missing or damaged; put it back, or check "
      "--workdir"
    ) from error
  path = workdir / "summary.json"
  finished = path.exists()
  if finished:
    summary = _object(path)
  else:
    summary = {
      name: value
      for line in lines
      for name, value in line.items()
      if name.startswith(("eval/", "cluster/"))
    }
  return History(
    config=config,
    lines=lines,
    summary=summary,
    finished=finished,
    findings=_json_lines(workdir / "warnings.jsonl"),
    bad_images=_bad_images(workdir / "bad_images.txt"),
  )


def by_epoch(lines: Iterable[Mapping[str, Any]]) -> Series:
  """Returns the mean of every scalar over every epoch.

  Epoch 3 is what was logged after epoch 2 was over, up to the end of epoch 3;
  epoch 0 what was logged before the first step. Values that are not finite are
  left out.

  Args:
    lines: As `History.lines`.
  """
  sums: dict[str, dict[int, tuple[float, int]]] = {}
  for line in lines:
    epoch = math.ceil(line["epoch"])
    for name, value in line.items():
      if "/" not in name or not math.isfinite(value):
        continue
      epochs = sums.setdefault(name, {})
      total, count = epochs.get(epoch, (0.0, 0))
      epochs[epoch] = total + value, count + 1
  return {
    name: (
      sorted(epochs),
      [epochs[epoch][0] / epochs[epoch][1] for epoch in sorted(epochs)],
    )
    for name, epochs in sums.items()
  }


# Keys on which the evaluations that have a curve depend.
_SHOWN = (
  "config.eval.split",
  "config.eval.knn.k",
  "config.eval.knn.temperature",
)


def recipe(config: dict[str, Any]) -> dict[str, Any]:
  """Returns what runs with the same curves have in common.

  That is all but the seed, and those evaluations that no curve shows.

  Args:
    config: As `config.json` holds it.

  Returns:
    Dotted name -> value.
  """
  return {
    name: value
    for name, value in identity(former.upgraded(config)).items()
    if name != "config.seed"
    and (not name.startswith("config.eval.") or name in _SHOWN)
  }


def reference(
  config: dict[str, Any], folder: pathlib.Path = REFERENCES
) -> dict[str, Any] | None:
  """Returns how runs of this config usually go, where that is known.

  Args:
    config: As `config.json` holds it.
    folder: Of files that `benchmarks/reference.py` has written.

  Returns:
    {"about": text, "scalars": {name: {"epoch", "low", "median", "high"}}}, each
    a list; or None.
  """
  ours = _plain(recipe(config))
  for path in sorted(folder.glob("*.json")):
    known = json.loads(path.read_text("utf-8"))
    # One from before a key came has what stands for its absence.
    if not any(options.differences(_plain(known["config"]), ours)):
      return known
  return None


def _plain(recipe: dict[str, Any]) -> dict[str, Any]:
  """Returns the names without the section that they all begin with."""
  return {name.removeprefix("config."): recipe[name] for name in recipe}


def _object(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise UserError(
      f"{path} is damaged; the command that trained writes it again"
    ) from error


def _json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines that were written to their end; [] without the file."""
  if not path.exists():
    return []
  text = path.read_text("utf-8")
  try:
    return [
      json.loads(x) for x in text[: text.rfind("\n") + 1].split("\n")[:-1]
    ]
  except ValueError as error:
    raise UserError(
      f"{path} has a line that is no JSON; remove that line"
    ) from error


def _bad_images(path: pathlib.Path) -> list[list[str]]:
  if not path.exists():
    return []
  # Not splitlines(): a key may hold what it takes for the end of a line.
  lines = path.read_text("utf-8").split("\n")
  return [line.split("\t", 3) for line in lines if line.count("\t") >= 3]
