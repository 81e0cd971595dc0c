"""Brings a data set into the form that `tfds:NAME` reads; done once.

  python -m odc_jax.data.prepare imagenet2012 --manual_dir=/path/to/tars
  python -m odc_jax.data.prepare cifar10

Downloads where that is allowed. This is the only part that needs TensorFlow.
"""

import argparse
import importlib.util
import os
import pathlib
import shutil
import sys
from typing import Any, NoReturn

from absl import logging

from odc_jax.data.tfds import file_format_of, open_builder
from odc_jax.errors import UserError
from odc_jax.files import expanded

_IMAGENET_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")

# Configs of the data sets that have one.
_CONFIGS = {
  "imagenet2012": "configs/odc_imagenet.py",
  "cifar10": "configs/odc_cifar10.py",
}


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message} (--help shows all arguments)")


def main(argv: list[str]) -> None:
  """Prepares a data set and prints what there is now.

  Args:
    argv: the arguments of the command line, without the program's name.

  Raises:
    UserError: for whatever the user can mend.
  """
  parser = _Parser(
    prog="python -m odc_jax.data.prepare",
    description="Prepares a data set of tensorflow-datasets for tfds:NAME.",
    allow_abbrev=False,
  )
  parser.add_argument("name", help="imagenet2012, cifar10, NAME[/CONFIG], ...")
  parser.add_argument(
    "--manual_dir",
    help="the folder with the archives that cannot be downloaded freely",
  )
  parser.add_argument(
    "--data_dir",
    default=os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets",
    help="where data sets are kept; default: TFDS_DATA_DIR, %(default)s",
  )
  parser.add_argument(
    "--file_format",
    choices=["array_record", "tfrecord"],
    help="both are read equally well; default: array_record",
  )
  args = parser.parse_args(argv)
  name = args.name.removeprefix("tfds:")
  if "://" in args.data_dir:
    raise UserError(
      f"--data_dir={args.data_dir} is not on this machine; prepare into a "
      "local folder, and copy it from there"
    )
  data_dir = expanded(args.data_dir).absolute()
  builder = open_builder(name, str(data_dir))
  if builder.is_prepared():
    there = file_format_of(builder)
    if args.file_format not in (None, there):
      raise UserError(
        f"{builder.data_path} holds {name} as {there} already, which can be "
        f"read as it is; for {args.file_format}, choose another --data_dir"
      )
    print("prepared already")
  else:
    _check_tensorflow()
    _check_room(data_dir, _bytes_needed(name, args.manual_dir, builder))
    file_format = args.file_format or "array_record"
    builder = open_builder(name, str(data_dir), file_format=file_format)
    _prepare(builder, args.manual_dir)
  _report(name, data_dir, builder)


def _check_tensorflow() -> None:
  if importlib.util.find_spec("tensorflow") is None:
    raise UserError(
      "preparing a data set needs tensorflow, which reading does not; "
      "pip install -r requirements.txt"
    )


def _bytes_needed(name: str, manual_dir: str | None, builder: Any) -> int:
  """Returns how many bytes preparing is going to write, at most.

  Raises:
    UserError: archives are missing that have to be obtained by hand.
  """
  if builder.name == "imagenet2012":
    if not manual_dir:
      raise UserError(
        f"imagenet2012 is made from {' and '.join(_IMAGENET_TARS)}, from "
        "https://image-net.org/download-images; say where both are with "
        "--manual_dir=/path/to/tars"
      )
    folder = expanded(manual_dir)
    missing = [tar for tar in _IMAGENET_TARS if not (folder / tar).is_file()]
    if missing:
      raise UserError(
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
        f"in --manual_dir={manual_dir}; obtain what is missing from "
        "https://image-net.org/download-images and leave it packed"
      )
    # The images are copied as they are, one by one, out of the tars (of the
    # test images too, where they are there), and never all twice: a temporary
    # file is removed as soon as the records in it are in their place.
    sizes = [tar.stat().st_size for tar in folder.glob("ILSVRC2012_img_*.tar")]
    return sum(sizes) * 105 // 100
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not manual_dir:
    hint = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    raise UserError(
      f"{name} has to be obtained by hand: {hint} Then say where it is with "
      "--manual_dir=DIR"
    )
  # The download, the same unpacked, and the records: an estimate.
  return 3 * sum(info.size for info in builder.url_infos.values())


def _check_room(data_dir: pathlib.Path, needed: int) -> None:
  """Raises a UserError if `needed` bytes have no room in `data_dir`."""
  there = next(p for p in (data_dir, *data_dir.parents) if p.exists())
  free = shutil.disk_usage(there).free
  if free < needed:
    left = sorted(
      path
      for parents in ("*", "*/*")  # NAME, NAME/CONFIG
      for path in data_dir.glob(f"{parents}/incomplete.*")
    )
    hint = f" ({left[0]} is left from an attempt, and can go)" if left else ""
    raise UserError(
      f"{data_dir} has {_size(free)} of free space and {_size(needed)} are "
      f"needed; make room{hint} or choose another --data_dir"
    )


def _prepare(builder: Any, manual_dir: str | None) -> None:
  """Calls TFDS.

  Raises:
    UserError: it failed for a reason outside of this program.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  import tarfile

  import tensorflow as tf
  import tensorflow_datasets as tfds

  # Otherwise encoding the first image takes all of the GPUs' memory.
  tf.config.set_visible_devices([], "GPU")
  if manual_dir:
    manual_dir = os.path.abspath(os.path.expanduser(manual_dir))
  config = tfds.download.DownloadConfig(manual_dir=manual_dir)
  try:
    builder.download_and_prepare(download_config=config)
  except (
    OSError,  # requests' exceptions too
    tarfile.TarError,
    AssertionError,
    tf.errors.OpError,
    tfds.download.DownloadError,
  ) as error:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise UserError(
      f"preparing {builder.name} failed: {lines[0]}; mend that and run the "
      "same command again"
    ) from error


def _report(name: str, data_dir: pathlib.Path, builder: Any) -> None:
  """Prints what is on the disk, and what to do with it."""
  info = builder.info
  size = sum(
    file.stat().st_size for file in pathlib.Path(builder.data_path).iterdir()
  )
  print(f"{builder.data_path}: {file_format_of(builder)}, {_size(size)}")
  for split in info.splits.values():
    shards = f"{split.num_shards} file{'s'[: split.num_shards != 1]}"
    print(f"  {split.name:12} {split.num_examples:>10,} records in {shards}")
  command = f"TFDS_DATA_DIR={data_dir} python run.py"
  if name in _CONFIGS:
    print(f"train: {command} --config={_CONFIGS[name]}")
  else:
    print(
      f"train: {command} --config=configs/odc_cifar10.py "
      f"--config.data.source=tfds:{name}"
    )


def _size(num_bytes: int) -> str:
  """Returns a number of bytes for people."""
  size = float(num_bytes)
  for unit in ("B", "kB", "MB", "GB"):
    if size < 1000:
      return f"{size:.3g} {unit}"
    size /= 1000
  return f"{size:.1f} TB"


if __name__ == "__main__":
  # TFDS warns that what is to be prepared is not there yet.
  logging.set_verbosity(logging.ERROR)
  try:
    main(sys.argv[1:])
  except UserError as user_error:
    print(f"error: {user_error}", file=sys.stderr)
    sys.exit(2)
