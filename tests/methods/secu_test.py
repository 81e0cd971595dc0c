"""SeCu: whole trainings against recordings, and its parts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax import labels
from odc_jax.errors import UserError
from odc_jax.methods import secu
from odc_jax.models.network import Outputs
from tests.methods import encoder
from tests.recordings import load


def config_of(trace):
  n, _, _, d, steps, _ = encoder.sizes_of(trace)
  tx, tw, tau, alpha, dual_lr, ratio, lr, center_lr, decay, momentum = (
    float(x) for x in trace["hpf"]
  )
  imagenet = "w_start/predictor.0.weight" in trace
  k, *extra = (int(k) for k in trace["Ks"])
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": k,
      "extra_clusters": tuple(extra),
      # Of whole batches; the recordings' last one of an epoch is shorter.
      "batch_size": n // steps,
      "data": {"views": 2},
      "model": {"embedding_dim": d},
      "secu": {
        "constraint": "size" if "w_start/ldual_0" in trace else "entropy",
        "dual_learning_rate": dual_lr,
        "size_ratio": ratio,
        "entropy_weight": alpha,
        "temperature": tx,
        "center_temperature": tx if imagenet else tw,
        "hard_weight": tau,
      },
      "optimizer": encoder.optimizer_section(
        trace,
        "lars" if imagenet else "sgd",
        lr,
        momentum,
        decay,
        head_learning_rate=center_lr,
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
def test_training_follows_the_official_code(golden_secu_, mesh):
  trace = load(golden_secu_)
  n, _, _, _, steps, _ = encoder.sizes_of(trace)
  config = config_of(trace)
  ks = trace["Ks"]
  for t, state, scalars, index in encoder.follow(
    trace, config, "secu", lambda method_state: method_state, mesh, 2e-4
  ):
    epoch, ends = t // steps, (t + 1) % steps == 0
    method = state.method
    for h in range(len(ks)):
      head = f"head{h}/"
      np.testing.assert_array_equal(
        method.samples.assignments[index, h],
        trace[head + "label"][t, : len(index)],
      )
      np.testing.assert_allclose(
        method.centers[h].T,
        trace[f"pre_center_epoch{epoch}_head{h}"],
        atol=2e-4,
      )
      if config.secu.constraint == "size":
        np.testing.assert_allclose(
          method.duals[h], trace[head + "dual"][t], atol=1e-5
        )
      # The official counters start anew with every epoch.
      if ends or config.secu.constraint == "entropy":
        np.testing.assert_array_equal(
          method.sizes[h], trace[head + "counter"][t]
        )
      if ends:
        np.testing.assert_array_equal(
          method.samples.assignments[:n, h], trace[head + "assign"][epoch]
        )
    loss_c, loss_x = trace["loss_c"][t], trace["loss_x"][t]
    np.testing.assert_allclose(scalars["train/center_loss"], loss_c, atol=2e-4)
    np.testing.assert_allclose(
      scalars["train/loss"], loss_c + loss_x, atol=2e-4
    )


def small(**overrides):
  config = ConfigDict(
    {
      "num_examples": 8,
      "num_clusters": 3,
      "extra_clusters": (2,),
      "batch_size": 4,
      "data": {"views": 2},
      "model": {"embedding_dim": 2},
      "secu": {
        "constraint": "size",
        "dual_learning_rate": 0.5,
        "size_ratio": 0.9,
        "entropy_weight": 1.0,
        "temperature": 0.1,
        "center_temperature": 0.2,
        "hard_weight": 0.2,
      },
    }
  )
  config.update(overrides)
  return config


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"secu": {"constraint": "kl"}}, "'kl'; choose size or entropy"),
    ({"data": {"views": 1}}, "two views"),
  ],
)
def test_mistakes(overrides, message):
  with pytest.raises(UserError, match=message):
    secu.init(small(**overrides), 8, jax.random.key(0))


def test_only_the_own_centre_of_an_image_learns_from_it():
  logits = jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
  clusters = jnp.array([0, 2])
  value, gradient = jax.value_and_grad(
    lambda logits: jnp.sum(secu.center_loss(logits, clusters))
  )(logits)
  p = np.asarray(jax.nn.softmax(logits))
  np.testing.assert_allclose(value, -np.log(p[0, 0] * p[1, 2]), rtol=1e-6)
  expected = [[p[0, 0] - 1, 0, 0], [0, 0, p[1, 2] - 1]]
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_entropy_cost_is_what_a_move_costs():
  sizes = np.array([3, 0, 4, 1])

  def negative_entropy(sizes, total):
    q = np.asarray(sizes)[np.asarray(sizes) > 0] / total
    return np.sum(q * np.log(q))

  found = secu.entropy_cost(
    jnp.asarray(sizes), jnp.array([0, 3, len(sizes)], jnp.int32)
  )
  eye = np.eye(4, dtype=int)
  for row, old in enumerate([0, 3]):
    for new in range(4):
      moved = sizes - eye[old] + eye[new]
      expected = negative_entropy(moved, 8) - negative_entropy(sizes, 8)
      np.testing.assert_allclose(found[row, new], expected, atol=1e-6)
  # The third image joins: the others' shares are of 9 images already.
  for new in range(4):
    expected = negative_entropy(sizes + eye[new], 9)
    expected -= negative_entropy(sizes, 9)
    np.testing.assert_allclose(found[2, new], expected, atol=1e-6)


def test_nothing_is_costly_while_there_are_no_images():
  found = secu.entropy_cost(jnp.zeros(3, jnp.int32), jnp.array([3]))
  np.testing.assert_array_equal(found, jnp.zeros((1, 3)))


def one_step(config, state, index, cosines, step, embeddings):
  """Two equal views of the same cosines to all centres."""

  @jax.jit
  def run(state, index, step):
    centers = tuple(jnp.eye(k, 2) for k in (3, 2))
    view = Outputs(embeddings, embeddings, cosines, prototypes=centers)
    views, batch = (view, view), {"index": index}
    targets = secu.targets(config, state, views, batch, step)
    return targets, *secu.after_step(config, state, views, targets, batch, step)

  return run(state, jnp.array(index, jnp.int32), jnp.int32(step))


def test_a_second_visit_compares_with_the_clusters_of_the_first(mesh):
  config = small()
  state = secu.init(config, 8, jax.random.key(0))
  x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
  cosines = (jnp.array([[0.9, 0.1, 0.0], [0.0, 0.8, 0.1]] * 2), x)
  first, state, scalars = one_step(config, state, [4, 1, 2, 6], cosines, 0, x)
  np.testing.assert_array_equal(first.clusters, [[0, 0], [1, 1]] * 2)
  np.testing.assert_array_equal(state.sizes[0], [2, 2, 0])
  np.testing.assert_array_equal(state.sizes[1], [2, 2])
  np.testing.assert_allclose(state.duals[0], [0, 0, 0.15], atol=1e-7)
  np.testing.assert_array_equal(scalars["cluster/empty"], 1)

  # The same images again, two of which have gone over; the last image twice.
  flipped = tuple(c[::-1] for c in cosines)
  second, state, scalars = one_step(config, state, [4, 1, 6, 6], flipped, 2, x)
  np.testing.assert_array_equal(second.clusters[:, 0], [1, 0, 1, 0])
  hard = [[0, 0], [1, 1], [1, 1], [1, 1]]
  soft = jax.nn.softmax(10 * x @ jnp.eye(3, 2).T)
  for goals in second.goals:
    np.testing.assert_allclose(
      goals[0],
      0.2 * np.eye(3)[np.array(hard)[:, 0]] + 0.8 * np.asarray(soft),
      atol=1e-6,
    )
  np.testing.assert_array_equal(state.sizes[0], [3, 1, 0])
  np.testing.assert_array_equal(
    state.samples.previous[:8], [3, 1, 0, 3, 0, 3, 1, 3]
  )
  np.testing.assert_array_equal(
    state.samples.assignments[:8, 0], [3, 0, 0, 3, 1, 3, 0, 3]
  )
  np.testing.assert_array_equal(
    state.sizes[0], labels.cluster_sizes(state.samples.assignments[:, 0], 3)
  )


@pytest.mark.parametrize("step", [2, 3])
def test_centres_are_those_of_the_start_of_the_epoch(step, mesh):
  config = small()
  state = secu.init(config, 8, jax.random.key(0))
  cosines = (jnp.zeros((4, 3)), jnp.zeros((4, 2)))
  x = jnp.ones((4, 2))
  _, state, _ = one_step(config, state, range(4), cosines, step, x)
  expected = np.eye(3, 2) if step == 2 else np.zeros((3, 2))
  np.testing.assert_array_equal(state.centers[0], expected)
