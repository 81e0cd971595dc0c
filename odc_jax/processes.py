"""Several processes that run one program: they talk, stop and fall together.

With one process all of it costs nothing and does what one would expect.
"""

import collections
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array

from odc_jax import mesh as mesh_lib
from odc_jax.errors import UserError

# Calls of `Stop.requested` between a signal and its answer, with several
# processes. The answer travels through the devices' queue: waiting for a later
# one would stall it.
_STOP_LAG = 2

# A port of the first process that another cannot reach is done without.
_CONNECT_SECONDS = 10


def is_first() -> bool:
  """Returns whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints a line, in the first process."""
  if is_first():
    print(text, flush=True)


def warn(text: str) -> None:
  """Prints a line on standard error, in the first process."""
  if is_first():
    print(text, file=sys.stderr, flush=True)


def gather(value: Any) -> list[Any]:
  """Returns what every process gave, in their order.

  Args:
    value: Anything that JSON can hold. All processes have to call.
  """
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  padded = np.zeros(max(sizes), np.uint8)
  padded[: data.size] = data
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(
      multihost_utils.process_allgather(padded), sizes, strict=True
    )
  ]


def to_host(array: Array) -> np.ndarray:
  """Returns a whole array, wherever its rows lie, on every host.

  For what is reported: with several processes all of it travels to each of
  them, and for a moment to each of their devices.
  """
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def to_devices(tree: Any, mesh: Mesh) -> Any:
  """Puts each process's rows of a batch onto its devices.

  Args:
    tree: Host arrays [b / processes, ...], whose rows follow those of the
      processes before.
    mesh: All devices.

  Returns:
    Arrays [b, ...], rows split over the devices.
  """
  rows = mesh_lib.rows(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, rows)
  return jax.tree.map(
    lambda local: jax.make_array_from_process_local_data(rows, local), tree
  )


def check_equal(facts: dict[str, Any]) -> None:
  """Compares what every process believes to run.

  Args:
    facts: What it is -> its value. All processes have to call.

  Raises:
    UserError: In all of them, if one differs from the first.
  """
  theirs = gather(facts)
  for index, other in enumerate(theirs):
    for what, value in other.items():
      if value != theirs[0].get(what):
        raise UserError(
          f"process {index} has {what} {value}, process 0 has "
          f"{theirs[0].get(what)}: start all with the same command, the same "
          "code and the same data, in a --workdir that all of them share"
        )


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
    """What a shell expects of a program that a signal ended."""
    return 128 + (self._noted or signal.SIGTERM)

  def _restore(self):
    for number, handler in self._before.items():
      # What is not Python's cannot be put back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._before = {}


@jax.jit
def _any(flags):
  return mesh_lib.replicate(jnp.any(flags))


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Encloses a program, so that no process waits for one that has ended.

  A process that dies is missed at once, not after minutes in a collective
  operation; one that fails tells the others why. Every process holds a
  connection to the first; where it closes without a farewell, all end.

  The loss of a whole host without a word is left to JAX's heartbeat.
  """
  if jax.process_count() == 1:
    yield
    return
  lifeline = _Lifeline()
  try:
    yield
    lifeline.farewell(0, "")
  except SystemExit:
    # After a signal: all of them end, in good order.
    lifeline.farewell(0, "")
    raise
  except BaseException as error:
    if isinstance(error, jax.errors.JaxRuntimeError):
      # Collective operations may fail because a process has died; that is
      # known in a moment, and then it is said there.
      time.sleep(_CONNECT_SECONDS / 2)
    statuses = {UserError: 2, KeyboardInterrupt: 130}
    status = statuses.get(type(error), 1)
    # Before the others hear of it: their answer ends this process.
    if isinstance(error, UserError):
      print(f"error: {error}", file=sys.stderr, flush=True)
    else:
      traceback.print_exc()
    text = str(error) or type(error).__name__
    lifeline.farewell(status, text.splitlines()[0])
    # Not the usual exit: there JAX would wait for the others.
    _end_now(status)


class _Lifeline:
  """Connections between the first process and each of the others.

  A line of JSON says that a process ends: {"process", "status", "text"}.
  """

  def __init__(self):
    self._peers: list[socket.socket] = []
    self._ended: set[int] = set()
    self._lock = threading.Lock()
    count, index = jax.process_count(), jax.process_index()
    server = None
    if index == 0:
      server = socket.create_server(("", 0), backlog=count)
    found = None
    if server is not None:
      port = server.getsockname()[1]
      found = _own_addresses(), port, secrets.token_hex()
    hosts, port, token = gather(found)[0]
    if server is not None:
      server.settimeout(_CONNECT_SECONDS)
      with server, contextlib.suppress(TimeoutError):
        while len(self._peers) < count - 1:
          self._accept(server.accept()[0], token)
    else:
      self._connect(hosts, port, token, index)

  def farewell(self, status: int, text: str) -> None:
    """Tells that this process ends, and why if it should not."""
    self._tell(jax.process_index(), status, text)

  def _accept(self, peer, token):
    # A stranger's connection is none of ours.
    peer.settimeout(_CONNECT_SECONDS)
    with contextlib.suppress(OSError, ValueError):
      lines = peer.makefile("r")
      said, index = lines.readline().split()
      if said == token:
        self._add(peer, lines, int(index))

  def _connect(self, hosts, port, token, index):
    for host in hosts:
      with contextlib.suppress(OSError):
        peer = socket.create_connection((host, port), _CONNECT_SECONDS / 4)
        peer.sendall(f"{token} {index}\n".encode())
        return self._add(peer, peer.makefile("r"), 0)

  def _add(self, peer, lines, process):
    peer.settimeout(None)
    self._peers.append(peer)
    threading.Thread(
      target=self._listen, args=(lines, process), daemon=True
    ).start()

  def _tell(self, process, status, text):
    line = json.dumps({"process": process, "status": status, "text": text})
    with self._lock:
      for peer in self._peers:
        with contextlib.suppress(OSError):
          peer.sendall(line.encode() + b"\n")

  def _listen(self, lines, process):
    """Hears what is said at the other end, until it closes."""
    with contextlib.suppress(OSError):
      for line in lines:
        message = json.loads(line)
        self._ended.add(message["process"])
        if message["text"]:  # else it ended as it should
          self._fall(**message)
    if process not in self._ended:
      text = f"process {process} has died; the same command goes on"
      self._fall(process, 1, text)

  def _fall(self, process, status, text):
    """Ends this process because of another one."""
    if is_first():
      self._tell(process, status, text)
    if is_first() or process == 0:
      about = "" if text.startswith("process ") else f"process {process}: "
      print(f"error: {about}{text}", file=sys.stderr)
    # The main thread may wait for that process in a collective operation.
    _end_now(status)


def _own_addresses() -> list[str]:
  """Returns the addresses under which other hosts may reach this one."""
  addresses = []
  with (
    contextlib.suppress(OSError),
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
  ):
    # Sends nothing; the system chooses the interface that leads outside.
    probe.connect(("10.255.255.255", 1))
    addresses.append(probe.getsockname()[0])
  with contextlib.suppress(OSError):
    addresses += socket.gethostbyname_ex(socket.gethostname())[2]
  return [*addresses, "127.0.0.1"]


def _end_now(status: int) -> NoReturn:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
