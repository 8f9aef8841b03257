"""Every error code, from what really happens: holds for every engine."""

import asyncio
import contextlib
import datetime as dt
import errno
import resource
import socket
import ssl
import threading
import time
from unittest.mock import AsyncMock

import pytest
import trustme
from probe_scripts import WAIT_S, Peer, answer, check, free_port, lookup_of, redirect, spec, until

from worker.probe.errors import from_connect, from_handshake, from_lookup, from_lost, most_telling
from worker.probe.interface import probe
from worker.probe.resolver import system_lookup

LARGE = (b"X: " + b"v" * 1_000 + b"\r\n") * 300  # more than a head may have, no line of it too long


async def test_an_unknown_name(poll):
    outcome = await poll("http://nowhere.test/")
    assert (outcome.status, outcome.error_code) == ("failure", "dns")
    assert "nowhere.test" in outcome.error_message
    assert outcome.response_time_ms is None


async def test_a_name_that_can_be_none(make_prober):
    outcome = await probe(make_prober(lookup=system_lookup), spec(f"http://{'a' * 64}.test/"))
    check(outcome)
    assert (outcome.status, outcome.error_code) == ("failure", "dns")


async def test_the_systems_lookup(serve, make_prober):
    server = await serve(answer())
    outcome = await probe(make_prober(lookup=system_lookup), spec(server.url("/", "localhost")))
    check(outcome)
    assert (outcome.status, outcome.remote_address) == ("success", "127.0.0.1")
    assert outcome.dns_ms > 0


async def test_nothing_listens(poll):
    port = free_port()
    outcome = await poll(f"http://127.0.0.1:{port}/")
    assert (outcome.status, outcome.error_code) == ("failure", "connect_refused")
    assert outcome.error_message == f"connecting to 127.0.0.1:{port}: connection refused (ECONNREFUSED)"


async def test_no_way_there(poll):
    outcome = await poll("http://255.255.255.255/")  # TCP has no broadcast: refused by the kernel, no packet leaves
    assert (outcome.status, outcome.error_code) == ("failure", "connect_unreachable")
    assert "ENETUNREACH" in outcome.error_message


