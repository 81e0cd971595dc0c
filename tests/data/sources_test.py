"""Names to records, and what a user is told when there are none."""

import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from odc_jax.data import sources
from odc_jax.errors import UserError


def save(path, value=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (3, 2), (value,) * 3).save(path)


def keys(source):
  return [source[i]["key"] for i in range(len(source))]


def labels(source):
  return [source[i]["label"] for i in range(len(source))]


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


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path):
  for name in ("b/z.PNG", "b/deep/er/x.jpg", "a.jpeg", "B.webp", "ü/c d.tif",
               ".hidden.png", ".git/y.png", "b/._z.png"):  # fmt: skip
    save(tmp_path / name)
  (tmp_path / "b" / "notes.txt").write_text("no image")
  source = sources.make(f"folder:{tmp_path}", "")
  assert keys(source) == [
    "B.webp", "a.jpeg", "b/deep/er/x.jpg", "b/z.PNG", "ü/c d.tif"
  ]  # fmt: skip
  assert labels(source) == [None] * 5
  assert source.num_classes is None
  assert source[1]["image"] == (tmp_path / "a.jpeg").read_bytes()
  assert [source[i]["index"] for i in range(5)] == list(range(5))


def test_one_level_of_folders_is_the_labels(tmp_path):
  for name in ("dog/1.png", "cat/1.png", "cat/2.png", "eel/0.png"):
    save(tmp_path / "train" / name)
    save(tmp_path / "val" / "dog" / "3.png")
  source = sources.make(f"folder:{tmp_path}", "train")
  # Relative to the path that the user named: unique across splits.
  assert keys(source)[0] == "train/cat/1.png"
  assert labels(source) == [0, 0, 1, 2]
  assert source.num_classes == 3
  # Two levels of folders are no labels.
  assert sources.make(f"folder:{tmp_path}", "").num_classes is None


def test_links_are_followed_once(tmp_path):
  save(tmp_path / "real" / "cat" / "1.png")
  root = tmp_path / "root"
  root.mkdir()
  (root / "cat").symlink_to(tmp_path / "real" / "cat")
  (tmp_path / "real" / "cat" / "loop").symlink_to(root)
  assert keys(sources.make(f"folder:{root}", "")) == ["cat/1.png"]


@pytest.mark.parametrize(
  ("name", "split", "says"),
  [
    ("imagenet", "", ["'imagenet'", "'folder:PATH'"]),
    ("folder:", "", ["'folder:'", "'folder:PATH'"]),
    ("digits", "train", ["'train'", "leave the split empty"]),
    ("folder:{tmp}/nowhere", "", ["{tmp}/nowhere", "check the path"]),
    ("folder:{tmp}", "test", ["'test'", "empty, train"]),
    ("folder:{tmp}/empty", "", ["{tmp}/empty", "no images", ".jpg"]),
    ("tfds:nosuchset", "train", ["tfds:nosuchset", "not found", "Check"]),
    ("tfds:mnist", "train", ["tfds:mnist", "{tmp}", "array_record", "Run"]),
  ],
)
def test_mistakes_are_told_in_one_line(
  tmp_path, monkeypatch, name, split, says
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  save(tmp_path / "train" / "1.png")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError) as error:
    sources.make(name.format(tmp=tmp_path), split)
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
    f"TFDS_DATA_DIR={tmp_path} python -c",
    "tfds.builder('imagenet2012', file_format='array_record')"
    ".download_and_prepare(download_config="
    "tfds.download.DownloadConfig(manual_dir='/path/to/tars'))",
  ):
    assert part in str(error.value)
  assert not list(tmp_path.iterdir())  # nothing was downloaded or made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder per format, each with the data set `tiny`."""
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
            }
          ),
        )

      def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7)}

      def _generate_examples(self, count):
        for i in range(count):
          image = np.full((8 + i, 9, 3), i * 20, np.uint8)
          yield i, {"image": image, "label": i % 3, "file_name": f"{i}.png"}

  folder = tmp_path_factory.mktemp("tfds")
  for file_format in "array_record", "tfrecord":
    Tiny(
      data_dir=folder / file_format, file_format=file_format
    ).download_and_prepare()
  return folder


def test_tfds_records_are_encoded_and_named(prepared, monkeypatch):
  from odc_jax.data import decode

  monkeypatch.setenv("TFDS_DATA_DIR", str(prepared / "array_record"))
  source = sources.make("tfds:tiny", "train")
  assert len(source) == 7
  assert source.num_classes == 3
  assert sorted(keys(source)) == [f"{i}.png" for i in range(7)]
  for copy in source, pickle.loads(pickle.dumps(source)):
    record = copy[4]
    number = int(record["key"].removesuffix(".png"))
    assert isinstance(record["image"], bytes)
    image = np.asarray(decode.decode(record["image"]))
    np.testing.assert_array_equal(
      image, np.full((8 + number, 9, 3), number * 20)
    )
    assert record["label"] == number % 3
    assert record["index"] == 4
  assert len(sources.make("tfds:tiny", "train[:3]")) == 3
  with pytest.raises(UserError, match=r"no split 'test': there is train$"):
    sources.make("tfds:tiny", "test")


def test_tfds_tfrecord_is_sent_back_for_array_record(prepared, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(prepared / "tfrecord"))
  with pytest.raises(UserError, match=r"file_format=array_record"):
    sources.make("tfds:tiny", "train")


def test_sources_survive_pickling(tmp_path):
  save(tmp_path / "a" / "1.png", 7)
  for name in f"folder:{tmp_path}", "digits":
    source = sources.make(name, "")
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(source)
    np.testing.assert_equal(copy[0], source[0])
