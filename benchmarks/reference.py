"""How runs of one config usually go: the band behind the curves of a report.

  python -m benchmarks.reference --workdirs=A,B,C --about="3 seeds on a CPU" \
      --out=odc_jax/report/references/odc_digits.json

Reads finished runs that differ in their seed only, and writes the lowest, the
median and the highest of their means over each epoch, of every scalar but
speeds. Prints a table of the last epoch and one JSON line.
"""

import argparse
import json
import pathlib
import statistics
import sys
from typing import Any

from odc_jax.errors import UserError
from odc_jax.files import write_whole
from odc_jax.report import history

_DIGITS = 5


def reference(runs: list[history.History], about: str = "") -> dict[str, Any]:
  """Returns what `history.reference` finds again.

  Args:
    runs: Finished, of one config, with different seeds.
    about: What the runs were, for the reader; default: how many seeds.

  Raises:
    UserError: They are not what `runs` asks for.
  """
  recipe = history.recipe(runs[0].config)
  for run in runs:
    other = history.recipe(run.config)
    differing = sorted(
      name for name in {*recipe, *other} if recipe.get(name) != other.get(name)
    )
    if differing:
      raise UserError(
        f"the runs differ in {', '.join(differing)}; give runs of one config"
      )
    if not run.finished:
      raise UserError(
        f"the run with seed {run.config['seed']} is not done; let it end"
      )
  seeds = [run.config["seed"] for run in runs]
  if len(set(seeds)) < len(seeds):
    raise UserError(f"the seeds {seeds} are not all different")
  series = [history.by_epoch(run.lines) for run in runs]
  scalars = {}
  for name in sorted(set.intersection(*map(set, series))):
    if name.startswith("speed/"):
      continue
    values = [dict(zip(*one[name], strict=True)) for one in series]
    epochs = sorted(set.intersection(*map(set, values)))
    columns = [[one[epoch] for one in values] for epoch in epochs]
    scalars[name] = {
      "epoch": epochs,
      "low": [round(min(column), _DIGITS) for column in columns],
      "median": [round(statistics.median(c), _DIGITS) for c in columns],
      "high": [round(max(column), _DIGITS) for column in columns],
    }
  return {
    "config": recipe,
    "about": about or f"{len(seeds)} seeds",
    "scalars": scalars,
  }


def main() -> None:
  """Writes the file and prints its end."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdirs", required=True, help="between commas")
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--about", default="")
  args = parser.parse_args()
  runs = [history.read(pathlib.Path(w)) for w in args.workdirs.split(",")]
  found = reference(runs, args.about)
  write_whole(args.out, (json.dumps(found) + "\n").encode())
  print("| scalar | epoch | low | median | high |")
  print("|---|---|---|---|---|")
  last = {}
  for name, band in found["scalars"].items():
    end = {column: values[-1] for column, values in band.items()}
    last[name] = end
    cells = [f"{end[c]:.4g}" for c in ("low", "median", "high")]
    print(f"| {name} | {end['epoch']} | {' | '.join(cells)} |")
  print(json.dumps({"benchmark": "reference", "runs": len(runs), "last": last}))


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
