"""New connections: name, TCP connect over all addresses (happy eyeballs), TLS handshake, each timed on its own.

It is the same for every engine, which says what is to speak HTTP on a connection.  A TLS session is never resumed: a
poll on a new connection is there to see the certificate, too.  An origin's settings say which way it leads, whom to
trust and who we are; by a proxy, ``dns``, ``connect`` and the address are those of the proxy, the tunnel included.

Each address is put before a :class:`Guard` when it is about to be connected to, and it is that address, not the name,
that is connected to; of a name's addresses those that are refused are left out.

When descriptors run out it asks for room once and tries once more.  It keeps no connections and sets no deadline: the
poll it connects for is cancelled when its time is up.
"""

import asyncio
import errno
import functools
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import aiohappyeyeballs

from worker.probe.connection_settings import ConnectionSettings, Proxy
from worker.probe.errors import ProbeError, from_connect, from_handshake, most_telling
from worker.probe.guard import Guard
from worker.probe.in_flight import LATE_MAX_S, PollInFlight
from worker.probe.lookup_threads import AddressInfo, Lookup
from worker.probe.pool import MakeRoom
from worker.probe.request import Origin
from worker.probe.resolver import Resolver
from worker.probe.tls_contexts import TlsContexts
from worker.probe.tunnel import open_tunnel

HAPPY_EYEBALLS_DELAY_S = 0.25
TLS_LIMIT_S = 660.0  # above every time-out a project may have: the poll's own deadline is what ends a handshake
TLS_SHUTDOWN_S = 2.0
OWN_LOOKUP_S = 2.0  # for the addresses of an endpoint of our own
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - where it leads to is not what it says


class Openable(asyncio.BaseProtocol):
    """What speaks HTTP on a connection.

    ``opened_at``: when it could carry a request (monotonic seconds).  ``certificate``: the peer's, as ``ssl`` decodes
    it; empty when it was not verified.
    """

    __slots__ = ()

    opened_at: float
    certificate: dict[str, Any] | None


C = TypeVar("C", bound=Openable)


