"""The one exception that means: the user can mend this."""


class UserError(Exception):
  """A mistake of the user's, told in one line.

  The message names the offending value and the remedy. `run.py` prints it to
  standard error without a traceback and exits with status 2.
  """
