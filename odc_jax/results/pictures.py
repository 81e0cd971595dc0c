"""Small pictures in a run's table, for programs that show them."""

import concurrent.futures
import pathlib

import pyarrow as pa

from odc_jax.errors import UserError
from odc_jax.logs import progress
from odc_jax.results import groups, table
from odc_jax.results.originals import Originals

# The longer one in pixels: some 4 kB of a photograph.
SIDE = 128
_THREADS = 8


def add(workdir: pathlib.Path) -> str:
  """Puts the column `image` into `clusters.parquet`: `--thumbnails`.

  Args:
    workdir: Of a finished run.

  Returns:
    What was done, in a sentence.

  Raises:
    UserError: The images cannot be found, or no run has finished there.
  """
  originals = Originals(workdir)
  path = workdir / "clusters.parquet"
  made = lost = 0

  def picture(image: tuple[str, int]) -> bytes | None:
    key, index = image
    return originals.picture(key, index, SIDE)

  def pictures(rows: pa.Table):
    nonlocal made, lost
    images = zip(
      rows["key"].to_pylist(), rows["index"].to_pylist(), strict=True
    )
    found = list(pool.map(picture, images))
    made += sum(file is not None for file in found)
    lost += sum(file is None for file in found)
    advance(made + lost)
    return found

  num_images = groups.describe(workdir)["num_images"]
  with (
    progress.bar("making small pictures", num_images) as advance,
    concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
  ):
    groups.read(path, lambda path: table.set_images(path, pictures))
  if not made:
    raise UserError(
      f"none of the images of {workdir} is there under its name any more; put "
      "them back to have pictures of them"
    )
  said = f"{made:,} small pictures in {path}, column image"
  if lost:
    said += f"; {lost:,} images are gone or cannot be read"
  return said
