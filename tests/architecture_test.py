"""The rules of the house, checked on the source itself."""

import ast
import functools
import pathlib
import re

import pytest

from odc_jax.methods import METHODS

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "odc_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def imports_of(path):
  """Returns the dotted names that a file imports, wherever it does."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names.add(node.module)
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def room_of(path):
  """odc_jax/evals/knn.py -> evals; odc_jax/memory.py -> memory."""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path):
  return {
    name.split(".")[1]
    for name in imports_of(path)
    if name.startswith("odc_jax.")
  }


# clustering, losses, labels <- memory <- methods <- passes <- training.
# A file with a row of its own stands where rooms meet: it may know more than
# the rest of its room.
ALLOWED = {
  "__init__": {"errors", "inference"},
  "errors": set(),
  "files": set(),
  "mesh": set(),
  "losses": set(),
  "labels": {"mesh"},
  "clustering": {"clustering", "mesh"},
  "memory": {"clustering", "labels", "mesh"},
  "config": {"config", "errors", "files"},
  "distributed": {"distributed", "errors", "mesh"},
  "methods": {
    "methods",
    "memory",
    "labels",
    "losses",
    "clustering",
    "config",
    "errors",
    "mesh",
  },
  "models": {"models", "errors"},
  "data": {"data", "errors", "files"},
  "data/capacity.py": {"data", "distributed", "errors", "mesh"},
  "data/feed.py": {"data", "mesh"},
  "data/resident.py": {"data", "distributed", "mesh"},
  "logs": {"config", "files", "logs"},
  "passes": {
    "clustering",
    "config",
    "data",
    "distributed",
    "files",
    "mesh",
    "passes",
  },
  "training": {
    "clustering",
    "config",
    "data",
    "distributed",
    "errors",
    "files",
    "mesh",
    "models",
    "training",
  },
  "training/recluster.py": {
    "config",
    "data",
    "distributed",
    "evals",
    "logs",
    "mesh",
    "methods",
    "passes",
    "training",
  },
  "training/setup.py": {
    "config",
    "data",
    "distributed",
    "errors",
    "evals",
    "interop",
    "logs",
    "methods",
    "passes",
    "results",
    "training",
  },
  "training/loop.py": {
    "config",
    "distributed",
    "errors",
    "evals",
    "logs",
    "mesh",
    "training",
  },
  "training/finish.py": {
    "distributed",
    "files",
    "logs",
    "passes",
    "report",
    "results",
    "training",
  },
  "evals": {
    "clustering",
    "config",
    "data",
    "distributed",
    "errors",
    "evals",
    "logs",
    "losses",
    "mesh",
    "models",
    "passes",
    "results",
  },
  "evals/evaluation.py": {
    "config",
    "data",
    "distributed",
    "errors",
    "evals",
    "mesh",
    "passes",
    "training",
  },
  "evals/evaluate.py": {
    "config",
    "data",
    "distributed",
    "errors",
    "evals",
    "files",
    "interop",
    "logs",
    "mesh",
    "methods",
    "training",
  },
  "results": {"errors", "files", "logs", "results"},
  "results/collect.py": {
    "clustering",
    "distributed",
    "files",
    "memory",
    "mesh",
    "passes",
    "results",
    "training",
  },
  "results/assign.py": {"errors", "files", "inference"},
  "inference": {
    "clustering",
    "config",
    "data",
    "errors",
    "logs",
    "mesh",
    "methods",
    "results",
    "training",
  },
  "interop": {
    "config",
    "data",
    "distributed",
    "errors",
    "files",
    "interop",
    "logs",
    "mesh",
    "methods",
    "models",
    "training",
  },
  "report": {
    "config",
    "data",
    "errors",
    "files",
    "logs",
    "report",
    "results",
  },
  "plan": {
    "config",
    "data",
    "errors",
    "evals",
    "interop",
    "mesh",
    "methods",
    "passes",
    "plan",
    "training",
  },
}


def row_of(path):
  """Returns the name of the row of ALLOWED that a file falls under."""
  own = str(path.relative_to(PACKAGE))
  return own if own in ALLOWED else room_of(path)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_imports_point_one_way(path):
  assert rooms_imported(path) <= ALLOWED[row_of(path)]


@pytest.mark.parametrize("row", ALLOWED)
def test_every_permission_to_import_is_used(row):
  used = [rooms_imported(path) for path in SOURCES if row_of(path) == row]
  assert ALLOWED[row] <= set().union(*used)


def test_the_hall_is_nearly_empty():
  assert len(list(PACKAGE.glob("*.py"))) <= 9


@pytest.mark.parametrize(
  ("library", "owners"),
  [
    ("orbax", "training"),
    ("flax", "models"),
    ("grain", "data"),
    ("PIL", "data"),
    ("tensorflow_datasets", "data"),
    ("tensorboardX", "logs"),
    ("clu", "training"),
    ("rich", "logs"),
    ("faiss", "results"),
    ("matplotlib", "report"),
    ("jinja2", "report, interop"),
    ("safetensors", "interop"),
    ("huggingface_hub", "interop"),
    ("torch", "interop"),
  ],
)
def test_a_library_is_known_to_few_rooms(library, owners):
  for path in SOURCES:
    if any(name.split(".")[0] == library for name in imports_of(path)):
      assert path.relative_to(PACKAGE).parts[0] in owners.split(", ")


def test_only_the_mesh_names_its_axis():
  for path in SOURCES:
    text = path.read_text()
    if path.name != "mesh.py" and "PartitionSpec" in text:
      raise AssertionError(f"{path} makes its own PartitionSpec")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", list((PACKAGE / "training").glob("*.py")))
def test_the_loop_knows_no_method_by_name(path, method):
  text = re.sub(r"odc_jax\.|\w+\.py", "", path.read_text())
  assert not re.search(rf"\b{method}\.", text)
  assert f'"{method}"' not in text
