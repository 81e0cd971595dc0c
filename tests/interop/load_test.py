"""Networks out of files: every layout, and what is said of those that fail."""

import hashlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from odc_jax import UserError
from odc_jax.interop import export, recognise
from odc_jax.interop.load import check, initialize, keep_digest, load_into
from odc_jax.training import state as state_lib
from tests.interop.networks import (
  assert_equal,
  experiment,
  random_weights,
  zeros,
)

TINY = {"name": "resnet18", "stem": "small", "width": 4}


@pytest.fixture(scope="module")
def config():
  return experiment(**TINY)


@pytest.fixture(scope="module")
def trained(config):
  return random_weights(config)


@pytest.fixture(scope="module")
def state_dict(trained):
  return export.state_dict(*trained, 7)


@pytest.fixture
def save(tmp_path):
  def save(arrays, name="weights.safetensors"):
    safetensors.numpy.save_file(arrays, tmp_path / name)
    return tmp_path / name

  return save


def under(prefix, arrays):
  return {f"{prefix}{name}": array for name, array in arrays.items()}


def other(arrays):
  """Returns the arrays of another network of the same kind."""
  return {name: np.asarray(array + 1) for name, array in arrays.items()}


def sequential(backbone):
  """Returns names as in `nn.Sequential(*resnet.children())`."""
  places = dict(
    zip(
      ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"),
      "014567",
      strict=True,
    )
  )
  return {
    ".".join([places[first], rest]): array
    for first, rest, array in (
      (*name.split(".", 1), array) for name, array in backbone.items()
    )
  }


FC = {"fc.weight": np.ones((5, 32), np.float32)}

