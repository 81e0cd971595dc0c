"""Writes scalars to metrics.jsonl, to TensorBoard and to the terminal."""

import json
import pathlib
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
from tensorboardX.summary import scalar

from odc_jax.files import write_whole
from odc_jax.logs import progress
from odc_jax.logs.health import Finding, Health
from odc_jax.logs.scalars import SCALARS, declared

# The file of `--mode=evaluate`, a list of {"step": of which checkpoint,
# "source" and others: on which images and how, "of_run": whether as the run
# itself evaluates, "scores": {"eval/...": value}}.
EVALUATION = "evaluation.json"


class MetricWriter:
  """Writes scalars to `metrics.jsonl`, TensorBoard and the terminal.

  What they say about the run's health goes to standard error and, an object a
  line, to `warnings.jsonl`, which is not there while all is well.

  Attributes:
    logged_at_start: Names that were already logged for the step at which the
      run goes on.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    resumed_at: int | None,
    num_steps: int,
    health: Health | None = None,
  ):
    """Opens the files.

    Args:
      workdir: The work directory.
      resumed_at: The step at which the run goes on, or None for a new run:
        later lines of `metrics.jsonl`, which it will write again, are removed.
      num_steps: Where it ends, for the progress bar.
      health: Judges every line, those before `resumed_at` too; None for no
        judgement.
    """
    self._path = workdir / "metrics.jsonl"
    self.logged_at_start: set[str] = set()
    self._health, self._warnings_path = health, workdir / "warnings.jsonl"
    kept = []
    if self._path.exists():
      kept = [
        line
        for line in _whole_lines(self._path)
        if resumed_at is not None and json.loads(line)["step"] <= resumed_at
      ]
      for line in map(json.loads, kept):
        if line["step"] == resumed_at:
          self.logged_at_start |= line.keys()
      # Whole or not at all: the history survives a kill at this moment.
      write_whole(self._path, "".join(line + "\n" for line in kept).encode())
    # Judged again instead of kept: nothing is lost or doubled by a kill between
    # the writing of a line and of its warnings.
    self._warnings_path.unlink(missing_ok=True)
    for line in kept:
      self._judge(json.loads(line))
    self._file = self._path.open("a", encoding="utf-8")
    folder = workdir / "tensorboard"
    folder.mkdir(exist_ok=True)
    # Not its SummaryWriter, whose flush leaves events in a queue.
    self._tensorboard = EventsWriter(str(folder / "events"))
    self._start = time.time()
    self._progress = progress.on_terminal()
    if self._progress is not None:
      self._progress.start()
      self._task = self._progress.add_task(
        "training", total=num_steps, completed=resumed_at or 0, note=""
      )
    self._num_steps = num_steps

  def write(self, step: int, epoch: float, scalars: Mapping[str, Any]) -> None:
    """Writes the scalars that belong to `step`.

    Raises:
      KeyError: If a name is not declared in `SCALARS`.
    """
    if unknown := {name for name in scalars if declared(name) is None}:
      raise KeyError(f"undeclared scalars {sorted(unknown)}")
    values = {
      name: value.item() if hasattr(value, "item") else value
      for name, value in scalars.items()
    }
    line = {
      "step": step,
      "epoch": round(epoch, 4),
      "time": round(time.time() - self._start, 3),
      **values,
    }
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    for name, value in values.items():
      summary = scalar(name, value)
      event = Event(wall_time=time.time(), step=step, summary=summary)
      self._tensorboard.write_event(event)
    self._show(step, epoch, values)
    for finding in self._judge(line):
      # A progress bar makes way for what is printed to standard error.
      print(
        f"warning: step {step}: {finding.text}", file=sys.stderr, flush=True
      )

  def _judge(self, line: Mapping[str, Any]) -> list[Finding]:
    """Returns what the line shows of the run's health, and keeps it."""
    findings = self._health.judge(line) if self._health else []
    if findings:
      with self._warnings_path.open("a", encoding="utf-8") as file:
        for finding in findings:
          file.write(json.dumps(finding._asdict()) + "\n")
    return findings

  def _show(self, step: int, epoch: float, values: Mapping[str, Any]) -> None:
    shown = [
      f"{name.split('/')[1]} {value:.4g}"
      for name, value in values.items()
      if name in _ON_TERMINAL
    ]
    if self._progress is None:
      print(
        f"step {step}/{self._num_steps}  epoch {epoch:.1f}  "
        + "  ".join(shown),
        flush=True,
      )
      return
    if any(name.startswith("eval/") for name in values):
      self._progress.console.print(f"epoch {epoch:.1f}  " + "  ".join(shown))
    else:
      self._progress.update(self._task, note="  ".join(shown))

  def say(self, text: str) -> None:
    """Prints a line, above the progress bar where there is one."""
    if self._progress is None:
      print(text, flush=True)
    else:
      self._progress.console.print(text)

  def advance(self, step: int) -> None:
    """Moves the progress bar."""
    if self._progress is not None:
      self._progress.update(self._task, completed=step)

  def flush(self) -> None:
    """Puts everything on disk."""
    self._file.flush()
    self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes everything."""
    if self._progress is not None:
      self._progress.stop()
    if not self._file.closed:
      self._file.close()
      self._tensorboard.close()


class SilentWriter:
  """In place of a `MetricWriter`, in all processes but the first."""

  def __init__(self):
    """Opens nothing."""
    self.logged_at_start: set[str] = set()

  def write(self, step: int, epoch: float, scalars: Mapping[str, Any]) -> None:
    """Writes nothing."""

  def say(self, text: str) -> None:
    """Prints nothing."""

  def advance(self, step: int) -> None:
    """Shows nothing."""

  def flush(self) -> None:
    """Has nothing to flush."""

  def close(self) -> None:
    """Has nothing to close."""


_ON_TERMINAL = {
  "train/loss",
  "cluster/label_change",
  "cluster/nmi_previous",
  "speed/images_per_second",
  # Those with a number or a column in their name are for `summary.json`.
  *(name for name in SCALARS if re.fullmatch(r"eval/[^#*]+", name)),
}


def last_values(workdir: pathlib.Path) -> dict[str, int | float]:
  """Returns the last value of every evaluation and cluster scalar so far.

  Evaluations after the run count where they are of its last checkpoint and of
  its own images.
  """
  values, step = {}, 0
  lines = []
  if (path := workdir / "metrics.jsonl").exists():
    lines = [json.loads(line) for line in _whole_lines(path)]
    step = max((line["step"] for line in lines), default=0)
  if (path := workdir / EVALUATION).exists():
    for entry in json.loads(path.read_text("utf-8")):
      if entry["of_run"] and entry["step"] >= step:
        lines.append(entry["scores"])
  for line in lines:
    for name, value in line.items():
      if name.startswith(("eval/", "cluster/")):
        values[name] = value
  return values


def _whole_lines(path: pathlib.Path) -> list[str]:
  """Returns the lines that were written to their end."""
  text = path.read_text("utf-8")
  return text[: text.rfind("\n") + 1].splitlines()
