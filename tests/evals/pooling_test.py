"""The pooled stages against PyTorch's definitions, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax.evals.pooling import flat, pool

# Side of a ResNet's maps, kernel, stride and padding of the official pooling.
SIDES = (112, 56, 28, 14, 7)
OFFICIAL = [(10, 10, 4), (16, 8, 0), (13, 5, 0), (8, 3, 0), (6, 1, 0)]


def average_pool(x, kernel, stride, padding):
  """torch.nn.AvgPool2d, window by window; the padding counts."""
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  side = (x.shape[1] - kernel) // stride + 1
  out = np.zeros((x.shape[0], side, side, x.shape[3]))
  for i in range(side):
    for j in range(side):
      rows = slice(i * stride, i * stride + kernel)
      columns = slice(j * stride, j * stride + kernel)
      out[:, i, j] = x[:, rows, columns].sum((1, 2)) / kernel**2
  return out


def max_pool(x, kernel, stride, padding):
  """torch.nn.MaxPool2d, window by window; the padding is minus infinity."""
  edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  x = np.pad(x, edges, constant_values=-np.inf)
  side = (x.shape[1] - kernel) // stride + 1
  starts = [i * stride for i in range(side)]
  return np.stack(
    [
      np.stack(
        [x[:, i : i + kernel, j : j + kernel].max((1, 2)) for j in starts], 1
      )
      for i in starts
    ],
    1,
  )


def adaptive_pool(x, side):
  """torch.nn.AdaptiveAvgPool2d: windows from floor to ceil, which overlap."""
  size = x.shape[1]
  edges = [
    (int(np.floor(i * size / side)), int(np.ceil((i + 1) * size / side)))
    for i in range(side)
  ]
  return np.stack(
    [
      np.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in edges], 1)
      for a, b in edges
    ],
    1,
  )


def draw(shapes, dtype=np.float32):
  rng = np.random.default_rng(0)
  return [rng.normal(1, 1, shape).astype(dtype) for shape in shapes]


def test_maps_of_224_pixels_get_the_official_windows():
  # The official numbers of channels, 64 to 2048, would only take longer.
  sides, places = (112, 56, 28, 14, 7), (12, 6, 4, 3, 2)
  maps = draw([(2, side, side, 3) for side in sides])
  pooled = jax.jit(pool)([jnp.asarray(x) for x in maps])
  for x, found, spec, side in zip(maps, pooled, OFFICIAL, places, strict=True):
    expected = average_pool(x.astype(np.float64), *spec)
    assert expected.shape == (2, side, side, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
  ("sides", "channels", "expected"),
  [
    # A ResNet-50, for which the windows were chosen, a ResNet-18, and VGG-16.
    (SIDES, (64, 256, 512, 1024, 2048), [9216, 9216, 8192, 9216, 8192]),
    (SIDES, (64, 64, 128, 256, 512), [9216, 2304, 2048, 2304, 2048]),
    (
      (224, 112, 56, 28, 14),
      (64, 128, 256, 512, 512),
      [9216, 8192, 9216, 8192, 8192],
    ),
  ],
)
def test_the_dimensions_at_224_pixels(sides, channels, expected):
  maps = [
    jax.ShapeDtypeStruct((1, side, side, c), jnp.float32)
    for side, c in zip(sides, channels, strict=True)
  ]
  pooled = jax.eval_shape(lambda maps: [flat(x) for x in pool(maps)], maps)
  assert [x.shape[1] for x in pooled] == expected


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_alexnets_maps_get_its_own_windows(kind):
  """deepcluster eval_linear.py: RegLog; self-label eval_linear_probes.py."""
  channels = (96, 256, 384, 384, 256)
  specs = [(6, 6, 3), (4, 4, 0), (3, 3, 1), (3, 3, 1), (2, 2, 0)]
  sides, places = (55, 27, 13, 13, 13), (10, 6, 5, 5, 6)
  maps = draw(
    [(1, side, side, c) for side, c in zip(sides, channels, strict=True)]
  )
  # Far below zero, so that a padding with zeros would show.
  maps = [x - 10 for x in maps]
  pooled = pool([jnp.asarray(x) for x in maps], kind)
  for x, found, spec, side in zip(maps, pooled, specs, places, strict=True):
    if kind == "max":
      expected = max_pool(x, *spec)
    else:
      expected = average_pool(x.astype(np.float64), *spec)
    assert expected.shape[1:3] == (side, side)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_sizes_are_divided_evenly_within_9216_numbers():
  # Of CIFAR images behind the small stem: 64 to 512 channels.
  shapes = [(1, 32, 32, 64), (1, 32, 32, 64), (1, 16, 16, 128),
            (1, 8, 8, 256), (1, 4, 4, 512)]  # fmt: skip
  maps = draw(shapes)
  pooled = pool([jnp.asarray(x) for x in maps])
  # 12 * 12 * 64 = 9216 = 6 * 6 * 256; the third and the last map are small.
  for x, found, side in zip(maps, pooled, (12, 12, 8, 6, 4), strict=True):
    expected = adaptive_pool(x.astype(np.float64), side)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_array_equal(pooled[4], maps[4])


def test_a_map_of_more_channels_than_that_is_one_place():
  maps = draw([(1, 2, 2, 1)] * 4 + [(1, 3, 3, 9217)])
  pooled = pool([jnp.asarray(x) for x in maps])
  np.testing.assert_allclose(pooled[4][0, 0], maps[4].mean((1, 2)), atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 9), (112, 20)])
def test_maps_that_are_not_square(shape):
  (x,) = draw([(1, *shape, 4)])
  found = pool([jnp.asarray(x)])[0]
  # Each axis by its own length: rows as columns would be.
  transposed = pool([jnp.asarray(x.transpose(0, 2, 1, 3))])[0]
  places = 12 if shape == (112, 20) else 7
  sides = (places, shape[1], 4)
  np.testing.assert_allclose(
    found.reshape(sides).transpose(1, 0, 2),
    transposed.reshape(sides[1], sides[0], 4),
    atol=1e-6,
  )


def test_half_precision_is_averaged_in_single():
  (x,) = draw([(1, 112, 112, 2)])
  halves = jnp.asarray(x, jnp.bfloat16)
  expected = average_pool(np.asarray(halves, np.float64), *OFFICIAL[0])
  found = pool([halves])[0]
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, rtol=1e-4)
