"""What an installation brings along: the command, configs, parts of pages."""

import fnmatch
import importlib
import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_command_is_a_function_that_is_there():
  module, _, name = PROJECT["project"]["scripts"]["odc"].partition(":")
  assert callable(getattr(importlib.import_module(module), name))


def test_every_file_of_the_package_is_installed():
  patterns = [
    f"{package.replace('.', '/')}/{pattern}"
    for package, own in PROJECT["tool"]["setuptools"]["package-data"].items()
    for pattern in own
  ]
  files = [
    path
    for path in (ROOT / "odc_jax").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  ]
  assert len(files) > 150
  for path in files:
    name = path.relative_to(ROOT).as_posix()
    if path.suffix == ".py":
      # Packages are found by this file.
      assert (path.parent / "__init__.py").exists(), name
    else:
      assert any(fnmatch.fnmatch(name, each) for each in patterns), name
  assert '"odc_jax.configs": "configs"' in (ROOT / "setup.py").read_text()
