"""Names to addresses: the system's ``getaddrinfo`` in threads of its own, one lookup per name at a time, kept 30 s.

A caller that gives up doesn't end the lookup, which others may wait for.  Failures are not kept.  Literal addresses
never come here.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from worker.probe.errors import from_lookup

# As socket.getaddrinfo returns them, and as a connect takes them.
AddressInfo = tuple[
    int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]
]
Lookup = Callable[[str, int], Sequence[AddressInfo]]

KEEP_S = 30.0
KEPT_MAX = 16_384
THREADS_MAX = 16  # a dead name server holds each for seconds


def system_lookup(host: str, port: int) -> Sequence[AddressInfo]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return cast("Sequence[AddressInfo]", found)


class Resolver:
    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._kept: dict[tuple[str, int], tuple[float, Sequence[AddressInfo]]] = {}
        self._running: dict[tuple[str, int], asyncio.Future[Sequence[AddressInfo]]] = {}
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="lookup")

    def kept(self, host: str, port: int) -> Sequence[AddressInfo] | None:
        """What is known without a lookup."""
        entry = self._kept.get((host, port))
        if entry is None:
            return None
        if time.monotonic() >= entry[0]:
            del self._kept[host, port]
            return None
        return entry[1]

    async def resolve(self, host: str, port: int) -> Sequence[AddressInfo]:
        """Look the name up, or wait for the lookup that runs.  Raises ProbeError."""
        key = (host, port)
        running = self._running.get(key)
        if running is None:
            running = asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, host, port)
            self._running[key] = running
            running.add_done_callback(lambda future: self._finished(key, future))
        try:
            found = await asyncio.shield(running)
        except OSError as error:
            raise from_lookup(error, host) from error
        except UnicodeError as error:  # getaddrinfo's IDNA codec: a label of more than 63 characters
            raise from_lookup(socket.gaierror(socket.EAI_NONAME, "name is not a valid host name"), host) from error
        if not found:
            raise from_lookup(socket.gaierror(socket.EAI_NONAME, "no address"), host)
        return found

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _finished(self, key: tuple[str, int], future: "asyncio.Future[Sequence[AddressInfo]]") -> None:
        del self._running[key]
        if future.cancelled() or future.exception() is not None or not future.result():
            return
        if len(self._kept) >= KEPT_MAX:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = (time.monotonic() + KEEP_S, future.result())
