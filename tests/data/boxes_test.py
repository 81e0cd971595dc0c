"""Boxes of whole batches: those that the host's own cropping would draw."""

import numpy as np
import pytest

from odc_jax.data import boxes, decode
from odc_jax.data import order as order_lib
from odc_jax.data.decode import Crop

WIDE, SMALL = (0.08, 1.0), (0.05, 0.14)
RATIO = (3 / 4, 4 / 3)


def one_by_one(seed, step, rows, sizes, crops):
  views = [crop for crop in crops for _ in range(crop.views)]
  drawn = np.array(
    [
      [
        decode.sample_box(
          int(width),
          int(height),
          crop.scale,
          crop.ratio,
          order_lib.crop_generator(seed, step, int(row), view),
        )
        for view, crop in enumerate(views)
      ]
      for row, (width, height) in zip(rows, sizes, strict=True)
    ]
  )
  firsts = np.cumsum([0, *(crop.views for crop in crops)])
  return [
    drawn[:, first : first + crop.views]
    for first, crop in zip(firsts, crops, strict=False)
  ]


def sizes_of_all_shapes(rng, count):
  """Some square, some so long that hardly a box fits, or none."""
  sizes = rng.integers(1, 60, (count, 2))
  sizes[: count // 3] = 32
  sizes[count // 3 : count // 2, 0] = 500
  return sizes


@pytest.mark.parametrize("seed", [0, -3, 5 + (1 << 32)])
@pytest.mark.parametrize("step", [0, 7, 2**40])
@pytest.mark.parametrize(
  "crops",
  [
    [Crop(32, WIDE, RATIO)],
    [Crop(32, WIDE, RATIO, 2), Crop(16, SMALL, RATIO, 4)],
    [Crop(8, (1.0, 1.0), (1.0, 1.0))],
  ],
  ids=["one", "multicrop", "whole"],
)
def test_a_batch_at_once_is_what_is_drawn_one_by_one(seed, step, crops):
  sizes = sizes_of_all_shapes(np.random.default_rng(abs(seed)), 90)
  rows = np.arange(1000, 1090)
  ours = boxes.random_boxes(seed, step, rows, sizes, crops)
  theirs = one_by_one(seed, step, rows, sizes, crops)
  for got, expected in zip(ours, theirs, strict=True):
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


def test_a_view_depends_on_its_row_alone():
  """So processes share the rows, and the views are no other with more."""
  crops = [Crop(32, WIDE, RATIO, 2), Crop(16, SMALL, RATIO, 1)]
  sizes = np.full((40, 2), 50)
  rows = np.arange(40)
  whole = boxes.random_boxes(3, 2, rows, sizes, crops)
  part = boxes.random_boxes(3, 2, rows[30:], sizes[30:], crops)
  fewer = boxes.random_boxes(3, 2, rows, sizes, [crops[0]._replace(views=1)])
  for all_rows, last in zip(whole, part, strict=True):
    np.testing.assert_array_equal(all_rows[30:], last)
  np.testing.assert_array_equal(whole[0][:, :1], fewer[0])
  assert len(np.unique(whole[0].reshape(-1, 4), axis=0)) > 75


def test_boxes_that_rounding_decides_are_drawn_one_by_one(monkeypatch):
  """So are those for which 32 random bits do not do."""
  asked = []

  def note(seed, step, row, view):
    asked.append(row)
    return generator(seed, step, row, view)

  generator = order_lib.crop_generator
  crops = [Crop(32, WIDE, RATIO)]
  sizes = np.full((50, 2), 40)
  rows = np.arange(50)
  expected = one_by_one(0, 1, rows, sizes, crops)
  monkeypatch.setattr(order_lib, "crop_generator", note)
  boxes.random_boxes(0, 1, rows, sizes, crops)
  assert asked == [0]  # for the key
  monkeypatch.setattr(boxes, "_NEAR", 0.05)
  (got,) = boxes.random_boxes(0, 1, rows, sizes, crops)
  np.testing.assert_array_equal(got, expected[0])
  assert 3 < len(asked) < 50


def test_center_boxes_by_hand():
  sizes = np.array([[20, 10], [10, 30], [8, 8], [7, 5]])
  got = boxes.center_boxes(sizes, resize=8, crop=6)
  # 20 x 10 becomes 16 x 8: from column 5 and row 1, both of 5/4 pixels.
  np.testing.assert_allclose(got[0, 0], [6.25, 1.25, 13.75, 8.75])
  # 10 x 30 becomes 8 x 24.
  np.testing.assert_allclose(got[1, 0], [1.25, 11.25, 8.75, 18.75])
  np.testing.assert_allclose(got[2, 0], [1, 1, 7, 7])
  # 7 x 5 becomes 11 x 8; its first column, (11 - 6) / 2, is rounded to even.
  np.testing.assert_allclose(got[3, 0], [2 * 7 / 11, 0.625, 8 * 7 / 11, 4.375])
