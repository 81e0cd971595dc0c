"""The whole train step against recordings of an official ODC training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from odc_jax import memory
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import spherical, split
from odc_jax.methods import METHODS, odc
from odc_jax.models import backbone as backbone_lib
from odc_jax.models import heads
from odc_jax.models.functional import functional
from odc_jax.models.network import Network, Outputs
from odc_jax.training import optim
from odc_jax.training import state as state_lib
from odc_jax.training import step as step_lib
from tests.methods import replay
from tests.recordings import load


class Backbone(backbone_lib.Backbone):
  """The recording's stand-in: one linear layer and a ReLU."""

  def __init__(self, size_in, size_out, rngs):
    self.fc = nnx.Linear(size_in, size_out, rngs=rngs)

  def __call__(self, x):
    return [jax.nn.relu(self.fc(x))]


class Recorded(Network):
  """Reads the recorded dropout mask from behind the image's last channel."""

  def __init__(self, size_in, rate, *parts):
    super().__init__(*parts)
    self.size_in = size_in
    self.rate = rate

  def __call__(self, views, rngs=None):
    images = views[0][:, 0]
    x, keep = images[..., : self.size_in], images[:, 0, 0, self.size_in :]
    features = self.backbone(x)[-1][:, 0, 0]
    z = self.neck.hidden(features)
    if not self.neck.drop.deterministic:
      z = z * keep / (1 - self.rate)
    embeddings = self.neck.project(z)
    return (Outputs(features, embeddings, self.head(embeddings)),)


def params_of(trace, prefix):
  """Returns recorded weights, out x in, as our tree, in x out."""

  def layer(name):
    return {
      "kernel": jnp.asarray(trace[f"{prefix}/{name}.weight"].T),
      "bias": jnp.asarray(trace[f"{prefix}/{name}.bias"]),
    }

  return {
    "backbone": {"fc": layer("backbone.fc")},
    "neck": {"fc0": layer("neck.fc0"), "fc1": layer("neck.fc1")},
    "head": {"heads": {"0": {"fc": layer("head.fc_cls")}}},
  }


def assert_close(tree, expected, atol):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=atol, rtol=0),
    tree,
    expected,
  )


def test_training_follows_the_official_code(
  golden_odc_train_, mesh, monkeypatch
):
  trace = load(golden_odc_train_)
  n, size_in, c, hidden, d, k, b, num_steps, min_cluster, interval = (
    int(x) for x in trace["hp"]
  )
  lr, momentum, decay, memory_momentum, rate, bn_momentum, _ = (
    float(x) for x in trace["hpf"]
  )
  if "ev_step" in trace:
    monkeypatch.setattr(split, "two_means", replay.two_means(trace, "s2", n))
  config = ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": k,
      "batch_size": b,
      "model": {"embedding_dim": d, "group_size": 0},
      "odc": {
        "momentum": memory_momentum,
        "assign_metric": "dot",
        "reweight_power": 0.5,
        "centroid_every": interval,
        "small_cluster_every": 1,
        "min_cluster": min_cluster,
        "memory_dtype": "float32",
        "kmeans_init": "random",
      },
      "optimizer": {
        "learning_rate": lr,
        "momentum": momentum,
        "head_momentum": 0.0,
        "weight_decay": decay,
        "schedule": "step",
        "decay_epochs": (),
        "decay_rate": 0.1,
        "warmup_epochs": 0,
      },
    }
  )

  def make(rngs):
    return Recorded(
      size_in,
      rate,
      Backbone(size_in, c, rngs),
      heads.NonLinearNeck(
        c, hidden, d, dropout=rate, bn_momentum=bn_momentum, rngs=rngs
      ),
      heads.LinearHeads(d, (k,), rngs=rngs),
    )

  network, method = functional(make), METHODS["odc"]
  optimizer = optim.make(config.optimizer, n // b)
  init = state_lib.init_function(config, method, network, optimizer, n)
  shardings = state_lib.shardings(jax.eval_shape(init), mesh)
  state = jax.jit(init, out_shardings=shardings)()
  params = params_of(trace, "w_start")
  features = np.zeros((mesh_lib.padded_rows(n), d), np.float32)
  features[:n] = spherical.normalize(jnp.asarray(trace["init_feature"]))
  assignments = np.full((features.shape[0],), k, np.int32)
  assignments[:n] = trace["init_label"]
  samples = jax.device_put(
    memory.SampleMemory(features, assignments, assignments),
    mesh_lib.rows(mesh),
  )
  centroids = jax.jit(memory.recompute, static_argnums=1)(samples, k)
  np.testing.assert_allclose(
    centroids.centroids, trace["centroids_init"], atol=1e-5
  )
  method_state = odc.ODCState(samples, centroids, jnp.int32(0))
  state = jax.device_put(
    state._replace(params=params, method=method_state), shardings
  )

  # Gradients of the first step, before weight decay.
  keep = trace.get("dropout_mask", np.ones((num_steps, b, hidden), bool))
  images = np.concatenate([trace["img"], keep.astype(np.float32)], axis=2)
  images = images[:, :, None, None, None, :]

  def first_loss(params):
    views, _ = network.apply(
      params, state.batch_stats, (jnp.asarray(images[0]),), None, train=True
    )
    batch = {"index": jnp.asarray(trace["idx"][0])}
    targets = odc.targets(config, state.method, views, batch, 0)
    return odc.loss(config, views, targets, state.method)[0]

  assert_close(
    jax.jit(jax.grad(first_loss))(state.params),
    params_of(trace, "grad0"),
    1e-5,
  )

  step = jax.jit(
    step_lib.make_step(
      config, method, network, optimizer, lambda key, images, index: images
    ),
    donate_argnums=0,
    out_shardings=(shardings, None, None),
  )
  for t in range(num_steps):
    index = jnp.asarray(trace["idx"][t])
    np.testing.assert_array_equal(
      state.method.samples.assignments[index], trace["labels_used"][t]
    )
    np.testing.assert_allclose(
      odc.class_weights(state.method.centroids.counts, 0.5),
      trace["loss_weight_used"][t],
      atol=1e-5,
    )
    batch = jax.device_put(
      {"image": (images[t],), "index": index}, mesh_lib.rows(mesh)
    )
    state, scalars, finite = step(state, batch)
    assert all(finite.values())
    np.testing.assert_allclose(
      scalars["train/loss"], trace["loss"][t], atol=1e-5
    )
    np.testing.assert_allclose(
      100 * scalars["train/cluster_accuracy"], trace["acc"][t], atol=1e-3
    )
    np.testing.assert_allclose(
      scalars["cluster/label_change"], trace["change_ratio"][t], atol=1e-6
    )
    np.testing.assert_array_equal(
      state.method.samples.assignments[:n], trace["labels"][t]
    )
    np.testing.assert_allclose(
      state.method.centroids.centroids, trace["centroids"][t], atol=5e-5
    )
    if t == 0:
      assert_close(state.params, params_of(trace, "w_step1"), 1e-5)

  assert_close(state.params, params_of(trace, "w_end"), 1e-5)
  np.testing.assert_allclose(
    state.batch_stats["neck"]["bn0"]["mean"],
    trace["w_end/neck.bn0.running_mean"],
    atol=1e-5,
  )
  np.testing.assert_allclose(
    state.batch_stats["neck"]["bn0"]["var"],
    trace["w_end/neck.bn0.running_var"],
    atol=1e-5,
  )
  np.testing.assert_allclose(
    state.method.samples.features[:n], trace["bank_end"], atol=5e-5
  )
