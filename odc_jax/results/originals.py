"""The images that a run was made of, as they are now."""

import os
import pathlib
from collections.abc import Sequence

import pyarrow.parquet as pq

from odc_jax.config import store
from odc_jax.data import sources, thumbnails
from odc_jax.data.decode import DecodeError
from odc_jax.errors import UserError
from odc_jax.results import groups, table


class Originals:
  """Finds images by the keys and numbers of a run's table.

  An image is one of the run's only while it has the key that it had: the data
  may have changed since.

  Attributes:
    folder: The folder that keys are below; None where images are no files.
  """

  def __init__(self, workdir: pathlib.Path):
    """Opens the data set of a run; no image is read.

    Args:
      workdir: Of a finished run.

    Raises:
      UserError: The data set cannot be opened, or no run has finished there.
    """
    data = store.read(workdir).data
    name = data.get("images", "") or data.source
    kind, _, _ = name.partition(":")
    if kind == "features":
      raise UserError(
        f"{workdir} was trained on features alone, and has no images"
      )
    # The config may have a path relative to where the run was started.
    schema = groups.read(workdir / "clusters.parquet", pq.read_schema)
    noted = (schema.metadata or {}).get(table.FOLDER.encode())
    if kind == "folder" and noted and os.path.isdir(os.fsdecode(noted)):
      name = f"folder:{os.fsdecode(noted)}"
    try:
      self._source = sources.make(name, data.split)
    except (UserError, OSError, ImportError) as error:
      raise UserError(
        f"the images of {workdir} cannot be opened: {error}"
      ) from error
    self.folder: str | None = getattr(self._source, "base", None)
    keys = self._source.keys
    self._numbers = None
    if keys is not None:
      self._numbers = {key: number for number, key in enumerate(keys)}

  def path(self, key: str) -> str | None:
    """Returns the absolute path of an image's file; None: it is gone.

    Args:
      key: Of the image.
    """
    paths: Sequence[str] | None = getattr(self._source, "paths", None)
    if paths is None or self.folder is None or self._numbers is None:
      return None
    number = self._numbers.get(key)
    if number is None:
      return None
    path = os.path.join(self.folder, paths[number])
    return path if os.path.isfile(path) else None

  def picture(self, key: str, index: int, side: int) -> bytes | None:
    """Returns a small picture, a WebP file; None: the image is gone or broken.

    Args:
      key: Of the image.
      index: Its number in the run.
      side: The longer one of the picture, in pixels.
    """
    if self._numbers is not None:
      index = self._numbers.get(key, -1)
    if index < 0:
      return None
    try:
      record = self._source[index]
      if record["key"] != key:
        return None
      return thumbnails.encode(record["image"], side)
    except (OSError, IndexError, DecodeError):
      return None
