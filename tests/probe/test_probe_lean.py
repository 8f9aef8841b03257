"""The lean engine's own parts: the deadlines, what it keeps, and what a parser that is fed on must not let through."""

import asyncio
import time

import pytest
from probe_scripts import WAIT_S, Names, Peer, answer, check, spec, until

from worker.probe import lean_engine
from worker.probe.deadlines import GRAINS_PER_S, Deadlines
from worker.probe.interface import probe
from worker.probe.lean_engine import LeanProber


@pytest.fixture
async def lean():
    made = LeanProber(body_limit_bytes=1 << 20, lookup=Names())
    yield made
    await made.close(0)


# ---- deadlines ------------------------------------------------------------------------------------------------------


async def test_a_deadline_is_never_early_and_hardly_late():
    expired = []
    deadlines = Deadlines(lambda item: expired.append((item, time.monotonic())))
    now = time.monotonic()
    wanted = [now + number * 0.007 for number in range(60)]
    for at in reversed(wanted):  # each is earlier than those before it
        deadlines.add(at, at)
    assert sorted(deadlines) == wanted
    await until(lambda: len(expired) == len(wanted))
    grains = [int(at * GRAINS_PER_S) for at, _ in expired]
    assert grains == sorted(grains)
    assert all(noticed >= at for at, noticed in expired)
    # Most of them: this process shares the machine.
    late = sorted(noticed - at for at, noticed in expired)
    assert late[len(late) // 2] <= 0.05, late
    deadlines.close()


async def test_what_is_over_does_not_expire():
    expired = []
    deadlines = Deadlines(expired.append)
    now = time.monotonic()
    for name in ("over", "due"):
        grain = deadlines.add(name, now + 0.01)
        if name == "over":
            grain.discard(name)
    await until(lambda: expired)
    assert expired == ["due"]
    assert list(deadlines) == []
    deadlines.close()


async def test_an_error_in_one_expiry_leaves_the_others():
    expired, reported = [], []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, details: reported.append(details))

    def broken(number):
        expired.append(number)
        raise RuntimeError("a bug")

    deadlines = Deadlines(broken)
    at = time.monotonic()
    for number in range(3):
        deadlines.add(number, at)
    await until(lambda: len(expired) == 3)
    assert len(reported) == 3
    deadlines.close()


@pytest.mark.parametrize("timeout_ms", [1, 60, 110])
async def test_a_poll_has_all_of_its_time(serve, lean, timeout_ms):
    async def silent(peer: Peer) -> None:
        await peer.gone()

    server = await serve(silent)
    begun_at = time.monotonic()
    outcome = await probe(lean, spec(server.url(), timeout_ms=timeout_ms))
    assert time.monotonic() - begun_at >= timeout_ms / 1e3
    check(outcome)
    assert outcome.status == "failure"


# ---- polls without a task -------------------------------------------------------------------------------------------


async def test_a_poll_on_a_kept_connection_makes_no_task(serve, lean):
    server = await serve(answer())
    await probe(lean, spec(server.url()))
    outcomes = []
    before = asyncio.all_tasks()
    lean.start(spec(server.url()), outcomes.append)
    assert asyncio.all_tasks() == before
    await until(lambda: outcomes)
    assert outcomes[0].connection_reused


async def test_the_next_poll_may_start_from_within_done(serve, lean):
    server = await serve(answer())
    outcomes = []
    over = asyncio.get_running_loop().create_future()

    def again(outcome):
        outcomes.append(outcome)
        if len(outcomes) < 100:
            lean.start(spec(server.url()), again)
        else:
            over.set_result(None)

    lean.start(spec(server.url()), again)
    await asyncio.wait_for(over, WAIT_S)
    assert {outcome.status for outcome in outcomes} == {"success"}
    assert (server.connections, lean.in_flight) == (1, 0)


# ---- what is prepared -----------------------------------------------------------------------------------------------


async def test_a_changed_project_is_prepared_anew(serve, lean):
    server = await serve(answer())
    for path in ("/1", "/1", "/2"):
        assert (await probe(lean, spec(server.url(path)))).status == "success"
    assert [request.target for request in server.requests] == ["/1", "/1", "/2"]
    assert len(lean._plans) == 1


async def test_few_projects_are_kept_prepared_and_no_large_ones(serve, lean, monkeypatch):
    monkeypatch.setattr(lean_engine, "PLANS_MAX", 3)
    server = await serve(answer())
    for number in range(5):
        await probe(lean, spec(server.url(), number=number))
        assert len(lean._plans) <= 3
    assert list(lean._plans) == [3, 4]
    await probe(lean, spec(server.url(), number=9, method="POST", body="x" * lean_engine.PLAN_MAX_BYTES))
    assert list(lean._plans) == [3, 4]


# ---- what is left over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [b"H", b"HTTP/1.1 4", b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nno", b"\x00"])
async def test_what_is_behind_an_answer_never_becomes_the_next_ones(serve, lean, more):
    server = await serve(answer() + more)
    for _ in range(2):
        outcome = await probe(lean, spec(server.url()))
        check(outcome)
        assert (outcome.status, outcome.size_bytes, outcome.connection_reused) == ("success", 2, False)


@pytest.mark.parametrize("body", [b"5\r\nhel", b"0\r\n\r\n", b"2\r"])
async def test_a_chunked_body_behind_head_spoils_the_connection(serve, lean, body):
    server = await serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    for _ in range(2):
        outcome = await probe(lean, spec(server.url(), method="HEAD"))
        assert (outcome.status, outcome.size_bytes, outcome.connection_reused) == ("success", 0, False)


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", True),
    ],
)
async def test_head_without_a_length_keeps_the_connection(serve, lean, head, kept):
    server = await serve(head)
    assert (await probe(lean, spec(server.url(), method="HEAD"))).status == "success"
    assert (await probe(lean, spec(server.url(), method="HEAD"))).connection_reused is kept


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_answer_before_the_request_is_an_answer(serve, lean, method):
    async def script(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 408 T\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await peer.gone()

    server = await serve(script)
    outcome = await probe(lean, spec(server.url(), method=method, expected_status="408"))
    check(outcome)
    assert (outcome.status, outcome.status_code) == ("success", 408)
