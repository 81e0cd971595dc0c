"""The only loop: evaluate, save, re-cluster, fetch, step, log."""

import contextlib
import pathlib
from typing import Any

import jax
import numpy as np

from odc_jax import mesh as mesh_lib
from odc_jax.config import Config, check
from odc_jax.distributed import processes
from odc_jax.distributed.stop import StoppedError
from odc_jax.errors import UserError
from odc_jax.evals.scores import nmi
from odc_jax.logs.health import Health
from odc_jax.logs.steps import NotFiniteError, StepLog
from odc_jax.logs.writer import MetricWriter, SilentWriter
from odc_jax.training import optim
from odc_jax.training.due import Schedule
from odc_jax.training.finish import finish
from odc_jax.training.setup import Run, open_run, start
from odc_jax.training.state import TrainState

# How often one start of the program goes back because of NaN.
_MOST_ROLLBACKS = 3


def train(
  config: Config,
  workdir: pathlib.Path,
  num_groups: int | None = None,
  on_change: str | None = None,
) -> dict[str, int | float]:
  """Trains, or goes on where the work directory stopped, and evaluates.

  Args:
    config: A complete experiment, as the files in `configs/` give it.
    workdir: Where everything is written; see the README for what. With several
      processes a folder that all of them see.
    num_groups: How many groups to merge the clusters into at the end, if any.
    on_change: "extend": a run whose images have changed grows with them. None:
      it is refused.

  Returns:
    What is in `summary.json`: name -> last value.

  Raises:
    UserError: For whatever the user can mend.
    SystemExit: A signal ended the run; what it had learnt is saved.
  """
  mesh = mesh_lib.make_mesh()
  rollbacks = 0
  while True:
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
      try:
        run = open_run(config, workdir, num_groups, mesh, stack, on_change)
        return _train(run, rollbacks, num_groups, stack)
      except NotFiniteError as error:
        # Saving comes after checking: no checkpoint holds what was not finite.
        # Its frames hold the run, and that the images on the devices.
        problem = error.with_traceback(None)
    if config.on_nan != "rollback" or rollbacks == _MOST_ROLLBACKS:
      after = f" after {rollbacks} rollbacks" if rollbacks else ""
      raise UserError(
        f"{problem}: stopped{after}; the checkpoints in "
        f"{workdir / 'checkpoints'} are from before. Lower "
        "optimizer.learning_rate or lengthen optimizer.warmup_epochs, in a new "
        "--workdir"
      ) from problem
    rollbacks += 1
    processes.warn(
      f"{problem}: going back to the last checkpoint, with another order of "
      f"the data ({rollbacks} of at most {_MOST_ROLLBACKS} times)"
    )


def _train(run: Run, rollbacks, num_groups, stack):
  state, features, resumed = start(run, rollbacks)
  start_step = int(state.step)
  writer = _writer(run, start_step if resumed else None)
  stack.callback(writer.close)
  log = _step_log(run, writer)
  stack.callback(log.close)
  schedule = Schedule(
    run.num_steps,
    run.steps_per_epoch,
    run.config.eval.every_epochs,
    run.config.checkpoint_every_epochs,
    run.evaluation.has_labels(),
  )
  logged = set(processes.gather(sorted(writer.logged_at_start))[0])
  saved_step = start_step if resumed else None
  batches = run.batches(state, start_step)
  stack.callback(lambda: batches.close())

  for step in range(start_step, run.num_steps + 1):
    stopping = run.stop.requested()
    due = schedule.before(step, logged, stopping)

    if due.last:
      state, found, stopped = _concluded(run, state)
      features = features if found is None else found
      if stopped:  # not saved: the last steps are done again
        stopping, saved_step = True, step
    if any(due):
      with log.between_steps():
        if due.sizes and (found := _sizes_and_change(run, state, step)):
          log.write(step, found)
        if due.features:
          try:
            features = _evaluate(run, state, step, features, due.scores, log)
          except StoppedError:
            stopping = True
        if (due.save or stopping) and step != saved_step:
          writer.flush()
          run.checkpoints.save(state, step)
          saved_step = step

    if not due.last:
      # Several times as large as the memory: not while training.
      features = None
    if step and run.recluster.due(step) and not (stopping or due.last):
      try:
        with log.between_steps():
          state, _ = run.recluster(state, step)
        if run.method.sampler is not None:
          batches.close()
          batches = run.batches(state, step)
      except StoppedError:
        stopping = True
        if step != saved_step:
          run.checkpoints.save(state, step)
    if stopping:
      run.checkpoints.wait()
      processes.warn(
        f"stopped at step {step} of {run.num_steps}; the same command goes on"
      )
      raise SystemExit(run.stop.exit_status)
    if due.last:
      break

    with log.waiting():
      batch, reading_seconds = next(batches)
    state, scalars, finite = run.program.step(state, batch)
    scalars["train/bad_images"] = len(run.evaluation.bad_train)
    log.add(step, scalars, finite, reading_seconds)
    logged = set()

  verdict = log.verdict()
  run.checkpoints.wait()
  # All is saved: what follows can be interrupted and done again.
  run.stop.listen_no_more()
  writer.close()  # its progress bar makes way for others
  assert features is not None  # of the pass after the last step
  return finish(run, state, features, num_groups, verdict)


