"""DeepCluster-v2: a recorded official training, and four rows by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import spherical
from odc_jax.errors import UserError
from odc_jax.methods import METHODS, deepcluster_v2
from odc_jax.methods.method import Passes
from odc_jax.models import backbone as backbone_lib
from odc_jax.models.functional import functional
from odc_jax.models.network import Network, Outputs
from odc_jax.training import state as state_lib
from odc_jax.training import step as step_lib
from tests.recordings import load


class Layer(backbone_lib.Backbone):
  """The recording's stand-ins: fc1 and a ReLU; fc2."""

  def __init__(self, size_in, size_out, rngs, *, is_backbone):
    self.fc = nnx.Linear(size_in, size_out, rngs=rngs)
    self.is_backbone = is_backbone

  def __call__(self, x, rngs=None):
    return [jax.nn.relu(self.fc(x))] if self.is_backbone else self.fc(x)


def config_of(n, b, ks, d, *, num_large=2, **changes):
  section = {"temperature": 0.1, "kmeans_iters": 10, "memory_dtype": "float32"}
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "batch_size": b,
      "num_clusters": ks[0],
      "extra_clusters": tuple(ks[1:]),
      "data": {"views": num_large},
      "model": {"embedding_dim": d},
      "deepcluster_v2": section | changes,
    }
  )


def params_of(trace, prefix):
  """Returns recorded weights, out x in, as our tree, in x out."""

  def layer(name):
    return {
      "kernel": jnp.asarray(trace[f"{prefix}/{name}.weight"].T),
      "bias": jnp.asarray(trace[f"{prefix}/{name}.bias"]),
    }

  return {"backbone": {"fc": layer("fc1")}, "neck": {"fc": layer("fc2")}}


def passes_of(of_epoch):
  return Passes(lambda: None, lambda: None, lambda *_: (), None, of_epoch)


def assert_close(found, expected):
  np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_training_follows_the_official_code(
  golden_deepclusterv2, mesh, monkeypatch
):
  trace = load(golden_deepclusterv2)
  n, b, size_in, hidden, d, _, _, num_iters = (int(x) for x in trace["hp"])
  ks = tuple(int(k) for k in trace["Ks"])
  num_large = trace["mem_emb_init"].shape[0]
  config = config_of(n, b, ks, d, num_large=num_large, kmeans_iters=num_iters)
  method = METHODS["deepcluster_v2"]

  def make(rngs):
    return Network(
      Layer(size_in, hidden, rngs, is_backbone=True),
      Layer(hidden, d, rngs, is_backbone=False),
      None,
      unit=True,
      views_together=method.VIEWS_TOGETHER,
    )

  network = functional(make)
  # SGD as torch has it; the recording has it in place of LARC.
  optimizer = optax.chain(
    optax.add_decayed_weights(1e-6),
    optax.sgd(lambda t: jnp.asarray(trace["lr"])[t], momentum=0.9),
  )
  init = state_lib.init_function(config, method, network, optimizer, n)
  shardings = state_lib.shardings(jax.eval_shape(init), mesh)
  state = jax.jit(init, out_shardings=shardings)()
  params = params_of(trace, "w_start")
  state = jax.device_put(state._replace(params=params), shardings)

  def views_of(crops):
    """Recorded crops, [v, b, size], as images: the large ones, the small."""
    images = np.moveaxis(crops, 0, 1)[:, :, None, None]
    return images[:, :num_large], images[:, num_large:]

  def place(tree):
    rows = mesh_lib.rows(mesh) if b % mesh.size == 0 else None
    return jax.device_put(tree, rows)

  def of_epoch():
    """The recorded pass of before the first epoch, through our network.

    Without the images of the last batch where that was not whole.
    """
    bank = np.zeros((mesh_lib.padded_rows(n), num_large, d), np.float32)
    for t, crops in enumerate(trace["init_crops"]):
      large, _ = views_of(crops)
      views, _ = network.apply(
        state.params, state.batch_stats, (jnp.asarray(large),), None, train=True
      )
      index = trace["init_perm"][t * b : (t + 1) * b]
      bank[index] = np.stack([view.embeddings for view in views], axis=1)
    recorded = np.moveaxis(trace["mem_emb_init"], 0, 1)
    seen = trace["mem_index_init"]
    assert len(seen) == n // b * b
    assert_close(bank[seen], recorded)
    in_bank = np.isin(np.arange(len(bank)), seen)
    return jax.device_put((bank, in_bank), mesh_lib.rows(mesh))

  step = jax.jit(
    step_lib.make_step(
      config, method, network, optimizer, lambda key, images, index: images
    ),
    donate_argnums=0,
    out_shardings=(shardings, None, None),
  )
  # Not compiled: the recorded starts differ from epoch to epoch.
  monkeypatch.setattr(
    deepcluster_v2, "_cluster", deepcluster_v2._cluster.__wrapped__
  )
  t = epoch = 0
  while f"ep{epoch}/perm" in trace:
    recorded = {
      name.removeprefix(f"ep{epoch}/"): array for name, array in trace.items()
    }
    starts = iter(
      recorded["mem_index"][recorded[f"init_idx_head{h}"]]
      for h in range(len(ks))
    )
    monkeypatch.setattr(
      spherical, "random_start", lambda x, *_, starts=starts: x[next(starts)]
    )
    samples = state.method.samples
    if epoch:
      # What the epoch before left is what is clustered.
      in_bank = np.flatnonzero(samples.in_bank)
      np.testing.assert_array_equal(in_bank, np.sort(recorded["mem_index"]))
      bank = np.asarray(samples.bank)[recorded["mem_index"]]
      assert_close(bank, np.moveaxis(recorded["mem_emb"], 0, 1))
    assert method.recluster_due(config, t)
    passes = passes_of(of_epoch)
    clustered = method.recluster(config, state.method, passes, t)
    assert not clustered.samples.in_bank.any()
    for h, k in enumerate(ks):
      found = np.asarray(clustered.samples.assignments[:, h])
      expected = recorded["assignments"][h]
      np.testing.assert_array_equal(
        found[:n], np.where(expected < 0, k, expected)
      )
      assert (found[n:] == k).all()
      assert_close(clustered.centroids[h], recorded[f"centroids_head{h}"])
    first = np.asarray(method.clusters(clustered))
    np.testing.assert_array_equal(
      clustered.sizes, np.bincount(first, minlength=ks[0])[: ks[0]]
    )
    np.testing.assert_array_equal(
      clustered.samples.previous, samples.assignments[:, 0]
    )
    state = jax.device_put(state._replace(method=clustered), shardings)

    for i, crops in enumerate(recorded["crops"]):
      index = jnp.asarray(recorded["perm"][i * b : (i + 1) * b], jnp.int32)
      batch = place({"image": views_of(crops), "index": index})
      state, scalars, finite = step(state, batch)
      assert all(finite.values())
      assert_close(scalars["train/loss"], trace["loss"][t])
      t += 1
    assert not method.recluster_due(config, t - 1)
    epoch += 1

  assert t == len(trace["loss"])
  jax.tree.map(assert_close, state.params, params_of(trace, "w_end"))
  for h, centroids in enumerate(state.method.centroids):
    prototypes = trace[f"w_end/prototypes.prototypes{h}.weight"]
    assert_close(centroids, prototypes)
  bank = np.asarray(state.method.samples.bank)[trace["mem_index_end"]]
  assert_close(bank, np.moveaxis(trace["mem_emb_end"], 0, 1))


