"""The only loop: data, program, state; then evaluate, save, step, log."""

import contextlib
import hashlib
import json
import pathlib
import time

import jax
import numpy as np

from odc_jax import mesh as mesh_lib
from odc_jax import report
from odc_jax.config import Config, auto, store
from odc_jax.config import check as config_lib
from odc_jax.data import bad_images, folder, loader, sources
from odc_jax.distributed import processes
from odc_jax.distributed import stop as stop_lib
from odc_jax.errors import UserError
from odc_jax.evals.evaluation import Evaluation, evaluators_of
from odc_jax.evals.scores import nmi
from odc_jax.files import write_json
from odc_jax.interop import torch as interop
from odc_jax.logs import writer as writer_lib
from odc_jax.logs.health import Health
from odc_jax.logs.steps import NotFiniteError, StepLog
from odc_jax.methods import METHODS
from odc_jax.results import groups
from odc_jax.results.collect import hand_over
from odc_jax.training import checkpoint, optim
from odc_jax.training import state as state_lib
from odc_jax.training.programs import assemble
from odc_jax.training.recluster import Reclustering

# A network file system may take this long to show a file to another host.
_SHARED_SECONDS = 30

# How often one start of the program goes back because of NaN.
_MOST_ROLLBACKS = 3


def run(
  config: Config, workdir: pathlib.Path, num_groups: int | None = None
) -> dict[str, int | float]:
  """Trains, or goes on where the work directory stopped, and evaluates.

  Args:
    config: A complete experiment, as the files in `configs/` give it.
    workdir: Where everything is written; see the README for what. With several
      processes a folder that all of them see.
    num_groups: How many groups to merge the clusters into at the end, if any.

  Returns:
    What is in `summary.json`: name -> last value.

  Raises:
    UserError: For whatever the user can mend.
  """
  mesh = mesh_lib.make_mesh()
  rollbacks = 0
  while True:
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
      try:
        return _run(config, workdir, num_groups, mesh, stack, rollbacks)
      except NotFiniteError as error:
        # Saving comes after checking: no checkpoint holds what was not finite.
        problem = error
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


