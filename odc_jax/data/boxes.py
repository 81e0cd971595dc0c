"""The rectangles that crops are cut from, of a whole batch at once.

Where images are cropped on the devices, the host still draws what it would draw
if it did the cropping: the boxes here are `decode.random_resized_crops`' own,
to the last pixel, so that a run sees the same crops either way. Drawn one by
one, as the loader does between two images that it decodes, they take 20
microseconds each, and a GPU that trains a small network would wait for them.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from odc_jax.data import decode
from odc_jax.data import order as order_lib
from odc_jax.data.decode import Crop

# Constants of Philox-4x64 with 10 rounds.
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10

# `decode.sample_box` tries so often before it gives up, with two words of
# random bits each time, and takes one more for the place.
_ATTEMPTS = 10

# Two exponentials of one number may differ in the last bit. Sides that are so
# near to a half that this decides how they are rounded are drawn one by one.
_NEAR = 1e-9


def random_boxes(
  seed: int,
  step: int,
  rows: Int[np.ndarray, " b"],
  sizes: Int[np.ndarray, "b 2"],
  crops: Sequence[Crop],
) -> list[Float[np.ndarray, "b _ 4"]]:
  """Draws the boxes of a batch, as `loader.train_batches` does.

  Args:
    seed: of the crops.
    step: training step, from 0.
    rows: the images' rows in the global batch.
    sizes: width and height of every image, in pixels.
    crops: the kinds of crops. Views are counted through all kinds.

  Returns:
    An array for each kind: (left, top, right, bottom) of every view, in whole
    pixels, float32.
  """
  generator = order_lib.crop_generator(seed, 0, 0, 0)
  key = generator.bit_generator.state["state"]["key"]
  boxes, first = [], 0
  for crop in crops:
    views = np.arange(first, first + crop.views)
    first += crop.views
    view, row = (part.ravel() for part in np.meshgrid(views, rows))
    width, height = np.repeat(sizes, crop.views, axis=0).T

    # At the first attempt most succeed. The others begin again.
    found, sure = _boxes(_words(key, view, row, step, 3), width, height, crop)
    left = np.flatnonzero(~sure)
    words = _words(key, view[left], row[left], step, 2 * _ATTEMPTS + 1)
    found[left], sure[left] = _boxes(words, width[left], height[left], crop)
    for i in np.flatnonzero(~sure):
      rng = order_lib.crop_generator(seed, step, int(row[i]), int(view[i]))
      found[i] = decode.sample_box(
        int(width[i]), int(height[i]), crop.scale, crop.ratio, rng
      )
    boxes.append(found.reshape(len(rows), crop.views, 4).astype(np.float32))
  return boxes


def center_boxes(
  sizes: Int[np.ndarray, "b 2"], resize: int, crop: int
) -> Float[np.ndarray, "b 1 4"]:
  """Returns where `decode.resize_center_crop` takes its pixels from.

  Args:
    sizes: width and height of every image, in pixels.
    resize: length of the short side after resizing, in pixels.
    crop: side of the square that is cut out, in pixels.

  Returns:
    (left, top, right, bottom) in pixels of the image, float32.
  """
  short = sizes.min(axis=1, keepdims=True)
  resized = resize * sizes // short
  # To even, as Python rounds.
  first = np.rint((resized - crop) / 2)
  scale = sizes / resized
  boxes = np.concatenate([first * scale, (first + crop) * scale], axis=1)
  return boxes[:, None].astype(np.float32)


def _words(
  key: UInt64[np.ndarray, "2"],
  view: Int[np.ndarray, " m"],
  row: Int[np.ndarray, " m"],
  step: int,
  count: int,
) -> UInt64[np.ndarray, "{count} m"]:
  """Returns the first `count` words of random bits of every (view, row).

  They are those of NumPy's Philox-4x64 with this key and the counter (0, view,
  row, step), which counts the first word up before each block of four.

  Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
  2011, section 3.3.
  """
  blocks = []
  for block in range(1, -(-count // 4) + 1):
    counter = [
      np.full(view.shape, block, np.uint64),
      view.astype(np.uint64),
      row.astype(np.uint64),
      np.full(view.shape, step, np.uint64),
    ]
    keys = [np.full(view.shape, word) for word in key]
    for _ in range(_ROUNDS):
      upper0, lower0 = _product(counter[0], _MULTIPLIERS[0])
      upper1, lower1 = _product(counter[2], _MULTIPLIERS[1])
      counter = [
        upper1 ^ counter[1] ^ keys[0],
        lower1,
        upper0 ^ counter[3] ^ keys[1],
        lower0,
      ]
      keys = [k + np.uint64(w) for k, w in zip(keys, _WEYL, strict=True)]
    blocks += counter
  return np.stack(blocks[:count])


def _product(a: UInt64[np.ndarray, " m"], b: int):
  """Returns the upper and the lower 64 bits of each product."""
  half, mask = np.uint64(32), np.uint64(2**32 - 1)
  b_lower, b_upper = np.uint64(b & (2**32 - 1)), np.uint64(b >> 32)
  a_lower, a_upper = a & mask, a >> half
  middle = a_upper * b_lower + (a_lower * b_lower >> half)
  carried = (middle & mask) + a_lower * b_upper >> half
  upper = a_upper * b_upper + (middle >> half) + carried
  return upper, a * np.uint64(b)


def _boxes(
  words: UInt64[np.ndarray, "w m"],
  width: Int[np.ndarray, " m"],
  height: Int[np.ndarray, " m"],
  crop: Crop,
) -> tuple[Int[np.ndarray, "m 4"], Bool[np.ndarray, " m"]]:
  """Does with many images what `decode.sample_box` does with one.

  Returns:
    The boxes, and which of them are what it would return. Of the others the
    words did not reach for one that fits, or its rounding is in doubt.
  """
  low, high = np.log(crop.ratio)
  least, most = crop.scale
  # As NumPy's uniform: 53 bits of a word.
  uniform = (words >> np.uint64(11)) * 2.0**-53
  boxes = np.zeros((len(width), 4), np.int64)
  open_, sure = np.ones((2, len(width)), bool)
  for attempt in range((len(words) - 1) // 2):
    first, second = uniform[2 * attempt : 2 * attempt + 2]
    area = width * height * (least + (most - least) * first)
    aspect = np.exp(low + (high - low) * second)
    sides = np.sqrt(np.stack([area * aspect, area / aspect]))
    in_doubt = np.any(np.abs(sides % 1 - 0.5) < _NEAR, axis=0)
    w, h = np.rint(sides).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    # One word for both: its lower half first. Where there is nothing to
    # choose, NumPy takes none.
    word = words[2 * attempt + 2]
    halves = word & np.uint64(2**32 - 1), word >> np.uint64(32)
    top, top_stands = _below(height - h + 1, halves[0])
    for_left = np.where(height == h, *halves)
    left, left_stands = _below(width - w + 1, for_left)
    in_doubt |= fits & ~(top_stands & left_stands)
    box = np.stack([left, top, left + w, top + h], axis=1)
    boxes = np.where((open_ & fits)[:, None], box, boxes)
    sure &= ~(open_ & in_doubt)
    open_ &= ~fits
  return boxes, sure & ~open_


def _below(limit, half):
  """Returns NumPy's `integers(limit)` of 32 random bits.

  Source: Lemire, "Fast random integer generation in an interval", TOMACS 2019.

  Returns:
    The numbers, and which of them stand; those others are drawn again.
  """
  limit = np.maximum(limit, 1).astype(np.uint64)
  product = half * limit
  stands = (limit == 1) | (product & np.uint64(2**32 - 1) >= limit)
  return (product >> np.uint64(32)).astype(np.int64), stands
