"""BatchNorm against sums done by hand, and groups against one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from odc_jax import mesh as mesh_lib
from odc_jax.models import norm

# Channel 0: mean 3, squares of deviations 4, 1, 1, 4. Channel 1: mean 0, 1.
ROWS = np.array([[1, -1], [2, 1], [4, -1], [5, 1]], np.float32)


def test_four_rows_are_normalized_with_the_biased_variance():
  y = norm.BatchNorm(2, eps=0.0)(jnp.asarray(ROWS))
  # Variances 10 / 4 and 4 / 4.
  expected = (ROWS - [3, 0]) / np.sqrt([2.5, 1])
  np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_running_statistics_take_the_unbiased_variance():
  bn = norm.BatchNorm(2, momentum=0.1)
  bn(jnp.asarray(ROWS))
  np.testing.assert_allclose(bn.mean[...], [0.3, 0.0], atol=1e-7)
  # .9 * 1 + .1 * 10 / 3 and .9 * 1 + .1 * 4 / 3.
  np.testing.assert_allclose(bn.var[...], [3.7 / 3, 3.1 / 3], rtol=1e-6)


def test_momentum_is_the_weight_of_the_new_batch():
  bn = norm.BatchNorm(2, momentum=1.0)
  bn(jnp.asarray(ROWS))
  np.testing.assert_allclose(bn.mean[...], [3, 0], atol=1e-6)
  np.testing.assert_allclose(bn.var[...], [10 / 3, 4 / 3], rtol=1e-6)


def test_eval_uses_the_running_statistics_and_leaves_them():
  bn = norm.BatchNorm(2, eps=1.0)
  bn.mean[...], bn.var[...] = jnp.array([1.0, -1.0]), jnp.array([3.0, 0.0])
  bn.eval()
  y = bn(jnp.asarray(ROWS))
  np.testing.assert_allclose(y, (ROWS - [1, -1]) / [2, 1], rtol=1e-6)
  np.testing.assert_array_equal(bn.mean[...], [1, -1])
  np.testing.assert_array_equal(bn.var[...], [3, 0])
  bn.train()
  bn(jnp.asarray(ROWS))
  assert bn.mean[...][0] != 1


def test_scale_and_bias_come_last():
  bn = norm.BatchNorm(2, eps=0.0)
  bn.scale[...], bn.bias[...] = jnp.array([2.0, 3.0]), jnp.array([10.0, 20.0])
  y = bn(jnp.asarray(ROWS))
  expected = (ROWS - [3, 0]) / np.sqrt([2.5, 1]) * [2, 3] + [10, 20]
  np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_without_affine_there_are_no_parameters():
  bn = norm.BatchNorm(2, affine=False)
  assert not jax.tree.leaves(nnx.state(bn, nnx.Param))
  assert len(jax.tree.leaves(nnx.state(bn, nnx.BatchStat))) == 2


def test_space_counts_like_the_batch():
  x = np.random.default_rng(0).normal(2, 3, (3, 4, 5, 2)).astype(np.float32)
  bn = norm.BatchNorm(2, momentum=1.0)
  y = bn(jnp.asarray(x))
  flat = x.reshape(-1, 2)
  np.testing.assert_allclose(bn.mean[...], flat.mean(0), rtol=1e-5)
  np.testing.assert_allclose(bn.var[...], flat.var(0, ddof=1), rtol=1e-5)
  expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_a_group_is_normalized_alone():
  """Pairs: (1, 2) and (4, 5) have means 1.5, 4.5 and variances 1/4, 1/2."""
  bn = norm.BatchNorm(2, momentum=1.0, eps=0.0, group_size=2)
  y = bn(jnp.asarray(ROWS))
  np.testing.assert_allclose(y[:, 0], [-1, 1, -1, 1], rtol=1e-6)
  np.testing.assert_allclose(bn.mean[...], [3, 0], atol=1e-6)
  np.testing.assert_allclose(bn.var[...], [0.5, 2], rtol=1e-6)


def test_groups_equal_one_call_each(mesh):
  x = np.random.default_rng(1).normal(1, 2, (16, 3, 3, 5)).astype(np.float32)
  grouped = norm.BatchNorm(5, group_size=4)
  graph, state = nnx.split(grouped)

  @jax.jit
  def run(state, x):
    module = nnx.merge(graph, state)
    return module(x), module.mean[...], module.var[...]

  y, mean, var = run(state, jax.device_put(x, mesh_lib.rows(mesh)))

  parts, means, variances = [], [], []
  for part in np.split(x, 4):
    alone = norm.BatchNorm(5)
    parts.append(alone(jnp.asarray(part)))
    means.append(alone.mean[...])
    variances.append(alone.var[...])
  np.testing.assert_allclose(y, np.concatenate(parts), atol=1e-5)
  np.testing.assert_allclose(mean, np.mean(means, 0), atol=1e-6)
  np.testing.assert_allclose(var, np.mean(variances, 0), rtol=1e-5)


@pytest.mark.optimized
@pytest.mark.parametrize("group_size", [0, 2, 8])
def test_devices_exchange_sums_only(group_size):
  """Whether groups are smaller than a device's share, larger, or everything."""
  mesh = mesh_lib.make_mesh()
  graph, state = nnx.split(norm.BatchNorm(5, group_size=group_size))
  state = nnx.to_pure_dict(state)

  def loss(state, x):
    module = nnx.merge(graph, state)
    return jnp.sum(module(x) ** 3), module.mean[...]

  step = jax.jit(
    jax.value_and_grad(loss, argnums=1, has_aux=True),
    in_shardings=(mesh_lib.replicated(mesh), mesh_lib.rows(mesh)),
  )
  x = jax.ShapeDtypeStruct((32, 4, 4, 5), jnp.float32)
  program = step.lower(state, x).compile().as_text()
  assert "all-reduce" in program
  for collective in "all-gather", "all-to-all", "collective-permute":
    assert collective not in program


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("group_size", [0, 4])
def test_the_gradient_is_that_of_the_formula(group_size, affine):
  rng = np.random.default_rng(2)
  x = jnp.asarray(rng.normal(1, 2, (8, 3, 5)), jnp.float32)
  weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
  bn = norm.BatchNorm(5, eps=0.1, group_size=group_size, affine=affine)
  if affine:
    bn.scale[...] = jnp.asarray(rng.normal(size=5), jnp.float32)
    bn.bias[...] = jnp.asarray(rng.normal(size=5), jnp.float32)
  graph, params, rest = nnx.split(bn, nnx.Param, ...)
  params = nnx.to_pure_dict(params)

  def ours(params, x):
    return jnp.sum(nnx.merge(graph, params, rest, copy=True)(x) * weights)

  def formula(params, x):
    groups = x.reshape(-1, group_size or 8, *x.shape[1:])
    mean = groups.mean((1, 2), keepdims=True)
    z = (groups - mean) / jnp.sqrt(groups.var((1, 2), keepdims=True) + 0.1)
    y = z.reshape(x.shape)
    if affine:
      y = y * params["scale"][None, None] + params["bias"][None, None]
    return jnp.sum(y * weights)

  gradients = jax.grad(ours, (0, 1))(params, x)
  expected = jax.grad(formula, (0, 1))(params, x)
  assert len(jax.tree.leaves(gradients)) == (3 if affine else 1)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5),
    gradients,
    expected,
  )


