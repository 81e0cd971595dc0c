"""Keys that do nothing, are unknown or lack: refused, and by which words."""

import dataclasses
import json
import shutil

import pytest

from configs import (
  coke_digits,
  coke_imagenet,
  deepcluster_digits,
  deepcluster_v2_digits,
  odc_digits,
  secu_digits,
  sela_digits,
  sela_imagenet,
  swav_digits,
  swav_imagenet,
)
from odc_jax.config import check, options, store
from odc_jax.errors import UserError
from odc_jax.evals import evaluate
from odc_jax.methods import METHODS
from tests.program import ROOT, assert_refused, run


def changed(module, values):
  """Returns an experiment as the command line would change it."""
  config = module.get_config()
  config.update_from_flattened_dict(values)
  return config


@pytest.mark.parametrize(
  ("module", "values", "says"),
  [
    (
      odc_digits,
      {"augment.blur_sigma": (0.1, 1.0)},
      r"augment\.blur_sigma=\(0\.1, 1\.0\) does nothing with augment\.blur="
      r"0\.0: leave it out, or change --config\.augment\.blur$",
    ),
    (odc_digits, {"optimizer.num_epochs": 9}, "optimizer.schedule='step'"),
    (
      odc_digits,
      {"augment.jitter_p": 0.0, "augment.contrast": 0.1},
      "contrast=0.1 does nothing with augment.jitter_p=0.0",
    ),
    (
      odc_digits,
      {
        "augment.brightness": 0.0,
        "augment.contrast": 0.0,
        "augment.jitter_p": 0.5,
      },
      "jitter_p=0.5 .*brightness=0.0 and augment.contrast=0.0 and augment.sat",
    ),
    (
      odc_digits,
      {"data.on_error": "fail", "data.max_bad_fraction": 0.1},
      "data.on_error='fail'",
    ),
    (
      odc_digits,
      {"optimizer.decay_epochs": (), "optimizer.decay_rate": 0.2},
      r"decay_rate=0\.2 does nothing with optimizer\.decay_epochs=\(\)",
    ),
    (
      odc_digits,
      {"optimizer.decay_epochs": (9,), "optimizer.decay_rate": 1.0},
      r"decay_epochs=\(9,\) does nothing with optimizer\.decay_rate=1\.0",
    ),
    (deepcluster_digits, {"data.sampling": "replacement"}, "'facebook'"),
    (deepcluster_digits, {"model.group_size": 8}, "reweight_power=0.0"),
    (deepcluster_v2_digits, {"data.small_size": 8}, "data.small_views=0"),
    (deepcluster_v2_digits, {"optimizer.warmup_from": 0.1}, "warmup_epochs=0"),
    (swav_digits, {"optimizer.adapt_all": True}, "optimizer.name='sgd'"),
    (swav_digits, {"optimizer.clip": True}, "optimizer.name='sgd'"),
    (
      swav_imagenet,
      {"augment.rotation_interpolation": "bilinear"},
      "augment.rotation=0.0",
    ),
    (sela_imagenet, {"model.init": "fan_out"}, "model.name='alexnet'"),
    (swav_digits, {"swav.queue_start_epoch": 2}, "swav.queue_length=0"),
    (secu_digits, {"secu.entropy_weight": 1.0}, "secu.constraint='size'"),
    (
      secu_digits,
      {"secu.constraint": "entropy", "secu.size_ratio": 0.5},
      "secu.constraint='entropy'",
    ),
    (
      coke_digits,
      {"coke.prediction_weight": 0.0, "model.predictor": True},
      "coke.prediction_weight=0.0",
    ),
  ],
  ids=lambda value: "" if not isinstance(value, dict) else [*value][-1],
)
def test_what_does_nothing_is_refused_on_the_command_line(module, values, says):
  config = changed(module, values)
  method = METHODS[config.method]
  with pytest.raises(UserError, match=says) as caught:
    options.check(config, method, values)
  assert "\n" not in str(caught.value)
  # In a file it waits for what would read it.
  options.check(config, method)


@pytest.mark.parametrize(
  ("module", "values"),
  [
    (odc_digits, {"augment.blur": 0.5, "augment.blur_sigma": (0.1, 1.0)}),
    (
      odc_digits,
      {"optimizer.schedule": "cosine", "optimizer.num_epochs": 9},
    ),
    (
      deepcluster_digits,
      {"deepcluster.sampler": "none", "data.sampling": "replacement"},
    ),
    (
      deepcluster_digits,
      {"deepcluster.reweight_power": 0.5, "model.group_size": 8},
    ),
    (odc_digits, {"model.group_size": 8}),
    (swav_digits, {"data.small_views": 2, "data.small_size": 8}),
    (swav_digits, {"optimizer.name": "lars", "optimizer.adapt_all": True}),
    (swav_digits, {"swav.queue_length": 64, "swav.queue_start_epoch": 2}),
    (secu_digits, {"secu.constraint": "entropy", "secu.entropy_weight": 1.0}),
    (secu_digits, {"model.neck": "none", "model.embedding_dim": 128}),
  ],
  ids=lambda value: "" if not isinstance(value, dict) else [*value][-1],
)
def test_it_is_welcome_with_what_reads_it(module, values):
  config = changed(module, values)
  options.check(config, METHODS[config.method], values)


def with_keys(module, values):
  """Returns an experiment whose file holds more."""
  config = module.get_config()
  for name, value in values.items():
    section, _, key = name.rpartition(".")
    (config[section] if section else config)[key] = value
  return config


