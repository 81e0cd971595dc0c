"""Pascal VOC2007's images and the classes of objects that are in each."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8

from odc_jax.data.folder import read_file
from odc_jax.data.source import Record
from odc_jax.errors import UserError
from odc_jax.files import expanded

# Where the archives put it, seen from the folder that is named.
_PLACES = ("", "VOC2007", "VOCdevkit/VOC2007")


class Voc:
  """The images of a split of Pascal VOC2007, or of what has its layout.

  `JPEGImages/<id>.jpg` and, for every class, `ImageSets/Main/<class>_<split>.
  txt` with a line "<id> <target>" for every image. An image may show several
  classes, so records have no label.

  Attributes:
    targets: For every image and class 1, some object of the class is present;
      0, only such as are marked as difficult; -1, none. These are VOC's own
      numbers; the labels of the FAIR benchmark, and OpenSelfSup's, say 0 for
      VOC's -1 and -1 for VOC's 0.
    classes: Their names, sorted.
    num_classes: None: no image has a single label.
  """

  num_classes: int | None = None

  def __init__(self, path: str, split: str = ""):
    """Reads the lists; no image is opened.

    Args:
      path: of VOC2007, or of the folder that the archives were unpacked in.
      split: "trainval", "train", "val" or "test".

    Raises:
      UserError: it is not there, or the lists are none.
    """
    if not path:
      raise UserError(
        "data source 'voc:' names no folder; "
        "set --config.data.source=voc:/path/to/VOCdevkit"
      )
    base = expanded(path).absolute()
    roots = [base / place for place in _PLACES]
    lists = "ImageSets/Main"
    root = next((root for root in roots if os.path.isdir(root / lists)), None)
    if root is None:
      raise UserError(
        f"voc:{path}: there is no {lists} in it, nor in "
        f"{' or '.join(_PLACES[1:])} below it; unpack "
        "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar there"
      )
    self._root = root
    if not (root / "JPEGImages").is_dir():
      raise UserError(
        f"voc:{path}: {root} has lists of images, but no JPEGImages folder; "
        "unpack the archive again"
      )
    files = {
      file.name.removesuffix(f"_{split}.txt"): file
      for file in (root / lists).glob("[!.]*_*.txt")
      if file.name.endswith(f"_{split}.txt")
    }
    if not files:
      there = {
        file.stem.rpartition("_")[2]
        for file in (root / lists).glob("[!.]*_*.txt")
      }
      raise UserError(
        f"voc:{path} has no split {split!r}: there is "
        f"{', '.join(sorted(there)) or 'no <class>_<split>.txt'} in {lists}; "
        "the test split comes in an archive of its own"
      )
    self.classes = sorted(files)
    by_class = [_read_list(files[name]) for name in self.classes]
    ids = sorted(by_class[0])
    for name, targets in zip(self.classes, by_class, strict=True):
      if differ := sorted(targets.keys() ^ by_class[0].keys()):
        raise UserError(
          f"{files[self.classes[0]]} and {files[name]} are not about the same "
          f"images: only one has {differ[0]!r}; copy the lists again"
        )
    if not ids:
      raise UserError(f"{files[self.classes[0]]} lists no images")
    self.targets: Int8[np.ndarray, "n classes"] = np.array(
      [[targets[i] for targets in by_class] for i in ids], np.int8
    )
    self._keys = [f"JPEGImages/{i}.jpg" for i in ids]

  @property
  def keys(self) -> Sequence[str]:
    """The keys of all records, in their order."""
    return self._keys

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, index: int) -> Record:
    key = self._keys[index]
    return {
      "image": read_file(self._root / key),
      "index": index,
      "key": key,
      "label": None,
    }


def _read_list(file: pathlib.Path) -> dict[str, int]:
  """Returns id -> 1, 0 or -1."""
  targets = {}
  # Names of images are ASCII; what is not is refused below, line and all.
  text = read_file(file).decode("utf-8", "backslashreplace")
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    parts = line.split()
    if len(parts) != 2 or parts[1] not in ("1", "0", "-1"):
      raise UserError(
        f"{file}, line {number}: {line!r} is not an image's name and 1, 0 or "
        "-1; copy the list again"
      )
    targets[parts[0]] = int(parts[1])
  return targets
