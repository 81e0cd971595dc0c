"""AlexNet and VGG-16 with the weights of DeepCluster's files, and back."""

import copy
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from odc_jax import UserError
from odc_jax.interop import card, export
from odc_jax.interop.load import load_into
from tests.interop.networks import (
  assert_equal,
  experiment,
  random_weights,
  zeros,
)

# Where the linear layers stand in the official `classifier`.
LINEAR = {"alexnet": (1, 4), "vgg16": (0, 3)}


def whole(name, *, width=4, sobel=True, **model):
  """Returns a config of a network with its fully connected layers."""
  config = experiment(stem="imagenet", width=width)
  with config.unlocked():
    config.model.update({"name": name, "neck": "fc", **model})
  config.data.image_size, config.data.eval_resize = 224, 256
  config.augment.sobel = sobel
  config.augment.mean = (0.485, 0.456, 0.406)
  config.augment.std = (0.229, 0.224, 0.225)
  return config


def official(name, parts, wrapper="module."):
  """Returns DeepCluster's names -> arrays of what `export.state_dict` made."""
  places = {
    "neck.fc6": f"classifier.{LINEAR[name][0]}",
    "neck.fc7": f"classifier.{LINEAR[name][1]}",
    "head.fc_cls": "top_layer",
  }
  arrays = {
    "sobel.0.weight": np.full((1, 3, 1, 1), 1 / 3, np.float32),
    "sobel.1.bias": np.zeros(2, np.float32),
  }
  for part, weights in parts.items():
    for key, array in weights.items():
      if part == "backbone":
        arrays[key.replace("features.", f"features.{wrapper}")] = array
      else:
        layer, kind = f"{part}.{key}".rsplit(".", 1)
        arrays[f"{places[layer]}.{kind}"] = array
  return arrays


@pytest.fixture
def save(tmp_path):
  def save(arrays, prefix=""):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(
      {f"{prefix}{name}": array for name, array in arrays.items()}, path
    )
    return path

  return save


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize(
  ("prefix", "wrapper"),
  [
    ("state_dict.", "module."),  # as main.py saves it
    ("", ""),  # as its util.load_model has it
    ("state_dict.module.", ""),  # all of it in nn.DataParallel
  ],
)
def test_every_layer_has_its_place(name, prefix, wrapper, save):
  config = whole(name)
  weights = random_weights(config)
  arrays = official(name, export.state_dict(*weights, 7), wrapper)
  assert f"features.{wrapper}0.weight" in arrays
  path = save(arrays, prefix)
  loaded = load_into(path, *zeros(config))
  assert loaded.parts == ("backbone", "neck", "head")
  assert not loaded.remarks
  assert_equal(loaded[:2], weights)
  # A run starts without the head, and a neck of another size stays random.
  narrower = whole(name, neck_hidden=11)
  loaded = load_into(path, *zeros(narrower), parts=("backbone", "neck"))
  assert loaded.parts == ("backbone",)
  assert "fc6.weight is [12, " in loaded.remarks[0]


def test_torchvisions_vgg_brings_its_linear_layers(save):
  """Its classifier has the last layer too, at 6, and dropout between them."""
  config = whole("vgg16", sobel=False)
  weights = random_weights(config)
  parts = export.state_dict(*weights, 7)
  arrays = official("vgg16", parts, wrapper="")
  for kind in ("weight", "bias"):
    arrays[f"classifier.6.{kind}"] = arrays.pop(f"top_layer.{kind}")
  loaded = load_into(save(arrays), *zeros(config))
  assert loaded.parts == ("backbone", "neck")
  for part in ("backbone", "neck"):
    assert_equal(loaded.params[part], weights[0][part])


def test_axes_and_names_are_pytorchs():
  parts = export.state_dict(*random_weights(whole("alexnet")), 7)
  shapes = {k: v.shape for k, v in parts["backbone"].items()}
  assert len(shapes) == 5 * 7
  assert shapes["features.0.weight"] == (6, 2, 11, 11)
  assert shapes["features.14.weight"] == (16, 24, 3, 3)
  assert shapes["features.15.running_var"] == (16,)
  assert parts["neck"]["fc6.weight"].shape == (12, 16 * 36)
  assert parts["head"]["fc_cls.weight"].shape == (10, 6)


@pytest.mark.parametrize("width", [1, 4, 24])
@pytest.mark.parametrize("name", LINEAR)
def test_another_network_is_named_with_the_flags_for_it(name, width, save):
  theirs = whole(name, width=width)
  arrays = official(name, export.state_dict(*random_weights(theirs), 7))
  path = save(arrays, "state_dict.")
  ours = experiment(name="resnet18", stem="small", width=8)
  with pytest.raises(UserError) as caught:
    load_into(path, *zeros(ours))
  flags = dict(re.findall(r"--config\.([\w.]+)=(\w+)", str(caught.value)))
  assert flags == {
    "model.name": name,
    "model.stem": "imagenet",
    "model.width": str(width),
    "augment.sobel": "True",
  }
  coloured = whole(name, width=width, sobel=False)
  with pytest.raises(UserError) as caught:
    load_into(path, *zeros(coloured))
  assert str(caught.value).endswith("another: --config.augment.sobel=True")