def _run(config, workdir, num_groups, mesh, stack, rollbacks):
  # ---------------------------------------------------------------- data ---
  method = config_lib.choose(METHODS, config.method, "method")
  # What a mistake in would show only after the work directory is prepared.
  evaluators_of(config.eval.evaluators)
  bad_images.check(config.data)
  train_source = sources.make(config.data.source, config.data.split)
  test_source = (
    sources.make(config.data.source, config.eval.split, train_source)
    if config.eval.split
    else None
  )
  num_examples = len(train_source)
  config, reasons = auto.fill(config, num_examples, mesh.size)
  config = config_lib.resolve(config, num_examples, mesh.size)
  groups.check_num_groups(num_groups, config.num_clusters)
  classes = train_source.num_classes
  processes.say(
    f"{num_examples:,} images in {config.data.source}, "
    + (f"of {classes} classes" if classes else "without labels")
  )
  for line in reasons:
    processes.say(line)
  # Asked for once here, so that a mistake shows before anything is computed.
  loader.batch_indices(
    num_examples, config.batch_size, 0, config.seed, config.data.sampling
  )
  steps_per_epoch = loader.steps_per_epoch(num_examples, config.batch_size)
  num_steps = int(config.num_epochs * steps_per_epoch)
  if not num_steps and method.recluster is None:
    raise UserError(
      f"{config.method} finds its clusters while it trains: num_epochs must be "
      "above 0"
    )

  # ------------------------------------------------------------- program ---
  program = assemble(config, method, mesh)

  # ------------------------------------------------------ work directory ---
  resuming = checkpoint.any_in(workdir)
  if not resuming:
    interop.check(config, program.shapes)
  _check_processes(config, train_source, workdir, resuming)
  if processes.is_first():
    _prepare(workdir, config, train_source.keys, resuming)
  _wait_for_config(workdir)
  checkpoints = checkpoint.Checkpoints(workdir, config.keep_checkpoints)
  stack.callback(checkpoints.close)
  stop = stop_lib.Stop(mesh)
  stack.enter_context(stop.listening())

  # ---------------------------------------------------------- evaluation ---
  bad_path = workdir / "bad_images.txt"
  evaluation = Evaluation(
    config, program, mesh, train_source, test_source, bad_path, stop.check
  )
  bad_train, bad_test = evaluation.bad_train, evaluation.bad_test
  recluster = Reclustering(
    config, method, program, mesh, evaluation, train_source
  )

  def without_padding(assignments):
    return processes.to_host(assignments)[:num_examples]

  def sizes_and_change(state, step):
    """Returns the scalars of an epoch's end, or of the first clustering."""
    now = without_padding(method.clusters(state.method))
    # An image that has no cluster yet counts for none.
    counts = np.bincount(now, minlength=config.num_clusters)
    counts = counts[: config.num_clusters]
    scalars = {
      "cluster/empty": np.sum(counts == 0),
      "cluster/min_size": np.min(counts),
      "cluster/max_size": np.max(counts),
    }
    if not step:
      return scalars
    before = without_padding(method.previous_clusters(state.method))
    scalars = {"cluster/nmi_previous": nmi(now, before), **scalars}
    if method.dissolved_clusters is not None:
      dissolved = method.dissolved_clusters(state.method)
      scalars["cluster/dissolved_epoch"] = dissolved
    return scalars

  # ------------------------------------------------------------- batches ---
  def train_batches(start_step, restarts, order):
    """Yields batches, and the CPU time that reading each of them took."""
    data = config.data
    batches = loader.train_batches(
      train_source,
      data,
      batch_size=config.batch_size,
      crops=loader.crops(data),
      # A restart has an order of its own.
      seed=config.seed + (restarts << 32),
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      order=order,
    )
    with contextlib.closing(batches):
      for batch in batches:
        bad_train.add(batch.pop("bad"))
        reading_seconds = batch.pop("seconds")
        yield processes.to_devices(batch, mesh), reading_seconds

  # ----------------------------------------------------- start or go on ---
  state = checkpoints.restore(program.shapes, program.shardings)
  resumed = state is not None
  train_features = None
  if resumed:
    if rollbacks:
      state = state_lib.with_fresh_order(state, rollbacks, program.shardings)
    processes.say(f"going on from step {int(state.step)} of {num_steps}")
  else:
    state = program.init()
    params, batch_stats = interop.initialize(
      config, state.params, state.batch_stats, program.shardings
    )
    state = state._replace(params=params, batch_stats=batch_stats)
    if recluster.due(0):
      processes.say(
        f"first clustering: {num_examples} images into "
        f"{config.num_clusters} clusters"
      )
      try:
        # Kept for the evaluation of step 0: the same network and images.
        state, train_features = recluster(state, 0)
      except stop_lib.StoppedError:
        processes.warn(
          "stopped during the first clustering, with nothing to save yet; the "
          "same command starts again"
        )
        raise SystemExit(stop.exit_status) from None
  start_step = int(state.step)
  saved_step = start_step if resumed else None
  health = Health(config.num_clusters, num_examples, config.method)
  writer = (
    writer_lib.MetricWriter(workdir, saved_step, num_steps, health)
    if processes.is_first()
    else writer_lib.SilentWriter()
  )
  stack.callback(writer.close)
  # Where a signal came between a line and the next, the next is still due.
  logged = set(processes.gather(sorted(writer.logged_at_start))[0])
  restarts = int(state.restarts)
  order = recluster.order(state, start_step)
  batches = train_batches(start_step, restarts, order)
  stack.callback(lambda: batches.close())

  # ---------------------------------------------------------------- loop ---
  learning_rate = optim.schedule(config.optimizer, steps_per_epoch)
  log = StepLog(config, writer, learning_rate, steps_per_epoch)
  stack.callback(log.close)
  evaluate_every = config.eval.every_epochs * steps_per_epoch
  checkpoint_every = config.checkpoint_every_epochs * steps_per_epoch
  for step in range(start_step, num_steps + 1):
    last = step == num_steps
    epoch_ends = step % steps_per_epoch == 0
    stopping = stop.requested()

    if epoch_ends or last or stopping:
      with log.between_steps():
        # Without training, the first clustering is all that there is to log.
        mark = "cluster/nmi_previous" if step else "cluster/min_size"
        if epoch_ends and (step or last) and mark not in logged:
          log.write(step, sizes_and_change(state, step))
        evaluated = any(name.startswith("eval/") for name in logged)
        due = epoch_ends and step % evaluate_every == 0 and not evaluated
        if (last or (due and evaluation.has_labels())) and not stopping:
          try:
            network = state.params, state.batch_stats
            if train_features is None or step:
              train_features = evaluation.train_features(*network)
            scalars = {}
            if evaluation.has_labels() and not evaluated:
              clusters = without_padding(method.clusters(state.method))
              if np.all(clusters == config.num_clusters):
                clusters = None  # none yet
              scalars = evaluation.scores(
                evaluation.subject(*network, train_features, clusters)
              )
            if not last:
              # Several times as large as the memory: not while training.
              train_features = None
            if scalars:
              log.write(step, scalars)
          except stop_lib.StoppedError:
            stopping = True
        save = last or stopping or step % checkpoint_every == 0
        if save and step != saved_step:
          writer.flush()
          checkpoints.save(state, step)
          saved_step = step
    if step and recluster.due(step) and not (stopping or last):
      try:
        with log.between_steps():
          state, _ = recluster(state, step)
        order = recluster.order(state, step)
        if order is not None:
          batches.close()
          batches = train_batches(step, restarts, order)
      except stop_lib.StoppedError:
        stopping = True
        if step != saved_step:
          checkpoints.save(state, step)
    if stopping:
      checkpoints.wait()
      processes.warn(
        f"stopped at step {step} of {num_steps}; the same command goes on"
      )
      raise SystemExit(stop.exit_status)
    if last:
      break

    with log.waiting():
      batch, reading_seconds = next(batches)
    state, scalars, finite = program.step(state, batch)
    scalars["train/bad_images"] = len(bad_train)
    log.add(step, scalars, finite, reading_seconds)
    logged = set()

  # ------------------------------------------------------------- results ---
  verdict = log.verdict()
  checkpoints.wait()
  assert train_features is not None  # of the evaluation after the last step
  for bad in (bad_train, bad_test):
    bad.exchange(processes.gather)
  clusters = without_padding(method.clusters(state.method))
  keys = train_source.keys
  if keys is None:
    named = _all_keys(train_features)
    keys = [named[i] for i in range(num_examples)]
  # All is saved: what follows can be interrupted and done again.
  stop.listen_no_more()
  writer.close()  # its progress bar makes way for others
  hand_over(
    workdir,
    program,
    mesh,
    state,
    train_features,
    num_clusters=config.num_clusters,
    clusters=clusters,
    keys=keys,
    bad=bad_train.indices,
    num_groups=num_groups,
  )
  summary = None
  if processes.is_first():
    summary = writer_lib.last_values(workdir)
    write_json(workdir / "summary.json", summary, indent=2)
    report.write(workdir)
  for bad in (bad_train, bad_test):
    if len(bad):
      processes.say(f"{bad}, named in {bad_path}")
  if verdict:
    processes.say(verdict)
  # Also keeps the others until all is written.
  return processes.gather(summary)[0]


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


def _all_keys(features):
  """Returns the names of the images that all processes have read."""
  keys = {}
  for part in processes.gather(list(features.keys.items())):
    keys.update(part)
  return keys
