"""Every kind of death: nothing is lost but the steps since the checkpoint."""

import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import odc_digits
from odc_jax.training import loop, programs
from odc_jax.training import step as step_lib
from tests.program import (
  EXPLODING,
  ROOT,
  assert_refused,
  assert_same_run,
  last_state,
  lines_of,
  run,
  start,
  wait_for_lines,
)

SHORT = [
  "--config=configs/odc_digits.py:quick",
  "--config.num_epochs=4",
  "--config.log_every=5",
  "--config.model.width=8",
  "--config.eval.every_epochs=1",
]


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory):
  """A work directory of a run that nobody disturbed."""
  workdir = tmp_path_factory.mktemp("finished") / "run"
  status, _, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  return workdir


# Moments at which a run can be killed: text of its output, or of its log, or
# what lies in its work directory. Each is followed by a random delay.


def _says(process, workdir, text):
  """Waits for a line of the program's output."""
  for line in process.stdout:
    if text in line:
      return


def _first_clustering(process, workdir):
  _says(process, workdir, "first clustering")


def _evaluation(process, workdir):
  # An epoch's line comes right before its evaluation.
  path = workdir / "metrics.jsonl"
  seen = path.read_text().count("nmi_previous") if path.exists() else 0
  while process.poll() is None:
    if path.exists() and path.read_text().count("nmi_previous") > seen:
      return
    time.sleep(0.002)


def _checkpoint(process, workdir):
  folder = workdir / "checkpoints"
  while process.poll() is None:
    if folder.exists() and any("tmp" in path.name for path in folder.iterdir()):
      return
    time.sleep(0.002)


def _anything(process, workdir):
  time.sleep(3)


# run_test.py kills a run three times.
@pytest.mark.release
def test_a_run_killed_twenty_times_is_the_run(environment, finished, tmp_path):
  workdir = tmp_path / "run"
  chance = random.Random(time.time_ns())
  moments = [_first_clustering] * 3 + [_evaluation, _checkpoint, _anything] * 5
  moments += [_checkpoint] * 2
  hits = dict.fromkeys(moments, 0)
  for moment in moments:
    process = start(environment, workdir, *SHORT)
    moment(process, workdir)
    time.sleep(chance.random() * 0.2)
    process.kill()
    process.communicate()
    # It may have come to its end before.
    assert process.returncode in (0, -signal.SIGKILL)
    hits[moment] += process.returncode != 0
  assert hits[_first_clustering] == 3
  assert hits[_checkpoint] >= 1
  status, _, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  assert_same_run(workdir, finished)


@pytest.mark.slow
def test_a_signal_during_the_first_clustering_ends_at_once(
  environment, tmp_path
):
  workdir = tmp_path / "run"
  process = start(environment, workdir, *SHORT)
  _first_clustering(process, workdir)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM
  assert "nothing to save yet; the same command starts again" in err
  assert not list((workdir / "checkpoints").iterdir())


# run_test.py sends one during a step, this file during the first clustering.
@pytest.mark.release
def test_a_signal_during_an_evaluation_saves_and_evaluates_again(
  environment, finished, tmp_path
):
  # An evaluation that takes a while: one image at a time.
  flags = [*SHORT, "--config.eval.batch_size=1"]
  workdir = tmp_path / "run"
  process = start(environment, workdir, *flags)
  _evaluation(process, workdir)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM
  assert "stopped at step 28 of 112; the same command goes on" in err
  evaluated = [line["step"] for line in lines_of(workdir) if _is_eval(line)]
  assert evaluated == [0]
  assert (workdir / "checkpoints" / "28").exists()
  # Whatever else changed, the config of a run may not: so the second half is
  # compared by its numbers alone.
  status, _, err = run(environment, workdir, *flags)
  assert status == 0, err
  assert lines_of(workdir) == lines_of(finished)


def _is_eval(line):
  return any(name.startswith("eval/") for name in line)


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(
  environment, finished, tmp_path
):
  workdir = tmp_path / "run"
  process = start(environment, workdir, *SHORT)
  wait_for_lines(workdir, 9, [process])
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  before = sorted((workdir / "checkpoints").iterdir())
  # To a program a limit on the size of its files, 200 kB, is a full disk.
  limited = subprocess.run(
    [
      *("bash", "-c", 'ulimit -f 200; exec "$@"', "-"),
      *(sys.executable, "run.py", f"--workdir={workdir}", *SHORT),
    ],
    cwd=ROOT,
    env={**environment, "JAX_ENABLE_COMPILATION_CACHE": "false"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert limited.returncode == 2, limited.stderr
  # After Orbax's own tracebacks.
  last = limited.stderr.strip().splitlines()[-1]
  assert "error: cannot write a checkpoint to" in last
  assert "make room, and the same command goes on" in last
  assert {path.name for path in before} <= {
    path.name for path in (workdir / "checkpoints").iterdir()
  }
  status, _, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  assert_same_run(workdir, finished)


@pytest.mark.slow
def test_a_flipped_bit_is_noticed(environment, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  folder = workdir / "checkpoints"
  *_, before, last = sorted(int(path.name) for path in folder.iterdir())
  largest = max(
    (path for path in (folder / str(last)).rglob("d/*")),
    key=lambda path: path.stat().st_size,
  )
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  status, out, err = run(environment, workdir, *SHORT)
  assert status == 0, err
  assert f"checkpoints/{last} is damaged" in err
  assert "has changed since it was written" in err
  assert f"going on from step {before}" in out
  assert_same_run(workdir, finished)


# Not finite.


@pytest.mark.slow
def test_rollback_goes_back_and_takes_another_order(
  tmp_path, monkeypatch, capsys
):
  make_step = step_lib.make_step

  def make_failing_step(*args):
    step = make_step(*args)

    def failing(state, batch):
      state, scalars, finite = step(state, batch)
      fails = (state.step == 33) & (state.restarts == 0)
      scalars["train/loss"] = jnp.where(fails, jnp.nan, scalars["train/loss"])
      finite["the loss"] &= ~fails
      return state, scalars, finite

    return failing

  monkeypatch.setattr(programs, "make_step", make_failing_step)
  config = odc_digits.get_config("quick")
  config.update_from_flattened_dict(
    {
      "model.width": 8,
      "num_epochs": 2,
      "on_nan": "rollback",
      "log_every": 4,
      "checkpoint_every_epochs": 1,
    }
  )
  loop.train(config, tmp_path)
  captured = capsys.readouterr()
  assert "the loss is not finite in step 33: going back" in captured.err
  assert "going on from step 28 of 56" in captured.out
  lines = lines_of(tmp_path)
  steps = [line["step"] for line in lines if "train/loss" in line]
  assert steps == list(range(4, 57, 4))
  assert all(np.isfinite(line.get("train/loss", 0)) for line in lines)
  state = last_state(tmp_path)
  assert state["/restarts"] == 1
  fresh = jax.random.split(jax.random.key(config.seed), 3)[2]
  np.testing.assert_array_equal(
    state["/key"], jax.random.key_data(jax.random.fold_in(fresh, 1))
  )


# The test before rolls back once, in this process.
@pytest.mark.release
def test_rollback_gives_up_when_it_does_not_help(environment, tmp_path):
  flags = [
    *SHORT,
    "--config.on_nan=rollback",
    *EXPLODING,
  ]
  status, _, err = run(environment, tmp_path / "run", *flags)
  assert_refused((status, "", err), "not finite in step", "after 3 rollbacks")
  assert err.count("going back to the last checkpoint") == 3
