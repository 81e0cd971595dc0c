"""Sequences: what is read of a folder, and what is said of the rest."""

import numpy as np
import pytest

from odc_jax.data import sequences, sources
from odc_jax.data import source as source_lib
from odc_jax.errors import UserError
from tests.recordings import load

C = 3


def rows(n, seed=0):
  return np.random.default_rng(seed).normal(size=(n, C)).astype(np.float32)


def write(root, name, array, words=None, suffix=".npy", part=""):
  folder = root / "features" / part
  folder.mkdir(parents=True, exist_ok=True)
  if suffix == ".npy":
    np.save(folder / f"{name}.npy", array)
  else:
    np.savetxt(folder / f"{name}.txt", array)
  if words is not None:
    (root / "groundTruth").mkdir(exist_ok=True)
    (root / "groundTruth" / name).write_text("".join(f"{w}\n" for w in words))


@pytest.fixture
def folder(tmp_path):
  """Three videos of two activities; background; a frame more than labels."""
  write(tmp_path, "b_coffee", rows(4), ["pour 1", "SIL", "stir", "stir"])
  write(tmp_path, "a_coffee", rows(3, 1), ["cup", "pour"], ".txt", "deep/er")
  write(tmp_path, "c_tea", rows(2, 2), ["bag", "cup"])
  (tmp_path / "mapping").mkdir()
  (tmp_path / "mapping" / "mapping.txt").write_text(
    "-1 SIL\n7 pour\n2 stir\n4 cup\n3 bag\n"
  )
  return tmp_path


def test_frames_are_rows_and_sequences_ranges_of_them(folder):
  source = sources.make(f"sequences:{folder}")
  assert isinstance(source, source_lib.Source)
  assert isinstance(source, sequences.Sequences)
  assert source.sequence_names == ["a_coffee", "b_coffee", "c_tea"]
  assert source.lengths.tolist() == [2, 4, 2]
  assert source.sequence_ids().tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
  assert source.keys is not None
  assert [*source.keys][1:3] == ["a_coffee/000001", "b_coffee/000000"]
  assert source.keys[6:] == ["c_tea/000000", "c_tea/000001"]
  expected = np.concatenate([rows(3, 1)[:2], rows(4), rows(2, 2)])
  np.testing.assert_allclose(source.rows, expected, rtol=1e-6)
  # Numbered from 0 in the order of the mapping.
  assert source.classes == ["stir", "bag", "cup", "pour"]
  assert source.num_classes == 4
  assert source.labels.tolist() == [2, 3, 3, -1, 0, 0, 1, 2]
  assert np.flatnonzero(source.background).tolist() == [3]
  record = source[3]
  assert (record["key"], record["label"]) == ("b_coffee/000001", None)
  assert [*source.batches(5)][1]["key"] == [*source.keys[5:], "", ""]
  assert sources.pictures(source) is None


def test_a_split_is_an_activity_and_its_labels_are_its_own(folder):
  coffee = sources.make(f"sequences:{folder}", "coffee")
  assert coffee.labels.tolist() == [1, 2, 2, -1, 0, 0]
  assert coffee.classes == ["stir", "cup", "pour"]
  with pytest.raises(UserError, match="frames of 'bag', which the training"):
    sources.make(f"sequences:{folder}", "tea", coffee)
  everything = sources.make(f"sequences:{folder}")
  tea = sources.make(f"sequences:{folder}", "tea", everything)
  assert tea.labels.tolist() == [1, 2]
  # Labels in other words, which a second mapping merges.
  (folder / "mapping" / "mappingcoarse.txt").write_text(
    "0 SIL\n0 pour\n0 stir\n1 cup\n1 bag\n"
  )
  options = {"mapping": "coarse"}
  source = sources.make(f"sequences:{folder}", options=options)
  assert source.classes == ["SIL", "cup"]
  assert source.labels.tolist() == [1, 0, 0, 0, 0, 0, 1, 1]


def test_without_ground_truth_nothing_is_labelled(tmp_path):
  write(tmp_path, "x", rows(3))
  source = sources.make(f"sequences:{tmp_path}")
  assert source.num_classes is None
  assert source.labels.tolist() == [-1] * 3
  assert not source.background.any()
  # Some have it, and no mapping: words in the order of the alphabet.
  write(tmp_path, "y", rows(2), ["b", "a"])
  source = sources.make(f"sequences:{tmp_path}")
  assert source.labels.tolist() == [-1, -1, -1, 1, 0]


