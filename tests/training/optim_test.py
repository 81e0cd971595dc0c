"""The optimiser and its schedules against PyTorch's recurrence, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from odc_jax.errors import UserError
from odc_jax.training import optim
from tests.recordings import load


def section(**overrides):
  config = ConfigDict(
    {
      "learning_rate": 0.5,
      "momentum": 0.9,
      "head_momentum": 0.0,
      "weight_decay": 0.1,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": (),
      "decay_rate": 0.1,
      "num_epochs": 10,
    }
  )
  config.update(overrides)
  return config


def rates(config, steps, steps_per_epoch=10):
  schedule = optim.schedule(config, steps_per_epoch)
  return [float(schedule(step)) for step in steps]


def test_step_schedule_falls_with_the_first_step_of_an_epoch():
  config = section(decay_epochs=(2, 5), decay_rate=0.4)
  found = rates(config, [0, 19, 20, 49, 50, 99])
  np.testing.assert_allclose(found, [0.5, 0.5, 0.2, 0.2, 0.08, 0.08], rtol=1e-6)


def test_step_schedule_counts_decays_from_the_start_despite_a_warmup():
  config = section(decay_epochs=(2, 5), decay_rate=0.4, warmup_epochs=0.5)
  found = rates(config, [0, 1, 4, 5, 19, 20, 49, 50])
  expected = [0.0, 0.1, 0.4, 0.5, 0.5, 0.2, 0.2, 0.08]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_cosine_schedule_ends_at_zero():
  steps = np.array([0, 1, 25, 50, 75, 99, 100])
  found = rates(section(schedule="cosine"), steps)
  expected = 0.5 * (1 + np.cos(np.pi * steps / 100)) / 2
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_cosine_schedule_begins_behind_the_warmup():
  config = section(schedule="cosine", warmup_epochs=2.0)
  found = rates(config, [0, 10, 19, 20, 60, 100])
  expected = [0.0, 0.25, 0.475, 0.5, 0.25, 0.0]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_cosine_schedule_ends_at_the_final_rate():
  config = section(schedule="cosine", final_learning_rate=0.1)
  np.testing.assert_allclose(
    rates(config, [0, 50, 100, 120]), [0.5, 0.3, 0.1, 0.1], rtol=1e-6
  )


def test_warmup_from_another_rate():
  config = section(schedule="cosine", warmup_epochs=1.0, warmup_from=0.3)
  np.testing.assert_allclose(
    rates(config, [0, 5, 10, 55]), [0.3, 0.4, 0.5, 0.25], rtol=1e-6
  )


def test_a_held_rate_comes_before_the_warmup():
  """SeCu and CoKe: the first step behind the hold has the second's rate."""
  config = section(schedule="cosine", hold_epochs=1, warmup_epochs=1.0)
  found = rates(config, [0, 9, 10, 11, 12, 19, 20, 60, 100])
  expected = [0.0, 0.0, 0.05, 0.05, 0.1, 0.45, 0.5, 0.25, 0.0]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_decays_are_counted_from_the_start_despite_a_hold():
  config = section(hold_epochs=1, decay_epochs=(2,))
  np.testing.assert_allclose(
    rates(config, [9, 10, 19, 20]), [0.0, 0.5, 0.5, 0.05], rtol=1e-6
  )


@pytest.mark.parametrize(
  ("key", "choices"),
  [("schedule", "step or cosine"), ("name", "sgd, lars or adamw")],
)
def test_an_unknown_choice(key, choices):
  with pytest.raises(UserError, match=rf"'linear'; choose {choices}"):
    optim.make(section(**{key: "linear"}), 10)


def by_hand(config, params, velocity, gradient, t, part, steps_per_epoch):
  """PyTorch's recurrence on one parameter."""
  lars, adapt_all = config.get("name") == "lars", config.get("adapt_all")
  is_head = part == "head"
  if is_head and t < config.get("head_freeze_epochs", 0) * steps_per_epoch:
    return params, velocity
  rate = config.learning_rate
  if config.decay_epochs and t >= config.decay_epochs[0] * steps_per_epoch:
    rate *= config.decay_rate
  if is_head:
    rate = config.get("head_learning_rate", rate)
  momentum = config.head_momentum if is_head else config.momentum
  if not lars or adapt_all or params.ndim > 1:
    gradient = gradient + config.weight_decay * params
    lengths = np.linalg.norm(params), np.linalg.norm(gradient)
    if lars and all(lengths):
      trust = config.get("trust", 0.001)
      gradient = gradient * trust * lengths[0] / lengths[1]
  velocity = momentum * velocity + gradient
  return params - rate * velocity, velocity


