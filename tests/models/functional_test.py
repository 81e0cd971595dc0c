"""The model as pure functions: what changes, what does not, and where."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from odc_jax import mesh as mesh_lib
from odc_jax.models import functional, heads, network, resnet

IMAGES = jax.random.normal(jax.random.key(7), (8, 8, 8, 3))


def make(rngs, dtype=jnp.float32):
  """Builds a short and narrow ResNet with a neck of 8 and a head of 5."""
  backbone = resnet.ResNet(
    resnet.BasicBlock,
    (1, 1, 1, 2),
    stem="small",
    width=4,
    dtype=dtype,
    rngs=rngs,
  )
  neck = heads.NonLinearNeck(32, 16, 8, dtype=dtype, rngs=rngs)
  return network.Network(
    backbone, neck, heads.LinearHeads(8, (5,), dtype=dtype, rngs=rngs)
  )


FUNCTIONS = functional.functional(make)
INIT = jax.jit(FUNCTIONS.init)


@pytest.fixture(scope="module")
def model():
  """A network's `apply`, jitted, its parameters and its statistics."""
  return jax.jit(FUNCTIONS.apply, static_argnames="train"), *INIT(
    jax.random.key(0)
  )


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, tolerance):
  jax.tree.map(
    functools.partial(
      np.testing.assert_allclose, rtol=tolerance, atol=tolerance
    ),
    a,
    b,
  )


def test_trees_are_dicts_of_strings_and_arrays(model):
  _, params, stats = model

  def check(node):
    if isinstance(node, dict):
      assert type(node) is dict
      assert all(type(name) is str for name in node)
      for child in node.values():
        check(child)
    else:
      assert isinstance(node, jax.Array)
      assert node.dtype == jnp.float32

  check(params)
  check(stats)
  assert set(params) == {"backbone", "neck", "head"}
  assert set(stats) == {"backbone", "neck"}
  block = params["backbone"]["layer2"]["0"]
  assert set(block) == {"conv1", "bn1", "conv2", "bn2", "downsample"}
  assert set(block["downsample"]) == {"0", "1"}


def test_eval_changes_no_statistics_and_needs_no_key(model):
  apply, params, stats = model
  first, after = apply(params, stats, IMAGES, None, train=False)
  assert_equal(after, stats)
  second, _ = apply(params, stats, IMAGES, jax.random.key(1), train=False)
  assert_equal(first, second)
  # In evaluation an image's outputs do not depend on its batch.
  alone, _ = apply(params, stats, IMAGES[:1], None, train=False)
  assert_close(alone, jax.tree.map(lambda a: a[:1], first), 1e-5)


def test_training_changes_every_statistic_and_no_argument(model):
  apply, params, stats = model
  before = jax.tree.map(np.array, stats)
  _, after = apply(params, stats, IMAGES, jax.random.key(1), train=True)
  assert_equal(stats, before)
  assert jax.tree.structure(after) == jax.tree.structure(stats)
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(stats), strict=True):
    assert a.shape == b.shape
    assert np.any(np.asarray(a) != np.asarray(b))


def test_the_key_decides_the_dropout(model):
  apply, params, stats = model
  run = functools.partial(apply, params, stats, IMAGES, train=True)
  one, one_stats = run(jax.random.key(1))
  again, _ = run(jax.random.key(1))
  other, other_stats = run(jax.random.key(2))
  assert_equal(one, again)
  assert np.any(np.asarray(one.embeddings) != np.asarray(other.embeddings))
  # It comes after the last BatchNorm.
  assert_equal(one_stats, other_stats)
  assert_equal(one.features, other.features)


def test_init_is_a_function_of_the_key(model):
  _, params, _ = model
  again, _ = INIT(jax.random.key(0))
  other, _ = INIT(jax.random.key(1))
  assert_equal(params, again)
  kernel = params["backbone"]["conv1"]["kernel"]
  head = params["head"]["heads"]["0"]["fc"]
  assert np.any(kernel != other["backbone"]["conv1"]["kernel"])
  assert np.any(head["kernel"] != other["head"]["heads"]["0"]["fc"]["kernel"])


def test_init_evaluates_to_shapes(model):
  _, params, stats = model
  shapes = jax.eval_shape(FUNCTIONS.init, jax.random.key(0))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(
    lambda a: (a.shape, a.dtype), (params, stats)
  )


