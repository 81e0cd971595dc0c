"""Options of the compiler, where its own choice is the slower one."""

import functools
import os

import jax
from jax.sharding import Mesh

# XLA hands convolutions, matrix products and reductions on a CPU to YNN, a
# library. Reductions gain by that: XLA's own would cut them into small windows.
# Convolutions lose, forwards and backwards (docs/performance.md).
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
  """Returns what to give to `jax.jit` as `compiler_options`.

  Options go with a function here rather than into the variable XLA_FLAGS,
  which has to be set before JAX starts and ends the process where the
  installed jaxlib does not know a flag.

  Args:
    mesh: The devices to compile for, of which only the description need exist.

  Returns:
    For a CPU, those options that the installed jaxlib knows and that the user
    has not set in XLA_FLAGS. Else None.
  """
  if mesh.devices.flat[0].platform != "cpu":
    return None
  flags = os.environ.get("XLA_FLAGS", "")
  return {
    name: value
    for name, value in _CPU.items()
    if f"--{name}" not in flags and _known(name, value)
  } or None


@functools.cache
def _known(name: str, value: str) -> bool:
  """Returns whether a program compiles with the option."""
  shape = jax.ShapeDtypeStruct((), "float32")
  identity = jax.jit(lambda x: x, compiler_options={name: value})
  try:
    identity.trace(shape).lower(lowering_platforms=("cpu",)).compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def options_for_once(mesh: Mesh) -> dict[str, int] | None:
  """Returns `compiler_options` for what runs once, and so need not be fast.

  On a CPU the compiler takes two to three seconds for every array of normal
  draws, a fifth of that without optimising them; the draws are the same.

  Args:
    mesh: The devices to compile for.
  """
  if mesh.devices.flat[0].platform != "cpu":
    return None
  return {"xla_backend_optimization_level": 0}
