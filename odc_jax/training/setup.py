"""The start of a run: data, program, work directory, first clustering."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Generator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from odc_jax import files
from odc_jax.config import Config, auto, check, options, store
from odc_jax.data import bad_images, capacity, feed, folder, loader, sources
from odc_jax.data import order as order_lib
from odc_jax.data.source import Source
from odc_jax.distributed import processes
from odc_jax.distributed.stop import Stop, StoppedError
from odc_jax.errors import UserError
from odc_jax.evals.evaluation import Evaluation, evaluators_of
from odc_jax.interop import describe, hub
from odc_jax.interop import load as interop
from odc_jax.logs import progress
from odc_jax.methods import METHODS
from odc_jax.methods.method import Method
from odc_jax.passes.extract import Features
from odc_jax.results import groups
from odc_jax.training import checkpoint, parameters
from odc_jax.training import state as state_lib
from odc_jax.training.programs import FROZEN, Program, assemble
from odc_jax.training.recluster import Reclustering
from odc_jax.training.state import TrainState

# A network file system may take this long to show a file to another host.
_SHARED_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run that stay the same while it trains.

  Attributes:
    config: The resolved experiment.
    method: Its method.
    mesh: The devices.
    workdir: The work directory, prepared.
    program: The compiled side.
    train: The training set.
    steps_per_epoch: Steps of an epoch.
    num_steps: Steps of the run.
    checkpoints: Of the work directory.
    stop: Hears the signals.
    evaluation: Passes over the images, and scores.
    recluster: The method's re-clusterings.
  """

  config: Config
  method: Method
  mesh: Mesh
  workdir: pathlib.Path
  program: Program
  train: Source
  steps_per_epoch: int
  num_steps: int
  checkpoints: checkpoint.Checkpoints
  stop: Stop
  evaluation: Evaluation
  recluster: Reclustering

  def clusters(self, state: TrainState) -> Int[np.ndarray, "n"]:
    """Returns the cluster of every image; k where it has none."""
    return self.without_padding(self.method.clusters(state.method))

  def without_padding(self, rows: Int[Array, "r"]) -> Int[np.ndarray, "n"]:
    """Returns the rows of the n images, on the host."""
    return processes.to_host(rows)[: self.config.num_examples]

  def batches(
    self, state: TrainState, step: int
  ) -> Generator[tuple[dict[str, Any], float]]:
    """Returns batches on the devices, with the CPU seconds each took to read.

    Args:
      state: Since the last re-clustering; some methods draw by its clusters.
      step: The first one to be trained.
    """
    batches = feed.train_batches(
      self.evaluation.train_data,
      self.config.data,
      batch_size=self.config.batch_size,
      crops=loader.crops(self.config.data),
      # A restart has an order of its own.
      seed=self.config.seed + (int(state.restarts) << 32),
      start_step=step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      order=self.recluster.order(state, step),
    )
    return self._to_devices(batches)

  def _to_devices(self, batches):
    with contextlib.closing(batches):
      for batch in batches:
        self.evaluation.bad_train.add(batch.pop("bad"))
        reading_seconds = batch.pop("seconds")
        yield processes.to_devices(batch, self.mesh), reading_seconds