class Connector(Generic[C]):
    """``tls`` None: the system's trust store, read when first needed.

    ``make_room`` closes connections that nobody needs now; False: there were none.
    """

    def __init__(
        self,
        make_connection: Callable[[Origin], C],
        lookup: Lookup,
        tls: ssl.SSLContext | None,
        make_room: MakeRoom,
        guard: Guard,
    ) -> None:
        self._make_connection = make_connection
        self._make_room = make_room
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver(lookup)
        self._tls = tls
        self._guard = guard
        self._contexts = TlsContexts()

    @property
    def names_answered_at(self) -> float:
        """When a name server last said anything (monotonic seconds)."""
        return self._resolver.answered_at

    def close(self) -> None:
        self._resolver.close()
        self._contexts.close()

    async def connect(self, poll: PollInFlight, origin: Origin) -> C:
        """Raises ProbeError."""
        try:
            return await self._open(poll, origin)
        except ProbeError as error:
            if not _is_lack_of_descriptors(error.__cause__) or not await self._make_room():
                raise
        return await self._open(poll, origin)

    async def _open(self, poll: PollInFlight, origin: Origin) -> C:
        settings = origin.settings
        tls = None if origin.scheme == "http" else await self._tls_context(poll, settings)
        place = origin if settings is None or settings.proxy is None else settings.proxy
        named = await self._own_addresses(place) if place.port in self._guard.names else None
        addresses = _literal(place.host, place.port) or self._resolver.kept(place.host, place.port)
        begun_at = time.monotonic()
        if addresses is None:
            poll.phase = "lookup"
            addresses = await self._resolver.resolve(place.host, place.port)
            found_at = time.monotonic()
            poll.dns_s = (poll.dns_s or 0.0) + found_at - begun_at
            begun_at = found_at
        if settings is not None and settings.ip_version is not None:
            addresses = _of_version(addresses, settings.ip_version, place.host)
        poll.phase = "connect"
        addresses = self._permitted(place, addresses, named)
        poll.addresses = addresses
        options = poll.spec.options
        if options is None or options.connect_timeout_ms is None:
            return await self._connect(poll, origin, addresses, tls, begun_at)
        limit_s = options.connect_timeout_ms / 1e3
        try:
            async with asyncio.timeout(limit_s):
                return await self._connect(poll, origin, addresses, tls, begun_at)
        except TimeoutError as error:
            raise _connect_timeout(poll, limit_s, time.monotonic() - begun_at - limit_s) from error

    async def _connect(
        self,
        poll: PollInFlight,
        origin: Origin,
        addresses: Sequence[AddressInfo],
        tls: ssl.SSLContext | None,
        begun_at: float,
    ) -> C:
        proxy = origin.settings.proxy if tls is not None and origin.settings is not None else None
        factory = functools.partial(self._make_connection, origin)
        if proxy is None and len(addresses) == 1 and len(addresses[0][4]) == 2 and addresses[0][4][0] != ANY_ADDRESS:
            host, port = addresses[0][4]
            if tls is None:
                return await self._connect_plain(poll, factory, host, port, begun_at)
            return await self._connect_tls(poll, factory, host, port, begun_at, origin, tls)
        attempts = ConnectAttempts(self._loop)
        try:
            connected = await aiohappyeyeballs.start_connection(
                addresses,
                happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S,
                loop=cast("asyncio.AbstractEventLoop", attempts),
                socket_factory=attempts.make_socket,
            )
        except OSError as error:
            telling = most_telling(attempts.failures) or error
            raise from_connect(telling, poll.peer, attempts.failures) from telling
        if proxy is not None:
            try:
                await open_tunnel(poll, connected, origin.place, proxy)
            except BaseException:
                connected.close()
                raise
        connected_at = time.monotonic()
        poll.connect_s = (poll.connect_s or 0.0) + connected_at - begun_at
        if tls is None:
            try:
                _, connection = await self._loop.create_connection(factory, sock=connected)
            except OSError as error:
                connected.close()
                raise from_connect(error, poll.peer) from error
            return connection
        poll.phase = "handshake"
        try:
            poll.remote_address = str(connected.getpeername()[0])
            _, connection = await self._loop.create_connection(
                factory,
                sock=connected,
                ssl=tls,
                server_hostname=_certified_name(origin),
                ssl_handshake_timeout=TLS_LIMIT_S,
                ssl_shutdown_timeout=TLS_SHUTDOWN_S,
            )
        except OSError as error:
            connected.close()
            raise from_handshake(error, poll.peer) from error
        poll.tls_s = (poll.tls_s or 0.0) + connection.opened_at - connected_at
        _note_certificate(poll, connection)
        return connection

    def _permitted(
        self, place: Origin | Proxy, addresses: Sequence[AddressInfo], named: Mapping[str, Collection[str]] | None
    ) -> Sequence[AddressInfo]:
        """Those that may be connected to.  Raises ProbeError when none may."""
        refusals = [self._guard.refusal(info[4][0], info[4][1], named) for info in addresses]
        if not any(refusals):
            return addresses
        permitted = [info for info, refusal in zip(addresses, refusals, strict=True) if refusal is None]
        if permitted:
            return permitted
        others = f" (its other addresses, {len(addresses) - 1}, are refused, too)" if len(addresses) > 1 else ""
        raise ProbeError("blocked", f"{place} is not polled: {addresses[0][4][0]} is {refusals[0]}{others}")

    async def _own_addresses(self, place: Origin | Proxy) -> dict[str, list[str]]:
        """Where the names lead to of what is our own at that port.  Without knowing that, nothing there is polled."""
        found = {}
        for name in self._guard.names[place.port]:
            addresses = self._resolver.kept(name, place.port)
            if addresses is None:
                try:
                    addresses = await asyncio.wait_for(self._resolver.resolve(name, place.port), OWN_LOOKUP_S)
                except (ProbeError, TimeoutError) as error:
                    raise ProbeError(
                        "local",
                        f"{place} may be what the cluster has at {name}:{place.port}; nothing is polled at that port "
                        "before that name can be looked up",
                    ) from error
            found[name] = [info[4][0] for info in addresses]
        return found

    # The ordinary case, one IPv4 address: the loop's own connect costs half of what a socket of ours does.

    async def _connect_plain(
        self, poll: PollInFlight, factory: Callable[[], C], host: str, port: int, begun_at: float
    ) -> C:
        try:
            _, connection = await self._loop.create_connection(factory, host, port)
        except OSError as error:
            raise from_connect(error, poll.peer) from error
        poll.connect_s = (poll.connect_s or 0.0) + connection.opened_at - begun_at
        return connection

    async def _connect_tls(
        self,
        poll: PollInFlight,
        factory: Callable[[], C],
        host: str,
        port: int,
        begun_at: float,
        origin: Origin,
        tls: ssl.SSLContext,
    ) -> C:
        handshake = HandshakeContext(tls, poll, host, begun_at)
        try:
            _, connection = await self._loop.create_connection(
                factory,
                host,
                port,
                ssl=cast("ssl.SSLContext", handshake),
                server_hostname=_certified_name(origin),
                ssl_handshake_timeout=TLS_LIMIT_S,
                ssl_shutdown_timeout=TLS_SHUTDOWN_S,
            )
        except OSError as error:
            raise (from_connect if handshake.begun_at is None else from_handshake)(error, poll.peer) from error
        assert handshake.begun_at is not None
        poll.tls_s = (poll.tls_s or 0.0) + connection.opened_at - handshake.begun_at
        _note_certificate(poll, connection)
        return connection

    async def _tls_context(self, poll: PollInFlight, settings: ConnectionSettings | None) -> ssl.SSLContext:
        if settings is not None and settings.tls is not None:
            poll.phase = "files"
            return await self._contexts.get(settings.tls)
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


