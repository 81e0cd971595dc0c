"""Memory and peak arithmetic of accelerators."""

from typing import Any

import jax

from odc_jax.plan.table import GIB

# The HBM of a device that libtpu 0.0.42 lets a program take, in GiB, as its
# message says when one takes more, and the device's bfloat16 operations in a
# second, as the data sheets give them. A chip of v2, v3 and tpu7x is two
# devices.
_TPUS = {
  "TPU v2": (7.48, 22.5e12),
  "TPU v3": (15.48, 61.5e12),
  "TPU v4": (30.75, 275e12),
  "TPU v5 lite": (15.75, 197e12),
  "TPU v5": (95.74, 459e12),
  "TPU v6 lite": (31.25, 918e12),
  "TPU7x": (94.75, 1153.5e12),
}


def device_limits(
  device: Any,
) -> tuple[int | float | None, str, float | None]:
  """Returns bytes that a program may take, where from, and peak FLOP/s.

  None for what is not known.
  """
  table = _TPUS.get(device.device_kind)
  try:
    stats = device.memory_stats() or {}
  except jax.errors.JaxRuntimeError:
    stats = {}  # a device that is not there
  peak = table[1] if table else None
  if "bytes_limit" in stats:
    return stats["bytes_limit"], "says the device", peak
  if table:
    return table[0] * GIB, "from a table", peak
  return None, "not known", peak
