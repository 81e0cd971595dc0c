"""Many heads at once against one after the other; the rest is in TEMI's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from odc_jax.models.cluster_heads import ClusterHeads


@pytest.mark.parametrize("hidden", [(), (7,), (7, 6)])
@pytest.mark.parametrize("scaled", [True, False])
def test_every_head_is_an_mlp_and_unit_directions(hidden, scaled):
  heads = ClusterHeads(
    5,
    4,
    num_heads=3,
    hidden=hidden,
    bottleneck=8,
    scaled=scaled,
    rngs=nnx.Rngs(0),
  )
  rng = np.random.default_rng(0)
  state = nnx.state(heads)
  nnx.update(
    heads,
    jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), state),
  )
  x = rng.normal(size=(10, 5))
  found = heads(jnp.asarray(x, jnp.float32))
  assert len(found) == 3
  for h, logits in enumerate(found):
    z = x
    for i, (kernel, bias) in enumerate(
      zip(heads.mlp.kernels, heads.mlp.biases, strict=True)
    ):
      if i:
        z = z * (1 + erf(z / np.sqrt(2))) / 2
      z = z @ np.asarray(kernel[h], float) + np.asarray(bias[h], float)
    v = np.asarray(heads.last.directions[h], float)
    expected = (z / np.linalg.norm(z, axis=1, keepdims=True)) @ (
      v / np.linalg.norm(v, axis=0)
    )
    if scaled:
      expected = expected * np.asarray(heads.last.scales[h])
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_heads_begin_differently_and_without_scale():
  heads = ClusterHeads(5, 4, num_heads=2, rngs=nnx.Rngs(0))
  first, second = heads(jnp.ones((1, 5)))
  assert jnp.abs(first - second).max() > 1e-3
  np.testing.assert_array_equal(heads.last.scales[...], 1)
  assert jnp.abs(heads.last.directions[...]).max() < 256**-0.5
  kernel = np.asarray(heads.mlp.kernels[0])
  assert kernel.shape == (2, 5, 512)
  np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.1)


def test_a_zero_row_has_a_gradient():
  heads = ClusterHeads(5, 4, num_heads=2, hidden=(), rngs=nnx.Rngs(0))
  gradient = jax.grad(lambda x: jnp.sum(jnp.stack(heads(x))))(jnp.zeros((1, 5)))
  assert np.isfinite(gradient).all()
