"""Which images each step takes."""

import numpy as np
import pytest

from odc_jax.data import order as order_lib


@pytest.mark.parametrize(
  ("n", "b"), [(24, 8), (23, 8), (7, 7), (1, 1), (5, 1), (70001, 7000)]
)
def test_an_epoch_is_a_permutation_without_its_remainder(n, b):
  steps = n // b
  seen = []
  epochs = 20 if n < 100 else 2  # 70001 is where the cipher takes over
  for epoch in range(epochs):
    epoch_indices = np.concatenate(
      [
        order_lib.batch_indices(n, b, epoch * steps + s, 0, "permutation")
        for s in range(steps)
      ]
    )
    assert epoch_indices.dtype == np.int32
    assert len(epoch_indices) == steps * b
    assert len(set(epoch_indices.tolist())) == steps * b
    assert set(epoch_indices.tolist()) <= set(range(n))
    seen.append(tuple(epoch_indices.tolist()))
  if n > 7:
    assert len(set(seen)) == epochs


def test_every_example_is_as_likely_at_every_place():
  draws = np.array(
    [order_lib.batch_indices(8, 8, s, 5, "permutation") for s in range(4000)]
  )
  for place in range(8):
    share = np.bincount(draws[:, place], minlength=8) / 4000
    # Four standard errors.
    np.testing.assert_allclose(share, 1 / 8, atol=0.021)


def test_seeds_give_different_orders_and_any_whole_number_is_one():
  orders = {
    tuple(order_lib.batch_indices(100, 100, 0, seed, sampling).tolist())
    for seed in (0, 1, 2**32, 2**40, -1)
    for sampling in ("permutation", "replacement")
  }
  assert len(orders) == 10


def test_replacement_is_independent_and_uniform():
  n, b = 50, 25
  draws = np.array(
    [order_lib.batch_indices(n, b, s, 0, "replacement") for s in range(2000)]
  )
  assert draws.dtype == np.int32
  # Chi-squared with 49 degrees of freedom: mean 49, standard deviation 9.9.
  counts = np.bincount(draws.ravel(), minlength=n)
  expected = draws.size / n
  assert 15 < ((counts - expected) ** 2 / expected).sum() < 95
  # 1 - 1/e of the data set is seen in an epoch of n draws.
  distinct = [len(set(draws[i : i + 2].ravel())) / n for i in range(0, 2000, 2)]
  np.testing.assert_allclose(
    np.mean(distinct), 1 - (1 - 1 / n) ** n, atol=0.006
  )
  # The step alone says what is drawn.
  np.testing.assert_array_equal(
    draws[1234], order_lib.batch_indices(n, b, 1234, 0, "replacement")
  )


def test_a_million_examples_cost_no_more_than_a_few():
  import tracemalloc

  tracemalloc.start()
  for sampling in "permutation", "replacement":
    indices = order_lib.batch_indices(1_281_167, 64, 10**7, 0, sampling)
    assert 0 <= indices.min() < indices.max() < 1_281_167
  assert tracemalloc.get_traced_memory()[1] < 200_000  # bytes
  tracemalloc.stop()


def test_an_order_is_taken_as_it_stands():
  order = np.array([4, 4, 2, 9, 0, 1, 7])
  got = [
    order_lib.batch_indices(10, 3, step, 0, "permutation", order).tolist()
    for step in range(3)
  ]
  assert got == [[4, 4, 2], [9, 0, 1], [4, 4, 2]]
