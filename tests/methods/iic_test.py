"""IIC against recordings of the official code, and by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from odc_jax import mesh as mesh_lib
from odc_jax.data import augment
from odc_jax.errors import UserError
from odc_jax.evals import scores
from odc_jax.methods import METHODS, iic
from odc_jax.models import backbone as backbone_lib
from odc_jax.models import heads, norm
from odc_jax.models.functional import functional
from odc_jax.models.network import Network, Outputs
from odc_jax.training import optim
from odc_jax.training import state as state_lib
from odc_jax.training import step as step_lib
from tests.recordings import load

assert_close = functools.partial(np.testing.assert_allclose, rtol=0)


def config_of(n, b, k, over, num_heads, copies, turns, views=1, weight=1.0):
  return ConfigDict(
    {
      "seed": 0,
      "num_examples": n,
      "num_clusters": k,
      "batch_size": b,
      "data": {"views": views, "small_views": copies},
      "iic": {
        "num_heads": num_heads,
        "over_clusters": over,
        "turns": turns,
        "marginal_weight": weight,
      },
    }
  )


@functools.partial(jax.jit, static_argnums=4)
def information(x, other, z, other_z, weight):
  """Returns what a case of the recording holds, by its names there."""

  def of_logits(z, other):
    return iic.information_loss(
      jax.nn.softmax(z), jax.nn.softmax(other), weight
    )

  both = jax.value_and_grad(iic.information_loss, (0, 1))
  value, (by_x, by_other) = both(x, other, weight)
  by_z, by_other_z = jax.grad(of_logits, (0, 1))(z, other_z)
  return {
    "joint": iic.joint(x, other),
    "loss": value,
    "loss_no_lamb": iic.information_loss(x, other, 1.0),
    "grad_x": by_x,
    "grad_x_tf": by_other,
    "grad_z": by_z,
    "grad_z_tf": by_other_z,
  }


def test_the_loss_and_its_gradients(golden_iic_loss):
  trace = load(golden_iic_loss)
  for i in range(int(trace["num_cases"])):
    given = (trace[f"c{i}_{name}"] for name in ("x", "x_tf", "z", "z_tf"))
    found = information(*given, float(trace[f"c{i}_lamb"]))
    for name, value in found.items():
      expected = trace[f"c{i}_{name}"]
      atol = {"joint": 1e-6}.get(name, 1e-5)
      if name.startswith("grad"):
        atol = 2e-5 * np.abs(expected).max()
      assert_close(value, expected, atol=atol, err_msg=f"{i} {name}")


def test_the_scores(golden_iic_match):
  """One to one, and many clusters to one class: the purity."""
  trace = load(golden_iic_match)
  labels = trace["targets"]
  for kind, accuracy in (
    ("hungarian", scores.accuracy_one_to_one),
    (
      "many_to_one",
      lambda labels, clusters, _: scores.purity(labels, clusters),
    ),
  ):
    clusters = trace[f"{kind}_preds"]
    k = int(trace[f"{kind}_num_clusters"])
    found = {
      "acc": accuracy(labels, clusters, k),
      "nmi": scores.nmi(labels, clusters),
      "ari": scores.ari(labels, clusters),
    }
    for name, value in found.items():
      assert value == pytest.approx(float(trace[f"{kind}_{name}"]), abs=1e-6)


class Trunk(backbone_lib.Backbone):
  """The recording's stand-in: one linear layer, BatchNorm and a ReLU."""

  def __init__(self, size_in, size_out, rngs):
    self.fc = nnx.Linear(size_in, size_out, use_bias=False, rngs=rngs)
    self.bn = norm.BatchNorm(size_out)

  def __call__(self, x):
    return [jax.nn.relu(self.bn(self.fc(x)))]


