"""How the network is put together from a config."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from odc_jax import UserError
from odc_jax import mesh as mesh_lib
from odc_jax.models import backbone as backbone_lib
from odc_jax.models import heads, network, norm
from odc_jax.models.functional import functional


def model_config(**changes):
  """Returns the model section of a config for a network of toy size."""
  config = ml_collections.ConfigDict(
    {
      "name": "resnet18",
      "stem": "small",
      "width": 4,
      "dtype": "float32",
      "init": "fan_in",
      "bn_group_size": 0,
      "neck": "nonlinear",
      "predictor": False,
      "neck_hidden": 16,
      "embedding_dim": 8,
      "dropout": 0.5,
      "neck_bn_momentum": 0.001,
      "group_size": 0,
      "head_layers": 1,
      "head_hidden": 16,
      "head_bottleneck": 8,
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
  class Backbone(backbone_lib.Backbone):
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
    ("init", "fan_avg", "fan_out"),
  ],
)
def test_an_unknown_choice_names_those_there_are(key, value, choice):
  with pytest.raises(UserError, match=f"{key} '{value}'.*{choice}"):
    network.build(model_config(**{key: value}), 10, nnx.Rngs(0))


class Untouched(backbone_lib.Backbone):
  """Its last map is the image."""

  def __call__(self, images):
    return [images]


class Flat(nnx.Module):
  """A layer with BatchNorm on the mean colour of an image."""

  def __init__(self, *, unit=False, views_together=True, predict=False):
    rngs = nnx.Rngs(0)
    predictor = heads.Projection((3, 4, 3), rngs=rngs) if predict else None
    self.network = network.Network(
      Untouched(),
      heads.Projection((3, 3), norm_last=True, rngs=rngs),
      heads.Prototypes(3, (4, 2), rngs=rngs),
      predictor,
      unit=unit,
      views_together=views_together,
    )

  def __call__(self, images):
    return self.network(images)


def views_of(rng):
  """Two large views and three small ones of four images."""
  large = rng.normal(size=(4, 2, 6, 6, 3)).astype(np.float32)
  small = rng.normal(1, 2, size=(4, 3, 2, 2, 3)).astype(np.float32)
  return jnp.asarray(large), jnp.asarray(small)


def test_views_share_statistics_or_have_their_own():
  images = views_of(np.random.default_rng(0))
  together = Flat()(images)
  apart = Flat(views_together=False)(images)
  assert len(together) == len(apart) == 5
  for view, (one, other) in enumerate(zip(together, apart, strict=True)):
    kind, number = images[view >= 2], view - 2 * (view >= 2)
    features = kind[:, number].mean((1, 2))
    np.testing.assert_allclose(one.features, features, atol=1e-6)
    np.testing.assert_allclose(other.features, features, atol=1e-6)
    assert [x.shape for x in one.logits] == [(4, 4), (4, 2)]
    # BatchNorm of its own centres every view; of all views, only all of them.
    np.testing.assert_allclose(other.embeddings.mean(0), 0, atol=1e-5)
    assert np.abs(one.embeddings.mean(0)).max() > 1e-3
  mean = np.mean([one.embeddings for one in together], axis=(0, 1))
  np.testing.assert_allclose(mean, 0, atol=1e-5)


class Normed(backbone_lib.Backbone):
  """Its last map is the image, normalised."""

  def __init__(self):
    self.bn = norm.BatchNorm(3)

  def __call__(self, images):
    return [self.bn(images)]


@pytest.mark.parametrize("views_together", [True, False])
def test_groups_of_images_share_statistics(views_together):
  """As if each had been a batch; in the backbone and behind it."""

  def run(images, bn_group_size):
    rngs = nnx.Rngs(0)
    return network.Network(
      Normed(),
      heads.Projection((3, 4, 3), norm_last=True, rngs=rngs),
      None,
      heads.Projection((3, 4, 3), rngs=rngs),
      views_together=views_together,
      bn_group_size=bn_group_size,
    )(images)

  images = views_of(np.random.default_rng(0))
  halves = [
    run(tuple(kind[rows] for kind in images), 0)
    for rows in (slice(0, 2), slice(2, 4))
  ]
  expected = jax.tree.map(lambda *parts: jnp.concatenate(parts), *halves)
  found = run(images, 2)
  assert len(found) == 5
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected
  )
  # A batch of no more images is one group.
  whole = run(images, 0)
  assert np.abs(whole[0].embeddings - found[0].embeddings).max() > 0.1
  for size in (4, 512):
    jax.tree.map(np.testing.assert_array_equal, run(images, size), whole)


@pytest.mark.slow
def test_groups_are_the_same_on_one_and_eight_devices():
  """Of 16 images, two on each of eight devices, in groups of four."""
  config = model_config(bn_group_size=4, dropout=0.0)
  images = np.random.default_rng(0).normal(size=(16, 1, 8, 8, 3))
  found = []
  for devices in (1, 8):
    mesh = mesh_lib.make_mesh(devices)
    model = functional(lambda rngs: network.build(config, 10, rngs))

    def loss(params, stats, images, apply=model.apply):
      (outputs,), stats = apply(
        params, stats, (images,), jax.random.key(1), True
      )
      return jnp.sum(jnp.sin(outputs.logits[0])), stats

    with jax.set_mesh(mesh):
      rows = jax.device_put(np.float32(images), mesh_lib.rows(mesh))
      step = jax.jit(jax.value_and_grad(loss, has_aux=True))
      found.append(jax.device_get(step(*model.init(jax.random.key(0)), rows)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *found
  )


def test_a_neck_with_groups_of_its_own_keeps_them():
  config = model_config(bn_group_size=2, group_size=4, dropout=0.0)
  model = network.build(config, 10, nnx.Rngs(0))
  model((jnp.ones((4, 1, 8, 8, 3)),), nnx.Rngs(0))
  assert model.neck.bn0.group_size == 4
  assert model.backbone.layer1[0].bn1.group_size == 2


def test_unit_embeddings_predictions_and_prototypes():
  (view, *_) = Flat(unit=True, predict=True)(views_of(np.random.default_rng(1)))
  for rows in view.embeddings, view.predictions:
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
  for h, prototypes in enumerate(view.prototypes):
    np.testing.assert_allclose(
      view.logits[h], view.embeddings @ prototypes.T, atol=1e-5
    )
    np.testing.assert_allclose(
      view.prediction_logits[h], view.predictions @ prototypes.T, atol=1e-5
    )


def test_a_zero_row_has_a_gradient():
  gradient = jax.grad(lambda x: network._unit(x).sum())(jnp.zeros((1, 3)))
  assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
  ("neck", "size"),
  [("none", 32), ("standardized", 32), ("mlp2", 8), ("mlp3", 8)],
)
# All of "clusterers" have as many clusters; see cluster_heads_test.
@pytest.mark.parametrize(
  "head", [h for h in network.HEADS if h != "clusterers"]
)
def test_every_neck_with_every_head(neck, size, head):
  def run():
    model = network.build(
      model_config(neck=neck, predictor=True), (10, 5), nnx.Rngs(0), head=head
    )
    return model((jnp.zeros((3, 2, 8, 8, 3)),), nnx.Rngs(0))

  for view in jax.eval_shape(run):
    assert view.embeddings.shape == view.predictions.shape == (3, size)
    sizes = [] if head == "none" else [10, 5]
    assert [logits.shape[1] for logits in view.logits] == sizes


def test_an_unknown_neck():
  with pytest.raises(UserError, match="choose one of nonlinear, linear, mlp2"):
    network.build(model_config(neck="mlp4"), 10, nnx.Rngs(0))
