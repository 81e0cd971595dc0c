"""TEMI: its loss and whole trainings against recordings, its parts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from odc_jax import mesh as mesh_lib
from odc_jax.errors import UserError
from odc_jax.methods import temi
from odc_jax.models.network import Outputs
from odc_jax.plan import collectives
from odc_jax.training import optim
from tests.methods import frozen
from tests.recordings import load


def section(**overrides):
  return {
    "objective": "temi",
    "weights": "heads",
    "beta": 0.6,
    "num_heads": 3,
    "num_neighbors": 2,
    "student_temperature": 0.1,
    "teacher_temperature": (0.1, 0.1),
    "teacher_temperature_epochs": 1,
    "prior_momentum": 0.9,
    "teacher_momentum": 0.9,
    **overrides,
  }


# The loss, on given logits.


def views_of(logits):
  """Takes [h, 2 b, k], rows of the first view first, apart."""
  return tuple(
    Outputs(part[0], part[0], tuple(part))
    for part in jnp.split(jnp.asarray(logits), 2, axis=1)
  )


KINDS = {
  "temi0": {"beta": 0},
  "temi1": {"beta": 1},
  "temi2": {"beta": 2},
  "wmi": {"beta": 1, "weights": "own", "prior_momentum": 0.9},
  "pmi": {"beta": 1, "weights": "none", "prior_momentum": 0.9},
  "scan": {"beta": 1, "objective": "scan", "weights": "none"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_official_code_s(golden_temi_loss, kind):
  trace = load(golden_temi_loss)
  b, k, h, t, warm, _, _ = (int(x) for x in trace["hp"])
  first, last, student_temperature, momentum = (float(x) for x in trace["hpf"])
  options = {"prior_momentum": momentum, **KINDS[kind]}
  options["beta"] = float(trace["betas"][options["beta"]])
  # A step an epoch, as the recorded temperatures go by epochs.
  config = ConfigDict(
    {
      "num_examples": b,
      "batch_size": b,
      "num_clusters": k,
      "temi": section(
        num_heads=h,
        student_temperature=student_temperature,
        teacher_temperature=(first, last),
        teacher_temperature_epochs=warm,
        **options,
      ),
    }
  )
  with jax.set_mesh(mesh_lib.make_mesh(1)):
    state = temi.init(config, b, jax.random.key(0))

    @jax.jit
    def call(state, student, teacher, epoch):
      def value(student):
        views = frozen.Views(views_of(student), views_of(teacher))
        targets = temi.targets(config, state, views, None, epoch)
        losses = temi.head_losses(config, views, targets)
        loss, _ = temi.loss(config, views, targets, state)
        return loss, (targets, losses)

      return jax.value_and_grad(value, has_aux=True)(student)

    for i in range(t):
      (_, (targets, losses)), gradient = call(
        state,
        trace["student_out"][i],
        trace["teacher_out"][i],
        trace["epoch"][i],
      )
      np.testing.assert_allclose(
        losses, trace[f"{kind}/head_losses"][i], atol=1e-5
      )
      np.testing.assert_allclose(
        gradient, trace[f"{kind}/grad_student_out"][i], atol=2e-6
      )
      if kind != "scan":  # which has no use for it
        np.testing.assert_allclose(
          targets.prior, trace[f"{kind}/pk"][i], atol=1e-6
        )
      if "temi" in kind:
        np.testing.assert_allclose(
          targets.weights[0], trace[f"{kind}/weight"][i], atol=1e-6
        )
      state = state._replace(prior=targets.prior)


# Trainings.


def weights_of(trace, prefix, num_heads, scaled):
  """Returns the heads' recorded weights as parameters of the network."""

  def of(name):
    arrays = [trace[f"{prefix}/heads.{h}.{name}"] for h in range(num_heads)]
    return jnp.asarray(np.stack(arrays))

  layers = sorted(
    {
      name.split("/heads.0.")[1].rpartition(".")[0]
      for name in trace
      if name.startswith(f"{prefix}/heads.0.mlp")
    },
    key=lambda name: [int(x) for x in name.split(".")[1:]],
  )
  last = {"directions": of("last_layer.weight_v").transpose(0, 2, 1)}
  if scaled:
    last["scales"] = of("last_layer.weight_g")[:, :, 0]
  return {
    "head": {
      "mlp": {
        "kernels": {
          str(i): of(f"{layer}.weight").transpose(0, 2, 1)
          for i, layer in enumerate(layers)
        },
        "biases": {
          str(i): of(f"{layer}.bias") for i, layer in enumerate(layers)
        },
      },
      "last": last,
    }
  }


