"""Principal components of row-sharded features."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from odc_jax import mesh
from odc_jax.clustering import assign


class PCA(NamedTuple):
  """A centre and the directions of greatest variance, on the host.

  Attributes:
    mean: [c] float32.
    components: Orthogonal rows, the greatest variance first, [p, c] float32.
  """

  mean: Float[np.ndarray, "c"]
  components: Float[np.ndarray, "p c"]

  def project(
    self, features: Float[np.ndarray, "m c"]
  ) -> Float[np.ndarray, "m p"]:
    """Returns the rows' coordinates, [m, p] float32."""
    return (features - self.mean) @ self.components.T


def fit(
  x: Float[Array, "n c"],
  counts: Bool[Array, "n"],
  num_components: int,
  eigen_power: float = 0.0,
) -> PCA:
  """Finds the principal components of a row-sharded matrix.

  The devices sum up a covariance matrix, [c, c], which is all that moves; the
  host takes it apart. Of the two signs of a component it gets the one that
  makes its largest entry positive, so that the same rows give the same result.

  Args:
    x: [n, c] row-sharded.
    counts: Which rows count, [n] row-sharded; padding does not. At least one.
    num_components: p; fewer if c is less.
    eigen_power: Component i has the length of its variance to this power: 0
      for plain components, -0.5 for whitening, as in faiss.

  Returns:
    The components.
  """
  mean, covariance = jax.device_get(_moments(x, counts))
  components = _components(
    np, covariance.astype(np.float64), num_components, eigen_power
  )
  return PCA(mean, components.astype(np.float32))


def whiten(
  x: Float[Array, "n c"], counts: Bool[Array, "n"], num_components: int
) -> Float32[Array, "n p"]:
  """Whitens row-sharded features and scales the rows to unit length.

  y = |(x - mean) V diag(lambda)^-1/2|, with the eigenvectors V of the greatest
  variances lambda. Can be traced: every device takes the covariance apart, and
  projects its own rows.

  Args:
    x: [n, c] row-sharded, of any float type; computed in float32.
    counts: Which rows count, [n] row-sharded. At least one.
    num_components: p; fewer if c is less.

  Returns:
    [n, p] row-sharded unit rows; zeros where a row does not count.

  Source: deepcluster clustering.py:preprocess_features, whose faiss learns the
  components from at most 1,000 c rows; here from all.
  """
  mean, covariance = _moments(x, counts)
  components = _components(jnp, covariance, num_components, -0.5)

  def local(x, counts, mean, components):
    p, c = components.shape
    size = assign.chunk_rows(x.shape[0], c, None)

    def step(y, start, _):
      rows = assign.slice_rows(x, start, size) - mean[None, :]
      rows = jnp.matmul(rows, components.T, precision="highest")
      norms = jnp.linalg.norm(rows, axis=1, keepdims=True) + 1e-10
      here = jax.lax.dynamic_slice_in_dim(counts, start, size)
      rows = jnp.where(here[:, None], rows / norms, 0)
      return jax.lax.dynamic_update_slice_in_dim(y, rows, start, 0)

    y = jnp.zeros((x.shape[0], p), jnp.float32)
    return assign.over_chunks(x.shape[0], size, step, y)

  rows, whole = mesh.ROWS, mesh.REPLICATED
  return mesh.per_shard(local, (rows, rows, whole, whole), rows)(
    x, counts, mean, components
  )


def _components(
  xp: Any, covariance: Any, num_components: int, eigen_power: float
) -> Any:
  """Takes a covariance matrix apart, [c, c] -> [p, c].

  Args:
    xp: `numpy`, or `jax.numpy` to be traced.
    covariance: Of an array type of `xp`.
    num_components: As for `fit`.
    eigen_power: As for `fit`.
  """
  variances, vectors = xp.linalg.eigh(covariance)
  variances = variances[::-1][:num_components]
  components = vectors[:, ::-1][:, :num_components].T
  largest = xp.argmax(xp.abs(components), axis=1)
  signs = xp.sign(xp.take_along_axis(components, largest[:, None], axis=1))
  # A direction in which nothing varies is not to be made of rounding; nor is
  # there to be a division by zero where nothing varies at all.
  least = xp.maximum(1e-6 * variances[0], np.finfo(np.float32).tiny)
  lengths = xp.maximum(variances, least) ** eigen_power
  return components * signs * lengths[:, None]


@jax.jit
def _moments(x, counts):
  """Returns the mean [c] and the covariance [c, c]."""
  c = x.shape[1]

  def over_rows(add, shape, *more):
    """Sums `add(rows, which of them count, *more)` over chunks of rows."""

    def local(x, counts, *more):
      size = assign.chunk_rows(x.shape[0], c, None)

      def step(total, start, fresh):
        rows = assign.slice_rows(x, start, size)
        here = jax.lax.dynamic_slice_in_dim(counts, start, size) & fresh
        return total + add(rows, here[:, None], *more)

      nothing = jnp.zeros(shape, jnp.float32)
      total = assign.over_chunks(x.shape[0], size, step, nothing)
      return jax.lax.psum(total, mesh.AXIS)

    return mesh.per_shard(
      local,
      (mesh.ROWS, mesh.ROWS, *(mesh.REPLICATED for _ in more)),
      mesh.REPLICATED,
    )(x, counts, *more)

  def summed(rows, here):
    return jnp.sum(jnp.where(here, rows, 0), axis=0)

  def scattered(rows, here, mean):
    rows = jnp.where(here, rows - mean[None, :], 0)
    return jnp.matmul(rows.T, rows, precision="highest")

  num = jnp.sum(counts)
  mean = over_rows(summed, (c,)) / num
  # About the mean in a second pass: the difference of two large sums would
  # lose the small variances.
  return mean, over_rows(scattered, (c, c), mean) / num
