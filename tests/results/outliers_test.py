"""Scores by hand, and a threshold that finds strangers and no one else."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from odc_jax.results import outliers
from odc_jax.results.neighbors import Neighbors, neighbors_of_all

INF = np.inf


def test_scores_by_hand():
  similarities = np.array(
    [
      [1.0, 1.0, 1.0],
      [0.9, 0.8, 0.4],
      [0.5, -INF, -INF],  # few images in all
      [-INF, -INF, -INF],  # cannot be read
      [-0.5, -0.5, -0.8],
    ],
    np.float32,
  )
  scores = outliers.scores(similarities)
  assert scores.dtype == np.float32
  np.testing.assert_allclose(scores, [0, 0.15, 0.25, np.nan, 0.8], atol=1e-6)


def test_similarities_that_are_nan_are_refused():
  with pytest.raises(ValueError, match="NaN"):
    outliers.scores(np.array([[np.nan]], np.float32))


def test_threshold_by_hand():
  # q50 = 0.25, q90 = 0.36: (0.6 + 2 * 0.1)^2.
  scores = np.array([0.25] * 9 + [0.36] * 2, np.float32)
  assert outliers.threshold(scores) == pytest.approx(0.64)
  # An image that cannot be read changes nothing, and is no outlier.
  with_gap = np.append(scores, np.float32(np.nan))
  assert outliers.threshold(with_gap) == outliers.threshold(scores)
  assert not with_gap[-1] > outliers.threshold(with_gap)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_scores_flag_nobody(value):
  scores = np.full(100, value, np.float32)
  noise = np.random.default_rng(0).normal(0, 1e-6, 100).astype(np.float32)
  noisy = np.clip(scores + noise, 0, 1)
  for some in (scores, noisy, scores[:1], scores[:0]):
    assert not (some > outliers.threshold(some)).any()


CLEAN = {
  "normal": lambda rng, n: rng.normal(0.3, 0.03, n),
  "uniform": lambda rng, n: rng.uniform(0, 0.3, n),
  "gamma": lambda rng, n: rng.gamma(2, 0.05, n),
  "exponential": lambda rng, n: rng.exponential(0.05, n),
  # As of a trained network: q90 is four times q50.
  "log-normal": lambda rng, n: 0.01 * rng.lognormal(0, 1, n),
  "t, 3 degrees": lambda rng, n: 0.3 + 0.02 * rng.standard_t(3, n),
  # One kind of image in five is more varied than the others.
  "two humps": lambda rng, n: rng.normal(
    np.where(np.arange(n) % 5, 0.1, 0.3), 0.01
  ),
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean_scores_flag_next_to_nobody(name):
  scores = CLEAN[name](np.random.default_rng(0), 50_000).astype(np.float32)
  assert np.mean(scores > outliers.threshold(scores)) < 0.008


def digits_and_noise(share):
  """Returns the scores of digits and, last, of planted noise; and how many."""
  rng = np.random.default_rng(0)
  digits = load_digits().data.astype(np.float32)
  planted = round(share * len(digits))
  noise = rng.integers(0, 17, (planted, 64)).astype(np.float32)
  table = np.concatenate([digits, noise])
  _, similarities = neighbors_of_all(Neighbors(table), table, 10)
  return outliers.scores(similarities), planted


@pytest.mark.parametrize("share", [0.002, 0.01, 0.03])
def test_noise_among_digits_is_found(share):
  scores, planted = digits_and_noise(share)
  flagged = scores > outliers.threshold(scores)
  # Where there are many, they are each other's neighbours now and then.
  assert flagged[-planted:].mean() > (0.9 if share < 0.03 else 0.75)
  assert flagged[:-planted].mean() < 0.002


def test_digits_alone_have_no_outliers():
  scores, _ = digits_and_noise(0)
  assert np.mean(scores > outliers.threshold(scores)) < 0.002


def test_a_new_image_unlike_anything_seen():
  digits = load_digits().data.astype(np.float32)
  seen, new = digits[:1500], digits[1500:]
  index = Neighbors(seen)
  limit = outliers.threshold(
    outliers.scores(neighbors_of_all(index, seen, 10)[1])
  )
  noise = np.random.default_rng(0).uniform(0, 16, (50, 64)).astype(np.float32)
  assert np.mean(outliers.scores(index.search(new, 10)[1]) > limit) < 0.02
  assert np.mean(outliers.scores(index.search(noise, 10)[1]) > limit) > 0.9


def test_one_in_a_hundred_of_the_training_images_would_be_novel():
  scores = np.random.default_rng(0).gamma(2, 0.05, 5000).astype(np.float32)
  limit = outliers.novelty_threshold(scores)
  assert np.mean(scores > limit) == pytest.approx(0.01, abs=1e-3)
  assert limit < outliers.threshold(scores)
  unread = np.append(scores, np.full(500, np.nan, np.float32))
  assert outliers.novelty_threshold(unread) == limit
  assert outliers.novelty_threshold(np.full(3, np.nan, np.float32)) == 1