def clip_by_head(limit):
  """Scales down each head's share of an array, as each tensor officially."""

  def clip(update, _):
    def one(g):
      axes = tuple(range(1, g.ndim))
      norm = jnp.sqrt(jnp.sum(g * g, axis=axes, keepdims=True))
      return g * jnp.minimum(1.0, limit / (norm + 1e-6))

    return jax.tree.map(one, update)

  return optax.stateless(clip) if limit else optax.identity()


def exactly(rate, decay, first):
  """Returns schedules that undo what optax rounds.

  It has 1 - .999^t in float32, for a t of 2 with an error of 3e-5, PyTorch in
  float64.

  Args:
    rate: Recorded, of every step.
    decay: Likewise.
    first: Step at which Adam begins to count.
  """

  @jax.jit
  def correction(t):
    return jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)

  t = np.arange(1, len(rate) - first + 1, dtype=np.int32)
  exact = np.sqrt(1 - 0.999 ** t.astype(float)) / (1 - 0.9 ** t.astype(float))
  factor = exact / np.asarray(correction(t), float)
  rates, decays = (
    jnp.asarray(x, jnp.float32)
    for x in (rate[first:] * factor, decay[first:] / factor)
  )
  return lambda step: rates[step], lambda step: decays[step]


def optimizer_of(trace, freeze, limit):
  """Returns AdamW with the recorded rates and decays."""

  def part(first):
    rate, decay = exactly(trace["lr"], trace["wd"], first)
    return optax.chain(clip_by_head(limit), optim.adamw(rate, decay))

  return optim.by_part(part(0), part(freeze), freeze)


def assert_close(found, expected, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0),
    found,
    expected,
  )


def test_training_follows_the_official_code(golden_temi_train, mesh):
  trace = load(golden_temi_train)
  (n, d, _, b, epochs, steps, h, k, num_layers, hidden, bottleneck, knn) = (
    int(x) for x in trace["hp"][:12]
  )
  freeze, _, warm, norm_last, l2_norm, _, _ = (int(x) for x in trace["hp"][12:])
  first, last, student_temperature, beta, prior_momentum, limit = (
    float(x) for x in trace["hpf"][6:]
  )
  config = ConfigDict(
    {
      # Of whole batches; the recording leaves out others every epoch.
      "num_examples": steps * b,
      "batch_size": b,
      "num_clusters": k,
      "temi": section(
        num_heads=h,
        num_neighbors=knn,
        beta=beta,
        student_temperature=student_temperature,
        teacher_temperature=(first, last),
        teacher_temperature_epochs=warm,
        prior_momentum=prior_momentum,
      ),
    }
  )
  scaled = not norm_last
  network = frozen.network_of(
    d,
    k,
    num_heads=h,
    hidden=(hidden,) * (num_layers - 1),
    bottleneck=bottleneck,
    scaled=scaled,
  )
  optimizer = optimizer_of(trace, freeze * steps, limit)
  momentum = jnp.asarray(trace["teacher_momentum"], jnp.float32)
  step = jax.jit(
    frozen.make_step(config, temi, network, optimizer, lambda t: momentum[t])
  )
  x = (trace["x"] - trace["mean"]) / trace["std"]
  if l2_norm:
    x /= np.linalg.norm(x, axis=1, keepdims=True)
  features = np.zeros((mesh_lib.padded_rows(n), d), np.float32)
  features[:n] = x
  features = jax.device_put(features, mesh_lib.rows(mesh))
  state = frozen.start(
    temi.init(config, n, jax.random.key(0)),
    weights_of(trace, "w_start", h, scaled),
    optimizer,
  )

  def weights(prefix):
    return weights_of(trace, prefix, h, scaled)

  clusters = np.full((n, h), k)
  for t in range(epochs * steps):
    index, pair = trace["index"][t], trace["pair"][t]
    rows, index = jax.device_put(
      (np.stack([index, pair], axis=1), index), mesh_lib.rows(mesh)
    )
    state, scalars, views, targets, gradients = step(
      state, features, rows, index
    )
    for name, out in zip(("student_out", "teacher_out"), views, strict=True):
      logits = np.concatenate([np.stack(view.logits) for view in out], axis=1)
      np.testing.assert_allclose(logits, trace[name][t], atol=2e-5)
    losses = trace["head_losses"][t]
    np.testing.assert_allclose(
      scalars["train/head_loss_min"], losses.min(), atol=1e-5
    )
    epoch = slice(t // steps * steps, t + 1)
    np.testing.assert_allclose(
      state.method.losses, trace["head_losses"][epoch].sum(axis=0), atol=5e-5
    )
    np.testing.assert_allclose(state.method.prior, trace["pk"][t], atol=1e-5)
    np.testing.assert_allclose(
      targets.weights[0], trace["weight"][t], atol=2e-5
    )
    clusters[trace["index"][t]] = trace["teacher_out"][t][:, :b].argmax(2).T
    np.testing.assert_array_equal(
      state.method.samples.assignments[:n], clusters
    )
    np.testing.assert_array_equal(
      state.method.sizes,
      [np.bincount(column, minlength=k + 1)[:k] for column in clusters.T],
    )
    for at, name in ((0, "step1"), (steps - 1, "epoch1")):
      if t == at:
        assert_close(state.params, weights(f"w_{name}"), 5e-6)
    if t == steps - 1:
      assert_close(state.teacher, weights("teacher_epoch1"), 5e-6)
    if (t + 1) % steps == 0:
      assert state.method.best == trace["best_head"][t // steps]
    if t == 0 and not limit:
      by_name = gradients["head"]["mlp"]["kernels"]["0"]
      recorded = np.stack(
        [
          trace[
            next(
              name
              for name in trace
              if name.startswith(f"grad0/heads.{i}.mlp") and "weight" in name
            )
          ].T
          for i in range(h)
        ]
      )
      np.testing.assert_allclose(
        by_name, recorded, atol=1e-4 * np.abs(recorded).max()
      )
  assert_close(state.params, weights("w_end"), 5e-6)
  assert_close(state.teacher, weights("teacher_end"), 5e-6)
  images = (features[:n, None, None, None, :],)
  ((view,), _) = network.apply(state.teacher, {}, images, None, train=False)
  logits = view.logits[int(state.method.best)]
  np.testing.assert_allclose(logits, trace["eval_out"], atol=2e-5)
  np.testing.assert_array_equal(np.argmax(logits, axis=1), trace["eval_label"])


# Parts, by hand.


def small(**overrides):
  return ConfigDict(
    {
      "num_examples": 6,
      "batch_size": 2,
      "num_clusters": 3,
      "temi": section(num_heads=2, **overrides),
    }
  )


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"objective": "mi"}, "temi.objective 'mi'; choose temi, scan"),
    ({"weights": "all"}, "temi.weights 'all'; choose heads, own, none"),
    ({"num_neighbors": 6}, "temi.num_neighbors=6 is not between 1 and 5"),
  ],
)
def test_mistakes(overrides, message):
  with pytest.raises(UserError, match=message):
    temi.init(small(**overrides), 6, jax.random.key(0))


