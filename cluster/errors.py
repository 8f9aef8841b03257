"""Errors that reach people: one line that says what was wrong, where, and what to do.

Library exceptions are translated into these once, at the boundary with the library; a traceback on a terminal is a
bug of ours.  ``code`` is for programs (admin replies carry it), the message for people.
"""

import enum


class ExitCode(enum.IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3


class ClusterError(Exception):
    """Something a person can understand and act on; ``str()`` is the whole line."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, code: str = "failed") -> None:
        super().__init__(" ".join(message.split()))
        self.code = code


class InvalidInputError(ClusterError):
    """Input that can't be accepted as written: an option, a field, a file."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, code: str = "invalid_request") -> None:
        super().__init__(message, code=code)


class NotRunningError(ClusterError):
    """No cluster is running on the data directory."""

    exit_code = ExitCode.NOT_RUNNING

    def __init__(self, message: str) -> None:
        super().__init__(message, code="not_running")
