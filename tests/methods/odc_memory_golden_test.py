"""The memory update against recordings of the official ODCMemory and hook."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from odc_jax import memory
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import spherical, split
from odc_jax.memory import CentroidMemory, SampleMemory
from odc_jax.methods import odc
from odc_jax.models.network import Outputs
from tests.methods import replay
from tests.recordings import load, ragged


def config_of(trace, **overrides):
  n, _, k, b, _, min_cluster, interval = (int(x) for x in trace["hp"])
  config = ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": k,
      "batch_size": b,
      "odc": {
        "momentum": float(trace["momentum"]),
        "assign_metric": "dot",
        "centroid_every": interval,
        "small_cluster_every": 1,
        "min_cluster": min_cluster,
      },
    }
  )
  config.odc.update(overrides)
  return config


def start(trace, mesh):
  n, d, k = (int(x) for x in trace["hp"][:3])
  rows = mesh_lib.padded_rows(n)
  features = np.zeros((rows, d), np.float32)
  features[:n] = spherical.normalize(jnp.asarray(trace["init_feature"]))
  assignments = np.full((rows,), k, np.int32)
  assignments[:n] = trace["init_label"]
  samples = jax.device_put(
    SampleMemory(features, assignments, assignments), mesh_lib.rows(mesh)
  )
  centroids = jax.jit(memory.recompute, static_argnums=1)(samples, k)
  return odc.ODCState(samples, centroids, jnp.int32(0))


def step_function(config):
  def step(state, feature, index, t):
    views = (Outputs(feature, feature),)
    return odc.after_step(config, state, views, None, {"index": index}, t)

  return jax.jit(step)


def test_memory_follows_the_official_code(
  golden_odc_memory_, mesh, monkeypatch
):
  trace = load(golden_odc_memory_)
  n, _, _, b, num_steps = (int(x) for x in trace["hp"][:5])
  if "ev_step" in trace:
    monkeypatch.setattr(split, "two_means", replay.two_means(trace, "set2", n))
  state = start(trace, mesh)
  power = functools.partial(odc.class_weights, power=0.5)
  np.testing.assert_allclose(
    state.samples.features[:n], trace["bank_init"], atol=1e-5
  )
  np.testing.assert_allclose(
    state.centroids.centroids, trace["centroids_init"], atol=1e-5
  )
  np.testing.assert_allclose(
    power(state.centroids.counts), trace["loss_weight_init"], atol=1e-5
  )

  step = step_function(config_of(trace))
  # The same update without the small clusters shows what comes before them.
  before_deal = step_function(config_of(trace, min_cluster=0))
  banks = dict(
    zip(trace["bank_steps"].tolist(), trace["bank_at_steps"], strict=True)
  )
  for t in range(num_steps):
    args = (
      state,
      jnp.asarray(trace["feature"][t]),
      jnp.asarray(trace["ind"][t], jnp.int32),
      jnp.int32(t),
    )
    middle, _ = before_deal(*args)
    np.testing.assert_array_equal(
      middle.samples.assignments[:n], trace["labels_after_update"][t]
    )
    np.testing.assert_allclose(
      middle.centroids.centroids, trace["centroids_before_deal"][t], atol=1e-5
    )
    np.testing.assert_allclose(
      middle.samples.features[trace["ind"][t]],
      trace["bank_rows"][t],
      atol=1e-5,
    )

    state, aux = step(*args)
    samples, centroids, _ = state
    np.testing.assert_array_equal(
      samples.assignments[:n], trace["labels"][t], err_msg=f"step {t}"
    )
    assert np.all(samples.assignments[n:] == trace["hp"][2])
    np.testing.assert_array_equal(centroids.counts, trace["counts"][t])
    np.testing.assert_allclose(
      centroids.centroids, trace["centroids"][t], atol=1e-5
    )
    np.testing.assert_allclose(
      power(centroids.counts), trace["loss_weight"][t], atol=1e-5
    )
    np.testing.assert_allclose(
      aux["cluster/label_change"], trace["change_ratio"][t], atol=1e-6
    )
    assert aux["cluster/dissolved"] == trace["n_small"][t]
    epoch_began = t - t % (n // b)
    assert (
      aux["cluster/dissolved_epoch"]
      == odc.dissolved_clusters(state)
      == sum(trace["n_small"][epoch_began : t + 1])
    )
    if t in banks:
      np.testing.assert_allclose(samples.features[:n], banks[t], atol=1e-5)


def test_members_of_small_clusters_go_where_the_official_code_sends_them(
  golden_odc_memory_small, mesh, monkeypatch
):
  trace = load(golden_odc_memory_small)
  n, _, _, _, num_steps = (int(x) for x in trace["hp"][:5])
  # Halving nothing leaves the state between dissolving and splitting.
  monkeypatch.setattr(
    split, "two_means", lambda features, ids, num_ids, key: ids < 0
  )
  config = config_of(trace)

  @jax.jit
  def deal(samples, centroids):
    return memory.deal_with_small_clusters(
      samples, centroids, config.odc.min_cluster, jax.random.key(0)
    )

  rows = mesh_lib.padded_rows(n)
  features = np.array(start(trace, mesh).samples.features)
  for t in range(num_steps):
    features[trace["ind"][t]] = trace["bank_rows"][t]
    assignments = np.full((rows,), trace["hp"][2], np.int32)
    assignments[:n] = trace["labels_after_update"][t]
    samples = jax.device_put(
      SampleMemory(features, assignments, assignments), mesh_lib.rows(mesh)
    )
    exact = jax.jit(memory.recompute, static_argnums=1)(
      samples, int(trace["hp"][2])
    )
    centroids = CentroidMemory(
      jnp.asarray(trace["centroids_before_deal"][t]), exact.sums, exact.counts
    )
    samples, centroids, dissolved = deal(samples, centroids)
    np.testing.assert_array_equal(
      samples.assignments[:n], trace["labels_after_reassign"][t]
    )
    assert dissolved == trace["n_small"][t]


def test_two_means_is_as_good_as_fifty_restarts(golden_odc_memory_small, mesh):
  trace = load(golden_odc_memory_small)
  n = int(trace["hp"][0])
  features = np.zeros(
    (mesh_lib.padded_rows(n), int(trace["hp"][1])), np.float32
  )
  features[:n] = trace["bank_init"]

  @jax.jit
  def leaves(features, members, key):
    def local(features, members):
      ids, num_ids = split.member_ids(members, members.shape[0])
      out = split.two_means(features, ids, num_ids, key)
      mask = jnp.zeros(members.shape, bool)
      return mask.at[jnp.where(out, ids, members.shape[0])].set(
        True, mode="drop"
      )

    return mesh_lib.per_shard(
      local,
      in_specs=(mesh_lib.ROWS, mesh_lib.ROWS),
      out_specs=mesh_lib.ROWS,
    )(features, members)

  def sse(rows):
    return np.sum((rows - rows.mean(0)) ** 2)

  event = 0
  for t in range(int(trace["hp"][4])):
    features[trace["ind"][t]] = trace["bank_rows"][t]
    while event < len(trace["ev_step"]) and trace["ev_step"][event] == t:
      members = ragged(trace, "ev_members", event)
      mask = np.zeros(features.shape[0], bool)
      mask[members] = True
      away = np.asarray(
        leaves(features, mask, jax.random.key(event))
      ).nonzero()[0]
      assert np.isin(away, members).all()
      stay = np.setdiff1d(members, away)
      assert 0 < len(away) <= len(stay)
      ours = sse(features[away]) + sse(features[stay])
      assert ours <= 1.02 * trace["ev_inertia_best50"][event]
      event += 1
  assert event == len(trace["ev_step"])
