"""Work directories of earlier versions: the same run, or refused in a line."""

import json

import pytest

from configs import (
  coke_imagenet,
  odc_cifar10,
  odc_digits,
  odc_imagenet,
  sela_imagenet,
  swav_imagenet,
)
from odc_jax.config import check, store
from odc_jax.errors import UserError

# Keys that came later, and the values with which a run does what it did before
# there were any.
CAME_LATER = {
  "augment.rotation_interpolation": "bilinear",
  "model.init": "fan_in",
  "model.bn_group_size": 0,
  "optimizer.trust": 0.001,
  "optimizer.clip": False,
}


def resolved(module, *variant):
  config = module.get_config(*variant)
  config.num_epochs = 2
  return check.resolve(config, 100_000, 1)


def as_of_then(config, workdir):
  """Writes the config as an earlier version did, which lacked some keys."""
  values = json.loads(config.to_json())
  for name in CAME_LATER:
    section, key = name.split(".")
    values[section].pop(key, None)
  (workdir / "config.json").write_text(json.dumps(values))


def refused(config, workdir):
  """Returns why a run does not go on with this config."""
  with pytest.raises(UserError) as caught:
    store.write(config, workdir, resuming=True)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_a_run_that_rotated_before_there_was_a_choice_goes_on_bilinear(
  tmp_path,
):
  config = resolved(odc_cifar10)
  as_of_then(config, tmp_path)
  assert store.read(tmp_path).augment.rotation_interpolation == "bilinear"
  assert (
    "config.augment.rotation_interpolation was 'bilinear', is 'nearest'. "
  ) in refused(config, tmp_path)
  config.augment.rotation_interpolation = "bilinear"
  store.write(config, tmp_path, resuming=True)
  # What it says now needs no guess.
  assert store.read(tmp_path).augment.rotation_interpolation == "bilinear"


def test_a_file_without_the_key_is_of_this_version_once_it_has_run(tmp_path):
  config = resolved(odc_cifar10)
  with config.unlocked():
    del config.augment.rotation_interpolation
  store.write(config, tmp_path, resuming=False)
  assert store.read(tmp_path).augment.rotation_interpolation == "nearest"
  store.write(config, tmp_path, resuming=True)


@pytest.mark.parametrize(
  "config",
  [resolved(odc_imagenet, "frozen"), resolved(sela_imagenet)],
  ids=["frozen", "unrotated"],
)
def test_runs_that_do_not_rotate_go_on(config, tmp_path):
  """A frozen one has angles, which nothing reads."""
  as_of_then(config, tmp_path)
  store.write(config, tmp_path, resuming=True)


def test_what_a_recipe_changed_is_refused(tmp_path):
  """How networks start, groups of BatchNorm, and each view's own jitter."""
  config = resolved(coke_imagenet, "multicrop")
  as_of_then(config, tmp_path)
  values = json.loads((tmp_path / "config.json").read_text())
  values["augment"]["brightness"] = 0.4
  (tmp_path / "config.json").write_text(json.dumps(values))
  why = refused(config, tmp_path)
  assert "config.augment.brightness was 0.4, is [0.4, 0.4, 0.8]" in why
  assert "config.model.init was 'fan_in', is 'fan_out'" in why
  config = resolved(swav_imagenet)
  as_of_then(config, tmp_path)
  assert "config.model.bn_group_size was 0, is 512" in refused(config, tmp_path)


def test_every_key_that_came_later_may_be_left_out(tmp_path):
  config = resolved(odc_digits)
  for name, value in CAME_LATER.items():
    section, key = name.split(".")
    if key in config[section]:
      assert config[section][key] == value, name
  as_of_then(config, tmp_path)
  store.write(config, tmp_path, resuming=True)
