"""A run that grows with its collection of images: `--on_change=extend`.

Images that are there already keep their numbers and clusters; new ones follow
them. List, features, memories and config of the larger collection are written
beside those of the smaller one, and one rename puts them in their place
(`files.finish_replacing`): a run that is killed has all of the old or all of
the new. From there on it goes on like any other.
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pyarrow.parquet as pq
from jax.sharding import Mesh
from ml_collections import ConfigDict

from odc_jax import files
from odc_jax.config import Config, check, store
from odc_jax.data import folder, growth, sources
from odc_jax.data.growth import Growth
from odc_jax.data.source import Source
from odc_jax.distributed import processes
from odc_jax.errors import UserError
from odc_jax.methods.method import Method
from odc_jax.results import annotations
from odc_jax.training import checkpoint
from odc_jax.training.programs import Program, assemble
from odc_jax.training.state import TrainState

# The name of the folder with the features of the run's images.
FEATURES = "frozen.json"
# Images that cannot be read, until the larger run is in its place.
_BAD = "bad_images.new.txt"


class Plan(NamedTuple):
  """What is to be done about the images of a run.

  Attributes:
    train: The training set, numbered as the run numbers it.
    config: The experiment, with the epochs of the run.
    growth: How the run has grown, that which is due included; None: not at all.
    before: How it had grown when this was planned; None: not at all.
    due: Whether a growth is due.
    trains: Whether it asks for training.
  """

  train: Source
  config: Config
  growth: Growth | None = None
  before: Growth | None = None
  due: bool = False
  trains: bool = True

  @property
  def num_first(self) -> int:
    """Images when the run began, from which its sizes follow."""
    return len(self.train) if self.growth is None else self.growth.sizes[0]

  @property
  def missing(self) -> frozenset[str]:
    """Keys of the images whose files are not there."""
    return getattr(self.train, "missing", frozenset())

  @property
  def num_before(self) -> int:
    """Images before the growth that is due."""
    assert self.growth is not None
    return self.growth.sizes[-2]


def plan(
  config: Config, workdir: pathlib.Path, train: Source, on_change: str | None
) -> Plan:
  """Returns what is to be done where the images may have changed.

  Args:
    config: The experiment, as the files in `configs/` give it.
    workdir: The work directory; settled.
    train: The images as they are now.
    on_change: "extend", or None to refuse a change.

  Raises:
    UserError: They have changed and may not; or a run like this cannot grow.
  """
  grown = growth.read(workdir) if checkpoint.any_in(workdir) else None
  if on_change is None or not checkpoint.any_in(workdir):
    if grown is not None:
      train = sources.as_in_list(train, workdir, grown)
    return Plan(train, config, grown, grown)
  config, trains = _with_own_epochs(config, workdir)
  known = (workdir / folder.LIST).exists()
  if not isinstance(train, folder.Folder) or not known:
    return Plan(train, config, grown, grown)  # of images that do not change
  now = train.keys
  before = grown or Growth((len(folder.read_list(workdir / folder.LIST)),), ())
  train = sources.as_in_list(train, workdir, before)
  kept = (train.keys or ())[: before.sizes[-1]]
  change = growth.change(kept, before.missing, now)
  if not any(change):
    return Plan(train, config, grown, grown)
  processes.say(f"the folder of images has changed: {change}")
  after = before._replace(
    sizes=(*before.sizes, len(train)),
    missing=before.missing.union(change.gone).difference(change.back),
  )
  return Plan(train, config, after, grown, True, trains)


def _with_own_epochs(config: Config, workdir) -> tuple[Config, bool]:
  """Takes num_epochs=0 for "do not train after this growth".

  Returns:
    The config with the epochs that the run was started with, and whether it
    may train.
  """
  if str(config.num_epochs) not in ("0", "0.0"):
    return config, True
  epochs = store.read(workdir).num_epochs
  config = ConfigDict(config).copy_and_resolve_references()
  as_it_was = type(config.num_epochs)
  with config.unlocked(), config.ignore_type():
    config.num_epochs = as_it_was(epochs) if as_it_was is str else epochs
    if "num_epochs" in config.get("optimizer", {}):
      config.optimizer.num_epochs = config.num_epochs
  return config, False


def sized(planned: Plan, method: Method) -> Plan:
  """Returns a plan with the epochs that a growth asks for.

  So many that the run has seen as many images in all as one that had begun with
  all of them: num_epochs * new / n, rounded up.

  Args:
    planned: What is to be done, with all sizes of the experiment filled in.
    method: Its method.

  Raises:
    UserError: A run like this cannot grow.
  """
  config = planned.config
  if not planned.due or planned.growth is None:
    return planned
  if not check.is_frozen(config):
    raise UserError(
      "--on_change=extend is for runs with model.train=head, which keep the "
      "features of their images: restore the folder, or start in a new "
      "--workdir"
    )
  if method.grow is None:
    raise UserError(
      f"a run of {config.method} cannot grow: give new images clusters with "
      "--mode=assign, or start in a new --workdir"
    )
  total = planned.growth.sizes[-1]
  new = total - planned.num_before
  epochs = math.ceil(config.num_epochs * new / total) if planned.trains else 0
  return planned._replace(
    growth=planned.growth._replace(epochs=(*planned.growth.epochs, epochs))
  )


def num_steps(config: Config, grown: Growth | None) -> int:
  """Returns the steps of a run, those that its growth asks for included."""
  steps_per_epoch = check.steps_per_epoch(config)
  if grown is None:
    return int(config.num_epochs * steps_per_epoch)
  epochs = math.ceil(config.num_epochs) + sum(grown.epochs)
  return epochs * steps_per_epoch


def of_before(planned: Plan) -> Config:
  """Returns the config that the run has until the growth that is due."""
  if not planned.due:
    return planned.config
  before: Config = ConfigDict(planned.config)
  with before.unlocked():
    before.num_examples = planned.num_before
  return before


def extend(
  planned: Plan,
  method: Method,
  program: Program,
  mesh: Mesh,
  workdir: pathlib.Path,
  passes: Callable[[pathlib.Path], Any],
  freeze: Callable[..., str],
) -> None:
  """Does what a plan says: the work directory is that of a larger run.

  All processes have to call.

  Args:
    planned: With a growth that is due.
    method: Of the experiment.
    program: Its compiled side.
    mesh: The devices.
    workdir: The work directory.
    passes: File of the images that cannot be read -> `Evaluation` of the larger
      training set.
    freeze: (evaluation, state, name of the features' folder before) -> name of
      the one after; see `Evaluation.freeze`.

  Raises:
    UserError: The checkpoint or a file of the run is damaged, or the disk full.
  """
  grown, before = planned.growth, of_before(planned)
  assert grown is not None
  assert method.grow is not None  # else it was refused
  state = _last_state(before, method, mesh, workdir)
  known = features_of(workdir)
  if not known and grown.missing:
    raise UserError(
      f"{workdir} does not say where the features of its images are, and "
      f"{len(grown.missing):,} images are gone: restore them, or start in a "
      "new --workdir"
    )
  if processes.is_first():
    (workdir / _BAD).write_bytes(_bytes_of(workdir / "bad_images.txt"))
  processes.gather(None)  # until it is there
  evaluation = passes(workdir / _BAD)
  name = freeze(evaluation, state, known)
  found = evaluation.train_features(state.params, state.batch_stats)
  state = _at_epoch(state, before, check.steps_per_epoch(planned.config))
  state = state._replace(
    method=method.grow(
      planned.config, state.method, found.embeddings, planned.num_before
    )
  )
  state = jax.device_put(state, program.shardings)
  try:
    _write(workdir, planned, grown, state, name)
  except OSError as error:
    raise UserError(
      f"cannot write to {workdir}: {error}; make room, and the same command "
      "goes on from what was before"
    ) from error
  processes.say(
    f"the run has grown from {planned.num_before:,} to {len(planned.train):,} "
    f"images, {len(grown.missing):,} of which are no longer there; "
    f"{grown.epochs[-1]} further epochs"
  )


def _last_state(before: Config, method, mesh, workdir) -> TrainState:
  """Returns the state of the smaller run."""
  old = assemble(before, method, mesh)
  checkpoints = checkpoint.Checkpoints(workdir, before.keep_checkpoints)
  try:
    state = checkpoints.restore(old.shapes, old.shardings)
  finally:
    checkpoints.close()
  assert state is not None  # there is a checkpoint, or nothing would be due
  return state


def _at_epoch(
  state: TrainState, before: Config, steps_per_epoch: int
) -> TrainState:
  """Returns the state at the same epoch, counted in longer epochs.

  An epoch that was not at its end counts as done.
  """
  step = int(state.step)
  epoch = math.ceil(step / check.steps_per_epoch(before))
  more = epoch * steps_per_epoch - step

  def later(leaf):
    # What the optimizer counts.
    whole = jnp.issubdtype(leaf.dtype, jnp.integer) and not leaf.ndim
    return leaf + more if whole else leaf

  return state._replace(
    step=state.step + more, opt_state=jax.tree.map(later, state.opt_state)
  )


def _write(
  workdir: pathlib.Path,
  planned: Plan,
  grown: Growth,
  state: TrainState,
  features: str,
) -> None:
  """Puts the larger run in the place of the smaller one."""
  config, step = planned.config, int(state.step)
  staging = workdir / "none"
  if processes.is_first():
    staging = files.begin_replacing(workdir)
    table = _table_digest(workdir)
    if table:
      grown = grown._replace(tables=(*grown.tables, table))
    folder.write_list(staging / folder.LIST, planned.train.keys or ())
    files.write_json(staging / growth.FILE, growth.to_json(grown), indent=2)
    files.write_json(staging / FEATURES, {"folder": features})
    store.write(config, staging, False)
    _log_until(workdir, staging, step)
    bad = (workdir / _BAD).read_bytes()
    if bad:
      files.write_whole(staging / "bad_images.txt", bad)
    (workdir / _BAD).unlink()
  staging = pathlib.Path(processes.gather(str(staging))[0])
  checkpoints = checkpoint.Checkpoints(staging, config.keep_checkpoints)
  try:
    checkpoints.save(state, step)
    checkpoints.wait()
  finally:
    checkpoints.close()
  processes.gather(None)  # until all have written
  if processes.is_first():
    files.finish_replacing(workdir)
  processes.gather(None)


def _bytes_of(path: pathlib.Path) -> bytes:
  """Returns what a file holds; nothing if it is not there."""
  return path.read_bytes() if path.exists() else b""


def _log_until(workdir, staging, step: int) -> None:
  """Keeps of the log what the larger run will not write again."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return
  text = path.read_text()
  lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
  kept = [line for line in lines if json.loads(line)["step"] < step]
  files.write_whole(staging / path.name, "".join(kept).encode())


def _table_digest(workdir) -> str:
  """Returns what tells the last clusters from others; "" if there are none."""
  path = workdir / "clusters.parquet"
  if not path.exists():
    return ""
  table = pq.read_table(path, columns=["index", "cluster"])
  return annotations.digest(
    table["index"].to_numpy(), table["cluster"].to_numpy()
  )


def features_of(workdir: pathlib.Path) -> str:
  """Returns the name of the folder with a run's features; "": unknown."""
  try:
    return json.loads((workdir / FEATURES).read_text())["folder"]
  except (OSError, ValueError, LookupError):
    return ""


def note_features(workdir: pathlib.Path, name: str) -> None:
  """Writes down which folder has the features of a run's images."""
  if processes.is_first() and features_of(workdir) != name:
    files.write_json(workdir / FEATURES, {"folder": name})
