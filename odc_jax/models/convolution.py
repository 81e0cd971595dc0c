"""Convolutions and max-pooling, in the form that suits platform and shape.

XLA's own are what a GPU or TPU wants. On a CPU they are 2 to 50 times slower
than need be where a map has only a few places, where every channel has a kernel
of its own, and where maxima are differentiated (docs/performance.md). There,
and only there, the same numbers come out of slices and matrix products. Which
form a program gets is settled when it is lowered for a platform, so that a
program for a TPU may be compiled on a CPU, and for a platform it depends on
shapes alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

# Of the result. Up to there one matrix product for each place wins over all
# other forms; at 16 places XLA's convolution does.
_FEW_PLACES = 4

# Of images, and how many numbers of a row of the result make a wide enough
# product.
_FEW_CHANNELS, _BLOCK = 4, 64

_CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")

# Before and behind a map's first row, and before and behind its first column.
Pads = Sequence[tuple[int, int]]


def convolve(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "k l i o"],
  strides: Sequence[int],
  padding: Any,
  *,
  feature_group_count: int = 1,
  **options: Any,
) -> Float[Array, "b _ _ o"]:
  """Convolves, as `jax.lax.conv_general_dilated` defines it.

  To be given to `nnx.Conv` as its `conv_general_dilated`.

  Args:
    x: Feature maps.
    kernel: Of i = c / `feature_group_count` channels.
    strides: Of rows and of columns.
    padding: "SAME", "VALID", or what to add at every edge.
    feature_group_count: Groups that the channels fall into.
    options: What else `conv_general_dilated` takes.
  """
  plain = functools.partial(
    lax.conv_general_dilated,
    window_strides=strides,
    padding=padding,
    feature_group_count=feature_group_count,
    **options,
  )
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      x.shape[1:3], kernel.shape[:2], strides, padding
    )
  dilations = (options.get(n) for n in ("lhs_dilation", "rhs_dilation"))
  if any(set(dilation or ()) > {1} for dilation in dilations):
    return plain(x, kernel)
  form = form_on_cpu(x.shape, kernel.shape, strides, padding)
  if form is None:
    return plain(x, kernel)
  on_cpu = functools.partial(form, strides=strides, pads=padding)
  return _by_platform(on_cpu, plain, x, kernel)


def form_on_cpu(
  shape: Sequence[int],
  kernel_shape: Sequence[int],
  strides: Sequence[int],
  pads: Pads,
) -> Callable[..., Array] | None:
  """Returns the form for a CPU, or None where XLA's own is the one.

  Args:
    shape: Of the maps, (b, h, w, c).
    kernel_shape: (k, l, i, o).
    strides: Of rows and of columns.
    pads: What is added at every edge.

  Returns:
    (x, kernel, strides=, pads=) -> the convolution.
  """
  *size, inputs, outputs = kernel_shape
  channels = shape[3]
  if inputs == 1 and outputs == channels:
    return by_channel
  if inputs != channels:
    return None
  rows, columns = _places(shape[1:3], size, strides, pads)
  if rows * columns <= _FEW_PLACES:
    return by_place
  if inputs <= _FEW_CHANNELS and 2 * outputs <= _BLOCK and columns % 2 == 0:
    return by_block
  if (*size, *pads[0], *pads[1]) == (1, 1, 0, 0, 0, 0):
    return pointwise
  return None


def by_block(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "k l c o"],
  *,
  strides: Sequence[int],
  pads: Pads,
) -> Float[Array, "b _ _ o"]:
  """Convolves so that some places side by side are channels of one.

  Of three channels in and a few out, XLA makes matrix products too narrow for
  the machine. What the places of a block see of a row, put side by side, is
  3 l channels and more; what comes out of a block is o channels a place.
  """
  rows, columns = _places(x.shape[1:3], kernel.shape[:2], strides, pads)
  block = max(
    n for n in range(1, _BLOCK // kernel.shape[3] + 1) if columns % n == 0
  )
  step = strides[1]
  seen = (block - 1) * step + kernel.shape[1]
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  b, h, _, c = x.shape
  starts = range(0, columns * step, block * step)
  x = jnp.stack([x[:, :, n : n + seen].reshape(b, h, -1) for n in starts], 2)
  shifted = [
    jnp.pad(kernel, ((0, 0), (n, seen - kernel.shape[1] - n), (0, 0), (0, 0)))
    for n in range(0, block * step, step)
  ]
  y = lax.conv_general_dilated(
    x,
    jnp.stack(shifted, 3).reshape(kernel.shape[0], 1, seen * c, -1),
    (strides[0], 1),
    "VALID",
    dimension_numbers=_CHANNELS_LAST,
  )
  return y.reshape(b, rows, columns, -1)


def pointwise(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "1 1 c o"],
  *,
  strides: Sequence[int],
  pads: Pads,
) -> Float[Array, "b _ _ o"]:
  """Convolves with a kernel of one place: a matrix product."""
  del pads  # there are none
  x = x[:, :: strides[0], :: strides[1]]
  return (x.reshape(-1, x.shape[3]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)


def by_place(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "k l c o"],
  *,
  strides: Sequence[int],
  pads: Pads,
) -> Float[Array, "b _ _ o"]:
  """Convolves by a matrix product for each place of the result.

  Each is that of the part of the map that the place sees with the part of the
  kernel that it sees it through: nothing is multiplied by padding, which is
  most of what there is of a 1 x 1 map.
  """
  b, *sides, _ = x.shape
  size = kernel.shape[:2]
  rows, columns = _places(sides, size, strides, pads)
  places = []
  for i in range(rows):
    top = i * strides[0] - pads[0][0]
    for j in range(columns):
      left = j * strides[1] - pads[1][0]
      up, down = max(0, top), min(sides[0], top + size[0])
      west, east = max(0, left), min(sides[1], left + size[1])
      seen = x[:, up:down, west:east].reshape(b, -1)
      through = kernel[up - top : down - top, west - left : east - left]
      places.append(seen @ through.reshape(seen.shape[1], -1))
  return jnp.stack(places, axis=1).reshape(b, rows, columns, -1)


def by_channel(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "k l 1 c"],
  *,
  strides: Sequence[int],
  pads: Pads,
) -> Float[Array, "b _ _ c"]:
  """Convolves every channel with its own kernel: a sum of weighted slices."""
  size = kernel.shape[:2]
  slices = _slices(x, size, strides, pads, 0.0)
  weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[3])
  return sum(
    (
      part * weight
      for part, weight in zip(slices[1:], weights[1:], strict=True)
    ),
    slices[0] * weights[0],
  )


def _places(sides, size, strides, pads):
  """Returns the rows and the columns of the result."""
  return tuple(
    (n + sum(pad) - k) // stride + 1
    for n, k, stride, pad in zip(sides, size, strides, pads, strict=True)
  )


def _slices(x, size, strides, pads, value):
  """Returns what every place of a kernel meets of the padded maps."""
  rows, columns = _places(x.shape[1:3], size, strides, pads)
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)
  return [
    x[
      :,
      i : i + (rows - 1) * strides[0] + 1 : strides[0],
      j : j + (columns - 1) * strides[1] + 1 : strides[1],
    ]
    for i in range(size[0])
    for j in range(size[1])
  ]


def max_pool(
  x: Float[Array, "b h w c"], size: int, stride: int, padding: int = 0
) -> Float[Array, "b _ _ c"]:
  """Takes maxima over square windows; where none is whole, there is no place.

  Of equal values the first gets the gradient, as of XLA and torch.

  Args:
    x: Feature maps.
    size: Side of a window.
    stride: From one window to the next.
    padding: Rows and columns of minus infinity at every edge.
  """
  return _max_pool(x, size, stride, padding)


def _plain_max_pool(x, *, size, stride, padding):
  pads: Any = ((padding, padding),) * 2  # Flax takes them, but declares a str
  return nnx.max_pool(x, (size, size), strides=(stride, stride), padding=pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, size, stride, padding):
  def on_cpu(x):
    # One direction after the other: of 3 + 3 values, rather than of 9.
    rows: Any = ((padding, padding), (0, 0))
    columns: Any = rows[::-1]
    x = nnx.max_pool(x, (size, 1), strides=(stride, 1), padding=rows)
    return nnx.max_pool(x, (1, size), strides=(1, stride), padding=columns)

  plain = functools.partial(
    _plain_max_pool, size=size, stride=stride, padding=padding
  )
  return lax.platform_dependent(x, cpu=on_cpu, default=plain)


def _max_pool_forward(x, size, stride, padding):
  return _max_pool(x, size, stride, padding), x


def _max_pool_backward(size, stride, padding, x, gradient):
  """Returns what every value gets: XLA scatters it, and on a CPU one by one."""

  def on_cpu(x, gradient):
    pads = ((padding, padding),) * 2
    parts = _slices(x, (size, size), (stride, stride), pads, -jnp.inf)
    largest, first = parts[0], jnp.zeros(parts[0].shape, jnp.int8)
    for number, part in enumerate(parts[1:], 1):
      first = jnp.where(part > largest, jnp.int8(number), first)
      largest = jnp.maximum(largest, part)
    return _scatter(first, gradient, x.shape, size, stride, padding)

  def plain(x, gradient):
    pool = functools.partial(
      _plain_max_pool, size=size, stride=stride, padding=padding
    )
    return jax.vjp(pool, x)[1](gradient)[0]

  return (lax.platform_dependent(x, gradient, cpu=on_cpu, default=plain),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _scatter(place, gradient, shape, size, stride, padding):
  """Returns the sums of windows' gradients, where their maxima were.

  Args:
    place: Position of every window's maximum, counted by rows,
      [b, rows, columns, c].
    gradient: Gradient of every window's maximum, [b, rows, columns, c].
    shape: Of the maps, (b, h, w, c).
    size: Side of a window.
    stride: From one window to the next.
    padding: At every edge of the maps.
  """
  b, h, w, c = shape
  # Of every `stride` rows of the padded maps the a-th are a map of their own,
  # of so many rows; what window o puts at its row i lies at row o + i // stride
  # of the (i % stride)-th of those.
  height, width = (-(-(n + 2 * padding) // stride) for n in (h, w))
  before = (size - 1) // stride
  behind = [
    (before, n - m)
    for n, m in zip((height, width), gradient.shape[1:3], strict=True)
  ]
  pads = ((0, 0), *behind, (0, 0))
  place = jnp.pad(place, pads, constant_values=-1)
  gradient = jnp.pad(gradient, pads)
  maps = [[jnp.zeros((), gradient.dtype)] * stride for _ in range(stride)]
  for i in range(size):
    for j in range(size):
      top, left = before - i // stride, before - j // stride
      part = (
        slice(None),
        slice(top, top + height),
        slice(left, left + width),
      )
      put = jnp.where(place[part] == i * size + j, gradient[part], 0)
      maps[i % stride][j % stride] = maps[i % stride][j % stride] + put
  # Each is worked out on its own before they are interleaved.
  maps = lax.optimization_barrier(maps)
  whole = jnp.stack([jnp.stack(row, axis=3) for row in maps], axis=2)
  whole = whole.reshape(b, height * stride, width * stride, c)
  return whole[:, padding : padding + h, padding : padding + w]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_platform(on_cpu, plain, x, kernel):
  """Returns `on_cpu(x, kernel)` for a CPU, `plain(x, kernel)` for others.

  The gradient is that of the one or the other, worked out anew from `x` and
  `kernel`: left to JAX, both would be asked what they want to keep for it.
  """
  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _by_platform_forward(on_cpu, plain, x, kernel):
  return _by_platform(on_cpu, plain, x, kernel), (x, kernel)


def _by_platform_backward(on_cpu, plain, residuals, gradient):
  def pulled_back(form):
    return lambda x, kernel, g: jax.vjp(form, x, kernel)[1](g)

  return lax.platform_dependent(
    *residuals, gradient, cpu=pulled_back(on_cpu), default=pulled_back(plain)
  )


_by_platform.defvjp(_by_platform_forward, _by_platform_backward)
