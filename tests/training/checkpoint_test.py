"""Opening and closing; what is kept and restored is tested with whole runs."""

import collections
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from odc_jax import mesh as mesh_lib
from odc_jax.training import checkpoint
from odc_jax.training.state import TrainState, shardings


def test_what_was_cut_short_is_removed_when_opened(tmp_path):
  folder = tmp_path / "checkpoints"
  for name in ("7", "9.orbax-checkpoint-tmp", "12.orbax-checkpoint-tmp-3"):
    (folder / name / "state").mkdir(parents=True)
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
  assert [path.name for path in folder.iterdir()] == ["7"]
  checkpoints.close()


def test_nothing_goes_on_after_closing(tmp_path):
  # What still ran would print tracebacks under the message of a run that is
  # refused.
  before = set(threading.enumerate())
  checkpoint.Checkpoints(tmp_path, keep=1).close()
  assert set(threading.enumerate()) <= before


def test_a_state_of_before_there_were_teachers_is_read(tmp_path):
  of_then = {
    "step": jnp.int32(7),
    "params": {"head": {"kernel": jnp.arange(6.0).reshape(2, 3)}},
    "batch_stats": {"backbone": {"mean": jnp.ones(4)}},
    "opt_state": (jnp.zeros(3),),
    "method": {"centroids": jnp.full((2, 2), 3.0)},
    "key": jax.random.key(5),
    "restarts": jnp.int32(1),
  }
  then = collections.namedtuple("TrainState", of_then)(**of_then)
  manager = ocp.CheckpointManager((tmp_path / "checkpoints").absolute())
  manager.save(7, args=ocp.args.Composite(state=ocp.args.StandardSave(then)))
  manager.wait_until_finished()
  manager.close()

  shapes = jax.eval_shape(lambda: TrainState(**of_then))
  where = shardings(shapes, mesh_lib.make_mesh(1))
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
  found = checkpoints.restore(shapes, where)
  checkpoints.close()
  assert isinstance(found, TrainState)
  assert found.teacher is None
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(then), strict=True
  ):
    assert ours.dtype == theirs.dtype
    if jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
      ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
    np.testing.assert_array_equal(ours, theirs)
