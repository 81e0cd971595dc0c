"""Stopping on a signal, at the same step in every process."""

import collections
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from odc_jax import mesh as mesh_lib
from odc_jax.distributed.processes import to_devices

# Calls of `Stop.requested` between a signal and its answer, with several
# processes. The answer travels through the devices' queue: waiting for a later
# one would stall it.
_STOP_LAG = 2


class StoppedError(Exception):
  """A signal asked the program to end."""


class Stop:
  """Ends all processes at the same point when one of them gets a signal.

  SIGINT and SIGTERM are noted; a second one interrupts at once, as usual.
  """

  def __init__(self, mesh: Mesh):
    """Hears nothing until `listening`.

    Args:
      mesh: All devices; the processes talk through them.
    """
    self._mesh = mesh
    self._noted: int | None = None
    self._asked: collections.deque[Array] = collections.deque()
    self._before: dict[int, Any] = {}

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Encloses what the signals are not to interrupt."""

    def note(number, frame):
      del frame
      self._noted = number
      self._restore()
      print("saving; once more to stop at once", file=sys.stderr, flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, note)
    try:
      yield
    finally:
      self._restore()

  def listen_no_more(self) -> None:
    """From here on signals do what they did before."""
    self._restore()

  def requested(self) -> bool:
    """Returns whether to end here: the same in all processes.

    All have to call at the same points. With several processes the answer
    comes two calls after the signal.
    """
    if jax.process_count() == 1:
      return self._noted is not None
    noted = np.full(jax.local_device_count(), self._noted is not None)
    self._asked.append(_any(to_devices(noted, self._mesh)))
    return len(self._asked) > _STOP_LAG and bool(self._asked.popleft())

  def check(self) -> None:
    """Raises `StoppedError` where `requested` would return True."""
    if self.requested():
      raise StoppedError

  @property
  def exit_status(self) -> int:
    """The status with which a program ends that a signal stopped."""
    return 128 + (self._noted or signal.SIGTERM)

  def _restore(self):
    for number, handler in self._before.items():
      # A handler that was not set from Python cannot be restored.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._before = {}


@jax.jit
def _any(flags):
  return mesh_lib.replicate(jnp.any(flags))
