"""Whether the images of a run fit onto its devices."""

import contextlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from odc_jax.data import decode
from odc_jax.data.source import Source
from odc_jax.distributed import processes
from odc_jax.errors import UserError
from odc_jax.mesh import padded_rows

# The greatest share of the devices' memory that images may take. Reading them
# takes as much again of the host's, which on a CPU is the same.
_SHARE = {"auto": 1 / 4, "images": 1 / 2}

# A crop is made of all of its image's pixels, weighted; with longer sides than
# so many times the crop's, nearly all of these weights are zero.
_MOST_TIMES = 4

# Images whose headers are looked at.
_SAMPLE = 64


class Choice(NamedTuple):
  """The place of a run's images: on the devices or on the host.

  Attributes:
    side: Of the squares that are kept for each on the devices; 0 where they
      stay with the host. It grows to `most` where an image needs it.
    most: Images with a longer side are made smaller.
    why: What to tell the user, in one line; "" where it is as asked for.
  """

  side: int
  most: int
  why: str


def decide(
  wanted: str, sources: Sequence[Source], image_size: int, mesh: Mesh
) -> Choice:
  """Decides whether the images of some data sets are to lie on the devices.

  Looks at the headers of a few images. All processes have to call.

  Args:
    wanted: `data.resident`; see `choose`.
    sources: the data sets.
    image_size: side of a crop, in pixels.
    mesh: the devices.

  Raises:
    UserError: as `choose`.
  """
  if wanted == "off":
    return Choice(0, 0, "")
  return choose(
    wanted,
    sum(len(source) for source in sources),
    max(longest_side(source) for source in sources),
    image_size,
    mesh.size,
    device_bytes(mesh),
  )


def choose(
  wanted: str,
  num_images: int,
  longest: int,
  image_size: int,
  num_devices: int,
  device_bytes: int | None,
) -> Choice:
  """Decides whether images are to lie on the devices.

  Args:
    wanted: `data.resident`. "auto": if they fit as they are, without being made
      smaller, into a quarter of the memory. "images": in any case, made smaller
      if that is what it takes.
    num_images: in the data set.
    longest: side of an image, in pixels, as far as is known; 0 if nothing is.
    image_size: side of a crop, in pixels.
    num_devices: that share them.
    device_bytes: memory of one device; None if it is not known.

  Raises:
    UserError: there is no such choice; or what is wanted cannot be.
  """
  if wanted not in _SHARE:
    raise UserError(
      f"unknown data.resident {wanted!r}; choose auto, images or off"
    )
  if device_bytes is None or not longest:
    what = "any image" if not longest else "the devices' memory"
    if wanted == "images":
      raise UserError(
        f"data.resident=images, but {what} is not to be known; take "
        "--config.data.resident=off"
      )
    return Choice(0, 0, f"data.resident = off: {what} is not to be known")
  # Whole pixels of three bytes.
  pixels = _SHARE[wanted] * device_bytes * num_devices / 3
  most = min(
    math.isqrt(int(pixels / padded_rows(num_images))), _MOST_TIMES * image_size
  )
  if most < longest and wanted == "auto":
    return Choice(
      0,
      0,
      f"data.resident = off: {num_images:,} images of up to {longest} pixels a "
      f"side are not kept on the {_devices(num_devices)} as they are; of up to "
      f"{most} they would",
    )
  if most < image_size and most < longest:
    raise UserError(
      f"data.resident=images, but the {_devices(num_devices)} can keep "
      f"{num_images:,} images of {most} pixels a side at most, fewer than "
      f"data.image_size={image_size}; take --config.data.resident=off"
    )
  side = min(longest, most)
  taken = 3 * side**2 * padded_rows(num_images) / num_devices
  smaller = f", made smaller from {longest}" if most < longest else ""
  where = f"each of {num_devices} devices" if num_devices > 1 else "the device"
  return Choice(
    side,
    most,
    f"data.resident = images: {num_images:,} of {side} x {side} pixels"
    f"{smaller}, {math.ceil(taken / 1e6):,} MB on {where}, "
    f"{max(taken / device_bytes, 0.001):.1%} of its memory",
  )


def _devices(count: int) -> str:
  return f"{count} devices" if count > 1 else "device"


def longest_side(source: Source) -> int:
  """Returns the greatest side of some images, in pixels.

  Reads the headers of a few, evenly spread over the data set.

  Returns:
    Pixels; 0 if none of them can be read.
  """
  longest = 0
  count = min(_SAMPLE, len(source))
  for i in np.linspace(0, len(source) - 1, count).astype(int).tolist():
    # A source raises what its library does; `loader.read_one` says more.
    with contextlib.suppress(Exception):
      longest = max(longest, *decode.upright_size(source[i]["image"]))
  return longest


def device_bytes(mesh: Mesh) -> int | None:
  """Returns the memory of one of the devices; None if it is not known.

  Devices of a CPU share the memory of their host, or what the system lets a
  container have of it. All processes have to call, and hear the least.
  """
  device = mesh.local_devices[0]
  if device.platform == "cpu":
    found = _host_bytes() // len(mesh.local_devices)
  else:
    found = (device.memory_stats() or {}).get("bytes_limit", 0)
  return min(processes.gather(found)) or None


def _host_bytes() -> int:
  try:
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, ValueError):
    return 0  # Windows
  for path in ("memory.max", "memory/memory.limit_in_bytes"):
    with contextlib.suppress(OSError, ValueError):  # none, or "max"
      limit = int(pathlib.Path("/sys/fs/cgroup", path).read_text())
      found = min(found, limit)
  return found
