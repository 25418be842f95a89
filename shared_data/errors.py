"""The one error a user can cause.

`UserError` carries a message of one line that names the cause and the remedy. The command line prints it on stderr
without a traceback and exits with code 2 (`shared_data/command_line.py`); a library caller catches a `ValueError`.
"""


class UserError(ValueError):
    """A mistake of the user's: the message says what is wrong and what to do about it, in one line."""