def weights_of(trace, prefix):
  """Returns recorded params and statistics as our trees, main heads first."""

  def at(name):
    return jnp.asarray(trace[f"{prefix}/{name}"])

  num_heads = int(trace["hp"][4])
  params = {
    "backbone": {
      "fc": {"kernel": at("trunk.fc.weight").T},
      "bn": {"scale": at("trunk.bn.weight"), "bias": at("trunk.bn.bias")},
    },
    "head": {
      "heads": {
        str(h + num_heads * (name == "A")): {
          "fc": {
            "kernel": at(f"head_{name}.heads.{h}.0.weight").T,
            "bias": at(f"head_{name}.heads.{h}.0.bias"),
          }
        }
        for name in "BA"
        for h in range(num_heads)
      }
    },
  }
  mean, var = at("trunk.bn.running_mean"), at("trunk.bn.running_var")
  return params, {"backbone": {"bn": {"mean": mean, "var": var}}}


def sobel_of(images):
  """[..., 1, S, S] -> [..., 1, 1, 2 S S], flattened as the recording does."""
  *lead, _, side, _ = images.shape
  flat = images.reshape(-1, side, side, 1)
  found = jax.vmap(augment.sobel)(jnp.asarray(np.repeat(flat, 3, axis=3)))
  found = np.asarray(found).transpose(0, 3, 1, 2)
  return found, found.reshape(*lead, 1, 1, -1)