def open_run(
  config: Config,
  workdir: pathlib.Path,
  num_groups: int | None,
  mesh: Mesh,
  stack: contextlib.ExitStack,
) -> Run:
  """Checks what was asked for, and prepares the work directory.

  Args:
    config: A complete experiment, as the files in `configs/` give it.
    workdir: The work directory.
    num_groups: How many groups the clusters are to be merged into, if any.
    mesh: The devices.
    stack: Closes at the end of the run what is opened here.

  Raises:
    UserError: For whatever the user can mend.
  """
  method = check.choose(METHODS, config.method, "method")
  options.check(config, method)
  # A mistake here would otherwise show after the work directory is prepared.
  evaluators_of(config.eval.evaluators)
  bad_images.check(config.data)
  train = sources.make(config.data.source, config.data.split)
  test = None
  if config.eval.split:
    test = sources.make(config.data.source, config.eval.split, train)
  config, num_steps = _sized(config, method, train, mesh, num_groups)
  program = assemble(config, method, mesh)
  sets = [train] if test is None else [train, test]
  frozen = check.is_frozen(config)
  if method.partners is not None and not frozen:
    raise UserError(
      f"method={config.method} pairs images by their fixed features: it needs "
      "--config.model.train=head"
    )
  choice = capacity.decide(
    "off" if frozen else config.data.resident,
    sets,
    config.data.image_size,
    mesh,
  )
  with config.unlocked():
    config.data.resident = "images" if choice.side else "off"

  resuming = checkpoint.any_in(workdir)
  if not resuming:
    interop.check(config, program.shapes)
  _enter(config, train, workdir, resuming, stack)
  if processes.is_first():
    _prepare(workdir, config, train.keys, resuming)
    parameters.write(program.shapes.params, workdir)
  _wait_for_config(workdir)
  checkpoints = checkpoint.Checkpoints(workdir, config.keep_checkpoints)
  stack.callback(checkpoints.close)
  stop = Stop(mesh)
  stack.enter_context(stop.listening())
  bad_path = workdir / "bad_images.txt"
  evaluation = Evaluation(
    config, program, mesh, train, test, bad_path, stop.check
  )
  if choice.why:
    processes.say(choice.why)
  if choice.side:
    _keep_images(evaluation, choice, sum(map(len, sets)), stop)
  return Run(
    config=config,
    method=method,
    mesh=mesh,
    workdir=workdir,
    program=program,
    train=train,
    steps_per_epoch=check.steps_per_epoch(config),
    num_steps=num_steps,
    checkpoints=checkpoints,
    stop=stop,
    evaluation=evaluation,
    recluster=Reclustering(config, method, program, mesh, evaluation),
  )


def _keep_images(evaluation: Evaluation, choice, num_images, stop: Stop):
  """Reads the images onto the devices."""
  first = processes.is_first()
  try:
    what = "reading the images onto the devices"
    with progress.bar(what, num_images, first) as advance:
      smaller = evaluation.keep_images(choice, advance)
  except StoppedError:
    processes.warn(
      "stopped while the images were read; the same command starts again"
    )
    raise SystemExit(stop.exit_status) from None
  if smaller:
    processes.say(
      f"{smaller:,} images are longer than {choice.most} pixels and were made "
      "smaller"
    )


def _freeze(run: Run, state: TrainState):
  """Passes the images through a backbone that no step will change."""
  if not check.is_frozen(run.config):
    return
  kept = hub.recorded(run.workdir)
  weights = kept.get("sha256", f"random {run.config.seed}")
  num_images = len(run.train) + run.evaluation.num_test
  first = processes.is_first()
  try:
    with progress.bar("features of the images", num_images, first) as advance:
      run.evaluation.freeze(
        state.params,
        state.batch_stats,
        weights,
        run.workdir.parent / "features",
        advance,
      )
  except StoppedError:
    processes.warn(
      "stopped during the pass over the images; the same command goes on there"
    )
    raise SystemExit(run.stop.exit_status) from None


def _sized(config, method: Method, train, mesh, num_groups):
  """Returns the config with all sizes filled in, and the number of steps."""
  n = len(train)
  config, described = describe.fill(config)
  config, reasons = auto.fill(config, n, mesh.size, method.AUTO)
  config = check.resolve(config, n, mesh.size)
  with config.unlocked():
    config.method_name = method.NAME  # for the report, which reads files alone
  groups.check_num_groups(num_groups, config.num_clusters)
  classes = train.num_classes
  processes.say(
    f"{n:,} images in {config.data.source}, "
    + (f"of {classes} classes" if classes else "without labels")
  )
  if passed_over := getattr(train, "passed_over", None):
    processes.say(
      f"passed over: {folder.counted(passed_over)}; only "
      f"{' '.join(sorted(folder.IMAGE_SUFFIXES))} are read"
    )
  for line in (*described, *reasons):
    processes.say(line)
  # Asked for once here, so that a mistake shows before anything is computed.
  order_lib.batch_indices(
    n, config.batch_size, 0, config.seed, config.data.sampling
  )
  num_steps = int(config.num_epochs * check.steps_per_epoch(config))
  if not num_steps and method.recluster is None and method.finish is None:
    raise UserError(
      f"{config.method} finds its clusters while it trains: num_epochs must be "
      "above 0"
    )
  return config, num_steps


