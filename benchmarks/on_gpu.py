"""All that a GPU is wanted for, in the order of worth, within some minutes.

  python -m benchmarks.on_gpu --minutes=9 --images=DIR --output=DIR
  python -m benchmarks.on_gpu --small --output=DIR  # a trial on a CPU

1. The ResNet-50 step at batch 512 in bfloat16, with ODC's memories of ImageNet
   and without, and PyTorch's twin.
2. k-means of 1,281,167 x 256 into 10,000 clusters, an iteration.
3. TEMI's heads, a step; and the nearest neighbours of 1,281,167 x 768.
4. CIFAR-10 from random weights, ResNet-18, for equal seconds: --methods, and
   the same network told the classes. --images holds train/<class>/* and
   test/<class>/*.
5. ViT-S/14, features per second.

Every part is a program of its own, one after the other, so that none has to
share the device and none takes another down. What is known is in
OUTPUT/on_gpu.json at any time; a part that fails leaves its traceback there,
one that there is no time for a word.
"""

import argparse
import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

from odc_jax.files import write_json

_PACKAGES = (
  "jax",
  "jaxlib",
  "jax-cuda13-plugin",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
  "torch",
  "triton",
)
_REPOSITORY = pathlib.Path(__file__).parent.parent

# Seconds that a method on CIFAR-10 takes beside its training steps: to start,
# read, compile and evaluate.
_AROUND_TRAINING = 45

# Less teaches nothing: rather a method less than all of them shorter.
_LEAST_TRAINING = 30

# The twin with labels learns faster.
_SHARE_OF_TWIN = 0.5


@dataclasses.dataclass(frozen=True)
class Task:
  """A program that is run for a part.

  Attributes:
    part: Number of the part.
    name: In the results.
    function: module:function, below `benchmarks`.
    least: Seconds without which it is not worth starting.
    most: Seconds after which it is ended.
    flags: More of its command line.
    environment: More of its environment.
  """

  part: int
  name: str
  function: str
  least: float
  most: float
  flags: tuple[str, ...] = ()
  environment: tuple[tuple[str, str], ...] = ()


def plan(options: argparse.Namespace) -> list[Task]:
  """Returns what is to be run, in this order; all but CIFAR-10's share."""
  cpu = (("JAX_PLATFORMS", "cpu"),)
  tasks = [
    Task(1, "step", "gpu_speed:step", 60, 120),
    # Its JAX only reads the config.
    Task(1, "torch", "gpu_speed:torch", 30, 80, environment=cpu),
    Task(2, "kmeans", "gpu_speed:kmeans", 20, 40),
    Task(3, "temi", "gpu_speed:temi", 20, 45),
    Task(3, "neighbors", "gpu_speed:neighbors", 20, 40),
  ]
  for method in filter(None, options.methods.split(",")):
    twin = method == "supervised"
    function = "supervised" if twin else "clustering"
    flags = () if twin else (f"--method={method}",)
    tasks.append(Task(4, method, f"gpu_cifar10:{function}", 40, 0, flags))
  tasks.append(Task(5, "vit", "gpu_speed:vit", 20, 40))
  return [task for task in tasks if task.part in options.parts]


def train_seconds(options: argparse.Namespace, left: float) -> float:
  """Returns how long every method on CIFAR-10 may train.

  Args:
    options: Where `train_seconds` is above 0, that.
    left: Until the end of all parts.
  """
  if options.train_seconds:
    return options.train_seconds
  methods = options.methods.split(",")
  shares = len(methods) - (1 - _SHARE_OF_TWIN) * ("supervised" in methods)
  # Two thirds of a minute for the features of part 5.
  left -= 40 * (5 in options.parts) + _AROUND_TRAINING * len(methods)
  return min(90.0, max(_LEAST_TRAINING, left / shares))


