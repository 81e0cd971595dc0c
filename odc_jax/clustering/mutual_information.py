"""Soft clusters of a batch that carry as much information as they can."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Of a mean probability, whose logarithm is to be finite.
_LEAST = 1e-37


def regularized_assignment(
  logits: Float[Array, "b k"],
  temperature: float,
  beta: float | Float[Array, ""],
  num_iters: int,
) -> Float[Array, "b k"]:
  """Returns labels near a softmax with more mutual information than it has.

  a = softmax(logits / (temperature (1 - beta))); v = (mean_i a_i)^(1 - beta);
  num_iters times b_i = a_i v^(-beta / (1 - beta)), rows scaled to sum 1, and
  v <- v^beta (mean_i b_i)^(1 - beta); then b_i once more. A damped step towards
  v = mean_i b_i. Means are over the global batch: between the devices moves
  [k], num_iters + 1 times. In the log domain.

  Args:
    logits: Of the target network.
    temperature: Of the softmax at beta = 0.
    beta: In [0, 1): how sharp and balanced the labels become.
    num_iters: Steps; nothing tests whether they have converged.

  Source: MIRA train.py: mira.
  """
  log_a = jax.nn.log_softmax(logits / (temperature * (1 - beta)), axis=1)

  def log_mean(log_p):
    mean = jnp.mean(jnp.exp(log_p), axis=0)
    return jnp.log(jnp.maximum(mean, _LEAST))

  def labels(log_v):
    return jax.nn.log_softmax(log_a - beta / (1 - beta) * log_v[None], axis=1)

  def step(_, log_v):
    return beta * log_v + (1 - beta) * log_mean(labels(log_v))

  log_v = (1 - beta) * log_mean(log_a)
  return jnp.exp(labels(jax.lax.fori_loop(0, num_iters, step, log_v)))
