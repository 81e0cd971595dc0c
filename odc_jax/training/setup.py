"""The start of a run: data, program, work directory, first clustering."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Generator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from odc_jax.config import Config, auto, check, options
from odc_jax.data import (
  bad_images,
  capacity,
  feed,
  folder,
  growth,
  loader,
  sequences,
  sources,
)
from odc_jax.data import order as order_lib
from odc_jax.data.source import Source
from odc_jax.distributed import processes
from odc_jax.distributed.stop import Stop, StoppedError
from odc_jax.errors import UserError
from odc_jax.evals.evaluation import Evaluation, check_evaluators
from odc_jax.files import settle
from odc_jax.interop import describe, hub
from odc_jax.interop import load as interop
from odc_jax.logs import progress
from odc_jax.methods import METHODS
from odc_jax.methods.method import Method
from odc_jax.passes.extract import Features
from odc_jax.results import groups
from odc_jax.training import checkpoint, extend, parameters
from odc_jax.training import state as state_lib
from odc_jax.training import workdir as workdir_lib
from odc_jax.training.programs import FROZEN, Program, assemble
from odc_jax.training.recluster import Reclustering
from odc_jax.training.state import TrainState


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
    growth: What it has grown by since the run began, if it has.
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
  growth: growth.Growth | None
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
      seed=state_lib.order_seed(self.config, state),
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
  on_change: str | None = None,
) -> Run:
  """Checks what was asked for, and prepares the work directory.

  Args:
    config: A complete experiment, as the files in `configs/` give it.
    workdir: The work directory.
    num_groups: How many groups the clusters are to be merged into, if any.
    mesh: The devices.
    stack: Closes at the end of the run what is opened here.
    on_change: "extend" for a run that grows with its images; None: it is
      refused where these have changed.

  Raises:
    UserError: For whatever the user can mend.
  """
  method = check.choose(METHODS, config.method, "method")
  options.check(config, method)
  # A mistake here would otherwise show after the work directory is prepared.
  check_evaluators(config)
  bad_images.check(config.data)
  planned = _planned(config, workdir, on_change)
  train, test = planned.train, None
  if config.eval.split:
    test = sources.of(config.data, config.eval.split, train)
  planned, num_steps = _sized(planned, method, mesh, num_groups)
  config = planned.config
  program = assemble(config, method, mesh)
  sets = [train] if test is None else [train, test]
  choice = _where_images_lie(config, method, sets, mesh)

  resuming = checkpoint.any_in(workdir)
  if not resuming:
    interop.check(config, program.shapes)
  workdir_lib.enter(workdir, planned, resuming, stack)
  if processes.is_first():
    workdir_lib.prepare(workdir, planned, resuming)
    parameters.write(program.shapes.params, workdir)
  workdir_lib.wait_for_config(workdir)
  stop = Stop(mesh)
  stack.enter_context(stop.listening())
  passes = functools.partial(
    Evaluation, config, program, mesh, train, test, check=stop.check
  )
  if planned.due:
    freeze = functools.partial(_freeze, config, workdir, stop)
    extend.extend(planned, method, program, mesh, workdir, passes, freeze)
  evaluation = passes(workdir / "bad_images.txt")
  checkpoints = checkpoint.Checkpoints(workdir, config.keep_checkpoints)
  stack.callback(checkpoints.close)
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
    growth=planned.growth,
    steps_per_epoch=check.steps_per_epoch(config),
    num_steps=num_steps,
    checkpoints=checkpoints,
    stop=stop,
    evaluation=evaluation,
    recluster=Reclustering(config, method, program, mesh, evaluation),
  )


def _where_images_lie(config: Config, method: Method, sets, mesh):
  """Returns whether images lie on the devices, and writes it to the config."""
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
  return choice


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


def _freeze(
  config: Config,
  workdir: pathlib.Path,
  stop: Stop,
  evaluation: Evaluation,
  state: TrainState,
  before: str = "",
) -> str:
  """Passes the images through a backbone that no step will change.

  Args:
    config: The experiment; only of a frozen backbone anything is done.
    workdir: The work directory.
    stop: Hears the signals.
    evaluation: Which passes over the images.
    state: Has the backbone.
    before: As for `Evaluation.freeze`.

  Returns:
    Name of the folder with the features; "" without.
  """
  if not check.is_frozen(config) or check.has_features(config):
    return ""
  kept = hub.recorded(workdir)
  weights = kept.get("sha256", f"random {config.seed}")
  num_images = config.num_examples + evaluation.num_test
  first = processes.is_first()
  try:
    with progress.bar("features of the images", num_images, first) as advance:
      return evaluation.freeze(
        state.params,
        state.batch_stats,
        weights,
        workdir.parent / "features",
        advance,
        before,
      )
  except StoppedError:
    processes.warn(
      "stopped during the pass over the images; the same command goes on there"
    )
    raise SystemExit(stop.exit_status) from None


def _planned(
  config: Config, workdir: pathlib.Path, on_change: str | None
) -> extend.Plan:
  """Returns what is to be done about the images, and their source."""
  if processes.is_first():
    settle(workdir)
  processes.gather(None)  # until it is done
  train = sources.of(config.data)
  return extend.plan(config, workdir, train, on_change)


def _sized(
  planned: extend.Plan, method: Method, mesh, num_groups
) -> tuple[extend.Plan, int]:
  """Returns the plan with all sizes filled in, and the number of steps."""
  n, train = planned.num_first, planned.train
  config, described = describe.fill(planned.config)
  config, reasons = auto.fill(config, n, mesh.size, method.AUTO)
  config = check.resolve(config, n, mesh.size)
  with config.unlocked():
    config.method_name = method.NAME  # for the report, which reads files alone
    config.num_examples = n = len(train)
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
  if left_out := getattr(train, "passed_over_sequences", None):
    processes.say(
      f"{len(left_out):,} sequences are left out, because features and ground "
      f"truth differ by more than {sequences.MOST_EXCESS} frames: "
      f"{', '.join(left_out[:5])}"
    )
  for line in (*described, *reasons):
    processes.say(line)
  planned = extend.sized(planned._replace(config=config), method)
  # Asked for once here, so that a mistake shows before anything is computed.
  order_lib.batch_indices(
    n, config.batch_size, 0, config.seed, config.data.sampling
  )
  num_steps = extend.num_steps(config, planned.growth)
  if not num_steps and method.recluster is None and method.finish is None:
    raise UserError(
      f"{config.method} finds its clusters while it trains: num_epochs must be "
      "above 0"
    )
  return planned, num_steps


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
    _keep_features(run, state)
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
      config=run.config,
      method=run.method,
      frozen=FROZEN[check.training(run.config)],
    )
    state = jax.jit(follow, donate_argnums=0, out_shardings=program.shardings)(
      state
    )
  _keep_features(run, state)
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


def _keep_features(run: Run, state: TrainState):
  """Passes the images through a frozen backbone, or finds its features."""
  # A run that has grown keeps those of files that have changed or are gone.
  before = extend.features_of(run.workdir) if run.growth else ""
  name = _freeze(
    run.config, run.workdir, run.stop, run.evaluation, state, before
  )
  if name:
    extend.note_features(run.workdir, name)
