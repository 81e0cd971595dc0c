"""What is written to the work directory, when, and what the speed means."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax import metrics


@pytest.fixture
def no_tensorboard(monkeypatch):
  """TensorFlow takes seconds to import; one test looks at its files."""
  monkeypatch.setattr(metrics, "_tensorboard", lambda folder: None)


def lines(workdir):
  return [
    json.loads(line)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]


# The writer.


@pytest.mark.usefixtures("no_tensorboard")
def test_a_line_for_every_write(tmp_path, capsys):
  writer = metrics.MetricWriter(tmp_path, 0, 100)
  writer.write(20, 0.712345, {"train/loss": jnp.float32(0.5)})
  # Before anything is flushed or closed.
  (first,) = lines(tmp_path)
  assert first.pop("time") >= 0
  assert first == {"step": 20, "epoch": 0.7123, "train/loss": 0.5}
  values = {"cluster/empty": np.int32(3), "eval/knn_top1": 0.25}
  writer.write(28, 1.0, values)
  writer.close()
  second = lines(tmp_path)[1]
  assert second["step"] == 28
  assert second.items() >= {"cluster/empty": 3, "eval/knn_top1": 0.25}.items()
  # Not on a terminal: a line for each, with what matters.
  shown = capsys.readouterr().out.splitlines()
  assert shown[0] == "step 20/100  epoch 0.7  loss 0.5"
  assert shown[1] == "step 28/100  epoch 1.0  knn_top1 0.25"


@pytest.mark.usefixtures("no_tensorboard")
def test_an_undeclared_name_is_an_error_and_writes_nothing(tmp_path):
  writer = metrics.MetricWriter(tmp_path, 0, 100)
  with pytest.raises(KeyError, match="train/los'"):
    writer.write(1, 0.1, {"train/loss": 1.0, "train/los": 1.0})
  writer.close()
  assert lines(tmp_path) == []


@pytest.mark.usefixtures("no_tensorboard")
def test_going_on_drops_later_lines_and_a_half_written_one(tmp_path):
  writer = metrics.MetricWriter(tmp_path, 0, 100)
  for step in (10, 20, 30):
    writer.write(step, step / 10, {"train/loss": step / 2})
  writer.close()
  path = tmp_path / "metrics.jsonl"
  whole = path.read_text()
  kept = "".join(whole.splitlines(keepends=True)[:2])
  path.write_text(whole + '{"step": 15, "epoch": 1.5, "train/lo')
  writer = metrics.MetricWriter(tmp_path, 20, 100)
  assert path.read_text() == kept
  writer.write(30, 3.0, {"train/loss": 7.0})
  writer.close()
  assert [(x["step"], x["train/loss"]) for x in lines(tmp_path)] == [
    (10, 5.0),
    (20, 10.0),
    (30, 7.0),
  ]


@pytest.mark.usefixtures("no_tensorboard")
def test_last_values_are_of_evaluations_and_clusters(tmp_path):
  writer = metrics.MetricWriter(tmp_path, 0, 100)
  writer.write(10, 1.0, {"eval/knn_top1": 0.1, "cluster/empty": 4})
  writer.write(20, 2.0, {"cluster/empty": 0, "train/loss": 0.5})
  writer.write(30, 3.0, {"eval/nmi_labels": 0.3, "speed/step_ms": 1.0})
  writer.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 40, "cluster/em')
  assert metrics.last_values(tmp_path) == {
    "eval/knn_top1": 0.1,
    "cluster/empty": 0,
    "eval/nmi_labels": 0.3,
  }


def test_tensorboard_gets_the_scalars_too(tmp_path):
  writer = metrics.MetricWriter(tmp_path, 0, 100)
  writer.write(20, 0.5, {"train/loss": 0.5})
  writer.flush()
  (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
  assert b"train/loss" in events.read_bytes()
  writer.close()


# The log of the steps.


class Writer(metrics.MetricWriter):
  """Keeps what it is handed."""

  def __init__(self):
    self.written, self.advanced = [], []

  def write(self, step, epoch, scalars):
    self.written.append((step, epoch, dict(scalars)))

  def advance(self, step):
    self.advanced.append(step)


class Clock:
  """Stands still until it is moved."""

  def __init__(self):
    self.now = 1000.0

  def perf_counter(self):
    return self.now

  def time(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(metrics, "time", clock)
  return clock


def make_log(writer, every):
  config = ConfigDict({"log_every": every, "batch_size": 10})
  return metrics.StepLog(config, writer, lambda step: step / 100, 8)


def add(log, step, finite=True):
  log.add(
    step,
    {"train/loss": jnp.float32(step)},
    {"the loss": jnp.bool_(finite), "an embedding": jnp.bool_(True)},
  )


def test_scalars_are_written_one_interval_late():
  writer = Writer()
  log = make_log(writer, 3)
  for step in range(5):
    add(log, step)
    assert writer.written == []
  add(log, 5)
  # Of the third step, number 2, after which three are done.
  scalars = {"train/loss": 2.0, "train/learning_rate": 0.02}
  assert writer.written == [(3, 3 / 8, scalars)]
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
    metrics.NotFiniteError, match="the loss is not finite in step 2"
  ):
    add(log, 5)


def test_flush_finds_what_is_not_finite_in_any_step():
  for bad in range(5):
    log = make_log(Writer(), 3)
    for step in range(5):
      add(log, step, finite=step != bad)
    with pytest.raises(metrics.NotFiniteError, match=f"in step {bad + 1}$"):
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
    with pytest.raises(metrics.NotFiniteError, match=f"in step {bad + 1}$"):
      add(log, bad // 3 * 3 + 5)


def test_speed_counts_what_lies_between_the_lines(clock):
  """Every step takes two seconds, half a second of them for the loader."""
  writer = Writer()
  log = make_log(writer, 2)

  def steps(first, last):
    for step in range(first, last):
      with log.waiting():
        clock.now += 0.5
      clock.now += 1.5
      add(log, step)

  steps(0, 6)
  with log.between_steps():
    # An evaluation, which is not training.
    clock.now += 100
  steps(6, 10)
  log.flush()
  assert [step for step, _, _ in writer.written] == [2, 4, 6, 8, 10]
  # Nothing is known to be computed when the first line is made, and the
  # second has the time of the first interval too.
  assert not any("speed" in name for name in writer.written[0][2])
  for _, _, scalars in writer.written[2:]:
    assert scalars["speed/step_ms"] == pytest.approx(2000)
    assert scalars["speed/images_per_second"] == pytest.approx(5)
    assert scalars["speed/data_wait"] == pytest.approx(0.25)


@pytest.mark.usefixtures("no_tensorboard")
def test_what_is_not_finite_can_still_be_written_and_read(tmp_path):
  writer = metrics.MetricWriter(tmp_path, 0, 100)
  writer.write(10, 1.0, {"train/loss": jnp.float32(jnp.nan)})
  writer.close()
  metrics.MetricWriter(tmp_path, 10, 100).close()
  assert math.isnan(lines(tmp_path)[0]["train/loss"])
