"""From the name of a data set to an object that hands out its records.

A source knows its length and returns record `i` of its own, fixed order:

    {"image": encoded bytes, or uint8 [h, w, 3],
     "index": i, "key": str, "label": int or None}

`index` is what the memories are addressed by; `key` is what a person finds the
image by. Sources are picklable (the loader's worker processes get a copy) and
never download anything.
"""

import os
import pathlib
from typing import Any, Protocol, runtime_checkable

import numpy as np

from odc_jax.errors import UserError

Record = dict[str, Any]

IMAGE_SUFFIXES = frozenset(
  {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
)

_IMAGENET_STEPS = """\
tfds:imagenet2012 is not prepared in {data_dir}. ImageNet may not be \
redistributed, so this once has to be done by hand:
  1. Log in at https://image-net.org/download-images and obtain \
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (155 GB).
  2. Put both, still packed, into one folder, here called /path/to/tars.
  3. Run (it needs tensorflow, about 300 GB of disk and some hours):
     {env}python -c "import tensorflow_datasets as tfds; \
tfds.builder('imagenet2012', file_format='array_record')\
.download_and_prepare(download_config=\
tfds.download.DownloadConfig(manual_dir='/path/to/tars'))"
To keep the data elsewhere, set TFDS_DATA_DIR for that command and for \
this program."""

_COMMAND = """\
Run: python -c "import tensorflow_datasets as tfds; tfds.builder('{name}', \
file_format='array_record').download_and_prepare()"\
"""


@runtime_checkable
class Source(Protocol):
  """Random access to the records of a data set."""

  num_classes: int | None

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


def make(name: str, split: str = "") -> Source:
  """Opens a data set.

  Args:
    name: `digits` (inside scikit-learn), `folder:PATH` (every image below
      PATH) or `tfds:NAME` (prepared by tensorflow-datasets as ArrayRecord;
      `TFDS_DATA_DIR` says where).
    split: for a folder a sub-folder of PATH, or "" for all of it; for TFDS a
      split such as "train" or "train[:10%]"; for digits "".

  Returns:
    The source.

  Raises:
    UserError: the name, the folder or the split does not exist, or there is
      nothing in it that can be read.
  """
  kind, _, rest = name.partition(":")
  if name == "digits":
    return Digits(split)
  if kind == "folder" and rest:
    return Folder(rest, split)
  if kind == "tfds" and rest:
    return Tfds(rest, split)
  raise UserError(
    f"unknown data source {name!r}: use 'digits', 'folder:PATH' or 'tfds:NAME'"
  )


class Digits:
  """The 1,797 handwritten digits of 8 x 8 pixels inside scikit-learn."""

  num_classes: int | None = 10

  def __init__(self, split: str = ""):
    """Loads all of it, 115 kB.

    Args:
      split: must be "".

    Raises:
      UserError: a split is named.
    """
    if split:
      raise UserError(f"digits has no split {split!r}: leave the split empty")
    from sklearn import (
      datasets,
    )  # half a second that other sources need not pay

    digits: Any = datasets.load_digits()
    # The values are 0..16; 255 / 16 is what makes the brightest one white.
    self._images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    self._labels = digits.target.tolist()

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> Record:
    return {
      "image": np.repeat(self._images[index, :, :, None], 3, axis=-1),
      "index": index,
      "key": f"digits/{index:04d}",
      "label": self._labels[index],
    }


class Folder:
  """Every image file below a folder, sorted by path.

  Hidden files and folders are left out; links are followed. Where every image
  lies in a folder of the first level, and in none below that, these folders
  are the labels, numbered in sorted order.
  """

  def __init__(self, path: str, split: str = ""):
    """Lists the files; none is opened.

    Args:
      path: the folder. Keys are paths relative to it, with forward slashes.
      split: a sub-folder to stay within, or "".

    Raises:
      UserError: the folder is not there, or no image is in it.
    """
    base = pathlib.Path(path).expanduser()
    if not base.is_dir():
      raise UserError(f"folder:{path}: there is no such folder; check the path")
    root = base / split
    if not root.is_dir():
      there = sorted(p.name for p in base.iterdir() if p.is_dir())
      raise UserError(
        f"folder:{path} has no split (sub-folder) {split!r}: "
        f"there is {', '.join(there[:10]) or 'none; leave the split empty'}"
      )
    self._base = str(base.absolute())
    self._keys = sorted(_image_paths(root, base))
    if not self._keys:
      raise UserError(
        f"folder:{path}: no images in {root}; "
        f"looked for {' '.join(sorted(IMAGE_SUFFIXES))}"
      )
    depth = len(root.relative_to(base).parts)
    parts = [key.split("/")[depth:-1] for key in self._keys]
    self._labels: list[int] | None = None
    self.num_classes: int | None = None
    if all(len(part) == 1 for part in parts):
      names = [part[0] for part in parts]
      numbers = {name: i for i, name in enumerate(sorted(set(names)))}
      self._labels = [numbers[name] for name in names]
      self.num_classes = len(numbers)

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, index: int) -> Record:
    key = self._keys[index]
    return {
      "image": pathlib.Path(self._base, key).read_bytes(),
      "index": index,
      "key": key,
      "label": None if self._labels is None else self._labels[index],
    }