def run(
  task: Task,
  options: argparse.Namespace,
  seconds: float,
  keep: Any,
  folder: pathlib.Path,
) -> dict[str, Any]:
  """Runs a task in a program of its own, and returns what it found.

  Args:
    task: Which.
    options: What it takes of them: sizes, images.
    seconds: After which it is ended.
    keep: Is told what it has found so far.
    folder: For passing files.
  """
  name = f"{task.part}_{task.name.replace(':', '_').replace('/', '_')}"
  found_path, log_path = folder / f"{name}.json", folder / f"{name}.log"
  command = [sys.executable, "-m", "benchmarks.on_gpu"]
  command += [f"--function={task.function}", f"--found={found_path}"]
  command += [f"--seconds={seconds}", f"--images={options.images}"]
  command += [f"--batch-size={options.batch_size}", *task.flags]
  if options.small:
    command.append("--small")
  environment = {
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
    **os.environ,
    **dict(task.environment),
  }
  begin = time.monotonic()
  seen = None
  with log_path.open("wb") as log:
    program = subprocess.Popen(
      command,
      cwd=_REPOSITORY,
      env=environment,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    while program.poll() is None and time.monotonic() - begin < seconds:
      time.sleep(0.25)
      if found_path.exists() and (now := found_path.stat().st_mtime_ns) != seen:
        seen = now
        keep(json.loads(found_path.read_text()))
    ended = program.poll() is not None
    if not ended:
      # Whatever it started goes with it.
      os.killpg(program.pid, signal.SIGKILL)
    status = program.wait()
  found = json.loads(found_path.read_text()) if found_path.exists() else {}
  found["seconds_in_all"] = round(time.monotonic() - begin, 1)
  if not ended:
    found["cut_off"] = f"after {seconds:.0f} seconds"
  elif status and "error" not in found:
    found["error"] = f"exit status {status}"
  if "error" in found or not ended:
    found["log"] = log_path.read_text(errors="replace")[-2000:]
  return found


def work(options: argparse.Namespace) -> None:
  """Does one task, in the program that `run` starts."""
  found: dict[str, Any] = {}

  def report(now):
    found.update(now)
    write_json(options.found, found)

  options.until = time.monotonic() + options.seconds
  try:
    module, _, function = options.function.partition(":")
    module = importlib.import_module(f"benchmarks.{module}")
    getattr(module, function)(options, report)
  except Exception:
    report({"error": traceback.format_exc()[-3000:]})
    raise


def provenance() -> dict[str, Any]:
  """Returns on what, and with which code, it was measured."""
  digest = hashlib.sha256()
  for folder in ("odc_jax", "configs", "benchmarks"):
    for path in sorted((_REPOSITORY / folder).rglob("*.py")):
      digest.update(str(path.relative_to(_REPOSITORY)).encode())
      digest.update(path.read_bytes())
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  try:
    query = "--query-gpu=name,memory.total,driver_version,power.limit"
    gpus = subprocess.run(
      ["nvidia-smi", query, "--format=csv,noheader"],
      capture_output=True,
      text=True,
      timeout=20,
    ).stdout.split("\n")[:-1]
  except (OSError, subprocess.SubprocessError):
    gpus = []
  return {
    "gpus": gpus,
    "cpus": len(os.sched_getaffinity(0)),
    "machine": platform.machine(),
    "python": platform.python_version(),
    "versions": versions,
    "sources_sha256": digest.hexdigest(),
    "date": time.strftime("%Y-%m-%d", time.gmtime()),
  }


def run_all(options: argparse.Namespace) -> dict[str, Any]:
  """Runs the parts, and returns what is in the file at the end."""
  until = time.monotonic() + 60 * options.minutes
  output = pathlib.Path(options.output)
  output.mkdir(parents=True, exist_ok=True)
  path = output / "on_gpu.json"
  results: dict[str, Any] = {"benchmark": "on_gpu", **provenance()}
  results |= {"small": options.small, "minutes": options.minutes, "parts": {}}
  write_json(path, results)
  of_training = None
  with tempfile.TemporaryDirectory() as folder:
    for task in plan(options):
      left = until - time.monotonic()
      where = results["parts"].setdefault(str(task.part), {})
      if task.part == 4:
        if not options.images:
          where[task.name] = {"skipped": "no --images"}
          continue
        if of_training is None:
          of_training = train_seconds(options, left)
        twin = task.name == "supervised"
        mine = of_training * (_SHARE_OF_TWIN if twin else 1)
        task = dataclasses.replace(
          task,
          least=mine + _AROUND_TRAINING / 2,
          most=mine + 1.5 * _AROUND_TRAINING,
          flags=(*task.flags, f"--train-seconds={mine:.1f}"),
        )
      if left < (5 if options.small else task.least):
        where[task.name] = {"skipped": f"{left:.0f} seconds are too few"}
        print(f"{task.part} {task.name}: skipped", flush=True)
        write_json(path, results)
        continue
      seconds = left if options.small else min(task.most, left)

      def keep(found, where=where, name=task.name):
        where[name] = found
        write_json(path, results)

      keep(run(task, options, seconds, keep, pathlib.Path(folder)))
      found = where[task.name]
      state = "error" if "error" in found else found.get("cut_off", "done")
      print(
        f"{task.part} {task.name}: {state}, {found['seconds_in_all']} s",
        flush=True,
      )
  return results


def main() -> None:
  """Parses the flags."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--minutes", type=float, default=9)
  parser.add_argument("--images", default="", metavar="DIR")
  parser.add_argument("--output", default=".", metavar="DIR")
  parser.add_argument(
    "--parts",
    type=lambda text: [int(part) for part in text.split(",")],
    default=[1, 2, 3, 4, 5],
    metavar="1,4",
  )
  parser.add_argument(
    "--methods",
    default="odc,deepcluster_v2,swav,supervised",
    help="of part 4; NAME:KEY=VALUE:... changes a config",
  )
  parser.add_argument("--batch-size", type=int, default=512, help="of part 4")
  parser.add_argument(
    "--train-seconds", type=float, default=0, help="of part 4, for a method"
  )
  parser.add_argument("--small", action="store_true", help="seconds on a CPU")
  # Of the programs that this one starts.
  for flag in ("--function", "--found", "--method"):
    parser.add_argument(flag, help=argparse.SUPPRESS)
  parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.function:
    work(options)
    return
  if options.images:
    options.images = str(pathlib.Path(options.images).resolve())
  results = run_all(options)
  failed = [
    name
    for part in results["parts"].values()
    for name, found in part.items()
    if "error" in found
  ]
  if failed:
    sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
  main()
