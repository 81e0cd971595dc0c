"""Eight CPU devices, checked shapes, and where the recordings are."""

import math
import os
import pathlib
import signal

import jax
import pytest
from jaxtyping import install_import_hook

from tests.recordings import load

# Before anything asks for a device.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of a test's time is compiling programs that run once: without most of
# the optimising, unless the test reads the program (marked `optimized`).
jax.config.update("jax_disable_most_optimizations", True)

# Started in the background, a shell has SIGINT ignored, and so would have the
# programs that are to be interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Signatures' array shapes are checked in tests, at no cost to users.
install_import_hook("odc_jax", "beartype.beartype")

GOLDEN = pathlib.Path(__file__).parent / "golden"

# Workers, programs and later invocations share what is compiled.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"

# Arrays of a recording that hold batches, and which of their axes is b.
_BATCHES = {"ind": 1, "idx": 1, "crops": 2}


def pytest_addoption(parser):
  parser.addoption(
    "--golden",
    type=pathlib.Path,
    default=GOLDEN,
    metavar="DIR",
    help="recordings of the official code to run the golden tests against",
  )
  parser.addoption(
    "--photographs",
    type=pathlib.Path,
    metavar="DIR",
    help="JPEGs for the tests marked slow to make an ImageNet of; without it "
    "they are cut out of scikit-learn's two",
  )


def pytest_generate_tests(metafunc):
  """Fills `golden_<name>` arguments with every DIR/<name>*.npz there is."""
  folder = metafunc.config.getoption("golden")
  for fixture in metafunc.fixturenames:
    if fixture.startswith("golden_"):
      files = sorted(folder.glob(fixture.removeprefix("golden_") + "*.npz"))
      # Another DIR may hold some recordings only; then the others are skipped.
      if not files and folder == GOLDEN:
        raise pytest.UsageError(
          f"no {fixture.removeprefix('golden_')}*.npz in {folder}"
        )
      metafunc.parametrize(fixture, files, ids=lambda file: file.stem)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Spreads the tests over the workers: a file at a time, the longest first.

  A worker left with a long file at the end would work alone. What is tested of
  every method is long, and is spread by methods, which share nothing.
  """
  long = ("methods_test", "run_", "deaths_", "step_")
  items.sort(key=lambda item: not item.path.name.startswith(long))
  for item in items:
    group = item.path.relative_to(item.config.rootpath).as_posix()
    if item.path.name == "methods_test.py":
      params = item.callspec.params if hasattr(item, "callspec") else {}
      group += str(params.get("finished", params.get("name", "")))
    item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
  """Keeps what is compiled in process where programs keep theirs."""
  from odc_jax.distributed import compiler

  compiler.keep_compiled({"ODC_JAX_CACHE": str(CACHE)})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Compiles as for a user where the compiled program is what is tested."""
  whole = item.get_closest_marker("optimized") is not None
  jax.config.update("jax_disable_most_optimizations", not whole)


@pytest.fixture(scope="session")
def environment():
  """Returns the environment of programs that tests start."""
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "ODC_JAX_CACHE": str(CACHE),
  }


def batch_sizes(trace):
  """Returns the sizes of a recording's batches, where it has any."""
  if "batch_sizes" in trace:
    return [int(size) for size in trace["batch_sizes"]]
  return [
    trace[name].shape[axis] for name, axis in _BATCHES.items() if name in trace
  ]


@pytest.fixture(params=[1, 8], ids=lambda n: f"{n}dev")
def mesh(request):
  """A context mesh over one device, then over eight.

  Over fewer, where a recording's batch cannot be split over eight.
  """
  from odc_jax import mesh as mesh_lib

  devices = request.param
  for name in request.fixturenames:
    if name.startswith("golden_"):
      devices = math.gcd(
        devices, *batch_sizes(load(request.getfixturevalue(name)))
      )
  mesh = mesh_lib.make_mesh(devices)
  with jax.set_mesh(mesh):
    yield mesh
