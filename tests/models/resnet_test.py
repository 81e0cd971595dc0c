"""ResNets against the official code's, from weights that a formula makes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from odc_jax.models import convolution, functional, resnet

# torchvision's totals less its fc: 11,689,512, 21,797,672 and 25,557,032 less
# 512 * 1000 + 1000 (twice) and 2048 * 1000 + 1000.
SIZES = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032}


def phase_sine(recording, t: int, count: int) -> np.ndarray:
  """Returns the t-th pseudo-random tensor of the recording, flat, float64."""
  p, a, b = (int(recording[name]) for name in ("P", "A", "Bc"))
  i = np.arange(count, dtype=np.int64)
  q = ((i * i % p) * a + 104729 * i + b * t + 12345) % p
  return np.sin(2 * np.pi * q / p)


def torch_weights(recording) -> dict[str, np.ndarray]:
  """Rebuilds the recorded network's state dict, in torch's layout."""
  weights = {}
  for t, (name, padded) in enumerate(
    zip(recording["keys"], recording["shapes"], strict=True)
  ):
    if name.endswith("num_batches_tracked"):
      continue
    shape = tuple(int(n) for n in padded if n > 0)
    s = phase_sine(recording, t, math.prod(shape))
    if len(shape) == 4:
      value = s * np.sqrt(4 / math.prod(shape[1:]))
    elif name.endswith("running_var"):
      value = 1 + 0.3 * s
    elif name.endswith("weight"):
      value = 1 + 0.2 * s
      if name.endswith("bn3.weight"):
        value *= 0.35
      elif name.endswith("downsample.1.weight"):
        value *= 0.7
    else:
      value = 0.1 * s
    value = value.astype(np.float32)
    np.testing.assert_allclose(
      value[:4], recording["check_first4"][t][: value.size], atol=1e-6
    )
    np.testing.assert_allclose(
      value.sum(dtype=np.float64), recording["check_sum_f64"][t], atol=1e-3
    )
    weights[str(name)] = value.reshape(shape)
  return weights


def fill(tree: dict, weights: dict[str, np.ndarray], path: str = "") -> dict:
  """Returns `tree` with torch's weights; takes those it uses out of them."""
  filled = {}
  for name, child in tree.items():
    if isinstance(child, dict):
      filled[name] = fill(child, weights, f"{path}{name}.")
      continue
    torch_name = {
      "kernel": "weight",
      "scale": "weight",
      "bias": "bias",
      "mean": "running_mean",
      "var": "running_var",
    }[name]
    value = weights.pop(path + torch_name)
    if value.ndim == 4:
      value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
    assert value.shape == child.shape
    filled[name] = jnp.asarray(value)
  return filled


@functools.cache
def load(path):
  """Returns the recording, its network's functions, weights and input."""
  recording = dict(np.load(path))
  f = functional.functional(
    lambda rngs: Pooled(resnet.RESNETS["resnet50"](rngs=rngs))
  )
  params, stats = jax.eval_shape(f.init, jax.random.key(0))
  assert sum(a.size for a in jax.tree.leaves(params)) == recording["nparams"]
  weights = torch_weights(recording)
  params = fill(params["net"], weights)
  stats = fill(stats["net"], weights)
  assert not weights
  n, size = (int(a) for a in recording["input_hw"])
  x = phase_sine(recording, 1000, n * 3 * size * size).astype(np.float32)
  np.testing.assert_allclose(x[:8], recording["x_first8"], atol=1e-6)
  np.testing.assert_allclose(
    x.sum(dtype=np.float64), recording["x_sum_f64"], atol=1e-3
  )
  images = x.reshape(n, 3, size, size).transpose(0, 2, 3, 1)
  return recording, f, {"net": params}, {"net": stats}, jnp.asarray(images)


class Pooled(nnx.Module):
  """A backbone as `functional` wants its modules: rngs are taken."""

  def __init__(self, net):
    self.net = net

  def __call__(self, images, rngs):
    return self.net(images)


def test_golden_eval(golden_resnet50):
  recording, f, params, stats, images = load(golden_resnet50)
  run = jax.jit(functools.partial(f.apply, key=None, train=False))
  maps, _ = run(params, stats, images)
  assert len(maps) == 5
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  for i, a in enumerate(maps):
    n, c, h, w = recording["out_shapes"][i]
    assert a.shape == (n, h, w, c)
    close(a.mean((1, 2)), recording[f"gap{i}"])
    close(jnp.sqrt(jnp.mean(jnp.square(a))), recording["rms"][i])
    if i > 0:
      corner = a[:, :2, :2, :16].transpose(0, 3, 1, 2)
      close(corner, recording[f"corner{i}"])
  close(
    convolution.max_pool(maps[0], 3, 2, 1).mean((1, 2)),
    recording["gap_maxpool"],
  )
  close(maps[-1].mean((1, 2)), recording["pooled"])


