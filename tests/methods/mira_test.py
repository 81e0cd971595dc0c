import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax.clustering.mutual_information import regularized_assignment
from odc_jax.errors import UserError
from odc_jax.methods import METHODS, mira
from odc_jax.methods.mira import Targets
from odc_jax.models import heads
from odc_jax.models.network import Network, Outputs
from tests.methods import taught
from tests.recordings import load


def config_of(n, b, k, epochs=1, small_views=0, **keys):
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": k,
      "num_epochs": epochs,
      "batch_size": b,
      "data": {"views": 2, "small_views": small_views},
      "eval": {"network": "teacher"},
      "mira": {
        "temperature": 0.1,
        "teacher_temperature": 0.225,
        "beta": (0.75, 0.5),
        "num_iters": 30,
        "teacher_decay": (0.99, 1.0),
      }
      | keys,
    }
  )


def statistics(p):
  """Returns mean entropy, entropy of the mean, and mutual information."""
  p = np.asarray(p, np.float64)

  def entropy(p):
    return -np.sum(p * np.log(p + 1e-10), axis=-1)

  each, mean = entropy(p).mean(), entropy(p.mean(axis=0))
  return np.array([each, mean, mean - each])


def test_assignments_follow_the_official_code(golden_mira_assign):
  trace = load(golden_mira_assign)
  logits = jnp.asarray(trace["logits"])
  for j, temperature in enumerate(trace["tau"].tolist()):
    found = regularized_assignment(
      logits, temperature, float(trace["beta"][j]), int(trace["iters"][j])
    )
    np.testing.assert_allclose(found, trace[f"target{j}"], atol=5e-6)
    np.testing.assert_allclose(statistics(found), trace[f"stats{j}"], atol=5e-6)
  # As good as without end.
  found = regularized_assignment(
    logits, float(trace["tau"][0]), float(trace["beta"][0]), 2000
  )
  np.testing.assert_allclose(found, trace["target0_limit_f64"], atol=5e-6)


def weights_of(trace, prefix):
  """Returns recorded params and statistics as our trees."""
  neck, stats = taught.projection(
    trace, f"{prefix}/projector", (0, 3, 6), (1, 4)
  )
  params = {
    "backbone": {"fc": taught.linear(trace, f"{prefix}/encoder.fc")},
    "neck": neck,
  }
  if f"{prefix}/head.weight_v" in trace:
    kernel = jnp.asarray(trace[f"{prefix}/head.weight_v"].T)
    params["head"] = {"kernels": {"0": kernel}}
  return params, {"neck": stats}


def test_training_follows_the_official_code(
  golden_mira_train, mesh, monkeypatch
):
  trace = load(golden_mira_train)
  (
    b,
    size_in,
    hidden,
    inner,
    d,
    k,
    steps,
    epochs,
    views,
    small,
    freeze,
    _,
    iters,
    is_lars,
  ) = (int(x) for x in trace["hp"])
  _, momentum, decay, _, _, *ema, tau_s, tau_t, beta_0, beta_1 = (
    float(x) for x in trace["hpf"]
  )
  config = config_of(
    steps * b,
    b,
    k,
    epochs,
    small,
    temperature=tau_s,
    teacher_temperature=tau_t,
    beta=(beta_0, beta_1),
    num_iters=iters,
    teacher_decay=tuple(ema),
  )
  config.data.views = views
  config.optimizer = {
    "name": "lars" if is_lars else "sgd",
    "decay_all": False,
    "momentum": momentum,
    "weight_decay": decay,
    "head_freeze_epochs": freeze,
  }
  t = jnp.arange(steps * epochs)
  for found, name in ((mira.teacher_decay, "ema"), (mira.beta, "beta")):
    np.testing.assert_allclose(found(config, t), trace[name], atol=1e-6)

  def make(rngs):
    return Network(
      taught.Backbone(size_in, hidden, rngs),
      heads.Projection((hidden, inner, inner, d), bias_hidden=False, rngs=rngs),
      heads.UnitPrototypes(d, (k,), rngs=rngs),
      unit=True,
      views_together=METHODS["mira"].VIEWS_TOGETHER,
    )

  replay = taught.Replay(trace, config, "mira", make, mesh, monkeypatch)
  params, batch_stats = weights_of(trace, "w_start/model")
  replay.start(
    params=params,
    batch_stats=batch_stats,
    teacher=params,
    teacher_stats=batch_stats,
  )
  for t in range(steps * epochs):
    crops = trace["crops"][t]
    kinds = [crops[:views], crops[views:]] if small else [crops]
    targets = replay.targets(*kinds)
    np.testing.assert_allclose(
      jnp.stack(targets.assignments), trace["target"][t], atol=1e-4
    )
    if f"grad_{t}/encoder.fc.bias" in trace:
      expected, _ = weights_of(trace, f"grad_{t}")
      taught.assert_close(replay.gradients(*kinds), expected, 1e-4)
    scalars = replay.step(*kinds)
    np.testing.assert_allclose(
      scalars["train/loss"], trace["loss"][t], atol=1e-4
    )
    if (t + 1) % steps:
      continue
    epoch, state = (t + 1) // steps - 1, replay.state
    for name, found in (
      ("model", (state.params, state.batch_stats)),
      ("ema_model", (state.teacher, state.teacher_stats)),
    ):
      for tree, expected in zip(
        found, weights_of(trace, f"w_after_epoch{epoch}/{name}"), strict=True
      ):
        taught.assert_close(tree, expected, 5e-5)


def test_loss_by_hand():
  config = config_of(4, 2, 2, temperature=0.5)
  views = [
    Outputs(s, s, (s,))
    for s in (jnp.zeros((2, 2)), jnp.array([[np.log(2) / 2, 0], [0, 0]]))
  ]
  first = jnp.array([[1.0, 0], [0.25, 0.75]])
  second = jnp.array([[0.5, 0.5], [0.0, 1]])
  seen = taught.step_lib.Views(tuple(views), ())
  state = mira.init(config, 4, None)
  value, aux = mira.loss(config, seen, Targets((first, second)), state)
  # The second view's p = [[2/3, 1/3], [1/2, 1/2]] predicts the first's labels,
  # and the first's halves the second's.
  expected = ((np.log(1.5) + np.log(2)) / 2 + np.log(2)) / 2
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert aux["train/cluster_accuracy"] == 0.5


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"temperature": 0.0}, "have to be above 0"),
    ({"beta": (0.5, 1.5)}, "not between 0 and 1"),
    ({"beta": (0.5, 1.0)}, "has to be below 1"),
  ],
)
def test_mistakes(keys, message):
  with pytest.raises(UserError, match=message):
    mira.init(config_of(4, 2, 2, **keys), 4, None)


def test_one_view_is_not_enough():
  config = config_of(4, 2, 2)
  config.data.views = 1
  with pytest.raises(UserError, match="another one: take two or more"):
    mira.init(config, 4, jax.random.key(0))
