"""AlexNet and VGG-16: sizes worked by hand, initial weights, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from odc_jax import UserError
from odc_jax import mesh as mesh_lib
from odc_jax.methods import METHODS
from odc_jax.models import alexnet, backbones, network, plain, vgg
from odc_jax.models import backbone as backbone_lib
from odc_jax.training.programs import assemble
from tests.interop.networks import experiment

CLASSES = {"alexnet": alexnet.AlexNet, "vgg16": vgg.VGG16}

# Sides and channels of the five maps of 224 pixels.
MAPS = {
  "alexnet": [(55, 96), (27, 256), (13, 384), (13, 384), (6, 256)],
  "vgg16": [(224, 64), (112, 128), (56, 256), (28, 512), (7, 512)],
}

# (k^2 C_in + 1) C_out of every convolution, and 2 C_out of its BatchNorm. The
# sum of VGG's is what torchvision's vgg16_bn has, 138,365,992, less its
# classifier's 25089 * 4096 + 4097 * 4096 + 4097 * 1000.
ALEXNET_SIZE = (
  (121 * 3 + 3) * 96
  + (25 * 96 + 3) * 256
  + (9 * 256 + 3) * 384
  + (9 * 384 + 3) * 384
  + (9 * 384 + 3) * 256
)
SIZES = {
  "alexnet": ALEXNET_SIZE,
  "vgg16": 138_365_992 - (25089 + 4097) * 4096 - 4097 * 1000,
}

# Where torch's nn.Sequential has convolutions; a BatchNorm follows each.
PLACES = {
  "alexnet": (0, 4, 8, 11, 14),
  "vgg16": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
}


@pytest.mark.parametrize("name", CLASSES)
def test_sizes_are_the_published_ones(name):
  model = nnx.eval_shape(lambda: CLASSES[name](rngs=nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == SIZES[name]
  assert sorted(params["features"]) == sorted(
    place + i for place in PLACES[name] for i in (0, 1)
  )
  assert model.num_features == MAPS[name][-1][1]
  assert model.num_flat == {"alexnet": 9216, "vgg16": 25088}[name]
  assert model.drops_input == (name == "alexnet")


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("width", [64, 4])
def test_maps_of_published_images(name, width):
  def run(images):
    net = CLASSES[name](
      width=width, in_channels=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    assert net.num_flat == net.num_features * MAPS[name][-1][0] ** 2
    return net(images)

  maps = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 224, 224, 2), "float32"))
  assert [(x.shape, x.dtype) for x in maps] == [
    ((2, side, side, channels * width // 64), jnp.bfloat16)
    for side, channels in MAPS[name]
  ]


def test_maps_by_hand():
  """One channel, kernels of ones: sums over windows, and their maxima."""
  stages = ((plain.Conv(64, 1, padding=0),), (plain.Pool(2), plain.Conv(64, 3)))
  stages = (*stages, (plain.Pool(3),))
  net = plain.Stack(stages, width=1, in_channels=1, rngs=nnx.Rngs(0))
  net.eval()
  for layer in net.features:
    if isinstance(layer, nnx.Conv):
      layer.kernel[...] = jnp.ones_like(layer.kernel[...])
      layer.bias[...] = jnp.array([-5.0])
  x = jnp.arange(49.0).reshape(1, 7, 7, 1)
  first, second, last = net(x)
  factor = 1 / np.sqrt(1 + 1e-5)
  np.testing.assert_allclose(
    first[0, :, :, 0].ravel(),
    np.maximum(np.arange(49) - 5, 0) * factor,
    rtol=1e-5,
  )
  # Of 7 x 7, windows of 2 leave out the last row and the last column.
  pooled = np.array([[8, 10, 12], [22, 24, 26], [36, 38, 40]]) - 5
  padded = np.pad(pooled * factor, 1)
  sums = sum(padded[i : i + 3, j : j + 3] for i in range(3) for j in range(3))
  expected = (sums - 5) * factor
  np.testing.assert_allclose(second[0, :, :, 0], expected, rtol=1e-5)
  np.testing.assert_allclose(last.ravel(), [expected.max()], rtol=1e-5)


def test_initial_weights():
  """Variance 2 / (k^2 C_out): by what comes out, not by what goes in."""
  stages = ((plain.Conv(256, 5), plain.Pool(2)),)
  net = plain.Stack(stages, width=32, in_channels=64, rngs=nnx.Rngs(0))
  kernel = np.asarray(net.features[0].kernel[...])
  assert kernel.shape == (5, 5, 64, 128)
  std = np.sqrt(2 / (5**2 * 128))
  np.testing.assert_allclose(kernel.std(), std, rtol=0.01)
  assert np.abs(kernel).max() > 4 * std  # not a normal without its tails
  np.testing.assert_array_equal(net.features[0].bias[...], 0)
  np.testing.assert_array_equal(net.features[1].scale[...], 1)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("neck", ["fc", "nonlinear", "none"])
def test_networks_with_every_neck(name, neck):
  config = experiment(name=name, stem="imagenet", width=4)
  with config.unlocked():
    config.model.neck = neck

  def run(images):
    return network.build(config.model, 10, nnx.Rngs(0))(images, nnx.Rngs(0))

  outputs = jax.eval_shape(
    run, jax.ShapeDtypeStruct((2, 224, 224, 3), "float32")
  )
  channels = MAPS[name][-1][1] // 16
  d = channels if neck == "none" else 6
  assert outputs.features.shape == (2, channels)
  assert outputs.embeddings.shape == (2, d)
  assert outputs.logits[0].shape == (2, 10)


def test_the_fully_connected_layers_see_the_map_in_torchs_order():
  class Backbone(backbone_lib.Backbone):
    def __call__(self, images):
      return [images]

  class Neck(nnx.Module):
    flattens = True

    def __call__(self, x, rngs):
      return x

  images = np.arange(24.0, dtype=np.float32).reshape(2, 2, 3, 2)
  outputs = network.Network(Backbone(), Neck(), None)(jnp.asarray(images))
  np.testing.assert_array_equal(
    outputs.embeddings, np.moveaxis(images, 3, 1).reshape(2, -1)
  )


# What cannot be.


@pytest.mark.parametrize(
  ("model", "image_size", "words"),
  [
    (
      {"name": "alexnet", "neck": "fc"},
      200,
      ["5 x 5", "6 x 6", "another neck"],
    ),
    ({"name": "vgg16", "neck": "fc"}, 256, ["8 x 8", "7 x 7"]),
    ({"name": "alexnet", "neck": "none"}, 62, ["leaves nothing"]),
    ({"name": "vgg16", "neck": "none"}, 31, ["leaves nothing"]),
  ],
)
def test_images_of_another_size_are_refused(model, image_size, words):
  config = experiment(width=1, stem="imagenet")
  with config.unlocked():
    config.model.update(model)
  config.data.image_size = image_size
  with pytest.raises(UserError) as caught:
    assemble(config, METHODS["odc"], mesh_lib.make_mesh(1))
  for word in [*words, "--config.data.image_size=224", f"={image_size}"]:
    assert word in str(caught.value)


@pytest.mark.parametrize(
  ("name", "image_size"),
  [("alexnet", 63), ("vgg16", 32), ("resnet18", 8)],
)
def test_the_smallest_images_leave_something(name, image_size):
  config = experiment(name=name)
  backbones.check_image_size(config.model, image_size)


@pytest.mark.parametrize(
  ("model", "words"),
  [
    ({"name": "alexnet", "stem": "small"}, "alexnet has no stem 'small'"),
    ({"name": "vgg16", "stem": "small"}, "model.stem=imagenet"),
    ({"name": "alexnet2"}, "resnet18.*alexnet, vgg16"),
    ({"name": "resnet18", "neck": "fc"}, "for alexnet and vgg16, not resnet18"),
  ],
)
def test_choices_that_do_not_go_together_are_refused(model, words):
  config = experiment()
  with config.unlocked():
    config.model.update(model)
  with pytest.raises(UserError, match=words):
    nnx.eval_shape(lambda: network.build(config.model, 10, nnx.Rngs(0)))
