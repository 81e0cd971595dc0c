"""The only file that knows Orbax: the whole TrainState, onto any mesh."""

import pathlib
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp

from odc_jax.errors import UserError


class Checkpoints:
  """The numbered checkpoints of a work directory.

  Written in the background; a checkpoint that was cut short while being
  written is not listed.
  """

  def __init__(self, workdir: pathlib.Path, keep: int):
    """Opens `workdir/checkpoints`, of which the last `keep` are kept."""
    self.folder = (workdir / "checkpoints").absolute()
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      ),
    )

  def steps(self) -> list[int]:
    """Returns the steps that there is a checkpoint of, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, state: Any, step: int) -> None:
    """Starts writing `state`; returns before it is on disk."""
    self._manager.save(
      step, args=ocp.args.Composite(state=ocp.args.StandardSave(state))
    )

  def restore(self, shapes: Any, shardings: Any) -> Any | None:
    """Returns the last state that can be read, or None if there is none.

    Args:
      shapes: The state as `jax.eval_shape` gives it.
      shardings: Where every leaf is to lie.

    Raises:
      UserError: If there are checkpoints, but none can be read.
    """
    # Shapes with shardings, not arrays: a numpy target of another shape would
    # be filled without a word.
    target = jax.tree.map(
      lambda leaf, where: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=where
      ),
      shapes,
      shardings,
    )
    failures = []
    for step in reversed(self.steps()):
      try:
        restored = self._manager.restore(
          step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )
      except Exception as error:  # Orbax raises a different type each time.
        reason = str(error).splitlines()[0][:200]
        failures.append(step)
        print(
          f"checkpoint {self.folder / str(step)} cannot be read ({reason}); "
          "trying the one before",
          file=sys.stderr,
        )
        continue
      for bad in failures:
        # Otherwise the run could not save again when it gets there.
        self._manager.delete(bad)
      return restored["state"]
    if failures:
      raise UserError(
        f"no checkpoint in {self.folder} can be read (tried "
        f"{', '.join(map(str, failures))}); move the folder away to start "
        "afresh, or put a good copy back"
      )
    return None

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of Orbax's threads."""
    self._manager.close()
