"""Real processes on the CPU: they find each other, or say why not."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
DEVICES = 2

# Starts and ends as run.py does; adds up a one of every device in between.
PROGRAM = """
import json, sys, traceback
from odc_jax.distributed import launch, rendezvous
from odc_jax.errors import UserError

launch.LINGER_SECONDS = rendezvous.LINGER_SECONDS = 1.0
launch.HEARTBEAT_SECONDS = 8

def work(fail_at=-1):
  launch.start(**json.loads(sys.argv[1]))
  import jax, numpy as np
  from odc_jax import mesh as mesh_lib
  mesh = mesh_lib.make_mesh()
  ones = jax.make_array_from_process_local_data(
    mesh_lib.rows(mesh), np.ones(jax.local_device_count(), np.int32)
  )
  add = jax.jit(lambda x: x.sum(), out_shardings=mesh_lib.replicated(mesh))
  print(f"\\nsum {add(ones)}", flush=True)
  if fail_at == jax.process_index():
    raise UserError("only here")
  while fail_at >= 0:
    add(ones).block_until_ready()

try:
  work(*map(int, sys.argv[2:]))
except UserError as error:
  print(f"error: {error}", file=sys.stderr)
  launch.leave(2)
except Exception:
  traceback.print_exc()
  launch.leave(1)
"""


def clean_environment():
  """Without what another launcher has left, as on a CI machine."""
  names = ("SLURM_", "OMPI_", "PMI", "CUDA_", "JAX_", "TPU_", "KUBERNETES_")
  return {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(names)
  } | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES)}


def start(environ=None, *extra, **flags):
  return subprocess.Popen(
    [sys.executable, "-c", PROGRAM, json.dumps(flags), *extra],
    cwd=ROOT,
    env=clean_environment() | (environ or {}),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ends(processes):
  """Returns status, output and errors of each."""
  results = []
  try:
    for process in processes:
      out, err = process.communicate(timeout=100)
      results.append((process.returncode, out, err))
  finally:
    for process in processes:
      process.kill()
  return results


def errors(results):
  """Returns the one line that each of them ended with."""
  lines = []
  for status, _, err in results:
    assert status == 2, err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    lines.append(err.removeprefix("error: ").strip())
  return lines


@pytest.fixture
def port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def by_flags(process, port):
  del process
  return {}, {"coordinator": f"localhost:{port}", "num_processes": 2}


def by_slurm(process, port):
  return {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_PROCID": str(process),
    "SLURM_LOCALID": str(process),
    "JAX_COORDINATOR_PORT": str(port),
  }, {}


def by_open_mpi(process, port):
  return {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": str(process),
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
    "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://127.0.0.1:53171",
    "JAX_COORDINATOR_PORT": str(port),
  }, {}


@pytest.mark.parametrize(
  ("launcher", "found"),
  [(by_flags, "flags"), (by_slurm, "SLURM"), (by_open_mpi, "Open MPI")],
)
def test_two_processes_find_each_other(launcher, found, port):
  processes = []
  for process in range(2):
    environ, flags = launcher(process, port)
    if flags:
      flags["process_id"] = process
    processes.append(start(environ, **flags))
  first, second = ends(processes)
  for status, out, err in (first, second):
    assert status == 0, err
    assert "sum 4" in out
  assert first[1].startswith(
    f"2 processes ({found}) with 2 CPU each: 4 devices along data\n"
  )
  assert "devices along" not in second[1]


def test_alone():
  ((status, out, err),) = ends([start()])
  assert status == 0, err
  assert out == "1 process (alone) with 2 CPU: 2 devices along data\n\nsum 2\n"
  assert not err


def test_a_coordinator_that_does_not_answer(port):
  address = f"localhost:{port}"
  flags = {"coordinator": address, "num_processes": 2, "process_id": 1}
  before = time.monotonic()
  (line,) = errors(ends([start(timeout=2.0, **flags)]))
  assert time.monotonic() - before < 30
  assert f"process 1 did not reach process 0 at {address} within 2 s" in line


def test_processes_that_do_not_come_are_named(port):
  flags = {"coordinator": f"localhost:{port}", "num_processes": 4}
  lines = errors(
    ends([start(timeout=4.0, process_id=i, **flags) for i in (0, 2)])
  )
  for line in lines:
    assert "2 of 4 processes (number 1, 3) did not come within 4 s" in line


def test_processes_that_disagree_on_their_number(port):
  flags = {"coordinator": f"localhost:{port}"}
  numbers = [(2, 0), (3, 1), (3, 2)]
  lines = errors(
    ends([start(num_processes=n, process_id=i, **flags) for n, i in numbers])
  )
  for line in lines:
    assert "the processes disagree: 2 according to process 0, 3 acc" in line


def test_the_same_number_twice(port):
  flags = {"coordinator": f"localhost:{port}", "num_processes": 3}
  lines = errors(ends([start(process_id=i, **flags) for i in (0, 1, 1)]))
  for line in lines:
    assert "two processes say that they are process 1" in line


def test_a_port_that_is_taken(port):
  with socket.socket() as other:
    other.bind(("", port))
    other.listen()
    flags = {"coordinator": f"localhost:{port}", "num_processes": 2}
    (line,) = errors(ends([start(process_id=0, **flags)]))
  assert f"cannot listen on port {port}" in line


def test_something_else_at_the_port_of_the_coordinator(port):
  with subprocess.Popen(
    [sys.executable, "-m", "http.server", str(port)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  ) as server:
    flags = {"coordinator": f"localhost:{port}", "num_processes": 2}
    (line,) = errors(ends([start(timeout=2.0, process_id=1, **flags)]))
    server.send_signal(signal.SIGKILL)
  assert "something else answers" in line


@pytest.mark.parametrize("fail_at", [0, 1])
def test_one_that_fails_waits_for_nobody(port, fail_at):
  """JAX lets it wait for the others, and these wait for it: 300 s."""
  flags = {"coordinator": f"localhost:{port}", "num_processes": 2}
  before = time.monotonic()
  results = ends(
    [start({}, str(fail_at), process_id=i, **flags) for i in range(2)]
  )
  assert time.monotonic() - before < 50
  status, _, err = results.pop(fail_at)
  assert status == 2
  assert err == "error: only here\n"
  assert results[0][0] != 0


@pytest.mark.parametrize(
  ("environ", "flags", "words"),
  [
    ({}, {"platform": "gpu"}, "should run on gpu, but it runs on cpu"),
    ({}, {"platform": "tpu"}, "cannot start on tpu"),
    ({"JAX_PLATFORMS": "cuda"}, {}, "cannot start on gpu: there is none"),
    (
      {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "0"},
      {},
      "on the CPU, although there is CUDA_VISIBLE_DEVICES=0.*--platform=cpu",
    ),
  ],
)
def test_a_platform_that_is_not_there(environ, flags, words):
  # As on a machine without any, also where the tests run on one.
  environ = {"CUDA_VISIBLE_DEVICES": "", **environ}
  (line,) = errors(ends([start(environ, **flags)]))
  assert re.search(words, line)


def test_the_cpu_where_it_is_meant():
  environ = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "0"}
  ((status, out, err),) = ends([start(environ, platform="cpu")])
  assert status == 0, err
  assert "with 2 CPU" in out