def _step_log(run: Run, writer) -> StepLog:
  rate = optim.schedule(run.config.optimizer, run.steps_per_epoch)
  return StepLog(run.config, writer, rate, run.steps_per_epoch, run.num_steps)


def _concluded(run: Run, state: TrainState):
  """Returns what a run ends with, and whether a signal came first.

  Returns:
    The state, the features of all images where the end needed them, and
    whether that was stopped.
  """
  try:
    return *run.recluster.finish(state), False
  except StoppedError:
    return state, None, True


def _writer(run: Run, resumed_at: int | None) -> MetricWriter | SilentWriter:
  if not processes.is_first():
    return SilentWriter()
  spared = run.method.SPARED
  if check.is_frozen(run.config):
    # Clusters of fixed features settle early and are soon known by heart; and
    # without a neck that learns the embeddings are as alike as they are,
    # whatever a step does.
    spared = (*spared, "frozen", "trivial")
    if not run.program.shapes.params.get("neck"):
      spared = (*spared, "embeddings")
  health = Health(
    run.config.num_clusters,
    run.config.num_examples,
    run.method.ADVICE,
    spared,
  )
  return MetricWriter(run.workdir, resumed_at, run.num_steps, health)


def _evaluate(run: Run, state, step, features, scores, log):
  """Returns the features of the training set; logs their scores if asked to.

  Args:
    run: The run.
    state: Its state.
    step: Steps taken.
    features: Those of the first clustering or of the run's end, if these are
      of the same network; else None.
    scores: Whether to evaluate.
    log: Where the scores go.

  Raises:
    StoppedError: A signal came.
  """
  network = run.program.evaluated(state)
  if features is None:
    features = run.evaluation.train_features(*network)
  if scores:
    clusters = run.clusters(state)
    if np.all(clusters == run.config.num_clusters):
      clusters = None  # none yet
    subject = run.evaluation.subject(
      *network,
      features,
      clusters,
      method_state=state.method,
    )
    log.write(step, run.evaluation.scores(subject))
  return features


def _sizes_and_change(run: Run, state, step) -> dict[str, Any]:
  """Returns the scalars of an epoch's end, or of the first clustering.

  None where the method finds its clusters once the run is finished.
  """
  now = run.clusters(state)
  if np.all(now == run.config.num_clusters):
    return {}
  # An image that has no cluster yet counts for none.
  counts = np.bincount(now, minlength=run.config.num_clusters)
  counts = counts[: run.config.num_clusters]
  scalars = {
    "cluster/empty": np.sum(counts == 0),
    "cluster/min_size": np.min(counts),
    "cluster/max_size": np.max(counts),
  }
  if not step:
    return scalars
  before = run.without_padding(run.method.previous_clusters(state.method))
  scalars = {"cluster/nmi_previous": nmi(now, before), **scalars}
  if run.method.dissolved_clusters is not None:
    dissolved = run.method.dissolved_clusters(state.method)
    scalars["cluster/dissolved_epoch"] = dissolved
  return scalars
