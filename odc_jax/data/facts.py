"""What image files say of themselves: size, light, digest, date.

A look at the files of its own, after the pass of the network: that pass may
have been another run's, or have read images that lie on the devices. It decodes
small (a JPEG at 1/8 where it is large) and, for a folder of files, looks at
each file once: what was found is kept under its size and time of change.
"""

import concurrent.futures
import contextlib
import datetime
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool
from PIL import Image

from odc_jax.data import decode, opened
from odc_jax.data.source import Source
from odc_jax.files import whole

# Pixels on the longer side at which light and sharpness are judged: of images
# of any size the same structures count.
SIDE = 256

# Records in memory at a time.
_CHUNK = 256

# EXIF tags: the time when the picture was taken, and that of the last change,
# which some cameras fill alone.
_EXIF, _TAKEN, _CHANGED = 0x8769, 0x9003, 0x0132

# Luma of ITU-R 601, as Pillow's mode L.
_FULL = 255.0


class Facts(NamedTuple):
  """What is known of an image.

  Attributes:
    width: Of the upright image, in pixels.
    height: Likewise.
    brightness: Mean luma, from 0 (black) to 1 (white).
    sharpness: Variance of the Laplacian of the luma in grey levels (0 to 255),
      of the image at no more than `SIDE` pixels; None of less than 3 x 3.
    sha256: Of the file's bytes, in hexadecimal; of the pixels where the data
      set has no file.
    taken: When, by the camera's clock, which knows no time zone; None where
      the file does not say.
  """

  width: int
  height: int
  brightness: float
  sharpness: float | None
  sha256: str
  taken: datetime.datetime | None


_TYPES = {
  "width": pa.int32(),
  "height": pa.int32(),
  "brightness": pa.float32(),
  "sharpness": pa.float32(),
  "sha256": pa.string(),
  "taken": pa.timestamp("ms"),
}


def of_image(image: bytes | np.ndarray) -> Facts:
  """Returns what an image says of itself.

  Args:
    image: What a record holds: a file's bytes, or uint8 pixels.

  Raises:
    DecodeError: It cannot be read.

  Source of the sharpness: Pech-Pacheco et al. 2000, Diatom autofocusing in
  brightfield microscopy (LAPV).
  """
  found = opened.open_image(image)
  width, height = found.size
  taken = _taken(found.image)
  # Twice the side: what a JPEG is decoded at beforehand is not antialiased.
  gray = decode.decode(image, long_side=2 * SIDE).convert("L")
  gray.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
  luma = np.asarray(gray, np.float32)
  data = image if isinstance(image, bytes) else image.tobytes()
  return Facts(
    width,
    height,
    float(luma.mean()) / _FULL,
    _sharpness(luma),
    hashlib.sha256(data).hexdigest(),
    taken,
  )


def look(
  source: Source,
  readable: Bool[np.ndarray, "n"],
  *,
  num_threads: int,
  kept: pathlib.Path | None,
  advance: Callable[[int], None],
) -> dict[str, pa.Array]:
  """Looks at all images of a data set.

  Args:
    source: The data set.
    readable: Which images to look at, [n].
    num_threads: That read and decode.
    kept: A file that holds what was found of files before, and afterwards all
      of it; None: nothing is kept. A source without files keeps nothing.
    advance: Is told how many images are done.

  Returns:
    Name of a fact -> n values; null where an image was not looked at, or cannot
    be read any more.
  """
  stamps = _stamps(source) if kept is not None else None
  found: list[Facts | None] = [None] * len(source)
  if kept is not None and stamps is not None:
    known = _read(kept)
    found = [known.get(stamp) for stamp in stamps]
  todo = [i for i in np.flatnonzero(readable).tolist() if found[i] is None]
  done = len(source) - len(todo)
  advance(done)
  with concurrent.futures.ThreadPoolExecutor(max(1, num_threads)) as pool:
    numbers = iter(todo)
    while chunk := list(itertools.islice(numbers, _CHUNK)):
      for i, facts in zip(chunk, pool.map(_of(source), chunk), strict=True):
        found[i] = facts
      done += len(chunk)
      advance(done)
  columns = _columns(found)
  if kept is not None and stamps is not None and todo:
    _write(kept, stamps, columns)
  return columns


def _of(source: Source) -> Callable[[int], Facts | None]:
  def of(index):
    # Every library has an exception of its own for what cannot be read.
    with contextlib.suppress(Exception):
      return of_image(source[index]["image"])
    return None

  return of


def _taken(image: Image.Image) -> datetime.datetime | None:
  """Returns the EXIF date of an open image, where it is one."""
  # Broken EXIF blocks raise whatever the parser trips over, and cameras write
  # "0000:00:00 00:00:00" where the clock was never set.
  with contextlib.suppress(Exception):
    exif = image.getexif()
    text = exif.get_ifd(_EXIF).get(_TAKEN) or exif.get(_CHANGED)
    return datetime.datetime.strptime(
      str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S"
    )
  return None


def _sharpness(luma: np.ndarray) -> float | None:
  """Returns the variance of the Laplacian, [h, w] -> one number."""
  if min(luma.shape) < 3:
    return None
  laplacian = (
    luma[1:-1, :-2]
    + luma[1:-1, 2:]
    + luma[:-2, 1:-1]
    + luma[2:, 1:-1]
    - 4 * luma[1:-1, 1:-1]
  )
  return float(laplacian.var())


def _columns(found: Sequence[Facts | None]) -> dict[str, pa.Array]:
  nothing = (None,) * len(Facts._fields)
  values = zip(*(facts or nothing for facts in found), strict=True)
  return {
    name: pa.array(column, _TYPES[name])
    for name, column in zip(Facts._fields, values, strict=True)
  }


def _stamps(source: Source) -> list[str] | None:
  """Returns what tells the files from others, where they are files.

  A key with size and time of change: another file of this name has another.
  """
  stamps = getattr(source, "stamps", None)
  if stamps is None or source.keys is None:
    return None
  both = [
    f"{key}\t{stamp}" for key, stamp in zip(source.keys, stamps(), strict=False)
  ]
  # A file that vanished just now has no stamp: the others' cannot be told.
  return both if len(both) == len(source) else None


def _read(path: pathlib.Path) -> dict[str, Facts]:
  """Returns stamp -> facts, nothing of a file that is none of ours."""
  with contextlib.suppress(OSError, pa.ArrowException, KeyError):
    table = pq.read_table(path)
    stamps = table["stamp"].to_pylist()
    rows = zip(*(table[n].to_pylist() for n in Facts._fields), strict=True)
    return {stamp: Facts(*row) for stamp, row in zip(stamps, rows, strict=True)}
  return {}


def _write(
  path: pathlib.Path, stamps: Sequence[str], columns: Mapping[str, pa.Array]
) -> None:
  """Writes what is known of these files."""
  rows = pa.table({"stamp": pa.array(stamps), **columns})
  rows = rows.filter(rows["width"].is_valid())
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole(path) as partial:
    pq.write_table(rows, partial)
