"""How a process finds the others, and the devices.

JAX is imported late: a mistake in the flags shows at once.
"""

import importlib.util
import os
import pathlib
import sys
import threading
import time
from typing import NoReturn

from odc_jax.distributed import platforms, rendezvous
from odc_jax.distributed.launchers import Launch, find
from odc_jax.errors import UserError

# A process that is gone is noticed within this time; JAX's default is 100 s.
# Often nothing else notices it: with several devices a process, the CPU's
# collectives wait for a broken connection for ever. Heartbeats come from a
# thread of their own, which neither Python nor a long compilation holds up.
HEARTBEAT_SECONDS = 30

# JAX ends a process with a C++ stack trace when its own timeout passes; ours,
# which says what to do, has to pass before.
_LATER_SECONDS = 60

# How long process 0 stays after an error, see `leave`.
LINGER_SECONDS = 5.0


def start(
  *,
  platform: str = "auto",
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: float = 300.0,
) -> None:
  """Finds the other processes, starts JAX, and says what was found.

  Called once, before anything asks JAX for a device.

  Args:
    platform: auto, cpu, gpu or tpu. auto refuses the CPU where an accelerator
      is evidently there.
    coordinator: host:port of process 0, see `find`.
    num_processes: See `find`.
    process_id: See `find`.
    timeout: How long to wait for the other processes, in seconds.

  Raises:
    UserError: See `find`; and if the processes do not come together in time,
      or disagree on their number, or the platform is not available.
  """
  num_gpus = platforms.count_gpus(os.environ)
  launch = find(
    os.environ,
    coordinator=coordinator,
    num_processes=num_processes,
    process_id=process_id,
    num_gpus=num_gpus,
  )
  if launch.coordinator is not None:
    rendezvous.meet(launch, timeout)
  import jax

  from odc_jax.distributed import compiler, cores

  compiler.keep_compiled(os.environ)
  compiler.settle()
  cores.count_quietly()
  evidence = platforms.accelerator(os.environ)
  # AMD's integrated graphics have it too: no evidence, but a doubt.
  amd = pathlib.Path("/dev/kfd").exists()
  chosen = platforms.choose(
    platform,
    jax.config.jax_platforms,  # pyright: ignore
    evidence,
    num_gpus,
    libtpu=importlib.util.find_spec("libtpu") is not None and not amd,
  )
  if chosen is not None:
    jax.config.update("jax_platforms", chosen)
  _initialize(launch, timeout)
  platforms.check(platform, evidence)
  if jax.process_index() == 0:
    print(_summary(launch.found), flush=True)


def leave(status: int) -> NoReturn:
  """Ends this process after an error, without waiting for the others.

  An ordinary exit waits for them, for minutes if they wait for this one. They
  learn of it from a broken connection, or from missing heartbeats.
  """
  jax = sys.modules.get("jax")
  if jax is None or not jax.distributed.is_initialized():
    sys.exit(status)
  try:
    first = jax.process_index() == 0
  except Exception:  # no device, which may be what the error is about
    first = True
  # The coordinator goes with process 0, and JAX aborts the others at once when
  # it does: leave them the time to tell their own error.
  if first:
    time.sleep(LINGER_SECONDS)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _initialize(launch: Launch, timeout: float) -> None:
  """Connects the processes in JAX."""
  if launch.num_processes == 1:
    return
  import jax

  def give_up():
    print(
      f"error: the processes did not come together within {timeout:g} s; look "
      "for errors of the others, or wait longer with --start_timeout",
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)

  # Where JAX finds the processes, they did not meet before. Its own timeout
  # aborts without a word to the user.
  timer = threading.Timer(timeout, give_up)
  timer.daemon = True
  timer.start()
  left_to_jax = launch.num_processes is None
  # It would swallow SIGTERM from here on, and look at it every second; see
  # `processes.Stop`.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      launch.coordinator,
      launch.num_processes,
      launch.process_id,
      launch.local_device_ids,
      cluster_detection_method=None if left_to_jax else "deactivate",
      initialization_timeout=int(timeout) + _LATER_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except ValueError:
    # JAX raises this where it finds no cluster: one machine.
    if not left_to_jax:
      raise
  except Exception as error:
    # On a TPU machine outside Google Cloud nobody answers JAX's questions.
    raise UserError(
      f"JAX cannot find the other processes: {platforms.first_line(error)}; "
      "add --num_processes=1 to run alone, or give --coordinator, "
      "--num_processes and --process_id"
    ) from error
  finally:
    timer.cancel()


def _summary(found: str) -> str:
  """8 processes (SLURM) with 4 NVIDIA H200 each: 32 devices along data."""
  import jax

  from odc_jax import mesh as mesh_lib

  devices = jax.devices()
  kinds = sorted({device.device_kind for device in devices})
  kind = " or ".join("CPU" if kind == "cpu" else kind for kind in kinds)
  counts = [0] * jax.process_count()
  for device in devices:
    counts[device.process_index] += 1
  few, many = min(counts), max(counts)
  number = f"{few}" if few == many else f"{few} to {many}"
  if len(counts) == 1:
    who, each = "1 process (alone)", ""
  else:
    if found == "JAX":
      found = "TPU pod" if devices[0].platform == "tpu" else "Kubernetes"
    who, each = f"{len(counts)} processes ({found})", " each"
  plural = "s" if len(devices) > 1 else ""
  return (
    f"{who} with {number} {kind}{each}: "
    f"{len(devices)} device{plural} along {mesh_lib.AXIS}"
  )
