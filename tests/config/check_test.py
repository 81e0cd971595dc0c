"""What may change when a run goes on, and what may not."""

import json

import pytest

from configs import odc_digits, swav_digits
from odc_jax.config import check as config_lib
from odc_jax.config import store
from odc_jax.errors import UserError


@pytest.fixture
def workdir(tmp_path):
  config = config_lib.resolve(odc_digits.get_config("quick"), 1797, 1)
  store.write(config, tmp_path, resuming=False)
  return tmp_path


def changed(**sections):
  config = odc_digits.get_config("quick")
  for name, keys in sections.items():
    config[name].update(keys)
  return config_lib.resolve(config, 1797, 1)


def test_a_run_can_be_evaluated_in_another_way_from_here_on(workdir):
  config = changed(eval={"evaluators": ("knn",), "knn": {"k": 7}})
  store.write(config, workdir, resuming=True)
  kept = json.loads((workdir / "config.json").read_text())
  assert kept["eval"]["knn"]["k"] == 7


def test_a_run_cannot_be_trained_in_another_way(workdir):
  before = (workdir / "config.json").read_bytes()
  with pytest.raises(UserError, match=r"model\.width was 16, is 32"):
    store.write(changed(model={"width": 32}), workdir, resuming=True)
  assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"data.views": 0}, r"data\.views=0 is less than 1"),
    ({"data.small_views": -1}, r"data\.small_views=-1 is less than 0"),
    ({"data.small_crop_scale": (0.5, 0.1)}, "small_crop_scale.* is no pair"),
    ({"extra_clusters": (30, 1798)}, "extra_clusters has 1798"),
    ({"num_clusters": 1798}, "num_clusters=1798 is not between"),
    (
      {"model.bn_group_size": 24, "batch_size": 64},
      r"model\.bn_group_size=24 does not divide batch_size=64",
    ),
    (
      {"augment.rotation_interpolation": "cubic"},
      "rotation_interpolation 'cubic'; choose nearest, bilinear",
    ),
  ],
)
def test_values_that_make_no_sense(changes, says):
  config = swav_digits.get_config()
  with config.unlocked():
    config.update_from_flattened_dict({"extra_clusters": (30,), **changes})
  with pytest.raises(UserError, match=says):
    config_lib.resolve(config, 1797, 1)
