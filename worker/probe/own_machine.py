"""What can be asked of this machine at once: has it a route, and does a name server of its answer?

Of the network itself nothing can be said here: a route may lead nowhere.
"""

import asyncio
import errno
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import cast

RESOLV_CONF = Path("/etc/resolv.conf")
NAME_SERVERS_MAX = 3  # as many as the system's resolver asks
NAME_SERVER_PORT = 53
TRIES = 2
TRY_S = 0.35  # with TRIES: less than a failure is held back for
SERVFAIL = 2

# Of networks that are for documentation: the way there is the way to all the world.
_OUTSIDE = ("198.51.100.1", "2001:db8::1")
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
# The name servers of the root, asked for with recursion.
_QUESTION = b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + b"\x00\x00\x02\x00\x01"


def has_route(address: str | None) -> bool:
    """Whether the kernel knows a way to the address, or to anywhere that is not on this machine's own networks."""
    return any(_leads_somewhere(each) for each in ((address, *_OUTSIDE) if address else _OUTSIDE))


def _leads_somewhere(address: str) -> bool:
    try:
        version = ipaddress.ip_address(address.partition("%")[0]).version
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as asking:
            asking.connect((address, 9))  # sends nothing
    except OSError as error:
        return error.errno not in _NO_ROUTE  # of another reason nothing follows
    return True


def name_servers(path: Path = RESOLV_CONF) -> list[str]:
    """Those that the system's resolver asks."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # as the system's resolver does without
        text = ""
    lines = (line.split() for line in text.splitlines())
    found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver" and _is_address(words[1])]
    return found[:NAME_SERVERS_MAX] or ["127.0.0.1"]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


async def name_servers_answer(servers: Sequence[str] | None = None, port: int = NAME_SERVER_PORT) -> bool:
    """Whether any of them answers a question about the root; one that has failed to find that out does not count."""
    loop = asyncio.get_running_loop()
    asked: list[asyncio.DatagramTransport] = []
    answered: asyncio.Future[None] = loop.create_future()
    try:
        for server in servers or name_servers():
            try:
                transport, _ = await loop.create_datagram_endpoint(
                    lambda: _Question(answered), remote_addr=(server, port)
                )
            except OSError:
                continue  # no way to it
            asked.append(transport)
        for _ in range(TRIES if asked else 0):
            for transport in asked:
                if not transport.is_closing():
                    cast("_Question", transport.get_protocol()).ask()
            await asyncio.wait({answered}, timeout=TRY_S)
            if answered.done():
                return True
        return False
    finally:
        for transport in asked:
            transport.close()


class _Question(asyncio.DatagramProtocol):
    def __init__(self, answered: asyncio.Future[None]) -> None:
        self._answered = answered
        self._number = secrets.token_bytes(2)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def ask(self) -> None:
        self._transport.sendto(self._number + _QUESTION)

    def datagram_received(self, data: bytes, _addr: object) -> None:
        is_answer = len(data) >= 4 and data[:2] == self._number and data[2] & 0x80
        if is_answer and data[3] & 0x0F != SERVFAIL and not self._answered.done():
            self._answered.set_result(None)

    def error_received(self, exc: Exception) -> None:
        """Nobody is there; another may be."""
