"""What a step says of its batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from odc_jax import mesh as mesh_lib
from odc_jax.methods import METHODS
from odc_jax.models.functional import Functional
from odc_jax.training import judge as judge_lib
from odc_jax.training import state as state_lib
from odc_jax.training import step
from odc_jax.training.state import TrainState


def test_embedding_std_is_that_of_the_directions(mesh):
  embeddings = np.random.default_rng(0).normal(1, 1, (64, 32)).astype("f")
  directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  expected = np.sqrt(np.sum(np.std(directions, axis=0) ** 2))
  split = jax.device_put(embeddings, mesh_lib.rows(mesh))
  std = jax.jit(step.embedding_std)(split)
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
  std = step.embedding_std(jnp.asarray(embeddings))
  assert std == pytest.approx(expected, abs=1e-6)


def test_embeddings_behind_a_relu_cannot_fill_the_sphere():
  normal = jax.random.normal(jax.random.key(0), (512, 256))
  std = step.embedding_std(jax.nn.relu(normal))
  assert std == pytest.approx((1 - 1 / np.pi) ** 0.5, abs=0.01)


# Where an image stands among the clusters.

CENTROIDS = np.array([[1.0, 0, 0], [0, 2.0, 0], [0.6, 0.8, 0], [0, 0, 0.1]])


def head(params, x):
  return (x @ params,)


def test_judgement_by_hand():
  embeddings = np.array([[5.0, 0, 0], [3.0, 4.0, 0], [3.0, 4.0, 0]])
  params = jnp.eye(3, 4)
  judge = jax.jit(judge_lib.make_judge(ConfigDict(), METHODS["odc"], head))
  found = judge(
    params,
    jnp.asarray(CENTROIDS),
    jnp.asarray(embeddings),
    jnp.array([0, -1, 1], jnp.int32),
  )
  np.testing.assert_array_equal(found.nearest, [0, 2, 2])
  # The second is judged by the nearest, the third by a cluster that is not.
  np.testing.assert_allclose(found.similarity, [1, 1, 0.8], rtol=1e-6)
  np.testing.assert_array_equal(found.second_cluster, [2, 1, 2])
  np.testing.assert_allclose(found.margin, [0.4, 0.2, -0.2], rtol=1e-5)
  logits = embeddings @ np.eye(3, 4)
  odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(
    found.confidence, odds[[0, 1, 2], [0, 2, 1]], rtol=1e-5
  )


def test_empty_clusters_are_near_to_nothing_and_cosines_stand_in_for_a_head():
  centroids = jnp.array([[1.0, 0], [0, 0], [0, 2.0]])
  embeddings = jnp.array([[-3.0, -4.0]])
  method = dataclasses.replace(
    METHODS["odc"], HEAD="none", temperature=lambda config: 0.1
  )
  judge = judge_lib.make_judge(ConfigDict(), method, head)
  found = judge((), centroids, embeddings, jnp.array([-1]))
  # Away from both, and yet not near the empty one.
  assert found.nearest == 0
  np.testing.assert_allclose(found.similarity, -0.6, rtol=1e-6)
  assert found.second_cluster == 2
  odds = np.exp(np.array([-0.6, -1, -0.8]) / 0.1)
  np.testing.assert_allclose(found.confidence, odds[:1] / odds.sum(), rtol=1e-5)


def test_fresh_parts_and_what_the_optimizer_knows_of_them():
  def init(key):
    weights = jax.random.normal(key, (4,))
    return {"body": weights[:3], "head": weights[3]}, {}

  optimizer = optax.sgd(0.1, momentum=0.9)
  params, _ = init(jax.random.key(0))
  ones = jax.tree.map(jnp.ones_like, params)
  _, opt_state = optimizer.update(ones, optimizer.init(params), params)
  state = TrainState(
    jnp.int32(7), params, {}, opt_state, (), jax.random.key(1), jnp.int32(0)
  )
  network = Functional(init, head, head)
  renew = jax.jit(state_lib.renewal(network, optimizer, ("head",)))
  found = renew(state, 7)
  np.testing.assert_array_equal(found.params["body"], params["body"])
  assert found.params["head"] != params["head"]
  assert found.params["head"] != renew(state, 8).params["head"]
  trace = found.opt_state[0].trace
  np.testing.assert_array_equal(trace["body"], 1)
  assert trace["head"] == 0
  assert found.step == 7
