"""The train step: one function, jitted in `programs`; methods fill it in."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from odc_jax.clustering import spherical
from odc_jax.config import Config
from odc_jax.models.functional import Functional
from odc_jax.training import state as state_lib
from odc_jax.training.state import TrainState


class Views(NamedTuple):
  """Outputs of every view of a batch, where a method has a teacher.

  Attributes:
    student: By the network that is trained.
    teacher: By its slower copy, of the large views.
  """

  student: tuple[Any, ...]
  teacher: tuple[Any, ...]


def embedding_std(embeddings: Float[Array, "b d"]) -> Float[Array, ""]:
  """Returns how widely a batch's embeddings are spread over the sphere.

  sqrt(sum_j var_i u_ij) of the directions u_i = z_i / |z_i|: 0 where all are
  the same, or zero; near 1 where they point everywhere alike, and never more.
  For a value s, two embeddings have the mean cosine 1 - s^2. Behind a ReLU,
  independent normal entries give sqrt(1 - 1/pi) = 0.83.

  Args:
    embeddings: Of one batch, of any length, [b, d].

  Source: Chen & He 2021 (SimSiam), arXiv:2011.10566, section 4.1, whose plain
  mean of the standard deviations, times sqrt(d), is the same where all entries
  vary alike, but near 0 as well for embeddings that are widely spread and
  sparse.
  """
  directions = spherical.normalize(embeddings)
  return jnp.sqrt(jnp.sum(jnp.var(directions, axis=0)))


def make_step(
  config: Config,
  method: Any,
  network: Functional,
  optimizer: optax.GradientTransformation,
  augmentation: Any,
  frozen: Collection[str] = (),
):
  """Returns `step(state, batch) -> (state, scalars, finite)`, to be jitted.

  Args:
    config: The experiment.
    method: One of `METHODS`.
    network: The model as pure functions.
    optimizer: An optax transform.
    augmentation: (key, images, index) -> a tuple of float32 views,
      [b, v, h, w, c]; of a frozen backbone their features, [b, v, c].
    frozen: Parts of the network that no step changes.
  """

  def step(state: TrainState, batch: dict[str, Any]):
    key = jax.random.fold_in(state.key, state.step)
    augment_key, network_key = jax.random.split(key)
    index = batch["index"]
    if method.partners is not None:
      partners = method.partners(config, state.method, index, augment_key)
      index = jnp.stack([index, partners], axis=1)
    images = augmentation(augment_key, batch["image"], index)
    params = method.prepare(state.params)
    state = _with_teacher(config, method, state, params, "first")
    slower, teacher_stats = _by_teacher(network, state, images, network_key)

    def loss_function(trained: dict[str, Any]):
      views, batch_stats = network.apply(
        {**params, **trained},
        state.batch_stats,
        images,
        network_key,
        train=True,
      )
      if slower is not None:
        views = Views(views, jax.lax.stop_gradient(slower))
      targets = method.targets(
        config, state.method, jax.lax.stop_gradient(views), batch, state.step
      )
      targets = jax.lax.stop_gradient(targets)
      loss, aux = method.loss(config, views, targets, state.method)
      return loss, (views, targets, batch_stats, aux)

    trained = state_lib.trained(params, frozen)
    (loss, (views, targets, batch_stats, aux)), gradients = jax.value_and_grad(
      loss_function, has_aux=True
    )(trained)
    state = _with_teacher(config, method, state, trained, "before")
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    trained: Any = optax.apply_updates(trained, updates)
    state = _with_teacher(config, method, state, trained, "after")
    method_state, method_aux = method.after_step(
      config, state.method, views, targets, batch, state.step
    )
    new_state = state._replace(
      step=state.step + 1,
      params={**params, **trained},
      batch_stats=batch_stats,
      opt_state=opt_state,
      method=method_state,
      teacher_stats=teacher_stats,
    )
    scalars, finite = _health(loss, views)
    return new_state, {**scalars, **aux, **method_aux}, finite

  return step


def _with_teacher(config, method, state, student, when):
  """Returns the state, its teacher moved if this is when it moves."""
  teacher = method.teacher
  if state.teacher is None or teacher.moves != when:
    return state
  m = teacher.decay(config, state.step)

  def moved(name, part):
    if name in teacher.copied:
      return student[name]
    return jax.tree.map(
      lambda slow, new: m * slow + (1 - m) * new, part, student[name]
    )

  return state._replace(
    teacher={name: moved(name, part) for name, part in state.teacher.items()}
  )


def _by_teacher(network, state, images, key):
  """Returns the teacher's outputs of the large views, and its statistics."""
  if state.teacher is None:
    return None, None
  outputs, found = network.apply(
    *state_lib.taught(state), images[:1], key, train=True
  )
  if state.teacher_stats is None:
    return outputs, None
  return outputs, {name: found[name] for name in state.teacher_stats}


def _health(loss, views):
  """Returns the scalars that every method logs, and what has to be finite."""
  student = views.student if isinstance(views, Views) else views
  embeddings = student[0].embeddings
  finite = {
    "the loss": jnp.isfinite(loss),
    "an embedding": jnp.all(jnp.isfinite(embeddings)),
  }
  scalars = {
    "train/loss": loss,
    "train/embedding_std": embedding_std(embeddings),
  }
  return scalars, finite