@pytest.fixture
def full_backlog():
    """A listening port that completes no more handshakes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        clients = []
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            clients.append(client)
        yield listener.getsockname()[1]
        for client in clients:
            client.close()


async def test_connecting_takes_too_long(poll, full_backlog):
    outcome = await poll(f"http://127.0.0.1:{full_backlog}/", timeout_ms=200)
    assert (outcome.status, outcome.error_code) == ("failure", "connect_timeout")
    assert outcome.error_message == f"time-out of 0.2 s passed connecting to 127.0.0.1:{full_backlog}"


async def test_a_handshake_that_takes_too_long(serve, poll):
    async def silent(peer: Peer) -> None:
        await peer.gone()

    server = await serve(silent)
    outcome = await poll(f"https://127.0.0.1:{server.port}/", timeout_ms=200)
    assert outcome.error_code == "connect_timeout"
    assert "TLS handshake" in outcome.error_message
    assert outcome.connect_ms is not None
    assert outcome.tls_ms is None


async def test_a_lookup_that_takes_too_long(make_prober):
    release = threading.Event()

    def slow(host, port):
        release.wait(10)
        return []

    prober = make_prober(lookup=slow)
    outcome = await probe(prober, spec("http://slow.test/", timeout_ms=100))
    check(outcome)
    assert outcome.error_code == "dns"
    assert "slow.test" in outcome.error_message
    release.set()


async def test_no_answer_in_time(serve, poll):
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    server = await serve(silent)
    outcome = await poll(server.url(), timeout_ms=150)
    assert outcome.error_code == "read_timeout"
    assert outcome.error_message == f"time-out of 0.15 s passed waiting for the answer of 127.0.0.1:{server.port}"
    assert outcome.status_code is None


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX:", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal"])
async def test_no_end_of_the_answer_in_time(serve, poll, start):
    async def half(peer: Peer) -> None:
        await peer.request()
        peer.send(start)
        await peer.gone()

    server = await serve(half)
    outcome = await poll(server.url(), timeout_ms=150)
    assert outcome.error_code == "read_timeout"
    assert outcome.response_time_ms is None


async def test_a_drip_does_not_extend_the_time(serve, poll):
    async def drip(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not peer.writer.is_closing():
            peer.send(b"x")
            await asyncio.sleep(0.01)

    server = await serve(drip)
    outcome = await poll(server.url(), timeout_ms=200)
    assert outcome.error_code == "read_timeout"
    assert outcome.status_code == 200


async def test_a_request_that_can_not_be_sent_in_time(serve, make_prober):
    async def deaf(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        await asyncio.sleep(30)

    prober = make_prober()
    server = await serve(deaf)
    outcome = await probe(prober, spec(server.url(), method="POST", body="x" * 20_000_000, timeout_ms=300))
    check(outcome)
    assert outcome.error_code == "total_timeout"
    assert "sending the request" in outcome.error_message


async def test_the_time_covers_all_hops(serve, poll):
    async def slow(peer: Peer) -> None:
        while await peer.request():
            await asyncio.sleep(0.06)
            peer.send(redirect(302, "/again"))

    server = await serve(slow)
    outcome = await poll(server.url(), timeout_ms=200)
    assert outcome.error_code == "total_timeout"
    assert "redirect" in outcome.error_message


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 20",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_closed_before_the_end(serve, poll, sent):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(sent)

    server = await serve(script)
    outcome = await poll(server.url())
    assert (outcome.status, outcome.error_code) == ("failure", "closed")
    assert f"127.0.0.1:{server.port} closed the connection" in outcome.error_message
    assert len(server.requests) == 1  # a request on a new connection is never repeated


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", b"HTTP/1.1 200 OK\r\n\r\nto the end"]
)
async def test_reset_before_the_end(serve, poll, sent):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(sent)
        await peer.writer.drain()
        await asyncio.sleep(0.02)  # let the bytes arrive: a reset overtakes them
        peer.reset()

    server = await serve(script)
    outcome = await poll(server.url())
    assert (outcome.status, outcome.error_code) == ("failure", "reset")
    assert "ECONNRESET" in outcome.error_message
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\x01\x02\xff garbage \x1b[31m\r\n\r\n",
        b"HTTP/1.1 xyz OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"v" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: v\r\n" * 5_000 + b"\r\n",
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"v" * 60_000 + b"\r\n") * 6,
    ],
    ids=range(9),
)
async def test_what_is_not_http(serve, poll, sent):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(sent)
        await peer.gone()

    server = await serve(script)
    outcome = await poll(server.url())
    assert (outcome.status, outcome.error_code) == ("failure", "protocol")
    assert f"127.0.0.1:{server.port}" in outcome.error_message


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "bad status line"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "bad status line"),
        (b"HTTP/7.1 200 OK\r\n\r\n", "bad status line"),
        (b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n", "bad status line"),
        (b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "bad status line"),
        (b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n", "bad status line"),
        (
            b"HTTP/1.1 200 OK\r\n" + (b"X: " + b"v" * 1_000 + b"\r\n") * 300 + b"\r\n",
            "a head of more than 262144 bytes",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n", "invalid character in content-length"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"v" * 70_000 + b"\r\n\r\n", "a line of more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"v" * 70_000, "a line of more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: v\r\n" * 1_001 + b"\r\n", "too many headers received"),
        (b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n", "a header with an invalid value"),
    ],
    ids=range(12),
)
async def test_what_is_not_http_is_said_in_the_same_words(serve, poll, sent, fault):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(sent)
        await peer.gone()

    server = await serve(script)
    outcome = await poll(server.url())
    assert outcome.error_message == f"127.0.0.1:{server.port} sent no valid HTTP answer: {fault}"
    assert outcome.status_code is None


async def test_a_body_that_breaks_later(serve, poll):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await peer.writer.drain()
        await asyncio.sleep(0.02)  # a packet of its own
        peer.send(b"zz\r\n")
        await peer.gone()

    server = await serve(script)
    outcome = await poll(server.url())
    assert (outcome.error_code, outcome.status_code) == ("protocol", 200)


async def test_chunks_that_break_in_the_packet_of_the_head(serve, poll):
    server = await serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n")
    outcome = await poll(server.url())
    assert (outcome.error_code, outcome.status_code) == ("protocol", 200)
    assert outcome.error_message.endswith("sent no valid HTTP answer: invalid character in chunk size")


async def test_a_banner_before_the_request(serve, poll):
    async def script(peer: Peer) -> None:
        peer.send(b"220 mail.test ESMTP\r\n")
        await peer.gone()

    server = await serve(script)
    assert (await poll(server.url())).error_code == "protocol"


async def test_a_bare_answer_without_end(serve, make_prober):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n")
        for _ in range(20):
            peer.send(b"X-Y: " + b"v" * 30_000 + b"\r\n")
            await peer.writer.drain()
        await peer.gone()

    server = await serve(script)
    outcome = await probe(make_prober(), spec(server.url()))
    assert outcome.error_code == "protocol"
    assert "bytes" in outcome.error_message


# ---- TLS ----------------------------------------------------------------------------------------------------------


async def test_a_good_certificate(serve, poll, server_tls):
    server = await serve(answer(), server_tls)
    for host in ("good.test", "127.0.0.1"):
        outcome = await poll(server.url("/", host))
        assert outcome.status == "success"
        assert outcome.tls_ms > 0
        assert outcome.connect_ms > 0
        assert outcome.remote_address == "127.0.0.1"


async def test_a_certificate_for_another_name(serve, poll, server_tls):
    server = await serve(answer(), server_tls)
    outcome = await poll(server.url("/", "other.test"))
    assert (outcome.status, outcome.error_code) == ("failure", "tls_verify")
    assert "other.test" in outcome.error_message
    assert server.requests == []


async def test_a_certificate_of_an_unknown_authority(serve, poll):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server = await serve(answer(), context)
    outcome = await poll(server.url())
    assert outcome.error_code == "tls_verify"
    assert outcome.remote_address == "127.0.0.1"


@pytest.mark.parametrize(
    ("until_days", "code", "words"),
    [(-1, "tls_expired", "it, or one it rests on, has expired"), (None, "tls_verify", "it is for other names")],
)
async def test_a_certificate_that_is_not_accepted_is_described(serve, poll, authority, until_days, code, words):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    now = dt.datetime.now(dt.UTC)
    if until_days is None:
        issued = authority.issue_cert("other.test")
    else:
        until = now + dt.timedelta(days=until_days)
        issued = authority.issue_cert("good.test", not_before=now - dt.timedelta(days=9), not_after=until)
    issued.configure_cert(context)
    server = await serve(answer(), context)
    outcome = await poll(server.url("/", "good.test"))
    assert (outcome.status, outcome.error_code) == ("failure", code)
    assert outcome.error_message == f"certificate of good.test:{server.port} not accepted: {words}"


async def test_tls_to_a_plain_port(serve, poll):
    server = await serve(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def talk(peer: Peer) -> None:
        await peer.reader.read(1)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.gone()

    server.script = talk
    outcome = await poll(f"https://127.0.0.1:{server.port}/")
    assert outcome.error_code == "tls_other"
    assert "wrong version number" in outcome.error_message or "record layer" in outcome.error_message


async def test_a_peer_that_leaves_the_handshake(serve, poll):
    async def leave(peer: Peer) -> None:
        await peer.reader.read(1)

    server = await serve(leave)
    outcome = await poll(f"https://127.0.0.1:{server.port}/")
    assert outcome.error_code in {"tls_other", "reset"}  # unread bytes turn a close into a reset
    assert "TLS handshake" in outcome.error_message


async def test_a_client_certificate_is_wanted(poll, server_tls, authority):
    # TLS 1.3: the client's handshake is through before the server's alert comes; asyncio's server sends none.
    server_tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server_tls)

    def serve_one(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, server_tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secure:
            with pytest.raises(ssl.SSLError):
                secure.do_handshake()
            with socket.socket(fileno=secure.detach()) as plain:
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(65_536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.get_running_loop().run_in_executor(None, serve_one, listener)
        outcome = await poll(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        await asyncio.wait_for(serving, WAIT_S)
    assert (outcome.status, outcome.error_code) == ("failure", "tls_other")
    assert outcome.error_message.endswith("failed before it had answered: the peer refused it (certificate required)")


async def test_plain_http_to_a_tls_port(serve, poll, server_tls):
    server = await serve(answer(), server_tls)
    outcome = await poll(f"http://127.0.0.1:{server.port}/")
    assert outcome.error_code in {"protocol", "closed", "reset"}


async def test_tls_closed_before_the_end(serve, poll, server_tls):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc")

    server = await serve(script, server_tls)
    assert (await poll(server.url())).error_code == "closed"


# ---- this machine -------------------------------------------------------------------------------------------------


async def test_no_descriptors_left_is_our_own_fault(poll):
    with no_descriptors_left():
        outcome = await poll("http://127.0.0.1:9/")
    assert (outcome.status, outcome.error_code) == ("unknown", "local")
    assert "EMFILE" in outcome.error_message


@contextlib.contextmanager
def no_descriptors_left():
    with socket.socket() as lowest_free:
        number = lowest_free.fileno()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_idle_connections_make_room_when_descriptors_run_out(serve, prober):
    go_on = asyncio.Event()

    async def together(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        peer.send(answer())
        await peer.gone()

    idle, server = await serve(together), await serve(answer())
    polls = [asyncio.ensure_future(probe(prober, spec(idle.url(), number=number))) for number in range(8)]
    await until(lambda: len(idle.requests) == len(polls))
    go_on.set()
    assert {(await each).status for each in polls} == {"success"}
    with no_descriptors_left():
        outcomes = await asyncio.gather(*(probe(prober, spec(server.url(), number=number)) for number in range(3)))
        for outcome in outcomes:
            check(outcome)
            assert outcome.status == "success", outcome
        assert idle.open == 0
        assert server.connections == len(outcomes)


async def test_room_is_made_once(make_prober):
    prober = make_prober(make_room=(made_room := AsyncMock(return_value=True)))
    with no_descriptors_left():
        outcome = await probe(prober, spec("http://127.0.0.1:9/"))
    assert (outcome.status, outcome.error_code) == ("unknown", "local")
    assert "EMFILE" in outcome.error_message
    assert made_room.await_count == 1


async def test_a_time_out_noticed_late_is_our_own_fault(serve, poll):
    async def stalling(peer: Peer) -> None:
        await peer.request()
        time.sleep(0.8)  # the whole process: a suspended machine, a loop that is stuck
        await peer.gone()

    server = await serve(stalling)
    outcome = await poll(server.url(), timeout_ms=100)
    assert (outcome.status, outcome.error_code) == ("unknown", "local")
    assert "late" in outcome.error_message


async def test_an_error_in_the_prober_is_contained_and_logged(serve, make_prober, caplog):
    def broken(host, port):
        raise RuntimeError("a bug")

    outcome = await probe(make_prober(lookup=broken), spec("http://good.test/"))
    check(outcome)
    assert (outcome.status, outcome.error_code) == ("unknown", "local")
    assert outcome.error_message == "polling good.test:80: error in the prober itself, its worker's log has it"
    assert "a bug" in caplog.text


# ---- the tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ECONNREFUSED, "connect_refused"),
        (errno.EHOSTUNREACH, "connect_unreachable"),
        (errno.ENETUNREACH, "connect_unreachable"),
        (errno.ETIMEDOUT, "connect_timeout"),
        (errno.ECONNRESET, "reset"),
        (errno.EMFILE, "local"),
        (errno.EADDRNOTAVAIL, "local"),
        (errno.ENOBUFS, "local"),
    ],
)
def test_connect_errors(number, code):
    error = from_connect(OSError(number, "x"), "h:80")
    assert error.code == code
    assert "h:80" in error.message
    assert errno.errorcode[number] in error.message


@pytest.mark.parametrize(
    ("numbers", "code", "words"),
    [
        ((errno.ENETUNREACH, errno.ECONNREFUSED), "connect_refused", "connection refused (ECONNREFUSED), network is"),
        ((errno.EHOSTUNREACH, errno.ENETUNREACH), "connect_unreachable", "no route to host (EHOSTUNREACH), network is"),
        ((errno.ECONNREFUSED, errno.EMFILE), "local", "too many open files (EMFILE), connection refused"),
        ((errno.ECONNREFUSED, errno.ECONNREFUSED), "connect_refused", "connection refused (ECONNREFUSED)"),
    ],
)
def test_several_addresses_that_fail_differently(numbers, code, words):
    failures = [OSError(number, "x") for number in numbers]
    error = from_connect(most_telling(failures), "h:80", failures)
    assert error.code == code
    assert f"h:80: {words}" in error.message


async def test_a_host_that_refuses_at_one_address_and_is_out_of_reach_at_the_other(make_prober):
    port = free_port()

    lookup = lookup_of("255.255.255.255", "127.0.0.1")
    outcome = await probe(make_prober(lookup=lookup), spec(f"http://dual.test:{port}/"))
    check(outcome)
    assert outcome.error_code == "connect_refused"
    assert "ECONNREFUSED" in outcome.error_message
    assert "ENETUNREACH" in outcome.error_message


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ECONNRESET, "reset"), (errno.EPIPE, "reset"), (errno.ETIMEDOUT, "read_timeout"), (errno.ENOMEM, "local")],
)
def test_errors_of_an_exchange(number, code):
    assert from_lost(OSError(number, "x"), "h:80", "before it had answered").code == code


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "looking up h: no such name (EAI_NONAME)"),
        (socket.gaierror(-99, "whatever"), "looking up h: no answer (-99)"),
        (OSError(errno.EMFILE, "x"), "looking up h failed on this machine: too many open files (EMFILE)"),
    ],
)
def test_a_failed_lookup_is_told_in_our_words(error, words):
    assert from_lookup(error, "h").message == words


def test_errors_of_lookup_and_handshake():
    assert from_lookup(socket.gaierror(socket.EAI_AGAIN, "Try again"), "h").code == "dns"
    assert from_lookup(socket.gaierror(socket.EAI_MEMORY, "Memory"), "h").code == "local"
    assert from_lookup(OSError(errno.EMFILE, "x"), "h").code == "local"
    assert from_handshake(OSError(errno.ETIMEDOUT, "x"), "h:443").code == "connect_timeout"
    assert from_handshake(OSError(errno.ECONNRESET, "x"), "h:443").code == "reset"
