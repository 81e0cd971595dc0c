"""The losses against their formulas in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax import losses

B, K = 12, 5


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  logits = 3 * rng.normal(size=(B, K)).astype(np.float32)
  clusters = rng.integers(K, size=B).astype(np.int32)
  weights = rng.uniform(0.1, 5, size=K).astype(np.float32)
  return jnp.asarray(logits), jnp.asarray(clusters), jnp.asarray(weights)


def formula(logits, clusters, weights):
  """sum_b w_{y_b} CE(z_b, y_b) / sum_b w_{y_b}, one row after the other."""
  total = norm = 0.0
  for z, y in zip(np.asarray(logits, np.float64), clusters, strict=True):
    w = float(weights[y])
    total += w * (np.log(np.sum(np.exp(z))) - z[y])
    norm += w
  return total / norm


def test_cross_entropy_by_hand():
  # Two equal logits; odds of 3 to 1; the sure one, whose exp overflows.
  logits = jnp.array([[0.0, 0.0], [np.log(3.0), 0.0], [-200.0, 200.0]])
  clusters = jnp.array([1, 0, 1])
  found = losses.cross_entropy(logits, clusters)
  expected = [np.log(2), np.log(4 / 3), 0]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
  wrong = losses.cross_entropy(logits, 1 - clusters)
  np.testing.assert_allclose(wrong, [np.log(2), np.log(4), 400], rtol=1e-6)


def test_cross_entropy_is_computed_in_float32(batch):
  logits, clusters, _ = batch
  half = logits.astype(jnp.bfloat16)
  found = losses.cross_entropy(half, clusters)
  expected = losses.cross_entropy(half.astype(jnp.float32), clusters)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, expected)


def test_weighted_cross_entropy_is_the_formula(batch):
  found = losses.weighted_cross_entropy(*batch)
  np.testing.assert_allclose(found, formula(*batch), rtol=1e-5)
  # Equal weights: the mean, from which the case above differs.
  logits, clusters, _ = batch
  found = losses.weighted_cross_entropy(logits, clusters, jnp.ones(K))
  mean = np.mean(losses.cross_entropy(logits, clusters))
  np.testing.assert_allclose(found, mean, rtol=1e-5)
  assert abs(formula(*batch) - mean) > 0.01


def test_the_scale_of_the_weights_cancels(batch):
  logits, clusters, weights = batch
  for group_size in (0, 3):
    one, other = (
      losses.weighted_cross_entropy(logits, clusters, w, group_size)
      for w in (weights, 1e-4 * weights)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("group_size", [1, 3, 4, 12])
def test_groups_of_consecutive_examples_are_averaged(batch, group_size):
  logits, clusters, weights = batch
  groups = [slice(i, i + group_size) for i in range(0, B, group_size)]
  expected = np.mean([formula(logits[g], clusters[g], weights) for g in groups])
  found = losses.weighted_cross_entropy(*batch, group_size=group_size)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_group_size_that_does_not_divide_the_batch(batch):
  with pytest.raises(ValueError, match=r"5 does not divide the batch of 12"):
    losses.weighted_cross_entropy(*batch, group_size=5)


def test_accuracy_by_hand():
  logits = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, -1.0], [-2.0, -1.0]])
  found = losses.accuracy(logits, jnp.array([1, 1, 0, 1]))
  assert found == 0.75


def test_soft_cross_entropy_of_a_mixture_is_the_mixture_of_both(batch):
  logits, clusters, _ = batch
  one, two = jnp.eye(K)[clusters], jnp.eye(K)[clusters[::-1]]
  found = losses.soft_cross_entropy(logits, 0.3 * one + 0.7 * two)
  expected = 0.3 * losses.cross_entropy(logits, clusters)
  expected += 0.7 * losses.cross_entropy(logits, clusters[::-1])
  np.testing.assert_allclose(found, expected, rtol=1e-5)
