"""Servers that do exactly what a test says, a name service, and the laws of an outcome."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator

from cluster.project import ProjectSpec
from worker.probe.interface import ProbeOutcome
from worker.probe.lookup_threads import AddressInfo, Lookup

WAIT_S = 10.0


class Request:
    def __init__(self, head: bytes, body: bytes) -> None:
        self.head = head
        self.body = body
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        self.method, self.target, self.version = first.split(" ")
        self.headers = [tuple(line.split(": ", 1)) for line in lines]

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} was sent {len(values)} times"
        return values[0] if values else None


class Peer:
    """The server's end of one connection."""

    def __init__(self, server: "RawServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.number = server.connections

    async def request(self) -> Request | None:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = Request(head, b"").header("content-length")
            body = await self.reader.readexactly(int(length)) if length else b""
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        request = Request(head, body)
        self.server.requests.append(request)
        return request

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def gone(self) -> None:
        """Until the client has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65_536):
                pass

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class RawServer:
    def __init__(self, script: Script | bytes, tls: ssl.SSLContext | None, host: str) -> None:
        self.script = script
        self.tls = tls
        self.host = host
        self.connections = 0
        self.open = 0
        self.requests: list[Request] = []
        self._peers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, 0, ssl=self.tls, limit=1 << 20, backlog=1_024)
        self.port = self._server.sockets[0].getsockname()[1]

    def url(self, path: str = "/", host: str | None = None) -> str:
        return f"{'https' if self.tls else 'http'}://{host or self.host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peers.add(asyncio.current_task())
        self.connections += 1
        self.open += 1
        peer = Peer(self, reader, writer)
        try:
            if isinstance(self.script, bytes):
                while await peer.request():
                    peer.send(self.script)
            else:
                await self.script(peer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()
            self._peers.discard(asyncio.current_task())

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._peers):
            task.cancel()
        await until(lambda: not self._peers)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def answer(status: int = 200, body: bytes = b"ok", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(status: int, location: str, *headers: str) -> bytes:
    return answer(status, b"", f"Location: {location}", *headers)


def spec(url: str, *, number: int = 1, **fields: object) -> ProjectSpec:
    fields.setdefault("timeout_ms", 5_000)
    return ProjectSpec(number, url, 60_000, 0, **fields)


def free_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        return probe_socket.getsockname()[1]


@contextlib.contextmanager
def mute_port(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A listening port that completes no more TCP handshakes: as if packets were dropped on the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(0)
        clients = []
        for _ in range(3):
            client = socket.socket(family)
            client.setblocking(False)
            client.connect_ex(listener.getsockname()[:2])
            clients.append(client)
        try:
            yield listener.getsockname()[1]
        finally:
            for client in clients:
                client.close()


def address_info(address: str, port: int) -> AddressInfo:
    """As ``getaddrinfo`` gives it."""
    if ":" in address:
        return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))


def lookup_of(*addresses: str) -> Lookup:
    """Every name leads there."""
    return lambda _host, port: [address_info(address, port) for address in addresses]


class SilentTransport(asyncio.Transport):
    """Takes what is written to nowhere; to be closed by what it is given to."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False

    def write(self, data: bytes) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close


class Names:
    """A name service: every name in ``known`` leads to 127.0.0.1, ``lookups`` counts."""

    def __init__(self) -> None:
        self.known = {"good.test", "other.test", "xn--bcher-kva.test"}
        self.lookups: list[str] = []

    def __call__(self, host: str, port: int) -> list[object]:
        self.lookups.append(host)
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [address_info("127.0.0.1", port)]


def check(outcome: ProbeOutcome) -> None:
    """The laws of an outcome."""
    assert (outcome.status == "success") == (outcome.error_code is None), outcome
    assert (outcome.status == "unknown") == (outcome.error_code == "local"), outcome
    assert (outcome.error_message is None) == (outcome.error_code is None), outcome
    if outcome.error_message is not None:
        assert 0 < len(outcome.error_message) <= 500, outcome
        assert outcome.error_message.isprintable(), outcome
    phases = [
        outcome.dns_ms,
        outcome.connect_ms,
        outcome.tls_ms,
        outcome.first_byte_ms,
        outcome.transfer_ms,
    ]
    assert all(phase is None or phase >= 0 for phase in phases), outcome
    if outcome.response_time_ms is not None:
        assert sum(phase for phase in phases if phase is not None) <= outcome.response_time_ms + 1e-6, outcome
        assert outcome.status_code is not None
    if outcome.connection_reused:
        assert outcome.dns_ms is None
        assert outcome.connect_ms is None
        assert outcome.tls_ms is None
