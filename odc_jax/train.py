"""The only loop: mesh -> data -> state -> step -> evaluate, save, step, log."""

import contextlib
import json
import pathlib
import signal
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq

from odc_jax import checkpoint, metrics, optim
from odc_jax import config as config_lib
from odc_jax import mesh as mesh_lib
from odc_jax import state as state_lib
from odc_jax.config import Config
from odc_jax.data import augment, loader, sources
from odc_jax.errors import UserError
from odc_jax.evals import EVALS, features
from odc_jax.evals.clustering import nmi
from odc_jax.methods import METHODS
from odc_jax.models.functional import Functional, functional
from odc_jax.models.network import build
from odc_jax.state import TrainState


def make_step(
  config: Config,
  method: Any,
  network: Functional,
  optimizer: optax.GradientTransformation,
  augmentation: Any,
):
  """Returns `step(state, batch) -> (state, scalars, finite)`, to be jitted.

  Args:
    config: The experiment.
    method: A module of `METHODS`.
    network: The model as pure functions.
    optimizer: An optax transform.
    augmentation: (key, images, index) -> float32 images.
  """

  def step(state: TrainState, batch: dict[str, jax.Array]):
    key = jax.random.fold_in(state.key, state.step)
    augment_key, network_key = jax.random.split(key)
    images = augmentation(augment_key, batch["image"], batch["index"])

    def loss_function(params):
      outputs, batch_stats = network.apply(
        params, state.batch_stats, images, network_key, train=True
      )
      targets = method.targets(state.method, outputs, batch)
      targets = jax.lax.stop_gradient(targets)
      loss, aux = method.loss(config, outputs, targets, state.method)
      return loss, (outputs, batch_stats, aux)

    (loss, (outputs, batch_stats, aux)), gradients = jax.value_and_grad(
      loss_function, has_aux=True
    )(state.params)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    method_state, method_aux = method.after_step(
      config, state.method, outputs, batch, state.step
    )
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
      method=method_state,
      key=state.key,
    )
    finite = {
      "the loss": jnp.isfinite(loss),
      "an embedding": jnp.all(jnp.isfinite(outputs.embeddings)),
    }
    return new_state, {"train/loss": loss, **aux, **method_aux}, finite

  return step


def run(config: Config, workdir: pathlib.Path) -> dict[str, float]:
  """Trains, or goes on where the work directory stopped, and evaluates.

  Args:
    config: A complete experiment, as the files in `configs/` give it.
    workdir: Where everything is written; see the README for what.

  Returns:
    What is in `summary.json`: name -> last value.

  Raises:
    UserError: For whatever the user can mend.
  """
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    return _run(config, workdir, mesh, stack)


