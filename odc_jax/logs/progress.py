"""Progress on a terminal, and a line in a log."""

import contextlib
from collections.abc import Callable, Iterator

import rich.console
import rich.progress


@contextlib.contextmanager
def bar(
  task: str, total: int, shown: bool = True, in_logs: bool = True
) -> Iterator[Callable[[int], None]]:
  """Encloses what takes more than a few seconds.

  On a terminal there is a bar; elsewhere one line says that it has begun.

  Args:
    task: What is being done, such as "finding neighbours".
    total: Of how many parts.
    shown: Whether to show it at all; one of several processes does.
    in_logs: Whether to say so on no terminal.

  Yields:
    A function that is told how many of them are done.
  """
  progress = on_terminal() if shown else None
  if progress is None:
    if shown and in_logs:
      print(f"{task} ({total:,})", flush=True)
    yield lambda done: None
    return
  with progress:
    row = progress.add_task(task, total=total, note="")
    yield lambda done: progress.update(row, completed=done)


def on_terminal() -> rich.progress.Progress | None:
  """Returns a progress bar with a note behind it, or None on no terminal."""
  console = rich.console.Console()
  if not console.is_terminal:
    return None
  return rich.progress.Progress(
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
    rich.progress.TextColumn("{task.fields[note]}"),
    console=console,
  )
