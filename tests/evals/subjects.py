"""What evaluators are given, for their tests: digits, or features alone."""

import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import odc_digits
from odc_jax import mesh as mesh_lib
from odc_jax.config import check as config_lib
from odc_jax.data import sources
from odc_jax.data.in_memory import Given
from odc_jax.data.subset import Subset
from odc_jax.evals.inputs import Subject, splits
from odc_jax.methods import METHODS
from odc_jax.passes import extract as extract_lib
from odc_jax.training.programs import assemble


@functools.cache
def digits(mesh, num_train=256, num_test=128, **overrides) -> Subject:
  """Returns an untrained network, four channels wide, and some of the digits.

  The images of both data sets are real, as are their features. The same
  arguments return the same object: whoever changes the config takes
  `with_config`.

  Args:
    mesh: The devices; the context's.
    num_train: Images to learn from: the first ones of digits.
    num_test: Images to be tested on, the next ones; 0 for no test set: then
      the odd rows of the others.
    **overrides: Of the config, with __ for the dot: `model__width=8`.
  """
  config = odc_digits.get_config("quick")
  config.model.width = 4
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in overrides.items()}
  )
  config = config_lib.resolve(config, num_train, mesh.size)
  program = assemble(config, METHODS[config.method], mesh)
  params, batch_stats = (
    jax.device_put(_draw(tree), mesh_lib.replicated(mesh))
    for tree in (program.shapes.params, program.shapes.batch_stats)
  )
  extract = extract_lib.extractor(program.forward, mesh)

  def extract_source(source):
    with extract_lib.reading(source, config, mesh) as batches:
      return extract(params, batch_stats, batches, len(source))

  whole = sources.make("digits")
  train = Subset(whole, np.arange(num_train))
  test = None
  if num_test:
    test = Subset(whole, np.arange(num_train, num_train + num_test))
  split = splits(
    train, extract_source(train), test, test and extract_source(test)
  )
  return Subject(
    config=config,
    mesh=mesh,
    params=params,
    batch_stats=batch_stats,
    forward=program.forward,
    maps=program.maps,
    train=split[0],
    test=split[1],
    clusters=None,
    check=lambda: None,
  )


def of_features(train, test=None, *, clusters=None, config=None) -> Subject:
  """Returns a subject without a network.

  Args:
    train: `Features` of the training set.
    test: Of the test set, if there is one.
    clusters: The run's own, of the training set.
    config: What the evaluator reads of it, as nested dicts.
  """
  nothing: Any = None
  images = Given([np.zeros((2, 2, 3), np.uint8)])  # nobody reads them
  sets = splits(images, train, None if test is None else images, test)
  return Subject(
    config=ConfigDict(config or {}),
    mesh=mesh_lib.make_mesh(),
    params=None,
    batch_stats=None,
    forward=nothing,
    maps=nothing,
    train=sets[0],
    test=sets[1],
    clusters=clusters,
    check=lambda: None,
  )


def _draw(shapes):
  """Returns weights as training starts from.

  With NumPy: to compile the initialisation takes fifteen seconds.
  """
  rng = np.random.default_rng(0)

  def leaf(path, shape):
    if path[-1].key == "kernel":
      fan_in = np.prod(shape.shape[:-1])
      weights = rng.normal(0, np.sqrt(2 / fan_in), shape.shape)
    else:
      value = {"scale": 1, "var": 1, "bias": 0, "mean": 0}[path[-1].key]
      weights = np.full(shape.shape, value)
    return weights.astype(shape.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def with_config(subject: Subject, **overrides) -> Subject:
  """Returns the subject with another config, and everything else the same."""
  config = subject.config.copy_and_resolve_references()
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in overrides.items()}
  )
  return subject._replace(config=config)


def features_of(split) -> np.ndarray:
  """Returns the pooled features of the split's images, [m, c]."""
  return np.asarray(jax.device_get(split.features.features))[split.rows]