def _run(config, workdir, mesh, stack):
  # ---------------------------------------------------------------- data ---
  method = _choose(METHODS, config.method, "method")
  evaluators = [
    _choose(EVALS, name, "evaluator") for name in config.eval.evaluators
  ]
  train_source = sources.make(config.data.source, config.data.split)
  test_source = (
    sources.make(config.data.source, config.eval.split)
    if config.eval.split
    else None
  )
  num_examples = len(train_source)
  config = config_lib.resolve(config, num_examples, mesh.size)
  config_lib.write(config, workdir)
  steps_per_epoch = num_examples // config.batch_size
  num_steps = int(config.num_epochs * steps_per_epoch)
  rows = mesh_lib.rows(mesh)

  # --------------------------------------------------------------- state ---
  network = functional(
    lambda rngs: build(config.model, config.num_clusters, rngs)
  )
  optimizer = optim.make(config.optimizer, steps_per_epoch)
  init = state_lib.init_function(
    config, method, network, optimizer, num_examples
  )
  shapes = jax.eval_shape(init)
  shardings = state_lib.shardings(shapes, mesh)
  checkpoints = checkpoint.Checkpoints(workdir, config.keep_checkpoints)
  stack.callback(checkpoints.close)

  # ---------------------------------------------------------- evaluation ---
  def forward(params, batch_stats, images):
    images = augment.normalize(config.augment, images)
    return network.apply(params, batch_stats, images, None, train=False)[0]

  extract = features.extractor(forward, mesh)

  def extract_source(state, source):
    batches = loader.eval_batches(
      source,
      batch_size=_divisible(config.eval.batch_size, mesh.size),
      resize=config.data.eval_resize,
      crop=config.data.image_size,
      num_threads=config.data.num_threads,
    )
    return extract(state.params, state.batch_stats, batches, len(source))

  def evaluate(state):
    train = extract_source(state, train_source)
    test = extract_source(state, test_source) if test_source else None
    clusters = np.asarray(method.clusters(state.method))[:num_examples]
    scalars = {}
    for evaluator in evaluators:
      scalars.update(evaluator.evaluate(config, train, test, clusters))
    return scalars, train

  # --------------------------------------------------- start or go on ------
  state = checkpoints.restore(shapes, shardings)
  resumed = state is not None
  if resumed:
    print(f"going on from step {int(state.step)} of {num_steps}", flush=True)
  else:
    state = jax.jit(init, out_shardings=shardings)()
    print(
      f"first clustering: {num_examples} images into "
      f"{config.num_clusters} clusters",
      flush=True,
    )
    method_state = method.recluster(
      config,
      state.method,
      lambda: extract_source(state, train_source).embeddings,
    )
    state = state._replace(
      method=jax.device_put(method_state, shardings.method)
    )
  start_step = int(state.step)
  writer = metrics.MetricWriter(workdir, start_step, num_steps)
  stack.callback(writer.close)

  # ---------------------------------------------------------------- step ---
  def augmentation(key, images, index):
    return augment.augment(config.augment, key, images[:, 0], index)

  step_function = jax.jit(
    make_step(config, method, network, optimizer, augmentation),
    donate_argnums=0,
    in_shardings=(shardings, rows),
    out_shardings=(shardings, None, None),
  )
  learning_rate = optim.schedule(config.optimizer, steps_per_epoch)
  batches = loader.train_batches(
    train_source,
    config.data,
    batch_size=config.batch_size,
    views=1,
    seed=config.seed,
    start_step=start_step,
  )
  stack.callback(batches.close)

  # ---------------------------------------------------------------- loop ---
  stop = stack.enter_context(_stop_signals())
  log = _Log(config, writer, checkpoints, learning_rate, steps_per_epoch)
  evaluate_every = config.eval.every_epochs * steps_per_epoch
  checkpoint_every = config.checkpoint_every_epochs * steps_per_epoch
  train_features = None
  for step in range(start_step, num_steps + 1):
    last = step == num_steps
    new = not (resumed and step == start_step)  # not yet written before

    epoch_ends = new and step % steps_per_epoch == 0
    if epoch_ends or last or stop:
      with log.between_steps():
        if epoch_ends and step:
          now = np.asarray(method.clusters(state.method))[:num_examples]
          before = np.asarray(method.previous_clusters(state.method))
          log.write(
            step, {"cluster/nmi_previous": nmi(now, before[:num_examples])}
          )
        if last or (epoch_ends and step % evaluate_every == 0):
          scalars, train_features = evaluate(state)
          if new:
            log.write(step, scalars)
        if new and (last or stop or step % checkpoint_every == 0):
          checkpoints.save(state, step)
    if stop:
      checkpoints.wait()
      print(
        f"stopped at step {step} of {num_steps}; the same command goes on",
        file=sys.stderr,
      )
      raise SystemExit(128 + stop[0])
    if last:
      break

    with log.waiting():
      batch = next(batches)
    batch = jax.device_put(batch, rows)
    state, scalars, finite = step_function(state, batch)
    log.add(step, scalars, finite)

  # ------------------------------------------------------------- results ---
  checkpoints.wait()
  _write_clusters(
    workdir / "clusters.parquet",
    train_features,
    np.asarray(method.clusters(state.method))[:num_examples],
  )
  summary = metrics.last_values(workdir)
  (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
  return summary


class _Log:
  """Fetches scalars every `log_every` steps, one interval late.

  By then the devices have long computed them: fetching does not wait. What
  was not finite in between is found at the same time.
  """

  def __init__(self, config, writer, checkpoints, learning_rate, per_epoch):
    self._every = config.log_every
    self._batch_size = config.batch_size
    self._writer = writer
    self._checkpoints = checkpoints
    self._learning_rate = learning_rate
    self._per_epoch = per_epoch
    self._unchecked = []  # (step, finite) of the steps since the last check
    self._pending = None  # (step, scalars) to be written at the next interval
    self._restart_clock()

  def _restart_clock(self):
    self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0

  @contextlib.contextmanager
  def waiting(self):
    """Times what the loop waits for the loader."""
    start = time.perf_counter()
    yield
    self._waited += time.perf_counter() - start

  @contextlib.contextmanager
  def between_steps(self):
    """Flushes, and keeps what happens inside out of the speed."""
    self.flush()
    start = time.perf_counter()
    yield
    self._start += time.perf_counter() - start

  def add(self, step, scalars, finite):
    """Takes what step number `step` returned, without waiting for it."""
    self._steps += 1
    self._unchecked.append((step, finite))
    if (step + 1) % self._every:
      return
    self._write_pending()
    self._check(self._unchecked[: -self._every])
    seconds = time.perf_counter() - self._start
    speed = {
      "speed/images_per_second": self._steps * self._batch_size / seconds,
      "speed/step_ms": 1000 * seconds / self._steps,
      "speed/data_wait": self._waited / seconds,
    }
    rate = {"train/learning_rate": self._learning_rate(step)}
    self._pending = (step + 1, {**scalars, **rate, **speed})
    self._restart_clock()

  def flush(self):
    """Waits for every step so far, checks them and writes what is due."""
    self._check(self._unchecked)
    self._write_pending()

  def write(self, step, scalars):
    """Writes scalars now."""
    self._writer.write(step, step / self._per_epoch, scalars)

  def _write_pending(self):
    if self._pending is not None:
      step, scalars = self._pending
      self._pending = None
      self.write(step, jax.device_get(scalars))
      self._writer.advance(step)

  def _check(self, steps):
    for step, finite in jax.device_get(steps):
      for what, is_finite in finite.items():
        if not is_finite:
          self._stop(step, what)
    self._unchecked = self._unchecked[len(steps) :]

  def _stop(self, step, what):
    self._checkpoints.wait()
    kept = self._checkpoints.steps()
    raise UserError(
      f"{what} is not finite in step {step}: stopped; the checkpoint of step "
      f"{kept[-1]} is good. Lower optimizer.learning_rate or lengthen "
      "optimizer.warmup_epochs, in a new --workdir"
    )


@contextlib.contextmanager
def _stop_signals():
  """Yields a list that SIGINT or SIGTERM puts its number into.

  The second one interrupts at once, as usual.
  """
  caught: list[int] = []
  before = {}

  def note(number, frame):
    del frame
    if caught:
      signal.signal(number, before[number])
    caught.append(number)
    print("saving; once more to stop at once", file=sys.stderr, flush=True)

  for number in (signal.SIGINT, signal.SIGTERM):
    before[number] = signal.signal(number, note)
  try:
    yield caught
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _divisible(batch_size: int, devices: int) -> int:
  """Returns the next multiple of the number of devices."""
  return -(-batch_size // devices) * devices


def _choose(choices: dict[str, Any], name: str, what: str) -> Any:
  """Returns `choices[name]`, or says what there is."""
  if name not in choices:
    raise UserError(f"unknown {what} {name!r}; choose {', '.join(choices)}")
  return choices[name]


def _write_clusters(path, train, clusters):
  """Writes a row per training image."""
  sizes = np.bincount(clusters)
  table = {
    "index": pa.array(np.arange(len(clusters)), pa.int64()),
    "key": pa.array(train.keys, pa.string()),
    "cluster": pa.array(clusters, pa.int32()),
    "cluster_size": pa.array(sizes[clusters], pa.int32()),
  }
  if (train.labels >= 0).any():
    table["label"] = pa.array(train.labels, pa.int32(), mask=train.labels < 0)
  pq.write_table(pa.table(table), path)
