"""The program as several processes: the same run, whatever it runs on."""

import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from odc_jax.interop import export
from tests.interop.networks import experiment, random_weights
from tests.program import (
  finish,
  lines_of,
  run,
  start_together,
  wait_for_lines,
)

QUICK = "--config=configs/odc_digits.py:quick"
# At the config's own rate training amplifies rounding within ten steps to
# another trajectory.
SHORT = [
  QUICK,
  "--config.num_epochs=3",
  "--config.batch_size=128",
  "--config.log_every=2",
  "--config.model.width=8",
  "--config.optimizer.learning_rate=0.0001",
  # An image between two clusters would make 1e-3 of a rounding error.
  "--config.odc.momentum=0.02",
  "--config.odc.centroid_every=1000",
]
NUM_STEPS = 3 * 14


@pytest.fixture(scope="module")
def alone(environment, tmp_path_factory):
  """The run of one process with eight devices."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  environment = {**environment, "JAX_NUM_CPU_DEVICES": "8"}
  status, _, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  return workdir


def assert_agree(workdir, other):
  """Compares losses, scores and clusters, up to rounding and what it does."""
  lines, others = lines_of(workdir), lines_of(other)
  assert [line["step"] for line in lines] == [line["step"] for line in others]
  assert lines[-1]["step"] == NUM_STEPS
  for line, other_line in zip(lines, others, strict=True):
    assert line.keys() == other_line.keys()
    if "train/loss" in line:
      # Rounding alone: 1e-7 in a step, and training amplifies it, to 1e-4 in
      # 56 steps (1 against 8 devices).
      rtol = 1e-6 if line["step"] == 2 else 3e-4
      np.testing.assert_allclose(
        line["train/loss"], other_line["train/loss"], rtol=rtol
      )
    for name in line:
      if name.startswith("eval/"):
        np.testing.assert_allclose(line[name], other_line[name], atol=0.03)
  table, other_table = (
    pq.read_table(folder / "clusters.parquet") for folder in (workdir, other)
  )
  for name in ("index", "key", "label"):
    assert table[name] == other_table[name]
  same = np.equal(table["cluster"], other_table["cluster"])
  assert same.mean() > 0.97


# The test after this goes through two processes and one.
@pytest.mark.release
@pytest.mark.parametrize(("count", "devices"), [(2, 4), (4, 2)])
def test_two_and_four_processes_run_what_one_runs(
  environment, alone, tmp_path, count, devices
):
  workdir = tmp_path / "run"
  results = finish(start_together(environment, workdir, count, devices, *SHORT))
  for status, _, err in results:
    assert status == 0, err
  assert_agree(workdir, alone)
  # One of them talks, and the others have nothing to say.
  assert "eval/knn_top1" in results[0][1]
  for _, out, _ in results[1:]:
    assert "eval/knn_top1" not in out
  assert sorted(path.name for path in workdir.iterdir()) == sorted(
    path.name for path in alone.iterdir()
  )


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_devices(
  environment, alone, tmp_path
):
  """8 -> 4 -> 2 -> 1 devices, 2 -> 1 -> 2 -> 1 processes."""
  workdir = tmp_path / "run"
  stops = 0
  for count, devices in ((2, 4), (1, 4), (2, 1), (1, 1)):
    processes = start_together(environment, workdir, count, devices, *SHORT)
    if (count, devices) != (1, 1):
      seen = len(lines_of(workdir)) if stops else 0
      wait_for_lines(workdir, seen + 4, processes)
      # One of them is told, and all of them save and end.
      processes[-1].send_signal(signal.SIGTERM)
      for status, _, err in finish(processes):
        assert status == 128 + signal.SIGTERM, err
        assert "Traceback" not in err
      stops += 1
    else:
      ((status, out, err),) = finish(processes)
      assert status == 0, err
      assert "going on from step" in out
  assert_agree(workdir, alone)


@pytest.mark.parametrize(
  "victim",
  [
    pytest.param(0, marks=pytest.mark.slow),
    pytest.param(1, marks=pytest.mark.release),
  ],
)
def test_where_one_process_dies_the_other_ends(environment, tmp_path, victim):
  workdir = tmp_path / "run"
  processes = start_together(environment, workdir, 2, 1, *SHORT)
  wait_for_lines(workdir, 3, processes)
  processes[victim].kill()
  # Far less than the minutes for which a collective operation would wait.
  _, err = processes[1 - victim].communicate(timeout=20)
  processes[victim].communicate()
  assert processes[1 - victim].returncode == 1
  assert f"error: process {victim} has died; the same command goes on" in err
  assert "Traceback" not in err


@pytest.mark.parametrize(
  ("each", "words"),
  [
    (
      [["--config.batch_size=64"], ["--config.batch_size=128"]],
      "process 1 has config.batch_size 128, process 0 has 64",
    ),
    (
      [[], ["--config.data.source=folder:/nowhere"]],
      "process 1: folder:/nowhere: there is no such folder",
    ),
  ],
  ids=["config", "data"],
)
def test_processes_that_disagree_are_refused(
  environment, tmp_path, each, words
):
  results = finish(
    start_together(environment, tmp_path / "run", 2, 1, QUICK, each=each)
  )
  for status, _, err in results:
    assert status == 2, err
    assert "Traceback" not in err
  assert words in results[0][2]
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_start_from_the_same_file(environment, tmp_path):
  weights = tmp_path / "weights.safetensors"
  config = experiment(name="resnet18", stem="imagenet", width=8)
  backbone = export.state_dict(*random_weights(config), 0)["backbone"]
  safetensors.numpy.save_file(backbone, weights)
  workdir = tmp_path / "run"
  results = finish(
    start_together(
      environment,
      workdir,
      2,
      2,
      QUICK,
      "--config.num_epochs=0",
      "--config.model.width=8",
      f"--config.model.weights={weights}",
    )
  )
  for status, _, err in results:
    assert status == 0, err
  first, second = (out for _, out, _ in results)
  said = f"weights of backbone from {weights}"
  assert said in first
  assert said not in second
  # Out again, in one process and on other devices.
  export.write(workdir, tmp_path / "export")
  kept = safetensors.numpy.load_file(tmp_path / "export/model.safetensors")
  assert kept.keys() == backbone.keys()
  for name, array in backbone.items():
    np.testing.assert_array_equal(kept[name], array, err_msg=name)
