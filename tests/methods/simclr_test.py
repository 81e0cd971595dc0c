import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax import losses
from odc_jax import mesh as mesh_lib
from odc_jax.errors import UserError
from odc_jax.methods import METHODS, simclr, unclustered
from odc_jax.models import heads
from odc_jax.models.network import Network, _unit
from tests.methods import taught
from tests.recordings import load


def config_of(n, b, temperature=0.5, **more):
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": 2,
      "num_epochs": 1,
      "batch_size": b,
      "data": {"views": 2},
      "simclr": {"temperature": temperature},
      **more,
    }
  )


def test_losses_follow_the_official_codes(golden_simclr_loss):
  trace = load(golden_simclr_loss)

  def loss(hidden, views, temperature):
    rows = _unit(hidden).reshape(views, -1, hidden.shape[1])
    return losses.nt_xent(rows.swapaxes(0, 1), temperature)[0]

  with_gradient = jax.value_and_grad(loss)
  for j, temperature in enumerate(trace["temperature"].tolist()):
    hidden = jnp.asarray(trace["hidden"])
    value, gradient = with_gradient(hidden, 2, temperature)
    for kind, factor in (("mean", 1), ("sum", 2)):
      np.testing.assert_allclose(
        factor * value, trace[f"loss_{kind}{j}"], atol=1e-5
      )
      np.testing.assert_allclose(
        factor * gradient, trace[f"grad_{kind}{j}"], atol=1e-5
      )
    hidden = jnp.asarray(trace["hidden_views"])
    views = len(hidden) // (len(trace["hidden"]) // 2)
    value, gradient = with_gradient(hidden, views, temperature)
    np.testing.assert_allclose(value, trace[f"loss_mean_views{j}"], atol=1e-5)
    np.testing.assert_allclose(
      gradient, trace[f"grad_mean_views{j}"], atol=1e-5
    )


def weights_of(trace, prefix):
  """Returns recorded params and statistics as our trees."""
  neck, stats = taught.projection(trace, f"{prefix}/projector", (0, 3), (1,))
  body = taught.linear(trace, f"{prefix}/body")
  return {"backbone": {"fc": body}, "neck": neck}, {"neck": stats}


def test_training_follows_solo_learn(golden_simclr_train, mesh, monkeypatch):
  trace = load(golden_simclr_train)
  b, size_in, hidden, inner, d, _, is_lars = (int(x) for x in trace["hp"])
  _, momentum, decay, temperature, trust = (float(x) for x in trace["hpf"])
  optimizer = {
    "name": "lars" if is_lars else "sgd",
    "trust": trust,
    "clip": True,
    "momentum": momentum,
    "weight_decay": decay,
  }
  config = config_of(b, b, temperature, optimizer=optimizer)

  def make(rngs):
    return Network(
      taught.Backbone(size_in, hidden, rngs),
      heads.Projection((hidden, inner, d), rngs=rngs),
      None,
      unit=True,
      views_together=METHODS["simclr"].VIEWS_TOGETHER,
    )

  replay = taught.Replay(trace, config, "simclr", make, mesh, monkeypatch)
  params, batch_stats = weights_of(trace, "w_start")
  replay.start(params=params, batch_stats=batch_stats)
  compared = set()
  for t, size in enumerate(trace["batch_sizes"]):
    views = trace["view1"][t, :size], trace["view2"][t, :size]
    if t == 0:
      expected, _ = weights_of(trace, "grad_0")
      taught.assert_close(replay.gradients(views), expected, 1e-5)
    scalars = replay.step(views)
    np.testing.assert_allclose(
      scalars["train/loss"], trace["loss"][t], atol=1e-5
    )
    if t in trace["weight_steps"]:
      expected = weights_of(trace, f"w_after_step{t}")
      taught.assert_close(replay.state.params, expected[0], 1e-5)
      taught.assert_close(replay.state.batch_stats, expected[1], 1e-5)
      compared.add(t)
  assert compared == set(trace["weight_steps"].tolist())


def test_loss_by_hand():
  """Two images: views at 0 and 90 degrees, and both at 180."""
  z = jnp.array([[[1.0, 0], [0, 1]], [[-1, 0], [-1, 0]]])
  value, accuracy = losses.nt_xent(z, 1.0)
  e = np.e
  terms = [
    np.log(1 + 2 / e) - 0,
    np.log(1 + 1 + 1) - 0,
    np.log(1 / e + 1 + e) - 1,
    np.log(1 / e + 1 + e) - 1,
  ]
  np.testing.assert_allclose(value, np.mean(terms), rtol=1e-6)
  # Of the second view all three others are equally near, the first counts.
  assert accuracy == 1.0


def test_embeddings_are_clustered_once_the_run_is_finished(mesh):
  config = config_of(10, 5)
  state = unclustered.start(config, 10)
  assert np.all(METHODS["simclr"].clusters(state) == 2)
  rows = np.zeros((mesh_lib.padded_rows(10), 2), np.float32)
  # Two directions, of whatever length.
  rows[:10, 0] = [1, 2, 3, 4, 5, 0, 0, 0, 0, 0]
  rows[:10, 1] = [0.1, 0, 0.1, 0, 0, 9, 1, 1, 1, 1]
  rows = jax.device_put(rows, mesh_lib.rows(mesh))
  state = unclustered.finish(config, state, None, None, rows)
  found = np.asarray(METHODS["simclr"].clusters(state))
  assert len(set(found[:5])) == len(set(found[5:10])) == 1
  assert found[0] != found[5]
  assert np.all(found[10:] == 2)


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"data": {"views": 1}}, "compares the views"),
    ({"simclr": {"temperature": 0.0}}, "temperature=0.0 has to be above 0"),
  ],
)
def test_mistakes(keys, message):
  config = config_of(4, 2)
  config.update(keys)
  with pytest.raises(UserError, match=message):
    simclr.init(config, 4, None)
