"""TFRecord files written by hand, byte by byte, and what becomes of them."""

import itertools
import os
import pathlib
import pickle
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest

from odc_jax.data import tfrecord
from odc_jax.data.tfrecord import Part, TfRecords
from odc_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """No test writes to the user's cache directory."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "odc_jax"


@pytest.fixture
def walks(monkeypatch):
  """Lists the names of the files that were walked."""
  names = []
  walk = tfrecord._walk

  def counted(path, size):
    names.append(os.path.basename(path))
    return walk(path, size)

  monkeypatch.setattr(tfrecord, "_walk", counted)
  return names


def write(path, records):
  """Checksums are zeros: nothing here looks at them."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("wb") as file:
    for record in records:
      file.write(len(record).to_bytes(8, "little") + bytes(4))
      file.write(record + bytes(4))


def some_records(count, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.bytes(rng.integers(0, 300)) for _ in range(count)]


def whole(path, count):
  return Part(str(path), 0, count, count)


@pytest.fixture
def shards(tmp_path):
  """Three files, and the records of each."""
  folder = tmp_path / "data"
  records = [some_records(count, count) for count in (5, 1, 8)]
  for i, some in enumerate(records):
    write(folder / f"{i}.tfrecord", some)
  return folder, records


def parts_of(folder, records):
  return [
    whole(folder / f"{i}.tfrecord", len(some)) for i, some in enumerate(records)
  ]


def test_records_come_in_the_order_of_the_files(shards):
  folder, records = shards
  flat = list(itertools.chain(*records))
  source = TfRecords(parts_of(folder, records))
  assert len(source) == 14
  for copy in source, pickle.loads(pickle.dumps(source)):
    assert [copy[i] for i in range(14)] == flat
  for beyond in -1, 14:
    with pytest.raises(IndexError):
      source[beyond]


def test_parts_of_files_in_any_order(shards):
  folder, records = shards
  paths = [str(folder / f"{i}.tfrecord") for i in range(3)]
  source = TfRecords(
    [
      Part(paths[2], 6, 2, 8),
      Part(paths[0], 1, 3, 5),
      Part(paths[1], 0, 0, 1),
      Part(paths[2], 0, 1, 8),
    ]
  )
  expected = records[2][6:] + records[0][1:4] + records[2][:1]
  assert [source[i] for i in range(len(source))] == expected


def test_many_threads_read_what_one_does(shards):
  folder, records = shards
  flat = list(itertools.chain(*records))
  source = TfRecords(parts_of(folder, records))
  order = np.random.default_rng(0).integers(14, size=2000).tolist()
  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(source.__getitem__, order))
  assert found == [flat[i] for i in order]


def test_no_file_stays_open(shards):
  if not os.path.isdir("/proc/self/fd"):
    pytest.skip("no /proc to count open files in")
  folder, records = shards
  before = len(os.listdir("/proc/self/fd"))
  source = TfRecords(parts_of(folder, records))
  for i in range(len(source)):
    source[i]
  assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------ the index


def test_the_second_opening_walks_nothing(shards, walks, cache, capsys):
  folder, records = shards
  first = TfRecords(parts_of(folder, records))
  assert sorted(walks) == ["0.tfrecord", "1.tfrecord", "2.tfrecord"]
  assert str(folder) in capsys.readouterr().err
  walks.clear()
  second = TfRecords(parts_of(folder, records))
  assert walks == []
  assert capsys.readouterr().err == ""
  assert [second[i] for i in range(14)] == [first[i] for i in range(14)]
  assert not cache.exists()
  assert len(list(folder.iterdir())) == 4


def test_the_index_grows_with_what_is_asked_for(shards, walks):
  folder, records = shards
  parts = parts_of(folder, records)
  for k in 1, 0, 2:
    walks.clear()
    TfRecords(parts[k : k + 1])
    assert walks == [f"{k}.tfrecord"]
  walks.clear()
  TfRecords(parts)
  assert walks == []


