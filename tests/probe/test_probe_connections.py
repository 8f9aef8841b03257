"""Keep-alive, the one retry, phases, cancellation, closing: holds for every engine (the pool's own rules below)."""

import asyncio
import contextlib
import gc
import threading
import time

import pytest
from probe_scripts import WAIT_S, Peer, answer, check, free_port, lookup_of, redirect, spec, until

from cluster.http_options import HttpOptions
from worker.probe.interface import probe
from worker.probe.pool import IdlePool, KeptConnections
from worker.probe.request import Origin

# ---- keep-alive ---------------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again(serve, poll):
    server = await serve(answer())
    first, second = await poll(server.url("/1")), await poll(server.url("/2"))
    assert (first.connection_reused, second.connection_reused) == (False, True)
    assert second.connect_ms is None
    assert second.tls_ms is None
    assert second.remote_address == "127.0.0.1"
    assert second.first_byte_ms > 0
    assert server.connections == 1


async def test_a_tls_connection_is_used_again(serve, poll, server_tls):
    server = await serve(answer(), server_tls)
    first, second = await poll(server.url("/", "good.test")), await poll(server.url("/", "good.test"))
    assert first.tls_ms is not None
    assert (second.connection_reused, second.tls_ms, second.dns_ms) == (True, None, None)


async def test_connections_are_not_shared_between_origins(serve, poll):
    server = await serve(answer())
    await poll(server.url("/", "good.test"))
    assert not (await poll(server.url("/", "other.test"))).connection_reused


@pytest.mark.parametrize("headers", [("Connection: close",), ("connection: Close",)])
async def test_the_server_may_want_it_closed(serve, poll, headers):
    server = await serve(answer(200, b"ok", *headers))
    await poll(server.url())
    await until(lambda: server.open == 0)
    assert not (await poll(server.url())).connection_reused


async def test_http_1_0_is_not_kept(serve, poll):
    server = await serve(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await poll(server.url())
    assert not (await poll(server.url())).connection_reused


async def test_bytes_nobody_asked_for_spoil_a_connection(serve, poll):
    async def chatty(peer: Peer) -> None:
        await peer.request()
        peer.send(answer())
        await talk.wait()
        peer.send(answer(408, b"you are slow"))
        said.set()
        await peer.gone()

    talk, said = asyncio.Event(), asyncio.Event()
    server = await serve(chatty)
    await poll(server.url())
    talk.set()
    await said.wait()
    await until(lambda: server.open == 0)  # it was heard, and the connection given up
    outcome = await poll(server.url())
    assert (outcome.status, outcome.connection_reused) == ("success", False)


# ---- the one retry ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_a_stale_connection_is_no_failure(serve, poll, method, ending):
    async def one_answer(peer: Peer) -> None:
        await peer.request()
        peer.send(answer())
        await peer.reader.readuntil(b"\r\n\r\n")  # the second request is taken, and the connection ends
        if ending == "reset":
            peer.reset()

    body = "data" if method in {"POST", "PUT"} else None
    server = await serve(one_answer)
    await poll(server.url("/1"), method=method, body=body)
    outcome = await poll(server.url("/2"), method=method, body=body)
    assert (outcome.status, outcome.connection_reused) == ("success", False)
    assert outcome.connect_ms is not None
    assert [request.target for request in server.requests] == ["/1", "/2"]
    assert server.requests[1].body == (body or "").encode()


async def test_the_retry_is_on_a_new_connection_though_others_wait(serve, prober):
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number <= 3:
            await gate.wait()
        peer.send(answer())
        await peer.request()

    server = await serve(script)
    first = [asyncio.ensure_future(probe(prober, spec(server.url(), number=n))) for n in range(3)]
    await until(lambda: server.connections == 3)
    gate.set()
    await asyncio.gather(*first)
    outcome = await probe(prober, spec(server.url()))
    check(outcome)
    assert outcome.status == "success"
    assert server.connections == 4
    assert len(server.requests) == 5  # sent twice, not on each connection that waited


async def test_a_retry_is_not_retried(serve, poll):
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            peer.send(answer())
            await peer.reader.read(1)

    server = await serve(script)
    await poll(server.url())
    outcome = await poll(server.url())
    assert (outcome.error_code, outcome.connection_reused) == ("closed", False)
    assert server.connections == 2


async def test_no_retry_once_the_answer_began(serve, poll):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(answer())
        await peer.request()
        peer.send(b"H")

    server = await serve(script)
    await poll(server.url())
    outcome = await poll(server.url())
    assert (outcome.error_code, outcome.connection_reused) == ("closed", True)
    assert server.connections == 1


async def test_no_retry_after_a_time_out(serve, poll):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(answer())
        await peer.gone()

    server = await serve(script)
    await poll(server.url())
    outcome = await poll(server.url(), timeout_ms=100)
    assert (outcome.error_code, outcome.connection_reused) == ("read_timeout", True)
    assert server.connections == 1


async def test_stale_connections_on_two_hops(serve, poll):
    async def one_answer(peer: Peer) -> None:
        await peer.request()
        peer.send(answer())
        await peer.reader.read(1)

    async def redirecting(peer: Peer) -> None:
        while await peer.request():
            peer.send(redirect(302, second.url()))
            if peer.number == 1:
                await peer.reader.read(1)
                return

    second = await serve(one_answer)
    first = await serve(redirecting)
    assert (await poll(first.url())).status == "success"
    assert (await poll(first.url())).status == "success"


# ---- phases -------------------------------------------------------------------------------------------------------


async def test_a_lookup_is_timed_once_and_then_known(serve, poll, names):
    server = await serve(answer(200, b"ok", "Connection: close"))
    first, second = await poll(server.url("/", "good.test")), await poll(server.url("/", "good.test"))
    assert first.dns_ms > 0
    assert second.dns_ms is None
    assert second.connect_ms is not None
    assert names.lookups == ["good.test"]


async def test_one_lookup_serves_all_who_wait(serve, make_prober, names):
    release = threading.Event()

    def slow(host, port):
        release.wait(WAIT_S)
        return names(host, port)

    prober = make_prober(lookup=slow)
    server = await serve(answer())
    polls = [
        asyncio.ensure_future(
            probe(prober, spec(server.url("/", "good.test"), number=n, timeout_ms=100 if n == 0 else 5_000))
        )
        for n in range(5)
    ]
    gave_up = await polls[0]
    assert gave_up.error_code == "dns"
    release.set()
    assert {(await each).status for each in polls[1:]} == {"success"}
    assert names.lookups == ["good.test"]


async def test_waiting_and_transfer_are_told_apart(serve, poll):
    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.1)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        await peer.writer.drain()
        await asyncio.sleep(0.2)
        peer.send(b"def")
        await peer.gone()

    server = await serve(script)
    outcome = await poll(server.url())
    assert 95 <= outcome.first_byte_ms < 190
    assert 195 <= outcome.transfer_ms < 290
    assert outcome.connect_ms < 95


