"""Features from elsewhere: what is accepted, and what is said of the rest."""

import numpy as np
import pytest

from odc_jax.data import features, sources
from odc_jax.data import source as source_lib
from odc_jax.errors import UserError

N, C = 7, 3


def rows(dtype=np.float32):
  return np.random.default_rng(0).normal(size=(N, C)).astype(dtype)


def saved(path, array, **options):
  np.save(path, array, **options)
  return path


@pytest.fixture
def pictures(tmp_path):
  """N files in two folders, which are classes."""
  folder = tmp_path / "pictures"
  for i in range(N):
    (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
    (folder / "ab"[i % 2] / f"{i}.png").touch()
  return folder


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_every_row_is_a_record(tmp_path, dtype):
  file = saved(tmp_path / "f.npy", rows(dtype))
  source = sources.make(f"features:{file}")
  assert isinstance(source, source_lib.Source)
  assert len(source) == N
  assert (source.keys, source.num_classes) == (None, None)
  assert sources.pictures(source) is None
  record = source[2]
  expected = rows(dtype).astype(np.float32)
  np.testing.assert_array_equal(record["image"], expected[2])
  assert record["image"].dtype == np.float32
  assert (record["index"], record["key"], record["label"]) == (2, "2", None)
  parts = [*source.batches(4)]
  assert [part["index"].tolist() for part in parts] == [
    [0, 1, 2, 3],
    [4, 5, 6, 7],
  ]
  np.testing.assert_array_equal(parts[1]["image"][:3], expected[4:])
  np.testing.assert_array_equal(parts[1]["image"][3:], 0)
  assert parts[1]["key"] == ["4", "5", "6", ""]


def test_a_folder_gives_names_labels_and_pictures(tmp_path, pictures):
  np.save(tmp_path / "train.npy", rows())
  source = sources.make(
    f"features:{tmp_path / 'train.npy'}", images=f"folder:{pictures}"
  )
  assert source.keys == sources.make(f"folder:{pictures}").keys
  assert source.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
  assert (source[6]["key"], source[6]["label"]) == ("b/5.png", 1)
  assert (source.num_classes, source.classes) == (2, ["a", "b"])
  assert sources.pictures(source).keys == source.keys
  # Splits are files of one folder, and sub-folders of the other; a class that
  # is missing in one does not change the numbers of the others.
  (pictures / "b").rename(tmp_path / "b")
  (tmp_path / "parts" / "test").mkdir(parents=True)
  (tmp_path / "b").rename(tmp_path / "parts" / "test" / "b")
  np.save(tmp_path / "test.npy", rows()[:3])
  test = sources.make(
    f"features:{tmp_path}", "test", source, f"folder:{tmp_path / 'parts'}"
  )
  assert test.labels.tolist() == [1, 1, 1]


def test_the_digest_tells_rows_apart(tmp_path):
  def digest(array):
    return sources.make(f"features:{saved(tmp_path / 'f.npy', array)}").digest()

  first = digest(rows())
  changed = rows()
  changed[5, 1] += 1e-6
  others = [rows("f8"), rows()[:6], rows().reshape(C, N), changed]
  assert len({first, *map(digest, others)}) == 5
  assert digest(rows()) == first


def test_a_run_is_held_to_its_features(tmp_path):
  source = features.Features(rows())
  features.check_same(source, tmp_path, False)
  features.check_same(features.Features(rows()), tmp_path, True)
  with pytest.raises(UserError, match="not those that this run began with"):
    features.check_same(features.Features(rows()[::-1]), tmp_path, True)
  (tmp_path / features.RECORD_FILE).unlink()
  assert not features.is_recorded(source, tmp_path)
  features.check_same(sources.make("digits"), tmp_path, False)
  assert not (tmp_path / features.RECORD_FILE).exists()


@pytest.mark.parametrize(
  ("array", "says"),
  [
    (np.zeros(5), r"bad\.npy has the shape \[5\]"),
    (np.zeros((2, 3, 4)), r"bad\.npy has the shape \[2, 3, 4\]"),
    (np.zeros((2, 0)), r"bad\.npy has the shape \[2, 0\]"),
    (np.zeros((0, 2)), r"bad\.npy has no rows"),
    (np.zeros((2, 3), np.uint8), r"bad\.npy holds uint8"),
    # As bfloat16 is saved.
    (np.zeros((2, 3), "V2"), r"bad\.npy holds .*V2"),
    (np.array([[1.0, None]]), r"bad\.npy cannot be read .*numpy\.save"),
  ],
  ids=lambda value: getattr(value, "dtype", None) and str(value.shape),
)
def test_what_is_no_features_is_refused(tmp_path, array, says):
  file = saved(tmp_path / "bad.npy", array, allow_pickle=True)
  with pytest.raises(UserError, match=says) as error:
    sources.make(f"features:{file}")
  assert "\n" not in str(error.value)


def test_mistakes_are_told_in_one_line(tmp_path, pictures):
  file = saved(tmp_path / "f.npy", rows())
  (tmp_path / "text.npy").write_text("no array")
  np.savez(tmp_path / "many.npz", rows())
  (tmp_path / "empty").mkdir()
  saved(tmp_path / "six.npy", rows()[:6])
  for name, split, images, says in [
    ("", "", "", "data.source=features:FILE|features:/your/features"),
    (tmp_path / "gone.npy", "", "", "there is no file .*gone.npy"),
    (tmp_path / "text.npy", "", "", "text.npy cannot be read"),
    (tmp_path / "many.npz", "", "", "many.npz cannot be read"),
    (tmp_path, "val", "", "no split .file. 'val': there is f, six, text"),
    (tmp_path / "empty", "", "", "there is none"),
    (file, "test", "", "is one file and has no split 'test'"),
    (file, "", "digits", "data.images='digits' is no folder"),
    (tmp_path / "six.npy", "", f"folder:{pictures}", "6 rows, .* 7 images"),
  ]:
    with pytest.raises(UserError, match=says) as error:
      sources.make(f"features:{name}", split, images=images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_the_first_row_that_is_not_finite_is_named(value, monkeypatch):
  monkeypatch.setattr(features, "_CHUNK_BYTES", 24)  # two rows
  array = rows(np.float64)
  array[5:, 1] = value
  source = features.Features(array, name="clip.npy")
  for read in (source.digest, lambda: [*source.batches(4)]):
    with pytest.raises(UserError, match=r"clip\.npy: row 5 has NaN"):
      read()
