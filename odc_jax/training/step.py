"""The train step: one function, jitted in `programs`; methods fill it in."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from odc_jax.clustering import spherical
from odc_jax.config import Config
from odc_jax.models.functional import Functional
from odc_jax.training.state import TrainState


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
):
  """Returns `step(state, batch) -> (state, scalars, finite)`, to be jitted.

  Args:
    config: The experiment.
    method: One of `METHODS`.
    network: The model as pure functions.
    optimizer: An optax transform.
    augmentation: (key, images, index) -> a tuple of float32 views,
      [b, v, h, w, c].
  """

  def step(state: TrainState, batch: dict[str, Any]):
    key = jax.random.fold_in(state.key, state.step)
    augment_key, network_key = jax.random.split(key)
    images = augmentation(augment_key, batch["image"], batch["index"])

    def loss_function(params):
      views, batch_stats = network.apply(
        params, state.batch_stats, images, network_key, train=True
      )
      targets = method.targets(
        config, state.method, jax.lax.stop_gradient(views), batch, state.step
      )
      targets = jax.lax.stop_gradient(targets)
      loss, aux = method.loss(config, views, targets, state.method)
      return loss, (views, targets, batch_stats, aux)

    params = method.prepare(state.params)
    (loss, (views, targets, batch_stats, aux)), gradients = jax.value_and_grad(
      loss_function, has_aux=True
    )(params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, params)
    method_state, method_aux = method.after_step(
      config, state.method, views, targets, batch, state.step
    )
    embeddings = views[0].embeddings
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
      method=method_state,
      key=state.key,
      restarts=state.restarts,
    )
    finite = {
      "the loss": jnp.isfinite(loss),
      "an embedding": jnp.all(jnp.isfinite(embeddings)),
    }
    scalars = {
      "train/loss": loss,
      "train/embedding_std": embedding_std(embeddings),
    }
    return new_state, {**scalars, **aux, **method_aux}, finite

  return step