def _image_paths(root: pathlib.Path, base: pathlib.Path):
  """Yields the images below `root` as POSIX paths relative to `base`."""
  seen = set()
  for folder, subfolders, files in os.walk(root, followlinks=True):
    # A link to a folder above would be walked for ever.
    if (real := os.path.realpath(folder)) in seen:
      subfolders.clear()
      continue
    seen.add(real)
    # Sorted, or chance would choose between two links to one folder.
    subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
    prefix = pathlib.Path(folder).relative_to(base)
    for file in files:
      if file.startswith("."):
        continue
      if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
        yield (prefix / file).as_posix()


class Tfds:
  """A prepared tensorflow-datasets data set, its images left encoded."""

  def __init__(self, name: str, split: str):
    """Opens the ArrayRecord files; tensorflow is not needed.

    Args:
      name: as tensorflow-datasets takes it: NAME[/CONFIG][:VERSION].
      split: "train", "validation[:50%]", ...

    Raises:
      UserError: no such data set or split, not prepared, not prepared as
        ArrayRecord, or without images.
    """
    import tensorflow_datasets as tfds

    # Read now: the library reads the variable when it is imported.
    data_dir = os.environ.get("TFDS_DATA_DIR")
    try:
      builder: Any = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, ImportError) as error:
      # The message lists every data set there is, or ends in a stack of hints.
      reason = str(error).partition("\n")[0]
      raise UserError(
        f"tfds:{name}: {reason} Check the name, and TFDS_DATA_DIR if the data "
        "set is your own"
      ) from error
    if not builder.is_prepared():
      raise UserError(_how_to_prepare(name, data_dir))
    file_format = builder.info.file_format
    if file_format is None or file_format.value in ("tfrecord", "riegeli"):
      raise UserError(
        f"tfds:{name} in {builder.data_path} is stored as "
        f"{file_format and file_format.value}, which has no random access: it "
        "needs file_format=array_record. Set TFDS_DATA_DIR to a new folder and "
        f"prepare it once more there. {_COMMAND.format(name=name)}"
      )
    features: Any = builder.info.features
    if "image" not in features:
      raise UserError(
        f"tfds:{name} has no feature 'image', only {', '.join(features)}: "
        "choose a data set of images"
      )
    try:
      self._records: Any = builder.as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
      )
    except (ValueError, KeyError, AssertionError) as error:
      raise UserError(
        f"tfds:{name} has no split {split!r}: "
        f"there is {', '.join(builder.info.splits)}"
      ) from error
    self._name = name
    self._key = next((k for k in ("file_name", "id") if k in features), None)
    self._label = "label" if "label" in features else None
    self.num_classes: int | None = None
    if self._label:
      self.num_classes = getattr(features["label"], "num_classes", None)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Record:
    record = self._records[index]
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


def _how_to_prepare(name: str, data_dir: str | None) -> str:
  """Returns the message for a data set that is known but not on the disk."""
  where = data_dir or "~/tensorflow_datasets"
  if name.partition(":")[0] == "imagenet2012":
    env = f"TFDS_DATA_DIR={data_dir} " if data_dir else ""
    return _IMAGENET_STEPS.format(data_dir=where, env=env)
  return (
    f"tfds:{name} is not prepared in {where}. {_COMMAND.format(name=name)}, or "
    "set TFDS_DATA_DIR to where it is"
  )
