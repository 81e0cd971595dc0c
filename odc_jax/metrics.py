"""Names of every logged scalar, and where they are written."""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import rich.console
import rich.progress

from odc_jax.config import Config

# Every scalar that a run can log. Names are a contract: scripts read them.
# "labels" in a name means ground truth; the pseudo-labels are "clusters".
SCALARS = {
  "train/loss": "the loss that is minimised",
  "train/cluster_accuracy": "batch images classified as their cluster",
  "train/learning_rate": "of the backbone",
  "cluster/label_change": "batch images whose cluster changed",
  "cluster/nmi_previous": "NMI (arithmetic) of the clusters with those of "
  "an epoch ago",
  "cluster/empty": "clusters without an image",
  "cluster/min_size": "images in the smallest cluster",
  "cluster/max_size": "images in the largest cluster",
  "cluster/entropy": "of the cluster sizes, in nats; at most ln K",
  "cluster/dissolved": "small clusters dissolved in this step",
  "eval/knn_top1": "kNN top-1 on frozen backbone features",
  "eval/nmi_labels": "NMI (arithmetic) of the clusters with the labels",
  "eval/ari_labels": "adjusted Rand index of the clusters with the labels",
  "eval/purity_labels": "images that have their cluster's majority label",
  "speed/images_per_second": "since the last log line",
  "speed/step_ms": "milliseconds per step, since the last log line",
  "speed/data_wait": "fraction of the time spent waiting for the loader",
}


