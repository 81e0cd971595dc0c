"""The experiments in `configs/`: which keys they hold, and who reads them."""

import ast
import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax import mesh as mesh_lib
from odc_jax.config import auto, check, options
from odc_jax.data import augment, loader
from odc_jax.data.bad_images import BadImage, BadImages
from odc_jax.data.in_memory import Given
from odc_jax.errors import UserError
from odc_jax.evals import EVALS, linear, probe, semi
from odc_jax.interop import describe
from odc_jax.methods import METHODS
from odc_jax.passes import extract
from odc_jax.plan import measure
from odc_jax.training.programs import assemble
from tests.evals.subjects import of_features
from tests.program import ROOT

PATHS = sorted(
  path
  for path in (ROOT / "configs").glob("*.py")
  if "_" in path.stem.strip("_")
)
VARIANTS = {
  "byol_imagenet": ("epochs300",),
  "coke_imagenet": ("single", "multicrop"),
  "deepcluster_imagenet": ("vgg16", "resnet50", "resnet50_sobel"),
  "odc_folder": ("scratch",),
  "odc_imagenet": ("frozen",),
  "sela_imagenet": ("resnet50",),
  "deepcluster_v2_cifar10": ("sololearn",),
  "deepcluster_v2_imagenet": ("crops160", "two_views"),
  "swav_cifar10": ("sololearn",),
  "swav_imagenet": ("batch256", "two_views"),
}
EXPERIMENTS = [
  (path, variant)
  for path in PATHS
  for variant in ("", "quick", *VARIANTS.get(path.stem, ()))
]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)