@pytest.mark.parametrize(
  ("change", "words"),
  [
    # torchvision's vgg16, without BatchNorm, has its second layer there.
    ({"features.2.weight": (4, 4, 3, 3)}, "features.2.weight [4, 4, 3, 3] has"),
    ({"features.3.squeeze.weight": (4, 4, 1, 1)}, "has no place"),
    ({"attention.weight": (4, 4)}, "attention.weight [4, 4] has no place"),
  ],
)
def test_layers_that_are_not_here_are_refused(change, words, save):
  config = whole("vgg16")
  arrays = official("vgg16", export.state_dict(*random_weights(config), 7))
  for name, shape in change.items():
    arrays[name] = np.ones(shape, np.float32)
  with pytest.raises(UserError) as caught:
    load_into(save(arrays), *zeros(config))
  assert words in str(caught.value)
  assert "--config" not in str(caught.value)


def test_what_is_written_comes_back(tmp_path):
  config = whole("vgg16")
  weights = random_weights(config)
  arrays = export.state_dict(*weights, 7)
  export.write_files(tmp_path, arrays, card.describe(config), "text")
  loaded = load_into(tmp_path, *zeros(config))
  assert loaded.parts == ("backbone", "neck", "head")
  assert_equal(loaded[:2], weights)


def test_the_description_has_every_layer():
  """Channels are proportional; each pooling has a size alone."""
  layers = card.describe(whole("alexnet", width=32))["odc_jax"]["layers"]
  assert layers == [
    *([48, 11, 4, 2], [3], [128, 5, 1, 2], [3]),
    *([192, 3, 1, 1], [192, 3, 1, 1], [128, 3, 1, 1], [3]),
  ]


@pytest.mark.parametrize(
  ("name", "features"), [("alexnet", 256), ("vgg16", 512)]
)
def test_the_card_says_what_the_network_is(name, features):
  found = card.render(whole(name, width=64), 7, {}, True, {})
  assert f"| features | {features}, averaged over space |" in found
  assert "torchvision.models" not in found  # which has no Sobel filter
  whose = "torchvision" if name == "vgg16" else "DeepCluster"
  assert f"float32, with {whose}'s names" in found
  assert "timm has no name for this network" in found
  narrow = card.render(whole(name), 7, {}, True, {})
  assert f"| features | {features // 16}, averaged over space |" in narrow
  assert "torchvision.models" not in narrow
  colours = card.render(whole(name, width=64, sobel=False), 7, {}, True, {})
  assert ("torchvision.models.vgg16_bn()" in colours) == (name == "vgg16")


# Against PyTorch.


def official_network(torch, name, sobel, hidden, out, clusters):
  """Returns the official class, of models/alexnet.py or models/vgg16.py."""
  nn = torch.nn
  if name == "alexnet":
    layers = [
      *[(96, 11, 4, 2), "M", (256, 5, 1, 2), "M", (384, 3, 1, 1)],
      *[(384, 3, 1, 1), (256, 3, 1, 1), "M"],
    ]
  else:
    blocks = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
    layers = [
      layer
      for channels, depth in blocks
      for layer in [(channels, 3, 1, 1)] * depth + ["M"]
    ]
  features, channels = [], 2 if sobel else 3
  for layer in layers:
    if layer == "M":
      features.append(nn.MaxPool2d(3 if name == "alexnet" else 2, 2))
      continue
    features += [nn.Conv2d(channels, *layer), nn.BatchNorm2d(layer[0])]
    features.append(nn.ReLU())
    channels = layer[0]

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      if sobel:
        gray, gradients = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1)
        gray.weight.data.fill_(1 / 3)
        across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        down = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
        gradients.weight.data.copy_(torch.stack([across, down])[:, None])
        gray.bias.data.zero_()
        gradients.bias.data.zero_()
        self.sobel = nn.Sequential(gray, gradients)
      else:
        self.sobel = nn.Identity()
      self.features = nn.Sequential(*features)
      linear = [nn.Linear(channels * (36 if name == "alexnet" else 49), hidden)]
      linear += [nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, out), nn.ReLU()]
      if name == "alexnet":
        linear.insert(0, nn.Dropout(0.5))
      self.classifier = nn.Sequential(*linear)
      self.top_layer = nn.Linear(out, clusters)

    def forward(self, x):
      maps = self.features(self.sobel(x))
      embeddings = self.classifier[:-1](maps.flatten(1))
      logits = self.top_layer(self.classifier[-1](embeddings))
      return maps.mean((2, 3)), embeddings, logits

  return Network()


