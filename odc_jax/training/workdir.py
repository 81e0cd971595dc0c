"""The work directory at the start of a run: taken, prepared, or refused."""

import contextlib
import hashlib
import json
import pathlib
import time

import jax

from odc_jax import files
from odc_jax.config import store
from odc_jax.data import features, folder, growth
from odc_jax.distributed import processes
from odc_jax.errors import UserError
from odc_jax.interop import load as interop
from odc_jax.training import checkpoint, extend

# A network file system may take this long to show a file to another host.
_SHARED_SECONDS = 30


def enter(
  workdir: pathlib.Path,
  planned: extend.Plan,
  resuming: bool,
  stack: contextlib.ExitStack,
) -> None:
  """Keeps other runs out of the work directory until `stack` is left.

  All processes have to call.

  Args:
    workdir: The work directory, made if need be.
    planned: What is to be done about the images.
    resuming: Whether it had a checkpoint when this was planned.
    stack: Of the run.

  Raises:
    UserError: In all processes, where a run is under way there, or was until
      now, or where the processes differ.
  """
  _check_processes(workdir, planned, resuming)
  problem = None
  if processes.is_first():
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      stack.enter_context(files.alone(workdir / ".lock"))
    except files.BusyError:
      problem = (
        f"a run is under way in {workdir} already; wait for its end, or choose "
        "another --workdir"
      )
    except OSError as error:
      problem = (
        f"the work directory {workdir} cannot be used: {error}; choose another "
        "--workdir"
      )
    else:
      grown = growth.read(workdir) if resuming else None
      if checkpoint.any_in(workdir) != resuming or grown != planned.before:
        problem = (
          f"another run has just ended in {workdir}; the same command goes on "
          "from there"
        )
  problem = processes.gather(problem)[0]
  if problem is not None:
    raise UserError(problem)


def _check_processes(workdir, planned: extend.Plan, resuming):
  """Raises UserError where the processes do not run the same."""
  keys = hashlib.sha256("\n".join(planned.train.keys or ()).encode())
  processes.check_equal(
    {
      **store.identity(json.loads(planned.config.to_json())),
      "JAX version": jax.__version__,
      "images": len(planned.train),
      "images whose names have the digest": keys.hexdigest(),
      f"checkpoints in {workdir}:": resuming,
      **(
        {"features with the digest": planned.train.digest()}
        if isinstance(planned.train, features.Features)
        else {}
      ),
    }
  )


def prepare(workdir: pathlib.Path, planned: extend.Plan, resuming: bool):
  """Writes what a work directory begins with, or checks it.

  Args:
    workdir: The work directory, entered.
    planned: The experiment and its images.
    resuming: Whether there is a checkpoint.

  Raises:
    UserError: It is another experiment's, or cannot be written.
  """
  names_path, names = workdir / folder.LIST, planned.train.keys
  try:
    if names is not None and resuming and not planned.due:
      folder.check_list(
        names_path,
        [name for name in names if name not in planned.missing],
        planned.growth,
      )
    config = extend.of_before(planned)
    store.write(config, workdir, resuming)
    if names is not None and not resuming:
      folder.write_list(names_path, names)
    if not resuming:
      for name in ("bad_images.txt", growth.FILE, extend.FEATURES):
        (workdir / name).unlink(missing_ok=True)
    interop.keep_digest(config, workdir, resuming)
    features.check_same(planned.train, workdir, resuming)
  except OSError as error:
    raise UserError(
      f"the work directory {workdir} cannot be used: {error}; choose another "
      "--workdir"
    ) from error


def wait_for_config(workdir: pathlib.Path) -> None:
  """Returns when the first process has prepared the work directory.

  Raises:
    UserError: It is not to be seen from here.
  """
  processes.gather(None)
  deadline = time.monotonic() + _SHARED_SECONDS
  while not (workdir / "config.json").exists():
    if time.monotonic() > deadline:
      raise UserError(
        f"process {jax.process_index()} does not see what process 0 writes to "
        f"{workdir}; choose a --workdir that all of them share"
      )
    time.sleep(0.1)