def test_every_parameter_learns(model):
  """One optax step on a cross-entropy; no gradient is zero or lost."""
  _, params, stats = model
  optimizer = optax.sgd(0.1, momentum=0.9)

  @jax.jit
  def step(params, stats, opt_state, key):
    def loss(params):
      outputs, after = FUNCTIONS.apply(params, stats, IMAGES, key, True)
      labels = jnp.arange(8) % 5
      losses = optax.softmax_cross_entropy_with_integer_labels(
        outputs.logits[0], labels
      )
      return losses.mean(), after

    (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), after, opt_state, value

  opt_state = optimizer.init(params)
  new, after, opt_state, first = step(
    params, stats, opt_state, jax.random.key(1)
  )
  still = [
    jax.tree_util.keystr(path)
    for path, a in jax.tree_util.tree_leaves_with_path(
      jax.tree.map(lambda a, b: np.array_equal(a, b), new, params)
    )
    # BatchNorm comes after it and takes any bias away.
    if a and "fc0" not in jax.tree_util.keystr(path)
  ]
  assert not still
  for _ in range(5):
    new, after, opt_state, last = step(new, after, opt_state, jax.random.key(1))
  assert last < first


def test_devices_share_one_batch(mesh, model):
  """Statistics are those of the global batch, on any number of devices."""
  apply, params, stats = model
  expected = apply(params, stats, IMAGES, jax.random.key(1), train=True)
  split, whole = mesh_lib.rows(mesh), mesh_lib.replicated(mesh)
  new = jax.jit(FUNCTIONS.init, out_shardings=whole)(jax.random.key(0))
  assert all(a.sharding == whole for a in jax.tree.leaves(new))
  assert_close(new, (params, stats), 1e-6)
  actual = apply(
    *new, jax.device_put(IMAGES, split), jax.random.key(1), train=True
  )
  assert_close(actual, expected, 1e-4)


def test_bfloat16_keeps_float32_parameters(model):
  apply, params, stats = model
  f = functional.functional(functools.partial(make, dtype=jnp.bfloat16))
  half = jax.eval_shape(f.init, jax.random.key(0))
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(half))
  run = jax.jit(f.apply, static_argnames="train")
  for train in False, True:
    exact, _ = apply(params, stats, IMAGES, jax.random.key(1), train=train)
    outputs, after = run(params, stats, IMAGES, jax.random.key(1), train=train)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(after))
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(exact), strict=True)
    for a, b in pairs:
      assert a.dtype == jnp.float32
      # Each of some twenty operations rounds to one part in 256.
      assert np.linalg.norm(a - b) < 0.08 * np.linalg.norm(b)
      assert np.any(np.asarray(a) != np.asarray(b))


def test_a_checkpoint_holds_it(model, tmp_path):
  """Round trip through orbax, with a target and without."""
  apply, params, stats = model
  state = {"params": params, "batch_stats": stats}
  with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
    manager.save(1, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    abstract = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
      state,
    )
    restored = manager.restore(1, args=ocp.args.StandardRestore(abstract))
  assert_equal(restored, state)
  # One that never saw the model: its keys have to be the same.
  with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
    blind = manager.restore(1, args=ocp.args.StandardRestore())
  assert_equal(blind, state)
  outputs, _ = apply(
    restored["params"], restored["batch_stats"], IMAGES, None, train=False
  )
  expected, _ = apply(params, stats, IMAGES, None, train=False)
  assert_equal(outputs, expected)


def test_other_state_is_an_error():
  class Noisy(nnx.Module):
    def __init__(self, rngs):
      self.drop = nnx.Dropout(0.5, rngs=rngs)

  with pytest.raises(ValueError, match="Non-exhaustive"):
    functional.functional(Noisy)


def test_many_blocks_keep_their_order():
  """Strings sort "10" before "2"; the list must not."""

  class Chain(nnx.Module):
    def __init__(self, rngs):
      self.layers = nnx.List(
        [nnx.Linear(1, 1, use_bias=False, rngs=rngs) for _ in range(12)]
      )

    def __call__(self, images, rngs):
      return [layer.kernel[...][0, 0] for layer in self.layers]

  f = functional.functional(Chain)
  params, stats = f.init(jax.random.key(0))
  assert stats == {}
  for i in range(12):
    params["layers"][str(i)]["kernel"] = jnp.full((1, 1), float(i))
  outputs, _ = f.apply(params, stats, jnp.zeros((1, 1, 1, 3)), None, False)
  np.testing.assert_array_equal(outputs, np.arange(12))


def test_a_part_alone_does_what_it_does_in_the_whole(model):
  apply, params, stats = model
  outputs, _ = apply(params, stats, IMAGES, None, train=False)
  for name, given, expected in (
    ("neck", outputs.features, outputs.embeddings),
    ("head", outputs.embeddings, outputs.logits),
  ):
    found = FUNCTIONS.apply_part(name, params, stats, given)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