@pytest.mark.torch
@pytest.mark.parametrize("sobel", [True, False])
@pytest.mark.parametrize("name", LINEAR)
def test_official_networks_give_the_same_here(torch, tmp_path, name, sobel):
  """With the official file's layout: pixels to features, fc7 and clusters."""
  from tests.interop import pytorch_test as both

  config = whole(name, width=64, sobel=sobel)
  torch.manual_seed(0)
  theirs = official_network(torch, name, sobel, 12, 6, 10)
  both.randomize(torch, theirs)
  theirs.eval()
  plain = config.copy_and_resolve_references()
  plain.augment.sobel = False  # which is in the official network
  with torch.no_grad():
    expected = theirs(both.for_torch(torch, both.photographs(plain)))
  theirs.features = torch.nn.DataParallel(theirs.features)
  content = {"epoch": 1, "arch": name, "state_dict": theirs.state_dict()}
  path = tmp_path / "checkpoint.pth.tar"
  torch.save(content, path)
  loaded = load_into(path, *zeros(config))
  assert loaded.parts == ("backbone", "neck", "head")
  found = both.outputs_here(config, loaded[:2], both.photographs(config))
  both.assert_close(f"{name}: features", found.features, expected[0])
  both.assert_close(f"{name}: fc7", found.embeddings, expected[1])
  both.assert_close(f"{name}: clusters", found.logits[0], expected[2])


@pytest.mark.torch
@pytest.mark.parametrize(
  ("name", "width", "sobel"),
  [
    ("alexnet", 64, True),
    ("alexnet", 4, False),
    ("vgg16", 64, False),
    ("vgg16", 64, True),
    ("vgg16", 4, False),
  ],
)
def test_what_the_card_says_works(
  torch, tmp_path, monkeypatch, name, width, sobel
):
  from tests.interop import pytorch_test as both

  config = whole(name, width=width, sobel=sobel)
  weights = random_weights(config)
  text = both.write(config, weights, tmp_path)
  both.enter(tmp_path, monkeypatch)
  images = both.photographs(config)
  expected = both.outputs_here(config, weights, images)
  model = both.run_block(text, "from model import")["model"]
  with torch.no_grad():
    pixels = both.for_torch(torch, both.normalised(config))
    both.assert_close(f"{name}: model.py", model(pixels), expected.features)
    both.assert_close("embeddings", model.embed(pixels), expected.embeddings)
    both.assert_close("scores", model.scores(pixels), expected.logits[0])
    if name == "vgg16" and width == 64 and not sobel:
      theirs = both.run_block(text, "torchvision.models")["model"]
      both.assert_close("torchvision", theirs(pixels), expected.features)


@pytest.mark.torch
@pytest.mark.parametrize("name", LINEAR)
def test_official_networks_learn_the_same_here(torch, tmp_path, name):
  """Loss, running statistics, and the gradient of the first convolution."""
  from odc_jax.models.functional import functional
  from odc_jax.models.network import build
  from tests.interop import pytorch_test as both

  config = whole(name, width=64, dropout=0.0, neck_hidden=12, sobel=False)
  torch.manual_seed(0)
  theirs = official_network(torch, name, False, 12, 6, 10)
  both.randomize(torch, theirs)
  for module in theirs.modules():
    if isinstance(module, torch.nn.Dropout):
      module.p = 0.0
  torch.save(theirs.state_dict(), tmp_path / "network.pth")
  loaded = load_into(tmp_path / "network.pth", *zeros(config))
  images = both.photographs(config)
  # In float32 PyTorch's own gradient is off by 3e-6 to 2e-4 (AlexNet) and 7e-3
  # (VGG-16), by the kind of CPU: the gradient is compared with float64.
  exact = copy.deepcopy(theirs).double().train()
  in_double = both.for_torch(torch, images).double()
  exact(in_double)[2].square().sum().backward()
  loss = theirs.train()(both.for_torch(torch, images))[2].square().sum()

  model = functional(lambda rngs: build(config.model, 10, rngs))

  @jax.jit
  def ours(params, batch_stats):
    def loss(params):
      outputs, stats = model.apply(
        params, batch_stats, images, jax.random.key(0), train=True
      )
      return (outputs.logits[0] ** 2).sum(), stats

    return jax.value_and_grad(loss, has_aux=True)(params)

  with jax.default_matmul_precision("highest"):
    (found, stats), gradients = ours(*loaded[:2])
  np.testing.assert_allclose(found, loss.item(), rtol=1e-4)
  for place, module in theirs.features.named_children():
    if isinstance(module, torch.nn.BatchNorm2d):
      running = stats["backbone"]["features"][place]
      np.testing.assert_allclose(
        running["mean"], module.running_mean, atol=1e-4
      )
      np.testing.assert_allclose(running["var"], module.running_var, rtol=1e-3)
  first = gradients["backbone"]["features"]["0"]["kernel"]
  expected = exact.features[0].weight.grad.numpy().transpose(2, 3, 1, 0)
  difference = np.max(np.abs(first - expected)) / np.max(np.abs(expected))
  print(f"{name}: gradient of the first layer off by {difference:.1e}")
  assert difference < {"alexnet": 1e-4, "vgg16": 1e-2}[name]
