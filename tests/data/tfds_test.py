"""The same data set in both formats, made by TFDS itself: the same records."""

import itertools
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax.data import decode, loader, sources
from odc_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent
FORMATS = ["array_record", "tfrecord"]
VERSION = "tiny/1.0.0"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """No test writes to the user's cache directory."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder per format, each with the data set `tiny` in files of 3."""
  tfds = pytest.importorskip("tensorflow_datasets")

  # Not registered: the files have to suffice, as they do for users.
  with tfds.core.registered.skip_registration():

    class Tiny(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version("1.0.0")

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(
            {
              "image": tfds.features.Image(shape=(None, None, 3)),
              "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
              "file_name": tfds.features.Text(),
              "box": tfds.features.BBoxFeature(),
            }
          ),
        )

      def _split_generators(self, dl_manager):
        return {
          "train": self._generate_examples(range(23)),
          "validation": self._generate_examples(range(30, 37)),
        }

      def _generate_examples(self, numbers):
        for i in numbers:
          image = np.full((8 + i, 9, 3), i * 5, np.uint8)
          yield (
            i,
            {
              "image": image,
              "label": i % 3,
              "file_name": f"{i}.png",
              "box": tfds.features.BBox(0.0, 0.0, 0.5, 1.0),
            },
          )

  folder = tmp_path_factory.mktemp("tfds")
  for file_format in FORMATS:
    Tiny(
      data_dir=folder / file_format, file_format=file_format
    ).download_and_prepare(
      download_config=tfds.download.DownloadConfig(num_shards=3)
    )
    assert len(list((folder / file_format / VERSION).glob("*train*"))) == 3
  return folder


@pytest.fixture
def opened(prepared, monkeypatch):
  """Returns a function: format, split -> source."""

  def make(file_format, split):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared / file_format))
    return sources.make("tfds:tiny", split)

  return make


@pytest.fixture
def copied(prepared, tmp_path, monkeypatch):
  """Returns a function: format -> a copy of the data set, to be damaged."""

  def copy(file_format):
    shutil.copytree(prepared / file_format, tmp_path / file_format)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / file_format))
    return tmp_path / file_format / VERSION

  return copy


def records(source):
  return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("file_format", FORMATS)
def test_records_are_encoded_and_named(opened, file_format):
  source = opened(file_format, "train")
  assert len(source) == 23
  assert source.num_classes == 3
  keys = [record["key"] for record in records(source)]
  assert sorted(keys) == sorted(f"{i}.png" for i in range(23))
  for copy in source, pickle.loads(pickle.dumps(source)):
    for i in range(23):
      record = copy[i]
      number = int(record["key"].removesuffix(".png"))
      assert isinstance(record["image"], bytes)
      image = np.asarray(decode.decode(record["image"]))
      np.testing.assert_array_equal(
        image, np.full((8 + number, 9, 3), number * 5)
      )
      assert record["label"] == number % 3
      assert record["index"] == i
  with pytest.raises(
    UserError, match=r"no split 'test': there is train, validation$"
  ):
    opened(file_format, "test")


@pytest.mark.parametrize(
  ("split", "count"),
  [
    ("train", 23),
    ("validation", 7),
    ("train[:10%]", 2),
    ("train[5:19]", 14),
    ("train[-2:]", 2),
    ("train[2shard]", None),
    ("train+validation", 30),
    ("validation[3:]+train[:50%]+validation[:1]", 4 + 12 + 1),
    ("all", 30),
  ],
)
def test_both_formats_give_the_same_records(opened, split, count):
  array_record, tfrecord = (opened(f, split) for f in FORMATS)
  assert records(array_record) == records(tfrecord)
  if count is not None:
    assert len(tfrecord) == count


def test_a_part_is_a_part_of_the_whole(opened):
  keys = [r["key"] for r in records(opened("tfrecord", "train"))]
  part = opened("tfrecord", "train[5:19]")
  assert [r["key"] for r in records(part)] == keys[5:19]
  assert [r["index"] for r in records(part)] == list(range(14))


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("split", ["train[5:5]", "train[:0%]"])
def test_an_empty_split_is_refused(opened, file_format, split):
  with pytest.raises(UserError, match=r"is empty; .*train \(23\)"):
    opened(file_format, split)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
  "split", ["", "train[", "all[:5]", "train[:200%]", "train[:99]"]
)
def test_a_split_that_is_none_is_refused(opened, file_format, split):
  with pytest.raises(UserError, match="has no split"):
    opened(file_format, split)


