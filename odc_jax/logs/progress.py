"""Progress on a terminal, and a line in a log."""

import contextlib
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

# Seconds that are looked at for an estimate, and of which less is not said.
_LOOK, _SHORT = 5.0, 20.0


@contextlib.contextmanager
def bar(
  task: str, total: int, shown: bool = True, in_logs: bool = True
) -> Iterator[Callable[[int], None]]:
  """Encloses what takes more than a few seconds.

  On a terminal there is a bar; elsewhere one line says that it has begun, and
  one how long it will take, if that is long.

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
      yield _Estimate(task, total)
    else:
      yield lambda done: None
    return
  with progress:
    row = progress.add_task(task, total=total, note="")
    yield lambda done: progress.update(row, completed=done)


class _Estimate:
  """Prints once how long a task will still take."""

  def __init__(self, task: str, total: int):
    self._task, self._total = task, total
    self._calls, self._done, self._since, self._said = 0, 0, 0.0, False

  def __call__(self, done: int) -> None:
    now = time.monotonic()
    self._calls += 1
    if self._calls <= 2:  # between them a program is compiled
      self._done, self._since = done, now
    passed, looked = done - self._done, now - self._since
    if self._said or looked < _LOOK or passed <= 0:
      return
    self._said = True
    left = (self._total - done) * looked / passed
    if left > _SHORT:
      print(
        f"{self._task}: about {duration(left)} left, {passed / looked:.1f}/s",
        flush=True,
      )


def duration(seconds: float) -> str:
  """Returns a length of time in words, such as "12 minutes"."""
  if seconds < 90:
    return f"{max(1, round(seconds))} s"
  if seconds < 90 * 60:
    return f"{round(seconds / 60)} minutes"
  if seconds < 48 * 3600:
    return f"{seconds / 3600:.1f} hours"
  return f"{seconds / 86400:.1f} days"


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