# What a file holds of a backbone {name: array}, by whose it is.
LAYOUTS = {
  "torchvision": lambda b: b | FC,
  "DataParallel": lambda b: under("module.", b | FC),
  "checkpoint": lambda b: under("state_dict.module.", b | FC),
  "features": lambda b: under("model.features.", b),
  "sequential": lambda b: under("features.", sequential(b)),
  "swav": lambda b: under(
    "module.",
    {
      **b,
      "projection_head.0.weight": np.ones((3, 32), np.float32),
      "prototypes.weight": np.ones((9, 3), np.float32),
    },
  ),
  "deepcluster v2": lambda b: under(
    "state_dict.module.",
    {**b, "prototypes.prototypes0.weight": np.ones((9, 3), np.float32)},
  ),
  "moco": lambda b: {
    **under("state_dict.module.encoder_k.", other(b | FC)),
    **under("state_dict.module.encoder_q.", b | FC),
    "state_dict.module.queue": np.ones((3, 8), np.float32),
  },
  "dino": lambda b: {
    **under("student.module.backbone.", other(b)),
    **under("teacher.backbone.", b),
  },
  "byol": lambda b: {
    **under("state_dict.online_net.0.", b),
    **under("state_dict.target_net.0.", other(b)),
    **under("state_dict.backbone.", b),
  },
  "vissl": lambda b: under(
    "classy_state_dict.base_model.model.trunk._feature_blocks.", b
  ),
  "timm ema": lambda b: {
    **under("state_dict.", other(b | FC)),
    **under("state_dict_ema.", b | FC),
  },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_backbone_is_found_in_every_layout(
  config, trained, state_dict, save, layout
):
  path = save(LAYOUTS[layout](state_dict["backbone"]))
  loaded = load_into(path, *zeros(config))
  assert loaded.parts == ("backbone",)
  for found, expected, untouched in zip(
    loaded[:2], trained, zeros(config), strict=True
  ):
    assert_equal(found["backbone"], expected["backbone"])
    assert_equal(found["neck"], untouched["neck"])


@pytest.mark.parametrize("wrapper", ["", "state_dict."])
def test_odc_checkpoints_bring_neck_and_head(
  config, trained, state_dict, save, wrapper
):
  """OpenSelfSup's names; mmselfsup keeps its centroids beside them."""
  arrays = {"memory_bank.centroids": np.ones((10, 6), np.float32)}
  for part, weights in state_dict.items():
    arrays |= under(f"{part}.", weights)
  assert {"neck.bn0.running_var", "head.fc_cls.weight"} < set(arrays)
  path = save(under(wrapper, arrays))
  loaded = load_into(path, *zeros(config))
  assert loaded.parts == ("backbone", "neck", "head")
  assert not loaded.remarks
  assert_equal(loaded[:2], trained)
  narrower = experiment(**TINY, embedding_dim=5)
  loaded = load_into(path, *zeros(narrower))
  assert loaded.parts == ("backbone",)
  assert "neck.fc1.weight" not in loaded.remarks[0]
  assert "fc1.weight is [6, 12], not [5, 12]" in loaded.remarks[0]
  assert "fc_cls.weight is [10, 6], not [10, 5]" in loaded.remarks[1]


def test_a_neck_of_another_kind_is_left_out(config, state_dict, save):
  """SimCLR's has the same layers, and a scale behind the first."""
  arrays = under("backbone.", state_dict["backbone"])
  arrays |= under("neck.", state_dict["neck"])
  arrays["neck.bn0.weight"] = np.ones(12, np.float32)
  loaded = load_into(save(arrays), *zeros(config))
  assert loaded.parts == ("backbone",)
  assert "bn0.weight [12] has no place" in loaded.remarks[0]


def test_every_network_comes_back_as_it_was(save):
  for name, stem, width, sobel in (
    ("resnet18", "imagenet", 4, True),
    ("resnet34", "small", 8, False),
    ("resnet50", "imagenet", 4, False),
  ):
    config = experiment(name=name, stem=stem, width=width)
    config.augment.sobel = sobel
    weights = random_weights(config)
    path = save(export.state_dict(*weights, 7)["backbone"])
    loaded = load_into(path, *zeros(config))
    for found, expected in zip(loaded[:2], weights, strict=True):
      assert_equal(found["backbone"], expected["backbone"])


def test_axes_and_names_are_pytorchs(trained, state_dict):
  params, batch_stats = trained
  backbone = state_dict["backbone"]
  kernel = params["backbone"]["layer2"]["0"]["conv1"]["kernel"]
  assert kernel.shape == (3, 3, 4, 8)
  found = backbone["layer2.0.conv1.weight"]
  assert found.shape == (8, 4, 3, 3)
  assert found[5, 1, 2, 0] == kernel[2, 0, 1, 5]
  neck = params["neck"]["fc0"]["kernel"]
  assert state_dict["neck"]["fc0.weight"][3, 9] == neck[9, 3]
  projected = batch_stats["backbone"]["layer2"]["0"]["downsample"]["1"]
  np.testing.assert_array_equal(
    backbone["layer2.0.downsample.1.running_mean"], projected["mean"]
  )
  assert backbone["bn1.num_batches_tracked"] == 7
  assert set(backbone) >= {"conv1.weight", "bn1.weight", "bn1.bias"}
  # torchvision's resnet18 has 122 entries, two of them the classifier's.
  assert len(backbone) == 120


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_float32(
  config, trained, state_dict, save, half
):
  halves = {
    name: array.astype(half) if array.dtype == np.float32 else array
    for name, array in state_dict["backbone"].items()
  }
  params = load_into(save(halves), *zeros(config)).params
  found = params["backbone"]["conv1"]["kernel"]
  assert found.dtype == np.float32
  expected = trained[0]["backbone"]["conv1"]["kernel"]
  np.testing.assert_array_equal(found, expected.astype(half))


def test_a_run_starts_with_the_files_backbone_and_neck(
  config, trained, state_dict, save, mesh, capsys
):
  """But not with its head, which knows the clusters of another run."""
  params, batch_stats = jax.tree.map(jax.numpy.asarray, zeros(config))
  where = state_lib.shardings(
    state_lib.TrainState(None, params, batch_stats, None, None, None, None),
    mesh,
  )
  assert initialize(config, params, batch_stats, where) == (params, batch_stats)
  arrays = {}
  for part, weights in state_dict.items():
    arrays |= under(f"{part}.", weights)
  started = config.copy_and_resolve_references()
  started.model.weights = str(save(arrays))
  check(started, state_lib.TrainState(None, *zeros(config), *[None] * 4))
  found, found_stats = initialize(started, params, batch_stats, where)
  for part in ("backbone", "neck"):
    assert_equal(found[part], trained[0][part])
    assert_equal(found_stats[part], trained[1][part])
  assert_equal(found["head"], params["head"])
  for leaf in jax.tree.leaves((found, found_stats)):
    assert len(leaf.sharding.device_set) == mesh.size
  assert "weights of backbone and neck from" in capsys.readouterr().out


def test_a_run_keeps_the_digest_of_its_weights(config, state_dict, save):
  started = config.copy_and_resolve_references()
  path = save(state_dict["backbone"])
  started.model.weights = str(path)
  workdir, kept = path.parent, path.parent / "weights.json"
  keep_digest(started, workdir, resuming=False)
  expected = hashlib.sha256(path.read_bytes()).hexdigest()
  assert json.loads(kept.read_text())["sha256"] == expected
  keep_digest(started, workdir, resuming=True)
  save(other(state_dict["backbone"]))
  with pytest.raises(UserError, match="begun with other weights"):
    keep_digest(started, workdir, resuming=True)
  path.unlink()
  keep_digest(started, workdir, resuming=True)  # it has its own
  keep_digest(config, workdir, resuming=False)
  assert not kept.exists()


# What does not fit.


@pytest.mark.parametrize(
  ("model", "sobel", "flags"),
  [
    ({"width": 8}, False, ["--config.model.width=8"]),
    ({"stem": "imagenet"}, False, ["--config.model.stem=imagenet"]),
    ({"name": "resnet34"}, False, ["--config.model.name=resnet34"]),
    ({}, True, ["--config.augment.sobel=True"]),
    (
      {"name": "resnet50", "stem": "imagenet", "width": 8},
      False,
      [
        "--config.model.name=resnet50 --config.model.stem=imagenet "
        "--config.model.width=8"
      ],
    ),
  ],
)
def test_another_network_is_named_with_the_flags_for_it(
  config, save, model, sobel, flags
):
  theirs = experiment(**{**TINY, **model})
  theirs.augment.sobel = sobel
  weights = export.state_dict(*random_weights(theirs), 0)["backbone"]
  with pytest.raises(UserError) as caught:
    load_into(save(weights), *zeros(config))
  said = str(caught.value)
  assert "\n" not in said
  assert said.endswith(f"It seems to hold another: {' '.join(flags)}")
  assert "is [" in said or "has no place" in said


def refused(path, config):
  with pytest.raises(UserError) as caught:
    load_into(path, *zeros(config))
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_what_is_missing_or_of_another_shape_is_named(config, state_dict, save):
  backbone = dict(state_dict["backbone"])
  del backbone["layer3.1.bn2.running_mean"]
  backbone["layer4.0.conv2.weight"] = np.ones((32, 30, 3, 3), np.float32)
  said = refused(save(backbone), config)
  assert "layer3.1.bn2.running_mean [16] is missing" in said
  assert "layer4.0.conv2.weight is [32, 30, 3, 3], not [32, 32, 3, 3]" in said
  assert "--config" not in said


def test_layers_that_no_network_here_has_are_named(config, state_dict, save):
  """Dropped silently, they would leave another function."""
  for name in ("layer1.0.se.fc1.weight", "conv2.weight", "attnpool.bias"):
    backbone = state_dict["backbone"] | {name: np.ones(4, np.float32)}
    assert f"{name} [4] has no place" in refused(save(backbone), config)


def test_layers_inside_the_blocks_rule_out_every_network_here(config, save):
  """The flags for a ResNet-50 would lead to the next refusal."""
  theirs = experiment(**{**TINY, "name": "resnet50"})
  weights = export.state_dict(*random_weights(theirs), 0)["backbone"]
  weights["layer1.0.se.fc1.weight"] = np.ones((4, 16, 1, 1), np.float32)
  said = refused(save(weights), config)
  assert "network: layer1.0.se.fc1.weight [4, 16, 1, 1] has no place" in said
  assert "--config" not in said
  assert "no part of the backbone" not in said
  assert f"those of {', '.join(recognise.NETWORKS)} are not here" in said


def test_half_a_backbone_is_to_be_saved_whole(config, state_dict, save):
  backbone = {
    name: array
    for name, array in state_dict["backbone"].items()
    if not name.startswith("layer4")
  }
  said = refused(save(backbone), config)
  assert "layer4.0.bn1.bias [32] is missing" in said
  assert "Save the backbone whole" in said
  assert "no part of the backbone" not in said
  strange = backbone | {"stray.weight": np.ones(4, np.float32)}
  assert "save it without what is no part of" in refused(save(strange), config)


def test_wider_blocks_are_not_called_another_width(config, save):
  """SwAV's RN50w2 doubles the width inside its blocks once more."""
  ours = experiment(name="resnet50", stem="imagenet", width=4)
  theirs = experiment(name="resnet50", stem="imagenet", width=8)
  weights = export.state_dict(*random_weights(theirs), 0)["backbone"]
  for name in ("layer1.0.conv1.weight", "layer1.0.conv2.weight"):
    weights[name] = np.repeat(weights[name], 2, axis=0)
  weights["layer1.0.conv2.weight"] = np.repeat(
    weights["layer1.0.conv2.weight"], 2, axis=1
  )
  said = refused(save(weights), ours)
  assert "--config" not in said
  assert "are not here" in said


def test_values_that_are_not_finite_are_refused(config, state_dict, save):
  backbone = dict(state_dict["backbone"])
  backbone["bn1.running_var"] = np.full(4, np.nan, np.float32)
  said = refused(save(backbone), config)
  assert "bn1.running_var has values that are not finite" in said


@pytest.mark.parametrize("dtype", ["int8", "bool", "uint8"])
def test_weights_that_are_no_floating_point_are_refused(
  config, state_dict, save, dtype
):
  backbone = state_dict["backbone"]
  path = save({k: np.asarray(v, dtype) for k, v in backbone.items()})
  with pytest.raises(UserError, match=f"is {dtype}, not floating point"):
    load_into(path, *zeros(config))


def test_a_network_for_grey_images_is_told_how_to_become_one_for_colour(
  config, state_dict, save
):
  backbone = state_dict["backbone"]
  first = backbone["conv1.weight"]
  path = save(backbone | {"conv1.weight": np.array(first[:, :1])})
  with pytest.raises(UserError, match=r"1 channels.*repeated 3 times"):
    load_into(path, *zeros(config))


def test_files_without_one_resnet_say_what_they_hold(config, state_dict, save):
  backbone = state_dict["backbone"]
  for arrays, words in (
    (
      {"blocks.0.attn.qkv.weight": np.ones((9, 3))},
      ["holds no ResNet", "blocks.0.attn.qkv.weight"],
    ),
    (
      {**under("a.", backbone), **under("b.", backbone)},
      ["several networks", "a., b."],
    ),
  ):
    said = refused(save(arrays), config)
    for word in words:
      assert word in said


def test_files_that_cannot_be_read_say_why(config, tmp_path):
  assert "there is no file" in refused(tmp_path / "none.pth", config)
  (tmp_path / "weights.pth").write_bytes(b"")
  assert "weights.pth is no file that" in refused(
    tmp_path / "weights.pth", config
  )
