"""Signals that fall into a callback of the garbage collector."""

import subprocess
import sys

import pytest

from tests.program import ROOT

PROGRAM = """
import gc, os, signal, sys, time
from odc_jax.distributed import interrupts

interrupts.never_lose()
number = signal.Signals(int(sys.argv[1]))
if number == signal.SIGTERM:
  signal.signal(number, lambda number, frame: sys.exit(128 + number))
else:
  signal.signal(number, signal.default_int_handler)

def callback(phase, info):
  gc.callbacks.clear()
  os.kill(os.getpid(), number)
  for _ in range(1000):
    pass
  print("not reached")

gc.callbacks.append(callback)
gc.collect()
print("goes on", flush=True)
try:
  time.sleep(20)
except KeyboardInterrupt:
  sys.exit(130)
print("lost")
"""


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143)])
def test_a_signal_in_a_callback_ends_the_program(number, status):
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(number)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout == "goes on\n"
  assert result.returncode == status
  assert result.stderr == ""


def test_what_else_cannot_be_raised_is_still_told():
  code = """
from odc_jax.distributed import interrupts
interrupts.never_lose()

class Thing:
  def __del__(self):
    raise ValueError("told")

Thing()
"""
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert "ValueError: told" in result.stderr
