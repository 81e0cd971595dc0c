import jax
import jax.numpy as jnp
import numpy as np

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import assign, background


def test_by_hand(mesh, monkeypatch):
  """Five unit rows in the plane, a row a device, and three of padding."""
  monkeypatch.setattr(assign, "_CPU_SCORE_BYTES", 8)
  angles = jnp.array([0.0, 0.5, -0.5, 2.0, 0.0])
  rows = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
  clusters = np.full((8, 2), 4, np.int32)
  clusters[:5] = [[0, 0], [1, 3], [2, 2], [0, 3], [1, 1]]
  # Padding that would be the nearest, if it counted.
  bank = np.concatenate([rows, np.tile(rows[:1], (3, 1))])
  bank, clusters = jax.device_put((bank, clusters), mesh_lib.rows(mesh))
  t = 0.5

  def sums(k):
    return background.aggregate(
      bank,
      clusters,
      rows[:1],
      jnp.array([[0, 0]]),
      num_examples=5,
      num_background=k,
      temperature=t,
    )

  def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5)

  # The second most similar is the fifth row, which shares no cluster.
  found = sums(2)
  assert_close(found.threshold, [1.0])
  assert_close(found.background, [2.0])
  assert_close(found.close, [1.0])
  assert_close(found.by_close, rows[:1] / t)
  # The third is as similar as the fourth: both belong to it.
  found = sums(3)
  near = np.exp((np.cos(0.5) - 1) / t)
  assert_close(found.threshold, [np.cos(0.5)])
  assert_close(found.background, [2 + 2 * near])
  # The last, of a negative similarity, shares the first clustering's cluster.
  found = sums(5)
  far = np.exp((np.cos(2.0) - 1) / t)
  assert_close(found.threshold, [np.cos(2.0)])
  assert_close(found.background, [2 + 2 * near + far])
  assert_close(found.close, [1 + far])
  assert_close(found.by_close, (rows[:1] + far * rows[3:4]) / t)