def test_a_file_that_changed_is_walked_again_and_no_other(shards, walks):
  folder, records = shards
  TfRecords(parts_of(folder, records))
  walks.clear()
  records[2] = some_records(3, seed=9)
  write(folder / "2.tfrecord", records[2])
  source = TfRecords(parts_of(folder, records))
  assert walks == ["2.tfrecord"]
  assert [source[i] for i in range(9)] == list(itertools.chain(*records))
  walks.clear()
  os.utime(folder / "0.tfrecord", ns=(0, 12345))  # the same size, another time
  TfRecords(parts_of(folder, records))
  TfRecords(parts_of(folder, records))
  assert walks == ["0.tfrecord"]


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other"])
def test_a_damaged_index_is_made_anew(shards, walks, damage):
  folder, records = shards
  TfRecords(parts_of(folder, records))
  index = next(folder.glob(".*"))
  if damage == "other":
    np.savez(index, names=np.array(["0.tfrecord"]))
  else:
    data = index.read_bytes()
    index.write_bytes(
      {"cut": data[: len(data) // 2], "empty": b"", "garbage": b"x" * 999}[
        damage
      ]
    )
  walks.clear()
  source = TfRecords(parts_of(folder, records))
  assert len(walks) == 3
  assert [source[i] for i in range(14)] == list(itertools.chain(*records))
  walks.clear()
  TfRecords(parts_of(folder, records))
  assert walks == []


def lock(folder, how):
  """Makes a folder unwritable, if need be for root too."""
  if how == "mode":
    if os.geteuid() == 0:
      pytest.skip("root may write everywhere")
    folder.chmod(0o555)
  else:
    (folder / tfrecord._INDEX).mkdir(parents=True)


@pytest.mark.parametrize("how", ["mode", "obstacle"])
def test_data_that_cannot_be_written_beside(shards, walks, cache, how):
  folder, records = shards
  lock(folder, how)
  files = sorted(folder.iterdir())
  TfRecords(parts_of(folder, records))
  assert sorted(folder.iterdir()) == files  # nor is anything left behind
  assert len(list(cache.iterdir())) == 1
  walks.clear()
  source = TfRecords(parts_of(folder, records))
  assert walks == []
  assert [source[i] for i in range(14)] == list(itertools.chain(*records))
  # Another folder with files of the same names has an index of its own.
  other = folder.parent / "other"
  for i, some in enumerate(records):
    write(other / f"{i}.tfrecord", some)
  lock(other, how)
  TfRecords(parts_of(other, records))
  assert len(walks) == 3
  assert len(list(cache.iterdir())) == 2


def test_an_old_index_elsewhere_does_not_hide_a_new_one(shards, walks, cache):
  folder, records = shards
  (folder / tfrecord._INDEX).mkdir()
  TfRecords(parts_of(folder, records))
  (folder / tfrecord._INDEX).rmdir()
  for i, some in enumerate(records):
    write(folder / f"{i}.tfrecord", some)
    os.utime(folder / f"{i}.tfrecord", ns=(0, i))
  TfRecords(parts_of(folder, records))
  assert (folder / tfrecord._INDEX).is_file()
  walks.clear()
  TfRecords(parts_of(folder, records))
  assert walks == []


def test_no_index_anywhere_is_only_slower(shards, cache, monkeypatch, walks):
  folder, records = shards
  (folder / tfrecord._INDEX).mkdir()
  cache.parent.write_text("a file where the cache directory should be")
  said = []
  monkeypatch.setattr(tfrecord.logging, "warning", lambda *a: said.append(a))
  for _ in range(2):
    source = TfRecords(parts_of(folder, records))
    assert [source[i] for i in range(14)] == list(itertools.chain(*records))
  assert len(walks) == 6
  assert len(said) == 2


def test_processes_that_start_at_once_leave_a_whole_index(shards, walks):
  folder, records = shards
  parts = parts_of(folder, records)
  program = (
    "import sys, pickle; from odc_jax.data.tfrecord import TfRecords;"
    "parts = pickle.loads(bytes.fromhex(sys.argv[1]));"
    "s = TfRecords(parts); print(sum(len(s[i]) for i in range(len(s))))"
  )
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", program, pickle.dumps(parts).hex()],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(6)
  ]
  total = sum(map(len, itertools.chain(*records)))
  for process in processes:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert int(out) == total
  TfRecords(parts)
  assert walks == []
  assert len(list(folder.iterdir())) == 4


# ------------------------------------------------------------ damaged files


@pytest.mark.parametrize("lost", [1, 4, 5, 40, -1])
def test_a_file_cut_short_is_named(shards, lost):
  folder, records = shards
  path = folder / "2.tfrecord"
  size = path.stat().st_size
  os.truncate(path, 3 if lost < 0 else size - lost)
  with pytest.raises(UserError, match=r"2\.tfrecord.*(cut short).*copy"):
    TfRecords(parts_of(folder, records))


def test_a_file_with_other_records_than_the_metadata_says(shards):
  folder, records = shards
  parts = parts_of(folder, records)
  end = records[0][-1]
  os.truncate(
    folder / "0.tfrecord",
    (folder / "0.tfrecord").stat().st_size - len(end) - 16,
  )
  # Also when the index has heard of the file already.
  for _ in range(2):
    with pytest.raises(UserError, match=r"0\.tfrecord holds 4 .* the 5 of"):
      TfRecords(parts)
  (folder / "0.tfrecord").write_bytes(b"")
  with pytest.raises(UserError, match=r"0\.tfrecord holds 0 .* the 5 of"):
    TfRecords(parts)


def test_a_file_that_is_missing_is_named(shards):
  folder, records = shards
  source = TfRecords(parts_of(folder, records))
  (folder / "1.tfrecord").unlink()
  for read in lambda: TfRecords(parts_of(folder, records)), lambda: source[5]:
    with pytest.raises(UserError, match=r"1\.tfrecord cannot be read: No such"):
      read()


@pytest.mark.parametrize("change", ["replaced", "cut"])
def test_a_file_that_changes_while_in_use_is_named(shards, change):
  folder, records = shards
  source = TfRecords(parts_of(folder, records))
  if change == "cut":
    os.truncate(folder / "0.tfrecord", 30)
  else:
    write(folder / "0.tfrecord", [r + b"more" for r in records[0]])
  with pytest.raises(UserError, match=r"0\.tfrecord has no record of"):
    source[4]


def test_files_that_are_not_local_are_refused():
  with pytest.raises(
    UserError, match=r"gs://bucket/x.*local disk.*array_record"
  ):
    TfRecords([Part("gs://bucket/x.tfrecord", 0, 1, 1)])
