import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax.config import options
from odc_jax.errors import UserError
from odc_jax.methods import METHODS, carp
from odc_jax.methods.carp import Targets
from odc_jax.models import heads
from odc_jax.models.network import Network, Outputs
from odc_jax.training import optim
from tests.methods import taught
from tests.recordings import load

LOSS = {"atol": 1e-5, "rtol": 0}


def config_of(n, b, k, epochs=1, views=2, small_views=0, **keys):
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": k,
      "num_epochs": epochs,
      "batch_size": b,
      "data": {"views": views, "small_views": small_views},
      "eval": {"network": "teacher"},
      "carp": {"block_size": 0, "teacher": True, "teacher_decay": (0.99, 1.0)}
      | keys,
    }
  )


def outputs(logits, num_views):
  """Returns the views of recorded logits, (views * b, k)."""
  return tuple(
    Outputs(rows, rows, (rows,)) for rows in jnp.split(logits, num_views)
  )


@pytest.mark.parametrize("case", ["carl", "carl_teacher", "carp", "carp_crops"])
def test_loss_follows_the_official_code(golden_carl_loss, case, monkeypatch):
  trace = load(golden_carl_loss)
  b, k, size, crops = (int(x) for x in trace["hp"])
  is_carp = case.startswith("carp")
  num_views = crops if case == "carp_crops" else 2
  config = config_of(
    b,
    b,
    k,
    small_views=num_views - 2,
    block_size=size if is_carp else 0,
    teacher=case != "carl",
  )
  partition = trace[f"{case}/partition"].reshape(-1, size if is_carp else k)
  monkeypatch.setattr(carp, "blocks_of_step", lambda *_: jnp.asarray(partition))
  teacher = outputs(jnp.asarray(trace["teacher"]), 2)
  state = carp.init(config, b, None)

  def loss(logits):
    views = outputs(logits, num_views)
    if config.carp.teacher:
      views = taught.step_lib.Views(views, teacher)
    targets = carp.targets(config, state, jax.lax.stop_gradient(views), {}, 0)
    return carp.loss(config, views, targets, state)

  student = jnp.asarray(trace["student"][: num_views * b])
  (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(student)
  parts = aux["train/consistency"], aux["train/unevenness"]
  for found, name in zip(parts, ("consistency", "kl"), strict=True):
    np.testing.assert_allclose(found, trace[f"{case}/{name}"], **LOSS)
  np.testing.assert_allclose(value, sum(parts), rtol=1e-6)
  np.testing.assert_allclose(gradient, trace[f"{case}/grad"], atol=1e-6)


def weights_of(trace, prefix):
  """Returns recorded params and statistics as our trees."""
  neck, stats = taught.projection(
    trace, f"{prefix}/head.mlp", (0, 3, 6), (1, 4)
  )
  kernel = trace[f"{prefix}/head.last_layer.weight_v"].T
  params = {
    "backbone": {"fc": taught.linear(trace, f"{prefix}/backbone.body")},
    "neck": neck,
    "head": {"kernels": {"0": jnp.asarray(kernel)}},
  }
  return params, {"neck": stats}


def replay_of(trace, config, sizes, mesh, monkeypatch):
  """Returns the step with the recorded weights of the start."""
  size_in, hidden, inner, d = sizes

  def make(rngs):
    return Network(
      taught.Backbone(size_in, hidden, rngs),
      heads.Projection((hidden, inner, inner, d), gelu=True, rngs=rngs),
      heads.UnitPrototypes(d, (config.num_clusters,), rngs=rngs),
      views_together=METHODS["carp"].VIEWS_TOGETHER,
    )

  replay = taught.Replay(trace, config, "carp", make, mesh, monkeypatch)
  params, batch_stats = weights_of(trace, "w_start/student")
  parts = {"params": params, "batch_stats": batch_stats}
  if config.carp.teacher:
    parts |= {"teacher": params, "teacher_stats": batch_stats}
  replay.start(**parts)
  return replay


def assert_losses(scalars, trace, t):
  for name, recorded in (("consistency", "consistency"), ("unevenness", "kl")):
    np.testing.assert_allclose(
      scalars[f"train/{name}"], trace[recorded][t], **LOSS
    )


def assert_weights(found, trace, prefix):
  for tree, expected in zip(found, weights_of(trace, prefix), strict=True):
    taught.assert_close(tree, expected, 2e-5)


def test_one_block_without_a_teacher(golden_carl_train, mesh, monkeypatch):
  """CARL as it is understood here, made of CARP's official functions."""
  trace = dict(load(golden_carl_train))
  b, *sizes, k, steps = (int(x) for x in trace["hp"])
  rate, momentum, decay = (float(x) for x in trace["hpf"])
  config = config_of(b, b, k, steps, teacher=False)
  config.optimizer = {"momentum": momentum, "weight_decay": decay}
  trace["lr"] = np.full(steps, rate, np.float32)
  replay = replay_of(trace, config, sizes, mesh, monkeypatch)
  assert replay.state.teacher is replay.state.teacher_stats is None
  for t in range(steps):
    crops = trace["crops"][t]
    if t == 0:
      expected, _ = weights_of(trace, "grad_0")
      taught.assert_close(replay.gradients(crops), expected, 1e-5)
    seen = replay.look(crops)
    if f"logits_{t}" in trace:
      logits = jnp.concatenate([view.logits[0] for view in seen])
      np.testing.assert_allclose(logits, trace[f"logits_{t}"], atol=1e-4)
    clusters = replay.targets(crops).clusters
    np.testing.assert_array_equal(
      np.bincount(clusters, minlength=k), trace["assignment_sizes"][t]
    )
    assert_losses(replay.step(crops), trace, t)
    if f"w_after_step{t}/student/backbone.body.bias" in trace:
      state = replay.state
      assert_weights(
        (state.params, state.batch_stats), trace, f"w_after_step{t}/student"
      )


def test_training_follows_the_official_code(
  golden_carp_train, mesh, monkeypatch
):
  trace = load(golden_carp_train)
  b, *sizes, k, size, crops, steps, epochs, warmup = (
    int(x) for x in trace["hp"]
  )
  peak, momentum, decay, m, final, trust = (float(x) for x in trace["hpf"])
  config = config_of(
    steps * b,
    b,
    k,
    epochs,
    small_views=crops - 2,
    block_size=size,
    teacher_decay=(m, 1.0),
  )
  config.optimizer = {
    "name": "lars",
    "trust": trust,
    "momentum": momentum,
    "weight_decay": decay,
    "learning_rate": peak,
    "final_learning_rate": final,
    "schedule": "cosine",
    "warmup_epochs": warmup,
    "num_epochs": epochs,
  }
  t = jnp.arange(steps * epochs)
  np.testing.assert_allclose(
    carp.teacher_decay(config, t), trace["teacher_momentum"], atol=1e-6
  )
  schedule = jax.vmap(optim.schedule(config.optimizer, steps))
  np.testing.assert_allclose(
    # The official warm-up ends a step earlier.
    schedule(t)[warmup * steps :],
    trace["lr"][warmup * steps :],
    atol=1e-6,
  )
  partitions = jnp.asarray(trace["partition"])
  monkeypatch.setattr(
    carp,
    "blocks_of_step",
    lambda config, step: partitions[step].reshape(-1, size),
  )
  replay = replay_of(trace, config, sizes, mesh, monkeypatch)
  for t in range(steps * epochs):
    # Of one size, so that they are one batch to the network.
    views = trace["crops"][t][:2], trace["crops"][t][2:]
    if t == 0:
      expected, _ = weights_of(trace, "grad_0")
      taught.assert_close(replay.gradients(*views), expected, 1e-5)
    assert_losses(replay.step(*views), trace, t)
    if (t + 1) % steps:
      continue
    epoch, state = (t + 1) // steps - 1, replay.state
    for name, found in (
      ("student", (state.params, state.batch_stats)),
      ("teacher", (state.teacher, state.teacher_stats)),
    ):
      assert_weights(found, trace, f"w_after_epoch{epoch}/{name}")


def test_blocks_are_a_new_partition_in_every_step():
  config = config_of(4, 2, 11, block_size=3)
  first, again, other = (carp.blocks_of_step(config, t) for t in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert first.shape == other.shape == (3, 3)
  for blocks in (first, other):
    assert len(np.unique(blocks)) == 9
    assert 0 <= np.min(blocks) <= np.max(blocks) < 11
  assert np.any(first != other)
  config.carp.block_size = 0
  np.testing.assert_array_equal(carp.blocks_of_step(config, 0), [np.arange(11)])


def test_loss_by_hand():
  config = config_of(2, 2, 2)
  even = jnp.zeros((2, 2))
  decided = jnp.array([[np.log(3.0), 0], [0, 0]])
  views = tuple(Outputs(s, s, (s,)) for s in (even, decided))
  blocks, clusters = jnp.arange(2)[None], jnp.zeros(2, jnp.int32)
  # The first view's softmax is [1/2, 1/2] twice, the second's [3/4, 1/4] and
  # [1/2, 1/2].
  q = jnp.array([[[1.0, 0]], [[0.25, 0.75]]])
  seen = taught.step_lib.Views(views, ())
  state = carp.init(config, 2, None)
  targets = Targets(blocks, (q, q), clusters)
  value, aux = carp.loss(config, seen, targets, state)
  alike = -(np.log(0.75) + 3 * np.log(0.5)) / 4
  first = (0.5 + 0.5 + 0.75 + 0.5 + 1.25 + 1.25) / 8
  uneven = np.log(2) + sum(r * np.log(r) for r in (first, 1 - first))
  np.testing.assert_allclose(aux["train/consistency"], alike, rtol=1e-6)
  np.testing.assert_allclose(aux["train/unevenness"], uneven, rtol=1e-5)
  np.testing.assert_allclose(value, alike + uneven, rtol=1e-6)


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"block_size": 1}, "not between 2 and num_clusters=5"),
    ({"block_size": 6}, "not between 2 and num_clusters=5"),
    ({"teacher_decay": (0.9, 1.5)}, "not between 0 and 1"),
    ({"views": 1}, "take two or more"),
  ],
)
def test_mistakes(keys, message):
  with pytest.raises(UserError, match=message):
    carp.init(config_of(4, 2, 5, **keys), 4, None)


def test_without_a_teacher_its_keys_do_nothing():
  idle = options.idle({"carp.teacher": False}, METHODS["carp"])
  assert {"carp.teacher_decay", "eval.network"} <= idle.keys()
  idle = options.idle({"carp.teacher": True}, METHODS["carp"])
  assert not {"carp.teacher_decay", "eval.network"} & idle.keys()
