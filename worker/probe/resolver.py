"""Names to addresses: the system's ``getaddrinfo`` in threads, one lookup per name at a time, whatever the port.

- Addresses are kept ``KEEP_S``, failures ``KEEP_FAILURE_S``; failures of this machine (descriptors, memory) are not.
- An answer that has grown old is still given, for ``STALE_S``, while the lookup that is to renew it hangs or has just
  failed for the time being.  That a name does not exist (any more) is an answer: then nothing old is given.
- A name server that is dead costs its own names time and no others: names that have answered before come first and have
  threads that nobody else may take, and so have new ones before those whose last lookup was slow.
- A caller that gives up doesn't end the lookup, which others may wait for.  Literal addresses never come here.
"""

import asyncio
import enum
import socket
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import cast

from worker.probe.errors import from_lookup
from worker.probe.lookup_threads import AddressInfo, Lookup, LookupResult, LookupThreads
from worker.probe.own_fault import is_own_host

KEEP_S = 30.0
KEEP_FAILURE_S = 3.0
STALE_S = 300.0  # beyond KEEP_S; as long as a kept connection is used without looking its name up again
HANGS_S = 1.0  # a lookup that takes longer
KEPT_MAX = 16_384
# What a name server says of a name that is none, or has no address of use to us.
_NO_SUCH_NAME = {getattr(socket, name, None) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")}


class Standing(enum.Enum):
    """What a name's last lookup lets expect of the next one.  The value: it may begin while fewer than so many run."""

    PROVED = 128
    NEW = 96
    SLOW = 32


def system_lookup(host: str, port: int) -> Sequence[AddressInfo]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return cast("Sequence[AddressInfo]", found)


class KnownName:
    """What is known of one name.  Instants: monotonic seconds."""

    __slots__ = (
        "addresses",
        "asked_at",
        "begun_at",
        "failed_until",
        "failure",
        "fresh_until",
        "port",
        "running",
        "standing",
    )

    def __init__(self) -> None:
        self.addresses: Sequence[AddressInfo] = ()
        self.port = 0  # the one the addresses were looked up with
        self.fresh_until = 0.0
        self.failure: OSError | None = None  # of the last lookup
        self.failed_until = 0.0
        self.standing = Standing.NEW
        self.running: asyncio.Future[None] | None = None  # the lookup that runs or waits for its turn
        self.asked_at = 0.0
        self.begun_at = 0.0

    def old_addresses(self, now: float) -> Sequence[AddressInfo]:
        """Those that may still be given when there are no newer ones."""
        return self.addresses if now < self.fresh_until + STALE_S else ()

    def failed(self, now: float) -> OSError | None:
        """Why there is no use in another lookup yet."""
        return self.failure if self.running is None and now < self.failed_until else None

    def patience_s(self, now: float) -> float:
        """For how long the lookup that runs is no reason to take old addresses."""
        return self.asked_at + HANGS_S - now

    def with_port(self, addresses: Sequence[AddressInfo], port: int) -> Sequence[AddressInfo]:
        if port == self.port:
            return addresses
        return [
            cast("AddressInfo", (*info[:4], (info[4][0], port, *info[4][2:]))) if info[4][1] == self.port else info
            for info in addresses
        ]


class Resolver:
    """To be made inside a running loop."""

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._threads = LookupThreads(lookup)
        self._names: dict[str, KnownName] = {}
        self._waiting: dict[Standing, deque[tuple[str, int, KnownName]]] = {each: deque() for each in Standing}
        self._running = 0
        self.answered_at = 0.0  # when a lookup last brought what only a name server can say

    def kept(self, host: str, port: int) -> Sequence[AddressInfo] | None:
        """What is known without waiting for a lookup."""
        name = self._names.get(host)
        if name is None or not name.addresses:
            return None
        now = time.monotonic()
        if now < name.fresh_until:
            return name.with_port(name.addresses, port)
        hangs = name.running is not None and name.patience_s(now) <= 0
        if hangs or name.failed(now) is not None:
            return name.with_port(name.old_addresses(now), port) or None
        return None

    async def resolve(self, host: str, port: int) -> Sequence[AddressInfo]:
        """Look the name up, or wait for the lookup that runs.  Raises ProbeError."""
        name = self._name(host)
        now = time.monotonic()
        if (failure := name.failed(now)) is not None:
            raise from_lookup(failure, host) from failure
        if name.running is None:
            self._ask(host, port, name, now)
        running = name.running
        assert running is not None
        old = name.old_addresses(now)
        await asyncio.wait({running}, timeout=max(0.0, name.patience_s(now)) if old else None)
        if running.done():
            running.result()  # a bug in the lookup is raised here
            if name.failure is None:
                return name.with_port(name.addresses, port)
            old = name.old_addresses(now)  # not if there is no such name any more
        if old:
            return name.with_port(old, port)
        assert name.failure is not None, "a lookup ends with addresses or a failure"
        raise from_lookup(name.failure, host) from name.failure

    def close(self) -> None:
        for waiting in self._waiting.values():
            waiting.clear()
        self._threads.close()

    # ---- lookups ----------------------------------------------------------------------------------------------------

    def _name(self, host: str) -> KnownName:
        name = self._names.get(host)
        if name is None:
            if len(self._names) >= KEPT_MAX:
                idle = next((each for each, known in self._names.items() if known.running is None), None)
                if idle is not None:
                    del self._names[idle]
            name = self._names[host] = KnownName()
        return name

    def _ask(self, host: str, port: int, name: KnownName, now: float) -> None:
        name.running = asyncio.get_running_loop().create_future()
        name.asked_at = now
        self._waiting[name.standing].append((host, port, name))
        self._admit()

    def _admit(self) -> None:
        for standing, waiting in self._waiting.items():
            while waiting and self._running < standing.value:
                host, port, name = waiting.popleft()
                self._running += 1
                name.begun_at = time.monotonic()
                self._threads.run(host, port, partial(self._finished, host, port, name))

    def _finished(self, host: str, port: int, name: KnownName, result: LookupResult) -> None:
        now = time.monotonic()
        self._running -= 1
        running, name.running = name.running, None
        assert running is not None
        name.standing = Standing.SLOW if now - name.begun_at >= HANGS_S else Standing.PROVED
        if isinstance(result, UnicodeError):  # getaddrinfo's IDNA codec: a label of more than 63 characters
            result = socket.gaierror(socket.EAI_NONAME, "name is not a valid host name")
        elif not isinstance(result, BaseException) and not result:
            result = socket.gaierror(socket.EAI_NONAME, "no address")
        if isinstance(result, OSError):
            name.failure = result
            is_local = from_lookup(result, host).code == "local"
            name.failed_until = now if is_local else now + KEEP_FAILURE_S
            if isinstance(result, socket.gaierror) and result.errno in _NO_SUCH_NAME:
                name.addresses = ()
                self.answered_at = now
            running.set_result(None)
        elif isinstance(result, BaseException):
            running.set_exception(result)
        else:
            name.addresses, name.port = result, port
            if not is_own_host(host, str(result[0][4][0])):
                self.answered_at = now
            name.fresh_until = now + KEEP_S
            name.failure = None
            running.set_result(None)
        self._admit()