class Passes:
  """Six images in three pairs."""

  def embeddings(self):
    angles = np.array([0.0, 0.1, 1.0, 1.15, 2.0, 2.2], np.float32)
    x = np.zeros((1024, 2), np.float32)
    x[:6] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return jnp.asarray(x)


def test_partners_are_neighbours_each_as_often(mesh):
  config = small(num_neighbors=2)
  state = temi.init(config, 6, jax.random.key(0))
  state = temi.recluster(config, state, Passes(), 0)
  mined = [[1, 2], [0, 2], [3, 1], [2, 4], [5, 3], [4, 3]]
  np.testing.assert_array_equal(state.samples.neighbors[:6], mined)
  index = jnp.tile(jnp.arange(6, dtype=jnp.int32), 200)
  found = temi.partners(config, state, index, jax.random.key(1))
  for i, both in enumerate(mined):
    drawn = np.asarray(found)[np.asarray(index) == i]
    assert set(drawn) == set(both)
    assert 70 < np.sum(drawn == both[0]) < 130


def test_the_teacher_s_temperature_is_a_line_and_then_constant():
  config = small(teacher_temperature=(0.04, 0.1), teacher_temperature_epochs=3)
  found = [temi.teacher_temperature(config, step) for step in range(0, 15, 3)]
  np.testing.assert_allclose(found, [0.04, 0.07, 0.1, 0.1, 0.1], rtol=1e-6)


def test_the_head_of_the_lowest_loss_is_chosen_at_the_end_of_an_epoch(mesh):
  """Of two heads the second agrees with itself, from the second step on."""
  config = small()
  logits = jnp.array([[1.0, 0, 0], [0, 1.0, 0]])
  other = jnp.array([[0, 0, 1.0], [1.0, 0, 0]])
  state = temi.init(config, 6, jax.random.key(0))

  @jax.jit
  def run(state, index, step, heads):
    views = tuple(Outputs(logits, logits, (a, b)) for a, b in heads)
    views = frozen.Views(views, views)
    targets = temi.targets(config, state, views, None, step)
    batch = {"index": index}
    return temi.after_step(config, state, views, targets, batch, step)

  disagree = ((logits, logits), (other, logits))
  sums = np.zeros(2)
  for step, index in enumerate([[4, 1], [1, 0], [2, 2], [3, 5]]):
    before = state
    state, scalars = run(
      state, jnp.array(index, jnp.int32), jnp.int32(step), disagree
    )
    if step == 3:
      sums[:] = 0
    sums += np.asarray(state.losses) - (step != 3) * np.asarray(before.losses)
    np.testing.assert_allclose(state.losses, sums, rtol=1e-6)
    assert state.best == (step >= 2)
  assert sums[1] < sums[0]
  # Both heads put the first of a batch into 0 and the second into 1; of image 2
  # the last counts.
  np.testing.assert_array_equal(
    state.samples.assignments[:6, 1], [1, 0, 1, 0, 0, 1]
  )
  np.testing.assert_array_equal(state.sizes, [[3, 3, 0]] * 2)
  np.testing.assert_array_equal(state.samples.previous[:6], [1, 0, 1, 3, 0, 3])
  np.testing.assert_array_equal(temi.clusters(state)[:7], [1, 0, 1, 0, 0, 1, 3])
  assert scalars["cluster/label_change"] == 1


