"""Schedules of what is no learning rate: decays, temperatures."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from odc_jax.config import Config, check


def cosine(
  config: Config, first: float, last: float, step
) -> Float[Array, "*t"]:
  """Returns what falls or rises along half a cosine over the whole run.

  last + (first - last) (1 + cos(pi t / T)) / 2, with T steps of the run.

  Args:
    config: Reads `num_epochs`, `num_examples`, `batch_size`.
    first: At the first step.
    last: Behind the last one, and from then on.
    step: t, from 0; a number, or several, [*t].
  """
  num_steps = int(config.num_epochs * check.steps_per_epoch(config))
  share = jnp.minimum(step / max(1, num_steps), 1.0)
  return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2
