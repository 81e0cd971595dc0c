"""The only loop: mesh -> data -> state -> step -> evaluate, save, step, log."""

import contextlib
import json
import pathlib
import signal
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq

from odc_jax import checkpoint, metrics, optim, sizes
from odc_jax import config as config_lib
from odc_jax import mesh as mesh_lib
from odc_jax import state as state_lib
from odc_jax.config import Config
from odc_jax.data import augment, folder, loader, sources
from odc_jax.data.bad_images import BadImages
from odc_jax.data.decode import Crop
from odc_jax.errors import UserError
from odc_jax.evals import EVALS, features
from odc_jax.evals.clustering import nmi
from odc_jax.methods import METHODS
from odc_jax.models.functional import Functional, functional
from odc_jax.models.network import build
from odc_jax.state import TrainState
from odc_jax.step_log import NotFiniteError, StepLog


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


def run(config: Config, workdir: pathlib.Path) -> dict[str, int | float]:
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
    try:
      return _run(config, workdir, mesh, stack)
    except NotFiniteError as error:
      # Saving comes after checking: no checkpoint holds what was not finite.
      raise UserError(
        f"{error}: stopped; the checkpoints in {workdir / 'checkpoints'} are "
        "from before. Lower optimizer.learning_rate or lengthen "
        "optimizer.warmup_epochs, in a new --workdir"
      ) from error


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
  config, reasons = sizes.fill(config, num_examples, mesh.size)
  config = config_lib.resolve(config, num_examples, mesh.size)
  classes = train_source.num_classes
  print(
    f"{num_examples:,} images in {config.data.source}, "
    + (f"of {classes} classes" if classes else "without labels")
  )
  for line in reasons:
    print(line)
  # Asked for once here, so that a mistake shows before anything is computed.
  loader.batch_indices(
    num_examples, config.batch_size, 0, config.seed, config.data.sampling
  )
  steps_per_epoch = loader.steps_per_epoch(num_examples, config.batch_size)
  num_steps = int(config.num_epochs * steps_per_epoch)
  rows = mesh_lib.rows(mesh)

  # --------------------------------------------------------------- state ---
  in_channels = 2 if config.augment.sobel else 3
  network = functional(
    lambda rngs: build(
      config.model, config.num_clusters, rngs, in_channels=in_channels
    )
  )
  optimizer = optim.make(config.optimizer, steps_per_epoch)
  init = state_lib.init_function(
    config, method, network, optimizer, num_examples
  )
  shapes = jax.eval_shape(init)
  shardings = state_lib.shardings(shapes, mesh)

  # ------------------------------------------------------ work directory ---
  resuming = checkpoint.any_in(workdir)
  names_path, bad_path = workdir / "images.txt", workdir / "bad_images.txt"
  names = train_source.keys
  try:
    if names is not None and resuming:
      folder.check_list(names_path, names)
    config_lib.write(config, workdir, resuming)
    if names is not None and not resuming:
      folder.write_list(names_path, names)
    if not resuming:
      bad_path.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(
      f"the work directory {workdir} cannot be used: {error}; choose another "
      "--workdir"
    ) from error
  bad_train = BadImages(bad_path, "train", num_examples, config.data)
  bad_test = BadImages(bad_path, "eval", len(test_source or ()), config.data)
  checkpoints = checkpoint.Checkpoints(workdir, config.keep_checkpoints)
  stack.callback(checkpoints.close)

  # ---------------------------------------------------------- evaluation ---
  def forward(params, batch_stats, images):
    images = augment.normalize(config.augment, images)
    return network.apply(params, batch_stats, images, None, train=False)[0]

  extract = features.extractor(forward, mesh)

  def extract_source(state, source, bad):
    batches = loader.eval_batches(
      source,
      batch_size=_divisible(config.eval.batch_size, mesh.size),
      resize=config.data.eval_resize,
      crop=config.data.image_size,
      num_threads=config.data.num_threads,
    )

    def readable():
      for batch in batches:
        bad.add(batch.pop("bad"))
        yield batch

    with contextlib.closing(batches):
      return extract(state.params, state.batch_stats, readable(), len(source))

  def extract_train(state):
    return extract_source(state, train_source, bad_train)

  def without_padding(assignments):
    return np.asarray(assignments)[:num_examples]

  def evaluate(state, train):
    test = test_source and extract_source(state, test_source, bad_test)
    clusters = without_padding(method.clusters(state.method))
    scalars = {}
    for evaluator in evaluators:
      scalars.update(evaluator.evaluate(config, train, test, clusters))
    return scalars

  # ------------------------------------------------------- training step ---
  def augmentation(key, images, index):
    # The network sees the first view alone.
    return augment.augment_views(config.augment, key, images, index)[:, 0]

  step_function = jax.jit(
    make_step(config, method, network, optimizer, augmentation),
    donate_argnums=0,
    in_shardings=(shardings, rows),
    out_shardings=(shardings, None, None),
  )
  learning_rate = optim.schedule(config.optimizer, steps_per_epoch)

  def train_batches(start_step):
    """Yields batches, and the CPU time that reading each of them took."""
    data = config.data
    batches = loader.train_batches(
      train_source,
      data,
      batch_size=config.batch_size,
      crops=[Crop(data.image_size, data.crop_scale, data.crop_ratio)],
      seed=config.seed,
      start_step=start_step,
    )
    stack.callback(batches.close)
    for batch in batches:
      bad_train.add(batch.pop("bad"))
      reading_seconds = batch.pop("seconds")
      yield jax.device_put(batch, rows), reading_seconds

  # ----------------------------------------------------- start or go on ---
  state = checkpoints.restore(shapes, shardings)
  resumed = state is not None
  train_features = None
  if resumed:
    print(f"going on from step {int(state.step)} of {num_steps}", flush=True)
  else:
    state = jax.jit(init, out_shardings=shardings)()
    print(
      f"first clustering: {num_examples} images into "
      f"{config.num_clusters} clusters",
      flush=True,
    )
    # Kept for the evaluation of step 0: the same network, the same images.
    start_features = extract_train(state)
    train_features = start_features
    method_state = method.recluster(
      config, state.method, lambda: start_features.embeddings
    )
    state = state._replace(
      method=jax.device_put(method_state, shardings.method)
    )
  start_step = int(state.step)
  writer = metrics.MetricWriter(
    workdir, start_step if resumed else None, num_steps
  )
  stack.callback(writer.close)
  batches = train_batches(start_step)

  # ---------------------------------------------------------------- loop ---
  stop = stack.enter_context(_stop_signals())
  log = StepLog(config, writer, learning_rate, steps_per_epoch)
  stack.callback(log.close)
  evaluate_every = config.eval.every_epochs * steps_per_epoch
  checkpoint_every = config.checkpoint_every_epochs * steps_per_epoch
  for step in range(start_step, num_steps + 1):
    last = step == num_steps
    new = not (resumed and step == start_step)  # not yet written before

    epoch_ends = new and step % steps_per_epoch == 0
    if epoch_ends or last or stop:
      with log.between_steps():
        if epoch_ends and step:
          now = without_padding(method.clusters(state.method))
          before = without_padding(method.previous_clusters(state.method))
          counts = np.bincount(now, minlength=config.num_clusters)
          scalars = {
            "cluster/nmi_previous": nmi(now, before),
            "cluster/empty": np.sum(counts == 0),
            "cluster/min_size": np.min(counts),
            "cluster/max_size": np.max(counts),
          }
          log.write(step, scalars)
        if last or (epoch_ends and step % evaluate_every == 0):
          if train_features is None or step:
            train_features = extract_train(state)
          scalars = evaluate(state, train_features)
          if new and scalars:
            log.write(step, scalars)
        if new and (last or stop or step % checkpoint_every == 0):
          writer.flush()
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
      batch, reading_seconds = next(batches)
    state, scalars, finite = step_function(state, batch)
    scalars["train/bad_images"] = len(bad_train)
    log.add(step, scalars, finite, reading_seconds)

  # ------------------------------------------------------------- results ---
  verdict = log.verdict()
  checkpoints.wait()
  assert train_features is not None  # of the evaluation after the last step
  _write_clusters(
    workdir / "clusters.parquet",
    train_features,
    without_padding(method.clusters(state.method)),
    bad_train.indices,
  )
  summary = metrics.last_values(workdir)
  (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
  for bad in (bad_train, bad_test):
    if len(bad):
      print(f"{bad}, named in {bad_path}")
  if verdict:
    print(verdict)
  return summary


@contextlib.contextmanager
def _stop_signals():
  """Yields a list that SIGINT or SIGTERM puts its number into.

  A second one interrupts at once, as usual.
  """
  caught: list[int] = []
  before = {}

  def note(number, frame):
    del frame
    caught.append(number)
    for number, handler in before.items():
      signal.signal(number, handler)
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


def _write_clusters(path, train, clusters, bad):
  """Writes a row per training image, without those that cannot be read."""
  index = np.array([i for i in range(len(clusters)) if i not in bad])
  clusters, labels = clusters[index], train.labels[index]
  sizes = np.bincount(clusters)
  table = {
    "index": pa.array(index, pa.int64()),
    "key": pa.array([train.keys[i] for i in index], pa.string()),
    "cluster": pa.array(clusters, pa.int32()),
    "cluster_size": pa.array(sizes[clusters], pa.int32()),
  }
  if (labels >= 0).any():
    table["label"] = pa.array(labels, pa.int32(), mask=labels < 0)
  pq.write_table(pa.table(table), path)
