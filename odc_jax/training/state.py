"""The train state: what it holds, how it starts, where each part lies."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from odc_jax import mesh as mesh_lib
from odc_jax.config import Config
from odc_jax.models.functional import Functional


class TrainState(NamedTuple):
  """Everything that changes while training; a checkpoint is this.

  Attributes:
    step: Steps taken. The position in the data follows from it.
    params: Weights, nested dicts.
    batch_stats: Running statistics of BatchNorm, nested dicts.
    opt_state: State of the optax transform.
    method: State of the method: its memories.
    key: Seeds augmentation and dropout; steps fold into it.
    restarts: How often the run went back for another order of the data; 0
      unless `on_nan` is "rollback".
    teacher: A slower copy of the parameters that are trained, which the method
      compares with; None where it has none.
    teacher_stats: The teacher's own running statistics of BatchNorm, of the
      same parts; None where it goes by the student's.
  """

  step: Int[Array, ""]
  params: Any
  batch_stats: Any
  opt_state: Any
  method: Any
  key: Key[Array, ""]
  restarts: Int[Array, ""]
  teacher: Any = None
  teacher_stats: Any = None


def order_seed(config: Config, state: TrainState) -> int:
  """Returns the seed of the images' order, which is another in a restart.

  Args:
    config: Reads `seed`.
    state: Has the number of restarts.
  """
  return config.seed + (int(state.restarts) << 32)


def taught(state: TrainState) -> tuple[Any, Any]:
  """Returns the teacher's parameters and statistics, of the whole network.

  The student's, for what the teacher does not hold.
  """
  return (
    {**state.params, **(state.teacher or {})},
    {**state.batch_stats, **(state.teacher_stats or {})},
  )


def with_copied_teacher(
  state: TrainState,
  config: Config,
  method: Any,
  frozen: Collection[str] = (),
) -> TrainState:
  """Returns the state with a teacher that is a copy, if the method has one.

  Args:
    state: Whose network is copied.
    config: The experiment, which says whether there is to be one.
    method: One of `METHODS`.
    frozen: Parts of the network that no step changes.
  """
  if method.teacher is None or not method.teacher.present(config):
    return state
  without = (*frozen, *method.teacher.lacks)
  copied = jax.tree.map(
    jnp.copy,
    (trained(state.params, without), trained(state.batch_stats, without)),
  )
  teacher, statistics = copied
  return state._replace(
    teacher=teacher,
    teacher_stats=statistics if method.teacher.statistics else None,
  )


def trained(params: Any, frozen: Collection[str]) -> Any:
  """Returns the parameters that steps change.

  Args:
    params: Of the network, or its running statistics, by its parts.
    frozen: The parts that stay as they are.
  """
  return {name: part for name, part in params.items() if name not in frozen}


def init_function(
  config: Config,
  method: Any,
  network: Functional,
  optimizer: optax.GradientTransformation,
  num_examples: int,
  frozen: Collection[str] = (),
):
  """Returns `() -> TrainState`, to be run under `jit` or `eval_shape`.

  Args:
    config: The experiment.
    method: One of `METHODS`.
    network: The model as pure functions.
    optimizer: An optax transform.
    num_examples: Images in the data set.
    frozen: Parts of the network that no step changes.
  """

  def init() -> TrainState:
    key = jax.random.key(config.seed)
    network_key, method_key, train_key = jax.random.split(key, 3)
    params, batch_stats = network.init(network_key)
    state = TrainState(
      step=jnp.int32(0),
      params=params,
      batch_stats=batch_stats,
      opt_state=optimizer.init(trained(params, frozen)),
      method=method.init(config, num_examples, method_key),
      key=train_key,
      restarts=jnp.int32(0),
    )
    return with_copied_teacher(state, config, method, frozen)

  return init


def renewal(
  network: Functional,
  optimizer: optax.GradientTransformation,
  parts: Collection[str],
  frozen: Collection[str] = (),
):
  """Returns `(state, step) -> state`, to be run under `jit`.

  It draws the named parts of the network anew, and resets what the optimizer
  keeps of them.

  Args:
    network: The model as pure functions.
    optimizer: An optax transform.
    parts: Top-level keys of the parameters.
    frozen: Those that no step changes.
  """

  def renew(state: TrainState, step: Int[Array, ""]) -> TrainState:
    params, _ = network.init(jax.random.fold_in(state.key, step))
    params = {
      name: params[name] if name in parts else state.params[name]
      for name in params
    }

    def of(path, old, new):
      names = (getattr(key, "key", "") for key in path)
      return new if any(name in parts for name in names) else old

    opt_state = jax.tree_util.tree_map_with_path(
      of, state.opt_state, optimizer.init(trained(params, frozen))
    )
    return state._replace(params=params, opt_state=opt_state)

  return renew


def with_fresh_order(
  state: TrainState, times: int, shardings: Any
) -> TrainState:
  """Returns the state with other random numbers and another order of the data.

  Args:
    state: As a checkpoint gives it.
    times: How often the run went back since it was started; each time differs.
    shardings: Where its leaves lie.
  """

  def renew(state):
    return state._replace(
      key=jax.random.fold_in(state.key, times),
      restarts=state.restarts + times,
    )

  return jax.jit(renew, donate_argnums=0, out_shardings=shardings)(state)


def shardings(state: Any, mesh: Mesh) -> Any:
  """Returns the sharding of every leaf: by rows under `samples`, else copies.

  Args:
    state: A TrainState, of arrays or of shapes.
    mesh: The devices.
  """

  rows, copies = mesh_lib.rows(mesh), mesh_lib.replicated(mesh)

  def of(path, _):
    names = (getattr(key, "name", "") for key in path)
    return rows if "samples" in names else copies

  return jax.tree_util.tree_map_with_path(of, state)
