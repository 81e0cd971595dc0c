"""Data sets that tensorflow-datasets has prepared, read without TensorFlow."""

import bisect
import itertools
import os
from typing import Any

import numpy as np

from odc_jax.data.source import Record
from odc_jax.data.tfrecord import Part, TfRecords
from odc_jax.errors import UserError

_IMAGENET_STEPS = """\
tfds:imagenet2012 is not prepared in {data_dir}. ImageNet may not be \
redistributed, so this once has to be done by hand:
  1. Log in at https://image-net.org/download-images and obtain \
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (155 GB).
  2. Put both, still packed, into one folder, here called /path/to/tars.
  3. Run (some hours, and as much disk again):
     {command} --manual_dir=/path/to/tars
If it is prepared already, set TFDS_DATA_DIR to where."""


class Tfds:
  """A prepared tensorflow-datasets data set, its images left encoded."""

  keys = None

  def __init__(self, name: str, split: str):
    """Opens the files, TFRecord or ArrayRecord; tensorflow is not needed.

    Args:
      name: as tensorflow-datasets takes it: NAME[/CONFIG][:VERSION].
      split: "train", "validation[:50%]", "train+validation", ...

    Raises:
      UserError: no such data set or split, not prepared, prepared in a format
        without random access, files that are missing or damaged, or no images.
    """
    import tensorflow_datasets as tfds

    # Read now: the library reads the variable when it is imported.
    data_dir = os.environ.get("TFDS_DATA_DIR")
    builder: Any = open_builder(name, data_dir)
    if not builder.is_prepared():
      raise UserError(_how_to_prepare(name, data_dir))
    features: Any = builder.info.features
    if "image" not in features:
      raise UserError(
        f"tfds:{name} has no feature 'image', only {', '.join(features)}: "
        "choose a data set of images"
      )
    self._name = name
    self._parts = _parts(name, split, builder.info.splits)
    self._starts = list(
      itertools.accumulate((part.take for part in self._parts), initial=0)
    )
    decoders = {"image": tfds.decode.SkipDecoding()}
    file_format = file_format_of(builder)
    if file_format == "tfrecord":
      self._records: Any = _Deserialized(
        TfRecords(self._parts), features, decoders
      )
    elif file_format == "riegeli":
      raise UserError(
        f"tfds:{name} in {builder.data_path} is stored as {file_format}, which "
        "has no random access. Prepare it once more in a new folder: "
        f"{_command(name)} --data_dir=NEW, and set TFDS_DATA_DIR=NEW"
      )
    else:
      missing = [p.path for p in self._parts if not os.path.exists(p.path)]
      if missing and "://" not in missing[0]:
        raise UserError(
          f"{missing[0]} is missing; copy the file again, or prepare the data "
          "set once more"
        )
      # It keeps every file open that it has read from.
      _raise_file_limit(len(self._parts))
      self._records = builder.as_data_source(split=split, decoders=decoders)
    self._key = next((k for k in ("file_name", "id") if k in features), None)
    self._label = "label" if "label" in features else None
    self.num_classes: int | None = None
    if self._label:
      self.num_classes = getattr(features["label"], "num_classes", None)

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, index: int) -> Record:
    try:
      record = self._records[index]
    except (UserError, IndexError):
      raise
    # The reader raises errors of its own: RuntimeError, DecodeError, KeyError.
    except Exception as error:
      part = self._parts[bisect.bisect_right(self._starts, index) - 1]
      reason = str(error).partition("\n")[0] or type(error).__name__
      raise UserError(
        f"{part.path}: record {index} of tfds:{self._name} cannot be read: "
        f"{reason}; copy the file again, or prepare the data set once more"
      ) from error
    key = f"{self._name}/{index}"
    if self._key:
      key = record[self._key]
      key = key.decode() if isinstance(key, bytes) else str(key)
    label = None
    if self._label and np.ndim(record[self._label]) == 0:
      # -1 is how the test splits of TFDS say that the label is withheld.
      label = int(record[self._label])
      label = None if label < 0 else label
    return {
      "image": record["image"],
      "index": index,
      "key": key,
      "label": label,
    }


class _Deserialized:
  """Decodes records as `as_data_source` does, from a format it cannot read."""

  def __init__(self, records: TfRecords, features: Any, decoders: Any):
    self.records = records
    self.features = features
    self.decoders = decoders

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.features.deserialize_example_np(
      self.records[index], decoders=self.decoders
    )


def open_builder(name: str, data_dir: str | None, **options: Any) -> Any:
  """Returns the builder of a data set, prepared or not.

  Args:
    name: NAME[/CONFIG][:VERSION].
    data_dir: where data sets are, or None for ~/tensorflow_datasets.
    **options: for `tfds.builder`.

  Raises:
    UserError: there is no such data set, or `data_dir` cannot be read.
  """
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, data_dir=data_dir, **options)
  except (
    ValueError,
    AssertionError,
    ImportError,
    OSError,
    RuntimeError,
  ) as error:
    # The message lists every data set there is, or ends in a stack of hints.
    reason = str(error).partition("\n")[0]
    raise UserError(
      f"tfds:{name}: {reason} Check the name, and TFDS_DATA_DIR if the data "
      "set is your own"
    ) from error


def file_format_of(builder: Any) -> str:
  """Returns in which format a prepared data set lies on the disk."""
  # Data sets from before there was a choice do not say what they are.
  return getattr(builder.info.file_format, "value", "tfrecord")


def _parts(name: str, split: str, splits: Any) -> list[Part]:
  """Returns the files of a split, or of an expression such as "a[:9]+b"."""
  try:
    instructions = splits[split].file_instructions
  except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
    raise UserError(
      f"tfds:{name} has no split {split!r}: there is {', '.join(splits)}"
    ) from error
  parts = [
    Part(os.fspath(i.filename), i.skip, i.take, i.examples_in_shard)
    for i in instructions
    if i.take
  ]
  if not parts:
    raise UserError(
      f"tfds:{name} split {split!r} is empty; choose more of "
      + ", ".join(f"{s.name} ({s.num_examples:,})" for s in splits.values())
    )
  return parts


def _raise_file_limit(count: int) -> None:
  """Lets this process, and those it starts, hold `count` more files open.

  The usual limit is 1,024, and ImageNet has 1,024 files.
  """
  try:
    import resource
  except ImportError:  # not there on Windows, and neither is the limit
    return
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY:
    return
  wanted = soft + count
  if hard != resource.RLIM_INFINITY:
    wanted = min(wanted, hard)
  resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _command(name: str) -> str:
  return f"python -m odc_jax.data.prepare {name}"


def _how_to_prepare(name: str, data_dir: str | None) -> str:
  """Returns the message for a data set that is known but not on the disk."""
  where = data_dir or "~/tensorflow_datasets"
  command = _command(name)
  if data_dir:
    command += f" --data_dir={data_dir}"
  if name.partition(":")[0] == "imagenet2012":
    return _IMAGENET_STEPS.format(data_dir=where, command=command)
  return (
    f"tfds:{name} is not prepared in {where}. Run: {command}, or set "
    "TFDS_DATA_DIR to where it is"
  )
