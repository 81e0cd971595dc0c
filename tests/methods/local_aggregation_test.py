"""Local Aggregation: recordings with the author's semantics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import assign, background
from odc_jax.errors import UserError
from odc_jax.methods import METHODS, local_aggregation
from odc_jax.methods.local_aggregation import LocalAggregationState, Samples
from odc_jax.models import backbone as backbone_lib
from odc_jax.models import heads, norm
from odc_jax.models.functional import functional
from odc_jax.models.network import Network, Outputs
from odc_jax.training import state as state_lib
from odc_jax.training import step as step_lib
from tests.recordings import load

METHOD = METHODS["local_aggregation"]


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
  """Lets every device have rows of a recording, and take several chunks."""
  monkeypatch.setattr(mesh_lib, "ROW_MULTIPLE", 8)
  monkeypatch.setattr(assign, "_CPU_SCORE_BYTES", 640)


def assert_close(actual, expected, atol, rtol=0.0):
  np.testing.assert_allclose(actual, expected, atol=atol, rtol=rtol)


def config_of(n, b, k, d, **keys):
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": k,
      "batch_size": b,
      "model": {"embedding_dim": d},
      "local_aggregation": {
        "temperature": 0.07,
        "momentum": 0.5,
        "num_background": 4,
        "num_clusterings": 2,
        "kmeans_iters": 20,
        "warm_epochs": 1.0,
      }
      | keys,
    }
  )


def samples_of(mesh, bank, clusterings, k):
  """Returns a memory of these rows and clusters, split over the devices."""
  n, d = bank.shape
  rows = np.zeros((mesh_lib.padded_rows(n), d), np.float32)
  assignments = np.full((len(rows), len(clusterings)), k, np.int32)
  rows[:n] = bank
  assignments[:n] = clusterings.T
  samples = Samples(assignments, assignments[:, 0], rows)
  return jax.device_put(samples, mesh_lib.rows(mesh))


def unit(o):
  return o / jnp.linalg.norm(o, axis=1, keepdims=True)


def sums_of(samples, v, index, n, k, t):
  own = samples.assignments[index]
  return background.aggregate(
    samples.bank,
    samples.assignments,
    v,
    own,
    num_examples=n,
    num_background=k,
    temperature=t,
  )


def value_and_gradient(found, state, o):
  """Returns the mean loss of raw outputs, and its gradient by them."""

  def loss(o):
    v = unit(o)
    return METHOD.loss(ConfigDict(), (Outputs(v, v),), found, state)[0]

  return jax.value_and_grad(loss)(o)


def test_steps_follow_the_recording(golden_la_steps, mesh):
  trace = load(golden_la_steps)
  n, d, b, num_background, _, _, num_steps = (int(x) for x in trace["hp"])
  t, m = (float(x) for x in trace["hpf"])
  clusterings = trace["clusterings"]
  # At the start every image is a cluster. Pad rows have a number of their own.
  k = int(clusterings.max()) + 1
  config = config_of(n, b, k, d, momentum=m)

  @jax.jit
  def step(samples, o, index):
    v = unit(o)
    sums = sums_of(samples, v, index, n, num_background, t)
    found = local_aggregation.local_targets(sums)
    state = LocalAggregationState(samples, jnp.zeros((k,), jnp.int32))
    batch = {"index": index}
    after, _ = METHOD.after_step(
      config, state, (Outputs(v, v),), found, batch, 0
    )
    return sums, *value_and_gradient(found, state, o), after.samples.bank

  bank = trace["bank_init"]
  for i in range(num_steps):
    index, o = trace["indices"][i], trace["outputs"][i]
    samples = samples_of(mesh, bank, clusterings[trace["clustering"][i]], k)
    sums, value, gradient, after = step(samples, o, index)
    s = np.asarray(unit(o)) @ bank.T
    is_near = s >= np.asarray(sums.threshold)[:, None] - 1e-6
    assert np.all(is_near.sum(axis=1) == num_background)
    np.testing.assert_array_equal(
      np.nonzero(is_near)[1].reshape(b, num_background), trace["background"][i]
    )
    relative = sums.close / sums.background
    assert_close(relative, trace["relative"][i], atol=1e-5)
    assert_close(value, trace["loss"][i], atol=1e-4)
    expected = trace["grad_outputs"][i]
    assert_close(gradient, expected, atol=1e-4 * np.abs(expected).max())
    bank = np.asarray(after)[:n]
    assert_close(bank[index], trace["new_rows"][i], atol=1e-6)
  assert_close(bank, trace["bank_end"], atol=1e-6)

  @jax.jit
  def warm(samples, o, index, noise):
    found = local_aggregation.instance_targets(
      samples, unit(o), index, noise, n, t
    )
    state = LocalAggregationState(samples, jnp.zeros((k,), jnp.int32))
    return value_and_gradient(found, state, o)

  samples = samples_of(mesh, trace["ir_bank"], clusterings[0], k)
  for i in range(len(trace["ir_indices"])):
    value, gradient = warm(
      samples, *(trace[f"ir_{x}"][i] for x in ("outputs", "indices", "noise"))
    )
    assert_close(value, trace["ir_loss"][i], rtol=1e-4, atol=0)
    expected = trace["ir_grad_outputs"][i]
    assert_close(gradient, expected, atol=1e-4 * np.abs(expected).max())


class Trunk(backbone_lib.Backbone):
  """The recording's stand-in: a linear layer, BatchNorm and a ReLU."""

  def __init__(self, size_in, size_out, rngs):
    self.fc = nnx.Linear(size_in, size_out, rngs=rngs)
    self.bn = norm.BatchNorm(size_out)

  def __call__(self, x):
    return [jax.nn.relu(self.bn(self.fc(x)))]


