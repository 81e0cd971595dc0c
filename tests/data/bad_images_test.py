"""Bad images: written once, remembered, and too many of them refused."""

import pytest
from ml_collections import ConfigDict

from odc_jax.data.bad_images import BadImage, BadImages
from odc_jax.errors import UserError


def make(path, num_examples=1000, data_set="train", **changes):
  config = ConfigDict({"on_error": "replace", "max_bad_fraction": 0.01})
  config.update(changes)
  return BadImages(path / "bad_images.txt", data_set, num_examples, config)


def lines(path):
  return (path / "bad_images.txt").read_text().splitlines()


def test_each_is_written_once_and_remembered(tmp_path):
  bad = make(tmp_path)
  bad.add([])
  assert not (tmp_path / "bad_images.txt").exists()
  bad.add([BadImage(7, "a/b c.jpg", "truncated"), BadImage(9, "d", "empty")])
  bad.add([BadImage(7, "a/b c.jpg", "truncated")])
  assert lines(tmp_path) == [
    "train\t7\ta/b c.jpg\ttruncated",
    "train\t9\td\tempty",
  ]
  make(tmp_path, data_set="eval").add([BadImage(7, "x", "y\tz\nw")])
  assert lines(tmp_path)[2:] == ["eval\t7\tx\ty z w"]
  again = make(tmp_path)
  assert again.indices == {7, 9}
  again.add([BadImage(9, "d", "empty")])
  assert len(lines(tmp_path)) == 3
  assert str(again) == "2 of 1000 images of the train set could not be read"


def test_more_than_one_percent_is_too_many(tmp_path):
  bad = make(tmp_path, num_examples=300)
  bad.add(BadImage(i, f"{i}.jpg", "empty") for i in range(3))
  with pytest.raises(
    UserError, match=r"4 of the 300.*=0\.01 allows 3: '3\.jpg'"
  ):
    bad.add([BadImage(3, "3.jpg", "empty")])
  assert len(lines(tmp_path)) == 4
  generous = make(tmp_path, num_examples=300, max_bad_fraction=0.5)
  generous.add(BadImage(i, f"{i}.jpg", "empty") for i in range(150))


def test_the_first_one_fails_where_that_is_asked_for(tmp_path):
  bad = make(tmp_path, on_error="fail")
  says = r"'x\.jpg' \(index 4\) cannot be read: truncated.*on_error=replace"
  with pytest.raises(UserError, match=says):
    bad.add([BadImage(4, "x.jpg", "truncated")])
  with pytest.raises(UserError, match="'ignore'; choose replace or fail"):
    make(tmp_path, on_error="ignore")
