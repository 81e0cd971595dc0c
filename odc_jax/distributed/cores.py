"""Physical cores, which scikit-learn has counted before it computes."""

import contextlib
import io
import warnings


def count_quietly() -> None:
  """Lets joblib count the cores, and fail at it, without a word.

  In a container without `lscpu`, or on a processor that Linux tells little of,
  it prints a stack trace and goes on with the logical cores. It counts once:
  what it does not find now it does not look for again.
  """
  import joblib  # late: it takes a tenth of a second

  with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")
    joblib.cpu_count(only_physical_cores=True)
