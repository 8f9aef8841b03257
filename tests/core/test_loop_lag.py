"""A loop's lag is what its timers wait."""

import asyncio
import time

from cluster.histogram import BOUNDS_MS
from cluster.loop_lag import LAG_SAMPLE_S, LoopLag

STALL_S = 4 * LAG_SAMPLE_S
DEADLINE_S = 10.0


async def test_a_stall_is_seen_as_far_as_a_sample_waited_for_it() -> None:
    lag = LoopLag()
    lag.start()
    async with asyncio.timeout(DEADLINE_S):
        while not sum(lag.total.counts):
            await asyncio.sleep(0.001)
        lag.beat()
        until = time.monotonic() + STALL_S
        while time.monotonic() < until:
            pass
        while not sum(lag.total.counts[BOUNDS_MS.index(100.0) + 1 :]):
            await asyncio.sleep(0.001)
    assert lag.beat() >= (STALL_S - LAG_SAMPLE_S) * 1000
    assert lag.beat() < (STALL_S - LAG_SAMPLE_S) * 1000
    lag.close()
    seen = sum(lag.total.counts)
    witness = LoopLag()
    witness.start()
    async with asyncio.timeout(DEADLINE_S):
        while sum(witness.total.counts) < 2:
            await asyncio.sleep(0.001)
    witness.close()
    assert sum(lag.total.counts) == seen
