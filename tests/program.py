"""Starting the program as its users do, killing it, comparing what it left."""

import json
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
from absl import flags as absl_flags

from odc_jax.cli import main as cli

ROOT = pathlib.Path(__file__).parent.parent

# Every step multiplies the weights by -1e18, the decay times the rate.
EXPLODING = [
  "--config.optimizer.learning_rate=1e9",
  "--config.optimizer.weight_decay=1e9",
]


def start(environment, workdir, *flags, cwd=ROOT):
  return subprocess.Popen(
    [sys.executable, str(ROOT / "run.py"), f"--workdir={workdir}", *flags],
    cwd=cwd,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(environment, workdir, *flags, cwd=ROOT):
  process = start(environment, workdir, *flags, cwd=cwd)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def run_here(monkeypatch, *args):
  """Does in this process what `python run.py` does."""
  # ml_collections looks there for the keys that are set.
  args = ["run.py", "--num_processes=1", *args]  # JAX runs here already
  monkeypatch.setattr("sys.argv", args)
  absl_flags.FLAGS.unparse_flags()
  for name in list(absl_flags.FLAGS):
    if name.startswith("config."):  # of the case before
      delattr(absl_flags.FLAGS, name)
    else:
      absl_flags.FLAGS[name].unparse()
  cli.main(cli.parse(sys.argv))


def start_together(environment, workdir, count, devices, *flags, each=None):
  """Starts `count` processes that run together, with some devices each.

  Process i also gets the flags `each[i]`.
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = {**environment, "JAX_NUM_CPU_DEVICES": str(devices)}
  together = [
    f"--coordinator=localhost:{port}",
    f"--num_processes={count}",
  ]
  return [
    start(environment, workdir, *together, f"--process_id={i}", *flags, *own)
    for i, own in enumerate(each or [[]] * count)
  ]


def work_together(module, folder, outs):
  """Calls a test module's `work` in a process of its own for each of `outs`.

  That is work(process, count, port, folder, out), in all of them at once.
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [
        sys.executable,
        "-c",
        f"from {module} import work; "
        f"work({process}, {len(outs)}, {port}, {str(folder)!r}, {str(out)!r})",
      ],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for process, out in enumerate(outs)
  ]
  for process in processes:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text


def finish(processes):
  """Returns (status, out, err) of each."""
  results = []
  for process in processes:
    out, err = process.communicate(timeout=900)
    results.append((process.returncode, out, err))
  return results


def wait_for_lines(workdir, number, processes):
  """Returns when the log of a run has that many lines."""
  path = workdir / "metrics.jsonl"
  while not path.exists() or path.read_text().count("\n") < number:
    for process in processes:
      assert process.poll() is None, process.communicate()[1]
    time.sleep(0.01)


def lines_of(workdir):
  """Returns the logged scalars without those that a clock decides."""
  return [
    {
      name: value
      for name, value in json.loads(line).items()
      if name != "time" and not name.startswith("speed/")
    }
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]


def evaluations_in(workdir):
  """Returns what --mode=evaluate has left, an entry for each evaluator."""
  return json.loads((workdir / "evaluation.json").read_text())


def found_in(workdir):
  """Returns the numbers of all evaluators."""
  return {k: v for e in evaluations_in(workdir) for k, v in e["scores"].items()}


def last_state(workdir):
  """Returns every array of the last checkpoint, by name."""
  folder = workdir / "checkpoints"
  steps = [int(path.name) for path in folder.iterdir()]
  with warnings.catch_warnings():
    # Orbax would rather be told the shardings; one CPU needs none.
    warnings.simplefilter("ignore")
    tree = ocp.PyTreeCheckpointer().restore(folder / str(max(steps)) / "state")
  flat = {}

  def walk(name, node):
    if isinstance(node, dict):
      for key, child in node.items():
        walk(f"{name}/{key}", child)
    elif isinstance(node, list | tuple):
      for key, child in enumerate(node):
        walk(f"{name}/{key}", child)
    elif node is not None:
      if jax.dtypes.issubdtype(node.dtype, jax.dtypes.prng_key):
        node = jax.random.key_data(node)
      flat[name] = np.asarray(node)

  walk("", tree)
  return flat


def assert_same_run(workdir, other):
  """Compares log, every array of the last checkpoint, and clusters."""
  assert lines_of(workdir) == lines_of(other)
  ours, theirs = last_state(workdir), last_state(other)
  assert ours.keys() == theirs.keys()
  assert len(ours) > 100
  for name, array in ours.items():
    np.testing.assert_array_equal(array, theirs[name], err_msg=name)
  assert pq.read_table(workdir / "clusters.parquet") == pq.read_table(
    other / "clusters.parquet"
  )


def kill_and_go_on(environment, workdir, *flags):
  """Runs to the end, killed at two or three random moments on the way."""
  chance = random.Random(time.time_ns())
  kills = 0
  while True:
    seen = 0
    path = workdir / "metrics.jsonl"
    if path.exists():
      seen = len(path.read_text().splitlines())
    process = start(environment, workdir, *flags)
    # Some log lines after the last kill, then a fraction of an interval.
    target = seen + chance.randint(1, 6)
    while kills < 3 and process.poll() is None:
      if path.exists() and len(path.read_text().splitlines()) >= target:
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        break
      time.sleep(0.01)
    _, err = process.communicate(timeout=300)
    if process.returncode == 0:
      break
    assert process.returncode == -signal.SIGKILL, err
    kills += 1
  assert kills >= 2


def assert_refused(result, *words):
  """Exit status 2, and one line that names the value and the remedy."""
  status, _, err = result
  assert status == 2, err
  assert "Traceback" not in err
  assert len(err.strip().splitlines()[-1]) > 20
  for word in words:
    assert word in err.strip().splitlines()[-1]
