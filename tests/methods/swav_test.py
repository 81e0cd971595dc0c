import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from odc_jax import mesh as mesh_lib
from odc_jax.errors import UserError
from odc_jax.methods import METHODS, swav
from odc_jax.models import backbone as backbone_lib
from odc_jax.models import heads
from odc_jax.models.functional import functional
from odc_jax.models.network import Network, Outputs
from odc_jax.plan import collectives
from odc_jax.training import optim
from odc_jax.training import state as state_lib
from odc_jax.training import step as step_lib
from tests.recordings import load

assert_close = functools.partial(np.testing.assert_allclose, atol=1e-4)


def config_of(n, b, k, d, views=2, small_views=0, **swav_keys):
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": k,
      "batch_size": b,
      "data": {"views": views, "small_views": small_views},
      "model": {"embedding_dim": d},
      "swav": {
        "temperature": 0.1,
        "epsilon": 0.05,
        "sinkhorn_iters": 3,
        "queue_length": 0,
        "queue_start_epoch": 0,
      }
      | swav_keys,
    }
  )


class Linear(backbone_lib.Backbone):
  """The recording's stand-ins: for the backbone with a ReLU, and the neck."""

  def __init__(self, size_in, size_out, rngs, *, is_backbone):
    self.fc = nnx.Linear(size_in, size_out, rngs=rngs)
    self.is_backbone = is_backbone

  def __call__(self, x, rngs=None):
    x = self.fc(x)
    return [jax.nn.relu(x)] if self.is_backbone else x


def params_of(trace, prefix):
  """Returns recorded weights, out x in, as our tree, in x out."""

  def layer(name):
    return {
      "kernel": jnp.asarray(trace[f"{prefix}/{name}.weight"].T),
      "bias": jnp.asarray(trace[f"{prefix}/{name}.bias"]),
    }

  prototypes = jnp.asarray(trace[f"{prefix}/prototypes.weight"].T)
  return {
    "backbone": {"fc": layer("fc1")},
    "neck": {"fc": layer("fc2")},
    "head": {"kernels": {"0": prototypes}},
  }


def test_training_follows_the_official_code(
  golden_swav_train, mesh, monkeypatch
):
  trace = load(golden_swav_train)
  b, size_in, hidden, d, k, num_steps, _, queue_length, freeze, _ = (
    int(x) for x in trace["hp"]
  )
  views, small_views = (*trace["nmb_crops"].tolist(), 0)[:2]
  # Every step is an epoch: the head is frozen for whole epochs.
  config = config_of(b, b, k, d, views, small_views, queue_length=queue_length)
  config.optimizer = ConfigDict(
    {
      "name": "sgd",
      "momentum": 0.9,
      "weight_decay": 1e-6,
      "head_freeze_epochs": freeze,
    }
  )
  monkeypatch.setattr(
    optim, "schedule", lambda *_: lambda step: jnp.asarray(trace["lr"])[step]
  )

  def make(rngs):
    return Network(
      Linear(size_in, hidden, rngs, is_backbone=True),
      Linear(hidden, d, rngs, is_backbone=False),
      heads.Prototypes(d, (k,), rngs=rngs),
      unit=True,
      views_together=METHODS["swav"].VIEWS_TOGETHER,
    )

  network, method = functional(make), METHODS["swav"]
  optimizer = optim.make(config.optimizer, 1)
  init = state_lib.init_function(config, method, network, optimizer, b)
  shardings = state_lib.shardings(jax.eval_shape(init), mesh)
  state = jax.jit(init, out_shardings=shardings)()
  state = jax.device_put(
    state._replace(params=params_of(trace, "w_start")), shardings
  )

  @jax.jit
  def look(state, images):
    """Returns what the step is going to see."""
    params = method.prepare(state.params)
    outputs, _ = network.apply(params, state.batch_stats, images, None, True)
    found = method.targets(config, state.method, outputs, {}, state.step)
    return params, outputs, found

  step = jax.jit(
    step_lib.make_step(
      config, method, network, optimizer, lambda key, images, index: images
    ),
    donate_argnums=0,
    out_shardings=(shardings, None, None),
  )
  for t in range(num_steps):
    crops = trace["crops"][t].swapaxes(0, 1)[:, :, None, None, :]
    # Two kinds of crops, as if they differed in size.
    images = tuple(
      kind for kind in np.split(crops, [views], axis=1) if kind.shape[1]
    )
    batch = jax.device_put(
      {"image": images, "index": np.arange(b, dtype=np.int32)},
      mesh_lib.rows(mesh),
    )
    params, outputs, found = look(state, batch["image"])
    assert_close(params["head"]["kernels"]["0"].T, trace["prototypes_used"][t])
    for v in range(views + small_views):
      assert_close(outputs[v].embeddings, trace["embedding"][t][v])
    assert_close(jnp.stack(found.codes), trace["q_used"][t])
    if queue_length:
      assert_close(state.method.queue, trace["queue_before"][t])
    state, scalars, finite = step(state, batch)
    assert all(finite.values())
    assert_close(scalars["train/loss"], trace["loss"][t])
    clusters = np.argmax(trace["q_used"][t][0], axis=1)
    np.testing.assert_array_equal(
      state.method.samples.assignments[:b, 0], clusters
    )
    np.testing.assert_array_equal(
      state.method.sizes, np.bincount(clusters, minlength=k)
    )
  jax.tree.map(assert_close, state.params, params_of(trace, "w_end"))
  if queue_length:
    assert_close(state.method.queue, trace["queue_end"])


