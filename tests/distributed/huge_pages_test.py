"""Programs that start themselves anew."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, pathlib, sys
from odc_jax.distributed import huge_pages
print("begin", os.getpid())
huge_pages.restart_with(pathlib.Path(sys.argv[1]))
print("end", os.getpid(), os.environ.get("GLIBC_TUNABLES"))
"""


@pytest.mark.parametrize(
  ("setting", "before", "begins", "after"),
  [
    ("always [madvise] never", None, 2, "glibc.malloc.hugetlb=1"),
    ("always [madvise] never", "a.b=2", 2, "a.b=2:glibc.malloc.hugetlb=1"),
    (
      "always [madvise] never",
      "glibc.malloc.hugetlb=0",
      1,
      "glibc.malloc.hugetlb=0",
    ),
    ("[always] madvise never", None, 1, "None"),
    ("always madvise [never]", None, 1, "None"),
    (None, None, 1, "None"),
  ],
)
def test_a_program_starts_anew_at_most_once(
  tmp_path, setting, before, begins, after
):
  enabled = tmp_path / "enabled"
  if setting is not None:
    enabled.write_text(setting + "\n")
  environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
  if before is not None:
    environment["GLIBC_TUNABLES"] = before
  process = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, str(enabled)],
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
  )
  out, _ = process.communicate(timeout=60)
  # The same process, so that whoever started it can still stop it.
  assert out.splitlines() == [f"begin {process.pid}"] * begins + [
    f"end {process.pid} {after}"
  ]
  assert process.returncode == 0
