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
def tree_of(path):
  return ast.parse(path.read_text())


@functools.cache
def imports_of(path):
  """Returns the dotted names that a file imports, wherever it does."""
  names = set()
  for node in ast.walk(tree_of(path)):
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
  "cli": {"config", "errors", "files"},
  # What the modes call.
  "cli/main.py": {
    "cli",
    "config",
    "distributed",
    "errors",
    "evals",
    "files",
    "inference",
    "interop",
    "methods",
    "plan",
    "report",
    "results",
    "training",
  },
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
  "training/assign.py": {
    "clustering",
    "distributed",
    "memory",
    "mesh",
    "passes",
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
  "training/extend.py": {
    "config",
    "data",
    "distributed",
    "errors",
    "files",
    "methods",
    "results",
    "training",
  },
  "training/setup.py": {
    "config",
    "data",
    "distributed",
    "errors",
    "evals",
    "files",
    "interop",
    "logs",
    "methods",
    "passes",
    "results",
    "training",
  },
  "training/workdir.py": {
    "config",
    "data",
    "distributed",
    "errors",
    "files",
    "interop",
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
    "config",
    "data",
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
    "files",
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
    "mesh",
    "passes",
    "results",
    "training",
  },
  "results/annotations.py": {"data", "errors", "files", "results"},
  "results/originals.py": {"config", "data", "errors", "results"},
  "results/sort.py": {"data", "errors", "logs", "results"},
  "results/assign.py": {"data", "errors", "files", "inference"},
  "inference": {
    "clustering",
    "config",
    "data",
    "errors",
    "files",
    "inference",
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


# Which rooms may import a library.
LIBRARIES = {
  "orbax": {"training"},
  "flax": {"models"},
  "grain": {"data"},
  "PIL": {"data"},
  "tensorflow_datasets": {"data"},
  "tensorboardX": {"logs"},
  "clu": {"training"},
  "rich": {"logs"},
  "faiss": {"results"},
  "matplotlib": {"report"},
  "jinja2": {"report", "interop"},
  "safetensors": {"interop"},
  "huggingface_hub": {"interop"},
  "torch": {"interop"},
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_known_to_few_rooms(library):
  users = {
    path.relative_to(PACKAGE).parts[0]
    for path in SOURCES
    if any(name.split(".")[0] == library for name in imports_of(path))
  }
  assert users == LIBRARIES[library]


def test_of_clu_only_what_needs_no_tensorflow_is_used():
  used = set().union(*(imports_of(path) for path in SOURCES))
  of_clu = {name for name in used if name.split(".")[0] == "clu"}
  assert of_clu == {"clu", "clu.parameter_overview"}


def test_only_the_mesh_names_its_axis():
  for path in SOURCES:
    text = path.read_text()
    if path.name != "mesh.py" and "PartitionSpec" in text:
      raise AssertionError(f"{path} makes its own PartitionSpec")


# Functions of more than 80 lines -> why they are not cut.
LONG_FUNCTIONS = {
  "odc_jax/clustering/sinkhorn.py optimal_transport": (
    "Sinkhorn's algorithm, in the order of the paper; a part of it would need "
    "nearly all of its variables as arguments"
  ),
  "configs/*.py get_config": "the list of an experiment's values",
}
READABLE = [
  ROOT / "run.py",
  *sorted((ROOT / "configs").rglob("*.py")),
  *SOURCES,
]


def named(path):
  return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", READABLE, ids=named)
def test_no_file_is_long(path):
  assert len(path.read_text().splitlines()) <= 450


def long_functions(path):
  """Returns "file function" of those of more than 80 lines, docstring and all.

  All files of configs/ count as one.
  """
  name = "configs/*.py" if path.parent.name == "configs" else named(path)
  return {
    f"{name} {node.name}"
    for node in ast.walk(tree_of(path))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    and node.end_lineno - node.lineno >= 80
  }


def test_no_function_is_long_but_those_that_are_named():
  found = set().union(*map(long_functions, READABLE))
  assert found == set(LONG_FUNCTIONS)


OUTSIDE_METHODS = [
  ROOT / "run.py",
  *(path for path in SOURCES if room_of(path) != "methods"),
]


def docstrings_of(tree):
  """Returns the nodes that are a docstring."""
  return {
    node.body[0].value
    for node in ast.walk(tree)
    if isinstance(
      node,
      ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
    )
    and node.body
    and isinstance(node.body[0], ast.Expr)
  }


def words_of(tree):
  """Yields every name and every string of a program but its docstrings."""
  docstrings = docstrings_of(tree)
  for node in ast.walk(tree):
    if isinstance(node, ast.Constant):
      if isinstance(node.value, str) and node not in docstrings:
        yield node.value
      continue
    for field in ("id", "attr", "arg", "name", "asname", "module"):
      if isinstance(value := getattr(node, field, None), str):
        yield value


@pytest.mark.parametrize("path", OUTSIDE_METHODS, ids=named)
def test_nothing_outside_its_room_names_a_method(path):
  # Of odc_jax, "odc" is no word: an underscore belongs to one.
  method = re.compile(rf"\b({'|'.join(METHODS)})\b")
  found = [word for word in words_of(tree_of(path)) if method.search(word)]
  assert not found


def test_names_of_methods_are_found_wherever_they_stand():
  tree = ast.parse(
    '"""As swav does."""\n'
    "from odc_jax.methods import coke as other\n"
    "def f(sela):\n"
    '  """As secu does."""\n'
    '  return config.odc.momentum, f"set --config.swav.queue={sela}"\n'
  )
  words = " ".join(words_of(tree))
  for method in ("coke", "odc", "sela", "swav"):
    assert re.search(rf"\b{method}\b", words)
  assert "does" not in words


# Not models/: an official code's files are named so too.
OUR_FILES = re.compile(
  r"(?<![\w/])((?:odc_jax|configs|benchmarks|tests|clustering|methods|passes"
  r"|training|evals|results|report|interop|distributed|plan)/[\w/]+\.py)\b"
)


@pytest.mark.parametrize(
  "page",
  [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))],
  ids=lambda page: page.name,
)
def test_files_that_a_page_names_exist(page):
  named = set(OUR_FILES.findall(page.read_text()))
  assert not [
    name
    for name in sorted(named)
    if not any((start / name).exists() for start in (ROOT, PACKAGE))
  ]
