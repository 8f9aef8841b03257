"""Asking what may never answer (a dead file system, a name server, a database) and going on without it.

The question is asked in a thread of its own that nobody waits for at the end of the process: a system call that hangs
can't be cancelled, only left behind.
"""

import socket
import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from urllib.parse import parse_qs, urlsplit

T = TypeVar("T")


class Question(Generic[T]):
    """Begins at once; ``answer`` waits for it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._work())
        except BaseException as error:  # noqa: BLE001 - whoever asks for the answer gets it
            self._error = error

    def answer(self, timeout_s: float) -> T:
        """Raises TimeoutError, or what the work raised."""
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
        if not self._found:
            raise TimeoutError
        return self._found[0]


def resolve_host(database_url: str) -> None:
    """Look its host up in this thread.  A lookup by an event loop that then times out is waited for at exit."""
    parts = urlsplit(database_url)
    host = parts.hostname or (parse_qs(parts.query).get("host") or [""])[0]
    if host and not host.startswith("/"):
        socket.getaddrinfo(host.split(",")[0], None)
