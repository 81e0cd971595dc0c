"""The same features in PyTorch, torchvision and timm, both ways."""

import dataclasses
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from odc_jax.data import augment
from odc_jax.data.decode import resize_center_crop
from odc_jax.interop import card as card_lib
from odc_jax.interop import export
from odc_jax.interop.load import load_into
from odc_jax.methods import METHODS
from odc_jax.models.functional import functional
from odc_jax.models.network import build
from tests.interop.networks import (
  assert_equal,
  experiment,
  network,
  random_weights,
  zeros,
)

pytestmark = pytest.mark.torch

# Features are means of ReLUs, of the order of 1.
TOLERANCE = 1e-4


def photographs(config):
  """Returns two photographs as the network takes them, [2, h, w, c]."""
  return augment.normalize(config.augment, pixels(config))


def normalised(config):
  """Returns them before a Sobel filter, [2, h, w, 3]."""
  colours = config.augment.copy_and_resolve_references()
  colours.sobel = False
  return augment.normalize(colours, pixels(config))


def pixels(config):
  """Returns them as they are, uint8[2, h, w, 3]."""
  return jnp.asarray(
    np.stack(
      [
        resize_center_crop(
          image, config.data.eval_resize, config.data.image_size
        )
        for image in load_sample_images().images
      ]
    )
  )


def outputs_here(config, weights, images):
  """Returns features, embeddings and logits, on one device."""
  apply = jax.jit(network(config).apply, static_argnames="train")
  with jax.default_matmul_precision("highest"):
    return apply(*weights, images, None, train=False)[0]


def for_torch(torch, images):
  return torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())


def assert_close(name, found, expected):
  """Compares features, and prints how far apart they are."""
  found, expected = np.asarray(found), np.asarray(expected)
  scale = float(np.sqrt(np.mean(np.square(expected))))
  difference = float(np.max(np.abs(found - expected)))
  print(
    f"{name}: off by at most {difference:.1e}, root mean square {scale:.2f}"
  )
  assert found.shape == expected.shape
  assert 0.01 < scale < 100
  assert difference <= TOLERANCE * max(scale, 1)


def whole_experiment(name, width=64, stem="imagenet", sobel=False, size=224):
  config = experiment(name=name, stem=stem, width=width)
  config.data.image_size, config.data.eval_resize = size, size * 8 // 7
  config.augment.sobel = sobel
  config.augment.mean = (0.485, 0.456, 0.406)
  config.augment.std = (0.229, 0.224, 0.225)
  return config


def write(config, weights, folder):
  """Writes what an export does, of weights that no run has trained."""
  arrays = export.state_dict(*weights, 100)
  card = card_lib.render(config, 100, {}, True, {})
  export.write_files(folder, arrays, card_lib.describe(config), card)
  return card


def enter(folder, monkeypatch):
  """Makes an export's folder the one that a reader of its card works in."""
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(folder)
  monkeypatch.delitem(sys.modules, "model", raising=False)


def blocks_of(card):
  """Returns the pieces of Python in a model card."""
  return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def run_block(card, having):
  """Runs the piece of a model card that has a word, as a reader would."""
  (block,) = (block for block in blocks_of(card) if having in block)
  variables: dict[str, Any] = {}
  exec(block, variables)
  return variables


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_in_timm_torchvision_and_plain_pytorch(torch, tmp_path, name):
  import timm
  import torchvision
  from safetensors.torch import load_file

  config = whole_experiment(name)
  weights = random_weights(config)
  write(config, weights, tmp_path)
  images = photographs(config)
  expected = outputs_here(config, weights, images).features
  path = tmp_path / "model.safetensors"

  in_timm = timm.create_model(name, num_classes=0, checkpoint_path=str(path))
  in_torchvision = getattr(torchvision.models, name)()
  in_torchvision.fc = torch.nn.Identity()
  in_torchvision.load_state_dict(load_file(path))
  with_classifier = getattr(torchvision.models, name)()
  missing = with_classifier.load_state_dict(load_file(path), strict=False)
  assert set(missing.missing_keys) == {"fc.weight", "fc.bias"}
  assert not missing.unexpected_keys
  plain = plain_resnet(torch, name)
  plain.load_state_dict(load_file(path))
  with torch.no_grad():
    for library, model in (
      ("timm", in_timm),
      ("torchvision", in_torchvision),
      ("PyTorch", plain),
    ):
      features = model.eval()(for_torch(torch, images))
      assert_close(f"{name} in {library}", features, expected)

  loaded = load_into(tmp_path, *zeros(config))
  assert loaded.parts == ("backbone", "neck", "head")
  assert_equal(loaded[:2], weights)


