"""Options reach the compiler, and never end the process."""

import jax
import jax.numpy as jnp
import joblib
import numpy as np
import pytest
from jax.sharding import Mesh

from odc_jax import mesh as mesh_lib
from odc_jax.distributed import compiler, cores

pytestmark = pytest.mark.optimized

YNN = "xla_cpu_experimental_ynn_fusion_type"


def test_on_a_cpu_convolutions_are_xlas_own(monkeypatch):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  options = compiler.compiler_options(mesh_lib.make_mesh(1))
  assert options == {YNN: "LIBRARY_FUSION_TYPE_REDUCE"}

  def blur(images, kernel):
    maps = jax.lax.conv_general_dilated(
      images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum(jnp.square(maps), axis=(0, 1, 2))

  program = (
    jax.jit(blur, compiler_options=options)
    .lower(jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32)))
    .compile()
    .as_text()
  )
  assert " convolution(" in program
  assert "__ynn_fusion" in program  # the sum


def test_what_the_user_has_set_stays(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_hlo_as_text --{YNN}=")
  assert compiler.compiler_options(mesh_lib.make_mesh(1)) is None


def test_what_this_jaxlib_does_not_know_is_left_out(monkeypatch):
  monkeypatch.setitem(compiler._CPU, "xla_cpu_no_such_option", "1")
  options = compiler.compiler_options(mesh_lib.make_mesh(1))
  assert options is not None
  assert "xla_cpu_no_such_option" not in options


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_devices_keep_theirs(platform):
  class Device:
    """One that is not there."""

  device = Device()
  device.platform = platform
  mesh = Mesh(np.array([device]), (mesh_lib.AXIS,))
  assert compiler.compiler_options(mesh) is None


def test_draws_are_the_same_without_optimisation():
  mesh = mesh_lib.make_mesh(1)

  def draw(key):
    return 0.01 * jax.random.normal(key, (64, 10))

  once = jax.jit(draw, compiler_options=compiler.options_for_once(mesh))
  key = jax.random.key(3)
  np.testing.assert_allclose(once(key), jax.jit(draw)(key), rtol=1e-5)


def test_what_is_set_for_programs_of_other_kinds_is_set_back(capsys):
  compiler.settle()
  capsys.readouterr()
  jax.config.update("jax_enable_x64", True)
  compiler.settle()
  assert not jax.config.jax_enable_x64
  assert "JAX_ENABLE_X64 is set" in capsys.readouterr().out
  compiler.settle()
  assert capsys.readouterr().out == ""


def test_cores_that_cannot_be_counted_leave_no_trace(
  monkeypatch, capfd, tmp_path
):
  context = joblib.externals.loky.backend.context
  monkeypatch.setattr(context, "physical_cores_cache", None)
  monkeypatch.setenv("PATH", str(tmp_path))  # neither lscpu nor cat
  cores.count_quietly()
  assert joblib.cpu_count(only_physical_cores=True) >= 1
  assert capfd.readouterr().err == ""