def test_golden_train(golden_resnet50):
  recording, f, params, stats, images = load(golden_resnet50)
  run = jax.jit(functools.partial(f.apply, key=None, train=True))
  maps, stats = run(params, stats, images)
  net = stats["net"]
  last = net["layer4"]["2"]["bn3"]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
  close(maps[-1].mean((1, 2)), recording["train_gap"])
  close(net["bn1"]["mean"], recording["train_bn1_running_mean"])
  close(net["bn1"]["var"], recording["train_bn1_running_var"])
  close(last["mean"], recording["train_layer4_2_bn3_running_mean"])
  close(last["var"], recording["train_layer4_2_bn3_running_var"])


@pytest.mark.parametrize("name", resnet.RESNETS)
def test_sizes_are_torchvisions(name):
  model = nnx.eval_shape(lambda: resnet.RESNETS[name](rngs=nnx.Rngs(0)))
  params = jax.tree.leaves(nnx.state(model, nnx.Param))
  assert sum(a.size for a in params) == SIZES[name]
  assert model.num_features == {"resnet50": 2048}.get(name, 512)


@pytest.mark.parametrize(
  ("name", "stem", "expected"),
  [
    ("resnet18", "imagenet", [(16, 4), (8, 4), (4, 8), (2, 16), (1, 32)]),
    ("resnet50", "imagenet", [(16, 4), (8, 16), (4, 32), (2, 64), (1, 128)]),
    ("resnet18", "small", [(32, 4), (32, 4), (16, 8), (8, 16), (4, 32)]),
    ("resnet50", "small", [(32, 4), (32, 16), (16, 32), (8, 64), (4, 128)]),
  ],
)
def test_maps_of_a_narrow_network(name, stem, expected):
  def run(images):
    net = resnet.RESNETS[name](stem=stem, width=4, rngs=nnx.Rngs(0))
    assert net.num_features == expected[-1][1]
    return net(images)

  maps = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
  assert [a.shape for a in maps] == [(2, n, n, c) for n, c in expected]


@pytest.mark.parametrize(("init", "fan"), [("fan_in", 128), ("fan_out", 96)])
def test_initial_weights(init, fan):
  block = resnet.BasicBlock(
    128, 96, 2, init=init, dtype=jnp.float32, rngs=nnx.Rngs(0)
  )
  kernel = np.asarray(block.conv1.kernel[...])
  assert kernel.shape == (3, 3, 128, 96)
  projection = np.asarray(block.downsample[0].kernel[...])
  np.testing.assert_allclose(projection.std(), np.sqrt(2 / fan), rtol=0.02)
  std = np.sqrt(2 / (9 * fan))
  np.testing.assert_allclose(kernel.std(), std, rtol=0.01)
  # Flax's own he_normal ends at 2.3 of its standard deviations.
  assert np.abs(kernel).max() > 4 * std
  assert block.conv1.bias is None
  # The last BatchNorm of a block starts at 1 like the others.
  np.testing.assert_array_equal(block.bn2.scale[...], 1)
  np.testing.assert_array_equal(block.bn2.bias[...], 0)


def test_weights_may_start_as_pytorch_s_own_do():
  """Uniform within 1 / sqrt(fan_in): kaiming_uniform_ with a = sqrt(5)."""
  block = resnet.BasicBlock(
    128, 96, 2, init="torch", dtype=jnp.float32, rngs=nnx.Rngs(0)
  )
  for kernel, fan in (
    (block.conv1.kernel, 9 * 128),
    (block.downsample[0].kernel, 128),
  ):
    values = np.asarray(kernel[...])
    bound = 1 / np.sqrt(fan)
    assert np.abs(values).max() <= bound
    np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.02)


def test_an_unknown_stem_or_start_is_an_error():
  with pytest.raises(ValueError, match="'tiny'"):
    resnet.RESNETS["resnet18"](stem="tiny", rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="'fan_avg'"):
    resnet.RESNETS["resnet18"](init="fan_avg", rngs=nnx.Rngs(0))


def test_relu_keeps_nan_and_stops_the_gradient_at_zero():
  x = jnp.array([-1.0, -0.0, 0.0, 2.0, jnp.nan]).reshape(1, 1, 5, 1)
  y, pull = jax.vjp(resnet.relu, x)
  np.testing.assert_array_equal(y.ravel(), [0, 0, 0, 2, np.nan])
  np.testing.assert_array_equal(
    pull(jnp.ones_like(x))[0].ravel()[:4], [0, 0, 0, 1]
  )


@pytest.mark.optimized
def test_the_input_of_a_convolution_is_computed_once():
  """And not anew, in another order, for the gradient of the kernel."""

  def loss(kernel, x, mean):
    maps = resnet.relu(x - mean)
    maps = jax.lax.conv_general_dilated(
      maps, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum(jnp.square(maps))

  program = jax.jit(jax.grad(loss)).lower(
    jnp.ones((3, 3, 32, 32)), jnp.ones((8, 16, 16, 32)), jnp.ones((1, 1, 1, 32))
  )
  fusions = program.compile().as_text().split("\n\n")
  assert sum(" subtract(" in fusion for fusion in fusions) == 1