# Every network that there can be, for the cards' own words.
CARDS = [
  {"name": "resnet18"},
  {"name": "resnet34", "stem": "small", "size": 64},
  {"name": "resnet50", "sobel": True},
  {"name": "resnet18", "width": 16, "size": 63},
  {"name": "resnet18", "width": 16, "stem": "small", "size": 32, "sobel": True},
  {"name": "resnet50", "width": 16, "stem": "small", "size": 32},
  {"name": "resnet50", "width": 32, "sobel": True, "size": 96},
]


@pytest.mark.parametrize("model", CARDS, ids=str)
def test_what_the_card_says_works(torch, tmp_path, monkeypatch, model):
  """Its pieces of Python are run, from a photograph to the features."""
  config = whole_experiment(**model)
  weights = random_weights(config)
  card = write(config, weights, tmp_path)
  enter(tmp_path, monkeypatch)

  scenes = load_sample_images().images
  transform = run_block(card, "transforms.Compose")["transform"]
  images = torch.stack([transform(Image.fromarray(scene)) for scene in scenes])
  np.testing.assert_allclose(
    images.numpy().transpose(0, 2, 3, 1), normalised(config), atol=1e-4
  )

  expected = outputs_here(config, weights, photographs(config))
  here = run_block(card, "from model import")["model"]
  with torch.no_grad():
    assert_close("model.py", here(images), expected.features)
    assert_close("embeddings", here.embed(images), expected.embeddings)
    assert_close("scores", here.scores(images), expected.logits[0])
    published = config.model.width == 64 and config.model.stem == "imagenet"
    for library, offered in (
      ("timm", published),
      ("torchvision", published and not config.augment.sobel),
    ):
      blocks = [b for b in blocks_of(card) if f"import {library}\n" in b]
      assert bool(blocks) == offered
      if offered:
        theirs = run_block(card, f"import {library}\n")["model"]
        seen = for_torch(torch, photographs(config))
        assert_close(library, theirs(seen), expected.features)


@pytest.mark.parametrize(
  ("neck", "head"),
  [
    ("mlp2", "prototypes"),
    ("mlp2_no_bias", "linear"),
    ("mlp2_no_norm", "prototypes"),
    ("mlp3", "centers"),
    ("mlp3_bias_last", "unit_prototypes"),
    ("mlp3_gelu", "directions"),
    ("none", "linear"),
  ],
)
def test_necks_and_heads_work(torch, tmp_path, monkeypatch, neck, head):
  patch_head(monkeypatch, head)
  config = whole_experiment("resnet18", width=16, size=32)
  with config.unlocked():
    config.model.neck = neck
  weights = random_weights(config)
  card = write(config, weights, tmp_path)
  enter(tmp_path, monkeypatch)
  images = for_torch(torch, photographs(config))
  expected = outputs_here(config, weights, photographs(config))
  model = run_block(card, "from model import")["model"]
  with torch.no_grad():
    assert_close("embeddings", model.embed(images), expected.embeddings)
    assert_close("scores", model.scores(images), expected.logits[0])


