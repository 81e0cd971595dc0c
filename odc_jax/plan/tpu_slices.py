"""TPU slices that are not there, to compile for them ahead of time."""

import importlib.util
import os
import pathlib
from typing import Any

from odc_jax.errors import UserError

_EXAMPLES = "v5e:2x4, v5e:16x16, v4:4x4x4, v5p:4x4x8, v6e:8x8 or tpu7x:4x4x4"


def prepare_environment() -> None:
  """Lets libtpu compile where there is no TPU; to be called before JAX runs.

  JAX itself stays on the CPU, so that planning takes no device from a run.
  """
  os.environ.update(
    JAX_PLATFORMS="cpu",
    # A second plan, or a test beside it, may compile at the same time.
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    # Else libtpu asks a server of the cloud, and the log, what machine this is.
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
  )


def is_installed() -> bool:
  """Whether there is a libtpu to compile with."""
  path = os.environ.get("TPU_LIBRARY_PATH")
  if path:
    return pathlib.Path(path).is_file()
  return importlib.util.find_spec("libtpu") is not None


def devices(name: str) -> list[Any]:
  """Returns the descriptions of the devices of a slice.

  Args:
    name: Generation and shape, such as "v5e:16x16". Shapes are in chips; a
      chip before v4, and one of tpu7x, is two devices.

  Raises:
    UserError: If there is no such slice, or libtpu is not installed.
  """
  if not is_installed():
    raise UserError(
      f"--topology={name} needs libtpu, which is not installed: pip install "
      "-e '.[plan]', or TPU_LIBRARY_PATH=/path/to/libtpu.so"
    )
  # Late: both read the environment, and `prepare_environment` sets it.
  import jax
  from jax.experimental import topologies

  # As JAX has it on these chips: both cores are one device.
  options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
  try:
    found = topologies.get_topology_desc(name, platform="tpu", **options)
  except jax.errors.JaxRuntimeError as error:
    reason = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
    raise UserError(
      f"--topology={name}: {reason}; choose a TPU slice such as {_EXAMPLES}. "
      "GPUs have to be at hand: leave --topology out there"
    ) from error
  return list(found.devices)