@pytest.mark.parametrize(
  ("module", "values", "says"),
  [
    # Nothing would learn it.
    (
      swav_digits,
      {"model.predictor": True},
      "model.predictor with method='swav'",
    ),
    (odc_digits, {"extra_clusters": (40,)}, "extra_clusters with method='odc'"),
    (odc_digits, {"data.views": 2}, "data.views with method='odc'"),
    # Its centroids are no part of the network.
    (coke_digits, {"optimizer.head_momentum": 0.5}, "head_momentum .*'coke'"),
    (odc_digits, {"data.crop_scales": (0.1, 1)}, "data.crop_scales"),
    (odc_digits, {"swav": {"temperature": 0.1}}, "reads swav with"),
    (odc_digits, {"method": "swav"}, "nothing reads odc with method='swav'"),
  ],
  ids=lambda value: "" if not isinstance(value, dict) else [*value][-1],
)
def test_what_nothing_reads_is_refused_in_a_file_too(module, values, says):
  config = with_keys(module, values)
  with pytest.raises(UserError, match=says):
    options.check(config, METHODS[config.method])


def test_a_misspelt_key_is_told_from_one_too_many():
  config = odc_digits.get_config()
  config.odc.min_clusters = config.odc.min_cluster
  del config.odc["min_cluster"]
  with pytest.raises(
    UserError, match=r"'odc': did you mean odc\.min_cluster\?"
  ):
    options.check(config, METHODS["odc"])


def test_what_lacks_is_named():
  given = {"model.neck": "fc"}
  config = changed(sela_digits, given)
  lacks = "lacks model.dropout, model.embedding_dim, model.neck_hidden, which"
  with pytest.raises(UserError, match=lacks):
    options.check(config, METHODS["sela"], given)
  config = coke_imagenet.get_config("single")
  del config.coke["num_slots"]
  with pytest.raises(UserError, match=r"lacks coke\.num_slots, which"):
    options.check(config, METHODS["coke"])


def test_of_a_method_that_names_no_keys_nothing_is_refused():
  config = with_keys(odc_digits, {"odc.anything": 1})
  method = dataclasses.replace(METHODS["odc"], KEYS=None)
  options.check(config, method, {"augment.blur_sigma": (0.1, 1.0)})


# What the files held when every key of a neck had to be there.
NECK = {"neck_hidden": 512, "embedding_dim": 128, "dropout": 0.5}


@pytest.mark.parametrize(
  ("module", "variant"),
  [(deepcluster_digits, ""), (sela_digits, ""), (sela_imagenet, "quick")],
  ids=["deepcluster", "sela", "imagenet"],
)
def test_a_run_that_still_holds_idle_keys_goes_on(module, variant, tmp_path):
  config = check.resolve(module.get_config(variant), 12_811, 1)
  store.write(config, tmp_path, resuming=False)
  path = tmp_path / "config.json"
  old = json.loads(path.read_text())
  old["model"] |= NECK
  path.write_text(json.dumps(old))
  store.write(config, tmp_path, resuming=True)
  assert json.loads(path.read_text()) == json.loads(config.to_json())

  # What is read is another thing.
  old["model"]["width"] += 1
  path.write_text(json.dumps(old))
  with pytest.raises(UserError, match=r": config\.model\.width was \d+, is"):
    store.write(config, tmp_path, resuming=True)


def test_a_run_that_still_holds_idle_keys_is_evaluated_on_other_data():
  of_run, given = sela_digits.get_config(), sela_digits.get_config()
  of_run.model.update(NECK)
  given.data.image_size = 28
  asked = evaluate._on_other_data(of_run, given)
  assert asked.data.image_size == 28
  assert asked.model == of_run.model


def test_a_key_that_is_read_makes_a_difference_even_where_one_lacks_it():
  old = options.flat(sela_digits.get_config())
  new = old | {"model.neck": "fc"} | {f"model.{k}": v for k, v in NECK.items()}
  expected = [(f"model.{key}", None, value) for key, value in NECK.items()]
  expected.append(("model.neck", "none", "fc"))
  assert list(options.differences(old, new)) == sorted(expected)
  assert [name for name, *_ in options.differences(new, old)] == [
    name for name, *_ in sorted(expected)
  ]


def test_a_run_from_before_a_key_goes_on_as_what_was_done_then(tmp_path):
  config = odc_digits.get_config()
  store.write(check.resolve(config, 1797, 1), tmp_path, resuming=False)
  path = tmp_path / "config.json"
  old = json.loads(path.read_text())
  del old["data"]["interpolation"]
  path.write_text(json.dumps(old))
  store.write(check.resolve(config, 1797, 1), tmp_path, resuming=True)
  path.write_text(json.dumps(old))
  config.data.interpolation = "bicubic"
  says = r"config\.data\.interpolation was 'bilinear', is 'bicubic'\."
  with pytest.raises(UserError, match=says):
    store.write(check.resolve(config, 1797, 1), tmp_path, resuming=True)


def test_a_file_from_elsewhere_shares_what_the_shipped_ones_do(
  environment, tmp_path
):
  """And a key in it that nothing reads ends the program with its name."""
  shutil.copy(ROOT / "configs" / "odc_digits.py", tmp_path / "mine.py")
  path = tmp_path / "mine.py"
  path.write_text(
    path.read_text().replace('"width"', '"predictor": True, "width"')
  )
  (tmp_path / "configs").mkdir()  # a folder of that name is nobody's package
  assert_refused(
    run(environment, tmp_path / "run", "--config=mine.py", cwd=tmp_path),
    "model.predictor",
    "method='odc'",
  )
  assert not (tmp_path / "run").exists()