def test_heads_that_vote_work(torch, tmp_path, monkeypatch):
  """TEMI's: three heads of four clusters, under the names they agreed on."""
  config = whole_experiment("resnet18", width=16, size=32)
  config.method, config.num_clusters = "temi", 4
  with config.unlocked():
    config.model.update(
      {
        "neck": "standardized",
        "head_layers": 1,
        "head_hidden": 7,
        "head_bottleneck": 6,
      }
    )
    config.temi = {
      "num_heads": 3,
      "num_neighbors": 2,
      "objective": "temi",
      "weights": "heads",
    }
  method = METHODS["temi"]
  made = functional(
    lambda rngs: build(config.model, (4,) * 3, rngs, head=method.HEAD)
  )
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  head = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
    shapes[0]["head"],
  )
  params, batch_stats = random_weights(config)
  weights = {**params, "head": head}, batch_stats
  state = method.init(config, 20, jax.random.key(0))
  names = np.array([rng.permutation(4) for _ in range(3)], np.int32)
  state = state._replace(names=jnp.asarray(names))

  arrays = export.state_dict(*weights, 100, names)
  card = card_lib.render(config, 100, {}, True, {})
  export.write_files(tmp_path, arrays, card_lib.describe(config), card)
  enter(tmp_path, monkeypatch)
  model = run_block(card, "from model import")["model"]
  x = rng.normal(size=(40, 128)).astype(np.float32)
  logits = jax.jit(lambda p, x: made.apply_part("head", p, batch_stats, x))
  expected = method.vote(state, logits(weights[0], x))
  assert len({*np.argmax(expected, axis=1).tolist()}) > 2
  images = for_torch(torch, photographs(config))
  apply = jax.jit(made.apply, static_argnames="train")
  outputs, _ = apply(*weights, photographs(config), None, train=False)
  with torch.no_grad():
    np.testing.assert_allclose(
      model.voters(torch.from_numpy(x)), expected, rtol=1e-6
    )
    assert_close("embeddings", model.embed(images), outputs.embeddings)
    np.testing.assert_allclose(
      model.scores(images), method.vote(state, outputs.logits), rtol=1e-6
    )
  unfinished = export.state_dict(*weights, 100, np.full((3, 4), -1))
  export.write_files(tmp_path, unfinished, card_lib.describe(config), card)
  model = run_block(card, "from model import")["model"]
  with pytest.raises(ValueError, match="once the run has ended"):
    model.scores(images)


def patch_head(monkeypatch, head):
  """Gives ODC another head, for the length of a test."""
  changed = dataclasses.replace(METHODS["odc"], HEAD=head)
  monkeypatch.setitem(METHODS, "odc", changed)


def test_without_a_head_there_are_no_scores(torch, tmp_path, monkeypatch):
  patch_head(monkeypatch, "none")
  config = whole_experiment("resnet18", width=4, size=32)
  card = write(config, random_weights(config), tmp_path)
  assert "model.scores" not in card
  enter(tmp_path, monkeypatch)
  model = run_block(card, "from model import")["model"]
  with pytest.raises(ValueError, match="has no head"):
    model.scores(for_torch(torch, photographs(config)))


@pytest.mark.parametrize("sobel", [False, True])
def test_timm_finds_everything_in_the_folder(torch, tmp_path, sobel):
  """Architecture, weights and what to do with a photograph."""
  import timm

  config = whole_experiment("resnet18", sobel=sobel)
  weights = random_weights(config)
  write(config, weights, tmp_path)
  model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
  assert model.num_classes == 0
  expected = photographs(config)
  with torch.no_grad():
    features = model(for_torch(torch, expected))
  assert_close(
    "local-dir", features, outputs_here(config, weights, expected).features
  )
  if sobel:
    return
  transform = timm.data.create_transform(
    **timm.data.resolve_model_data_config(model), is_training=False
  )
  found = [
    transform(Image.fromarray(scene)).numpy().transpose(1, 2, 0)
    for scene in load_sample_images().images
  ]
  np.testing.assert_allclose(found, expected, atol=1e-4)
  # For fine-tuning: a classifier that is not in the file.
  classifier = timm.create_model(
    f"local-dir:{tmp_path}", pretrained=True, num_classes=7
  )
  assert classifier(for_torch(torch, expected)).shape == (2, 7)
  np.testing.assert_array_equal(
    classifier.conv1.weight.detach(), model.conv1.weight.detach()
  )


