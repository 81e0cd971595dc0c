"""One page that shows what a run has found: report.html in its work directory.

Reads files only and needs neither JAX nor the network that was trained.
"""

import pathlib
import sys

from odc_jax.files import write_whole
from odc_jax.report import contents, curves, history, page, pictures
from odc_jax.results import annotations


def write(workdir: pathlib.Path) -> pathlib.Path:
  """Writes `report.html`: one file that opens from disk, without a network.

  Of a run that is not done it holds the curves and the signs of collapse. It
  stays below 30 MB; what is a sample says so.

  Args:
    workdir: The work directory of a run.

  Returns:
    The path of the page.

  Raises:
    UserError: There is no run in `workdir`, or a file of it is damaged.
    OSError: The page cannot be written.
  """
  run = history.read(workdir)
  reference = history.reference(run.config)
  missing = contents.missing(workdir)
  shown = made = annotated = None
  if not missing:
    shown = contents.read(workdir)
    if (path := workdir / annotations.FILE).exists():
      annotated = annotations.read(path)
    made = pictures.take(
      workdir,
      run.config,
      shown.data["images"],
      shown.by_worth,
      shown.num_first,
    )
    if made.problem:
      print(f"report.html lacks pictures: {made.problem}", file=sys.stderr)
  text = page.render(
    history=run,
    curves=curves.draw(
      history.by_epoch(run.lines),
      reference,
      run.config["num_clusters"],
      run.config["num_examples"],
    ),
    reference=reference,
    missing=missing,
    contents=shown,
    pictures=made,
    annotated=annotated,
  )
  path = workdir / "report.html"
  # The folder of the images may have bytes in its path that are no text.
  write_whole(path, text.encode(errors="backslashreplace"))
  return path
