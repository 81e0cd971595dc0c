"""CPU, GPU or TPU: what is there, what JAX is told, what it made of it."""

import contextlib
import itertools
import os
import pathlib
import re
from collections.abc import Mapping

from odc_jax.errors import UserError

_DEV = pathlib.Path("/dev")


def count_gpus(environ: Mapping[str, str], dev: pathlib.Path = _DEV) -> int:
  """Returns how many NVIDIA GPUs this process sees, without starting CUDA."""
  chosen = environ.get("CUDA_VISIBLE_DEVICES")
  if chosen is None:
    # A device that a container or SLURM keeps away has a file without access.
    files = dev.glob("nvidia[0-9]*")
    return sum(os.access(file, os.R_OK | os.W_OK) for file in files)
  # CUDA stops at the first that it does not know; SLURM writes NoDevFiles.
  known = itertools.takewhile(
    lambda name: name and name != "-1" and name != "NoDevFiles",
    (name.strip() for name in chosen.split(",")),
  )
  return len(list(known))


def accelerator(
  environ: Mapping[str, str],
  dev: pathlib.Path = _DEV,
  sys_bus: pathlib.Path = pathlib.Path("/sys/bus"),
) -> str | None:
  """Names what shows that there is a GPU or a TPU here; None if nothing does.

  WSL's /dev/dxg and a bare /dev/vfio/vfio show nothing: laptops have them.
  """
  # TPUs up to v5e have files of their own, later ones are generic devices of
  # Google's. Intel's /dev/accel/accel0 is something else.
  for file in dev.glob("accel[0-9]*"):
    return str(file)
  for file in dev.glob("vfio/[0-9]*"):
    for vendor in sys_bus.glob("pci/devices/*/vendor"):
      with contextlib.suppress(OSError):
        if vendor.read_text().strip() == "0x1ae0":
          return str(file)
  chosen = environ.get("CUDA_VISIBLE_DEVICES")
  if count_gpus(environ, dev):
    return f"CUDA_VISIBLE_DEVICES={chosen}" if chosen else f"{dev}/nvidia*"
  if chosen is None:
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"):
      if environ.get(name, "0") not in ("", "0"):
        return f"{name}={environ[name]}"
      # A step without GPUs, in a job that has some.
      if name in environ:
        break
  return None


def choose(
  platform: str,
  configured: str | None,
  evidence: str | None,
  num_gpus: int,
  libtpu: bool,
) -> str | None:
  """Chooses JAX's `jax_platforms`.

  Args:
    platform: The flag: auto, cpu, gpu or tpu.
    configured: What JAX_PLATFORMS, or JAX itself on a TPU machine, has set.
    evidence: As `accelerator` returns it.
    num_gpus: As `count_gpus` returns it.
    libtpu: Whether libtpu is installed, and no other accelerator's driver.

  Returns:
    The new value, or None to leave it.
  """
  if platform == "cpu":
    return "cpu"
  if platform == "tpu":
    return "tpu,cpu"
  if platform == "gpu":
    other = configured and set(configured.split(",")) & {"gpu", "rocm", "cuda"}
    return configured if other else "cuda,cpu"
  # Where there is no TPU, libtpu (installed to plan for one) looks for it all
  # the same and says so in ten lines.
  if not configured and libtpu:
    if evidence is None:
      return "cpu"
    if num_gpus:
      return "cuda,cpu"
  return None


_REMEDIES = {
  "gpu": 'pip install -e ".[cuda]", and see that nvidia-smi shows a GPU',
  "tpu": 'pip install -e ".[tpu]", and end whatever else uses the TPU',
}


def check(platform: str, evidence: str | None) -> None:
  """Refuses a backend that the user does not want."""
  import jax

  configured = jax.config.jax_platforms or ""  # pyright: ignore
  first = configured.split(",")[0]
  wanted = {"cuda": "gpu", "rocm": "gpu"}.get(first, first)
  if platform != "auto":
    wanted = platform
  remedy = _REMEDIES.get(wanted, "unset JAX_PLATFORMS")
  if platform == "auto":
    remedy += "; add --platform=cpu if the CPU is meant"
  try:
    backend = jax.default_backend()
  # An AssertionError is what JAX_PLATFORMS=cuda without a GPU leads to.
  except (RuntimeError, AssertionError) as error:
    raise UserError(
      f"JAX cannot start on {wanted or 'any device'}: "
      f"{first_line(error) or 'there is none'}; {remedy}"
    ) from error
  if wanted and backend != wanted:
    raise UserError(
      f"JAX should run on {wanted}, but it runs on {backend}; {remedy}"
    )
  if not wanted and backend == "cpu" and evidence is not None:
    raise UserError(
      f"JAX runs on the CPU, although there is {evidence}; "
      'pip install -e ".[cuda]" (or ".[tpu]"); add --platform=cpu if the CPU '
      "is meant"
    )


def first_line(error: BaseException) -> str:
  """Returns an exception's first line without JAX's own advice."""
  lines = str(error).strip().splitlines() or [""]
  return re.sub(r" \((set JAX_PLATFORMS|you may need).*", "", lines[0])[:300]
