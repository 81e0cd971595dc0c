"""What several processes say to each other, with real ones."""

import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
COUNT, DEVICES = 2, 2


def work(scenario, index, port):
  """Plays one of the processes."""
  import jax

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES)
  jax.distributed.initialize(f"localhost:{port}", COUNT, index)
  from odc_jax import mesh as mesh_lib
  from odc_jax.distributed import lifeline

  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh), lifeline.together():
    globals()[scenario](index, mesh)


def talk(index, mesh):
  import jax.numpy as jnp
  import numpy as np

  from odc_jax import mesh as mesh_lib
  from odc_jax.distributed import processes

  assert processes.gather({"é": [index] * (1 + index)}) == [
    {"é": [0]},
    {"é": [1, 1]},
  ]
  assert processes.gather(None) == [None, None]
  # Each brings half of the rows.
  batch = {"x": np.arange(4 * index, 4 * index + 4), "y": np.ones((2, 3))}
  batch = processes.to_devices(batch, mesh)
  assert batch["x"].sharding == mesh_lib.rows(mesh)
  assert batch["y"].shape == (4, 3)
  np.testing.assert_array_equal(processes.to_host(batch["x"]), np.arange(8))
  total = jnp.sum(batch["x"])
  assert processes.to_host(total) == 28
  processes.say("spoken once")
  processes.warn("warned once")
  processes.check_equal({"batch_size": 64, "names": ["a", "b"]})


def disagree(index, mesh):
  from odc_jax.distributed import processes

  processes.check_equal({"batch_size": 64, "images": 10 + index})


def listen(index, mesh):
  from odc_jax.distributed import stop as stop_lib

  stop = stop_lib.Stop(mesh)
  with stop.listening():
    print("listening", flush=True)
    calls = 0
    while not stop.requested():
      calls += 1
      time.sleep(0.01)
  print(f"stopped after {calls} calls", flush=True)
  raise SystemExit(stop.exit_status)


def wait_for_each_other(index, mesh):
  from odc_jax.distributed import processes

  print("waiting", flush=True)
  while True:
    processes.gather(index)


def one_fails(index, mesh):
  from odc_jax.errors import UserError

  if index == 1:
    raise UserError("there is no folder /data; mount it")
  wait_for_each_other(index, mesh)


def one_breaks(index, mesh):
  if index == 0:
    raise RuntimeError("a bug")
  wait_for_each_other(index, mesh)


def play(scenario):
  """Starts the processes."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  code = "from tests.distributed.processes_test import work; work({!r}, {}, {})"
  return [
    subprocess.Popen(
      [sys.executable, "-c", code.format(scenario, index, port)],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(COUNT)
  ]


def ends(processes):
  """Returns (status, out, err) of each."""
  results = []
  for process in processes:
    out, err = process.communicate(timeout=100)
    results.append((process.returncode, out, err))
  return results


def wait_until_all_say(processes, text):
  for process in processes:
    for line in process.stdout:
      if text in line:
        break


def test_they_talk_and_share_a_batch():
  first, second = ends(play("talk"))
  for status, _, err in (first, second):
    assert status == 0, err
  assert "spoken once" in first[1]
  assert "warned once" in first[2]
  assert "once" not in second[1] + second[2]


def test_a_disagreement_ends_all_of_them():
  first, second = ends(play("disagree"))
  assert first[0] == second[0] == 2
  assert "process 1 has images 11, process 0 has 10: start all" in first[2]
  assert "Traceback" not in first[2] + second[2]


@pytest.mark.parametrize(
  ("number", "told"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)]
)
def test_a_signal_to_one_stops_all_at_the_same_call(number, told):
  processes = play("listen")
  wait_until_all_say(processes, "listening")
  processes[told].send_signal(number)
  results = ends(processes)
  calls = [out.split("stopped after ")[1] for _, out, _ in results]
  assert calls[0] == calls[1]
  for index, (status, _, err) in enumerate(results):
    # Those that were not told end as for SIGTERM.
    assert status == 128 + (number if index == told else signal.SIGTERM), err


@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_is_noticed_at_once(victim):
  processes = play("wait_for_each_other")
  wait_until_all_say(processes, "waiting")
  processes[victim].kill()
  survivor = processes[1 - victim]
  # JAX itself would need its heartbeat's 100 seconds.
  _, err = survivor.communicate(timeout=30)
  processes[victim].communicate()
  assert survivor.returncode == 1
  assert f"error: process {victim} has died; the same command goes on" in err
  assert "Traceback" not in err


def test_a_users_mistake_in_one_is_told_by_the_first():
  first, second = ends(play("one_fails"))
  assert first[0] == second[0] == 2
  assert "error: process 1: there is no folder /data; mount it" in first[2]
  assert "error: there is no folder /data; mount it" in second[2]
  assert "Traceback" not in first[2] + second[2]


def test_a_bug_in_one_ends_all_and_shows_where():
  first, second = ends(play("one_breaks"))
  assert first[0] == second[0] == 1
  assert "Traceback" in first[2]
  assert "RuntimeError: a bug" in first[2]
  assert "error: process 0: a bug" in second[2]