class MetricWriter:
  """Writes scalars to `metrics.jsonl`, TensorBoard and the terminal."""

  def __init__(
    self, workdir: pathlib.Path, resumed_at: int | None, num_steps: int
  ):
    """Opens the files.

    Args:
      workdir: The work directory.
      resumed_at: The step at which the run goes on, or None for a new run:
        later lines of `metrics.jsonl`, which it will write again, are removed.
      num_steps: Where it ends, for the progress bar.
    """
    self._path = workdir / "metrics.jsonl"
    if self._path.exists():
      kept = [
        line
        for line in _whole_lines(self._path)
        if resumed_at is not None and json.loads(line)["step"] <= resumed_at
      ]
      # Whole or not at all: the history survives a kill at this moment.
      partial = self._path.with_suffix(".jsonl.partial")
      partial.write_text("".join(line + "\n" for line in kept))
      partial.rename(self._path)
    self._file = self._path.open("a")
    self._tensorboard = _tensorboard(workdir / "tensorboard")
    self._start = time.time()
    self._progress = _progress_bar()
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
    unknown = set(scalars) - set(SCALARS)
    if unknown:
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
    if self._tensorboard is not None:
      self._tensorboard.write_scalars(step, values)
    self._show(step, epoch, values)

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

  def advance(self, step: int) -> None:
    """Moves the progress bar."""
    if self._progress is not None:
      self._progress.update(self._task, completed=step)

  def flush(self) -> None:
    """Puts everything on disk."""
    self._file.flush()
    if self._tensorboard is not None:
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes everything."""
    if self._progress is not None:
      self._progress.stop()
    self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()


class NotFiniteError(Exception):
  """A step gave NaN or infinity."""

  def __init__(self, what: str, step: int):
    """Keeps the quantity that was not finite, and the number of the step."""
    super().__init__(f"{what} is not finite in step {step}")


class StepLog:
  """Fetches scalars every `log_every` steps, one interval late.

  By then the devices have long computed them: fetching does not wait. What
  was not finite in between is found at the same time.
  """

  def __init__(
    self,
    config: Config,
    writer: MetricWriter,
    learning_rate: Callable[[int], Any],
    steps_per_epoch: int,
  ):
    """Starts the clock.

    Args:
      config: Reads `log_every` and `batch_size`.
      writer: Where scalars go.
      learning_rate: From the step.
      steps_per_epoch: Steps per epoch.
    """
    self._every = config.log_every
    self._batch_size = config.batch_size
    self._writer = writer
    self._learning_rate = learning_rate
    self._per_epoch = steps_per_epoch
    # (step, finite) of the steps since the last check.
    self._unchecked: list[tuple[int, Mapping[str, Any]]] = []
    # (step, scalars) to be written at the next interval.
    self._pending: tuple[int, dict[str, Any]] | None = None
    # Steps handed over, and steps known to be computed.
    self._added = self._done = self._pending_count = 0
    self._restart_clock()

  def _restart_clock(self):
    self._start, self._waited = time.perf_counter(), 0.0
    self._done_at_start = self._done

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Times what the loop waits for the loader."""
    start = time.perf_counter()
    yield
    self._waited += time.perf_counter() - start

  @contextlib.contextmanager
  def between_steps(self) -> Iterator[None]:
    """Flushes, and keeps what happens inside out of the speed."""
    self.flush()
    start = time.perf_counter()
    yield
    self._start += time.perf_counter() - start

  def add(
    self, step: int, scalars: Mapping[str, Any], finite: Mapping[str, Any]
  ) -> None:
    """Takes what step number `step` returned, without waiting for it.

    Raises:
      NotFiniteError: If a step of an earlier interval was not finite.
    """
    self._added += 1
    self._unchecked.append((step, finite))
    if (step + 1) % self._every:
      return
    self._check(self._unchecked[: -self._every])
    self._write_pending()
    scalars = {**scalars, "train/learning_rate": self._learning_rate(step)}
    seconds = time.perf_counter() - self._start
    # Steps that were only handed over have taken no time yet.
    steps = self._done - self._done_at_start
    if steps:
      scalars |= {
        "speed/images_per_second": steps * self._batch_size / seconds,
        "speed/step_ms": 1000 * seconds / steps,
        "speed/data_wait": self._waited / seconds,
      }
      self._restart_clock()
    self._pending = (step + 1, scalars)
    self._pending_count = self._added

  def flush(self) -> None:
    """Waits for every step so far, checks them and writes what is due.

    Raises:
      NotFiniteError: If one was not finite.
    """
    self._check(self._unchecked)
    self._done = self._added
    self._write_pending()

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes scalars now."""
    self._writer.write(step, step / self._per_epoch, scalars)

  def _write_pending(self):
    if self._pending is not None:
      step, scalars = self._pending
      self._pending = None
      self.write(step, jax.device_get(scalars))
      self._done = max(self._done, self._pending_count)
      self._writer.advance(step)

  def _check(self, steps):
    for step, finite in jax.device_get(steps):
      for what, is_finite in finite.items():
        if not is_finite:
          # Counted as in the log: the state after this many steps.
          raise NotFiniteError(what, step + 1)
    self._unchecked = self._unchecked[len(steps) :]


_ON_TERMINAL = {
  "train/loss",
  "cluster/label_change",
  "cluster/nmi_previous",
  "speed/images_per_second",
  *(name for name in SCALARS if name.startswith("eval/")),
}


def last_values(workdir: pathlib.Path) -> dict[str, int | float]:
  """Returns the last value of every evaluation and cluster scalar so far."""
  values = {}
  for line in _whole_lines(workdir / "metrics.jsonl"):
    for name, value in json.loads(line).items():
      if name.startswith(("eval/", "cluster/")):
        values[name] = value
  return values


def _whole_lines(path: pathlib.Path) -> list[str]:
  """Returns the lines that were written to their end."""
  text = path.read_text()
  return text[: text.rfind("\n") + 1].splitlines()


def _tensorboard(folder: pathlib.Path):
  """Returns clu's TensorBoard writer, or None where TensorFlow is missing."""
  # TensorFlow greets with a warning about a library that scalars do not need.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  # Late: importing TensorFlow takes seconds.
  try:
    import tensorflow as tf
    from clu import metric_writers
  except ImportError as error:
    print(
      f"no TensorBoard files: {error}; pip install -r requirements.txt",
      file=sys.stderr,
    )
    return None
  # Otherwise writing the first scalar takes all of the GPUs' memory.
  tf.config.set_visible_devices([], "GPU")
  return metric_writers.SummaryWriter(str(folder))


def _progress_bar() -> rich.progress.Progress | None:
  """Returns a progress bar on a terminal, else None."""
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