def test_threads_and_workers_read_what_one_thread_does(opened):
  config = ConfigDict(
    {
      "sampling": "permutation",
      "num_threads": 1,
      "num_workers": 0,
      "prefetch": 2,
    }
  )

  crop = decode.Crop(8, (0.5, 1.0), (1.0, 1.0))

  def read(source, **options):
    changed = ConfigDict({**config.to_dict(), **options})
    batches = loader.train_batches(
      source, changed, batch_size=8, crops=[crop], seed=3
    )
    try:
      return list(itertools.islice(batches, 5))
    finally:
      batches.close()

  tfrecord = opened("tfrecord", "train")
  expected = read(opened("array_record", "train"))
  for options in {}, {"num_threads": 4}, {"num_workers": 2}:
    for batch, wanted in zip(read(tfrecord, **options), expected, strict=True):
      np.testing.assert_array_equal(batch["index"], wanted["index"])
      np.testing.assert_array_equal(batch["image"], wanted["image"])
  with futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(tfrecord.__getitem__, range(23))) == records(tfrecord)


def printed_by(program, data_dir):
  """Returns what a process of its own prints."""
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT,
    env={**os.environ, "TFDS_DATA_DIR": str(data_dir)},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


@pytest.mark.parametrize("file_format", FORMATS)
def test_reading_needs_no_tensorflow(prepared, file_format):
  program = """
import sys
from odc_jax.data import sources
source = sources.make("tfds:tiny", "train+validation")
print(sum(len(source[i]["image"]) > 60 for i in range(len(source))))
assert "tensorflow" not in sys.modules
"""
  assert int(printed_by(program, prepared / file_format)) == 30


def test_files_from_before_there_was_a_choice_are_tfrecord(copied, opened):
  expected = records(opened("tfrecord", "train"))
  info = copied("tfrecord") / "dataset_info.json"
  fields = json.loads(info.read_text())
  assert fields.pop("fileFormat") == "tfrecord"
  info.write_text(json.dumps(fields))
  assert records(sources.make("tfds:tiny", "train")) == expected


@pytest.mark.parametrize("file_format", FORMATS)
def test_more_files_than_a_process_may_hold_open(prepared, file_format):
  pytest.importorskip("resource")
  program = """
import os, resource
from odc_jax.data import sources
sources.make("tfds:tiny", "train[:3]")[0]  # whatever is opened but once
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
descriptors = max(map(int, os.listdir("/dev/fd")))
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors + 3, hard))
source = sources.make("tfds:tiny", "all")
print(len([source[i] for i in range(len(source))]))
assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
"""
  assert int(printed_by(program, prepared / file_format)) == 30


# ---------------------------------------------------------------- mistakes ---


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_missing_file_is_named(copied, file_format):
  path = next(copied(file_format).glob("*train*-00001-*"))
  path.unlink()
  with pytest.raises(UserError) as error:
    sources.make("tfds:tiny", "train")
  assert str(path) in str(error.value)
  assert "\n" not in str(error.value)
  # A part that does without it can be read.
  assert len(sources.make("tfds:tiny", "train[:3]")) == 3


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_cut_short_is_named(copied, file_format):
  path = next(copied(file_format).glob("*train*-00001-*"))
  os.truncate(path, path.stat().st_size - 3)
  with pytest.raises(UserError) as error:
    records(sources.make("tfds:tiny", "train"))
  assert str(path) in str(error.value)
  assert "\n" not in str(error.value)


def test_a_damaged_record_is_named(copied):
  path = next(copied("tfrecord").glob("*train*-00001-*"))
  source = sources.make("tfds:tiny", "train")
  with path.open("r+b") as file:
    file.seek(12)
    file.write(b"\xff" * 8)
  with pytest.raises(UserError, match=r"record \d of tfds:tiny cannot be read"):
    records(source)


def test_a_format_without_random_access_is_sent_back(copied):
  info = copied("tfrecord") / "dataset_info.json"
  info.write_text(info.read_text().replace('"tfrecord"', '"riegeli"'))
  with pytest.raises(UserError) as error:
    sources.make("tfds:tiny", "train")
  for part in ("riegeli", "python -m odc_jax.data.prepare tiny", "once more"):
    assert part in str(error.value)


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("tfds:nosuchset", ["tfds:nosuchset", "not found", "Check"]),
    (
      "tfds:mnist",
      [
        "tfds:mnist is not prepared in {tmp}",
        "python -m odc_jax.data.prepare mnist --data_dir={tmp}",
        "TFDS_DATA_DIR",
      ],
    ),
  ],
)
def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch, name, says):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError) as error:
    sources.make(name, "train")
  message = str(error.value)
  assert "\n" not in message
  for part in says:
    assert part.format(tmp=tmp_path) in message


def test_imagenet_that_is_not_there_is_explained(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError) as error:
    sources.make("tfds:imagenet2012", "train")
  for part in (
    "ILSVRC2012_img_train.tar",
    "ILSVRC2012_img_val.tar",
    f"python -m odc_jax.data.prepare imagenet2012 --data_dir={tmp_path} "
    "--manual_dir=/path/to/tars",
  ):
    assert part in str(error.value)
  assert not list(tmp_path.iterdir())  # nothing was downloaded or made
