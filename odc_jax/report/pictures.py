"""The images of a page, as small as they are shown."""

import base64
import concurrent.futures
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from odc_jax.data import sources, thumbnails
from odc_jax.data.decode import DecodeError
from odc_jax.errors import UserError

# Pixels on the longer side, by how many pictures are wanted at most.
SIDES = ((3_000, 96), (8_000, 64))
LEAST_SIDE = 48
MAP_SIDE = 40
# What bounds the page and the time: bytes of it, and how many.
PICTURE_BYTES = 17_000_000
PICTURES = 12_000
# Read and encoded at a time, so that no more than this is in memory.
_CHUNK = 256
_THREADS = 8


class Pictures(NamedTuple):
  """The pictures of some images.

  Attributes:
    data: WebP files, base64.
    of: For every image the place of its picture in `data`, or -1.
    problem: Why pictures are missing that should be there, or "".
  """

  data: list[str]
  of: list[int]
  problem: str


def take(
  config: dict[str, Any],
  keys: Sequence[str],
  index: np.ndarray,
  wanted: Sequence[int],
  on_map_only: Sequence[int],
) -> Pictures:
  """Makes the pictures, until there are enough.

  A picture is taken only of an image that still has the name that it had when
  the run was made: the data may have changed meanwhile.

  Args:
    config: As `config.json` holds it.
    keys: Names of the images.
    index: Their places in the data set, int64 [m].
    wanted: Places in `keys`, those that matter most first.
    on_map_only: Likewise, after those: smaller ones.
  """
  of = [-1] * len(keys)
  data = config["data"]
  try:
    source = sources.make(data["source"], data["split"])
  # What a library says that is not there is no mistake of the user's here.
  except (UserError, OSError, ImportError) as error:
    return Pictures([], of, f"the data set cannot be opened: {error}")
  side = next((side for n, side in SIDES if len(wanted) <= n), LEAST_SIDE)
  tasks = itertools.chain(
    ((place, side) for place in wanted),
    ((place, MAP_SIDE) for place in on_map_only),
  )
  tasks = itertools.islice(tasks, PICTURES)

  def picture(task: tuple[int, int]) -> str | None:
    place, side = task
    try:
      record = source[int(index[place])]
      if record["key"] != keys[place]:
        return None
      encoded = thumbnails.encode(record["image"], side)
    except (OSError, IndexError, DecodeError):
      return None
    return base64.b64encode(encoded).decode()

  made: list[str] = []
  size = unread = 0
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    while chunk := list(itertools.islice(tasks, _CHUNK)):
      for (place, _), encoded in zip(
        chunk, pool.map(picture, chunk), strict=True
      ):
        if encoded is None:
          unread += 1
        elif size + len(encoded) <= PICTURE_BYTES:
          size += len(encoded)
          of[place] = len(made)
          made.append(encoded)
      if size > PICTURE_BYTES - 10_000:
        break
  problem = (
    f"{unread:,} of the images are no longer there under their names, or "
    "cannot be read"
    if unread
    else ""
  )
  return Pictures(made, of, problem)
