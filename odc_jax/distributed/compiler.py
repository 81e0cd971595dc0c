"""The compiler: what it keeps, and options where its own choice is slower."""

import functools
import hashlib
import os
import pathlib
import platform
import warnings
from collections.abc import Mapping

import jax
import jaxlib.version
from jax.sharding import Mesh

# Programs that compile faster are not worth a file.
_LEAST_SECONDS = 0.1

# XLA hands convolutions, matrix products and reductions on a CPU to YNN, a
# library. Reductions gain by that: XLA's own would cut them into small windows.
# Convolutions lose, forwards and backwards (docs/performance.md).
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


# Settings of JAX that this program does not work with, and their defaults.
_SETTINGS = {
  "jax_enable_x64": False,
  "jax_disable_jit": False,
  "jax_numpy_dtype_promotion": "standard",
}


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
  draws, a fifth of that without optimising them. The draws differ by rounding:
  of a ResNet-18's 66 arrays in 23, there in at most a twentieth of the numbers,
  by at most 2.4e-7 of their size.

  Args:
    mesh: The devices to compile for.
  """
  if mesh.devices.flat[0].platform != "cpu":
    return None
  return {"xla_backend_optimization_level": 0}


def settle() -> None:
  """Sets back what the user's environment has set for programs of other kinds.

  Everything here is made for 32 bits, NumPy's rules of promotion and compiled
  steps. Says so where something was set.
  """
  for name, value in _SETTINGS.items():
    if getattr(jax.config, name) != value:
      jax.config.update(name, value)
      print(f"{name.upper()} is set; this program computes without it")


def keep_compiled(environ: Mapping[str, str]) -> pathlib.Path | None:
  """Keeps compiled programs on disk, for the next start to read.

  Args:
    environ: `ODC_JAX_CACHE` is a folder for them, or "off"; without it they
      are below the user's cache directory. JAX's own setting goes first.

  Returns:
    The folder; None if there is none that can be written to.
  """
  if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore
    return None
  given = environ.get("ODC_JAX_CACHE", "")
  if given == "off":
    return None
  try:
    base = pathlib.Path(given).expanduser() if given else _user_cache(environ)
    folder = base / _compiled_for()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # no home, or one that is read only
    return None
  if not os.access(folder, os.W_OK):
    return None
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS
  )
  # An entry that a kill cut short is not read but compiled again: no matter to
  # the user.
  warnings.filterwarnings("ignore", "Error (reading|writing) persistent comp")
  return folder


def _user_cache(environ: Mapping[str, str]) -> pathlib.Path:
  """Returns where this system keeps what programs can make again."""
  if xdg := environ.get("XDG_CACHE_HOME"):
    return pathlib.Path(xdg, "odc_jax")
  if platform.system() == "Darwin":
    return pathlib.Path.home() / "Library/Caches/odc_jax"
  return pathlib.Path.home() / ".cache/odc_jax"


def _compiled_for() -> str:
  """Returns a name that another jaxlib or another kind of CPU does not have."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  kinds = {
    line
    for line in lines
    if line.startswith(("flags", "model name", "Features"))
  }
  kinds |= {platform.machine(), platform.processor()}
  digest = hashlib.sha256("\n".join(sorted(kinds)).encode()).hexdigest()
  return f"jaxlib-{jaxlib.version.__version__}-{digest[:12]}"
