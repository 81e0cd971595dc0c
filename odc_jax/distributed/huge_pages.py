"""Memory in pages of 2 MB rather than 4 kB, where Linux leaves it to programs.

On a CPU, XLA asks anew for the half gigabyte of a step's intermediate results,
and gives it back, at every step. In small pages that is 135,000 page faults,
and a fifth of the step (docs/performance.md).
"""

import os
import pathlib
import sys

_LINUX = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def restart_with(enabled: pathlib.Path = _LINUX) -> None:
  """Starts the program anew, in its process, with glibc asking for huge pages.

  glibc reads its variable once, before Python's first line: hence anew. Does
  nothing where that is done, where the user has set this tunable, and where
  Linux gives huge pages to every program or to none.

  Args:
    enabled: Linux's setting.
  """
  tunables = os.environ.get(_VARIABLE, "")
  if _TUNABLE in tunables:
    return
  try:
    asked_for = "[madvise]" in enabled.read_text()
  except OSError:
    return
  if asked_for:
    os.environ[_VARIABLE] = f"{tunables}:{_TUNABLE}=1".lstrip(":")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
