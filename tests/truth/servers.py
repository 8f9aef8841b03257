"""The servers of the cases: what each says, when, and how it ends; certificates; a name server.

A script is a function of a peer, as in ``tests.probe.probe_scripts``.  In what it sends, ``{port}`` stands for the port
of its own server and ``{other}`` for that of the case's other one.
"""

import asyncio
import datetime as dt
import functools
import ipaddress
import os
import socket
import ssl
import struct
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.probe.probe_scripts import Peer, RawServer, Request, Script, until

# finish: say no more, and wait; for plain connections.  cut: the same below TLS, without its words of farewell.
Then = Literal["wait", "close", "reset", "finish", "cut"]

APART_S = 0.03  # between two packets, so that they arrive as two


@dataclass(frozen=True)
class Server:
    """How to make one; ``tls`` is the name of a certificate, see ``Certificates``."""

    script: Script | bytes
    tls: str = ""
    host: str = "127.0.0.1"


class TruthServer(RawServer):
    """A server that knows the ports its answers may name."""

    other_port = 0

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(
            self._serve, self.host, port, ssl=self.tls, limit=1 << 20, backlog=1_024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def filled(self, data: bytes) -> bytes:
        return data.replace(b"{port}", str(self.port).encode()).replace(b"{other}", str(self.other_port).encode())


async def _end(peer: Peer, then: Then) -> None:
    if then == "finish":
        peer.writer.write_eof()
    elif then == "cut":
        await until(lambda: not peer.writer.transport.get_write_buffer_size())
        if (made := peer.writer.get_extra_info("socket")) is not None:  # else the client left first
            with socket.socket(fileno=os.dup(made.fileno())) as below:
                below.shutdown(socket.SHUT_WR)
    if then in {"wait", "finish", "cut"}:
        await peer.gone()
    elif then == "reset":
        await peer.writer.drain()
        await asyncio.sleep(APART_S)  # let the bytes arrive: a reset overtakes them
        peer.reset()


def _say(peer: Peer, data: bytes) -> None:
    peer.send(peer.server.filled(data))


def answers(data: bytes) -> Script:
    """The same to each request."""

    async def script(peer: Peer) -> None:
        while await peer.request():
            _say(peer, data)

    return script


def once(data: bytes, then: Then = "wait") -> Script:
    """One answer, and then."""

    async def script(peer: Peer) -> None:
        if await peer.request() is None:
            return
        _say(peer, data)
        await _end(peer, then)

    return script


def pieces(*parts: bytes, pause_s: float = APART_S, then: Then = "wait") -> Script:
    """One answer in several packets."""

    async def script(peer: Peer) -> None:
        if await peer.request() is None:
            return
        for number, part in enumerate(parts):
            if number:
                await asyncio.sleep(pause_s)
            _say(peer, part)
            await peer.writer.drain()
        await _end(peer, then)

    return script


def endless(head: bytes, piece: bytes, pause_s: float = 0.0) -> Script:
    """A head, and then the same again and again until the client has had enough."""

    async def script(peer: Peer) -> None:
        if await peer.request() is None:
            return
        peer.send(head)
        while not peer.writer.is_closing():
            peer.send(piece)
            await peer.writer.drain()
            await asyncio.sleep(pause_s)

    return script


def unasked(data: bytes, then: Then = "wait") -> Script:
    """It speaks before it is spoken to."""

    async def script(peer: Peer) -> None:
        _say(peer, data)
        await _end(peer, then)

    return script


def on_first_bytes(data: bytes, then: Then) -> Script:
    """It reads a little of whatever comes (a TLS greeting, say), answers ``data``, and then."""

    async def script(peer: Peer) -> None:
        await peer.reader.read(65_536)
        _say(peer, data)
        await _end(peer, then)

    return script


def deaf() -> Script:
    """It accepts, and reads nothing."""

    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        while not peer.writer.is_closing():
            await asyncio.sleep(APART_S)

    return script


def before_the_body(data: bytes) -> Script:
    """It answers when it has seen the head of the request, and reads the rest."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        _say(peer, data)
        await peer.gone()

    return script


def turns(*each: tuple[bytes, Then], everywhere: bool = False) -> Script:
    """The n-th connection gets the n-th of these (then the last again); with ``everywhere`` the n-th request does."""

    async def script(peer: Peer) -> None:
        while True:
            if await peer.request() is None:
                return
            number = len(peer.server.requests) if everywhere else peer.number
            data, then = each[min(number, len(each)) - 1]
            _say(peer, data)
            if then != "wait":
                await _end(peer, then)
                return

    return script


def routes(table: dict[str, bytes]) -> Script:
    """An answer for each request target; what is not among them is a 404."""

    async def script(peer: Peer) -> None:
        while request := await peer.request():
            _say(peer, table.get(request.target, b"HTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n"))

    return script


def wants(test: Callable[[Request], bool]) -> Script:
    """200 to a request as wanted, else 400."""

    async def script(peer: Peer) -> None:
        while request := await peer.request():
            body = b"" if request.method == "HEAD" else b"ok"
            status = b"200 OK" if test(request) else b"400 Bad Request"
            peer.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    return script


@functools.cache
def has_ipv6() -> bool:
    """Whether this machine has IPv6 on its loopback."""
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


# ---- ports that are no servers --------------------------------------------------------------------------------------


@contextmanager
def refusing_port():
    """Bound, and nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


# ---- certificates ---------------------------------------------------------------------------------------------------


class Certificates:
    """Certificates of an authority that both clients trust, and some they should not; each kind made when first used.

    ``stranger``: the same authority's name on another key, so to say: nobody here trusts it.
    """

    def __init__(self) -> None:
        self.authority = trustme.CA()
        self._made: dict[str, ssl.SSLContext] = {}

    @cached_property
    def trusting(self) -> ssl.SSLContext:
        """The client's side."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        context.set_alpn_protocols(["http/1.1"])
        return context

    def server(self, kind: str) -> ssl.SSLContext:
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    def _make(self, kind: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        now = dt.datetime.now(dt.UTC)
        day = dt.timedelta(days=1)
        names = ("127.0.0.1", "::1", "good.test", "localhost")
        ours = self.authority
        match kind:
            case _ if kind.startswith("good"):
                ours.issue_cert(*names).configure_cert(context)
                if kind == "good, TLS 1.2":
                    context.maximum_version = ssl.TLSVersion.TLSv1_2
                elif kind == "good, TLS 1.3":
                    context.minimum_version = ssl.TLSVersion.TLSv1_3
                elif kind == "good, TLS 1.1":
                    context.set_ciphers("ALL:@SECLEVEL=0")
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", DeprecationWarning)  # which is what the case is about
                        context.minimum_version = ssl.TLSVersion.TLSv1
                        context.maximum_version = ssl.TLSVersion.TLSv1_1
                elif kind.startswith("good, a client's certificate wanted"):
                    context.verify_mode = ssl.CERT_REQUIRED
                    ours.configure_trust(context)
                    if kind.endswith("TLS 1.2"):
                        context.maximum_version = ssl.TLSVersion.TLSv1_2
                elif kind == "good, no common cipher":
                    context.maximum_version = ssl.TLSVersion.TLSv1_2
                    context.set_ciphers("ADH-AES128-SHA256:@SECLEVEL=0")
            case "an RSA key":
                ours.issue_cert(*names, key_type=trustme.KeyType.RSA).configure_cert(context)
            case "wildcard":
                ours.issue_cert("*.wild.test").configure_cert(context)
            case "many names":
                ours.issue_cert(*(f"n{number}.test" for number in range(90)), *names).configure_cert(context)
            case "another name":
                ours.issue_cert("other.test").configure_cert(context)
            case "expired yesterday":
                ours.issue_cert(*names, not_before=now - 9 * day, not_after=now - day).configure_cert(context)
            case "expired, and for another name":
                ours.issue_cert("other.test", not_before=now - 9 * day, not_after=now - day).configure_cert(context)
            case "valid from tomorrow":
                ours.issue_cert(*names, not_before=now + day, not_after=now + 9 * day).configure_cert(context)
            case "an intermediate":
                ours.create_child_ca().issue_cert(*names).configure_cert(context)
            case "an intermediate that is not sent":
                leaf = ours.create_child_ca().issue_cert(*names)
                self._load(context, leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())
            case "an unknown authority":
                trustme.CA().issue_cert(*names).configure_cert(context)
            case "self-signed":
                self._self_made(context, ec.generate_private_key(ec.SECP256R1()))
            case "a weak key, self-signed":
                context.set_ciphers("ALL:@SECLEVEL=0")
                self._self_made(context, rsa.generate_private_key(65_537, 1_024))
            case "for clients only":
                self._for_clients_only(context)
            case _:
                raise AssertionError(f"no such certificate: {kind}")
        return context

    def _self_made(self, context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "good.test")])
        self._sign(context, key, key, name)

    def _for_clients_only(self, context: ssl.SSLContext) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes()).subject
        signing = serialization.load_pem_private_key(self.authority.private_key_pem.bytes(), None)
        self._sign(context, key, signing, issuer, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _sign(self, context, key, signing_key, issuer, usage=ExtendedKeyUsageOID.SERVER_AUTH) -> None:
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "good.test")]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=9))
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName("good.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                ),
                critical=False,
            )
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(signing_key, hashes.SHA256())
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._load(context, pem, certificate.public_bytes(serialization.Encoding.PEM))

    @staticmethod
    def _load(context: ssl.SSLContext, key: bytes, chain: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pem"
            path.write_bytes(key + chain)
            context.load_cert_chain(path)


# ---- a name server, for curl ----------------------------------------------------------------------------------------

RCODES = {"EAI_NONAME": 3, "EAI_AGAIN": 2, "EAI_FAIL": 5, "EAI_NODATA": 0}


def name_server(found: str | Sequence[str]) -> Script:
    """DNS over HTTPS (RFC 8484), which is how curl can be told whom to ask: addresses, a failure, or no answer."""

    async def script(peer: Peer) -> None:
        while request := await peer.request():
            if found == "hang":
                await peer.gone()
                return
            message = _dns_answer(request.body, found)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/dns-message\r\nContent-Length: %d\r\n\r\n"
            peer.send(head % len(message) + message)

    return script


def _dns_answer(query: bytes, found: str | Sequence[str]) -> bytes:
    rcode = RCODES[found] if isinstance(found, str) else 0
    (wanted,) = struct.unpack("!H", query[-4:-2])
    addresses = [] if isinstance(found, str) else [ipaddress.ip_address(each) for each in found]
    records = [each.packed for each in addresses if {4: 1, 6: 28}[each.version] == wanted]
    head = struct.pack("!6H", 0, 0x8180 | rcode, 0, len(records), 0, 0)
    return head + b"".join(b"\0" + struct.pack("!HHIH", wanted, 1, 60, len(raw)) + raw for raw in records)
