"""What counts as waiting for images, and what is said about it."""

import threading
import time

import pytest
from ml_collections import ConfigDict

from odc_jax.logs import bottleneck


class Clock:
  """Stands still until it is moved."""

  now = 100.0

  def perf_counter(self):
    return self.now


class Step:
  """A result that is computed when it is told to be."""

  def __init__(self):
    self.event = threading.Event()

  def block_until_ready(self):
    assert self.event.wait(60)


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(bottleneck, "time", clock)
  return clock


@pytest.fixture
def stopwatch(clock):
  stopwatch = bottleneck.Stopwatch()
  yield stopwatch
  stopwatch.close()


def compute(stopwatch, step):
  before = stopwatch._computed
  step.event.set()
  while stopwatch._computed == before:
    time.sleep(0.001)


def test_only_waiting_behind_the_last_step_counts(clock, stopwatch):
  first = Step()
  with stopwatch.waiting():
    clock.now += 1  # nothing was handed over yet
  assert stopwatch.idle_seconds == 1
  stopwatch.handed_over(first)
  with stopwatch.waiting():
    clock.now += 5  # the devices are at work
  assert stopwatch.idle_seconds == 1
  with stopwatch.waiting():
    clock.now += 2
    compute(stopwatch, first)
    clock.now += 3  # now they are not
  assert stopwatch.idle_seconds == 4
  second = Step()
  stopwatch.handed_over(second)
  compute(stopwatch, second)
  clock.now += 10  # the loop does something else
  with stopwatch.waiting():
    clock.now += 1
  assert stopwatch.idle_seconds == 5


def test_no_more_than_two_steps_are_under_way(stopwatch):
  steps = [Step() for _ in range(5)]
  handed_over = []

  def hand_over():
    for step in steps:
      stopwatch.handed_over(step)
      handed_over.append(step)

  thread = threading.Thread(target=hand_over)
  thread.start()
  for done in range(5):
    deadline = time.monotonic() + 60
    while len(handed_over) < min(5, done + bottleneck.IN_FLIGHT):
      assert time.monotonic() < deadline
      time.sleep(0.001)
    time.sleep(0.02)
    assert len(handed_over) <= done + bottleneck.IN_FLIGHT
    compute(stopwatch, steps[done])
  thread.join()


def test_a_step_that_fails_does_not_stop_the_watch(stopwatch):
  class Failing:
    def block_until_ready(self):
      raise RuntimeError("out of memory")

  for _ in range(4):
    stopwatch.handed_over(Failing())


@pytest.mark.parametrize(
  ("where", "threads", "workers", "wait", "milliseconds", "says"),
  [
    ("off", 4, 0, 0.01, 1, "compute-bound: 100 images/s"),
    ("off", 4, 0, 0.5, 1, "raise data.num_threads from 4 to 8"),
    ("off", 8, 0, 0.5, 1, "set data.num_workers"),
    ("off", 4, 4, 0.5, 1, "raise data.num_workers from 4"),
    ("off", 4, 0, 0.5, 70, "the cores are at their limit"),
    ("off", 4, 0, 0.5, 70, "or keep them on the devices"),
    ("images", 4, 0, 0.01, 0.01, "compute-bound: 100 images/s"),
    ("images", 4, 0, 0.5, 0.01, "drawing crops of an image takes 0.01 ms"),
    ("images", 4, 0, 0.5, 0.01, "a larger batch_size would help"),
    ("frozen", 4, 0, 0.01, 0.01, "compute-bound: 100 images/s"),
    ("frozen", 4, 0, 0.5, 0.01, "choosing an image takes 0.01 ms"),
    ("frozen", 4, 0, 0.5, 0.01, "a larger batch_size would help"),
  ],
)
def test_the_verdict_names_what_to_change(
  monkeypatch, where, threads, workers, wait, milliseconds, says
):
  monkeypatch.setattr(
    bottleneck.os, "sched_getaffinity", lambda _: range(8), raising=False
  )
  config = ConfigDict(
    {
      "data": {
        "resident": "images" if where == "images" else "off",
        "num_threads": threads,
        "num_workers": workers,
      },
      "model": {"train": "head" if where == "frozen" else "all"},
    }
  )
  verdict = bottleneck.verdict(config, 100.0, wait, milliseconds / 1000)
  assert says in verdict
  assert f"{wait:.1%}" in verdict
  assert "\n" not in verdict
  assert ("2.0 times as fast" in verdict) == (wait == 0.5)
  assert where == "off" or "num_threads" not in verdict
  assert where == "off" or "data.resident" not in verdict
  assert where != "frozen" or "image_size" not in verdict
