"""The two errors a user can meet. Anything else that escapes is a bug in edgellm."""


class EdgeError(Exception):
    """Bad input or a failing environment. The message is one sentence: what, which file, what to do.

    The command line prints it on standard error and exits with code 2.
    """

    exit_code = 2


class CheckFailed(EdgeError):
    """A measured comparison regressed or a check did not hold; the command line exits with code 1."""

    exit_code = 1
