"""Networks with weights of every kind, for their way out and back."""

import functools
import json

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import odc_digits
from odc_jax.methods import METHODS
from odc_jax.models.functional import functional
from odc_jax.models.network import build


def experiment(**model) -> ConfigDict:
  """Returns the quickstart's config with another network."""
  config = odc_digits.get_config()
  config.num_examples = 1797
  config.num_clusters = 10
  config.model.update({"neck_hidden": 12, "embedding_dim": 6, **model})
  return config


def network(config):
  """Returns the model as pure functions."""
  return functional(
    lambda rngs: build(
      config.model,
      config.num_clusters,
      rngs,
      in_channels=2 if config.augment.sobel else 3,
      head=METHODS[config.method].HEAD,
    )
  )


@functools.cache
def _shapes(config, head):
  """Returns (params, batch_stats) of a config in JSON, as shapes."""
  del head  # what the method of the config has, and tests may change
  config = ConfigDict(json.loads(config))
  return jax.eval_shape(network(config).init, jax.random.key(0))


def _shapes_of(config):
  return _shapes(config.to_json(), METHODS[config.method].HEAD)


def random_weights(config, seed=0):
  """Returns (params, batch_stats) as if trained: nothing is 0 or 1."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    kind = path[-1].key
    if kind == "kernel":
      fan_in = np.prod(leaf.shape[:-1])
      values = rng.normal(0, np.sqrt(2 / fan_in), leaf.shape)
    elif kind == "var":
      values = rng.uniform(0.5, 2, leaf.shape)
    elif kind == "scale":  # such that activations stay near 1
      values = rng.uniform(0.4, 1, leaf.shape)
    else:
      values = rng.normal(0, 0.3, leaf.shape)
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, _shapes_of(config))


def zeros(config):
  """Returns (params, batch_stats) of zeros."""
  return jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), _shapes_of(config)
  )


def assert_equal(ours, theirs):
  """Compares two trees bit by bit."""
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, a), (_, b) in zip(
    jax.tree_util.tree_leaves_with_path(ours),
    jax.tree_util.tree_leaves_with_path(theirs),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