LARS = {"name": "lars", "learning_rate": 40.0}


@pytest.mark.parametrize(
  "overrides",
  [
    {},
    {"head_learning_rate": 0.3, "head_momentum": 0.9},
    {"head_freeze_epochs": 1.5, "head_momentum": 0.9},
    {"head_freeze_epochs": 1, "head_learning_rate": 0.3},
    LARS,
    {**LARS, "adapt_all": True},
    {**LARS, "trust": 0.02},
    {**LARS, "head_learning_rate": 60.0, "head_momentum": 0.9},
  ],
  ids=lambda overrides: "-".join(overrides) or "odc",
)
def test_optimizers_are_pytorch_s(overrides):
  """v <- m v + (g + wd p); p <- p - lr v, the head with what is its own."""
  # Two steps an epoch: the rate falls with step 4.
  config = section(decay_epochs=(2,), weight_decay=0.2, **overrides)
  rng = np.random.default_rng(0)

  def tree():
    return {
      "backbone": {"kernel": rng.normal(size=(2, 3)), "zero": np.zeros((2, 2))},
      "neck": {"bias": rng.normal(size=3)},
      "head": {"kernel": rng.normal(size=(3, 2))},
    }

  def to_jax(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

  expected, gradients = tree(), [tree() for _ in range(6)]
  velocity = jax.tree.map(np.zeros_like, expected)
  transform = optim.make(config, steps_per_epoch=2)
  params = to_jax(expected)
  state = transform.init(params)

  @jax.jit
  def step(params, state, gradient):
    updates, state = transform.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  for t, gradient in enumerate(gradients):
    params, state = step(params, state, to_jax(gradient))
    for part, leaves in expected.items():
      for name, p in leaves.items():
        leaves[name], velocity[part][name] = by_hand(
          config, p, velocity[part][name], gradient[part][name], t, part, 2
        )
    jax.tree.map(
      lambda found, p: np.testing.assert_allclose(
        found, p, rtol=2e-5, atol=1e-6
      ),
      params,
      expected,
    )


def contrastive(params, view1, view2, temperature):
  """SimCLR's loss of the recording's network, with torch's layouts."""

  def of_view(x):
    def layer(x, name):
      return x @ params[f"{name}.weight"].T + params[f"{name}.bias"][None]

    x = layer(jax.nn.relu(layer(x, "body")), "projector.0")
    x = (x - x.mean(0)[None]) / jnp.sqrt(x.var(0) + 1e-5)[None]
    x = x * params["projector.1.weight"][None]
    x = jax.nn.relu(x + params["projector.1.bias"][None])
    x = layer(x, "projector.3")
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)

  rows = jnp.concatenate([of_view(view1), of_view(view2)])
  n = len(rows)
  scores = rows @ rows.T / temperature - 1e9 * jnp.eye(n)
  partners = scores[jnp.arange(n), jnp.roll(jnp.arange(n), n // 2)]
  return jnp.mean(jax.nn.logsumexp(scores, axis=1) - partners)


def test_lars_that_clips_follows_solo_learn(
  golden_simclr_train_lars_clip, monkeypatch
):
  trace = load(golden_simclr_train_lars_clip)
  _, momentum, decay, temperature, trust = trace["hpf"].tolist()
  monkeypatch.setattr(
    optim, "schedule", lambda *_: lambda step: jnp.asarray(trace["lr"])[step]
  )
  config = section(
    name="lars",
    trust=trust,
    clip=True,
    momentum=momentum,
    head_momentum=momentum,
    weight_decay=decay,
  )
  transform = optim.make(config, steps_per_epoch=1)

  def weights(prefix):
    return {
      name.removeprefix(f"{prefix}/"): jnp.asarray(array)
      for name, array in trace.items()
      if name.startswith(f"{prefix}/") and "running" not in name
    }

  @jax.jit
  def step(params, state, view1, view2):
    loss, gradient = jax.value_and_grad(contrastive)(
      params, view1, view2, temperature
    )
    updates, state = transform.update(
      {"neck": gradient}, state, {"neck": params}
    )
    return optax.apply_updates(params, updates["neck"]), state, loss

  params = weights("w_start")
  state = transform.init({"neck": params})
  for t, size in enumerate(trace["batch_sizes"]):
    params, state, loss = step(
      params, state, trace["view1"][t, :size], trace["view2"][t, :size]
    )
    np.testing.assert_allclose(loss, trace["loss"][t], atol=1e-5)
    for name, expected in weights(f"w_after_step{t}").items():
      np.testing.assert_allclose(params[name], expected, atol=1e-5)


def test_momentum_builds_up_while_the_rate_is_zero():
  config = section(hold_epochs=1, weight_decay=0.0)
  transform = optim.make(config, steps_per_epoch=1)
  params = {"neck": jnp.ones((1,))}
  state = transform.init(params)
  for expected in (0.0, -0.5 * (0.9 + 1.0)):
    update, state = transform.update(params, state, params)
    np.testing.assert_allclose(update["neck"], expected, rtol=1e-6)


@pytest.mark.parametrize("freeze", [0, 2])
def test_adamw_is_pytorch_s(freeze):
  """No decay of biases; of a head that has one, only `last` is held."""
  rate, decay, b1, b2 = 0.3, 0.2, 0.8, 0.999
  config = section(
    name="adamw",
    learning_rate=rate,
    weight_decay=decay,
    momentum=b1,
    head_momentum=b1,
    head_freeze_epochs=freeze,
  )
  rng = np.random.default_rng(0)

  def tree():
    return {
      "neck": {"kernel": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)},
      "head": {
        "mlp": {"biases": {"0": rng.normal(size=(2, 3))}},
        "last": {"scales": rng.normal(size=(2, 3))},
      },
    }

  def to_jax(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

  params, gradients = tree(), [tree() for _ in range(5)]
  decays = {
    "neck": {"kernel": decay, "bias": 0.0},
    "head": {"mlp": {"biases": {"0": 0.0}}, "last": {"scales": decay}},
  }
  begins = jax.tree.map(lambda _: 0, params)
  begins["head"]["last"]["scales"] = freeze

  def by_hand(p, decay, begins, *gradients):
    first = second = np.zeros_like(p)
    for t, g in enumerate(gradients[begins:], start=1):
      first = b1 * first + (1 - b1) * g
      second = b2 * second + (1 - b2) * g**2
      root = np.sqrt(second / (1 - b2**t)) + 1e-8
      p = p - rate * decay * p - rate * first / (1 - b1**t) / root
    return p

  expected = jax.tree.map(by_hand, params, decays, begins, *gradients)
  transform = optim.make(config, steps_per_epoch=1)
  found = to_jax(params)
  state = transform.init(found)
  for gradient in gradients:
    updates, state = transform.update(to_jax(gradient), state, found)
    found = optax.apply_updates(found, updates)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    found,
    expected,
  )


def test_a_rate_that_is_clipped_by_hand():
  """solo-learn's LARS: |p| = 5, |g| = 1, a decay of 0.1, a trust of 0.03."""
  config = section(
    name="lars",
    trust=0.03,
    clip=True,
    learning_rate=0.5,
    momentum=0.0,
    warmup_epochs=0.2,
    head_learning_rate=0.05,
  )
  params = {
    part: {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([3.0, 4.0])}
    for part in ("body", "head")
  }
  gradients = jax.tree.map(lambda p: p / 5, params)
  gradients["body"]["zero"] = jnp.zeros((1, 2))
  params["body"]["zero"] = jnp.ones((1, 2))
  optimizer = optim.make(config, 10)
  state = optimizer.init(params)
  for rate in (0.0, 0.25, 0.5):
    updates, state = optimizer.update(gradients, state, params)
    # q = 0.03 * 5 / (1 + 0.1 * 5) = 0.1, and the least of it and the rate.
    expected = -(np.array([[0.6, 0.8]]) + 0.1 * np.array([[3, 4]]))
    np.testing.assert_allclose(
      updates["body"]["kernel"], min(0.1, rate) * expected, rtol=1e-5
    )
    np.testing.assert_allclose(
      updates["head"]["kernel"], 0.05 * expected, rtol=1e-5
    )
    # What has but one axis is neither scaled nor decayed, nor what is zero.
    np.testing.assert_allclose(
      updates["body"]["bias"], [-rate * 0.6, -rate * 0.8], rtol=1e-5
    )
    assert not np.any(updates["body"]["zero"])


def test_sgd_that_decays_matrices_alone():
  config = section(decay_all=False, momentum=0.0)
  params = {"body": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}}
  optimizer = optim.make(config, 10)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["body"]["kernel"], -0.05)
  assert not np.any(updates["body"]["bias"])