def start(run: Run, rollbacks: int) -> tuple[TrainState, Features | None, bool]:
  """Returns the state to train from.

  Args:
    run: The run.
    rollbacks: How often this start of the program went back because of NaN.

  Returns:
    The last checkpoint's state or a new one, the features of all images where
    a first clustering needed them, and whether there was a checkpoint.

  Raises:
    UserError: The checkpoints are damaged; or too many images are.
    SystemExit: A signal came before there was anything to save.
  """
  program = run.program
  state = run.checkpoints.restore(program.shapes, program.shardings)
  if state is not None:
    if rollbacks:
      state = state_lib.with_fresh_order(state, rollbacks, program.shardings)
    _freeze(run, state)
    processes.say(f"going on from step {int(state.step)} of {run.num_steps}")
    return state, None, True
  state = program.init()
  params, batch_stats = interop.initialize(
    run.config, state.params, state.batch_stats, program.shardings
  )
  state = state._replace(params=params, batch_stats=batch_stats)
  if run.method.teacher is not None:
    # It starts as a copy of the weights that were given.
    follow = functools.partial(
      state_lib.with_copied_teacher,
      method=run.method,
      frozen=FROZEN[check.training(run.config)],
    )
    state = jax.jit(follow, donate_argnums=0, out_shardings=program.shardings)(
      state
    )
  _freeze(run, state)
  if not run.recluster.due(0):
    return state, None, False
  processes.say(
    f"first clustering: {run.config.num_examples} images into "
    f"{run.config.num_clusters} clusters"
  )
  try:
    # Features for the evaluation of step 0: the same network and images.
    state, features = run.recluster(state, 0)
  except StoppedError:
    processes.warn(
      "stopped during the first clustering, with nothing to save yet; the "
      "same command starts again"
    )
    raise SystemExit(run.stop.exit_status) from None
  return state, features, False


def _check_processes(config, source, workdir, resuming):
  """Raises UserError where the processes do not run the same."""
  keys = hashlib.sha256("\n".join(source.keys or ()).encode())
  processes.check_equal(
    {
      **store.identity(json.loads(config.to_json())),
      "JAX version": jax.__version__,
      "images": len(source),
      "images whose names have the digest": keys.hexdigest(),
      f"checkpoints in {workdir}:": resuming,
    }
  )


def _enter(config, source, workdir, resuming, stack):
  """Keeps other runs out of the work directory until `stack` is left.

  Raises:
    UserError: In all processes, where one is under way, or they differ.
  """
  _check_processes(config, source, workdir, resuming)
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
      if checkpoint.any_in(workdir) != resuming:
        problem = (
          f"another run has just ended in {workdir}; the same command goes on "
          "from there"
        )
  problem = processes.gather(problem)[0]
  if problem is not None:
    raise UserError(problem)


def _prepare(workdir, config, names, resuming):
  """Writes what a work directory begins with, or checks it."""
  names_path = workdir / "images.txt"
  try:
    if names is not None and resuming:
      folder.check_list(names_path, names)
    store.write(config, workdir, resuming)
    if names is not None and not resuming:
      folder.write_list(names_path, names)
    if not resuming:
      (workdir / "bad_images.txt").unlink(missing_ok=True)
    interop.keep_digest(config, workdir, resuming)
  except OSError as error:
    raise UserError(
      f"the work directory {workdir} cannot be used: {error}; choose another "
      "--workdir"
    ) from error


def _wait_for_config(workdir):
  """Returns when the first process has prepared the work directory."""
  processes.gather(None)
  deadline = time.monotonic() + _SHARED_SECONDS
  while not (workdir / "config.json").exists():
    if time.monotonic() > deadline:
      raise UserError(
        f"process {jax.process_index()} does not see what process 0 writes to "
        f"{workdir}; choose a --workdir that all of them share"
      )
    time.sleep(0.1)
