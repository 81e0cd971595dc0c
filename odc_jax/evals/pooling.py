"""The five stages of a backbone, each pooled to about 9,000 numbers.

The classical way to ask where in a network the knowledge lies: a linear
classifier on every stage, of a ResNet-50 all with about as many inputs.

Source: Zhang, Isola & Efros, "Split-brain autoencoders", CVPR 2017, section 4;
OpenSelfSup configs/benchmarks/linear_classification (`pool_specs`); for AlexNet
deepcluster eval_linear.py (`RegLog`).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# For a ResNet's stem and its four stages at 224 pixels: stage and side of the
# map -> kernel, stride and padding of the official AvgPool2d.
_RESNET = {
  (0, 112): (10, 10, 4),
  (1, 56): (16, 8, 0),
  (2, 28): (13, 5, 0),
  (3, 14): (8, 3, 0),
  (4, 7): (6, 1, 0),
}
# For AlexNet's convolutions: stage, side and channels -> the same.
_ALEXNET = {
  (0, 55, 96): (6, 6, 3),
  (1, 27, 256): (4, 4, 0),
  (2, 13, 384): (3, 3, 1),
  (3, 13, 384): (3, 3, 1),
  (4, 13, 256): (2, 2, 0),
}
_MOST_DIMENSIONS = 9216


def pool(
  maps: list[Float[Array, "b _ _ _"]], kind: str = "mean"
) -> list[Float[Array, "b _ _ _"]]:
  """Pools the five maps over windows.

  Maps as large as those of a 224-pixel image get the official windows, which
  give 12, 6, 4, 3 and 2 places a side, whatever the channels: 9216, 9216, 8192,
  9216 and 8192 numbers of a ResNet-50, for which they were chosen; 9216, 2304,
  2048, 2304 and 2048 of a ResNet-18. Those of AlexNet get its own windows:
  9600, 9216, 9600, 9600 and 9216 numbers. Any other map of s x s x c is divided
  evenly into the most places a side that keep p^2 c within 9216:
  p = min(s, floor(sqrt(9216 / c))), as PyTorch's AdaptiveAvgPool2d divides it.

  Args:
    maps: From the stem's to the last, [b, h, w, c], of any float type.
    kind: "mean", or "max" as SeLa has it for AlexNet.

  Returns:
    Five arrays [b, h', w', c], float32.
  """
  pooled = []
  for stage, x in enumerate(maps):
    rows = _windows(stage, x.shape[1], x.shape[3])
    columns = _windows(stage, x.shape[2], x.shape[3])
    if kind == "max":
      x = _maxima(_maxima(x, rows, axis=1), columns, axis=2)
    else:
      # As products with small matrices: the windows of either kind are products
      # of intervals, which a matrix holds whatever their sizes.
      by_row, by_column = (
        jnp.asarray(_weights(windows, side))
        for windows, side in ((rows, x.shape[1]), (columns, x.shape[2]))
      )
      x = x.astype(jnp.float32)
      x = jnp.einsum("ph,bhwc->bpwc", by_row, x, precision="highest")
      x = jnp.einsum("qw,bpwc->bpqc", by_column, x, precision="highest")
    pooled.append(x.astype(jnp.float32))
  return pooled


def flat(x: Float[Array, "b _ _ _"]) -> Float[Array, "b _"]:
  """Returns what an image has in a row; the channel varies fastest."""
  return x.reshape(x.shape[0], -1)


def _windows(stage: int, side: int, channels: int) -> list[tuple[int, ...]]:
  """Returns each window's first place, the one behind its last, and its size.

  Over an edge the first two reach past the map.
  """
  official = _RESNET.get((stage, side)) or _ALEXNET.get((stage, side, channels))
  if official:
    kernel, stride, padding = official
    starts = range(-padding, side + padding - kernel + 1, stride)
    return [(start, start + kernel, kernel) for start in starts]
  places = min(side, max(1, math.isqrt(_MOST_DIMENSIONS // channels)))
  edges = [
    (i * side // places, -(-(i + 1) * side // places)) for i in range(places)
  ]
  return [(start, stop, stop - start) for start, stop in edges]


def _weights(
  windows: list[tuple[int, ...]], side: int
) -> Float[np.ndarray, "p s"]:
  """Returns the weight of every row of a map in every row that it becomes."""
  weights = np.zeros((len(windows), side), np.float32)
  # PyTorch counts the padding: a window over the edge sums up to less.
  for row, (start, stop, count) in zip(weights, windows, strict=True):
    row[max(0, start) : stop] = 1 / count
  return weights


def _maxima(x, windows, axis):
  """Returns the largest of every window along an axis; padding is none."""
  side = x.shape[axis]
  parts = [
    jax.lax.slice_in_dim(x, max(0, start), min(stop, side), axis=axis)
    for start, stop, _ in windows
  ]
  return jnp.stack([part.max(axis) for part in parts], axis)
