"""The program as its users start it: command lines, deaths, wrong input."""

import json
import os
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.program import (
  EXPLODING,
  assert_refused,
  assert_same_run,
  kill_and_go_on,
  last_state,
  lines_of,
  run,
  start,
  wait_for_lines,
)

QUICK = "--config=configs/odc_digits.py:quick"
# A few seconds of training, a checkpoint every other second.
SHORT = [
  QUICK,
  "--config.num_epochs=4",
  "--config.log_every=5",
  "--config.model.width=8",
]


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory):
  """A work directory of a run that nobody disturbed."""
  workdir = tmp_path_factory.mktemp("finished") / "run"
  status, out, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  assert "eval/knn_top1" in out
  return workdir


def test_a_run_leaves_what_the_readme_promises(finished):
  names = {path.name for path in finished.iterdir()}
  assert names == {
    ".lock",
    "config.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "clusters.parquet",
    "clusters.json",
    "embeddings.npy",
    "centroids.npy",
    "features.npy",
    "components.npz",
    "parameters.txt",
    "report.html",
    "summary.json",
  }
  summary = json.loads((finished / "summary.json").read_text())
  assert 0.5 < summary["eval/knn_top1"] <= 1
  assert summary["cluster/empty"] == 0
  table = pq.read_table(finished / "clusters.parquet").to_pydict()
  assert table["index"] == list(range(1797))
  assert table["key"][3] == "digits/0003"
  assert set(table["cluster"]) == set(range(30))
  assert table["cluster_size"][0] == table["cluster"].count(table["cluster"][0])
  assert set(table["label"]) == set(range(10))
  assert list(finished.joinpath("tensorboard").glob("events.*"))
  steps = [line["step"] for line in lines_of(finished)]
  assert steps == sorted(steps)
  assert steps[-1] == 4 * 28


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
  environment, finished, tmp_path
):
  workdir = tmp_path / "run"
  kill_and_go_on(environment, workdir, *SHORT)
  assert_same_run(workdir, finished)


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(
  environment, finished, tmp_path
):
  workdir = tmp_path / "run"
  for number, lines in (signal.SIGINT, 4), (signal.SIGTERM, 12):
    process = start(environment, workdir, *SHORT)
    wait_for_lines(workdir, lines, [process])
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "the same command goes on" in err
    assert "Traceback" not in err
  status, out, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  assert "going on from step" in out
  assert lines_of(workdir) == lines_of(finished)


def test_a_finished_run_is_left_as_it_is(environment, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  before = lines_of(workdir)
  status, _, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  assert lines_of(workdir) == before


@pytest.mark.slow
def test_ctrl_c_while_the_results_are_written(environment, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  (workdir / "clusters.parquet").unlink()
  process = start(environment, workdir, *SHORT)
  for line in process.stdout:
    if "comparing the images" in line:
      break
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGINT
  assert "the same command" in err
  assert "Traceback" not in err
  assert not (workdir / "clusters.parquet").exists()
  assert [path.name for path in workdir.glob(".*")] == [".lock"]
  status, _, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  assert_same_run(workdir, finished)


def damage(workdir, steps):
  for step in steps:
    for path in (workdir / "checkpoints" / step).rglob("d/*"):
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_a_truncated_checkpoint_is_passed_over(environment, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  steps = sorted(os.listdir(workdir / "checkpoints"), key=int)
  damage(workdir, steps[-1:])
  status, out, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  assert f"checkpoints/{steps[-1]} is damaged" in err
  assert f"going on from step {steps[-2]}" in out
  assert lines_of(workdir) == lines_of(finished)


# logs/health_test.py has every sign by hand.
@pytest.mark.release
def test_a_run_that_is_made_to_collapse_says_so(
  environment, finished, tmp_path
):
  # A healthy one says nothing; see the names of its files above.
  assert not (finished / "warnings.jsonl").exists()
  collapsing = [
    *SHORT,
    "--config.num_epochs=3",
    # Steps far too large, a memory that keeps nothing, and nothing that holds
    # the sizes of the clusters apart.
    "--config.optimizer.learning_rate=2.0",
    "--config.odc.momentum=1.0",
    "--config.odc.min_cluster=0",
    "--config.odc.reweight_power=0.0",
  ]
  workdir = tmp_path / "run"
  status, _, err = run(environment, workdir, *collapsing)
  assert status == 0, err
  kept = (workdir / "warnings.jsonl").read_text()
  found = [json.loads(line) for line in kept.splitlines()]
  signs = {finding["sign"] for finding in found}
  assert {"embeddings", "sizes", "largest", "empty"} <= signs
  for finding in found:
    assert f"warning: step {finding['step']}: {finding['text']}\n" in err

  # As if killed in the third epoch: the same warnings, those of before silent.
  shutil.rmtree(workdir / "checkpoints" / "84")
  status, out, err = run(environment, workdir, *collapsing)
  assert status == 0, err
  assert "going on from step 56" in out
  assert (workdir / "warnings.jsonl").read_text() == kept
  assert [line for line in err.splitlines() if "warning: step" in line] == [
    f"warning: step {finding['step']}: {finding['text']}"
    for finding in found
    if finding["step"] > 56
  ]


@pytest.mark.slow
def test_no_readable_checkpoint_is_refused(environment, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  steps = os.listdir(workdir / "checkpoints")
  damage(workdir, steps)
  assert_refused(
    run(environment, workdir, *SHORT), str(workdir), "another --workdir"
  )
  assert sorted(os.listdir(workdir / "checkpoints")) == sorted(steps)


@pytest.mark.slow
def test_in_a_bare_container_no_stack_trace_is_printed(tmp_path):
  """No home, no locale, no programs on the path, no folder for caches."""
  (tmp_path / "file").write_text("no folder")
  bare = {
    "JAX_PLATFORMS": "cpu",
    "PATH": str(tmp_path),
    "XDG_CACHE_HOME": str(tmp_path / "file"),
  }
  workdir = tmp_path / "run"
  for flags in (["--help"], [*SHORT, "--config.num_epochs=1"],
                ["--mode=report"]):  # fmt: skip
    status, out, err = run(bare, workdir, *flags)
    assert status == 0, err
    assert "Traceback" not in out + err
  assert (workdir / "report.html").exists()


def test_another_configs_work_directory_is_refused(environment, finished):
  before = lines_of(finished)
  assert_refused(
    run(environment, finished, *SHORT, "--config.odc.momentum=0.25"),
    "config.odc.momentum was 0.1, is 0.25",
    str(finished),
    "--workdir",
  )
  assert lines_of(finished) == before


@pytest.mark.slow
def test_nan_stops_the_run_and_keeps_the_checkpoint_before(
  environment, tmp_path
):
  workdir = tmp_path / "run"
  flags = [*SHORT, *EXPLODING]
  assert_refused(
    run(environment, workdir, *flags), "not finite in step", "learning_rate"
  )
  for name, array in last_state(workdir).items():
    if np.issubdtype(array.dtype, np.floating):
      assert np.isfinite(array).all(), name


@pytest.mark.slow
def test_a_run_that_lost_its_config_is_refused(environment, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  for damage_it in (
    lambda path: path.write_text(path.read_text()[:100]),
    lambda path: path.unlink(),
  ):
    damage_it(workdir / "config.json")
    assert_refused(
      run(environment, workdir, *SHORT), "config.json", "--workdir"
    )
