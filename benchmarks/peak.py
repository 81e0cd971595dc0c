"""What an accelerator could do at most, to hold a measured speed against."""

import jax

# Dense TFLOP/s of one JAX device in bfloat16 with float32 accumulation and,
# where the vendor gives one, in plain float32. GPUs: NVIDIA's data sheets of
# the SXM boards (H200, H100: half of what is printed there "with sparsity").
# TPUs: cloud.google.com/tpu/docs, a page for every version; a JAX device of v4
# and v5p is a whole chip.
TERAFLOPS = {
  "NVIDIA A100": {"bfloat16": 312, "float32": 19.5},
  "NVIDIA H100": {"bfloat16": 989, "float32": 67},
  "NVIDIA H200": {"bfloat16": 989, "float32": 67},
  "TPU v4": {"bfloat16": 275},
  "TPU v5 lite": {"bfloat16": 197},
  "TPU v5": {"bfloat16": 459},
  "TPU v6 lite": {"bfloat16": 918},
}


def of_devices(dtype: str, num_devices: int) -> float | None:
  """Returns the FLOP/s of so many devices together, None where not known.

  Args:
    dtype: "bfloat16" or "float32".
    num_devices: How many take part.
  """
  kind = jax.devices()[0].device_kind
  # The longest name that fits: "TPU v5" begins "TPU v5 lite" too.
  names = [name for name in TERAFLOPS if kind.startswith(name)]
  if not names:
    return None
  teraflops = TERAFLOPS[max(names, key=len)].get(dtype)
  return teraflops and teraflops * 1e12 * num_devices
