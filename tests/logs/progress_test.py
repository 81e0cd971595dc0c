"""What is said of a long task where there is no terminal."""

import time

import pytest

from odc_jax.logs import progress


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still unless it is set."""
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  return now


def said(capsys, clock, total, calls):
  """Returns the lines, of calls as (seconds since the last one, done)."""
  with progress.bar("features of the images", total) as advance:
    for seconds, done in calls:
      clock[0] += seconds
      advance(done)
  return capsys.readouterr().out.splitlines()


def test_a_long_task_says_once_how_long_it_takes(capsys, clock):
  # A minute of compiling, then 20 images in 2 seconds; going on from 40.
  calls = [(0, 40), (60, 60), (2, 80), (2, 100), (2, 120), (2, 140)]
  begin, estimate = said(capsys, clock, 6120, calls)
  assert begin == "features of the images (6,120)"
  assert estimate == "features of the images: about 10 minutes left, 10.0/s"


def test_a_short_one_does_not(capsys, clock):
  calls = [(0, 0), (60, 20), (6, 80), (6, 140)]
  assert said(capsys, clock, 200, calls) == ["features of the images (200)"]


def test_nothing_is_said_by_the_other_processes(capsys, clock):
  with progress.bar("features of the images", 9, shown=False) as advance:
    for done in range(9):
      clock[0] += 60
      advance(done)
  assert not capsys.readouterr().out


@pytest.mark.parametrize(
  ("seconds", "words"),
  [
    (0.2, "1 s"),
    (89.0, "89 s"),
    (90.0, "2 minutes"),
    (5399.0, "90 minutes"),
    (5400.0, "1.5 hours"),
    (172_800.0, "2.0 days"),
  ],
)
def test_lengths_of_time(seconds, words):
  assert progress.duration(seconds) == words