async def test_connect_and_handshake_are_told_apart(serve, poll, server_tls):
    secure = await serve(answer(), server_tls)

    async def delaying(peer: Peer) -> None:
        """Pass a TLS connection on, its first bytes late."""
        reader, writer = await asyncio.open_connection("127.0.0.1", secure.port)

        async def copy(source, sink):
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65_536):
                    sink.write(data)
            sink.close()

        try:
            hello = await peer.reader.read(65_536)
            await asyncio.sleep(0.15)
            writer.write(hello)
            await asyncio.gather(copy(peer.reader, writer), copy(reader, peer.writer))
        finally:
            writer.close()

    relay = await serve(delaying)
    outcome = await poll(f"https://good.test:{relay.port}/")
    assert outcome.status == "success"
    assert outcome.tls_ms >= 145
    assert outcome.connect_ms < 100
    assert outcome.first_byte_ms < 100


async def test_ipv6(serve, poll):
    try:
        server = await serve(answer(), None, "::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    outcome = await poll(f"http://[::1]:{server.port}/")
    assert (outcome.status, outcome.remote_address, outcome.dns_ms) == ("success", "::1", None)
    assert server.requests[0].header("Host") == f"[::1]:{server.port}"


@pytest.mark.parametrize("secure", [False, True])
async def test_of_several_addresses_one_that_answers_is_taken(serve, make_prober, server_tls, secure):
    two = lookup_of("127.0.0.9", "127.0.0.1")
    server = await serve(answer(), server_tls if secure else None)
    prober = make_prober(lookup=two)
    outcome = await probe(prober, spec(server.url("/", "good.test")))
    check(outcome)
    assert (outcome.status, outcome.remote_address) == ("success", "127.0.0.1")
    assert outcome.connect_ms > 0
    assert (outcome.tls_ms is not None) is secure
    assert (await probe(prober, spec(server.url("/", "good.test")))).connection_reused


@pytest.mark.parametrize("secure", [False, True])
async def test_several_addresses_and_none_answers(make_prober, secure):
    two = lookup_of("127.0.0.9", "127.0.0.8")
    outcome = await probe(make_prober(lookup=two), spec(f"http{'s' if secure else ''}://good.test:{free_port()}/"))
    check(outcome)
    assert outcome.error_code == "connect_refused"


async def test_the_address_is_where_the_connection_leads(serve, poll):
    server = await serve(answer())
    outcome = await poll(f"http://0.0.0.0:{server.port}/")
    assert (outcome.status, outcome.remote_address) == ("success", "127.0.0.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "good.test"])
async def test_a_secure_port_where_nothing_listens(poll, host):
    outcome = await poll(f"https://{host}:{free_port()}/")
    assert outcome.error_code == "connect_refused"
    assert (outcome.connect_ms, outcome.tls_ms, outcome.remote_address) == (None, None, None)


# ---- cancelling and closing ---------------------------------------------------------------------------------------


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.gone()


async def test_done_is_never_called_from_within_start(serve, prober):
    outcomes = []
    prober.start(spec("nonsense"), outcomes.append)
    assert outcomes == []
    assert prober.in_flight == 1
    await until(lambda: outcomes)
    await until(lambda: prober.in_flight == 0)
    assert len(outcomes) == 1


@pytest.mark.parametrize("begun", [True, False])
async def test_cancel_all_aborts_in_silence(serve, prober, begun):
    server = await serve(silent)
    outcomes = []
    for number in range(5):
        prober.start(spec(server.url(), number=number, timeout_ms=60), outcomes.append)
    assert prober.in_flight == 5
    if begun:
        await until(lambda: len(server.requests) == 5)
    prober.cancel_all()
    await until(lambda: prober.in_flight == 0)
    await until(lambda: server.open == 0)
    # It goes on; and when this one is over, the deadlines of those, which began before it, are past.
    assert (await probe(prober, spec(server.url(), timeout_ms=100))).error_code == "read_timeout"
    assert outcomes == []


async def test_a_cancelled_poll_stays_silent_when_its_time_is_up_too(serve, prober):
    server = await serve(silent)
    outcomes = []
    prober.start(spec(server.url(), timeout_ms=500), outcomes.append)
    await until(lambda: server.requests)
    time.sleep(0.51)  # its deadline is due in the loop's next turn
    prober.cancel_all()
    await until(lambda: prober.in_flight == 0)
    assert outcomes == []


async def test_cancel_all_in_every_phase(serve, prober, server_tls):
    async def mute(peer: Peer) -> None:
        await peer.gone()

    async def half(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await peer.gone()

    handshaking, half_answered = await serve(mute), await serve(half)
    outcomes = []
    prober.start(spec(f"https://127.0.0.1:{handshaking.port}/", number=1), outcomes.append)
    prober.start(spec(half_answered.url(), number=2), outcomes.append)
    await until(lambda: handshaking.open and half_answered.requests)
    prober.cancel_all()
    await until(lambda: prober.in_flight == 0 and handshaking.open == 0 and half_answered.open == 0)
    assert outcomes == []


async def test_a_time_out_closes_its_connection(serve, poll):
    server = await serve(silent)
    assert (await poll(server.url(), timeout_ms=50)).error_code == "read_timeout"
    await until(lambda: server.open == 0)


async def test_close_lets_polls_finish(serve, make_prober):
    async def slow(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.1)
        peer.send(answer())
        await peer.gone()

    prober = make_prober()
    server = await serve(slow)
    outcomes = []
    prober.start(spec(server.url()), outcomes.append)
    await prober.close(5.0)
    assert [outcome.status for outcome in outcomes] == ["success"]
    assert prober.in_flight == 0
    await until(lambda: server.open == 0)


async def test_close_aborts_after_the_grace(serve, make_prober):
    prober = make_prober()
    server = await serve(silent)
    outcomes = []
    prober.start(spec(server.url()), outcomes.append)
    await until(lambda: server.requests)
    await prober.close(0.05)
    assert outcomes == []
    assert prober.in_flight == 0
    await until(lambda: server.open == 0)


async def test_close_closes_idle_connections(serve, make_prober, server_tls):
    prober = make_prober()
    plain, secure = await serve(answer()), await serve(answer(), server_tls)
    assert (await probe(prober, spec(plain.url()))).status == "success"
    assert (await probe(prober, spec(secure.url(), number=2))).status == "success"
    assert plain.open + secure.open == 2
    await prober.close(0)
    await until(lambda: plain.open + secure.open == 0)


async def test_an_error_in_done_reaches_the_loop(serve, prober):
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, details: reported.append(details["exception"]))

    def broken(_outcome):
        raise RuntimeError("taking it failed")

    prober.start(spec("nonsense"), broken)
    await until(lambda: reported)
    assert str(reported[0]) == "taking it failed"
    assert prober.in_flight == 0


# ---- the pool -------------------------------------------------------------------------------


class Idle:
    """As much of a connection as the pool looks at."""

    def __init__(self, host: str = "h", opened_at: float = 0.0) -> None:
        self.origin = Origin("http", host, 80)
        self.opened_at = opened_at
        self.keep = True
        self.discarded = False

    def discard(self) -> None:
        self.discarded = True


def test_the_most_recent_is_taken_first():
    pool = IdlePool()
    old, new, other = Idle(), Idle(), Idle("other")
    for connection in (old, new, other):
        pool.give(connection, 1.0)
    assert pool.take(old.origin, 2.0) is new
    assert pool.take(old.origin, 2.0) is old
    assert pool.take(old.origin, 2.0) is None
    assert len(pool) == 1


def test_over_the_limit_the_longest_idle_goes():
    pool = IdlePool(idle_max=2)
    connections = [Idle(str(number)) for number in range(3)]
    for number, connection in enumerate(connections):
        pool.give(connection, float(number))
    assert [connection.discarded for connection in connections] == [True, False, False]
    assert len(pool) == 2


def test_idle_too_long_or_dead_is_closed():
    pool = IdlePool(idle_s=10.0)
    stale, dead, fresh = Idle("a"), Idle("b"), Idle("c")
    pool.give(stale, 0.0)
    pool.give(dead, 5.0)
    pool.give(fresh, 5.0)
    dead.keep = False
    pool.expire(10.0)
    assert (stale.discarded, dead.discarded, fresh.discarded) == (True, True, False)
    assert pool.drain() == [fresh]
    assert len(pool) == 0


def test_a_connection_grows_old():
    pool = IdlePool(age_max_s=100.0)
    old, older = Idle(opened_at=0.0), Idle(opened_at=0.0)
    pool.give(old, 50.0)
    assert pool.take(old.origin, 100.0) is None
    assert old.discarded
    pool.give(older, 100.0)
    assert older.discarded
    assert len(pool) == 0


def test_the_dead_are_not_handed_out():
    pool = IdlePool()
    good, dead = Idle(), Idle()
    pool.give(good, 0.0)
    pool.give(dead, 0.0)
    dead.keep = False
    assert pool.take(good.origin, 1.0) is good
    assert dead.discarded


async def test_a_connection_that_is_reset_while_it_is_closed_is_no_news():
    loop = asyncio.get_running_loop()
    reported = []
    loop.set_exception_handler(lambda _loop, details: reported.append(details))

    class Reset:
        origin = Origin("http", "h", 80)
        opened_at = 0.0
        keep = True

        def __init__(self) -> None:
            self.closed = loop.create_future()

        def discard(self) -> None:
            self.closed.set_exception(ConnectionResetError("by peer"))

    kept = KeptConnections()
    kept.give(Reset(), 1.0)
    assert await kept.make_room()
    await kept.close()
    gc.collect()
    assert reported == []


async def test_the_end_of_a_certificate_is_known_of_a_new_connection(serve, server_tls, poll):
    secure, plain = await serve(answer(), server_tls), await serve(answer())
    outcome = await poll(f"https://127.0.0.1:{secure.port}/")
    assert outcome.status == "success"
    assert outcome.certificate_expires_at_s > time.time()
    assert (await poll(f"https://127.0.0.1:{secure.port}/")).certificate_expires_at_s is None  # a kept one
    assert (await poll(plain.url())).certificate_expires_at_s is None


async def test_a_certificate_that_was_not_verified_and_one_behind_a_redirect_say_nothing(serve, server_tls, poll):
    secure = await serve(answer(), server_tls)
    url = f"https://127.0.0.1:{secure.port}/"
    outcome = await poll(url, options=HttpOptions(verify_tls=False))
    assert (outcome.status, outcome.certificate_expires_at_s) == ("success", None)
    away = await serve(redirect(302, url))
    outcome = await poll(away.url())
    assert (outcome.status, outcome.certificate_expires_at_s) == ("success", None)
