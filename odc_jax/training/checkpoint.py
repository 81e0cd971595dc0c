"""The only file that knows Orbax: the whole TrainState, onto any mesh."""

import contextlib
import gc
import hashlib
import json
import pathlib
import shutil
import sys
import threading
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from odc_jax.distributed import processes
from odc_jax.errors import UserError
from odc_jax.files import write_whole

# Digests of a checkpoint's files, in its folder, written once it is complete.
_SEAL = "sha256.json"


def any_in(workdir: pathlib.Path) -> bool:
  """Returns whether a work directory holds a run that can go on."""
  return bool(_steps(workdir))


def _steps(workdir):
  """Returns the steps whose checkpoints are complete, in any order."""
  # Orbax gives a folder its name when all is in it.
  return [
    int(path.name)
    for path in workdir.glob("checkpoints/[0-9]*")
    if path.name.isdecimal()
  ]


def _stored(state):
  """Returns the parts of a state that a checkpoint holds: name -> part.

  A part that this method has not, None, leaves no trace: so checkpoints that
  were written before there was such a part are read as ever.
  """
  return {
    name: part for name, part in state._asdict().items() if part is not None
  }


def _target(shapes, shardings):
  """Returns what Orbax is to restore, and where to."""
  # Shapes with shardings, not arrays: a numpy target of another shape would
  # be filled without a word.
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    shapes,
    shardings,
  )


def restore_parts(
  workdir: pathlib.Path,
  shapes: Any,
  shardings: Any,
  parts: Sequence[str] = ("params", "batch_stats"),
) -> tuple[Any, ...]:
  """Returns parts of the last checkpoint that can be read.

  Reads nothing else of it, changes nothing, and may be called while the run
  goes on.

  Args:
    workdir: The work directory.
    shapes: The state as `jax.eval_shape` gives it.
    shardings: Where every leaf of it is to lie.
    parts: Fields of the state; the weights are the two by default.

  Returns:
    Those parts; None for one that this method has not.

  Raises:
    UserError: If there is no checkpoint that can be read.
  """
  folder = (workdir / "checkpoints").absolute()
  target = _target(
    {part: found for part, found in _stored(shapes).items() if part in parts},
    {
      part: found for part, found in _stored(shardings).items() if part in parts
    },
  )
  problem = "there is none; train first, with the same command without --mode"
  for step in sorted(_steps(workdir), reverse=True):
    problem = _problem(folder / str(step))
    if problem is None:
      try:
        found = ocp.PyTreeCheckpointer().restore(
          folder / str(step) / "state",
          args=ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
          ),
        )
        return tuple(found.get(part) for part in parts)
      except Exception as error:  # Orbax has a different one for each case.
        problem = str(error).splitlines()[0]
  raise UserError(f"no checkpoint in {folder} can be read: {problem}")


class Checkpoints:
  """The numbered checkpoints of a work directory.

  Written in the background. A checkpoint that was cut short while it was being
  written is not listed; one whose files have changed since is not restored.
  """

  def __init__(self, workdir: pathlib.Path, keep: int):
    """Opens `workdir/checkpoints`, of which the last `keep` are kept."""
    self.folder = (workdir / "checkpoints").absolute()
    if processes.is_first() and self.folder.exists():
      # Orbax would do so in a thread that it waits for only when it saves.
      for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished)
    self._manager = ocp.CheckpointManager(
      self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep)
    )
    self._seals = processes.is_first()
    self._sealing: threading.Thread | None = None
    self._failure: str | None = None

  def steps(self) -> list[int]:
    """Returns the steps that there is a checkpoint of, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, state: Any, step: int) -> None:
    """Starts writing `state`; returns before it is on disk."""
    self.wait()
    self._manager.save(
      step, args=ocp.args.Composite(state=ocp.args.StandardSave(_stored(state)))
    )
    self._sealing = threading.Thread(target=self._seal)
    self._sealing.start()

  def restore(self, shapes: Any, shardings: Any) -> Any | None:
    """Returns the last state that can be read, or None if there is none.

    Args:
      shapes: The state as `jax.eval_shape` gives it.
      shardings: Where every leaf is to lie.

    Raises:
      UserError: If there are checkpoints, but none can be read.
    """
    target = _target(_stored(shapes), _stored(shardings))
    damaged = []
    for step in reversed(self.steps()):
      # One process looks at the files, so that all take the same checkpoint.
      problem = processes.gather(
        _problem(self.folder / str(step)) if processes.is_first() else None
      )[0]
      if problem is None:
        try:
          restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(target)),
          )
        except Exception as error:  # Orbax has a different one for each case.
          problem = str(error).splitlines()[0]
        problem = next(filter(None, processes.gather(problem)), None)
      if problem is not None:
        damaged.append(step)
        if processes.is_first():
          print(
            f"checkpoint {self.folder / str(step)} is damaged ({problem}); "
            "trying the one before",
            file=sys.stderr,
          )
        continue
      for bad in damaged:
        # Otherwise the run could not save again when it gets there.
        self._manager.delete(bad)
      return shapes._replace(**restored["state"])
    if damaged:
      raise UserError(
        f"no checkpoint in {self.folder} can be read (tried "
        f"{', '.join(map(str, damaged))}); put a good copy back, or choose "
        "another --workdir to start afresh"
      )
    return None

  def wait(self) -> None:
    """Returns when everything is on disk.

    Raises:
      UserError: If the last checkpoint could not be written.
    """
    if self._sealing is not None:
      self._sealing.join()
      self._sealing = None
    if self._failure is not None:
      failure, self._failure = self._failure, None
      raise UserError(
        f"cannot write a checkpoint to {self.folder}: {failure}; make room, "
        "and the same command goes on from the checkpoint before"
      )

  def close(self) -> None:
    """Waits, and lets go of Orbax's threads."""
    try:
      self.wait()
    finally:
      # It raises again what `wait` has reported.
      with contextlib.suppress(Exception):
        self._manager.close()
      # Unfinished work of Orbax prints tracebacks when it is freed: do it now,
      # before the one message that tells a user what to do.
      del self._manager
      gc.collect()

  def _seal(self) -> None:
    """Waits for Orbax, then writes the digests that are missing."""
    try:
      self._manager.wait_until_finished()
      if not self._seals:
        return
      for folder in self.folder.iterdir():
        if folder.name.isdecimal() and not (folder / _SEAL).exists():
          write_whole(folder / _SEAL, json.dumps(_digests(folder)).encode())
    except Exception as error:  # a full disk, in whatever words Orbax has
      # Raised where the run waits. The words alone: the exception would keep
      # all that Orbax left unfinished alive.
      self._failure = str(error).splitlines()[0]


def _problem(folder: pathlib.Path) -> str | None:
  """Returns what is wrong with the files of a checkpoint, or None.

  Orbax notices a file that is cut short, but not every flipped bit.
  """
  if not (folder / _SEAL).exists():
    return None  # killed between the last file and the seal
  expected = json.loads((folder / _SEAL).read_text("utf-8"))
  found = _digests(folder)
  for name, digest in expected.items():
    if name not in found:
      return f"{name} is missing"
    if found[name] != digest:
      return f"{name} has changed since it was written"
  return None


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """Returns relative path -> SHA-256 of the files below a folder."""
  digests = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file() and not path.name.startswith(_SEAL):
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      digests[path.relative_to(folder).as_posix()] = digest
  return digests
