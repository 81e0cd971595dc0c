"""Images that cannot be read: counted, named, and stopped at when too many.

The loader puts a neighbour in the place of such an image and says so in the
batch; here is what becomes of that.
"""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from odc_jax.errors import UserError


class BadImage(NamedTuple):
  """An image that could not be read: its place, its name, and why."""

  index: int
  key: str
  reason: str


def check(config: Any) -> None:
  """Raises UserError if there is no such `on_error`."""
  if config.on_error not in ("replace", "fail"):
    raise UserError(
      f"unknown data.on_error {config.on_error!r}; choose replace or fail"
    )


class BadImages:
  """The unreadable images of one data set, as far as they have been met.

  They are kept in a file, a line each: data set, index, key, reason, between
  tabs. Several data sets may share it.
  """

  def __init__(
    self,
    path: pathlib.Path,
    data_set: str,
    num_examples: int,
    config: Any,
    writes: bool = True,
  ):
    """Reads what the file already holds.

    Args:
      path: the file; made when the first bad image is met.
      data_set: "train" or "eval".
      num_examples: size of the data set.
      config: section with `on_error`, "replace" or "fail", and
        `max_bad_fraction`, of the data set.
      writes: whether this process keeps the file.

    Raises:
      UserError: there is no such `on_error`.
    """
    check(config)
    self._path = path
    self._data_set = data_set
    self._config = config
    self._limit = config.max_bad_fraction * num_examples
    self._num_examples = num_examples
    self._writes = writes
    # Not yet told to the other processes.
    self._news: list[BadImage] = []
    self.indices: set[int] = set()
    if path.exists():
      for line in path.read_text("utf-8").splitlines():
        name, index, *_ = line.split("\t")
        if name == data_set:
          self.indices.add(int(index))

  def __len__(self) -> int:
    return len(self.indices)

  def __str__(self) -> str:
    return (
      f"{len(self)} of {self._num_examples} images of the {self._data_set} set "
      "could not be read"
    )

  def add(self, images: Iterable[BadImage]) -> None:
    """Writes down those that are new.

    Args:
      images: those that a batch met, as the loader gives them under "bad".

    Raises:
      UserError: there is one although `on_error` is "fail", or there are
        more of them than `max_bad_fraction` allows.
    """
    for image in images:
      if image.index in self.indices:
        continue
      if self._config.on_error == "fail":
        raise UserError(
          f"image {image.key!r} (index {image.index}) cannot be read: "
          f"{image.reason}; repair or remove it, or pass over such images with "
          "--config.data.on_error=replace"
        )
      self.indices.add(image.index)
      self._news.append(image)
      if self._writes:
        self._write(image)
      if len(self) > self._limit:
        raise UserError(
          f"{len(self)} of the {self._num_examples} images met so far cannot "
          f"be read, and --config.data.max_bad_fraction="
          f"{self._config.max_bad_fraction:.3g} allows {int(self._limit)}: "
          f"{image.key!r} ({image.reason}), and what {self._path} names. "
          "Repair or remove them, or raise that fraction"
        )

  def exchange(self, gather: Callable[[list], list[list]]) -> None:
    """Tells the other processes what was met here, and hears what they met.

    Args:
      gather: from what one process has to what each of them has.

    Raises:
      UserError: together they are too many.
    """
    for theirs in gather(self._news):
      self.add(BadImage(*image) for image in theirs)
    self._news = []

  def _write(self, image: BadImage) -> None:
    # A key is printable and stays as it is; a reason may have any form.
    reason = " ".join(image.reason.split())
    line = f"{self._data_set}\t{image.index}\t{image.key}\t{reason}"
    with self._path.open("a", encoding="utf-8") as file:
      file.write(line + "\n")
