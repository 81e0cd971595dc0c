"""The digits against scikit-learn's."""

import pickle

import numpy as np
from sklearn import datasets

from odc_jax.data import sources


def test_digits_are_scikit_learns_in_rgb():
  source = sources.make("digits", "")
  bunch = datasets.load_digits()
  assert len(source) == 1797
  assert source.num_classes == 10
  record = source[3]
  assert (record["index"], record["key"]) == (3, "digits/0003")
  assert record["label"] == bunch.target[3]
  assert record["image"].dtype == np.uint8
  assert record["image"].shape == (8, 8, 3)
  for channel in range(3):
    np.testing.assert_allclose(
      record["image"][..., channel], bunch.images[3] * 255 / 16, atol=0.5
    )
  assert max(source[i]["image"].max() for i in range(9)) == 255


def test_digits_survive_pickling():
  source = sources.make("digits", "")
  copy = pickle.loads(pickle.dumps(source))
  assert len(copy) == len(source)
  np.testing.assert_equal(copy[5], source[5])
