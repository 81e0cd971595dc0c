"""Plays recorded 2-means splits back in place of our own."""

import jax
import jax.numpy as jnp
import numpy as np

from odc_jax import mesh as mesh_lib
from odc_jax.mesh import AXIS
from tests.recordings import ragged


def two_means(trace, moved, num_examples):
  """Returns a `split.two_means` that gives the recorded answers.

  An event is found by its key, which `odc.after_step` derives from the seed 0,
  the step and the number of the split in it; the members must agree as well.

  Args:
    trace: The recording.
    moved: Name of the recorded set that moves, without `ev_`: set2 or s2.
    num_examples: N of the recording.
  """
  num_events = len(trace["ev_step"])
  shape = (num_events, mesh_lib.padded_rows(num_examples))
  members, leaving = np.zeros(shape, bool), np.zeros(shape, bool)
  for i in range(num_events):
    leaving[i, ragged(trace, f"ev_{moved}", i)] = True
    members[i, ragged(trace, f"ev_{moved.replace('2', '1')}", i)] = True
  members |= leaving
  steps = trace["ev_step"].tolist()
  keys = [
    jax.random.key_data(
      jax.random.fold_in(
        jax.random.fold_in(jax.random.key(0), step), steps[:i].count(step)
      )
    )
    for i, step in enumerate(steps)
  ]

  def replayed(features, ids, num_ids, key):
    del num_ids
    n = features.shape[0]
    first = jax.lax.axis_index(AXIS) * n
    is_event = jnp.all(
      jnp.stack(keys) == jax.random.key_data(key)[None], axis=1
    )
    event = jnp.argmax(is_event)

    def local(masks):
      mask = jnp.asarray(masks)[event]
      return jax.lax.dynamic_slice(mask, (first,), (n,))

    mine = jnp.zeros((n,), bool).at[ids].set(True, mode="drop")
    wrong = jax.lax.psum(jnp.sum(local(members) != mine), AXIS)
    # No recorded event: leave everything, and fail.
    found = jnp.any(is_event) & (wrong == 0)
    return local(leaving).at[ids].get(mode="fill", fill_value=False) & found

  return replayed
