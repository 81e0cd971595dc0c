"""The dual step by hand, and that it does what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax.clustering import size_constraint


@pytest.mark.parametrize(
  ("ratio", "expected"),
  [
    # 0.5 * (ratio / 4 - n / 8) is added: n = 4, 2, 2, 0 of 8 images.
    (0.8, [0.3 - 0.15, 0.0, 0.0, 0.1]),
    # An equality: no clipping.
    (1.0, [0.3 - 0.125, 0.0, 0.0, 0.125]),
    (1.2, [0.3 - 0.1, 0.025, 0.025, 0.15]),
  ],
)
def test_a_step_by_hand(ratio, expected):
  before = jnp.array([0.3, 0.0, 0.0, 0.0])
  counts = jnp.array([4, 2, 2, 0])
  after = size_constraint.step(
    before, counts, 8, learning_rate=0.5, ratio=ratio
  )
  np.testing.assert_allclose(after, expected, atol=1e-7)


def test_only_an_equality_has_negative_duals():
  counts = jnp.array([8, 0])
  for ratio, least in [(0.9, 0.0), (1.0, -0.5)]:
    after = size_constraint.step(
      jnp.zeros(2), counts, 8, learning_rate=1.0, ratio=ratio
    )
    np.testing.assert_allclose(jnp.min(after), least, atol=1e-7)


def test_counts_of_a_batch(mesh):
  clusters = jnp.array([2, 0, 2, 3, 2, 0, 3, 2], jnp.int32)
  found = jax.jit(size_constraint.count, static_argnums=1)(clusters, 5)
  np.testing.assert_array_equal(found, [2, 0, 4, 2, 0])


def test_duals_keep_every_cluster_at_its_share():
  """Scores that favour one cluster by far still fill all of them."""
  rng = np.random.default_rng(0)
  k, b, ratio = 4, 64, 0.8
  favour = jnp.array([2.0, 0.0, 0.0, 0.0])
  rho, totals = jnp.zeros(k), np.zeros(k)
  for t in range(400):
    scores = jnp.asarray(rng.normal(size=(b, k)), jnp.float32) + favour[None]
    clusters = jnp.argmax(scores + rho[None], axis=1)
    counts = jnp.bincount(clusters, length=k)
    rho = size_constraint.step(rho, counts, b, learning_rate=0.1, ratio=ratio)
    totals += np.asarray(counts) * (t >= 200)
  shares = totals / totals.sum()
  assert shares.min() > 0.95 * ratio / k
  # Without the duals a cluster that is not favoured gets 3 %.
  assert shares[0] < 0.5
