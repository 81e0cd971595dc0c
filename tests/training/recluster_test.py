"""Passes of a re-clustering: which images they are of."""

import types
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax import mesh as mesh_lib
from odc_jax.data import order
from odc_jax.evals.evaluation import Evaluation
from odc_jax.training import recluster
from odc_jax.training.programs import Program
from odc_jax.training.state import TrainState


@pytest.mark.parametrize("sampling", ["permutation", "replacement"])
def test_the_first_pass_is_of_the_epoch_s_images(sampling, mesh, monkeypatch):
  """Of 85 images in batches of 16 five are left out, and so they are later."""
  n, b, seed, restarts = 85, 16, 7, 1
  config = ConfigDict(
    {
      "num_examples": n,
      "batch_size": b,
      "seed": seed,
      "data": {"sampling": sampling},
    }
  )
  found = {}

  def method_recluster(config, state, passes, step):
    found["rows"], found["seen"] = passes.of_epoch()
    return state

  def pass_over(self, state, step, indices, advance):
    found["order"] = indices
    rows = jnp.zeros((mesh_lib.padded_rows(n), 1, 2))
    return rows.at[indices].set(1.0), "moved"

  monkeypatch.setattr(recluster.Reclustering, "_augmented", pass_over)
  program = mock.Mock(spec=Program)
  program.head = None
  program.evaluated.return_value = {}, {}
  program.shardings = types.SimpleNamespace(method=mesh_lib.replicated(mesh))
  reclustering = recluster.Reclustering(
    config,
    types.SimpleNamespace(recluster=method_recluster, FRESH=()),
    program,
    mesh,
    mock.Mock(spec=Evaluation),
  )
  fields = dict.fromkeys(TrainState._fields)
  state = TrainState(**fields)._replace(
    method=jnp.zeros(()), params={}, batch_stats="before", restarts=restarts
  )
  state, _ = reclustering(state, 0)
  assert state.batch_stats == "moved"
  trained = np.concatenate(
    [
      order.batch_indices(n, b, step, seed + (restarts << 32), sampling)
      for step in range(n // b)
    ]
  )
  np.testing.assert_array_equal(found["order"], trained)
  seen = np.asarray(found["seen"])
  assert seen.dtype == bool
  assert found["seen"].sharding == mesh_lib.rows(mesh)
  np.testing.assert_array_equal(np.flatnonzero(seen), np.unique(trained))
  np.testing.assert_array_equal(seen, np.asarray(found["rows"]).any((1, 2)))
  if sampling == "permutation":
    assert seen.sum() == 80
  assert not seen[n:].any()
