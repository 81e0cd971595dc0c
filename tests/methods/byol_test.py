import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax.errors import UserError
from odc_jax.methods import METHODS, byol
from odc_jax.models import heads
from odc_jax.models.network import Network, _unit
from odc_jax.training import optim
from tests.methods import taught
from tests.recordings import load


def config_of(n, b, epochs=1, decay=0.9, **more):
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": 2,
      "num_epochs": epochs,
      "batch_size": b,
      "data": {"views": 2},
      "model": {"predictor": True},
      "eval": {"network": "student"},
      "byol": {"teacher_decay": decay},
      **more,
    }
  )


def rates(base, b, total, warmup):
  """Returns the section of the official learning rates, a step an epoch."""
  return ConfigDict(
    {
      "learning_rate": base * b / 256,
      "schedule": "cosine",
      "warmup_epochs": warmup,
      "num_epochs": total,
    }
  )


def test_loss_and_schedules_follow_the_official_code(golden_byol_loss):
  trace = load(golden_byol_loss)

  def loss(p, z):
    return byol.distances(_unit(p), _unit(z))

  p, z = jnp.asarray(trace["p"]), jnp.asarray(trace["z"])
  np.testing.assert_allclose(loss(p, z), trace["loss"], atol=1e-6)
  gradient = jax.grad(lambda p: jnp.sum(loss(p, z)))(p)
  largest = np.abs(trace["grad_p"]).max(axis=1, keepdims=True)
  assert np.all(np.abs(gradient - trace["grad_p"]) <= 1e-6 + 1e-4 * largest)

  total, warmup = int(trace["total_steps"]), int(trace["warmup_steps"])
  steps = jnp.asarray(trace["steps"])
  config = config_of(4, 4, total, float(trace["base_ema"]))
  np.testing.assert_allclose(
    byol.teacher_decay(config, steps), trace["tau"], rtol=1e-5, atol=1e-7
  )
  b, base = int(trace["batch_size"]), float(trace["base_learning_rate"])
  schedule = optim.schedule(rates(base, b, total, warmup), 1)
  np.testing.assert_allclose(
    jax.vmap(schedule)(steps), trace["lr"], rtol=1e-5, atol=1e-7
  )


def weights_of(trace, prefix):
  """Returns recorded params as our tree."""
  parts = {
    ours: taught.projection(trace, f"{prefix}/{theirs}", (0, 3), (1,))[0]
    for ours, theirs in (("neck", "projector"), ("predictor", "predictor"))
  }
  body = taught.linear(trace, f"{prefix}/encoder.fc")
  return {"backbone": {"fc": body}, **parts}


def test_training_follows_the_official_code(
  golden_byol_train, mesh, monkeypatch
):
  trace = load(golden_byol_train)
  b, size_in, hidden, inner, d, predicting, total, steps, warmup = (
    int(x) for x in trace["hp"]
  )
  base, momentum, decay, trust, ema, _ = (float(x) for x in trace["hpf"])
  schedule = optim.schedule(rates(base, b, total, warmup), 1)
  np.testing.assert_allclose(
    jax.vmap(schedule)(jnp.arange(steps)), trace["lr"], atol=1e-6
  )
  optimizer = {
    "name": "lars",
    "trust": trust,
    "momentum": momentum,
    "weight_decay": decay,
  }
  config = config_of(b, b, total, ema, optimizer=optimizer)
  np.testing.assert_allclose(
    byol.teacher_decay(config, jnp.arange(steps)), trace["tau"], atol=1e-6
  )

  def make(rngs):
    return Network(
      taught.Backbone(size_in, hidden, rngs),
      heads.Projection((hidden, inner, d), bias_last=False, rngs=rngs),
      None,
      heads.Projection((d, predicting, d), bias_last=False, rngs=rngs),
      unit=True,
      views_together=METHODS["byol"].VIEWS_TOGETHER,
    )

  replay = taught.Replay(trace, config, "byol", make, mesh, monkeypatch)
  target = weights_of(trace, "w_start/target")
  # Of the target the predictor is carried along there, and never used.
  assert target.pop("predictor") is not None
  assert set(replay.state.teacher) == set(target)
  replay.start(params=weights_of(trace, "w_start/online"), teacher=target)
  compared = 0
  for t, size in enumerate(trace["batch_sizes"]):
    views = trace["view1"][t, :size], trace["view2"][t, :size]
    if t == 0:
      expected = weights_of(trace, "grad_0")
      taught.assert_close(replay.gradients(views), expected, 1e-5)
    if f"prediction_view1_{t}" in trace:
      seen = replay.look(views)
      for i in (0, 1):
        for found, name in (
          (seen.student[i].predictions, "prediction"),
          (seen.teacher[i].embeddings, "target"),
        ):
          expected = _unit(jnp.asarray(trace[f"{name}_view{i + 1}_{t}"]))
          np.testing.assert_allclose(found, expected, atol=5e-5)
    scalars = replay.step(views)
    np.testing.assert_allclose(
      scalars["train/loss"], trace["loss"][t], atol=1e-5
    )
    if f"w_after_step{t}/online/encoder.fc.bias" in trace:
      expected = weights_of(trace, f"w_after_step{t}/online")
      taught.assert_close(replay.state.params, expected, 1e-5)
      target = weights_of(trace, f"w_after_step{t}/target")
      del target["predictor"]
      taught.assert_close(replay.state.teacher, target, 1e-5)
      compared += 1
  assert compared


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"data": {"views": 3}}, "data.views=2"),
    ({"model": {"predictor": False}}, "needs a predictor"),
    ({"byol": {"teacher_decay": 1.5}}, "not between 0 and 1"),
  ],
)
def test_mistakes(keys, message):
  config = config_of(4, 2)
  config.update(keys)
  with pytest.raises(UserError, match=message):
    byol.init(config, 4, None)
