"""The one mesh axis, and the two ways in which an array lies on it.

Arrays that grow with the data set or the batch are split by rows; everything
else is replicated. All code runs inside `jax.set_mesh(make_mesh())`, so that
no function has to be handed the mesh.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
ROWS = PartitionSpec(AXIS)
REPLICATED = PartitionSpec()


def make_mesh(
  num_devices: int | None = None, devices: Sequence[Any] | None = None
) -> Mesh:
  """Returns a mesh of one axis over the first `num_devices` (default: all).

  Args:
    num_devices: How many.
    devices: Of these, which need not exist; default: those that are there.
  """
  # A process's devices side by side, so that its share of a batch is one range
  # of rows; jax.make_mesh may order them by how they are wired.
  devices = sorted(
    jax.devices() if devices is None else devices,
    key=lambda device: (device.process_index, device.id),
  )
  # Auto, and said so: on Explicit plain indexing of a sharded array raises.
  return Mesh(
    np.array(devices[:num_devices]), (AXIS,), axis_types=(AxisType.Auto,)
  )


def rows(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits the first axis over the devices."""
  return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that keeps a whole copy on every device."""
  return NamedSharding(mesh, REPLICATED)


def replicate(tree: Any) -> Any:
  """Inside `jit`: keeps a whole copy of every array on every device.

  For batch-sized arrays that are about to be added into a replicated one:
  without it the partitioner adds each device's share into a whole [K, D] array
  and all-reduces that.
  """
  return jax.lax.with_sharding_constraint(tree, REPLICATED)


def per_shard(f: Callable, in_specs: Any, out_specs: Any) -> Callable:
  """Maps `f` over the devices, each with its own rows (`jax.shard_map`).

  Inside, `jax.lax.psum(x, AXIS)` and its kin talk between the devices. For
  passes over a whole memory: the partitioner would gather it for a loop.
  """
  # check_vma off: argmax, nonzero and loops that start from constants do not
  # carry the "varies over the axis" type, and every output here is either
  # reduced with psum or declared row-sharded.
  mapped = jax.shard_map(
    f, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  # Called outside a program it would be compiled operation by operation.
  return jax.jit(mapped)


def divisible(size: int, mesh: Mesh) -> int:
  """Returns the next size of a batch that all devices share evenly."""
  return -(-size // mesh.size) * mesh.size


# Rows of a memory are padded to a multiple of this, whatever the number of
# devices, so that a checkpoint fits any of them (up to this many).
ROW_MULTIPLE = 1024


def padded_rows(num_examples: int) -> int:
  """Returns the rows of a memory for `num_examples` images."""
  return -(-num_examples // ROW_MULTIPLE) * ROW_MULTIPLE