def test_a_video_whose_lengths_differ_much_is_left_out(folder):
  write(folder, "d_tea", rows(53), ["cup"] * 2)
  write(folder, "e_tea", rows(2), ["cup"] * 52)
  source = sources.make(f"sequences:{folder}", "tea")
  assert source.sequence_names == ["c_tea", "e_tea"]
  assert source.lengths.tolist() == [2, 2]
  assert source.passed_over_sequences == ["d_tea"]
  with pytest.raises(UserError, match="all sequences differ by more than 50"):
    sources.make(f"sequences:{folder}", "d_tea")


def test_what_is_read_is_what_the_official_code_reads(
  golden_tot_viterbi, tmp_path
):
  trace = load(golden_tot_viterbi)
  if "raw0" not in trace:
    pytest.skip("a recording without frames")
  lengths = trace["lengths"].tolist()
  standardize = "video" if trace["hp"][4] else "none"
  numbers = set()
  for i, suffix in zip(
    range(len(lengths)), [".txt", ".npy"] * 99, strict=False
  ):
    labels = trace[f"gt{i}"].tolist()
    numbers |= {*labels}
    words = [f"word{number}" for number in labels]
    write(tmp_path, f"v{i}", trace[f"raw{i}"], words, suffix)
  (tmp_path / "mapping").mkdir()
  (tmp_path / "mapping" / "mapping.txt").write_text(
    "".join(f"{number} word{number}\n" for number in sorted(numbers))
  )
  source = sources.make(
    f"sequences:{tmp_path}", options={"standardize": standardize}
  )
  assert source.lengths.tolist() == lengths
  np.testing.assert_allclose(source.rows, trace["features"], rtol=0, atol=2e-6)
  labels = np.concatenate([trace[f"gt{i}"] for i in range(len(lengths))])
  own = sorted(numbers - {-1})
  expected = [own.index(x) if x != -1 else -1 for x in labels.tolist()]
  assert source.labels.tolist() == expected
  assert source.background.tolist() == (labels == -1).tolist()
  assert source.num_classes == len(own)


def test_standardised_rows_may_be_of_unit_size(folder):
  write(folder, "f_tea", [[1, 5, 0], [0, 0, 0], [3, 5, 1], [2, 5, 5.0]])
  source = sources.make(
    f"sequences:{folder}", "f_tea", options={"standardize": "video_unit"}
  )
  root = 1.5**0.5 / 3**0.5
  np.testing.assert_allclose(source.rows[:, 0], [-root, 0, root, 0], atol=1e-6)
  np.testing.assert_array_equal(source.rows[:, 1], 0)


def test_mistakes_are_told_in_one_line(folder, tmp_path_factory):
  empty = tmp_path_factory.mktemp("empty")
  wide, twice, text = (tmp_path_factory.mktemp(n) for n in "wtx")
  write(wide, "a", rows(2))
  write(wide, "b", rows(2)[:, :2])
  write(twice, "a", rows(2))
  write(twice, "a", rows(2), None, ".txt")
  (text / "features").mkdir()
  (text / "features" / "a.txt").write_text("1 2\n1 x\n")
  bad = folder / "mapping" / "mappingbad.txt"
  bad.write_text("pour 7\n")
  (folder / "mapping" / "mappingfew.txt").write_text("1 pour\n")
  for path, split, options, says in [
    ("", "", {}, "names no folder"),
    (empty, "", {}, "no .npy or .txt files below"),
    (folder, "milk", {}, "no sequence of .* has 'milk' in its name"),
    (wide, "", {}, "b.npy has 2 numbers a frame, .*a.npy has 3"),
    (twice, "", {}, "features of the same video"),
    (text, "", {}, "a.txt cannot be read as features"),
    (folder, "", {"standardize": "all"}, "unknown data.standardize 'all'"),
    (folder, "", {"mapping": "x"}, "choose one of bad, few"),
    (folder, "", {"mapping": "bad"}, "'pour 7' is no line 'NUMBER WORD'"),
    (folder, "", {"mapping": "few"}, "has 'SIL', which the mapping"),
    (wide / "..", "a", {}, "no .npy or .txt files below"),
  ]:
    with pytest.raises(UserError, match=says) as error:
      sources.make(f"sequences:{path}", split, options=options)
    assert "\n" not in str(error.value)
  with pytest.raises(UserError, match="is for ground truth"):
    sources.make(f"sequences:{wide}", options={"mapping": "x"})
