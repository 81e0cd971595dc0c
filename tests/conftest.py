"""Eight CPU devices, checked shapes, and where the recordings are."""

import math
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest
from jaxtyping import install_import_hook
from xdist.scheduler import LoadFileScheduling

from tests.recordings import load

# Before anything asks for a device.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of a test's time is compiling programs that run once: without most of
# the optimising, unless the test reads the program (marked `optimized`).
jax.config.update("jax_disable_most_optimizations", True)

# Half the processor time that compiling takes otherwise, for programs that are
# some 15 % slower.
COMPILE_FAST = (
  "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def set_compiler_flags():
  """Sets XLA_FLAGS for this process and its workers.

  A jaxlib ends the process at a flag that it does not know (0.12 has the first
  no more), so that another process tries. Flags that are set are left.
  """
  if "XLA_FLAGS" in os.environ:
    return
  tried = subprocess.run(
    [
      sys.executable,
      "-c",
      "from jaxlib import xla_client as xla; xla.make_cpu_client()",
    ],
    env={**os.environ, "XLA_FLAGS": COMPILE_FAST},
    capture_output=True,
  )
  os.environ["XLA_FLAGS"] = COMPILE_FAST if tried.returncode == 0 else ""


set_compiler_flags()

# Started in the background, a shell has SIGINT ignored, and so would have the
# programs that are to be interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Signatures' array shapes are checked in tests, at no cost to users.
install_import_hook("odc_jax", "beartype.beartype")

GOLDEN = pathlib.Path(__file__).parent / "golden"

# Workers, programs and later invocations share what is compiled.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"

# Arrays of a recording that hold batches, and which of their axes is b.
_BATCHES = {"ind": 1, "idx": 1, "index": 1, "crops": 2}


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
      # `-k golden` is to find every test that follows a recording.
      metafunc.parametrize(
        fixture, files, ids=lambda file: f"golden-{file.stem}"
      )


class ByFile(LoadFileScheduling):
  """Gives a worker a file at a time.

  Except for what is tested of every method, which is long: that goes by
  methods, which share nothing.
  """

  def _split_scope(self, nodeid):
    path = super()._split_scope(nodeid)
    if path.endswith("methods_test.py"):
      return path + nodeid.partition("[")[2]
    return path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Returns the scheduler of `pytest -n 2`."""
  return ByFile(config, log)


def pytest_collection_modifyitems(items):
  """Puts the longest files first.

  A worker left with one at the end would work alone.
  """
  long = ("methods_test", "run_", "deaths_", "step_")
  items.sort(key=lambda item: not item.path.name.startswith(long))


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
  """Returns the environment of programs that tests start.

  They are compiled as for a user: without the emitters, a process that waits
  for one that has died is aborted by XLA before it can say so.
  """
  mine = dict(os.environ)
  if mine.get("XLA_FLAGS") == COMPILE_FAST:
    del mine["XLA_FLAGS"]
  return {
    **mine,
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
