"""The images of a page, as large as its size allows."""

import base64
import concurrent.futures
import itertools
import os
import pathlib
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from odc_jax.data import sources, thumbnails
from odc_jax.data.decode import DecodeError
from odc_jax.errors import UserError
from odc_jax.files import expanded

# Pixels on the longer side: the first of these with which all fit.
SIDES = (256, 224, 192, 160, 128, 96)
# Where not even the last does: of those that come first, and of as many of the
# others as fit.
SIDE_OF_OTHERS = 64
# Size and number of all pictures on the page: reading more takes minutes.
PICTURE_BYTES = 20_000_000
PICTURES = 16_000
# Tried for their size.
_TRIED = 40
# Read and encoded at a time, so that no more than this is in memory.
_CHUNK = 256
_THREADS = 8


class Pictures(NamedTuple):
  """The pictures of some images.

  Attributes:
    data: WebP files, base64.
    of: For every image the place of its picture in `data`, or -1.
    folder: A URL that keys are appended to for the files, relative to the
      page where it can be; None where the images are no files.
    problem: Why pictures are missing that should be there, or "".
    left_out: Images whose pictures did not fit.
  """

  data: list[str]
  of: list[int]
  folder: str | None
  problem: str
  left_out: int = 0


def take(
  workdir: pathlib.Path,
  config: dict[str, Any],
  images: dict[str, list],
  by_worth: Sequence[int],
  num_first: int,
) -> Pictures:
  """Makes the pictures, as many and as large as fit.

  A picture is taken only of an image that still has the name that it had when
  the run was made: the data may have changed meanwhile.

  Args:
    workdir: Where the page is going to be.
    config: As `config.json` holds it.
    images: Columns of the images; `key` and `index` are read.
    by_worth: Their places, those first whose pictures matter most.
    num_first: How many of these matter more than the others.
  """
  of = [-1] * len(images["key"])
  data = config["data"]
  try:
    source = sources.pictures(sources.of_run(workdir, data))
  # A missing library is not the user's mistake here.
  except (UserError, OSError, ImportError) as error:
    problem = f"the data set cannot be opened: {error}"
    return Pictures([], of, None, problem)
  if source is None:
    return Pictures([], of, None, "")

  def picture(task: tuple[int, int]) -> str | None:
    place, side = task
    try:
      record = source[images["index"][place]]
      if record["key"] != images["key"][place]:
        return None
      encoded = thumbnails.encode(record["image"], side)
    except (OSError, IndexError, DecodeError):
      return None
    return base64.b64encode(encoded).decode()

  made: list[str] = []
  left = PICTURE_BYTES
  unread = 0
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for tasks, share in _tasks(by_worth, num_first, pool, picture):
      spare = max(0, left - int(PICTURE_BYTES * share))
      for place, encoded in _encoded(tasks, pool, picture):
        if encoded is None:
          unread += 1
          continue
        if left - len(encoded) < spare:
          break
        left -= len(encoded)
        of[place] = len(made)
        made.append(encoded)
  problem = (
    f"{unread:,} of the images are no longer there under their names, or "
    "cannot be read"
    if unread
    else ""
  )
  folder = _folder(data.get("images") or data["source"], workdir)
  left_out = len(by_worth) - len(made) - unread
  return Pictures(made, of, folder, problem, left_out)


def _tasks(
  by_worth: Sequence[int], num_first: int, pool, picture
) -> Iterator[tuple[Iterable[tuple[int, int]], float]]:
  """Yields (place, side) of many pictures, and what share of the budget is
  theirs at most."""
  wanted = by_worth[:PICTURES]
  tried = np.linspace(0, len(wanted) - 1, min(_TRIED, len(wanted))).astype(int)
  for side in SIDES:
    sizes = [
      len(encoded)
      for encoded in pool.map(picture, [(wanted[i], side) for i in tried])
      if encoded is not None
    ]
    # A tenth to spare: others may be larger than these.
    if len(wanted) * np.mean(sizes or [0]) < 0.9 * PICTURE_BYTES:
      yield ((place, side) for place in wanted), 1.0
      return
  first, others = wanted[:num_first], wanted[num_first:]
  yield ((place, SIDES[-1]) for place in first), 0.7
  yield ((place, SIDE_OF_OTHERS) for place in others), 1.0


def _encoded(
  tasks: Iterable[tuple[int, int]], pool, picture
) -> Iterator[tuple[int, str | None]]:
  """Yields the place of every picture, and the picture."""
  tasks = iter(tasks)
  while chunk := list(itertools.islice(tasks, _CHUNK)):
    for (place, _), encoded in zip(
      chunk, pool.map(picture, chunk), strict=True
    ):
      yield place, encoded


def _folder(name: str, workdir: pathlib.Path) -> str | None:
  """Returns the URL of a folder of images, as seen from the page.

  Relative, so that both can move together, and a page that is passed on names
  no folders that are nobody's business.
  """
  kind, _, path = name.partition(":")
  if kind != "folder":
    return None
  folder = expanded(path).resolve()
  try:
    relative = pathlib.Path(os.path.relpath(folder, workdir.resolve()))
  except ValueError:  # another drive
    return f"{folder.as_uri()}/"
  return f"{urllib.parse.quote(os.fsencode(relative.as_posix()))}/"
