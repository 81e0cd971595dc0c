"""Heads with teachers, trained on features that lie on the devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from odc_jax.models import backbone as backbone_lib
from odc_jax.models.cluster_heads import ClusterHeads
from odc_jax.models.functional import functional
from odc_jax.models.network import Network


class Views(NamedTuple):
  """Outputs of every view, by the heads and by their slower copies."""

  student: tuple[Any, ...]
  teacher: tuple[Any, ...]


class TrainState(NamedTuple):
  step: Any
  params: Any
  teacher: Any
  opt_state: Any
  method: Any


class Features(backbone_lib.Backbone):
  """The backbone of what is given as features already."""

  def __call__(self, x):
    return [x]


def network_of(num_features, num_clusters, **head):
  """Returns the network of features [b, v, 1, 1, d], as pure functions."""
  return functional(
    lambda rngs: Network(
      Features(),
      None,
      ClusterHeads(num_features, num_clusters, rngs=rngs, **head),
    )
  )


def make_step(config, method, network, optimizer, momentum):
  """Returns `step(state, features, rows, index)`, to be jitted.

  Args:
    config: The experiment.
    method: TEMI's module.
    network: As `network_of` returns it.
    optimizer: An optax transform.
    momentum: step -> m of teacher <- m teacher + (1 - m) student.
  """

  def step(state, features, rows, index):
    batch = {"index": index}
    images = (features[rows][:, :, None, None, :],)
    teacher, _ = network.apply(state.teacher, {}, images, None, train=True)

    def loss_function(params):
      student, _ = network.apply(params, {}, images, None, train=True)
      views = Views(student, teacher)
      targets = jax.lax.stop_gradient(
        method.targets(config, state.method, views, batch, state.step)
      )
      value, scalars = method.loss(config, views, targets, state.method)
      return value, (views, targets, scalars)

    (_, (views, targets, scalars)), gradients = jax.value_and_grad(
      loss_function, has_aux=True
    )(state.params)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    m = momentum(state.step)
    moved, more = method.after_step(
      config, state.method, views, targets, batch, state.step
    )
    state = TrainState(
      state.step + 1,
      params,
      jax.tree.map(lambda t, p: m * t + (1 - m) * p, state.teacher, params),
      opt_state,
      moved,
    )
    return state, {**scalars, **more}, views, targets, gradients

  return step


def start(method_state, params, optimizer):
  """Returns the state at step 0; the teachers are the heads."""
  return TrainState(
    jnp.int32(0),
    params,
    jax.tree.map(jnp.copy, params),
    optimizer.init(params),
    method_state,
  )
