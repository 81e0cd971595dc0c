"""Tries a network on labelled images, during a run or after it."""

import contextlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from odc_jax import files
from odc_jax import mesh as mesh_lib
from odc_jax.config import Config, auto, options, store
from odc_jax.config import check as config_lib
from odc_jax.data import features, folder, growth, source, sources
from odc_jax.data.features import Features
from odc_jax.distributed import processes
from odc_jax.errors import UserError
from odc_jax.evals import EVALS
from odc_jax.evals.evaluation import (
  Evaluation,
  check_evaluators,
  evaluators_of,
)
from odc_jax.files import write_json
from odc_jax.interop import describe
from odc_jax.interop import load as interop
from odc_jax.logs import progress, writer
from odc_jax.methods import METHODS
from odc_jax.training import checkpoint
from odc_jax.training.programs import Program, assemble

# Evaluators that need clusters of the images.
_OF_CLUSTERS = ("clustering", "assignment", "reverse")
# Writing two small files takes no longer.
_WAIT_SECONDS = 60.0


def run(
  workdir: pathlib.Path, config: Config | None, names: Iterable[str] | None
) -> dict[str, float]:
  """Evaluates the last checkpoint of a run, or a network from elsewhere.

  Args:
    workdir: The work directory. Without a checkpoint in it, the network is
      that of the config's `model.weights`.
    config: What says which data (`data`) and how (`eval`); None: the run's own
      config does. The network is the run's in any case.
    names: Of the evaluators; None: those of the config.

  Returns:
    Name -> value, which are also in `evaluation.json` and `summary.json`.

  Raises:
    UserError: For whatever the user can mend.
  """
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh):
    return _run(workdir, config, names, mesh)


class _Task(NamedTuple):
  """An evaluation that was asked for.

  Attributes:
    config: Whose `data` and `eval` say how.
    of_run: The config of the run; None for a network from elsewhere.
    train: The training set.
    test: The test set, if there is one.
    own: Whether the run has clusters of this very training set.
  """

  config: Config
  of_run: Config | None
  train: source.Source
  test: source.Source | None
  own: bool


def _run(workdir, given, names, mesh):
  task = _task(workdir, given, names, mesh.size)
  config, train, test = task.config, task.train, task.test
  processes.check_equal(
    {
      **store.identity(json.loads(config.to_json())),
      "images": len(train),
      f"a checkpoint in {workdir}:": task.of_run is not None,
    }
  )
  method = config_lib.choose(METHODS, config.method, "method")
  program = assemble(config, method, mesh)

  bad_path = workdir / "evaluation.bad_images.txt"
  _check_writable(workdir, bad_path)
  evaluation = Evaluation(config, program, mesh, train, test, bad_path)
  if not evaluation.has_labels():
    raise UserError(
      f"{config.data.source} has no labels to evaluate with; give a data set "
      "that has, such as --config.data.source=folder:PATH with a folder a class"
    )
  network = _network(workdir, task, method, program)
  weights, clusters = (network.params, network.batch_stats), network.clusters

  total = len(train) + len(test or ())
  with progress.bar(
    "reading the images", total, processes.is_first()
  ) as advance:
    found = evaluation.train_features(*weights, advance)
    subject = evaluation.subject(
      *weights,
      found,
      clusters,
      lambda done: advance(len(train) + done),
      method_state=network.method,
    )

  def keep(name, scores):
    if scores and processes.is_first():
      about = {"step": network.step, **_protocol(config, name)}
      # In the summary stands what was found as the run itself would find it.
      about["of_run"] = clusters is not None and (
        _protocol(config, name) == _protocol(task.of_run, name)
      )
      _write(workdir, about, scores)
    elif not scores:
      lacking = "labels to compare with, or too few images of a label"
      if name in _OF_CLUSTERS and clusters is None:
        lacking = "clusters of these images"
      processes.say(f"{name}: no {lacking}; left out")

  scores = evaluation.scores(subject, keep)
  if not scores:
    raise UserError(
      f"{', '.join(config.eval.evaluators)}: nothing to compare with in "
      f"{config.data.source}; choose other evaluators with --evals"
    )
  for bad in (evaluation.bad_train, evaluation.bad_test):
    if len(bad):
      processes.say(f"{bad}, named in {bad_path}")
  return scores


