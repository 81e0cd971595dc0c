"""Batch normalisation as torch defines it, so that its recipes carry over."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class BatchNorm(nnx.Module):
  """Normalises every channel over the batch and, where present, space.

  This is not `nnx.BatchNorm`, for two reasons. Flax puts the biased variance
  into the running statistics, torch the unbiased one: at the four images a
  device of a small run, the difference shows up in evaluation. And Flax sees
  one global batch only, whereas the official ODC code leaves the neck
  unsynchronised (`sync_bn=False`), so that each GPU normalises its own images.

  Source: torch.nn.BatchNorm1d and BatchNorm2d.

  Attributes:
    mean: running mean, [c].
    var: running variance (unbiased), [c].
    scale: [c], or None where `affine` is off.
    bias: [c], or None where `affine` is off.
    use_running_average: whether the running statistics normalise instead of
      the batch's own; `nnx.Module.train()` and `.eval()` flip it.
  """

  def __init__(
    self,
    num_features: int,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    affine: bool = True,
    group_size: int = 0,
  ):
    """Creates the statistics and, if asked, the scale and the bias.

    Args:
      num_features: channels, c.
      momentum: weight of the new batch in the running statistics, which is
        torch's convention and one minus Flax's.
      eps: added to the variance.
      affine: whether to learn a scale and a bias.
      group_size: examples, consecutive in the batch, that share statistics.
        0 means the whole batch, over all devices.
    """
    self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
    self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
    self.scale = (
      nnx.Param(jnp.ones(num_features, jnp.float32)) if affine else None
    )
    self.bias = (
      nnx.Param(jnp.zeros(num_features, jnp.float32)) if affine else None
    )
    self.momentum = momentum
    self.eps = eps
    self.group_size = group_size
    self.use_running_average = False

  def __call__(
    self, x: Float[Array, "b *space c"]
  ) -> Float[Array, "b *space c"]:
    """Normalises `x`, and in training updates the running statistics.

    Args:
      x: [b, ..., c], of any float dtype.

    Returns:
      The normalised `x`, in the same dtype.

    Raises:
      ValueError: in training, if the batch does not divide into groups, or if
        a group holds a single value a channel and so has no variance.
    """
    if self.use_running_average:
      y, _ = _normalize(
        x,
        self.mean[...],
        self.var[...],
        None if self.scale is None else self.scale[...],
        None if self.bias is None else self.bias[...],
        self.eps,
      )
    else:
      batch = x.shape[0]
      size = self.group_size or batch
      if batch % size:
        raise ValueError(
          f"a batch of {batch} does not divide into groups of {size}"
        )
      groups = x.reshape(batch // size, size, *x.shape[1:])
      count = groups[0, ..., 0].size
      if count < 2:
        raise ValueError(
          "batch statistics need more than one value a channel; got an input "
          f"of shape {x.shape} with groups of {size}"
        )
      # Any: a type checker loses track of what a custom gradient returns.
      results: Any = _standardize(
        groups,
        None if self.scale is None else self.scale[...],
        None if self.bias is None else self.bias[...],
        self.eps,
      )
      y, mean, var = results
      y = y.reshape(x.shape)

      # Officially each GPU keeps its own running statistics and the first
      # one's end up in the checkpoint. Their mean has the same expectation.
      channels = (-1, x.shape[-1])
      self._update(self.mean, mean.reshape(channels).mean(0))
      unbiased = var * (count / (count - 1))
      self._update(self.var, unbiased.reshape(channels).mean(0))
    return y

  def _update(self, running: nnx.BatchStat, batch: Array) -> None:
    """Moves a running statistic towards the batch's."""
    running[...] = jax.lax.stop_gradient(
      (1 - self.momentum) * running[...] + self.momentum * batch
    )


def _last(a: Array, ndim: int) -> Array:
  """Returns [c] as [1, ..., c], and [g, 1, ..., c] as it is."""
  return a.reshape((1,) * (ndim - a.ndim) + a.shape)


def _normalize(x, mean, var, scale, bias, eps):
  """Returns (x - mean) / sqrt(var + eps) * scale + bias, and 1 / sqrt()."""
  deviation = jax.lax.rsqrt(_last(var, x.ndim) + eps)
  factor = deviation
  if scale is not None:
    factor = factor * _last(scale, x.ndim)
  # In float32 whatever comes in: bfloat16 cannot even count to 300.
  y = (x.astype(jnp.float32) - _last(mean, x.ndim)) * factor
  if bias is not None:
    y = y + _last(bias, x.ndim)
  return y.astype(x.dtype), deviation


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _standardize(x, scale, bias, eps):
  """Normalises every group by its own statistics.

  The gradient is written out because differentiation of the two passes takes
  five sums over `x` where two do: those of `scale` and `bias`. Nothing flows
  back through the statistics that it returns.

  Args:
    x: [g, b, ..., c].
    scale: [c] or None.
    bias: [c] or None.
    eps: added to the variance.

  Returns:
    The normalised `x`; mean and (biased) variance, [g, 1, ..., c].

  Source: Ioffe and Szegedy, "Batch normalization", ICML 2015, section 3.
  """
  return _standardize_forward(x, scale, bias, eps)[0]


def _standardize_forward(x, scale, bias, eps):
  axes = tuple(range(1, x.ndim - 1))
  y = x.astype(jnp.float32)
  # Two passes: the mean of the squares less the square of the mean would be
  # one, but loses a channel's variance once its mean is far from zero.
  mean = jnp.mean(y, axes, keepdims=True)
  var = jnp.mean(jnp.square(y - mean), axes, keepdims=True)
  y, deviation = _normalize(x, mean, var, scale, bias, eps)
  return (y, mean, var), (x, mean, deviation, scale, bias)


def _standardize_backward(eps, residuals, gradients):
  del eps
  x, mean, deviation, scale, bias = residuals
  axes = tuple(range(1, x.ndim - 1))
  count = x[0, ..., 0].size
  g = gradients[0].astype(jnp.float32)
  z = (x.astype(jnp.float32) - mean) * deviation
  sum_g = jnp.sum(g, axes, keepdims=True)
  sum_gz = jnp.sum(g * z, axes, keepdims=True)
  factor = deviation if scale is None else deviation * _last(scale, x.ndim)
  dx = factor * (g - sum_g / count - z * (sum_gz / count))

  def over_groups(sums):
    return sums.reshape(-1, x.shape[-1]).sum(0)

  return (
    dx.astype(x.dtype),
    None if scale is None else over_groups(sum_gz),
    None if bias is None else over_groups(sum_g),
  )


_standardize.defvjp(_standardize_forward, _standardize_backward)
