"""CoKe's slots, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax.methods import coke_slots


@pytest.mark.parametrize(
  ("clusters", "values", "new", "factor", "expected"),
  [
    # Begins with the first slot, whatever the factor.
    ([1, 1, 1], [0, 0, 0], 4, 1.0, ([4, 1, 1], [1, 0, 0])),
    ([1, 1, 1], [0, 0, 0], 1, 0.25, ([1, 1, 1], [1, 0, 0])),
    # Is there already.
    ([4, 7, 1], [0.5, 0.5, 0], 7, 0.2, ([4, 7, 1], [0.4, 0.6, 0])),
    # Takes an unused slot.
    ([4, 1, 1], [1, 0, 0], 7, 0.5, ([4, 7, 1], [0.5, 0.5, 0])),
    # Evicts the least.
    ([4, 7, 2], [0.5, 0.3, 0.2], 6, 0.5, ([4, 7, 6], [0.3125, 0.1875, 0.5])),
    # An unused slot says 1, and the last one that does takes the value.
    ([1, 4, 1], [0.5, 0.5, 0], 1, 0.5, ([1, 4, 1], [0.25, 0.25, 0.5])),
  ],
)
def test_slots_average_clusters_over_epochs(
  clusters, values, new, factor, expected
):
  slots = coke_slots.Slots(
    jnp.array(clusters, jnp.int32)[None, None],
    jnp.array(values, jnp.float32)[None, None],
  )
  found = coke_slots.update(
    slots, jnp.full((1, 1), new, jnp.int32), jnp.float32(factor)
  )
  np.testing.assert_array_equal(found.clusters[0, 0], expected[0])
  np.testing.assert_allclose(found.values[0, 0], expected[1], atol=1e-6)


def test_probabilities_of_slots_are_a_softmax_over_what_is_there():
  slots = coke_slots.Slots(
    jnp.array([[[0, 2, 0]], [[1, 1, 1]]], jnp.int32),
    jnp.array([[[0.25, 0.5, 0.25]], [[0, 0, 0]]], jnp.float32),
  )
  (found,) = coke_slots.probabilities(slots, (4,), 0.5)
  np.testing.assert_allclose(found, [[0.5, 0, 0.5, 0], [0] * 4], atol=1e-6)
