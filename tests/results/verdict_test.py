"""The verdict: its measures on made-up images, its words on their numbers."""

import numpy as np
import pytest

from odc_jax.results import vectors, verdict

GOOD = {
  "ami_colors": 0.1,
  "ami_pixels": 0.1,
  "neighbors_colors": 0.06,
  "neighbors_pixels": 0.07,
  "silhouette": 0.3,
}
PRETRAINED = verdict.Start(random=False, frozen=True, num_steps=500)


def judged(start=PRETRAINED, heads=None, **overrides):
  numbers = {"largest": 0.1, "elsewhere": 0.1, **overrides}
  largest, elsewhere = numbers.pop("largest"), numbers.pop("elsewhere")
  return verdict.of(
    start,
    GOOD | numbers,
    largest=largest,
    elsewhere=elsewhere,
    heads=heads,
  )


@pytest.mark.parametrize(
  ("start", "found", "words"),
  [
    (PRETRAINED, {}, "Clear groups"),
    (PRETRAINED, {"silhouette": 0.1}, "blurred borders"),
    (PRETRAINED, {"silhouette": 0.0}, "No clear groups"),
    (PRETRAINED, {"ami_colors": 0.4}, "mostly colours"),
    (PRETRAINED, {"ami_pixels": 0.4, "silhouette": 0.1}, "plain pixels"),
    (PRETRAINED, {"ami_pixels": 0.4}, "Clear groups"),
    (PRETRAINED, {"largest": 0.95}, "Nothing was found"),
    (PRETRAINED, {"elsewhere": 0.8}, "lag behind"),
    (PRETRAINED, {"heads": 0.5}, "heads disagree"),
    (verdict.Start(True, False, 100), {}, "too few steps to trust"),
    (verdict.Start(True, False, 5000), {}, "Clear groups"),
    (verdict.Start(True, True, 5000), {}, "random weights"),
  ],
)
def test_the_line_says_what_matters_most(start, found, words):
  said = judged(start, **found)
  assert words in said.line
  assert said.details
  assert said.numbers["verdict/ami_colors"] == found.get("ami_colors", 0.1)


def test_groups_that_pixels_show_too_say_so():
  (detail,) = judged(ami_pixels=0.4).details
  assert "32 x 32 pixels" in detail


def images_of(colors, rng):
  """Returns flat pictures of these colours, with noise."""
  noise = rng.integers(0, 20, (len(colors), 32, 32, 3))
  return (colors[:, None, None, :] + noise).astype(np.uint8)


def test_clusters_of_colours_are_told_from_others():
  rng = np.random.default_rng(0)
  kinds, colors = rng.integers(0, 4, 240), rng.integers(0, 4, 240)
  pixels = images_of(np.eye(4)[colors][:, :3] * 200, rng)
  features = vectors.unit(np.eye(4)[kinds] + 0.1 * rng.normal(size=(240, 4)))
  seen = verdict.measure(features, kinds, pixels)
  assert seen["ami_colors"] < 0.05
  assert seen["ami_pixels"] < 0.05
  assert seen["silhouette"] > 0.8
  # By chance: ten of 239.
  assert seen["neighbors_colors"] < 0.15

  blind = verdict.measure(features, colors, pixels)
  assert blind["ami_colors"] == pytest.approx(1)
  assert blind["nmi_pixels"] == pytest.approx(1)
  assert blind["silhouette"] < 0.05

  copied = verdict.measure(
    vectors.unit(np.eye(4)[colors] + 0.01 * rng.normal(size=(240, 4))),
    colors,
    pixels,
  )
  assert copied["neighbors_colors"] > 0.1


def test_one_cluster_is_not_measured():
  features = vectors.unit(np.random.default_rng(0).normal(size=(9, 4)))
  found = verdict.measure(
    features, np.zeros(9, int), np.zeros((9, 32, 32, 3), np.uint8)
  )
  assert found == {}
  said = verdict.of(PRETRAINED, found, largest=1.0, elsewhere=0.0)
  assert "Nothing was found" in said.line


def test_a_sample_is_the_same_each_time():
  np.testing.assert_array_equal(verdict.sample(5), np.arange(5))
  rows = verdict.sample(10_000)
  assert len(np.unique(rows)) == verdict.SAMPLE
  np.testing.assert_array_equal(rows, verdict.sample(10_000))
