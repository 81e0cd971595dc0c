"""Ctrl-C and SIGTERM that fall where Python cannot raise an exception.

What a signal raises in a destructor or in a callback of the garbage collector
is printed and forgotten, and the program goes on. JAX has such a callback, and
the first lines of Python after a long call into C are often just that.
"""

import signal
import sys
import threading

# By then the callback has ended.
_SECONDS = 0.01

_SIGNALS = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}


def never_lose() -> None:
  """Sends such a signal again, for as long as the program runs."""
  before = sys.unraisablehook

  def hook(unraisable) -> None:
    if unraisable.exc_type not in _SIGNALS:
      before(unraisable)
      return
    main = threading.main_thread().ident
    assert main is not None
    again = threading.Timer(
      _SECONDS, signal.pthread_kill, (main, _SIGNALS[unraisable.exc_type])
    )
    again.daemon = True
    again.start()

  sys.unraisablehook = hook