def test_training_follows_the_official_code(golden_iic_train, mesh):
  trace = load(golden_iic_train)
  _, r, side, hidden, num_heads, over, k, n, num_epochs = (
    int(x) for x in trace["hp"]
  )
  weight, rate = (float(x) for x in trace["hpf"])
  b = int(trace["batch_sizes"][0])
  # The image takes part as often as it has copies.
  config = config_of(
    n, b, k, over, num_heads, r, ("over", "main", "main"), r, weight
  )
  later = float(trace["lr_epoch2"]) / rate
  config.optimizer = ConfigDict(
    {
      "name": "adamw",
      "learning_rate": rate,
      "momentum": 0.9,
      "weight_decay": 0.0,
      "schedule": "step",
      "decay_epochs": (len(config.iic.turns),),
      "decay_rate": later,
      "warmup_epochs": 0,
    }
  )
  method = METHODS["iic"]

  def make(rngs):
    return Network(
      Trunk(2 * side * side, hidden, rngs),
      None,
      heads.LinearHeads(hidden, method.clusterings(config), rngs=rngs),
      views_together=method.VIEWS_TOGETHER,
    )

  network = functional(make)
  optimizer = optim.make(config.optimizer, n // b)
  init = state_lib.init_function(config, method, network, optimizer, n)
  shardings = state_lib.shardings(jax.eval_shape(init), mesh)
  state = jax.jit(init, out_shardings=shardings)()
  params, batch_stats = weights_of(trace, "w_start")
  state = jax.device_put(
    state._replace(params=params, batch_stats=batch_stats), shardings
  )
  step = jax.jit(
    step_lib.make_step(
      config, method, network, optimizer, lambda key, images, index: images
    ),
    donate_argnums=0,
    out_shardings=(shardings, None, None),
  )
  maps, images = sobel_of(trace["images"])
  assert_close(maps[:b], trace["sobel_first"], atol=1e-5)
  images = np.repeat(images[:, :, None], r, axis=2)
  _, copies = sobel_of(trace["images_tf"])
  copies = copies.swapaxes(1, 2)
  num_steps = len(trace["step_head"])
  assert num_steps == num_epochs * len(config.iic.turns) * (n // b)
  sums = np.zeros(num_heads)
  for t in range(num_steps):
    is_main = trace["step_head"][t] == 1
    assert iic.targets(config, state.method, (), {}, t).is_main == is_main
    index = np.arange(b, dtype=np.int32) + t % (n // b) * b
    batch = {"image": (images[t], copies[t]), "index": index}
    batch = jax.device_put(batch, mesh_lib.rows(mesh))
    state, scalars, finite = step(state, batch)
    assert all(finite.values())
    # Every parameter steps from the start, with a gradient of 0 where idle.
    expected = trace["loss_shared"][t]
    assert_close(scalars["train/loss"], expected.mean(), atol=1e-4)
    assert_close(scalars["train/head_loss_min"], expected.min(), atol=1e-4)
    if is_main:
      sums = expected if t % (n // b) == 0 else sums + expected
      assert_close(state.method.losses, sums, atol=1e-3)
  found = state.params, state.batch_stats
  jax.tree.map(
    functools.partial(assert_close, atol=5e-4),
    found,
    weights_of(trace, "w_end_shared"),
  )


def outputs_of(*logits):
  """Returns a view with a head of each of these logits."""
  found = tuple(jnp.asarray(x, jnp.float32) for x in logits)
  return Outputs(found[0], found[0], found)


def test_all_copies_are_one_batch_to_the_loss():
  """Two images, each with two copies: certain, and certainly wrong once."""
  config = config_of(2, 2, 2, 3, 1, 2, ("main", "over"))
  sure = 100 * np.eye(2)
  over = np.zeros((2, 3))
  views = (
    outputs_of(sure, over),
    outputs_of(sure, over),
    outputs_of(sure[::-1], over),
  )
  # P = [[1, 1], [1, 1]] / 4: they tell nothing of each other.
  (value,) = iic.head_losses(config, views, jnp.array(True))
  assert_close(value, 0, atol=1e-6)
  (value,) = iic.head_losses(config, views[:2] + views[1:2], jnp.array(True))
  assert_close(value, -math.log(2), atol=1e-6)
  # What knows nothing has no information either.
  (value,) = iic.head_losses(config, views, jnp.array(False))
  assert_close(value, 0, atol=1e-6)


def test_the_main_heads_vote_at_the_end():
  """Two of three heads are right, each with names of its own."""
  mesh = mesh_lib.make_mesh(1)
  n, k = 24, 3
  config = config_of(n, 8, k, 5, 3, 1, ("over", "main"))
  state = iic.init(config, n, None)
  rows = np.zeros((1024, k), np.float32)
  rows[np.arange(n), np.arange(n) % k] = 1
  rows = jax.device_put(rows, mesh_lib.rows(mesh))

  def head(params, x):
    return x, jnp.roll(x, 1, axis=1), 0 * x, *[jnp.zeros((len(x), 5))] * 3

  state = state._replace(losses=jnp.array([-1.0, -0.9, 0.0]))
  with jax.set_mesh(mesh):
    found = iic.finish(config, state, head, {}, rows)
  clusters = np.asarray(found.samples.assignments[:, 0])
  np.testing.assert_array_equal(clusters[:n], np.arange(n) % k)
  assert np.all(clusters[n:] == k)
  np.testing.assert_array_equal(found.sizes, [8, 8, 8])
  logits = head({}, jnp.eye(3))
  votes = iic.vote(found, logits)
  np.testing.assert_array_equal(jnp.argmax(votes, axis=1), [0, 1, 2])
  assert_close(jnp.max(votes, axis=1), [1, 2 / 3, 2 / 3], atol=1e-6)
  # Before, by the first head.
  assert_close(iic.vote(state, logits), jax.nn.softmax(jnp.eye(3)), atol=1e-6)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"data.small_views": 0}, "take a multiple"),
    ({"data.views": 2}, "take a multiple"),
    ({"iic.turns": ("over",)}, "are no turns"),
    ({"iic.turns": ("main", "head")}, "are no turns"),
    ({"iic.num_heads": 0}, "is less than 1"),
    ({"iic.over_clusters": 9}, "between 2 and the 8 images"),
  ],
)
def test_mistakes(changes, says):
  config = config_of(8, 4, 2, 4, 2, 1, ("over", "main"))
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=says):
    iic.init(config, 8, None)
