import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax import mesh as mesh_lib
from odc_jax.errors import UserError
from odc_jax.labels import Labels
from odc_jax.methods import sela
from odc_jax.methods.method import Passes
from odc_jax.models.network import Outputs
from odc_jax.plan import collectives
from tests.recordings import load


def config_of(n, ks, b=8, epochs=3, **sela_keys):
  return ConfigDict(
    {
      "num_examples": n,
      "num_clusters": ks[0],
      "extra_clusters": tuple(ks[1:]),
      "batch_size": b,
      "num_epochs": epochs,
      "sela": {
        "power": 10.0,
        "tolerance": 0.1,
        "num_solves": 7,
        "schedule": "quadratic",
        "heads": "all",
      }
      | sela_keys,
    }
  )


def state_of(config, mesh):
  n, key = config.num_examples, jax.random.key(0)
  return jax.jit(
    lambda: sela.init(config, n, key),
    out_shardings=sela.SeLaState(
      mesh_lib.rows(mesh), mesh_lib.replicated(mesh), mesh_lib.replicated(mesh)
    ),
  )()


def mirrored(params, embeddings):
  """Two heads; the second one's clusters are those of the first, reversed."""
  return embeddings * params, embeddings[:, ::-1] * params


def passes_of(log_p, mesh):
  """Returns passes over embeddings that are twice the log-probabilities."""
  n, k = log_p.shape
  rows = np.full((mesh_lib.padded_rows(n), 1, k), np.nan, np.float32)
  rows[:n, 0] = 2 * log_p
  rows = jax.device_put(rows, mesh_lib.rows(mesh))
  return Passes(lambda: None, lambda: rows, mirrored, jnp.float32(0.5))


def test_heads_are_solved_for_as_in_the_official_code(golden_sela_, mesh):
  trace = load(golden_sela_)
  n, k = trace["P"].shape
  config = config_of(n, (k, k), power=float(trace["lamb"]))
  before = state_of(config, mesh)
  passes = passes_of(np.log(trace["P"]), mesh)
  state = sela.recluster(config, before, passes, 0)
  labels = trace["labels"]
  np.testing.assert_array_equal(state.samples.assignments[:n, 0], labels)
  np.testing.assert_array_equal(
    state.samples.assignments[:n, 1], k - 1 - labels
  )
  np.testing.assert_array_equal(state.samples.assignments[n:], k)
  np.testing.assert_array_equal(
    state.samples.previous, before.samples.assignments[:, 0]
  )
  np.testing.assert_array_equal(state.sizes, trace["counts"])
  assert abs(state.num_iters - trace["n_iter"]) <= 10

  # One head at a time, in turn.
  config.sela.heads = "one"
  steps = sela.solve_steps(config)
  state = before
  for h, step in zip((0, 1, 0), steps, strict=False):
    last, state = state, sela.recluster(config, state, passes, int(step))
    other = 1 - h
    np.testing.assert_array_equal(
      state.samples.assignments[:, other], last.samples.assignments[:, other]
    )
    np.testing.assert_array_equal(
      state.samples.assignments[:n, h], labels if h == 0 else k - 1 - labels
    )
  np.testing.assert_array_equal(state.samples.previous[:n], labels)


