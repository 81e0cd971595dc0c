"""Rows of unit length, and an even choice of them."""

import numpy as np

from odc_jax.results import vectors


def test_unit_rows_and_rows_of_zeros():
  rows = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-12]], np.float64)
  found = vectors.unit(rows)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [0, -1]], rtol=1e-6)
  half = vectors.unit(np.array([[6e4, 6e4]], np.float16))
  np.testing.assert_allclose(half, [[0.5**0.5] * 2], rtol=1e-6)


def test_an_even_choice():
  rows = np.arange(10, 20)
  assert vectors.evenly(rows, 4).tolist() == [10, 12, 15, 17]
  assert vectors.evenly(rows, 99).tolist() == rows.tolist()
  assert vectors.evenly(rows[:0], 3).tolist() == []
