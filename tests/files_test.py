"""What two processes may not do at once, and homes that are not there."""

import pathlib
import subprocess
import sys

import pytest

from odc_jax import files


def test_another_process_is_kept_out_until_the_first_is_gone(tmp_path):
  path = tmp_path / ".lock"
  code = (
    "import sys, time; from odc_jax import files\n"
    f"with files.alone({str(path)!r}):\n"
    "  print('in', flush=True); time.sleep(600)"
  )
  other = subprocess.Popen(
    [sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    cwd=pathlib.Path(__file__).parents[1],
  )
  assert other.stdout is not None
  assert other.stdout.readline() == b"in\n"
  with pytest.raises(files.BusyError), files.alone(path):
    pass
  other.kill()  # as a machine goes down
  other.wait()
  with files.alone(path, timeout=30.0):
    pass
  other.stdout.close()
  with (
    pytest.raises(OSError, match=r"exists|directory"),
    files.alone(path / "lock"),
  ):
    pass


def test_where_there_is_no_home_a_tilde_stays(monkeypatch):
  assert files.expanded("~no-such-user/x") == pathlib.Path("~no-such-user/x")
  monkeypatch.setenv("HOME", "/somebody")
  assert files.expanded("~/x") == pathlib.Path("/somebody/x")
