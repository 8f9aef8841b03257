"""What remains of a missed range when some of its ticks are accounted for elsewhere.

A range is a set of ticks, not a stretch of time: after a project's interval has changed, ranges of two grids may lie
across each other, and take from each other only the instants they have in common.

Ranges can be of any length (days of one-second ticks), so the work is in proportion to what is taken from them, never
to the ticks they hold.  Pure: it reads no table.
"""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from cluster.messages.results import MissedRange

COMMON_TICKS_MAX = 1_000  # of two grids; with more in common, one takes everything between its ends from the other


class TakenRange(msgspec.Struct, frozen=True, gc=False):
    """Ticks that are accounted for: first, first + step, ... last.  Instants in ms."""

    first_ms: int
    last_ms: int
    step_ms: int

    @classmethod
    def of(cls, first_ms: int, last_ms: int, ticks: int) -> "TakenRange":
        return cls(first_ms, last_ms, (last_ms - first_ms) // (ticks - 1) if ticks > 1 else 1)


def subtract(claim: MissedRange, ticks_taken: Iterable[int], ranges_taken: Iterable[TakenRange]) -> list[MissedRange]:
    """The parts of ``claim`` that are in neither, in order.  Instants in ms."""
    first, last, step = claim.first_tick_ms, claim.last_tick_ms, claim.interval_ms
    taken = [(tick, tick) for tick in ticks_taken if first <= tick <= last and (tick - first) % step == 0]
    for each in ranges_taken:
        taken += _in_common(claim, each)
    if not taken:
        return [claim]
    remaining = []
    cursor = first
    for low, high in sorted(taken):
        if low > cursor:
            remaining.append(_part(claim, cursor, low - step))
        cursor = max(cursor, high + step)
    if cursor <= last:
        remaining.append(_part(claim, cursor, last))
    return remaining


def _in_common(claim: MissedRange, taken: TakenRange) -> list[tuple[int, int]]:
    """The ticks of the claim that are in the other range, too, as first and last ticks of runs on the claim's grid."""
    first, step, other = claim.first_tick_ms, claim.interval_ms, taken.step_ms
    low, high = max(first, taken.first_ms), min(claim.last_tick_ms, taken.last_ms)
    shared = math.gcd(step, other)
    if low > high or (taken.first_ms - first) % shared:
        return []
    # The first tick of both grids is the solution of two congruences; from there on each multiple of both steps is one.
    steps = (taken.first_ms - first) // shared * pow(step // shared, -1, other // shared) % (other // shared)
    both = math.lcm(step, other)
    low += (first + steps * step - low) % both
    if low > high:
        return []
    if both == step:
        return [(low, high - (high - low) % step)]
    if (high - low) // both < COMMON_TICKS_MAX:
        return [(tick, tick) for tick in range(low, high + 1, both)]
    low, high = max(first, taken.first_ms), min(claim.last_tick_ms, taken.last_ms)
    return [(low + (first - low) % step, high - (high - first) % step)]


def _part(claim: MissedRange, first_ms: int, last_ms: int) -> MissedRange:
    if first_ms == claim.first_tick_ms and last_ms == claim.last_tick_ms:
        return claim
    return msgspec.structs.replace(claim, first_tick_ms=first_ms, last_tick_ms=last_ms)


class RangeIndex:
    """Ranges of one project, to find those that reach into a claim.  Those of one grid have no tick in common."""

    def __init__(self) -> None:
        self._grids: dict[tuple[int, int], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))

    def add(self, missed: MissedRange) -> None:
        step = missed.interval_ms
        firsts, lasts = self._grids[step, missed.first_tick_ms % step]
        place = bisect_left(firsts, missed.first_tick_ms)
        firsts.insert(place, missed.first_tick_ms)
        lasts.insert(place, missed.last_tick_ms)

    def reaching_into(self, claim: MissedRange) -> list[TakenRange]:
        found = []
        for (step, _), (firsts, lasts) in self._grids.items():
            low = bisect_left(lasts, claim.first_tick_ms)
            high = bisect_right(firsts, claim.last_tick_ms)
            found += [TakenRange(firsts[n], lasts[n], step) for n in range(low, high)]
        return found
