"""A small data set in Pascal VOC's layout."""

import pickle

import numpy as np
import pytest

from odc_jax.data import loader, sources, voc
from odc_jax.data import source as source_lib
from odc_jax.errors import UserError
from tests.data import pascal

SIZES = {"trainval": 12, "test": 7}


@pytest.fixture
def root(tmp_path):
  pascal.write(tmp_path / "VOCdevkit/VOC2007", SIZES)
  return tmp_path / "VOCdevkit/VOC2007"


@pytest.mark.parametrize("place", ["", "..", "../.."])
@pytest.mark.parametrize("split", ["trainval", "test"])
def test_records_and_targets(root, place, split):
  targets = pascal.write(root, SIZES)[split]
  source = sources.make(f"voc:{root / place}", split)
  assert isinstance(source, voc.Voc)
  assert isinstance(source, source_lib.Source)
  assert len(source) == SIZES[split]
  assert source.classes == ["bus", "cat", "dog"]
  assert source.num_classes is None
  assert source.targets.dtype == np.int8
  np.testing.assert_array_equal(source.targets, targets)
  assert {-1, 0, 1} == set(source.targets.ravel())
  record = pickle.loads(pickle.dumps(source))[3]
  number = {"trainval": 4, "test": 16}[split]
  file = root / f"JPEGImages/{number:06d}.jpg"
  assert record == {
    "image": file.read_bytes(),
    "index": 3,
    "key": f"JPEGImages/{number:06d}.jpg",
    "label": None,
  }
  assert source.keys[3] == record["key"]


def test_images_are_in_the_order_of_their_names(root):
  # Whatever the order of the lists, which may differ.
  file = root / "ImageSets/Main/cat_test.txt"
  before = sources.make(f"voc:{root}", "test")
  file.write_text("".join(reversed(file.read_text().splitlines(True))))
  after = sources.make(f"voc:{root}", "test")
  assert after.keys == before.keys == sorted(before.keys)
  np.testing.assert_array_equal(after.targets, before.targets)


def test_other_lists_and_hidden_files_are_no_classes(root):
  lists = root / "ImageSets/Main"
  (lists / "._cat_test.txt").write_bytes(b"\0\5\26\7")
  (lists / "notes.txt").write_text("test")
  # A class may have any name.
  file = lists / "potted_plant_test.txt"
  file.write_text((lists / "dog_test.txt").read_text())
  source = sources.make(f"voc:{root}", "test")
  assert source.classes == ["bus", "cat", "dog", "potted_plant"]


def test_the_loader_reads_it(root):
  source = sources.make(f"voc:{root}", "test")
  (root / "JPEGImages/000015.jpg").unlink()
  (batch,) = loader.eval_batches(
    source, batch_size=8, resize=16, crop=16, num_threads=0
  )
  assert batch["key"][:2] == ["JPEGImages/000013.jpg", "JPEGImages/000014.jpg"]
  np.testing.assert_array_equal(batch["label"], -1)
  (bad,) = batch["bad"]
  assert bad[:2] == (2, "JPEGImages/000015.jpg")


def message(path, split):
  with pytest.raises(UserError) as error:
    sources.make(f"voc:{path}", split)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_what_is_not_there_is_named(root, tmp_path):
  assert "VOCtrainval_06-Nov-2007.tar" in message(tmp_path / "none", "test")
  for split in ("", "val", "tes"):
    said = message(root, split)
    assert f"no split {split!r}: there is test, trainval" in said
  (root / "JPEGImages").rename(root / "Images")
  assert "no JPEGImages folder" in message(root, "test")


def test_lists_that_are_none_are_named(root):
  file = root / "ImageSets/Main/dog_test.txt"
  lines = file.read_text()
  for line in ("000013", "000013  2", "000013 1 1"):
    file.write_text(lines.replace(lines.splitlines()[0], line))
    said = message(root, "test")
    assert f"{file}, line 1: {line!r}" in said
  file.write_text(lines.replace("000014", "000099"))
  said = message(root, "test")
  assert "bus_test.txt" in said
  assert "dog_test.txt are not about the same images" in said
  assert "'000014'" in said
  for kind in pascal.CLASSES:
    (root / f"ImageSets/Main/{kind}_test.txt").write_text("")
  assert "lists no images" in message(root, "test")
