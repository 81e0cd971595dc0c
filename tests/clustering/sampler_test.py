"""Uniform sampling over clusters, against the official samplers."""

import numpy as np
import pytest

from odc_jax.clustering.sampler import uniform_over_clusters
from tests.recordings import load


@pytest.mark.parametrize(
  ("name", "seed", "count_empty"),
  [
    ("fb_unif_indexes", None, False),
    ("oss_unif_indices_epoch5", 5, True),
  ],
)
def test_draw_by_draw(golden_deepcluster_sampler, name, seed, count_empty):
  trace = load(golden_deepcluster_sampler)
  drawn = uniform_over_clusters(
    trace["labels"],
    int(trace["K"]),
    len(trace["labels"]),
    int(trace["seed"]) if seed is None else seed,
    count_empty=count_empty,
  )
  np.testing.assert_array_equal(drawn, trace[name])


def test_small_clusters_repeat_and_large_ones_do_not():
  clusters = np.repeat([0, 1, 3, 4], [1, 50, 3, 6])  # 2 is empty, 4 is none
  drawn = uniform_over_clusters(clusters, 4, 54, 0, count_empty=False)
  assert drawn.dtype == np.int32
  assert len(drawn) == 54
  # floor(54 / 3) + 1 = 19 of each; three of all are cut off.
  sizes = np.bincount(clusters[drawn], minlength=5)
  assert (sizes <= [19, 19, 0, 19, 0]).all()
  assert sizes.min(where=[True, True, False, True, False], initial=99) >= 16
  of_large = drawn[clusters[drawn] == 1]
  assert len(set(of_large)) == len(of_large)


def test_what_empty_clusters_leave_is_taken_from_the_beginning():
  clusters = np.zeros(10, np.int64)
  # floor(10 / 5) + 1 = 3 images of the only cluster there is.
  drawn = uniform_over_clusters(clusters, 5, 10, 1, count_empty=True)
  np.testing.assert_array_equal(drawn, np.resize(drawn[:3], 10))


def test_ten_thousand_clusters_of_imagenet():
  """As a loop over the images it would take minutes."""
  rng = np.random.default_rng(0)
  clusters = rng.integers(10_000, size=1_281_167)
  drawn = uniform_over_clusters(
    clusters, 10_000, len(clusters), (0, 7), count_empty=False
  )
  assert np.bincount(clusters[drawn]).max() == 129


def test_a_cluster_of_just_s_images_is_drawn_with_replacement():
  clusters = np.array([0, 0, 1, 1])  # S = floor(3 / 2) + 1
  drawn = [
    uniform_over_clusters(clusters, 2, 3, seed, count_empty=False)
    for seed in range(9)
  ]
  assert min(len(set(images)) for images in drawn) < 3
