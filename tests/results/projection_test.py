"""A map that keeps like with like, from two images up."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from odc_jax.results.projection import project


@pytest.fixture(scope="module")
def digits():
  images, labels = load_digits(return_X_y=True)
  return images[::3].astype(np.float16), labels[::3]


@pytest.mark.parametrize("max_landmarks", [10_000, 300])
def test_like_stays_with_like(digits, max_landmarks):
  images, labels = digits
  positions = project(images, max_landmarks=max_landmarks)
  assert positions.dtype == np.float32
  assert np.isfinite(positions).all()
  unit = images / np.linalg.norm(images.astype(np.float32), axis=1)[:, None]
  assert trustworthiness(unit, positions, n_neighbors=10) > 0.95
  votes = KNeighborsClassifier(5).fit(positions[::2], labels[::2])
  assert votes.score(positions[1::2], labels[1::2]) > 0.9


@pytest.mark.parametrize("max_landmarks", [10_000, 60])
def test_the_same_twice_and_nan_for_what_cannot_be_read(digits, max_landmarks):
  images = digits[0][:150].copy()
  images[[0, 17, 149]] = 0
  first, second = (
    project(images, max_landmarks=max_landmarks) for _ in range(2)
  )
  np.testing.assert_array_equal(first, second)
  lost = np.isnan(first).all(axis=1)
  np.testing.assert_array_equal(np.flatnonzero(lost), [0, 17, 149])
  # The length of a row means nothing, nor do rows that cannot be read.
  there = np.delete(images, [0, 17, 149], axis=0).astype(np.float32)
  np.testing.assert_allclose(
    project(there * 2, max_landmarks=max_landmarks), first[~lost]
  )


@pytest.mark.parametrize("d", [1, 2, 40])
@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_few_images(n, d):
  rng = np.random.default_rng(0)
  positions = project(rng.standard_normal((n, d)).astype(np.float32))
  assert positions.shape == (n, 2)
  assert np.isfinite(positions).all()


def test_images_that_are_all_alike():
  positions = project(np.ones((20, 4), np.float32), max_landmarks=10)
  np.testing.assert_array_equal(positions, 0)


def test_no_images_and_one():
  table = np.zeros((3, 4), np.float32)
  assert np.isnan(project(table)).all()
  table[1] = 1
  positions = project(table)
  np.testing.assert_array_equal(positions[1], [0, 0])
  assert np.isnan(positions[[0, 2]]).all()


def test_an_image_lies_among_its_landmarks():
  # Rows 0, 2, 4, ... are landmarks; each other row equals the one before it.
  rng = np.random.default_rng(0)
  rows = rng.standard_normal((40, 10)).astype(np.float32)
  positions = project(np.repeat(rows, 2, axis=0), max_landmarks=40)
  landmarks, others = positions[::2], positions[1::2]
  nearest = np.argmin(
    np.linalg.norm(others[:, None] - landmarks[None], axis=-1), axis=1
  )
  assert np.mean(nearest == np.arange(40)) > 0.5
  assert (others >= landmarks.min(0) - 1e-4).all()
  assert (others <= landmarks.max(0) + 1e-4).all()


def test_what_is_not_finite_is_refused():
  table = np.ones((5, 3), np.float32)
  table[2, 1] = np.nan
  with pytest.raises(ValueError, match="not finite"):
    project(table)
