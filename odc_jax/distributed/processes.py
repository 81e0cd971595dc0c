"""Several processes that run one program: they talk, stop and fall together.

With one process all of it costs nothing and does what one would expect.
"""

import json
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array

from odc_jax import mesh as mesh_lib
from odc_jax.errors import UserError


def is_first() -> bool:
  """Returns whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints a line, in the first process."""
  if is_first():
    print(text, flush=True)


def warn(text: str) -> None:
  """Prints a line on standard error, in the first process."""
  if is_first():
    print(text, file=sys.stderr, flush=True)


def gather(value: Any) -> list[Any]:
  """Returns what every process gave, in their order.

  Args:
    value: Anything that JSON can hold. All processes have to call.
  """
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  padded = np.zeros(max(sizes), np.uint8)
  padded[: data.size] = data
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(
      multihost_utils.process_allgather(padded), sizes, strict=True
    )
  ]


def to_host(array: Array) -> np.ndarray:
  """Returns a whole array, wherever its rows lie, on every host.

  For what is reported: with several processes all of it travels to each of
  them, and for a moment to each of their devices.
  """
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def to_devices(tree: Any, mesh: Mesh) -> Any:
  """Puts each process's rows of a batch onto its devices.

  Args:
    tree: Host arrays [b / processes, ...], whose rows follow those of the
      processes before. Arrays that lie on the devices already stay there.
    mesh: All devices.

  Returns:
    Arrays [b, ...], rows split over the devices.
  """
  rows = mesh_lib.rows(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, rows)

  def place(local):
    if isinstance(local, jax.Array):
      return local
    return jax.make_array_from_process_local_data(rows, local)

  return jax.tree.map(place, tree)


def check_equal(facts: dict[str, Any]) -> None:
  """Compares what every process believes to run.

  Args:
    facts: What it is -> its value. All processes have to call.

  Raises:
    UserError: In all of them, if one differs from the first.
  """
  theirs = gather(facts)
  for index, other in enumerate(theirs):
    for what, value in other.items():
      if value != theirs[0].get(what):
        raise UserError(
          f"process {index} has {what} {value}, process 0 has "
          f"{theirs[0].get(what)}: start all with the same command, the same "
          "code and the same data, in a --workdir that all of them share"
        )
