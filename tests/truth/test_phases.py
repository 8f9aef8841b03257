"""Phase times are within max(5 ms, 5 %) of what the servers did, by their own clocks.

The machine is shared: a poll that was held up by something else is made again, up to five times, and the best counts.
"""

import asyncio

import pytest
import uvloop

from tests.truth.phases import PHASE_CASES, Measured, measure
from tests.truth.runs import ENGINES
from tests.truth.servers import Certificates

ATTEMPTS_MAX = 5


@pytest.fixture(scope="module")
def certificates():
    return Certificates()


@pytest.mark.parametrize("case", PHASE_CASES, ids=[case.name for case in PHASE_CASES])
@pytest.mark.parametrize("engine", ENGINES)
def test_phases_are_what_the_servers_did(case, engine, certificates):
    best: Measured | None = None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for _ in range(ATTEMPTS_MAX):
            found = runner.run(measure(case, engine, certificates))
            if best is None or max(found.off().values(), default=0) < max(best.off().values()):
                best = found
            if not best.off():
                return
    raise AssertionError(f"out of tolerance by {best.off()} ms: {best}")


def test_a_measure_that_is_wrong_is_found():
    done = {"dns": None, "connect": 0.5, "tls": None, "first_byte": 200.0, "transfer": 0.0}
    assert Measured(done, {**done, "connect": 5.4, "first_byte": 209.0}, 200.0, 195.1).off() == {}
    assert Measured(done, {**done, "first_byte": 211.0}, 200.0, 200.0).off() == {"first_byte": 1.0}
    assert Measured(done, {**done, "dns": 0.0}, 200.0, 200.0).off() == {"dns": float("inf")}
    assert Measured(done, {**done, "connect": None}, 200.0, 212.0).off() == {"connect": float("inf"), "the whole": 2.0}
