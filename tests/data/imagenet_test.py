"""From the two archives of ImageNet to a run, with the real TFDS builder.

pytest -n 0 -m slow tests/data/imagenet_test.py [--photographs=DIR]
"""

import io
import itertools
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs import odc_imagenet
from odc_jax.data import loader, prepare, sources
from odc_jax.data.decode import Crop

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent.parent
FORMATS = ["array_record", "tfrecord"]
# The first four classes; their numbers are 0 to 3.
SYNSETS = ["n01440764", "n01443537", "n01484850", "n01491361"]
NUM_TRAIN, NUM_VALIDATION = 64, 24


def cut_out(count):
  """Yields JPEGs of many sizes, cut out of the two that scikit-learn has."""
  from sklearn import datasets

  rng = np.random.default_rng(0)
  photographs = datasets.load_sample_images()["images"]
  for i in range(count):
    whole = photographs[i % 2]
    height, width = rng.integers(100, 400, size=2)
    top = rng.integers(whole.shape[0] - height + 1)
    left = rng.integers(whole.shape[1] - width + 1)
    file = io.BytesIO()
    piece = whole[top : top + height, left : left + width]
    Image.fromarray(piece).save(file, "jpeg", quality=90)
    yield file.getvalue()


@pytest.fixture(scope="module")
def photographs(request):
  """The bytes of as many JPEGs as there are to be images."""
  count = NUM_TRAIN + NUM_VALIDATION
  folder = request.config.getoption("photographs")
  if folder is None:
    return list(cut_out(count))
  files = sorted(
    path
    for path in folder.rglob("*")
    if path.suffix.lower() in (".jpg", ".jpeg")
  )
  if len(files) < count:
    raise pytest.UsageError(f"--photographs: {folder} has no {count} JPEGs")
  chosen = np.linspace(0, len(files) - 1, count).astype(int)
  return [files[i].read_bytes() for i in chosen]


def add(tar, name, data):
  info = tarfile.TarInfo(name)
  info.size = len(data)
  tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def named(photographs):
  """Split -> file name -> bytes, as ImageNet names its files."""
  train = {
    f"{SYNSETS[i % 4]}_{i}.JPEG": data
    for i, data in enumerate(photographs[:NUM_TRAIN])
  }
  validation = {
    f"ILSVRC2012_val_{i:08d}.JPEG": data
    for i, data in enumerate(photographs[NUM_TRAIN:], 1)
  }
  return {"train": train, "validation": validation}


@pytest.fixture(scope="module")
def tars(named, tmp_path_factory):
  """A folder with the two archives."""
  folder = tmp_path_factory.mktemp("tars")
  with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
    for synset in SYNSETS:
      inside = io.BytesIO()
      with tarfile.open(fileobj=inside, mode="w") as inner:
        for name, data in named["train"].items():
          if name.startswith(synset):
            add(inner, name, data)
      add(outer, f"{synset}.tar", inside.getvalue())
  with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
    for name, data in named["validation"].items():
      add(tar, name, data)
  return folder


@pytest.fixture(scope="module")
def prepared(tars, tmp_path_factory):
  """A TFDS_DATA_DIR for each format."""
  folder = tmp_path_factory.mktemp("prepared")
  for file_format in FORMATS:
    prepare.main(
      [
        "imagenet2012",
        f"--manual_dir={tars}",
        f"--data_dir={folder / file_format}",
        f"--file_format={file_format}",
      ]
    )
  return folder


@pytest.fixture
def opened(prepared, monkeypatch):
  """Returns a function: split -> the sources of both formats."""

  def make(split):
    found = []
    for file_format in FORMATS:
      monkeypatch.setenv("TFDS_DATA_DIR", str(prepared / file_format))
      found.append(sources.make("tfds:imagenet2012", split))
    return found

  return make


def records(source):
  return [source[i] for i in range(len(source))]


def test_both_formats_hold_the_files_of_the_archives(opened, named):
  for split, files in named.items():
    array_record, tfrecord = map(records, opened(split))
    assert array_record == tfrecord
    assert {r["key"]: r["image"] for r in tfrecord} == files
    if split == "train":
      for record in tfrecord:
        assert record["label"] == SYNSETS.index(record["key"].split("_")[0])
  for split in "train[:10%]", "train+validation":
    array_record, tfrecord = map(records, opened(split))
    assert array_record == tfrecord
  assert len(tfrecord) == NUM_TRAIN + NUM_VALIDATION


def test_both_formats_give_the_same_batches(opened):
  config = odc_imagenet.get_config().data
  crop = Crop(64, config.crop_scale, config.crop_ratio)
  config.num_threads = 2
  read = []
  for source in opened(config.split):
    batches = loader.train_batches(
      source, config, batch_size=16, crops=[crop], seed=0
    )
    read.append(list(itertools.islice(batches, 6)))
    batches.close()
  for ours, theirs in zip(*read, strict=True):
    np.testing.assert_array_equal(ours["index"], theirs["index"])
    np.testing.assert_array_equal(ours["image"], theirs["image"])
  assert read[0][0]["image"][0].std() > 20  # photographs, not one grey


# That both formats hold the same is tested above.
@pytest.mark.parametrize(
  "file_format",
  ["array_record", pytest.param("tfrecord", marks=pytest.mark.release)],
)
def test_the_config_trains_on_it(prepared, named, tmp_path, file_format):
  sizes = [
    "--config.num_epochs=1",
    "--config.batch_size=16",
    "--config.num_clusters=4",
    "--config.data.image_size=64",
    "--config.data.eval_resize=73",
    "--config.data.num_threads=2",
    "--config.model.group_size=8",
    "--config.odc.min_cluster=2",
    "--config.eval.every_epochs=1",
    "--config.eval.batch_size=16",
    "--config.eval.knn.k=5",
    "--config.log_every=1",
  ]
  result = subprocess.run(
    [
      sys.executable,
      "run.py",
      "--config=configs/odc_imagenet.py",
      f"--workdir={tmp_path / 'run'}",
      *sizes,
    ],
    cwd=ROOT,
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "TFDS_DATA_DIR": str(prepared / file_format),
      # The second run need not compile what the first has.
      "JAX_COMPILATION_CACHE_DIR": str(prepared / "compiled"),
    },
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  assert "eval/knn_top1" in result.stdout
  table = pq.read_table(tmp_path / "run" / "clusters.parquet").to_pydict()
  assert sorted(table["key"]) == sorted(named["train"])
  assert set(table["label"]) == {0, 1, 2, 3}
  assert set(table["cluster"]) <= {0, 1, 2, 3}
