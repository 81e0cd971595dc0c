"""Fetches the steps' scalars late, checks, times and writes them."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from odc_jax.config import Config
from odc_jax.logs import bottleneck
from odc_jax.logs.writer import MetricWriter, SilentWriter


class NotFiniteError(Exception):
  """A step gave NaN or infinity."""

  def __init__(self, what: str, step: int):
    """Keeps the quantity that was not finite, and the number of the step."""
    super().__init__(f"{what} is not finite in step {step}")


@dataclasses.dataclass
class _Tally:
  """Steps, and where their time went, in seconds."""

  steps: int = 0
  reading: float = 0.0
  seconds: float = 0.0
  idle: float = 0.0
  start: float = dataclasses.field(default_factory=lambda: time.perf_counter())


class StepLog:
  """Fetches scalars every `log_every` steps, one interval late.

  By then the devices have long computed them: fetching does not wait. What
  was not finite in between is found at the same time.
  """

  def __init__(
    self,
    config: Config,
    writer: MetricWriter | SilentWriter,
    learning_rate: Callable[[int], Any],
    steps_per_epoch: int,
    num_steps: int,
  ):
    """Starts the clock.

    Args:
      config: Reads `log_every`, `batch_size` and the section `data`.
      writer: Where scalars go.
      learning_rate: From the step.
      steps_per_epoch: Steps per epoch.
      num_steps: Steps of the whole run.
    """
    self._config = config
    self._every = config.log_every
    self._writer = writer
    self._learning_rate = learning_rate
    self._per_epoch = steps_per_epoch
    # (step, finite) of the steps since the last check.
    self._unchecked: list[tuple[int, Mapping[str, Any]]] = []
    # (step, scalars) to be written at the next interval.
    self._pending: tuple[int, dict[str, Any]] | None = None
    self._stopwatch = bottleneck.Stopwatch()
    self._steps_of_run = num_steps
    self._num_steps = 0
    # Since the last log line, and in all.
    self._interval, self._total = _Tally(), _Tally()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Encloses what the loop waits for the loader."""
    with self._stopwatch.waiting():
      yield

  @contextlib.contextmanager
  def between_steps(self) -> Iterator[None]:
    """Flushes, and keeps what happens inside out of the speed."""
    self.flush()
    start = time.perf_counter()
    yield
    self._interval.start += time.perf_counter() - start

  def add(
    self,
    step: int,
    scalars: Mapping[str, Any],
    finite: Mapping[str, Any],
    reading_seconds: float,
  ) -> None:
    """Takes what step number `step` returned, without waiting for it.

    It waits for earlier ones where the devices are more than a step or two
    behind.

    Args:
      step: Counted from 0.
      scalars: Of this step, "train/loss" among them.
      finite: What was looked at -> whether it was finite.
      reading_seconds: CPU time that reading the batch took.

    Raises:
      NotFiniteError: If a step of an earlier interval was not finite.
    """
    self._stopwatch.handed_over(scalars["train/loss"])
    self._unchecked.append((step, finite))
    self._num_steps += 1
    if self._num_steps == 1:
      # The first step was compiled before it ran: no measure of anything.
      jax.block_until_ready(scalars["train/loss"])
      self._interval = _Tally(idle=self._stopwatch.idle_seconds)
    else:
      self._interval.steps += 1
      self._interval.reading += reading_seconds
    if (step + 1) % self._every:
      return
    self._check(self._unchecked[: -self._every])
    self._write_pending()
    scalars = {**scalars, "train/learning_rate": self._learning_rate(step)}
    if self._interval.steps:
      first = not self._total.steps
      scalars |= self._speed()
      if first:
        seconds = scalars["speed/step_ms"] / 1000
        seconds *= self._steps_of_run - step - 1
        self._writer.say(bottleneck.time_left(seconds))
    self._pending = (step + 1, scalars)

  def _speed(self) -> dict[str, float]:
    """Returns the scalars of the interval, and begins another one."""
    done = self._interval
    seconds = time.perf_counter() - done.start
    idle = self._stopwatch.idle_seconds - done.idle
    self._total.steps += done.steps
    self._total.reading += done.reading
    self._total.seconds += seconds
    self._total.idle += idle
    self._interval = _Tally(idle=self._stopwatch.idle_seconds)
    return {
      "speed/images_per_second": done.steps * self._config.batch_size / seconds,
      "speed/step_ms": 1000 * seconds / done.steps,
      "speed/data_wait": idle / seconds,
    }

  def verdict(self) -> str:
    """Returns the line on what held the run up, "" after too few steps."""
    if self._interval.steps:
      self._speed()
    total = self._total
    if not total.steps:
      return ""
    images = total.steps * self._config.batch_size
    return bottleneck.verdict(
      self._config,
      images / total.seconds,
      total.idle / total.seconds,
      total.reading / images,
    )

  def close(self) -> None:
    """Ends the stopwatch's thread."""
    self._stopwatch.close()

  def flush(self) -> None:
    """Waits for every step so far, checks them and writes what is due.

    Raises:
      NotFiniteError: If one was not finite.
    """
    self._check(self._unchecked)
    self._write_pending()

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes scalars now."""
    self._writer.write(step, step / self._per_epoch, scalars)

  def _write_pending(self):
    if self._pending is not None:
      step, scalars = self._pending
      self._pending = None
      self.write(step, jax.device_get(scalars))
      self._writer.advance(step)

  def _check(self, steps):
    for step, finite in jax.device_get(steps):
      for what, is_finite in finite.items():
        if not is_finite:
          # Counted as in the log: the state after this many steps.
          raise NotFiniteError(what, step + 1)
    self._unchecked = self._unchecked[len(steps) :]
