"""What is new, novel and gone, by hand."""

import numpy as np

from odc_jax.data.growth import Growth
from odc_jax.results import growth


def test_novel_is_what_is_farther_than_nearly_all_of_before():
  # A hundred old ones from 0.50 to 0.995, of which one cannot be read.
  old = np.linspace(0.5, 0.995, 100)
  similarity = np.array([*old, 0.5, 0.5, 0.4, 0.9, 0.1])
  # The second new one is nearer to another centroid: 0.5 + 0.3.
  margin = np.array([0.1] * 100 + [0.1, -0.3, 0.1, 0.1, 0.1])
  generation = np.array([0] * 50 + [1] * 50 + [2] * 5)
  readable = np.ones(105, bool)
  readable[[99, 104]] = False
  missing = np.zeros(105, bool)
  missing[[3, 104]] = True
  found, said = growth.columns(
    growth.Grown(generation, missing, 2), similarity, margin, readable
  )
  # The first percentile of 99 rows that are 0.005 apart is at 0.98 of a step.
  assert np.isclose(
    said["growth"].pop("novelty_similarity"), 0.5 + 0.98 * 0.005
  )
  novel = found["is_novel"]
  assert np.flatnonzero(novel).tolist() == [100, 102, 104]
  # What cannot be read has no row.
  assert said["growth"] == {"generation": 2, "new": 4, "novel": 2, "missing": 1}
  # Nothing came with a growth that only took images away.
  found, said = growth.columns(
    growth.Grown(generation, missing, 3), similarity, margin, readable
  )
  assert not found["is_novel"].any()
  assert said["growth"]["new"] == 0
  assert growth.columns(None, similarity, margin, readable) == ({}, {})


def test_every_image_has_the_number_of_its_growth():
  grown = Growth((2, 3, 3, 5), (1, 0, 0))
  assert grown.generations().tolist() == [0, 0, 1, 3, 3]
