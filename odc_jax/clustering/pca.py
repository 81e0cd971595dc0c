"""Principal components of row-sharded features."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

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
  variances, vectors = np.linalg.eigh(covariance.astype(np.float64))
  variances = variances[::-1][:num_components]
  components = vectors[:, ::-1][:, :num_components].T
  largest = np.argmax(np.abs(components), axis=1)
  signs = np.sign(components[np.arange(len(components)), largest])
  # A direction in which nothing varies is not to be made of rounding.
  variances = np.maximum(variances, 1e-6 * variances[0])
  lengths = variances**eigen_power
  components = components * (signs * lengths)[:, None]
  return PCA(mean, components.astype(np.float32))


@jax.jit
def _moments(x, counts):
  """Returns the mean [c] and the covariance [c, c]."""
  c = x.shape[1]

  def over_rows(local, *more):
    return mesh.per_shard(
      lambda *args: jax.lax.psum(local(*args), mesh.AXIS),
      (mesh.ROWS, mesh.ROWS, *(mesh.REPLICATED for _ in more)),
      mesh.REPLICATED,
    )(x, counts, *more)

  def summed(x, counts):
    return jnp.sum(jnp.where(counts[:, None], x, 0), axis=0), jnp.sum(counts)

  total, num = over_rows(summed)
  mean = total / num

  def scattered(x, counts, mean):
    size = assign.chunk_rows(x.shape[0], c, None)

    def step(scatter, start, fresh):
      rows = assign.slice_rows(x, start, size) - mean[None, :]
      here = jax.lax.dynamic_slice_in_dim(counts, start, size) & fresh
      rows = jnp.where(here[:, None], rows, 0)
      return scatter + jnp.matmul(rows.T, rows, precision="highest")

    nothing = jnp.zeros((c, c), jnp.float32)
    return assign.over_chunks(x.shape[0], size, step, nothing)

  # About the mean in a second pass: the difference of two large sums would
  # lose the small variances.
  return mean, over_rows(scattered, mean) / num
