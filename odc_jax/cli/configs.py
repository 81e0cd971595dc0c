"""Finds the config that was asked for, and runs the file."""

import contextlib
import difflib
import importlib.util
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Iterator

import ml_collections
from ml_collections.config_flags import config_flags

import odc_jax
from odc_jax.config import Config
from odc_jax.errors import UserError
from odc_jax.files import expanded

# Under which they import each other, and a user's own imports them.
_PACKAGE = "configs"


def shipped() -> pathlib.Path:
  """Returns the folder of the configs that come with the package.

  In a wheel they are a part of it, in a clone they stand beside it.
  """
  package = pathlib.Path(odc_jax.__file__).parent
  inside = package / _PACKAGE
  return inside if inside.is_dir() else package.parent / _PACKAGE


def names() -> list[str]:
  """Returns the names of the shipped configs, in order."""
  return sorted(path.name for path in shipped().glob("[a-z]*_*.py"))


def find(name: str) -> pathlib.Path:
  """Returns the file of a config.

  Args:
    name: A path; or the name of a shipped config, alone or below `configs/`,
      where no file of the user's has that path.

  Raises:
    UserError: There is none.
  """
  path = expanded(name)
  if os.path.isfile(path):
    return path
  if os.path.dirname(name) in ("", _PACKAGE):
    for file in (shipped() / path.name, shipped() / f"{path.name}.py"):
      if os.path.isfile(file):
        return file
  similar = difflib.get_close_matches(path.name, names(), 1)
  raise UserError(
    f"there is no config {name}; "
    + (f"did you mean {similar[0]}? " if similar else "")
    + "--help names those that come along, and a path finds one's own"
  )


class Parser(config_flags.ConfigFileFlagParser):
  """From `FILE` or `FILE:VARIANT` to a locked config.

  In place of the library's, which takes an error in the user's file for one on
  the command line, or for a key that is missing.
  """

  def parse(self, path: str) -> Config:
    """Returns what `get_config` of the file returns.

    Raises:
      UserError: There is no such file, or it fails; names file and line.
    """
    name, *variant = path.split(":", 1)
    file = find(name)
    with _own_errors(file):
      module = _run(file)
      if not callable(getattr(module, "get_config", None)):
        raise UserError(
          f"{file} has no function get_config, which has to return the config"
        )
      config = module.get_config(*variant)
    if not isinstance(config, ml_collections.ConfigDict):
      found = "nothing" if config is None else f"a {type(config).__name__}"
      raise UserError(
        f"get_config of {file} returns {found}; it has to return an "
        "ml_collections.ConfigDict"
      )
    if isinstance(config, ml_collections.FrozenConfigDict):
      config = ml_collections.ConfigDict(config)  # pyright: ignore
    if not isinstance(config.get("method"), str):
      raise UserError(f"the config of {file} names no method")
    return config.lock()


def _run(file: pathlib.Path) -> types.ModuleType:
  """Runs a file as a module that may import the shipped configs."""
  if _PACKAGE not in sys.modules:
    folder = shipped()
    spec = importlib.util.spec_from_file_location(
      _PACKAGE,
      folder / "__init__.py",
      submodule_search_locations=[str(folder)],
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
  # Not by an importer: a config's name may lack the suffix, and what one
  # leaves in __pycache__ has no business in the user's folder.
  module = types.ModuleType("config_file")
  module.__file__ = str(file)
  code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
  exec(code, module.__dict__)
  return module


@contextlib.contextmanager
def _own_errors(file: pathlib.Path) -> Iterator[None]:
  """Says of what the user's code raises where it did."""
  try:
    yield
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    place = str(file)
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == str(file)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(file):
      lines = [error.lineno]
    if lines:
      place += f", line {lines[-1]}"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(f"{type(error).__name__}: {text}".split())
    raise UserError(f"the config fails: {place}: {text}") from error
