"""CoKe: whole trainings against recordings, and its parts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax.errors import UserError
from odc_jax.methods import coke
from odc_jax.models.network import Outputs
from tests.methods import encoder
from tests.recordings import load


def config_of(trace):
  n, _, _, d, steps, _ = encoder.sizes_of(trace)
  stage, num_slots = (int(x) for x in trace["hp"][8:])
  t, slot_t, dual_lr, ratio, beta, alpha, lr, decay, momentum = (
    float(x) for x in trace["hpf"]
  )
  k, *extra = (int(k) for k in trace["Ks"])
  section = {
    "temperature": t,
    "dual_learning_rate": dual_lr,
    "size_ratio": ratio,
  }
  if "view2" in trace:
    section |= {"hard_weight": alpha, "prediction_weight": 0.5}
  else:
    section |= {
      "prediction_weight": beta,
      "stage": stage,
      "num_slots": num_slots,
      "slot_temperature": slot_t,
    }
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": k,
      "extra_clusters": tuple(extra),
      # Of whole batches; the recordings' last one of an epoch is shorter.
      "batch_size": n // steps,
      "data": {"views": 2 if "view2" in trace else 1},
      "model": {"embedding_dim": d, "predictor": True},
      "coke": section,
      "optimizer": encoder.optimizer_section(
        trace, "lars", lr, momentum, decay
      ),
    }
  )


@pytest.mark.parametrize(
  "mesh",
  [
    pytest.param(1, id="1dev"),
    pytest.param(8, marks=pytest.mark.slow, id="8dev"),
  ],
  indirect=True,
)
def test_training_follows_the_official_code(golden_coke_, mesh):
  trace = load(golden_coke_)
  n, _, _, _, steps, _ = encoder.sizes_of(trace)
  config, heads = config_of(trace), range(len(trace["Ks"]))

  def start(state):
    def centers(name):
      return tuple(trace[f"w_start/{name}_center_{h}"].T for h in heads)

    return state._replace(previous=centers("pre"), current=centers("cur"))

  for t, state, scalars, index in encoder.follow(
    trace, config, "coke", start, mesh, 5e-4
  ):
    epoch, ends = t // steps, (t + 1) % steps == 0
    method = state.method
    for h in heads:
      head = f"head{h}/"
      np.testing.assert_array_equal(
        method.samples.assignments[index, h],
        trace[head + "label"][t, : len(index)],
      )
      np.testing.assert_allclose(
        method.duals[h], trace[head + "dual"][t], atol=1e-5
      )
      if not ends:
        np.testing.assert_array_equal(
          method.counts[h], trace[head + "counter"][t]
        )
        np.testing.assert_allclose(
          method.current[h].T, trace[head + "cur_center"][t], atol=5e-4
        )
        continue
      for ours, name in [
        (method.previous, "pre_center_after_epoch"),
        (method.current, "cur_center_after_epoch"),
      ]:
        np.testing.assert_allclose(
          ours[h].T, trace[head + name][epoch], atol=5e-4
        )
      np.testing.assert_array_equal(method.counts[h], 0)
      assigned = trace[head + "assign"][epoch]
      if assigned.ndim == 1:
        np.testing.assert_array_equal(
          method.samples.assignments[:n, h], assigned
        )
        continue
      clusters, values = method.samples.slots
      np.testing.assert_allclose(
        values[:n, h], trace[head + "label_val"][epoch], atol=1e-6
      )
      # Before the stage the official code keeps the cluster in the first slot.
      if epoch < config.coke.stage:
        clusters = clusters.at[:n, h, 0].set(method.samples.assignments[:n, h])
      np.testing.assert_array_equal(clusters[:n, h], assigned)
    np.testing.assert_allclose(
      scalars["train/loss"], trace["loss"][t], atol=5e-4
    )


def small(views, **overrides):
  section = {
    "temperature": 0.1,
    "dual_learning_rate": 0.5,
    "size_ratio": 0.9,
    "prediction_weight": 0.5,
  }
  if views == 1:
    section |= {"stage": 1, "num_slots": 3, "slot_temperature": 0.5}
  else:
    section |= {"hard_weight": 0.2, "large_weight": 0.75}
  config = ConfigDict(
    {
      "num_examples": 8,
      "num_clusters": 3,
      "batch_size": 4,
      "data": {"views": views, "small_views": 0},
      "model": {"embedding_dim": 2, "predictor": True},
      "coke": section,
    }
  )
  config.update(overrides)
  return config


@pytest.mark.parametrize(
  ("views", "overrides", "message"),
  [
    (2, {"data": {"views": 3}}, "1 or 2 large views"),
    (1, {"data": {"small_views": 6}}, "set --config.data.views=2"),
    (1, {"model": {"predictor": False}}, "prediction_weight=0.5 without"),
    (1, {"coke": {"num_slots": 0}}, "num_slots=0"),
  ],
)
def test_mistakes(views, overrides, message):
  with pytest.raises(UserError, match=message):
    coke.init(small(views, **overrides), 8, jax.random.key(0))


def test_centroids_are_running_means_of_the_epoch(mesh):
  centroids = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
  x = jnp.array([[3.0, 1.0], [5.0, 3.0], [0.0, 8.0], [1.0, 0.0]] * 2)
  clusters = jnp.array([1, 1, 0, 0, 1, 1, 0, 0])
  counts = jnp.array([2, 0, 7])
  found, counts, of_batch = jax.jit(coke.add_batch)(
    centroids, counts, x, clusters
  )
  # 2/6 of the old one and six sixths of four rows; all new; untouched.
  expected = [[(2 + 2) / 6, 16 / 6], [4, 2], [-1, 0]]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_array_equal(counts, [6, 4, 7])
  np.testing.assert_array_equal(of_batch, [4, 4, 0])


def views_of(*angles):
  """Views of four images, all at one angle; predictions point elsewhere."""

  def unit(angle):
    return jnp.tile(jnp.array([[jnp.cos(angle), jnp.sin(angle)]]), (4, 1))

  return tuple(
    Outputs(unit(a), unit(a), predictions=unit(a + 0.1)) for a in angles
  )


def one_step(config, state, index, step, views):
  @jax.jit
  def run(state, index, step):
    batch = {"index": index}
    targets = coke.targets(config, state, views, batch, step)
    value, _ = coke.loss(config, views, targets, state)
    return (
      value,
      targets,
      *coke.after_step(config, state, views, targets, batch, step),
    )

  return run(state, jnp.array(index, jnp.int32), jnp.int32(step))


def started(config):
  """Centroids at 0, 60 and 120 degrees."""
  state = coke.init(config, 8, jax.random.key(0))
  angles = jnp.pi / 3 * jnp.arange(3)
  centroids = (jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1),)
  return state._replace(previous=centroids, current=centroids)


def test_small_crops_learn_from_both_large_views(mesh):
  config = small(2, data={"small_views": 2})
  state = started(config)
  views = views_of(0.1, 0.4, 1.2, 2.0)
  value, targets, state_after, _ = one_step(config, state, range(4), 0, views)
  np.testing.assert_array_equal(targets.clusters, np.zeros((4, 1)))
  p = np.asarray(state.previous[0])

  def log_softmax(x):
    logits = np.asarray(x)[0] @ p.T / 0.1
    return logits - np.log(np.sum(np.exp(logits)))

  soft = [np.exp(log_softmax(view.embeddings)) for view in views[:2]]
  sources = [soft[1], soft[0], *[(soft[0] + soft[1]) / 2] * 2]
  expected = []
  for view, source in zip(views, sources, strict=True):
    goal = 0.2 * np.eye(3)[0] + 0.8 * source
    of_both = log_softmax(view.embeddings) + log_softmax(view.predictions)
    expected.append(-0.5 * np.sum(goal * of_both))
  expected = 0.75 * np.mean(expected[:2]) + 0.25 * np.mean(expected[2:])
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  # Small crops have no part in the centroids.
  mean = np.mean([view.embeddings[0] for view in views[:2]], axis=0)
  np.testing.assert_allclose(
    state_after.current[0][0], mean / np.linalg.norm(mean), rtol=1e-5
  )


def test_a_second_visit_learns_the_cluster_of_the_first(mesh):
  config = small(1, coke={"stage": 9})
  state = started(config)
  _, _, state, scalars = one_step(config, state, [0, 3, 5, 7], 0, views_of(0.1))
  np.testing.assert_array_equal(state.sizes, [4, 0, 0])
  np.testing.assert_allclose(state.duals[0], [0, 0.15, 0.15], atol=1e-6)
  assert scalars["cluster/empty"] == 2
  # Not the last step of the epoch: P stays, C has moved.
  assert np.any(state.previous[0] != state.current[0])
  _, _, state, _ = one_step(config, state, [1, 2, 4, 6], 1, views_of(0.1))
  np.testing.assert_array_equal(state.previous[0], state.current[0])
  np.testing.assert_array_equal(state.counts[0], 0)
  np.testing.assert_array_equal(state.samples.assignments[:8, 0], 0)

  _, targets, state, scalars = one_step(
    config, state, [0, 1, 1, 2], 2, views_of(2.0)
  )
  np.testing.assert_array_equal(targets.clusters[:, 0], 2)
  np.testing.assert_array_equal(targets.goals[0][0], np.eye(3)[[0] * 4])
  # Of an image that is there twice only one has moved.
  np.testing.assert_array_equal(state.sizes, [5, 0, 3])
  assert scalars["cluster/label_change"] == 1


def test_the_second_stage_without_a_visit_in_its_first_epoch(mesh):
  """An image that has no slots yet keeps its hard cluster."""
  config = small(1)
  state = started(config)
  _, _, state, _ = one_step(config, state, [0, 1, 2, 3], 0, views_of(0.1))
  _, targets, state, _ = one_step(config, state, [0, 1, 2, 3], 4, views_of(2.0))
  np.testing.assert_array_equal(targets.goals[0][0], np.eye(3)[[0] * 4])
  np.testing.assert_array_equal(
    state.samples.slots.values[:4, 0], [[1, 0, 0]] * 4
  )
  np.testing.assert_array_equal(
    state.samples.slots.clusters[:4, 0, 0], targets.clusters[:, 0]
  )
