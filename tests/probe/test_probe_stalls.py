"""A loop that stands still is our own fault: whatever the stall fell into, no target is blamed for it."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from probe_scripts import WAIT_S, check, spec, until

from worker.probe import stalls as stalls_module
from worker.probe.interface import probe
from worker.probe.stalls import NOTED_S, Stalls

BODY_BYTES = 600_000  # more than one turn of a loop reads


def answer(body_bytes: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % body_bytes + b"x" * body_bytes


class ServerElsewhere:
    """Answers from a thread of its own, so that it goes on while the loop under test stands still."""

    def __init__(self, answer_after_s: float | None, body_bytes: int) -> None:
        self.answer_after_s = answer_after_s
        self.answer = answer(body_bytes)
        self.asked = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            with client:
                client.recv(65_536)
                self.asked.set()
                if self.answer_after_s is not None:
                    self._over.wait(self.answer_after_s)
                    client.sendall(self.answer)
                self._over.wait(WAIT_S)

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(WAIT_S)


@pytest.fixture
def elsewhere() -> Iterator:
    made = []

    def make(answer_after_s: float | None, body_bytes: int = 2) -> ServerElsewhere:
        made.append(ServerElsewhere(answer_after_s, body_bytes))
        return made[-1]

    yield make
    for server in made:
        server.close()


def stand_still(duration_s: float) -> None:
    """The loop: nothing is read, and no timer runs, meanwhile."""
    until_at = time.monotonic() + duration_s
    while time.monotonic() < until_at:
        time.sleep(0.001)


async def stalled(prober, server: ServerElsewhere, *, timeout_ms: int, stall_s: float):
    poll = asyncio.ensure_future(probe(prober, spec(server.url, timeout_ms=timeout_ms)))
    await until(server.asked.is_set)
    stand_still(stall_s)
    outcome = await asyncio.wait_for(poll, WAIT_S)
    check(outcome)
    return outcome


async def test_an_answer_that_came_while_the_loop_stood_still_is_one(make_prober, elsewhere):
    outcome = await stalled(make_prober(), elsewhere(0.1), timeout_ms=500, stall_s=0.8)  # noticed less than 0.5 s late
    assert (outcome.status, outcome.status_code) == ("success", 200)
    assert outcome.response_time_ms > 700, "it says when the answer was read: at most so long did it take"


async def test_so_is_one_that_takes_many_reads(make_prober, elsewhere):
    server = elsewhere(0.1, BODY_BYTES)
    outcome = await stalled(make_prober(), server, timeout_ms=500, stall_s=0.8)
    assert (outcome.status, outcome.size_bytes) == ("success", BODY_BYTES)


async def test_so_is_one_that_came_while_the_loop_stood_still_for_long(make_prober, elsewhere):
    outcome = await stalled(make_prober(), elsewhere(0.1), timeout_ms=300, stall_s=1.2)
    assert (outcome.status, outcome.status_code) == ("success", 200)


async def test_a_stall_before_the_time_out_passes_is_our_own_fault(make_prober, elsewhere):
    outcome = await stalled(make_prober(), elsewhere(None), timeout_ms=1_000, stall_s=0.75)  # noticed in time
    assert (outcome.status, outcome.error_code, outcome.cause) == ("unknown", "local", "stall")
    assert "127.0.0.1" in outcome.error_message


async def test_a_short_stall_is_no_excuse(make_prober, elsewhere):
    outcome = await stalled(make_prober(), elsewhere(None), timeout_ms=500, stall_s=0.2)
    assert (outcome.status, outcome.error_code) == ("failure", "read_timeout")


async def test_a_stall_before_a_poll_is_no_excuse(make_prober, elsewhere):
    prober = make_prober()
    stand_still(0.8)
    outcome = await stalled(prober, elsewhere(None), timeout_ms=300, stall_s=0.0)
    assert (outcome.status, outcome.error_code) == ("failure", "read_timeout")


async def test_what_is_known_of_stalls():
    stalls = Stalls()
    try:
        begun_at = time.monotonic()
        stand_still(NOTED_S + 0.15)
        now = time.monotonic()
        assert NOTED_S <= stalls.longest_s(begun_at, now) <= now - begun_at, "before its timer ran"
        await until(lambda: stalls.longest_s(begun_at, time.monotonic()) > 0 and len(stalls._kept) == 1)
        later = time.monotonic()
        assert stalls.longest_s(begun_at, later) >= NOTED_S
        assert stalls.longest_s(later, later) == 0.0
        assert stalls.longest_s(now - 0.1, later) <= later - now + 0.1, "only the part that lies behind"
    finally:
        stalls.close()


async def test_stalls_are_bounded(monkeypatch):
    monkeypatch.setattr(stalls_module, "NOTED_S", -1.0)
    monkeypatch.setattr(stalls_module, "SAMPLE_S", 0.0)
    stalls = Stalls()
    try:
        await until(lambda: len(stalls._kept) == stalls_module.KEPT_MAX)
        last = stalls._kept[-1]
        await until(lambda: stalls._kept[-1] != last)
        assert len(stalls._kept) == stalls_module.KEPT_MAX
    finally:
        stalls.close()
