"""Between steps: passes over all images, and what a method makes of them."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from odc_jax import mesh as mesh_lib
from odc_jax.config import Config, check
from odc_jax.data import feed, loader
from odc_jax.data import order as order_lib
from odc_jax.distributed import processes
from odc_jax.evals.evaluation import Evaluation
from odc_jax.logs import progress
from odc_jax.methods.method import Passes
from odc_jax.passes.extract import Features
from odc_jax.training.programs import Program
from odc_jax.training.state import TrainState, order_seed


class Reclustering:
  """A method's re-clusterings, and the order of the data that follows."""

  def __init__(
    self,
    config: Config,
    method: Any,
    program: Program,
    mesh: Mesh,
    evaluation: Evaluation,
  ):
    """Computes nothing yet.

    Args:
      config: A resolved experiment.
      method: One of `METHODS`.
      program: Their compiled side.
      mesh: The devices.
      evaluation: Passes over centre crops, and where the images are.
    """
    self._config, self._method = config, method
    self._program, self._mesh = program, mesh
    self._evaluation = evaluation

  def due(self, step: int) -> bool:
    """Returns whether to re-cluster before this step."""
    return self._method.recluster_due(self._config, step)

  def __call__(
    self, state: TrainState, step: int
  ) -> tuple[TrainState, Features | None]:
    """Re-clusters.

    Args:
      state: Before the step.
      step: Its number.

    Returns:
      The new state, and the features of all images if the method asked for
      embeddings of centre crops.

    Raises:
      StoppedError: If the evaluation's `check` does; the state is unharmed.
      UserError: Too many images cannot be read.
    """
    batch_stats, found = state.batch_stats, None
    params, statistics = self._program.evaluated(state)

    def embeddings():
      nonlocal found
      with self._bar(step) as advance:
        found = self._evaluation.train_features(params, statistics, advance)
      return found.embeddings

    def augmented():
      nonlocal batch_stats
      with self._bar(step) as advance:
        order = self._shuffled(state, step)
        rows, batch_stats = self._augmented(state, step, order, advance)
      return rows

    def of_epoch():
      nonlocal batch_stats
      with self._bar(step) as advance:
        order = self._epoch(state, step)
        rows, batch_stats = self._augmented(state, step, order, advance)
      seen = jax.jit(
        lambda order: jnp.zeros(rows.shape[0], bool).at[order].set(True),
        out_shardings=mesh_lib.rows(self._mesh),
      )(order)
      return rows, seen

    passes = Passes(embeddings, augmented, self._program.head, params, of_epoch)
    method_state = self._method.recluster(
      self._config, state.method, passes, step
    )
    state = state._replace(
      method=jax.device_put(method_state, self._program.shardings.method),
      batch_stats=batch_stats,
    )
    if self._method.FRESH:
      state = self._program.renew(state, step)
    return state, found

  def finish(self, state: TrainState) -> tuple[TrainState, Features | None]:
    """Returns the state that a run ends with.

    Args:
      state: After the last step.

    Returns:
      The state, and the features of all images if the method had a use for
      them.

    Raises:
      StoppedError: If the evaluation's `check` does.
    """
    if self._method.finish is None:
      return state, None
    params, statistics = self._program.evaluated(state)
    found = self._evaluation.train_features(params, statistics)
    method_state = self._method.finish(
      self._config,
      state.method,
      self._program.head,
      params,
      found.embeddings,
    )
    state = state._replace(
      method=jax.device_put(method_state, self._program.shardings.method)
    )
    return state, found

  def order(self, state: TrainState, step: int) -> Int[np.ndarray, "m"] | None:
    """Returns the images to train on until the next re-clustering, in order.

    Args:
      state: Since the last one.
      step: Of the next batch.

    Returns:
      Whole batches; None where the order does not depend on the clusters.
    """
    if self._method.sampler is None:
      return None
    clusters = processes.to_host(self._method.clusters(state.method))
    clusters = clusters[: self._config.num_examples]
    while step and not self.due(step):
      step -= 1  # to where they were found
    return self._method.sampler(self._config, clusters, step)

  def _bar(self, step):
    # Later on there is the bar of the training.
    return progress.bar(
      "reading the images",
      self._config.num_examples,
      step == 0 and processes.is_first(),
    )

  def _shuffled(self, state: TrainState, step: int) -> Int[np.ndarray, "m"]:
    """Returns all images, in whole batches."""
    n, b = self._config.num_examples, self._config.batch_size
    rng = np.random.default_rng(self._stream(state, step))
    order = rng.permutation(n).astype(np.int32)
    # The last batch is filled up with images of the first.
    return np.concatenate([order, order[: -n % b]])

  def _epoch(self, state: TrainState, step: int) -> Int[np.ndarray, "m"]:
    """Returns the images of the epoch that begins, in its whole batches."""
    config = self._config
    return np.concatenate(
      [
        order_lib.batch_indices(
          config.num_examples,
          config.batch_size,
          step + i,
          order_seed(config, state),
          config.data.sampling,
        )
        for i in range(check.steps_per_epoch(config))
      ]
    )

  def _stream(self, state: TrainState, step: int) -> np.random.SeedSequence:
    """Returns a stream of its own, apart from the training's."""
    seed = order_seed(self._config, state)
    return np.random.SeedSequence([seed % 2**64, step])

  def _augmented(
    self,
    state: TrainState,
    step: int,
    order: Int[np.ndarray, "m"],
    advance: Callable[[int], None],
  ) -> tuple[Float[Array, "n v d"], Any]:
    """Returns embeddings of augmented crops, and the moved statistics."""
    config, program = self._config, self._program
    n, b = config.num_examples, config.batch_size
    large, *_ = loader.crops(config.data)
    _, size = program.outputs.embeddings.shape
    rows = jax.jit(
      lambda: jnp.zeros((mesh_lib.padded_rows(n), large.views, size)),
      out_shardings=mesh_lib.rows(self._mesh),
    )()
    batch_stats = state.batch_stats
    key = jax.random.fold_in(jax.random.fold_in(state.key, step), 1)
    batches = feed.train_batches(
      self._evaluation.train_data,
      config.data,
      batch_size=b,
      crops=[large],
      seed=int(self._stream(state, step).generate_state(1, np.uint64)[0]),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      order=order,
    )
    with contextlib.closing(batches):
      for number in range(len(order) // b):
        self._evaluation.check()
        batch = next(batches)
        self._evaluation.bad_train.add(batch.pop("bad"))
        del batch["seconds"]
        rows, batch_stats = program.observe(
          rows,
          state.params,
          batch_stats,
          jax.random.fold_in(key, number),
          processes.to_devices(batch, self._mesh),
        )
        advance(number * b)
    return rows, batch_stats
