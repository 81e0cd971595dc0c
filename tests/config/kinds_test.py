"""Values of configs that can be no such value, whatever file they are in."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import odc_digits, odc_folder, swav_digits
from odc_jax.config import auto, check, options
from odc_jax.errors import UserError
from odc_jax.methods import METHODS

_MODULES = {"odc": odc_digits, "swav": swav_digits}


def changed(method, changes):
  """Returns a config of which some keys have other values, of any type."""
  config = _MODULES[method].get_config("quick")
  with config.unlocked(), config.ignore_type():
    for name, value in changes.items():
      *sections, key = name.split(".")
      node = config
      for section in sections:
        node = node[section]
      node[key] = value
  return config


def resolve(config):
  """Does with a config what a run does before it looks at the images."""
  method = check.choose(METHODS, config.method, "method")
  options.check(config, method)
  config, _ = auto.fill(config, 1797, 1, method.AUTO)
  config = check.resolve(config, 1797, 1)
  return int(config.num_epochs * check.steps_per_epoch(config)), config


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"num_epochs": math.inf}, "num_epochs=inf is no finite number"),
    ({"num_epochs": math.nan}, "num_epochs=nan is no finite number"),
    ({"num_epochs": "inf"}, "num_epochs='inf' is neither auto nor a number"),
    ({"num_epochs": 1e300}, r"num_epochs=1e\+300 is more than 1e\+09"),
    ({"num_epochs": -1}, "num_epochs=-1 is less than 0"),
    ({"batch_size": 8.5}, r"batch_size=8\.5 is no whole number"),
    ({"batch_size": True}, "batch_size=True is no whole number"),
    ({"num_clusters": None}, "num_clusters=None is no whole number"),
    ({"log_every": "auto"}, "log_every='auto' is no whole number"),
    ({"seed": -1}, "seed=-1 is less than 0"),
    ({"seed": np.int64(1)}, r"seed is a numpy\.int64; give a plain number"),
    ({"method": ["odc"]}, "unknown method"),
    ({"model.neck": ["mlp2"]}, r"model\.neck=\['mlp2'\] is no text"),
    ({"data.source": 5}, r"data\.source=5 is no text"),
    ({"data": 5}, "nothing reads data"),
    ({"data.image_size": 10**9}, "data.image_size=1000000000 is more than"),
    ({"data.crop_scale": 1.0}, r"data\.crop_scale=1\.0 is no pair"),
    ({"data.crop_scale": (0.5, math.nan)}, "is no finite number"),
    ({"data.crop_scale": ("a", "b")}, "is no pair"),
    ({"augment.flip": 1.5}, r"augment\.flip=1\.5 is more than 1"),
    ({"augment.mean": "grey"}, "augment.mean='grey' is neither auto nor"),
    ({"optimizer.learning_rate": -0.1}, "learning_rate=-0.1 is less than 0"),
    ({"eval.evaluators": "knn"}, "eval.evaluators='knn' is no tuple of names"),
    ({"odc.momentum": math.nan}, r"odc\.momentum=nan is no finite number"),
    ({"odc.centroid_every": 0}, r"odc\.centroid_every=0 is less than 1"),
  ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(changes, says):
  with pytest.raises(UserError, match=says):
    resolve(changed("odc", changes))


def test_a_number_for_what_the_weights_would_say_is_a_number():
  # As text, since the key holds text: so it comes from a command line.
  config = odc_folder.get_config()
  config.data.image_size, config.augment.std = "64", "(0.5,0.5,1)"
  filled, _ = auto.fill(config, 100, 1, METHODS["odc"].AUTO)
  assert filled.data.image_size == 64
  assert filled.augment.std == (0.5, 0.5, 1.0)
  assert filled.data.eval_resize == "auto"  # left to the weights
  config.data.image_size = "large"
  with pytest.raises(UserError, match=r"image_size='large' is neither auto"):
    auto.fill(config, 100, 1, METHODS["odc"].AUTO)


_KEYS = {
  name: [*options.flat(module.get_config("quick"))]
  for name, module in _MODULES.items()
}
_PLAIN = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.floats(),
  st.text(max_size=5),
  st.sampled_from(["auto", "inf", "nan", "1e999", "-1", "(1,2)", "cosine"]),
)
_VALUES = st.one_of(
  _PLAIN,
  st.lists(_PLAIN, max_size=3).map(tuple),
  st.lists(st.lists(_PLAIN, max_size=2), max_size=2),
  st.builds(object),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(data):
  method = data.draw(st.sampled_from(sorted(_MODULES)))
  keys = st.sampled_from(_KEYS[method])
  changes = data.draw(st.dictionaries(keys, _VALUES, min_size=1, max_size=3))
  with contextlib.suppress(UserError):
    num_steps, config = resolve(changed(method, changes))
    assert num_steps >= 0
    assert config.to_json()