def weights_of(trace, prefix):
  """Returns recorded params and statistics as our trees, in x out."""

  def at(name):
    return jnp.asarray(trace[f"{prefix}/{name}"])

  def linear(name):
    return {"kernel": at(f"{name}.weight").T, "bias": at(f"{name}.bias")}

  params = {
    "backbone": {
      "fc": linear("fc0"),
      "bn": {"scale": at("bn0.weight"), "bias": at("bn0.bias")},
    },
    "neck": {"layers": {"0": linear("fc1")}},
  }
  mean, var = at("bn0.running_mean"), at("bn0.running_var")
  return params, {"backbone": {"bn": {"mean": mean, "var": var}}}


def optimizer_of(trace, momentum, decay):
  """Returns the recording's SGD, in which all decays but BatchNorm."""

  def decays(path, _):
    return not any(getattr(key, "key", "") == "bn" for key in path)

  return optax.chain(
    optax.masked(
      optax.add_decayed_weights(decay),
      lambda params: jax.tree_util.tree_map_with_path(decays, params),
    ),
    optax.sgd(lambda step: jnp.asarray(trace["lr"])[step], momentum),
  )


def test_training_follows_the_recording(golden_la_train, mesh, monkeypatch):
  trace = load(golden_la_train)
  n, size_in, hidden, d, b, num_background, _, num_clusterings, num_epochs = (
    int(x) for x in trace["hp"]
  )
  _, momentum, decay, t, m = (float(x) for x in trace["hpf"])
  steps = len(trace["batch_sizes"]) // num_epochs
  config = config_of(
    n,
    b,
    # At the start every image is a cluster.
    int(trace["clusterings"].max()) + 1,
    d,
    temperature=t,
    momentum=m,
    num_background=num_background,
    num_clusterings=num_clusterings,
    # Theirs rounds the steps of an epoch up.
    warm_epochs=steps / (n // b),
  )
  assert local_aggregation.warm_steps(config) == steps
  keys = [jax.random.fold_in(jax.random.key(0), s) for s in range(steps)]
  known = jnp.stack([jax.random.key_data(key) for key in keys])

  def drawn(key, b, k, n):
    same = jnp.all(known == jax.random.key_data(key)[None], axis=1)
    return jnp.asarray(trace["ir_noise"])[jnp.argmax(same)][:b]

  monkeypatch.setattr(local_aggregation, "draw_noise", drawn)

  def make(rngs):
    return Network(
      Trunk(size_in, hidden, rngs),
      heads.Projection((hidden, d), rngs=rngs),
      None,
      unit=True,
      views_together=METHOD.VIEWS_TOGETHER,
    )

  network = functional(make)
  optimizer = optimizer_of(trace, momentum, decay)
  init = state_lib.init_function(config, METHOD, network, optimizer, n)
  shardings = state_lib.shardings(jax.eval_shape(init), mesh)
  state = jax.jit(init, out_shardings=shardings)()

  def with_memory(state, bank, clusterings):
    samples = samples_of(mesh, bank, clusterings, config.num_clusters)
    return state._replace(method=state.method._replace(samples=samples))

  params, batch_stats = weights_of(trace, "w_start")
  state = state._replace(params=params, batch_stats=batch_stats)
  none = np.full((num_clusterings, n), config.num_clusters)
  state = jax.device_put(
    with_memory(state, trace["bank_init"], none), shardings
  )
  step = jax.jit(
    step_lib.make_step(
      config, METHOD, network, optimizer, lambda key, images, index: images
    ),
    donate_argnums=0,
    out_shardings=(shardings, None, None),
  )
  views = trace["views"][:, :, None, None, None, :]
  for i, size in enumerate(int(size) for size in trace["batch_sizes"]):
    number = trace["clustering"][i]
    if number >= 0:
      bank = np.asarray(state.method.samples.bank)[:n]
      state = jax.device_put(
        with_memory(state, bank, trace["clusterings"][number]), shardings
      )
    batch = {"image": (views[i, :size],), "index": trace["indices"][i, :size]}
    batch = jax.device_put(batch, mesh_lib.rows(mesh))
    state, scalars, finite = step(state, batch)
    assert all(finite.values())
    assert_close(scalars["train/loss"], trace["loss"][i], rtol=1e-4, atol=0)
    epoch, rest = divmod(i + 1, steps)
    if not rest:
      expected = trace[f"bank_after_epoch{epoch - 1}"]
      assert_close(state.method.samples.bank[:n], expected, atol=1e-5)
      params, stats = weights_of(trace, f"w_after_epoch{epoch - 1}")
      for tree, expected, atol in (
        (state.params, params, 1e-5),
        (state.batch_stats, stats, 1e-4),
      ):
        jax.tree.map(
          lambda x, y, atol=atol: assert_close(x, y, atol), tree, expected
        )


def test_clusters_are_found_anew_and_handed_over(mesh):
  """Three heaps of rows: both clusterings find them, and the end again."""
  n, d, k = 24, 4, 3
  rng = np.random.default_rng(0)
  truth = np.arange(n) % k
  bank = np.eye(k, d)[truth] + 0.01 * rng.normal(size=(n, d))
  none = np.full((2, n), k)
  samples = samples_of(mesh, bank.astype(np.float32), none, k)
  state = LocalAggregationState(samples, jnp.zeros((k,), jnp.int32))
  # Of 3 steps an epoch: with each, and behind the warm start.
  config = config_of(n, 8, k, d, warm_epochs=1.4)
  due = [
    step for step in range(10) if local_aggregation.recluster_due(config, step)
  ]
  assert due == [0, 3, 4, 6, 9]

  def is_truth(clusters):
    clusters = np.asarray(clusters)[:n].tolist()
    pairs = {*zip(truth.tolist(), clusters, strict=True)}
    return len(pairs) == len({c for _, c in pairs}) == k

  state = local_aggregation.recluster(config, state, None, 3)
  for clusters in state.samples.assignments.T:
    assert is_truth(clusters)
  np.testing.assert_array_equal(state.samples.previous, k)
  np.testing.assert_array_equal(state.sizes, n // k)

  truth = np.arange(n) // (n // k)
  rows = np.eye(k, d)[truth].astype(np.float32)
  embeddings = jax.device_put(rows, mesh_lib.rows(mesh))
  ended = local_aggregation.finish(config, state, None, None, embeddings)
  assert is_truth(METHOD.clusters(ended))
  np.testing.assert_array_equal(
    ended.samples.assignments[:, 1], state.samples.assignments[:, 1]
  )


def test_mistakes():
  with pytest.raises(UserError, match="between 1 and the 8 images"):
    METHOD.init(config_of(8, 4, 2, 2, num_background=9), 8, jax.random.key(0))
