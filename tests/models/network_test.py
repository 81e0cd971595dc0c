"""How the network is put together from a config."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from odc_jax import UserError
from odc_jax.models import network


def model_config(**changes):
  """Returns the model section of a config for a network of toy size."""
  config = ml_collections.ConfigDict(
    {
      "name": "resnet18",
      "stem": "small",
      "width": 4,
      "dtype": "float32",
      "neck_hidden": 16,
      "embedding_dim": 8,
      "dropout": 0.5,
      "neck_bn_momentum": 0.001,
      "group_size": 0,
    }
  )
  config.update(changes)
  return config.lock()


def test_the_parts_are_the_top_level_keys():
  model = nnx.eval_shape(lambda: network.build(model_config(), 10, nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  assert set(params) == {"backbone", "neck", "head"}


def test_config_reaches_the_parts():
  config = model_config(
    name="resnet34",
    width=8,
    neck_hidden=12,
    embedding_dim=6,
    dropout=0.25,
    neck_bn_momentum=0.01,
    group_size=2,
  )
  model = nnx.eval_shape(lambda: network.build(config, 10, nnx.Rngs(0)))
  assert len(model.backbone.layer3) == 6
  assert model.backbone.conv1.kernel.shape == (3, 3, 3, 8)
  assert model.neck.fc0.kernel.shape == (64, 12)
  assert model.neck.fc1.kernel.shape == (12, 6)
  assert model.neck.drop.rate == 0.25
  assert model.neck.bn0.momentum == 0.01
  assert model.neck.bn0.group_size == 2
  assert model.backbone.bn1.group_size == 0
  assert model.head.heads[0].fc.kernel.shape == (6, 10)


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 7), ("small", 3)])
def test_images_have_as_many_channels_as_asked(stem, size):
  def run(images, in_channels):
    model = network.build(
      model_config(stem=stem), 10, nnx.Rngs(0), in_channels=in_channels
    )
    assert model.backbone.conv1.kernel.shape == (size, size, in_channels, 4)
    return model(images, nnx.Rngs(0))

  for in_channels in (2, 3):
    images = jnp.zeros((3, 8, 8, in_channels))
    outputs = jax.eval_shape(
      functools.partial(run, in_channels=in_channels), images
    )
    assert outputs.logits[0].shape == (3, 10)


def test_features_are_the_last_map_averaged():
  class Backbone(nnx.Module):
    def __call__(self, images):
      return [images[:, :1], images * 2]

  class Neck(nnx.Module):
    def __call__(self, features, rngs):
      return features[:, :2] + 1

  class Head(nnx.Module):
    def __call__(self, embeddings):
      return (embeddings.sum(1, keepdims=True),)

    def prototypes(self):
      return ()

  images = jnp.arange(12.0).reshape(1, 2, 2, 3)
  outputs = network.Network(Backbone(), Neck(), Head())(images, None)
  np.testing.assert_allclose(outputs.features, [[9, 11, 13]])
  np.testing.assert_allclose(outputs.embeddings, [[10, 12]])
  np.testing.assert_allclose(outputs.logits, [[[22]]])


def test_outputs_of_a_built_network():
  def run():
    model = network.build(model_config(dtype="bfloat16"), 10, nnx.Rngs(0))
    return model(jnp.zeros((3, 8, 8, 3)), nnx.Rngs(0))

  outputs = jax.eval_shape(run)
  arrays = jax.tree.leaves(outputs)
  assert [a.shape for a in arrays] == [(3, 32), (3, 8), (3, 10)]
  assert all(a.dtype == jnp.float32 for a in arrays)


@pytest.mark.parametrize(
  ("key", "value", "choice"),
  [
    ("name", "resnet19", "resnet18"),
    ("stem", "tiny", "small"),
    ("dtype", "float16", "bfloat16"),
  ],
)
def test_an_unknown_choice_names_those_there_are(key, value, choice):
  with pytest.raises(UserError, match=f"{key} '{value}'.*{choice}"):
    network.build(model_config(**{key: value}), 10, nnx.Rngs(0))
