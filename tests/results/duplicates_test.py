"""Groups of near duplicates by hand, and of copies of real images."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from odc_jax.results import duplicates


def signature(pixels):
  """The thumbnail of uint8 [h, w, 3], as `groups` wants it, by Pillow."""
  grey = Image.fromarray(pixels).convert("L").resize((16, 16), Image.BOX)
  values = np.asarray(grey, np.float64).ravel()
  values -= values.mean()
  length = np.linalg.norm(values)
  if length == 0:
    return np.zeros(256, np.int8)
  return np.rint(127 * values / length).astype(np.int8)


def at_angle(cosine):
  """Two signatures in a plane, of this correlation, up to rounding."""
  first, second = np.zeros((2, 256))
  first[0] = 127
  second[:2] = 127 * cosine, 127 * (1 - cosine**2) ** 0.5
  return np.rint([first, second]).astype(np.int8)


@pytest.mark.parametrize(
  ("cosine", "expected"), [(1.0, 0), (0.97, 0), (0.95, -1), (-1.0, -1)]
)
def test_the_threshold(cosine, expected):
  groups = duplicates.groups(np.array([[1], [0]]), at_angle(cosine))
  assert groups.dtype == np.int32
  np.testing.assert_array_equal(groups, expected)


def unit_signatures(*which):
  """Signatures along axes: equal numbers are duplicates; None is flat."""
  result = np.zeros((len(which), 256), np.int8)
  for row, axis in zip(result, which, strict=True):
    if axis is not None:
      row[axis] = 127
  return result


def test_groups_by_hand():
  signatures = unit_signatures(7, 5, 1, 5, 7, 2, 5)
  neighbors = np.array(
    [
      [1, 2],
      [3, 2],  # to 3, and 3 to 6: a chain
      [1, 0],
      [6, 2],
      [0, 1],  # only the second one names the first
      [-1, -1],
      [2, 0],
    ]
  )
  np.testing.assert_array_equal(
    duplicates.groups(neighbors, signatures), [0, 1, -1, 1, 0, -1, 1]
  )


def test_equal_thumbnails_far_apart_are_no_duplicates():
  signatures = unit_signatures(3, 3, 4, 4)
  groups = duplicates.groups(np.array([[2], [3], [0], [1]]), signatures)
  np.testing.assert_array_equal(groups, -1)


def test_a_flat_image_is_a_duplicate_of_flat_ones_only():
  signatures = unit_signatures(None, None, 3, 3)
  everyone = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
  np.testing.assert_array_equal(
    duplicates.groups(everyone, signatures), [0, 0, 1, 1]
  )
  np.testing.assert_array_equal(
    duplicates.groups(np.array([[-1], [-1], [-1], [-1]]), signatures), -1
  )


def test_itself_is_no_duplicate():
  np.testing.assert_array_equal(
    duplicates.groups(np.array([[0], [1]]), unit_signatures(1, 1)), -1
  )


def test_rows_in_another_order_and_in_chunks(monkeypatch):
  rng = np.random.default_rng(0)
  n = 200
  signatures = unit_signatures(*rng.integers(80, size=n))
  neighbors = rng.integers(-1, n, (n, 12))
  groups = duplicates.groups(neighbors, signatures)
  numbers, first = np.unique(groups[groups >= 0], return_index=True)
  np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
  assert (np.diff(first) > 0).all()
  assert len(numbers) > 10

  order = rng.permutation(n)
  place = np.append(np.argsort(order), -1)  # -1 stays -1
  monkeypatch.setattr(duplicates, "CHUNK", 17)
  shuffled = duplicates.groups(place[neighbors[order]], signatures[order])
  same = groups[order][:, None] == groups[order]
  np.testing.assert_array_equal(shuffled[:, None] == shuffled, same)


def patches():
  """Sixty 96x96 pieces of two photographs."""
  rng = np.random.default_rng(0)
  for name in ("china.jpg", "flower.jpg"):
    photograph = load_sample_image(name)
    for _ in range(30):
      y, x = rng.integers(0, 330), rng.integers(0, 540)
      yield photograph[y : y + 96, x : x + 96]


def jpeg(pixels, quality):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=quality)
  return np.asarray(Image.open(file))


def resized(pixels, size):
  return np.asarray(Image.fromarray(pixels).resize((size, size)))


COPIES = {
  "recompressed": lambda pixels: jpeg(pixels, 30),
  "smaller": lambda pixels: resized(pixels, 48),
  "larger": lambda pixels: resized(pixels, 150),
  "cropped": lambda pixels: resized(pixels[1:-1, 1:-1], 96),
  "darker": lambda pixels: np.maximum(pixels, 20) - np.uint8(20),
  "flatter": lambda pixels: np.uint8(pixels * 0.6 + 40),
}


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_found(change):
  # The other pieces overlap here and there; the copy alone is asked about.
  found = [
    duplicates.groups(
      np.array([[1], [0]]),
      np.stack([signature(pixels), signature(COPIES[change](pixels))]),
    )[0]
    == 0
    for pixels in patches()
  ]
  assert np.mean(found) >= 0.9


def test_different_pieces_of_a_photograph_are_no_duplicates():
  photograph = load_sample_image("china.jpg")
  pieces = [
    signature(photograph[y : y + 80, x : x + 80])
    for y in range(100, 341, 80)
    for x in range(0, 560, 80)
  ]
  n = len(pieces)
  everyone = np.tile(np.arange(n), (n, 1))
  groups = duplicates.groups(everyone, np.stack(pieces))
  np.testing.assert_array_equal(groups, -1)
