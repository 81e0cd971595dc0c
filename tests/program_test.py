"""What a step says of its batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax import mesh as mesh_lib
from odc_jax import program


def test_embedding_std_is_that_of_the_directions(mesh):
  embeddings = np.random.default_rng(0).normal(1, 1, (64, 32)).astype("f")
  directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  expected = np.sqrt(np.sum(np.std(directions, axis=0) ** 2))
  split = jax.device_put(embeddings, mesh_lib.rows(mesh))
  std = jax.jit(program.embedding_std)(split)
  assert std == pytest.approx(expected, rel=1e-5)
  # What the docstring says of two rows' mean cosine.
  cosines = directions @ directions.T
  assert 1 - std**2 == pytest.approx(np.mean(cosines), rel=1e-5)


@pytest.mark.parametrize(
  ("embeddings", "expected"),
  [
    # The same direction, of different lengths.
    ([[1.0, 2.0, 2.0], [2.0, 4.0, 4.0]], 0.0),
    # Dead: not one direction each.
    ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], 0.0),
    # Opposite: mean 0, variance 1.
    ([[1.0, 0.0, 0.0], [-5.0, 0.0, 0.0]], 1.0),
    # Variance 1/4 in two of three dimensions: sparse is not narrow.
    ([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 0.5**0.5),
  ],
)
def test_embedding_std_by_hand(embeddings, expected):
  std = program.embedding_std(jnp.asarray(embeddings))
  assert std == pytest.approx(expected, abs=1e-6)


def test_embeddings_behind_a_relu_cannot_fill_the_sphere():
  normal = jax.random.normal(jax.random.key(0), (512, 256))
  std = program.embedding_std(jax.nn.relu(normal))
  assert std == pytest.approx((1 - 1 / np.pi) ** 0.5, abs=0.01)