def _check_writable(workdir, bad_path):
  """Makes the work directory, without a list of an earlier evaluation.

  Before anything is computed: it would be in vain.

  Raises:
    UserError: In all processes, where it cannot be written to.
  """
  problem = None
  if processes.is_first():
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      bad_path.write_bytes(b"")
      bad_path.unlink()
    except OSError as error:
      problem = str(error)
  problem = processes.gather(problem)[0]
  if problem is not None:
    raise UserError(
      f"the work directory {workdir} cannot be used: {problem}; choose another "
      "--workdir"
    )


def _task(workdir, given: Config | None, names, num_devices) -> _Task:
  """Puts together what was asked for."""
  evaluators_of(names or ())  # a mistake shows before anything is opened
  if checkpoint.any_in(workdir):
    of_run = store.read(workdir)
  elif given is None:
    raise UserError(
      f"{workdir} holds no checkpoint; train first, or give --config and the "
      "weights of a network as --config.model.weights"
    )
  else:
    of_run = None
  if given is not None:
    options.check(given, config_lib.choose(METHODS, given.method, "method"))
  asked: Config = of_run if given is None else given
  config_lib.choose(METHODS, asked.method, "method")
  train = sources.of(asked.data)
  own = of_run is not None and _has_images_of(of_run, workdir, train, asked)
  grown = growth.read(workdir) if own else None
  if grown is not None:
    train = sources.as_in_list(train, workdir, grown)
  test = None
  if asked.eval.split:
    test = sources.of(asked.data, asked.eval.split, train)
  if of_run is None:
    config = _without_run(asked, len(train), num_devices)
  else:
    if given is not None:
      asked = _filled(asked, len(train), num_devices)
    config = _on_other_data(of_run, asked)
  if names is not None:
    with config.unlocked():
      config.eval.evaluators = tuple(names)
  if not config.eval.evaluators:
    raise UserError(f"no evaluator was named; choose --evals={','.join(EVALS)}")
  check_evaluators(config)
  config_lib.check_values(config)
  return _Task(config, of_run, train, test, own)


class _Network(NamedTuple):
  """What is evaluated.

  Attributes:
    step: Steps taken; 0 for a network from elsewhere.
    params: Parameters.
    batch_stats: Running statistics.
    clusters: Of the task's images, if it has any.
    method: The method's state; None for a network from elsewhere.
  """

  step: int
  params: Any
  batch_stats: Any
  clusters: np.ndarray | None = None
  method: Any = None


def _network(workdir, task: _Task, method, program: Program) -> _Network:
  if task.of_run is None:
    state = program.init()
    params, batch_stats = interop.initialize(
      task.config, state.params, state.batch_stats, program.shardings
    )
    return _Network(0, params, batch_stats)
  parts = ("step", *program.evaluated_parts[:2], "method")
  parts += program.evaluated_parts[2:]
  found = checkpoint.restore_parts(
    workdir, program.shapes, program.shardings, parts
  )
  state = program.shapes._replace(**dict(zip(parts, found, strict=True)))
  step, method_state = state.step, state.method
  params, batch_stats = program.evaluated(state)
  processes.say(f"evaluating {workdir} at step {int(step)}")
  clusters = None
  if task.own:
    clusters = processes.to_host(method.clusters(method_state))
    clusters = clusters[: len(task.train)]
  return _Network(int(step), params, batch_stats, clusters, method_state)


def _on_other_data(of_run: Config, given: Config) -> Config:
  """Returns the config of a run with another's data and evaluators."""
  theirs, ours = (
    # Flat: equal settings of a network may be of two types.
    {"method": config.method} | options.flat(config.model, "model.")
    for config in (of_run, given)
  )
  theirs["model.weights"] = given.model.weights  # where it began is no matter
  differing = [
    f"{name}={asked} is not the run's, {had}"
    for name, had, asked in options.differences(theirs, ours)
  ]
  if differing:
    raise UserError(
      f"{'; '.join(differing)}: give the run's own config, or none at all"
    )
  config: Config = ConfigDict(of_run).copy_and_resolve_references()
  with config.unlocked():
    config.data, config.eval = given.data, given.eval
  return config


