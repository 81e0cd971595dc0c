"""What is written to the work directory, when, and what the speed means."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax.logs import writer as writer_lib


def lines(workdir):
  return [
    json.loads(line)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]


def test_a_line_for_every_write(tmp_path, capsys):
  writer = writer_lib.MetricWriter(tmp_path, 0, 100)
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


def test_an_undeclared_name_is_an_error_and_writes_nothing(tmp_path):
  writer = writer_lib.MetricWriter(tmp_path, 0, 100)
  with pytest.raises(KeyError, match="train/los'"):
    writer.write(1, 0.1, {"train/loss": 1.0, "train/los": 1.0})
  writer.close()
  assert lines(tmp_path) == []


def test_going_on_drops_later_lines_and_a_half_written_one(tmp_path):
  writer = writer_lib.MetricWriter(tmp_path, 0, 100)
  for step in (10, 20, 30):
    writer.write(step, step / 10, {"train/loss": step / 2})
  writer.close()
  path = tmp_path / "metrics.jsonl"
  whole = path.read_text()
  kept = "".join(whole.splitlines(keepends=True)[:2])
  path.write_text(whole + '{"step": 15, "epoch": 1.5, "train/lo')
  writer = writer_lib.MetricWriter(tmp_path, 20, 100)
  assert path.read_text() == kept
  writer.write(30, 3.0, {"train/loss": 7.0})
  writer.close()
  assert [(x["step"], x["train/loss"]) for x in lines(tmp_path)] == [
    (10, 5.0),
    (20, 10.0),
    (30, 7.0),
  ]


def test_last_values_are_of_evaluations_and_clusters(tmp_path):
  writer = writer_lib.MetricWriter(tmp_path, 0, 100)
  writer.write(10, 1.0, {"eval/knn_top1": 0.1, "cluster/empty": 4})
  writer.write(20, 2.0, {"cluster/empty": 0, "train/loss": 0.5})
  writer.write(30, 3.0, {"eval/nmi_labels": 0.3, "speed/step_ms": 1.0})
  writer.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 40, "cluster/em')
  assert writer_lib.last_values(tmp_path) == {
    "eval/knn_top1": 0.1,
    "cluster/empty": 0,
    "eval/nmi_labels": 0.3,
  }


def test_tensorboard_gets_the_scalars_too(tmp_path):
  writer = writer_lib.MetricWriter(tmp_path, 0, 100)
  writer.write(20, 0.5, {"train/loss": 0.5})
  writer.flush()
  (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
  assert b"train/loss" in events.read_bytes()
  writer.close()


def test_what_is_not_finite_can_still_be_written_and_read(tmp_path):
  writer = writer_lib.MetricWriter(tmp_path, 0, 100)
  writer.write(10, 1.0, {"train/loss": jnp.float32(jnp.nan)})
  writer.close()
  writer_lib.MetricWriter(tmp_path, 10, 100).close()
  assert math.isnan(lines(tmp_path)[0]["train/loss"])
