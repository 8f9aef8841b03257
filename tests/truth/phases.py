"""Servers that take their time in each phase, and what their own clock says of it.

A server is a thread with blocking sockets that notes the instants of what it does; the lookup notes its own.  The clock
is the monotonic one of this machine, the same as a prober's, so that the two can be compared phase by phase:

    dns          the lookup, from its call to its return
    connect      from then (or from the beginning of the poll) until the server has the connection
    tls          from then until the server's side of the handshake is through
    first_byte   from when the server has read the whole request until it sends the first byte
    transfer     from the first byte to the last

What a server did is what it noted, never what it was told to do: a machine under load makes every delay longer.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field

from tests.probe.probe_scripts import WAIT_S, address_info, mute_port, spec
from tests.truth.runs import ENGINES, EngineName
from tests.truth.servers import Certificates
from worker.probe.interface import ProbeOutcome, probe

TOLERANCE_MS = 5.0
TOLERANCE_PART = 0.05
PHASES = ("dns", "connect", "tls", "first_byte", "transfer")
BACKLOG_HELD_S = 0.3
MUTE_ADDRESS = "127.0.0.2"


@dataclass(frozen=True)
class PhaseCase:
    """Delays in seconds; None: the phase does not happen."""

    name: str
    lookup_s: float | None = None
    accept_late: bool = False  # the first SYN is dropped
    mute_first: bool = False  # the name's first address never answers
    handshake_s: float | None = None
    answer_s: float = 0.0
    pieces: int = 1
    piece_s: float = 0.0
    redirected: bool = False  # here from a server that took as long
    reused: bool = False  # the second poll of two


PHASE_CASES = (
    PhaseCase("nothing takes long"),
    PhaseCase("a slow lookup", lookup_s=0.12),
    PhaseCase("a connection that is accepted late", accept_late=True),
    PhaseCase("the first of two addresses is mute", lookup_s=0.01, mute_first=True),
    PhaseCase("a slow handshake", handshake_s=0.12),
    PhaseCase("a slow answer", answer_s=0.15),
    PhaseCase("a body in pieces", pieces=8, piece_s=0.02),
    PhaseCase("all of it", lookup_s=0.08, handshake_s=0.1, answer_s=0.09, pieces=5, piece_s=0.02),
    PhaseCase("all of it twice, after a redirect", lookup_s=0.06, handshake_s=0.07, answer_s=0.08, redirected=True),
    PhaseCase("on a kept connection", answer_s=0.1, pieces=3, piece_s=0.03, reused=True),
    PhaseCase("on a kept connection, TLS", lookup_s=0.05, handshake_s=0.05, answer_s=0.1, reused=True),
)


@dataclass
class Noted:
    """Instants of one exchange, monotonic seconds."""

    accepted_at: float = 0.0
    secured_at: float = 0.0
    request_read_at: float = 0.0
    first_sent_at: float = 0.0
    last_sent_at: float = 0.0


class ClockedServer:
    """Serves one connection, with as many requests as wanted, in a thread of its own."""

    def __init__(self, case: PhaseCase, tls: ssl.SSLContext | None, location: str | None = None) -> None:
        self._case = case
        self._tls = tls
        self._location = location
        self.exchanges: list[Noted] = []
        self.failure: BaseException | None = None
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0 if case.accept_late else 16)
        self._listener.settimeout(WAIT_S)
        self.port = self._listener.getsockname()[1]
        self._fillers = [self._filler() for _ in range(3 if case.accept_late else 0)]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _filler(self) -> socket.socket:
        made = socket.socket()
        made.setblocking(False)
        made.connect_ex(("127.0.0.1", self.port))
        return made

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._listener.close()
        for each in self._fillers:
            each.close()
        self._thread.join(WAIT_S)

    def _run(self) -> None:
        try:
            if self._fillers:
                time.sleep(BACKLOG_HELD_S)
            strangers = {each.getsockname()[1] for each in self._fillers}
            while True:
                connection, peer = self._listener.accept()
                accepted_at = time.monotonic()
                connection.settimeout(WAIT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with connection:
                    if peer[1] not in strangers:
                        self._serve(connection, accepted_at)
                        return
        except BaseException as error:  # noqa: BLE001 - who waits for the exchange looks at it
            self.failure = error

    def _serve(self, connection: socket.socket, accepted_at: float) -> None:
        case = self._case
        secured_at = accepted_at
        if self._tls is not None:
            time.sleep(case.handshake_s or 0.0)
            connection = self._tls.wrap_socket(connection, server_side=True)
            secured_at = time.monotonic()
        with connection:
            while True:
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    more = connection.recv(65_536)
                    if not more:
                        return
                    request += more
                noted = Noted(accepted_at, secured_at, request_read_at=time.monotonic())
                self.exchanges.append(noted)  # now: the client may be through before this thread has its turn again
                time.sleep(case.answer_s)
                noted.first_sent_at = noted.last_sent_at = time.monotonic()
                if self._location is not None:
                    head = f"HTTP/1.1 302 F\r\nLocation: {self._location}\r\nContent-Length: 0\r\n\r\n"
                    connection.sendall(head.encode())
                else:
                    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {case.pieces}\r\n\r\nx".encode())
                    for _ in range(case.pieces - 1):
                        time.sleep(case.piece_s)
                        noted.last_sent_at = time.monotonic()
                        connection.sendall(b"x")


@dataclass
class SlowLookup:
    delay_s: float
    addresses: tuple[str, ...] = ("127.0.0.1",)
    spans: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, host: str, port: int) -> list[object]:
        began_at = time.monotonic()
        time.sleep(self.delay_s)
        self.spans.append((began_at, time.monotonic()))
        return [address_info(each, port) for each in self.addresses]


@dataclass(frozen=True)
class Measured:
    """Milliseconds by phase: what was done, what the result says, and the whole."""

    done: dict[str, float | None]
    said: dict[str, float | None]
    whole_done: float
    whole_said: float

    def off(self) -> dict[str, float]:
        """By how much each is out of tolerance; NULL where there should be a number, or the reverse, is infinite."""
        pairs = [(name, self.done[name], self.said[name]) for name in PHASES]
        pairs.append(("the whole", self.whole_done, self.whole_said))
        found: dict[str, float] = {}
        for name, done, said in pairs:
            if done is None and said is None:
                continue
            if done is None or said is None:
                found[name] = float("inf")
                continue
            excess = abs(done - said) - max(TOLERANCE_MS, TOLERANCE_PART * done)
            if excess > 0:
                found[name] = excess
        return found


@contextlib.contextmanager
def _servers(case: PhaseCase, certificates: Certificates):
    """The servers of a case, in the order in which they are asked, and the URL to begin with."""
    tls = certificates.server("good") if case.handshake_s is not None else None
    scheme = "http" if tls is None else "https"
    host = "127.0.0.1" if case.lookup_s is None else "good.test"
    with contextlib.ExitStack() as stack:
        last = ClockedServer(case, tls)
        stack.callback(last.stop)
        if case.mute_first:
            stack.enter_context(mute_port(MUTE_ADDRESS, last.port))
        servers = [last]
        url = f"{scheme}://{host}:{last.port}/"
        if case.redirected:
            first = ClockedServer(case, tls, url.replace("good.test", "localhost"))
            stack.callback(first.stop)
            servers.insert(0, first)
            url = f"{scheme}://{host}:{first.port}/"
        for each in servers:
            each.start()
        yield servers, url


async def measure(case: PhaseCase, engine: EngineName, certificates: Certificates) -> Measured:
    addresses = (MUTE_ADDRESS, "127.0.0.1") if case.mute_first else ("127.0.0.1",)
    lookup = SlowLookup(case.lookup_s or 0.0, addresses)
    prober = ENGINES[engine](body_limit_bytes=1 << 20, lookup=lookup, tls=certificates.trusting)
    with _servers(case, certificates) as (servers, url):
        try:
            began_at = 0.0
            outcome: ProbeOutcome | None = None
            for _ in range(2 if case.reused else 1):
                began_at = time.monotonic()
                outcome = await asyncio.wait_for(probe(prober, spec(url)), WAIT_S)
        finally:
            await prober.close(0)
        assert outcome is not None
        assert outcome.status == "success", (outcome, [each.failure for each in servers])
        said = {name: getattr(outcome, f"{name}_ms") for name in PHASES}
        assert outcome.response_time_ms is not None
        assert sum(each for each in said.values() if each is not None) <= outcome.response_time_ms + 1e-6
        done, ended_at = _done(case, servers, lookup, began_at)
        return Measured(done, said, (ended_at - began_at) * 1e3, outcome.response_time_ms)


def _done(
    case: PhaseCase, servers: list[ClockedServer], lookup: SlowLookup, began_at: float
) -> tuple[dict[str, float | None], float]:
    hops = [each.exchanges[-1] for each in servers]
    last = hops[-1]
    done: dict[str, float | None] = dict.fromkeys(PHASES)
    done["first_byte"] = (last.first_sent_at - last.request_read_at) * 1e3
    done["transfer"] = (last.last_sent_at - last.first_sent_at) * 1e3
    if case.reused:
        return done, last.last_sent_at
    if case.lookup_s is not None:
        done["dns"] = sum(end - begin for begin, end in lookup.spans) * 1e3
    begins = [began_at, *(hop.first_sent_at for hop in hops[:-1])]
    if case.lookup_s is not None:
        begins = [end for _, end in lookup.spans]
    done["connect"] = sum(hop.accepted_at - begin for hop, begin in zip(hops, begins, strict=True)) * 1e3
    if case.handshake_s is not None:
        done["tls"] = sum(hop.secured_at - hop.accepted_at for hop in hops) * 1e3
    return done, last.last_sent_at
