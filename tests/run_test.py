"""The program as its users start it: command lines, deaths, wrong input."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.program import (
  assert_refused,
  assert_same_run,
  kill_and_go_on,
  last_state,
  lines_of,
  run,
  start,
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
    "config.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "clusters.parquet",
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


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
  environment, finished, tmp_path
):
  workdir = tmp_path / "run"
  kill_and_go_on(environment, workdir, *SHORT)
  assert_same_run(workdir, finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(
  environment, finished, tmp_path, number
):
  workdir = tmp_path / "run"
  process = start(environment, workdir, *SHORT)
  path = workdir / "metrics.jsonl"
  while not path.exists() or path.read_text().count("\n") < 4:
    assert process.poll() is None
    time.sleep(0.01)
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


def damage(workdir, steps):
  for step in steps:
    for path in (workdir / "checkpoints" / step).rglob("d/*"):
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_checkpoint_is_passed_over(environment, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  steps = sorted(os.listdir(workdir / "checkpoints"), key=int)
  damage(workdir, steps[-1:])
  status, out, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  assert f"checkpoints/{steps[-1]} is damaged" in err
  assert f"going on from step {steps[-2]}" in out
  assert lines_of(workdir) == lines_of(finished)


# Mistakes: exit status 2 and one line that names the value and the remedy.


def test_no_readable_checkpoint_is_refused(environment, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  steps = os.listdir(workdir / "checkpoints")
  damage(workdir, steps)
  assert_refused(
    run(environment, workdir, *SHORT), str(workdir), "another --workdir"
  )
  assert sorted(os.listdir(workdir / "checkpoints")) == sorted(steps)


def test_another_configs_work_directory_is_refused(environment, finished):
  before = lines_of(finished)
  assert_refused(
    run(environment, finished, *SHORT, "--config.odc.momentum=0.25"),
    "config.odc.momentum was 0.1, is 0.25",
    str(finished),
    "--workdir",
  )
  assert lines_of(finished) == before


def test_nan_stops_the_run_and_keeps_the_checkpoint_before(
  environment, tmp_path
):
  workdir = tmp_path / "run"
  flags = [*SHORT, "--config.optimizer.learning_rate=1e20"]
  assert_refused(
    run(environment, workdir, *flags), "not finite in step", "learning_rate"
  )
  for name, array in last_state(workdir).items():
    if np.issubdtype(array.dtype, np.floating):
      assert np.isfinite(array).all(), name


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ([], ["--config=configs/odc_digits.py"]),
    (["--config=configs/missing.py"], ["configs/missing.py"]),
    (["--config=configs/odc_digits.py:slow"], ["'slow'", ":quick"]),
    ([QUICK, "--config.odc.momentun=0.5"], ["config.odc.momentun"]),
    ([QUICK, "--config.num_clusters=many"], ["config.num_clusters=many"]),
    ([QUICK, "--wrkdir=x"], ["wrkdir"]),
    ([QUICK, "train"], ["'train'"]),
    (
      [QUICK, "--config.num_clusters=2000"],
      ["num_clusters=2000", "1797 images", "--config.num_clusters="],
    ),
    (
      [QUICK, "--config.batch_size=4096"],
      ["batch_size=4096", "1797 images", "--config.batch_size"],
    ),
    ([QUICK, "--config.batch_size=0"], ["batch_size=0 is less than 1"]),
    ([QUICK, "--config.log_every=0"], ["log_every=0 is less than 1"]),
    (
      [QUICK, "--config.data.crop_scale=(0.5,0.2)"],
      ["data.crop_scale=(0.5, 0.2)", "--config.data.crop_scale=(a,b)"],
    ),
    ([QUICK, "--config.model.group_size=7"], ["group_size=7"]),
    ([QUICK, "--config.model.name=resnet19"], ["resnet19", "resnet18"]),
    ([QUICK, "--config.method=odd"], ["'odd'", "odc"]),
    ([QUICK, "--config.odc.assign_metric=l1"], ["'l1'", "cosine"]),
    ([QUICK, "--config.odc.kmeans_init=best"], ["'best'", "k-means++"]),
    ([QUICK, "--config.odc.memory_dtype=int8"], ["'int8'", "bfloat16"]),
    ([QUICK, "--config.data.sampling=bag"], ["'bag'", "replacement"]),
    ([QUICK, "--config.data.source=folder:/nowhere"], ["/nowhere"]),
    (
      [QUICK, "--config.data.source=folder:"],
      ["--config.data.source=folder:/your/images"],
    ),
    ([QUICK, "--config.data.source=mnist"], ["mnist", "digits"]),
  ],
  ids=lambda value: (value or ["nothing"])[-1],
)
def test_mistakes_are_answered_in_one_line(environment, tmp_path, flags, words):
  workdir = tmp_path / "run"
  assert_refused(run(environment, workdir, *flags), *words)
  assert not list(workdir.glob("checkpoints/*"))


def test_a_work_directory_that_cannot_be_one_is_refused(environment, tmp_path):
  path = tmp_path / "file"
  path.write_text("I was here first")
  assert_refused(run(environment, path, QUICK), str(path), "--workdir")
  assert path.read_text() == "I was here first"


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


def test_imagenet_that_is_not_prepared_comes_with_the_steps(
  environment, tmp_path
):
  status, _, err = run(
    {**environment, "TFDS_DATA_DIR": str(tmp_path)},
    tmp_path / "run",
    "--config=configs/odc_imagenet.py",
  )
  assert status == 2
  assert "Traceback" not in err
  for word in (
    "ILSVRC2012_img_train.tar",
    "ILSVRC2012_img_val.tar",
    f"python -m odc_jax.data.prepare imagenet2012 --data_dir={tmp_path} "
    "--manual_dir=/path/to/tars",
  ):
    assert word in err