def outputs_of(*scores):
  """Returns views whose scores these are, with prototypes of one axis each."""
  scores = [jnp.asarray(s, jnp.float32) for s in scores]
  eye = jnp.eye(scores[0].shape[1])
  return tuple(Outputs(s, s, (s,), prototypes=(eye,)) for s in scores)


def test_loss_by_hand():
  config = config_of(4, 2, 2, 2, views=1, small_views=1, temperature=0.5)
  views = outputs_of(np.zeros((2, 2)), [[math.log(2) / 2, 0], [0, 0]])
  codes = jnp.array([[1.0, 0], [0.25, 0.75]])
  state = swav.init(config, 4, jax.random.key(0))
  value, aux = swav.loss(config, views, swav.Targets((codes,)), state)
  # p = [[2/3, 1/3], [1/2, 1/2]] for the second view predicts the first's code.
  np.testing.assert_allclose(value, (math.log(1.5) + math.log(2)) / 2)
  # Clusters 0 and 1, predicted 0 and, of two equals the first, 0.
  assert aux["train/cluster_accuracy"] == 0.5


def test_a_queue_takes_part_once_it_is_full(mesh):
  """Of four rows, filled two at a time, from the second epoch on."""
  config = config_of(
    4,
    2,
    2,
    2,
    epsilon=1.0,
    sinkhorn_iters=1,
    queue_length=4,
    queue_start_epoch=1,
  )
  state = swav.init(config, 4, jax.random.key(0))
  # Three steps with only the first prototype, then one with both.
  same, other = [[1.0, 0], [1, 0]], [[1.0, 0], [0, 1]]
  batch = {"index": jnp.array([0, 1])}
  num_rows = []
  for step, scores in enumerate([same, same, same, same, other]):
    views = outputs_of(scores, scores)
    found = swav.targets(config, state, views, batch, jnp.int32(step))
    state, _ = swav.after_step(
      config, state, views, found, batch, jnp.int32(step)
    )
    num_rows.append(int(jnp.sum(state.queue[0] != 0)))
  assert num_rows == [0, 0, 2, 4, 4]
  np.testing.assert_array_equal(state.queue[1], [*other, *same])
  # exp(scores) in the batch and four rows (e, 1): columns 6 e, ... of which
  # the rows of the batch are divided by.
  e = math.e
  columns = np.array([5 * e + 1, 5 + e])
  q = np.array([[e, 1], [1, e]]) / columns
  expected = q / q.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(found.codes[0], expected, rtol=1e-5)


@pytest.mark.optimized
def test_nothing_but_batches_and_prototypes_moves():
  n, b, k, d, q = 8 * 4096, 64, 48, 8, 128
  mesh = mesh_lib.make_mesh(8)
  config = config_of(n, b, k, d, queue_length=q)
  with jax.set_mesh(mesh):

    def step(state, embeddings, prototypes, index):
      views = tuple(
        Outputs(z, z, (z @ prototypes.T,), prototypes=(prototypes,))
        for z in embeddings
      )
      batch = {"index": index}
      found = swav.targets(config, state, views, batch, jnp.int32(0))
      value, _ = swav.loss(config, views, found, state)
      return value, swav.after_step(
        config, state, views, found, batch, jnp.int32(0)
      )

    rows, copies = mesh_lib.rows(mesh), mesh_lib.replicated(mesh)
    shapes = jax.eval_shape(lambda: swav.init(config, n, None))
    shardings = state_lib.shardings(shapes, mesh)
    place = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    lowered = jax.jit(step, out_shardings=(copies, (shardings, copies))).lower(
      jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        shapes,
        shardings,
      ),
      [place((b, d), sharding=rows)] * 2,
      place((k, d), sharding=copies),
      jax.ShapeDtypeStruct((b,), jnp.int32, sharding=rows),
    )
    found = collectives.collectives(lowered.compile().as_text())
  # The embeddings of a batch for the queue; nothing of n, and no scores.
  assert max(size for _, _, size in found) <= 2 * b * d * 4


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"views": 1}, "another one: take two or more"),
    ({"sinkhorn_iters": 0}, "have to be above 0"),
    ({"temperature": 0.0}, "have to be above 0"),
  ],
)
def test_mistakes(keys, message):
  config = config_of(4, 2, 2, 2, **keys)
  with pytest.raises(UserError, match=message):
    swav.init(config, 4, jax.random.key(0))