def lower_step(mesh, n, b, d, k, num_heads, num_neighbors, **head):
  """Lowers a step that draws partners and gathers features of n images."""
  config = ConfigDict(
    {
      "num_examples": n,
      "batch_size": b,
      "num_clusters": k,
      "temi": section(num_heads=num_heads, num_neighbors=num_neighbors),
    }
  )
  network = frozen.network_of(d, k, num_heads=num_heads, **head)
  optimizer = optim.by_part(optim.adamw(1e-3, 1e-4), optim.adamw(1e-3, 1e-4))
  train = frozen.make_step(config, temi, network, optimizer, lambda _: 0.99)

  def step(state, features, index, key):
    partners = temi.partners(config, state.method, index, key)
    rows = jnp.stack([index, partners], axis=1)
    state, scalars, *_ = train(state, features, rows, index)
    return state, scalars

  def make():
    params, _ = network.init(jax.random.key(0))
    return frozen.start(temi.init(config, n, None), params, optimizer)

  shapes = jax.eval_shape(make)
  split, whole = mesh_lib.rows(mesh), mesh_lib.replicated(mesh)
  shardings = jax.tree.map(lambda _: whole, shapes)
  shardings = shardings._replace(
    method=shardings.method._replace(
      samples=jax.tree.map(lambda _: split, shapes.method.samples)
    )
  )
  features = jax.ShapeDtypeStruct(
    (mesh_lib.padded_rows(n), d), jnp.float32, sharding=split
  )
  index = jax.ShapeDtypeStruct((b,), jnp.int32, sharding=split)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(shardings, split, split, whole),
    out_shardings=(shardings, None),
  ).lower(shapes, features, index, key)


def test_no_collective_of_a_step_grows_with_the_data_set():
  mesh = mesh_lib.make_mesh(8)

  def moved(n):
    with jax.set_mesh(mesh):
      lowered = lower_step(mesh, n, 64, 12, 5, 3, 7, hidden=(8,), bottleneck=6)
    return collectives.collectives(lowered.compile().as_text())

  few, many = moved(8 * 1024), moved(64 * 1024)
  assert few == many
  # But for the gradients, nothing larger than the batch's rows of all views.
  assert max(size for *_, size in few) <= 4 * 2 * 64 * 12


# The end: all heads vote.


def test_heads_vote_and_vote_the_same_again():
  """Three heads find the same by other numbers; a fourth finds nothing."""
  rng = np.random.default_rng(0)
  n, k = 12, 3
  kinds = np.arange(n) % k
  rows = np.zeros((mesh_lib.padded_rows(n), k), np.float32)
  rows[:n] = np.eye(k)[kinds] + 0.1 * rng.random((n, k))
  orders = [[0, 1, 2], [2, 0, 1], [1, 0, 2]]

  def head(params, x):
    del params
    return *(x[:, jnp.array(order)] for order in orders), jnp.ones_like(x)

  config = ConfigDict(
    {
      "num_examples": n,
      "num_clusters": k,
      "temi": section(num_heads=4, num_neighbors=2),
    }
  )
  mesh = mesh_lib.make_mesh(8)
  with jax.set_mesh(mesh):
    state = temi.init(config, n, jax.random.key(0))
    state = state._replace(losses=jnp.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_array_equal(temi.clusters(state), k)
    embeddings = jax.device_put(rows, mesh_lib.rows(mesh))
    state = temi.finish(config, state, head, {}, embeddings)
    found = np.asarray(temi.clusters(state))
    shares = np.asarray(temi.vote(state, head({}, jnp.asarray(rows[:n]))))
  np.testing.assert_array_equal(found[:n], kinds)
  np.testing.assert_array_equal(found[n:], k)
  np.testing.assert_array_equal(shares.argmax(axis=1), kinds)
  # The fourth is with those of one kind, whatever it calls its only cluster.
  confidence = shares.max(axis=1)
  assert set(confidence) == {0.75, 1.0}
  np.testing.assert_allclose(shares.sum(axis=1), 1)