def four_rows():
  """Two clusterings of images in a plane, with two views; the last is new."""
  config = config_of(4, 2, (2, 2), 2, temperature=0.5)
  centroids = jnp.eye(2)
  state = deepcluster_v2.init(config, 4, None)._replace(
    centroids=(centroids, -centroids)
  )
  first, second = jnp.eye(2)[jnp.array([[0, 1, 1, 0], [0, 0, 1, 1]])]
  views = Outputs(first, first), Outputs(second, second)
  targets = deepcluster_v2.Targets(
    jnp.array([[0, 0], [0, 1], [1, 1], [2, 2]], jnp.int32)
  )
  return config, state, views, targets


def test_loss_by_hand():
  config, state, views, targets = four_rows()
  value, scalars = deepcluster_v2.loss(config, views, targets, state)
  # Scores of 2 and 0, in the second clustering -2 and 0: with
  # right = log(1 + e^-2) and wrong = 2 + right, the first clustering has
  # right, wrong, right | right, right, right, the second the three of
  # wrong, wrong, wrong | wrong, right, wrong.
  right = np.log1p(np.exp(-2))
  wrong = 2 + right
  by_hand = (right * 2 + wrong + right * 3 + wrong * 3 + wrong * 2 + right) / 12
  np.testing.assert_allclose(value, by_hand, rtol=1e-6)
  np.testing.assert_allclose(scalars["train/cluster_accuracy"], 2 / 3)


def test_a_batch_without_clusters_has_no_loss():
  config, state, views, targets = four_rows()
  nobody = deepcluster_v2.Targets(jnp.full_like(targets.clusters, 2))

  def loss(rows):
    outputs = [view._replace(embeddings=rows) for view in views]
    return deepcluster_v2.loss(config, tuple(outputs), nobody, state)[0]

  value, gradient = jax.value_and_grad(loss)(views[0].embeddings)
  assert value == 0
  assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_large_views_enter_the_bank_the_last_of_duplicates(mesh, dtype):
  config = config_of(64, 8, (3,), 2, num_large=1, memory_dtype=dtype)
  method = METHODS["deepcluster_v2"]
  state = method.init(config, 64, None)
  state = jax.device_put(state, state_lib.shardings(state, mesh))
  assert state.samples.bank.dtype == dtype
  index = jnp.array([3, 9, 3, 0, 63, 1, 2, 4], jnp.int32)
  large = jnp.arange(16.0).reshape(8, 2)
  views = Outputs(large, large), Outputs(-large, -large)

  def write(state):
    return method.after_step(config, state, views, None, {"index": index}, 0)

  state, scalars = jax.jit(write)(state)
  expected = np.zeros((mesh_lib.padded_rows(64), 1, 2))
  expected[index] = large[:, None]
  expected[3] = large[2]
  np.testing.assert_array_equal(state.samples.bank.astype(float), expected)
  np.testing.assert_array_equal(
    np.flatnonzero(state.samples.in_bank), np.unique(index)
  )
  assert scalars["cluster/empty"] == 3

  # Of those, and of no others, clusters are made.
  passes = passes_of(None)
  found = method.recluster(config, state, passes, 8)
  clusters = np.asarray(method.clusters(found))
  np.testing.assert_array_equal(np.flatnonzero(clusters < 3), np.unique(index))
  assert found.sizes.sum() == 7
  again = method.recluster(config, state, passes, 8)
  np.testing.assert_array_equal(again.samples.assignments[:, 0], clusters)


@pytest.mark.parametrize(
  ("ks", "changes", "named"),
  [
    ((3,), {"memory_dtype": "int8"}, "memory_dtype"),
    ((3, 9), {}, "9 clusters"),
  ],
)
def test_mistakes(ks, changes, named):
  with pytest.raises(UserError, match=named):
    deepcluster_v2.init(config_of(11, 4, ks, 2, **changes), 11, None)
