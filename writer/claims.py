"""What remains of a missed range when some of its ticks are accounted for elsewhere.

Ranges can be of any length (days of one-second ticks), so the work is in proportion to what is taken from them, never
to the ticks they hold.  Pure: it reads no table.
"""

from collections.abc import Iterable

import msgspec

from cluster.messages.results import MissedRange


def subtract(
    claim: MissedRange, ticks_taken: Iterable[int], ranges_taken: Iterable[tuple[int, int]]
) -> list[MissedRange]:
    """The parts of ``claim`` that are in neither, in order.

    Instants in ms.  A taken range is given by its first and last tick, both taken.  What lies off the claim's grid or
    outside it takes nothing: a taken range takes the ticks of the claim between its ends.
    """
    first, last, step = claim.first_tick_ms, claim.last_tick_ms, claim.interval_ms
    taken = [(tick, tick) for tick in ticks_taken if first <= tick <= last and (tick - first) % step == 0]
    for start, end in ranges_taken:
        low = max(first, start + (first - start) % step)  # the claim's first tick at or after start
        high = min(last, end - (end - first) % step)  # the claim's last tick at or before end
        if low <= high:
            taken.append((low, high))
    remaining = []
    cursor = first
    for low, high in sorted(taken):
        if low > cursor:
            remaining.append(_part(claim, cursor, low - step))
        cursor = max(cursor, high + step)
    if cursor <= last:
        remaining.append(_part(claim, cursor, last))
    return remaining


def _part(claim: MissedRange, first_ms: int, last_ms: int) -> MissedRange:
    if first_ms == claim.first_tick_ms and last_ms == claim.last_tick_ms:
        return claim
    return msgspec.structs.replace(claim, first_tick_ms=first_ms, last_tick_ms=last_ms)
