"""Neck and head against sums done by hand, and their initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from odc_jax.models import heads


@pytest.fixture
def small_neck():
  """One feature, two hidden units x and 2 - x, and an embedding of two."""
  neck = heads.NonLinearNeck(1, 2, 2, bn_momentum=0.001, rngs=nnx.Rngs(0))
  neck.fc0.kernel[...] = jnp.array([[1.0, -1.0]])
  neck.fc0.bias[...] = jnp.array([0.0, 2.0])
  neck.fc1.kernel[...] = jnp.array([[2.0, 0.0], [1.0, -1.0]])
  neck.fc1.bias[...] = jnp.array([0.5, 0.25])
  return neck


def test_neck_by_hand_in_eval(small_neck):
  """Running statistics are 0 and 1, so that nothing is normalised."""
  small_neck.eval()
  e = small_neck(jnp.array([[0.0], [1.0], [3.0]]))
  # Hidden (0, 2), (1, 1), (3, 0), all over sqrt(1 + 1e-5); second unit of the
  # output: .25 - h1, below 0 but for the last row.
  expected = [[2.5, 0], [3.5, 0], [6.5, 0.25]]
  np.testing.assert_allclose(e, expected, atol=1e-4)


def test_neck_by_hand_in_training(small_neck):
  """Four rows normalise to -sqrt(2), 0, 0, sqrt(2) and their negatives."""
  x = jnp.array([[0.0], [1.0], [1.0], [2.0]])
  z = small_neck.hidden(x)
  r = np.sqrt(2)
  np.testing.assert_allclose(z, [[0, r], [0, 0], [0, 0], [r, 0]], atol=1e-4)
  # A recorded mask that drops unit 1 of row 0; what stays is doubled.
  mask = jnp.array([[1.0, 0.0], [1, 1], [1, 1], [1, 1]])
  e = small_neck.project(z * mask / 0.5)
  expected = [[0.5, 0.25], [0.5, 0.25], [0.5, 0.25], [4 * r + 0.5, 0.25]]
  np.testing.assert_allclose(e, expected, atol=1e-4)
  # Unbiased variance of 0, 1, 1, 2 is 2/3.
  stats = small_neck.bn0
  np.testing.assert_allclose(stats.mean[...], [0.001, 0.001], rtol=1e-5)
  np.testing.assert_allclose(stats.var[...], 0.999 + 0.002 / 3, rtol=1e-6)


def test_neck_drops_and_doubles():
  neck = heads.NonLinearNeck(3, 64, 8, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (32, 3))
  z = neck.hidden(x)
  dropped = neck.drop(z, rngs=nnx.Rngs(2))
  alive = np.asarray(z) > 0
  kept = np.asarray(dropped) > 0
  assert 0.45 < kept[alive].mean() < 0.55
  np.testing.assert_allclose(dropped, 2 * np.asarray(z) * kept, rtol=1e-6)
  np.testing.assert_array_equal(neck(x, nnx.Rngs(2)), neck.project(dropped))


def test_neck_wants_a_key_only_where_it_drops():
  x = jnp.ones((4, 3))
  neck = heads.NonLinearNeck(3, 8, 8, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="rngs"):
    neck(x)
  neck.eval()
  neck(x)
  heads.NonLinearNeck(3, 8, 8, dropout=0.0, rngs=nnx.Rngs(0))(x)


def test_neck_normalizes_in_groups():
  neck = heads.NonLinearNeck(3, 8, 4, group_size=2, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (4, 3))
  z = neck.hidden(x)
  np.testing.assert_allclose(z[:2], neck.hidden(x[:2]), atol=1e-6)
  np.testing.assert_allclose(z[2:], neck.hidden(x[2:]), atol=1e-6)


def test_neck_starts_kaiming_normal_over_fan_in():
  neck = heads.NonLinearNeck(2048, rngs=nnx.Rngs(0))
  for layer, shape in (neck.fc0, (2048, 512)), (neck.fc1, (512, 256)):
    kernel = np.asarray(layer.kernel[...])
    assert kernel.shape == shape
    std = np.sqrt(2 / shape[0])
    np.testing.assert_allclose(kernel.std(), std, rtol=0.01)
    # Flax's own he_normal ends at 2.3 of its standard deviations.
    assert np.abs(kernel).max() > 4 * std
    np.testing.assert_array_equal(layer.bias[...], 0)
  assert neck.bn0.scale is None
  assert neck.bn0.bias is None


def test_head_by_hand():
  head = heads.LinearHead(2, 3, rngs=nnx.Rngs(0))
  head.fc.kernel[...] = jnp.array([[1.0, 2, 3], [4, 5, 6]])
  head.fc.bias[...] = jnp.array([0.0, 0, 1])
  logits = head(jnp.array([[1.0, 0], [2, -1]]))
  np.testing.assert_allclose(logits, [[1, 2, 4], [-2, -1, 1]])


def test_head_starts_with_a_hundredth():
  head = heads.LinearHead(256, 1000, rngs=nnx.Rngs(0))
  kernel = np.asarray(head.fc.kernel[...])
  np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.01)
  assert abs(kernel.mean()) < 1e-4
  assert np.abs(kernel).max() > 0.04
  np.testing.assert_array_equal(head.fc.bias[...], 0)


def test_outputs_are_float32_whatever_is_computed_in():
  rngs = nnx.Rngs(0)
  neck = heads.NonLinearNeck(3, 8, 4, dtype=jnp.bfloat16, rngs=rngs)
  head = heads.LinearHead(4, 5, dtype=jnp.bfloat16, rngs=rngs)
  neck.eval()
  x = jnp.ones((2, 3))
  assert neck.hidden(x).dtype == jnp.bfloat16
  assert neck(x).dtype == head(neck(x)).dtype == jnp.float32
  assert neck.fc0.kernel[...].dtype == jnp.float32


def test_scores_in_bfloat16_are_summed_in_float32():
  """Rounding them would cost 2^-9; what is left is rounding the factors."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.choice([0.5, 1.0, 2.0], (8, 300)), jnp.float32)
  for head in (
    heads.Prototypes(300, (5,), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
    heads.LinearHeads(300, (5,), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
  ):
    if isinstance(head, heads.Prototypes):
      kernel, bias = head.kernels[0], 0.0
    else:
      kernel, bias = head.heads[0].fc.kernel, 1 + 2**-12
      head.heads[0].fc.bias[...] = jnp.full(5, bias)
    # Factors that bfloat16 holds, so that the sum alone can be wrong.
    kernel[...] = kernel[...].astype(jnp.bfloat16).astype(jnp.float32)
    (scores,) = head(x)
    exact = np.float64(x) @ np.float64(kernel[...]) + bias
    np.testing.assert_allclose(scores, exact, atol=2e-5)
    gradient = jax.grad(lambda x, head=head: head(x)[0].sum())(x)
    np.testing.assert_allclose(
      gradient, np.tile(np.float64(kernel[...]).sum(1), (8, 1)), atol=2e-2
    )


def test_projection_by_hand():
  """Two rows, one hidden unit x normalised to -1 and 1, then ReLU, then 2 h."""
  layers = heads.Projection((1, 1, 1), rngs=nnx.Rngs(0))
  for layer, weight in zip(layers.layers, (1.0, 2.0), strict=True):
    layer.kernel[...] = jnp.full((1, 1), weight)
  found = layers(jnp.array([[3.0], [7.0]]))
  np.testing.assert_allclose(found, [[0], [2]], atol=1e-4)


def test_a_last_norm_centres_the_projection():
  layers = heads.Projection((3, 5, 4), norm_last=True, rngs=nnx.Rngs(0))
  found = layers(jax.random.normal(jax.random.key(0), (16, 3)))
  np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(found.std(0), 1, atol=1e-2)


def test_fully_connected_layers_stop_before_their_last_relu():
  neck = heads.FullyConnectedNeck(6, 8, 5, dropout=0.0, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (4, 6))
  hidden = jax.nn.relu(x @ neck.fc6.kernel[...])
  np.testing.assert_allclose(neck(x), hidden @ neck.fc7.kernel[...], atol=1e-6)
  assert neck(x).min() < 0
  (head,) = heads.LinearHeads(5, (3,), relu=True, rngs=nnx.Rngs(0)).heads
  whole = heads.LinearHeads(5, (3,), relu=True, rngs=nnx.Rngs(0))
  np.testing.assert_allclose(whole(neck(x))[0], head(jax.nn.relu(neck(x))))


@pytest.mark.parametrize("drop_input", [True, False])
def test_inputs_are_dropped_where_asked(drop_input):
  neck = heads.FullyConnectedNeck(
    100, 1, 1, dropout=0.5, drop_input=drop_input, rngs=nnx.Rngs(0)
  )
  neck.fc6.kernel[...] = jnp.full((100, 1), 0.01)
  neck.fc7.kernel[...] = jnp.ones((1, 1))
  found = {
    float(neck(jnp.ones((1, 100)), nnx.Rngs(i))[0, 0]) for i in range(20)
  }
  # Without it the only unit is dropped, or doubled.
  assert (len(found) > 3) is drop_input


def test_centers_learn_and_embeddings_do_not():
  centers = heads.Centers(3, (4,), rngs=nnx.Rngs(0))
  centers.kernels[0][...] = 2 * centers.kernels[0][...]
  x = jnp.array([[0.6, 0.8, 0.0]])
  (cosines,) = centers(x)
  (unit,) = centers.prototypes()
  np.testing.assert_allclose(jnp.linalg.norm(unit, axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(cosines, x @ unit.T, atol=1e-6)
  graph, params = nnx.split(centers)

  def total(params, x):
    return nnx.merge(graph, params)(x)[0].sum()

  of_params, of_x = jax.grad(total, argnums=(0, 1))(params, x)
  assert np.all(of_x == 0)
  assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(of_params))