def test_timm_refuses_what_it_cannot_build(torch, tmp_path):
  import timm

  for model in ({"stem": "small"}, {"width": 32}):
    config = whole_experiment("resnet18", size=32, **model)
    write(config, random_weights(config), tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
      timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_features_of_their_networks_here(torch, tmp_path, name, library):
  import timm
  import torchvision

  torch.manual_seed(0)
  if library == "timm":
    theirs = timm.create_model(name, num_classes=5, zero_init_last=False)
  else:
    theirs = getattr(torchvision.models, name)(num_classes=5)
  randomize(torch, theirs)
  # As torch.save is used: with other things around, and in a wrapper.
  content = {
    "epoch": 3,
    "state_dict": torch.nn.DataParallel(theirs).state_dict(),
    "optimizer": torch.optim.SGD(theirs.parameters(), 0.1).state_dict(),
  }
  path = tmp_path / "checkpoint.pth.tar"
  torch.save(content, path)

  config = whole_experiment(name)
  loaded = load_into(path, *zeros(config))
  assert loaded.parts == ("backbone",)
  images = photographs(config)
  features = outputs_here(config, loaded[:2], images).features
  theirs.fc = torch.nn.Identity()
  with torch.no_grad():
    expected = theirs.eval()(for_torch(torch, images))
  assert_close(f"{library}'s {name} here", features, expected)


def randomize(torch, model):
  """Makes nothing in a network 0 or 1."""
  with torch.no_grad():
    for module in model.modules():
      if isinstance(module, torch.nn.BatchNorm2d):
        module.weight.uniform_(0.4, 1)
        module.bias.normal_(0, 0.3)
        module.running_mean.normal_(0, 0.3)
        module.running_var.uniform_(0.5, 2)


def plain_resnet(torch, name):
  """Returns a ResNet of nothing but PyTorch, with torchvision's names."""
  nn = torch.nn
  bottleneck = name == "resnet50"
  depths = (2, 2, 2, 2) if name == "resnet18" else (3, 4, 6, 3)

  def conv(channels_in, channels_out, size, stride=1):
    return nn.Conv2d(
      channels_in, channels_out, size, stride, size // 2, bias=False
    )

  class Block(nn.Module):
    def __init__(self, channels, width, stride):
      super().__init__()
      out = width * (4 if bottleneck else 1)
      layers = (
        [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        if bottleneck
        else [(channels, width, 3, stride), (width, out, 3, 1)]
      )
      self.num_layers = len(layers)
      for i, layer in enumerate(layers, 1):
        self.add_module(f"conv{i}", conv(*layer))
        self.add_module(f"bn{i}", nn.BatchNorm2d(layer[1]))
      self.downsample = nn.Sequential()
      if stride != 1 or channels != out:
        self.downsample = nn.Sequential(
          conv(channels, out, 1, stride), nn.BatchNorm2d(out)
        )

    def forward(self, x):
      y = x
      for i in range(1, self.num_layers + 1):
        y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
        if i < self.num_layers:
          y = y.relu()
      return (y + self.downsample(x)).relu()

  class ResNet(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1, self.bn1 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
      channels = 64
      for i, depth in enumerate(depths):
        blocks = []
        for j in range(depth):
          stride = 2 if i and not j else 1
          blocks.append(Block(channels, 64 * 2**i, stride))
          channels = 64 * 2**i * (4 if bottleneck else 1)
        self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x):
      x = self.bn1(self.conv1(x)).relu()
      x = nn.functional.max_pool2d(x, 3, 2, 1)
      for i in range(1, 5):
        x = getattr(self, f"layer{i}")(x)
      return x.mean((2, 3))

  return ResNet()
