"""What preparing a data set checks, refuses and prints."""

import collections
import io
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from odc_jax.data import prepare, sources
from odc_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """No test writes to the user's directories."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def never_started(monkeypatch):
  """Fails the test if it comes to preparing."""

  def called(*args):
    raise AssertionError("preparing was started")

  monkeypatch.setattr(prepare, "_prepare", called)


def refusal(*argv):
  with pytest.raises(UserError) as error:
    prepare.main([str(argument) for argument in argv])
  message = str(error.value)
  assert "\n" not in message
  return message


@pytest.fixture
def offline(tmp_path, monkeypatch):
  """TFDS finds what it would download: CIFAR-10's files, an image in each."""
  tfds = pytest.importorskip("tensorflow_datasets")
  folder = tmp_path / "unpacked" / "cifar-10-batches-bin"
  folder.mkdir(parents=True)
  names = [f"class {i}" for i in range(10)]
  (folder / "batches.meta.txt").write_text("\n".join(names))
  rng = np.random.default_rng(0)
  for label, name in enumerate(
    ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]
  ):
    pixels = rng.bytes(3 * 32 * 32)
    (folder / f"{name}.bin").write_bytes(bytes([label]) + pixels)
  monkeypatch.setattr(
    tfds.download.DownloadManager,
    "download_and_extract",
    lambda self, url: folder.parent,
  )


def test_cifar10_is_prepared_and_can_be_read(
  offline, tmp_path, monkeypatch, capsys
):
  read = {}
  for file_format in "array_record", "tfrecord":
    data_dir = tmp_path / file_format
    argv = [f"--data_dir={data_dir}", f"--file_format={file_format}"]
    prepare.main(["cifar10", *argv])
    out = capsys.readouterr().out
    assert f"{data_dir}/cifar10/3.0.2: {file_format}" in out
    assert "5 records in 1 file\n" in out
    assert (
      f"train: TFDS_DATA_DIR={data_dir} python run.py "
      "--config=configs/odc_cifar10.py\n"
    ) in out
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    source = sources.make("tfds:cifar10", "train+test")
    read[file_format] = [source[i] for i in range(len(source))]
    assert sorted(r["label"] for r in read[file_format]) == [0, 1, 2, 3, 4, 5]
    assert Image.open(io.BytesIO(source[0]["image"])).size == (32, 32)
    # Once more changes nothing, and another format is another place.
    prepare.main(["tfds:cifar10", argv[0]])
    assert "prepared already" in capsys.readouterr().out
    prepare.main(["cifar10", *argv])
    other = {"array_record": "tfrecord", "tfrecord": "array_record"}
    message = refusal("cifar10", argv[0], f"--file_format={other[file_format]}")
    assert f"as {file_format} already" in message
    assert "another --data_dir" in message
  assert read["array_record"] == read["tfrecord"]


def test_the_default_is_array_record_where_tfds_looks(
  offline, tmp_path, capsys
):
  prepare.main(["cifar10"])
  out = capsys.readouterr().out
  assert f"{tmp_path / 'data'}/cifar10/3.0.2: array_record" in out
  assert len(sources.make("tfds:cifar10", "train")) == 5


def test_a_failure_of_the_builder_is_one_line(tmp_path):
  (tmp_path / "tars").mkdir()
  for tar in prepare._IMAGENET_TARS:
    (tmp_path / "tars" / tar).write_bytes(b"this is no tar" * 999)
  message = refusal("imagenet2012", f"--manual_dir={tmp_path / 'tars'}")
  assert message.startswith("preparing imagenet2012 failed: ")
  assert "run the same command again" in message


@pytest.mark.usefixtures("never_started")
class TestMistakes:
  @pytest.mark.parametrize(
    ("argv", "says"),
    [
      ([], ["name"]),
      (["cifar10", "--manualdir=x"], ["--manualdir=x", "--help"]),
      (["cifar10", "--file_format=zip"], ["'zip'", "array_record", "tfrecord"]),
      (["cifar10", "--data_dir=gs://x"], ["--data_dir=gs://x", "local"]),
      (["nosuchset"], ["nosuchset", "not found"]),
      (["resisc45"], ["resisc45", "by hand", "--manual_dir=DIR"]),
      (["imagenet2012"], [*prepare._IMAGENET_TARS, "--manual_dir=", "https"]),
      (
        ["imagenet2012", "--manual_dir=/nowhere"],
        [*prepare._IMAGENET_TARS, "are not in --manual_dir=/nowhere"],
      ),
    ],
  )
  def test_they_are_told_in_one_line(self, argv, says):
    message = refusal(*argv)
    for part in says:
      assert part in message

  def test_a_missing_tar_is_named(self, tmp_path):
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    message = refusal("imagenet2012", f"--manual_dir={tmp_path}")
    assert message.startswith("ILSVRC2012_img_val.tar is not in")

  def test_a_full_disk_is_noticed_before(self, tmp_path, monkeypatch):
    for tar in prepare._IMAGENET_TARS:
      (tmp_path / tar).write_bytes(bytes(500_000))
    left = tmp_path / "data" / "imagenet2012" / "incomplete.ABCDEF_5.1.0"
    monkeypatch.setattr(
      shutil, "disk_usage", lambda path: Usage(9e9, 9e9, 1_000_000)
    )
    message = refusal("imagenet2012", f"--manual_dir={tmp_path}")
    assert "1 MB of free space and 1.05 MB are needed; make room or" in message
    left.mkdir(parents=True)
    message = refusal("imagenet2012", f"--manual_dir={tmp_path}")
    assert f"make room ({left} is left from an attempt" in message
    message = refusal("cifar10")
    assert "510 MB are needed" in message

  def test_no_tensorflow(self, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    assert "pip install -r requirements.txt" in refusal("cifar10")


def test_the_program_exits_with_status_2():
  result = subprocess.run(
    [sys.executable, "-m", "odc_jax.data.prepare", "imagenet2012"],
    cwd=ROOT,
    env={**os.environ, "TFDS_DATA_DIR": "/nowhere"},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 2
  assert result.stderr.startswith("error: imagenet2012 is made from ")
  assert len(result.stderr.splitlines()) == 1