def test_every_cluster_begins_with_as_many_images(mesh):
  config = config_of(1500, (30, 7))
  state = state_of(config, mesh)
  for h, k in enumerate((30, 7)):
    clusters = np.asarray(state.samples.assignments[:, h])
    np.testing.assert_array_equal(clusters[1500:], k)
    sizes = np.bincount(clusters[:1500], minlength=k)
    assert set(sizes) <= {1500 // k, 1500 // k + 1}
    # Not merely i mod k.
    assert np.mean(clusters[:1500] == np.arange(1500) % k) < 0.5
  np.testing.assert_array_equal(state.sizes, 50)


@pytest.mark.parametrize("schedule", ["quadratic", "linear"])
@pytest.mark.parametrize("num_solves", [2, 7, 60])
def test_solves_are_due_when_the_official_loop_would(schedule, num_solves):
  n, b, epochs = 100, 7, 4
  config = config_of(
    n, (5,), b, epochs, schedule=schedule, num_solves=num_solves
  )
  times = []
  for j in range(num_solves):
    share = j / (num_solves - 1)
    if schedule == "quadratic":
      times.append((epochs + 1.01) * n * share**2)
    else:
      times.append(epochs * n * share)
  times.sort(reverse=True)
  for step in range(epochs * (n // b)):
    due = bool(times) and step * b >= times[-1]
    assert sela.recluster_due(config, step) == due
    while times and step * b >= times[-1]:
      times.pop()


def test_imagenet_solves_often_at_first():
  config = config_of(1_281_167, (3000,), 256, 400, num_solves=100)
  steps = sela.solve_steps(config)
  # (401.01 N / B) / 99^2 = 204.77, and four times as much.
  assert steps[:3].tolist() == [0, 205, 820]
  assert np.sum(steps < 5004) == 5  # in the first epoch
  assert len(steps) == 100


def test_loss_by_hand():
  """Two heads of two clusters; the mean of ln 4/3, ln 4 and twice ln 2."""
  config = config_of(4, (2, 2))
  even, three_to_one = [0.0, 0], [math.log(3), 0]
  logits = (jnp.array([three_to_one] * 2), jnp.array([even] * 2))
  views = (Outputs(logits[0], logits[0], logits),)
  samples = Labels(jnp.array([[1, 0], [0, 1], [1, 1]]), jnp.array([0, 0, 0]))
  state = sela.SeLaState(samples, jnp.array([1, 2]), jnp.int32(0))
  batch = {"index": jnp.array([1, 2])}
  targets = sela.targets(config, state, views, batch, 0)
  np.testing.assert_array_equal(targets.clusters, [[0, 1], [1, 1]])
  value, aux = sela.loss(config, views, targets, state)
  expected = (math.log(4 / 3) + math.log(4) + 2 * math.log(2)) / 4
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert aux["train/cluster_accuracy"] == 0.5


@pytest.mark.optimized
def test_a_solve_moves_only_sums_over_clusters():
  n, k = 8 << 18, 64
  mesh = mesh_lib.make_mesh(8)
  config = config_of(n - 5, (k, k))
  with jax.set_mesh(mesh):
    rows, copies = mesh_lib.rows(mesh), mesh_lib.replicated(mesh)
    where = sela.SeLaState(rows, copies, copies)

    def solve(state, embeddings, params):
      passes = Passes(lambda: None, lambda: embeddings, mirrored, params)
      return sela.recluster(config, state, passes, 0)

    shapes = jax.eval_shape(lambda: sela.init(config, n, jax.random.key(0)))
    shapes = jax.tree.map(
      lambda shape, place: jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=place
      ),
      shapes,
      sela.SeLaState(Labels(rows, rows), copies, copies),
    )
    embeddings = jax.ShapeDtypeStruct((n, 1, k), jnp.float32, sharding=rows)
    params = jax.ShapeDtypeStruct((), jnp.float32, sharding=copies)
    lowered = jax.jit(solve, out_shardings=where).lower(
      shapes, embeddings, params
    )
    compiled = lowered.compile()
  found = collectives.collectives(compiled.as_text())
  assert found
  assert max(size for _, _, size in found) <= 4 * (k + 1)
  # On each device log P of one head, and chunks of it.
  one_head = n // 8 * k * 4
  assert compiled.memory_analysis().temp_size_in_bytes < 1.6 * one_head


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"schedule": "cubic"}, "unknown sela.schedule 'cubic'"),
    ({"heads": "both"}, "unknown sela.heads 'both'"),
    ({"num_solves": 1}, "take 2 or more"),
  ],
)
def test_mistakes(keys, message):
  with pytest.raises(UserError, match=message):
    sela.init(config_of(10, (2,), **keys), 10, jax.random.key(0))
