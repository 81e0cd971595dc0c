"""All processes come together once before JAX starts.

JAX ends a process that cannot reach the others with a C++ stack trace, cannot
tell which one is missing, and accepts a process that was started with another
number of processes.
So they meet here first, at the address that JAX then uses.
"""

import contextlib
import re
import socket
import time

from odc_jax.distributed.launchers import Launch, split_address
from odc_jax.errors import UserError

# After a mistake is found, processes that are late are still told.
LINGER_SECONDS = 5.0

# The messages. A server that answers otherwise is another program.
_HELLO = "odc_jax: one of {} processes, number {}"
_VERDICT = "odc_jax says: "


def meet(launch: Launch, timeout: float) -> None:
  """Waits for all processes and checks that they agree on their number.

  Args:
    launch: With `num_processes`, `process_id` and `coordinator`.
    timeout: In seconds.

  Raises:
    UserError: In every process, when they do not come together.
  """
  assert launch.num_processes is not None
  assert launch.coordinator is not None
  host, port = split_address(launch.coordinator, "coordinator")
  if launch.process_id == 0:
    verdict = _receive(launch.num_processes, port, timeout)
  else:
    verdict = _report(launch, host, port, timeout)
  if verdict != "ok":
    raise UserError(verdict)


def _receive(num_processes: int, port: int, timeout: float) -> str:
  """In process 0: hears all the others, tells them the verdict, returns it."""
  missing = set(range(1, num_processes))
  mistake = ""
  deadline = time.monotonic() + timeout
  with contextlib.ExitStack() as stack:
    try:
      server = stack.enter_context(_listen(port, num_processes))
    except OSError as error:
      return (
        f"process 0 cannot listen on port {port} of this machine: "
        f"{error.strerror}; choose another one with --coordinator=HOST:PORT or "
        "JAX_COORDINATOR_PORT"
      )
    heard = []
    # A mistake is told to all who come, so that nobody waits in vain.
    while (missing or mistake) and (left := deadline - time.monotonic()) > 0:
      server.settimeout(left)
      try:
        connection, _ = server.accept()
        stack.enter_context(connection)
        connection.settimeout(1.0)
        words = re.fullmatch(
          _HELLO.format(r"(\d+)", r"(\d+)"), _read(connection)
        )
      except OSError:  # also a timeout, of either
        continue
      if words is None:
        continue  # a port scan, say
      heard.append(connection)
      number, process_id = int(words[1]), int(words[2])
      if number != num_processes:
        mistake = (
          f"the processes disagree: {num_processes} according to process 0, "
          f"{number} according to process {process_id}; give every one the "
          "same --num_processes"
        )
      elif process_id not in missing:
        mistake = (
          f"two processes say that they are process {process_id}; give each "
          "its own --process_id"
        )
      missing.discard(process_id)
      if mistake:
        deadline = min(deadline, time.monotonic() + LINGER_SECONDS)
    if missing and not mistake:
      names = ", ".join(map(str, sorted(missing)[:8]))
      more = ", ..." if len(missing) > 8 else ""
      mistake = (
        f"{len(missing)} of {num_processes} processes (number {names}{more}) "
        f"did not come within {timeout:g} s; start them too, see that they "
        f"reach port {port} of this machine, or raise --start_timeout"
      )
    verdict = mistake or "ok"
    for connection in heard:
      with contextlib.suppress(OSError):
        connection.sendall(f"{_VERDICT}{verdict}\n".encode())
        # The other end closes first: this one would keep the port busy.
        connection.recv(1)
  return verdict


def _report(launch: Launch, host: str, port: int, timeout: float) -> str:
  """In the others: reports to process 0 and returns its verdict."""
  hello = _HELLO.format(launch.num_processes, launch.process_id) + "\n"
  deadline = time.monotonic() + timeout
  cause = "it was too late"
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection((host, port), min(left, 5.0)) as connection:
        connection.sendall(hello.encode())
        # Process 0 may have begun to wait later, and lingers.
        connection.settimeout(left + timeout + 2 * LINGER_SECONDS)
        answer = _read(connection)
    except OSError as error:
      cause = error.strerror or str(error)
    else:
      if answer.startswith(_VERDICT):
        return answer.removeprefix(_VERDICT)
      cause = "something else answers" if answer else "it ended"
    time.sleep(0.2)
  return (
    f"process {launch.process_id} did not reach process 0 at "
    f"{launch.coordinator} within {timeout:g} s: {cause}; is process 0 "
    "running there, is the port open? Another address: "
    "--coordinator=HOST:PORT"
  )


def _listen(port: int, num_processes: int) -> socket.socket:
  """Returns a socket that listens on all addresses of this machine."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port),
      family=socket.AF_INET6,
      dualstack_ipv6=True,
      backlog=num_processes,
    )
  return socket.create_server(("", port), backlog=num_processes)


def _read(connection: socket.socket) -> str:
  """Returns what comes up to a line's end, or what came before an end."""
  with connection.makefile("rb") as file:
    return file.readline(1000).decode(errors="replace").strip()
