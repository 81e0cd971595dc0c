"""The optimiser and its schedules against PyTorch's recurrence, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from odc_jax import optim
from odc_jax.errors import UserError


def section(**overrides):
  config = ConfigDict(
    {
      "learning_rate": 0.5,
      "momentum": 0.9,
      "head_momentum": 0.0,
      "weight_decay": 0.1,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": (),
      "decay_rate": 0.1,
      "num_epochs": 10,
    }
  )
  config.update(overrides)
  return config


def rates(config, steps, steps_per_epoch=10):
  schedule = optim.schedule(config, steps_per_epoch)
  return [float(schedule(step)) for step in steps]


def test_step_schedule_falls_with_the_first_step_of_an_epoch():
  config = section(decay_epochs=(2, 5), decay_rate=0.4)
  found = rates(config, [0, 19, 20, 49, 50, 99])
  np.testing.assert_allclose(found, [0.5, 0.5, 0.2, 0.2, 0.08, 0.08], rtol=1e-6)


def test_step_schedule_counts_decays_from_the_start_despite_a_warmup():
  config = section(decay_epochs=(2, 5), decay_rate=0.4, warmup_epochs=0.5)
  found = rates(config, [0, 1, 4, 5, 19, 20, 49, 50])
  expected = [0.0, 0.1, 0.4, 0.5, 0.5, 0.2, 0.2, 0.08]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_cosine_schedule_ends_at_zero():
  steps = np.array([0, 1, 25, 50, 75, 99, 100])
  found = rates(section(schedule="cosine"), steps)
  expected = 0.5 * (1 + np.cos(np.pi * steps / 100)) / 2
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_cosine_schedule_begins_behind_the_warmup():
  config = section(schedule="cosine", warmup_epochs=2.0)
  found = rates(config, [0, 10, 19, 20, 60, 100])
  expected = [0.0, 0.25, 0.475, 0.5, 0.25, 0.0]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_an_unknown_schedule():
  with pytest.raises(UserError, match=r"'linear'; choose step or cosine"):
    optim.schedule(section(schedule="linear"), 10)


def test_sgd_is_pytorch_s():
  """v <- m v + (g + wd p); p <- p - lr v, the head with m = 0."""
  # Two steps an epoch: the rate falls with step 4.
  config = section(decay_epochs=(2,), decay_rate=0.1, weight_decay=0.2)
  rng = np.random.default_rng(0)

  def tree():
    return {
      "backbone": {"conv": {"kernel": rng.normal(size=(2, 3))}},
      "neck": {"fc": {"bias": rng.normal(size=3)}},
      "head": {"fc": {"kernel": rng.normal(size=(3, 2))}},
    }

  def to_jax(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

  expected, gradients = tree(), [tree() for _ in range(6)]
  momenta = {"backbone": 0.9, "neck": 0.9, "head": 0.0}
  velocity = jax.tree.map(np.zeros_like, expected)
  transform = optim.make(config, steps_per_epoch=2)
  params = to_jax(expected)
  state = transform.init(params)

  @jax.jit
  def step(params, state, gradient):
    updates, state = transform.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  for t, gradient in enumerate(gradients):
    params, state = step(params, state, to_jax(gradient))
    rate = 0.5 if t < 4 else 0.05
    for part, momentum in momenta.items():
      v = jax.tree.map(
        lambda v, g, p, m=momentum: m * v + (g + 0.2 * p),
        velocity[part],
        gradient[part],
        expected[part],
      )
      velocity[part] = v
      expected[part] = jax.tree.map(
        lambda p, v, lr=rate: p - lr * v, expected[part], v
      )
    jax.tree.map(
      lambda found, p: np.testing.assert_allclose(
        found, p, rtol=2e-5, atol=1e-6
      ),
      params,
      expected,
    )