def test_a_group_of_everything_is_the_whole_batch():
  whole = norm.BatchNorm(2)(jnp.asarray(ROWS))
  group = norm.BatchNorm(2, group_size=4)(jnp.asarray(ROWS))
  np.testing.assert_array_equal(whole, group)


def test_a_remainder_is_an_error_in_training_only():
  bn = norm.BatchNorm(2, group_size=3)
  with pytest.raises(ValueError, match="batch of 4 does not divide"):
    bn(jnp.asarray(ROWS))
  bn.eval()
  bn(jnp.asarray(ROWS))


def test_one_value_a_channel_is_an_error():
  with pytest.raises(ValueError, match="more than one value"):
    norm.BatchNorm(2, group_size=1)(jnp.asarray(ROWS))
  norm.BatchNorm(2, group_size=1)(jnp.zeros((4, 2, 2, 2)))


def test_bfloat16_is_reduced_in_float32():
  """A thousand ones: a bfloat16 sum of them would stop at 256."""
  x = jnp.ones((1000, 1), jnp.bfloat16).at[0].set(3)
  bn = norm.BatchNorm(1, momentum=1.0)
  y = bn(x)
  assert y.dtype == jnp.bfloat16
  assert bn.mean[...].dtype == bn.var[...].dtype == jnp.float32
  np.testing.assert_allclose(bn.mean[...], [1.002], rtol=1e-6)


def test_a_mean_far_from_zero_keeps_its_variance():
  y = norm.BatchNorm(2)(jnp.asarray(ROWS + 4096))
  expected = (ROWS - [3, 0]) / np.sqrt(np.array([2.5, 1]) + 1e-5)
  np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_gradients_see_the_batch_statistics():
  """Shifting or scaling a channel changes nothing, so it has no gradient."""
  graph, state = nnx.split(norm.BatchNorm(2, eps=0.0))
  state = nnx.to_pure_dict(state)
  weights = jnp.asarray([[1.0, 2], [3, 5], [-4, 1], [0, 2]])

  def loss(shift, factor):
    return jnp.sum(weights * nnx.merge(graph, state)(ROWS * factor + shift))

  for gradient in jax.grad(loss, (0, 1))(jnp.float32(2), jnp.float32(3)):
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
