"""The dual variables that keep online clusters from running empty.

Assigning every image to its best cluster under the constraint that none gets
less than gamma / K of the images is a linear program. Its dual variables, one
for each cluster, are what has to be added to the scores; they follow the
stream of batches by stochastic gradient steps.

Source: CoKe (CVPR 2022), section 3; SeCu (ICCV 2023), section 3.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odc_jax import mesh


def count(clusters: Int[Array, "b"], num_clusters: int) -> Int[Array, "k"]:
  """Returns how many images of a batch each cluster got, replicated."""
  sizes = jnp.zeros((num_clusters,), jnp.int32)
  # The whole batch on every device: [b] moves, not [k] from each.
  return sizes.at[mesh.replicate(clusters)].add(1, mode="drop")


def step(
  duals: Float[Array, "k"],
  counts: Int[Array, "k"],
  batch_size: int,
  *,
  learning_rate: float,
  ratio: float,
) -> Float[Array, "k"]:
  """Returns rho_k - eta (n_k / B - gamma / K), not below zero if gamma < 1.

  A cluster that got less than its share of the batch becomes more attractive
  to the next one. With gamma = 1 the constraint is an equality, and its dual
  variables may have either sign.

  Args:
    duals: rho.
    counts: Images of the batch in each cluster, n; given by the old duals.
    batch_size: Images in the batch, B.
    learning_rate: eta.
    ratio: gamma, the least size of a cluster as a share of the mean size.

  Source: SeCu secu/builder.py, CoKe coke/builder_single_view.py: get_label.
  """
  duals = duals - learning_rate * counts.astype(jnp.float32) / batch_size
  duals = duals + learning_rate * ratio / duals.shape[0]
  return jnp.maximum(duals, 0) if ratio < 1 else duals
