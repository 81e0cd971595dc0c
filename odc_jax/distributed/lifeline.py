"""One process's death ends all of them, at once and with one line."""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax

from odc_jax.distributed.processes import gather, is_first
from odc_jax.errors import UserError

# A process that cannot connect to the first one within this time runs without
# the connection.
_CONNECT_SECONDS = 10


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
