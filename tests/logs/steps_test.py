"""The log of the steps: late, complete, and with a true clock."""

import contextlib

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from odc_jax.logs import bottleneck
from odc_jax.logs import steps as steps_lib
from odc_jax.logs import writer as writer_lib


class Writer(writer_lib.MetricWriter):
  """Keeps what it is handed."""

  def __init__(self):
    self.written, self.advanced, self.said = [], [], []

  def write(self, step, epoch, scalars):
    self.written.append((step, epoch, dict(scalars)))

  def advance(self, step):
    self.advanced.append(step)

  def say(self, text):
    self.said.append(text)


def make_log(writer, every):
  config = ConfigDict(
    {
      "log_every": every,
      "batch_size": 10,
      "data": {"resident": "off", "num_threads": 2, "num_workers": 0},
      "model": {"train": "all"},
    }
  )
  return steps_lib.StepLog(config, writer, lambda step: step / 100, 8, 1000)


def add(log, step, finite=True):
  log.add(
    step,
    {"train/loss": jnp.float32(step)},
    {"the loss": jnp.bool_(finite), "an embedding": jnp.bool_(True)},
    reading_seconds=0.2,
  )


def test_scalars_are_written_one_interval_late():
  writer = Writer()
  log = make_log(writer, 3)
  for step in range(5):
    add(log, step)
    assert writer.written == []
  add(log, 5)
  # Of the third step, number 2, after which three are done.
  ((count, epoch, scalars),) = writer.written
  assert (count, epoch) == (3, 3 / 8)
  assert (
    scalars.items()
    >= {
      "train/loss": 2.0,
      "train/learning_rate": 0.02,
    }.items()
  )
  assert writer.advanced == [3]
  add(log, 6)
  log.flush()
  assert [step for step, _, _ in writer.written] == [3, 6]
  assert writer.written[1][2]["train/loss"] == 5.0
  log.flush()
  assert len(writer.written) == 2


def test_scalars_of_evaluations_are_written_at_once():
  writer = Writer()
  make_log(writer, 3).write(16, {"eval/knn_top1": 0.5})
  assert writer.written == [(16, 2.0, {"eval/knn_top1": 0.5})]


def test_what_is_not_finite_is_found_an_interval_later():
  log = make_log(Writer(), 3)
  for step in range(5):
    add(log, step, finite=step != 1)
  with pytest.raises(
    steps_lib.NotFiniteError, match="the loss is not finite in step 2"
  ):
    add(log, 5)


def test_flush_finds_what_is_not_finite_in_any_step():
  for bad in range(5):
    log = make_log(Writer(), 3)
    for step in range(5):
      add(log, step, finite=step != bad)
    with pytest.raises(steps_lib.NotFiniteError, match=f"in step {bad + 1}$"):
      log.flush()
  log = make_log(Writer(), 3)
  for step in range(5):
    add(log, step)
  log.flush()


def test_no_step_escapes_the_check_behind_a_flush():
  for bad in range(4, 9):
    log = make_log(Writer(), 3)
    for step in range(4):
      add(log, step)
    with log.between_steps():
      pass
    # No later than at the end of the next interval.
    for step in range(4, bad // 3 * 3 + 5):
      add(log, step, finite=step != bad)
    with pytest.raises(steps_lib.NotFiniteError, match=f"in step {bad + 1}$"):
      add(log, bad // 3 * 3 + 5)


class Clock:
  """Stands still until it is moved."""

  def __init__(self):
    self.now = 1000.0

  def perf_counter(self):
    return self.now


class Stopwatch:
  """Devices that wait for as long as the loop does."""

  def __init__(self, clock):
    self.clock, self.idle_seconds = clock, 0.0

  @contextlib.contextmanager
  def waiting(self):
    start = self.clock.now
    yield
    self.idle_seconds += self.clock.now - start

  def handed_over(self, result):
    pass


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(steps_lib, "time", clock)
  monkeypatch.setattr(bottleneck, "Stopwatch", lambda: Stopwatch(clock))
  return clock


def test_speed_counts_what_lies_between_the_lines(clock):
  """Every step takes two seconds, half a second of them for the loader."""
  writer = Writer()
  log = make_log(writer, 2)

  def steps(first, last):
    for step in range(first, last):
      with log.waiting():
        clock.now += 0.5
      clock.now += 60 if step == 0 else 1.5  # compilation
      add(log, step)

  steps(0, 6)
  with log.between_steps():
    # An evaluation, which is not training.
    clock.now += 100
  steps(6, 10)
  log.flush()
  assert [step for step, _, _ in writer.written] == [2, 4, 6, 8, 10]
  for _, _, scalars in writer.written:
    assert scalars["speed/step_ms"] == pytest.approx(2000)
    assert scalars["speed/images_per_second"] == pytest.approx(5)
    assert scalars["speed/data_wait"] == pytest.approx(0.25)
  # 10 images in 0.2 s of a core each step.
  verdict = log.verdict()
  assert verdict.startswith("data-bound: 5 images/s")
  assert "25.0% of the time" in verdict
  assert "1.3 times as fast" in verdict
  assert "20 ms of a core" in verdict


def test_a_run_of_one_step_has_no_verdict(clock):
  log = make_log(Writer(), 2)
  add(log, 0)
  assert log.verdict() == ""
  clock.now += 3
  add(log, 1)
  assert "3 images/s" in log.verdict()


def test_the_time_left_is_said_once(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(steps_lib, "time", clock)
  monkeypatch.setattr(bottleneck, "Stopwatch", lambda: Stopwatch(clock))
  writer = Writer()
  log = make_log(writer, 4)
  for step in range(16):
    clock.now += 0.5
    add(log, step)
  # Of 1,000 steps 996 are to come, half a second each.
  assert writer.said == [
    "training takes about 8 minutes from here on this machine"
  ]


@pytest.mark.parametrize(
  ("seconds", "words"),
  [(0.2, "1 s"), (89.0, "89 s"), (600.0, "10 minutes"), (32400.0, "9.0 hours")],
)
def test_times_in_words(seconds, words):
  said = bottleneck.time_left(seconds)
  assert f"about {words} from here" in said
  assert (":quick" in said) == (seconds > 3600)