class ConnectAttempts:
    """What ``aiohappyeyeballs`` needs of a loop, with a record of every failure: when they differ it tells of none."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.failures: list[OSError] = []

    def make_socket(self, info: AddressInfo) -> socket.socket:
        try:
            return socket.socket(info[0], info[1], info[2])
        except OSError as error:
            self.failures.append(error)
            raise

    async def sock_connect(self, made: socket.socket, address: tuple[str, int] | tuple[str, int, int, int]) -> None:
        try:
            await self._loop.sock_connect(made, address)
        except OSError as error:
            self.failures.append(error)
            raise


class HandshakeContext:
    """What a loop needs of an ``ssl.SSLContext``, for one connection.

    Loops ask for a TLS object when the TCP connection is there, and tell nobody else of that moment.
    """

    __slots__ = ("_connect_begun_at", "_context", "_poll", "_remote_address", "begun_at")

    def __init__(
        self, context: ssl.SSLContext, poll: PollInFlight, remote_address: str, connect_begun_at: float
    ) -> None:
        self._context = context
        self._connect_begun_at = connect_begun_at
        self._poll = poll
        self._remote_address = remote_address
        self.begun_at: float | None = None

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *, server_side: bool, server_hostname: str | None
    ) -> ssl.SSLObject:
        self.begun_at = time.monotonic()
        poll = self._poll
        poll.connect_s = (poll.connect_s or 0.0) + self.begun_at - self._connect_begun_at
        poll.phase = "handshake"
        poll.remote_address = self._remote_address
        return self._context.wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=server_hostname)


def _certified_name(origin: Origin) -> str:
    if origin.settings is not None and origin.settings.server_name is not None:
        return origin.settings.server_name
    return origin.host.rstrip(".").partition("%")[0]


def _is_lack_of_descriptors(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def _of_version(addresses: Sequence[AddressInfo], version: int, host: str) -> Sequence[AddressInfo]:
    found = [info for info in addresses if info[0] == FAMILIES[version]]
    if not found:
        raise ProbeError("dns", f"{host} has no IPv{version} address of use here, and the project asks for one")
    return found


def _note_certificate(poll: PollInFlight, connection: Openable) -> None:
    if not poll.hops and connection.certificate:
        poll.certificate_expires_at_s = int(ssl.cert_time_to_seconds(connection.certificate["notAfter"]))


def _connect_timeout(poll: PollInFlight, limit_s: float, late_s: float) -> ProbeError:
    if late_s > LATE_MAX_S:
        return ProbeError(
            "local",
            f"this machine was too busy or asleep: connect time-out of {limit_s:g} s noticed {late_s:.1f} s late",
        )
    return ProbeError("connect_timeout", f"connect time-out of {limit_s:g} s passed {poll.doing()} {poll.peer}")


@functools.lru_cache(maxsize=4_096)
def _literal(host: str, port: int) -> list[AddressInfo] | None:
    """The address a host is, when it is one."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    if version == 4:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
    address, _, zone = host.partition("%")
    scope = 0
    if zone:
        try:
            scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
        except OSError:
            scope = 0
    return [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, scope))]
