"""Where compiled programs are kept, and when they are not."""

import subprocess
import sys

import jax
import pytest

from odc_jax.distributed import compiler


@pytest.fixture
def no_cache_yet():
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("no_cache_yet")
def test_below_the_users_cache_apart_for_each_jaxlib_and_cpu(
  tmp_path, monkeypatch
):
  folder = compiler.keep_compiled({"XDG_CACHE_HOME": str(tmp_path)})
  assert folder is not None
  assert folder.parent == tmp_path / "odc_jax"
  assert jax.config.jax_compilation_cache_dir == str(folder)
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.setattr(compiler.platform, "machine", lambda: "another")
  other = compiler.keep_compiled({"XDG_CACHE_HOME": str(tmp_path)})
  assert other is not None
  assert other != folder


@pytest.mark.usefixtures("no_cache_yet")
def test_off_or_elsewhere(tmp_path):
  assert compiler.keep_compiled({"ODC_JAX_CACHE": "off"}) is None
  assert jax.config.jax_compilation_cache_dir is None
  folder = compiler.keep_compiled({"ODC_JAX_CACHE": str(tmp_path)})
  assert folder is not None
  assert folder.parent == tmp_path


@pytest.mark.usefixtures("no_cache_yet")
def test_jaxs_own_setting_goes_first(tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  assert compiler.keep_compiled({}) is None
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)


@pytest.mark.usefixtures("no_cache_yet")
def test_nowhere_to_write_is_no_matter(tmp_path, monkeypatch):
  file = tmp_path / "file"
  file.write_text("in the way")
  assert compiler.keep_compiled({"XDG_CACHE_HOME": str(file)}) is None

  def no_home():
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.setattr(compiler.pathlib.Path, "home", no_home)
  assert compiler.keep_compiled({}) is None


COMPILES = """
import os, jax
from odc_jax.distributed import compiler
folder = compiler.keep_compiled(os.environ)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8))))
"""


def test_an_entry_that_a_kill_cut_short_is_compiled_again(
  environment, tmp_path
):
  environment = {**environment, "ODC_JAX_CACHE": str(tmp_path / "cache")}

  def start():
    return subprocess.run(
      [sys.executable, "-c", COMPILES],
      cwd=tmp_path,
      env={**environment, "PYTHONPATH": ":".join(sys.path)},
      capture_output=True,
      text=True,
      check=True,
    )

  assert start().stdout.strip() == "512.0"
  entries = list((tmp_path / "cache").rglob("*-cache"))
  assert entries
  for entry in entries:
    entry.write_bytes(entry.read_bytes()[:100])
  again = start()
  assert again.stdout.strip() == "512.0"
  assert again.stderr == ""