def _without_run(given: Config, num_examples, num_devices) -> Config:
  """Returns a config for a network that was not trained here."""
  if not given.model.weights and not config_lib.has_features(given):
    raise UserError(
      "no checkpoint in the work directory, and no weights: train first, or "
      "give --config.model.weights=FILE"
    )
  config = _filled(given, num_examples, num_devices)
  with config.unlocked():
    # Sizes that only training reads need not fit the data.
    config.num_clusters = min(config.num_clusters, num_examples)
    if "extra_clusters" in config:
      config.extra_clusters = ()
    config.batch_size = num_devices
    if "group_size" in config.model:
      config.model.group_size = 0
  return config_lib.resolve(config, num_examples, num_devices)


def _filled(given: Config, num_examples, num_devices) -> Config:
  """Returns a config with a value for every "auto"."""
  described, _ = describe.fill(given)
  of_method = METHODS[given.method].AUTO
  return auto.fill(described, num_examples, num_devices, of_method)[0]


def _has_images_of(of_run: Config, workdir, train, config: Config) -> bool:
  """Returns whether the training set is the one that a run has clusters of.

  Raises:
    UserError: It is where that was, but its images are others.
  """
  same_place = all(
    config.data[key] == of_run.data[key] for key in ("source", "split")
  )
  if isinstance(train, Features):
    # The same features may have got pictures since.
    same = features.is_recorded(train, workdir)
    if same_place and not same:
      raise UserError(
        f"{config.data.source} has changed since {workdir} was trained on it; "
        "put the old file back, or evaluate on a copy with another name"
      )
    return same
  path = workdir / "images.txt"
  if train.keys is None or not path.exists():
    return same_place and len(train) == of_run.num_examples
  try:
    folder.check_list(path, train.keys, growth.read(workdir))
  except UserError:
    if same_place:
      raise
    return False
  return True


def _protocol(config: Config, evaluator: str) -> dict[str, Any]:
  """Returns what the numbers of an evaluator depend on but for the network.

  As JSON has it. What their names say of it is here too.
  """
  values = json.loads(config.to_json())
  settings = values["eval"].get(evaluator, {})
  protocol = {
    "evaluator": evaluator,
    "settings": settings,
    "source": values["data"]["source"],
    "split": values["data"]["split"],
    "test_split": values["eval"]["split"],
    **{
      key: settings.get(key) or values["data"][key]
      for key in ("image_size", "eval_resize")
    },
    "interpolation": values["data"].get("interpolation", "bilinear"),
    "weights": values["model"]["weights"],
    "seed": values["seed"],
  }
  if evaluator == "reverse":
    protocol["attributes"] = values["eval"].get("attributes", "")
  if "network" in values["eval"]:  # where the method has two
    protocol["network"] = values["eval"]["network"]
  # How the network is shown an image.
  shown = {key: values["augment"][key] for key in ("mean", "std", "sobel")}
  return protocol | shown


def _write(workdir, about, scores):
  """Adds numbers to those that were found of the same checkpoint.

  In the place of those of the same protocol; of which earlier versions said
  less, so that theirs stay beside.
  """
  # Of two evaluations at once none may lose what the other one writes.
  with files.alone(workdir / ".evaluation.lock", timeout=_WAIT_SECONDS):
    _add(workdir, about, scores)


def _add(workdir, about, scores):
  path = workdir / writer.EVALUATION
  known = []
  with contextlib.suppress(OSError, ValueError):
    known = json.loads(path.read_text("utf-8"))
  kept = [
    other
    for other in known
    if other["step"] == about["step"]
    and {**other, "scores": {}} != {**about, "scores": {}}
  ]
  write_json(path, [*kept, {**about, "scores": scores}], indent=2)
  # A run that has not ended writes its own summary at its end.
  path = workdir / "summary.json"
  if path.exists():
    known = json.loads(path.read_text("utf-8"))
    verdict = {k: v for k, v in known.items() if k.startswith("verdict")}
    write_json(path, verdict | writer.last_values(workdir), indent=2)
