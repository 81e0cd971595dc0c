"""An experiment's data sets, a network's passes over them, and the scores."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from odc_jax import mesh as mesh_lib
from odc_jax.config import Config, kinds
from odc_jax.config import check as config_lib
from odc_jax.data import feed, resident
from odc_jax.data import source as source_lib
from odc_jax.data.bad_images import BadImages
from odc_jax.data.capacity import Choice
from odc_jax.data.features import Features as Given
from odc_jax.distributed import processes
from odc_jax.errors import UserError
from odc_jax.evals import EVALS, OF_IMAGES, OF_SEQUENCES
from odc_jax.evals.inputs import Subject, splits
from odc_jax.passes import extract, frozen
from odc_jax.passes.extract import Features
from odc_jax.training.assign import assigner
from odc_jax.training.programs import Program


class Evaluation:
  """An experiment's data sets, and a network's passes over them.

  Attributes:
    train_data: Where the images of the training set are.
    bad_train: Those of them that cannot be read.
    bad_test: Those of the test set.
    check: Called once a batch; see `Subject`.
  """

  def __init__(
    self,
    config: Config,
    program: Program,
    mesh: Mesh,
    train: source_lib.Source,
    test: source_lib.Source | None,
    bad_path: pathlib.Path,
    check: Callable[[], None] = lambda: None,
  ):
    """Reads no image yet; features from elsewhere it puts onto the devices.

    Args:
      config: A resolved experiment.
      program: Its compiled side.
      mesh: The devices.
      train: The training set.
      test: The test set, if there is one.
      bad_path: The file that names images which cannot be read, in the work
        directory.
      check: Called once a batch; see `Subject`.

    Raises:
      UserError: If an evaluator or `data.on_error` is unknown.
    """
    self._config, self._program, self._mesh = config, program, mesh
    self._train, self._test, self.check = train, test, check
    self._evaluators = evaluators_of(config.eval.evaluators)
    self.train_data: feed.Data = train
    self._test_data: feed.Data | None = test
    self._folder = bad_path.parent
    if isinstance(train, Given):
      self.train_data = frozen.given(train, mesh)
    if isinstance(test, Given):
      self._test_data = frozen.given(test, mesh)
    self._extract = extract.extractor(program.forward, mesh)
    self.bad_train, self.bad_test = (
      BadImages(bad_path, name, size, config.data, processes.is_first())
      for name, size in (("train", len(train)), ("eval", len(test or ())))
    )

  def keep_images(
    self, choice: Choice, advance: Callable[[int], None] = lambda done: None
  ) -> int:
    """Reads the images onto the devices, where all passes then find them.

    Args:
      choice: What becomes of them there.
      advance: Is told how many images have been read.

    Returns:
      How many of them were made smaller.

    Raises:
      StoppedError: If `check` does.
      UserError: Too many images cannot be read.
    """

    def read(source, bad, before):
      def advance_and_check(done):
        self.check()
        advance(before + done)

      images = resident.read(
        source,
        choice,
        self._mesh,
        num_threads=self._config.data.num_threads,
        met=bad.add,
        advance=advance_and_check,
      )
      bad.exchange(processes.gather)
      return images

    self.train_data = images = read(self._train, self.bad_train, 0)
    smaller = images.smaller
    if self._test is not None:
      images = read(self._test, self.bad_test, len(self._train))
      self._test_data = images
      smaller += images.smaller
    return smaller

  @property
  def num_test(self) -> int:
    """How many images the test set has; 0 without one."""
    return 0 if self._test is None else len(self._test)

  def freeze(
    self,
    params: Any,
    batch_stats: Any,
    weights: str,
    folder: pathlib.Path,
    advance: Callable[[int], None] = lambda done: None,
    before: str = "",
  ) -> str:
    """Passes all images through the backbone, which no step will change.

    From then on all passes begin with these features.

    Args:
      params: Parameters of the network.
      batch_stats: Running statistics of the network.
      weights: What tells the backbone's weights from others.
      folder: Where features are kept, those of each data set in a folder.
      advance: Is told how many images have been read.
      before: Name of the folder of a smaller training set, which this one
        begins with; "" if there is none.

    Returns:
      Name of the folder of the training set.

    Raises:
      StoppedError: If `check` does; the pass then goes on where it was.
      UserError: Too many images cannot be read.
    """
    network = jax.device_put(
      (params, batch_stats), mesh_lib.replicated(self._mesh)
    )
    look = frozen.looker(self._program.forward, network, self._mesh)

    def found(source, split, bad, read, before=None):
      def advance_and_check(done):
        self.check()
        advance(read + done)

      name = frozen.digest(source, split, self._config, weights)
      rows = frozen.features(
        source,
        folder / name,
        self._config,
        self._mesh,
        look,
        met=bad.add,
        advance=advance_and_check,
        before=before,
      )
      bad.exchange(processes.gather)
      return rows, name

    split = self._config.data.split
    self.train_data, name = found(
      self._train, split, self.bad_train, 0, folder / before if before else None
    )
    if self._test is not None:
      split, read = self._config.eval.split, len(self._train)
      self._test_data, _ = found(self._test, split, self.bad_test, read)
    return name

  def has_labels(self) -> bool:
    """Returns whether there is anything to evaluate against."""
    labelled = self._train.num_classes or hasattr(self._train, "targets")
    # A table of attributes stands for labels with the one that reads it.
    if "reverse" in self._evaluators:
      labelled = labelled or self._config.eval.get("attributes", "")
    return bool(labelled and self._evaluators)

  def train_features(
    self,
    params: Any,
    batch_stats: Any,
    advance: Callable[[int], None] = lambda done: None,
  ) -> Features:
    """Returns what a network makes of the training set.

    Args:
      params: Parameters of the network.
      batch_stats: Running statistics of the network.
      advance: Is told how many images have been read.

    Raises:
      StoppedError: If `check` does.
      UserError: Too many images cannot be read.
    """
    network = params, batch_stats
    return self._pass(
      network, self._train, self.train_data, self.bad_train, advance
    )

  def subject(
    self,
    params: Any,
    batch_stats: Any,
    train_features: Features,
    clusters: Int[np.ndarray, "n"] | None = None,
    advance: Callable[[int], None] = lambda done: None,
    *,
    method_state: Any = None,
  ) -> Subject:
    """Returns what evaluators are given, after a pass over the test set.

    Args:
      params: Parameters of the network.
      batch_stats: Running statistics of the network.
      train_features: As `train_features` returns them for this network.
      clusters: The run's own, of every image of the training set.
      advance: Is told how many images of the test set have been read.
      method_state: The method's state where there are clusters; read where
        its heads vote.

    Raises:
      StoppedError: If `check` does.
      UserError: Too many images cannot be read.
    """
    test_features = None
    if self._test is not None and self._test_data is not None:
      network = params, batch_stats
      test_features = self._pass(
        network, self._test, self._test_data, self.bad_test, advance
      )
    assign = None
    if clusters is not None:
      assign = assigner(
        self._program,
        self._mesh,
        params,
        method_state,
        train_features,
        clusters,
        self._config.num_clusters,
      )
    train, test = splits(self._train, train_features, self._test, test_features)
    return Subject(
      self._config,
      self._mesh,
      params,
      batch_stats,
      self._program.forward,
      self._program.maps,
      train,
      test,
      clusters,
      self.check,
      assign,
      self._folder,
    )

  def scores(
    self,
    subject: Subject,
    after_each: Callable[[str, dict[str, float]], None] = lambda *found: None,
  ) -> dict[str, float]:
    """Returns what the config's evaluators find.

    Args:
      subject: What they are given.
      after_each: Is told the name of every evaluator, and what it has found.

    Raises:
      StoppedError: If `check` does.
      UserError: As the evaluators.
    """
    scores = {}
    for name, evaluate in self._evaluators.items():
      found = dict(evaluate(subject))
      after_each(name, found)
      scores |= found
    return scores

  def _pass(self, network: tuple[Any, Any], source, data, bad, advance):
    """Returns the features of a data set."""

    def readable(batches):
      for batch in batches:
        self.check()
        advance(int(batch["index"][0]))
        bad.add(batch.pop("bad"))
        yield batch

    if isinstance(data, resident.Rows):
      return self._behind_backbone(network, data)
    with extract.reading(data, self._config, self._mesh) as batches:
      found = self._extract(*network, readable(batches), len(source))
    bad.exchange(processes.gather)
    if not _all_finite(found.features):
      raise UserError(
        "the network's features are not finite: it has diverged, or its "
        "weights are damaged; go back to an earlier checkpoint or file"
      )
    return found

  def _behind_backbone(self, network, rows: resident.Rows) -> Features:
    """Returns what the network makes of features of its frozen backbone."""
    return Features(
      rows.features,
      self._program.embed(*network, rows.features),
      rows.signatures,
      rows.labels,
      dict(enumerate(rows.keys)) if processes.is_first() else {},
    )


@jax.jit
def _all_finite(features):
  return mesh_lib.replicate(jnp.all(jnp.isfinite(features)))


def evaluators_of(names: Iterable[str]) -> dict[str, Callable[..., Any]]:
  """Returns the functions that are named.

  Raises:
    UserError: There is no such evaluator.
  """
  return {name: config_lib.choose(EVALS, name, "evaluator") for name in names}


def check_evaluators(config: Config) -> None:
  """Raises a UserError for an evaluator that cannot be, with these data.

  Args:
    config: An experiment.
  """
  names = evaluators_of(config.eval.evaluators)
  has_sequences = config.data.source.startswith(kinds.SEQUENCES)
  wanting = [name for name in names if name in OF_SEQUENCES]
  if wanting and not has_sequences:
    raise UserError(
      f"{', '.join(wanting)}: the data set has no sequences; leave it out of "
      "--config.eval.evaluators or --evals, or give data.source=sequences:PATH"
    )
  if not config_lib.has_features(config):
    return
  if wanting := [name for name in names if name in OF_IMAGES]:
    possible = [name for name in EVALS if name not in OF_IMAGES]
    raise UserError(
      f"{', '.join(wanting)}: needs images and a network, and the data set is "
      f"features alone; choose among {', '.join(possible)} with "
      "--config.eval.evaluators or --evals"
    )