def load(path, *args) -> ConfigDict:
  """Loads a config by its path, as the command line does."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*args)


def name_of(value):
  if isinstance(value, pathlib.Path):
    return value.stem
  return value or "whole"


class Recording(ConfigDict):
  """A config that notes which of its keys are read, by their dotted names.

  Read is what is asked for as an attribute, or by `get`. A look-up in brackets
  does not count: so are choices checked, and a key that is only checked does
  nothing.
  """

  def __init__(self, config, read, prefix=""):
    for name, value in (("_read", read), ("_prefix", prefix)):
      object.__setattr__(self, name, value)
    super().__init__(config)

  def __getattr__(self, name):
    value = super().__getattr__(name)
    if isinstance(value, ConfigDict):
      return Recording(value, self._read, f"{self._prefix}{name}.")
    self._read.add(self._prefix + name)
    return value

  def get(self, key, default=None):
    return getattr(self, key) if key in self else default


def resolved(path, variant=""):
  config, _ = describe.fill(load(path, variant))
  if config.model.name == "resnet50":
    config.model.name = "resnet18"  # traced in half the time, by the same keys
  config, _ = auto.fill(config, 81_920, 1, METHODS[config.method].AUTO)
  return check.resolve(config, 81_920, 1)


def read_in_training(config, monkeypatch):
  """Returns the keys that the network, a step and a clustering read.

  Their shapes are worked out; nothing is compiled.
  """
  read = set()
  recording = Recording(config, read)
  of_view = augment.of_view

  def recorded_of_view(section, view):
    # It may copy the section, which is no reading.
    return Recording(of_view(ConfigDict(section), view), read, "augment.")

  monkeypatch.setattr(augment, "of_view", recorded_of_view)
  method, mesh = METHODS[config.method], mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    program = assemble(recording, method, mesh)
    jax.eval_shape(program.step, program.shapes, program.batch)
    measure.lowered(recording, method, program, mesh)  # traces the clustering
  method.recluster_due(recording, 1)
  if method.sampler is not None:
    clusters = np.arange(config.num_examples) % config.num_clusters
    method.sampler(recording, clusters, 0)
  return read


@pytest.fixture(scope="module")
def read_by_all(tmp_path_factory):
  """Returns what is read to read images and to evaluate, whatever the method.

  And what the loop reads, which is not run here: there the whole name of a key
  has to stand in the source.
  """
  read = set()
  config = resolved(ROOT / "configs" / "odc_digits.py")
  recording, mesh = Recording(config, read), mesh_lib.make_mesh(1)
  images = Given([np.zeros((8, 8, 3), np.uint8)] * 4)
  batches = loader.train_batches(
    images,
    recording.data,
    batch_size=2,
    crops=loader.crops(recording.data),
    seed=0,
  )
  next(batches)
  batches.close()
  with extract.reading(images, recording, mesh) as batches:
    next(iter(batches))
  path = tmp_path_factory.mktemp("bad") / "bad_images.txt"
  bad = BadImages(path, "train", 200, recording.data)
  bad.add([BadImage(0, "0.png", "it is cut short")])

  mesh = mesh_lib.make_mesh()
  rows = jax.device_put(np.ones((64, 2), np.float32), mesh_lib.rows(mesh))
  classes = np.arange(64, dtype=np.int32) // 2 % 2
  seen = extract.Features(rows, rows, rows.astype(np.int8), classes, {})
  subject = of_features(seen, clusters=classes)._replace(config=recording)
  with pytest.MonkeyPatch.context() as patch:
    # By which settings they learn is asked here, not what.
    def trainer(_, __, recipe):
      learned = probe.Learned({}, {}, [0.0] * recipe.num_epochs)
      return lambda *given: given[-1](learned) or learned

    scores = [probe.Score(0.0, 0.0)] * 5
    patch.setattr(probe, "trainer", trainer)
    patch.setattr(probe, "scorer", lambda *_: lambda *_: scores)
    for module, name in (
      (linear, "_last"),
      (linear, "_stages"),
      (semi, "classifier"),
    ):
      patch.setattr(module, name, lambda *_: (None, {}, {}))
    with jax.set_mesh(mesh):
      for name in ("knn", "reverse", "linear_sgd", "linear_stages", "semi"):
        assert dict(EVALS[name](subject))

  package = "".join(p.read_text() for p in (ROOT / "odc_jax").rglob("*.py"))
  return read | {key for key in LOOP if re.search(rf"config\.{key}\b", package)}


# Read by the loop alone.
LOOP = (
  "method",
  "num_epochs",
  "log_every",
  "checkpoint_every_epochs",
  "keep_checkpoints",
  "on_nan",
  "data.resident",
  "data.source",
  "data.split",
  "eval.evaluators",
  "eval.every_epochs",
  "eval.split",
  "model.weights",
)


# What may be read and come to nothing: a sampling where the method has an order
# of its own, groups of a mean without weights, a rate that is multiplied by 1,
# and how images are cut and kept where a frozen backbone sees them once.
IN_VAIN = {
  "data.sampling",
  "model.group_size",
  "optimizer.decay_epochs",
  "data.crop_scale",
  "data.crop_ratio",
  "data.crop_interpolation",
  "data.resident",
  # Of a schedule and of crops that an evaluator does not have; the others do.
  *(
    f"eval.{section}.{key}"
    for section in ("linear_sgd", "linear_stages")
    for key in ("decay_epochs", "decay_rate", "crop_scale", "crop_ratio")
  ),
}


def parameters():
  """Yields every experiment; by default those on digits are looked into."""
  for path in PATHS:
    for variant in ("", "quick", *VARIANTS.get(path.stem, ())):
      # What quick experiments change is read by the long ones too.
      marks = pytest.mark.release if variant == "quick" else pytest.mark.slow
      if path.stem.endswith("_digits") and not variant:
        marks = ()
      yield pytest.param(
        path,
        variant,
        marks=marks,
        id=f"{path.stem}:{variant}".rstrip(":"),
      )


@pytest.mark.parametrize(("path", "variant"), list(parameters()))
def test_every_key_is_read_or_known_to_do_nothing(
  path, variant, read_by_all, monkeypatch
):
  config = resolved(path, variant)
  values = {
    name: value
    for name, value in options.flat(config).items()
    # Keyword arguments of the network, which refuses those that it lacks.
    if not name.startswith("model.settings.")
  }
  read = read_by_all | read_in_training(config, monkeypatch)
  does_nothing = options.idle(values, METHODS[config.method]).keys()
  read -= does_nothing & IN_VAIN
  assert values.keys() - read == values.keys() & does_nothing


@pytest.mark.parametrize(("path", "variant"), EXPERIMENTS, ids=name_of)
def test_no_key_is_missing_or_unknown(path, variant):
  config = load(path, variant)
  options.check(config, METHODS[config.method])


# What experiments of a method may differ in so that some keys are another's.
CHOICES = {"model.neck", "model.train", "data.views", "data.small_views"}


@pytest.mark.parametrize("method", METHODS)
def test_configs_of_a_method_hold_the_same_keys(method):
  """A script that overrides a key can do so for all of its experiments.

  Except for what belongs to a choice that one of them makes, and another not.
  """
  held, free = [], {*CHOICES}
  for path, variant in EXPERIMENTS:
    if path.stem.rpartition("_")[0] == method:
      values = {
        key: value
        for key, value in options.flat(load(path, variant)).items()
        if not key.startswith("model.settings.")  # the network's own
      }
      assert values["method"] == method
      held.append({k for k in values if not k.startswith("model.settings.")})
      free |= {
        key
        for key, reasons in options.idle(values, METHODS[method]).items()
        if CHOICES & {*reasons}
      }
  for keys in held:
    assert keys - free == held[0] - free


@pytest.mark.parametrize(("path", "variant"), EXPERIMENTS, ids=name_of)
def test_no_network_has_sizes_of_parts_that_it_lacks(path, variant):
  """What else is switched off can be switched on from the command line."""
  config = load(path, variant)
  values = options.flat(config)
  does_nothing = options.idle(values, METHODS[config.method])
  assert not [
    key
    for key, reasons in does_nothing.items()
    if key in values
    and "model.neck" in reasons
    # Which a command line without weights switches on.
    and values["model.neck"] != "auto"
  ]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_experiments(method):
  assert {"imagenet", "cifar10", "digits"} <= {
    path.stem.removeprefix(f"{method}_") for path in PATHS
  }


@each_path
def test_quick_is_the_same_experiment_made_smaller(path):
  whole, quick = load(path), load(path, "quick")
  assert whole.num_epochs == "auto" or quick.num_epochs < whole.num_epochs
  assert quick.optimizer.num_epochs == quick.num_epochs
  with pytest.raises(UserError, match="quick"):
    load(path, "slow")


@each_path
def test_the_docstring_of_a_config_starts_with_its_command(path):
  text = ast.get_docstring(ast.parse(path.read_text()))
  assert f"python run.py --config=configs/{path.name}" in text


def test_imagenet_has_the_published_hyper_parameters():
  """OpenSelfSup configs/selfsup/odc/r50_v1.py."""
  config = load(ROOT / "configs" / "odc_imagenet.py")
  assert config.num_clusters == 10_000
  assert config.batch_size == 8 * config.model.group_size == 512
  assert config.num_epochs == 440
  assert (config.odc.momentum, config.odc.min_cluster) == (0.5, 20)
  assert (config.odc.centroid_every, config.odc.small_cluster_every) == (10, 1)
  assert config.odc.assign_metric == "dot"
  assert config.optimizer.learning_rate == 0.06
  assert config.optimizer.decay_epochs == (400,)
  assert config.optimizer.decay_rate == 0.4
  assert config.optimizer.weight_decay == 1e-5
  assert config.optimizer.head_momentum == 0
  assert config.data.sampling == "replacement"
