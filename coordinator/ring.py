"""Consistent hashing of partitions onto workers, with bounded loads.

``assign`` is pure and deterministic.  Each worker stands at ``POINTS_PER_WORKER`` points of a ring of 64-bit hashes; a
partition prefers the workers in the order in which it meets them walking up from its own hash.  Loads are bounded: no
worker above (1 + EPSILON) of the mean, wherever single partitions are small enough to allow it.

What only moves when it must:

- A partition stays with its owner while that is a member and not overloaded.
- A leaver's partitions go to their next preference with room.
- A newcomer gets the partitions that prefer it to everyone else, up to its fair share in weight and in number.
- An overloaded worker sheds to next preferences until it is below the bound, those first that prefer another anyway.

Placement stops at ``PLACE_BOUND``, below the bound that triggers shedding, so that small drifts move nothing.
"""

from bisect import bisect
from collections.abc import Iterator, Sequence
from functools import lru_cache

from xxhash import xxh3_64_intdigest

EPSILON = 0.15
PLACE_BOUND = 1.10
POINTS_PER_WORKER = 512
_MINIMUM_SHARE = 1e-3  # of the mean partition's weight: so that partitions without projects are spread, too


@lru_cache(maxsize=8)
def _ring(members: tuple[str, ...]) -> tuple[list[int], list[str]]:
    points = sorted(
        (xxh3_64_intdigest(f"{member}#{point}".encode()), member)
        for member in members
        for point in range(POINTS_PER_WORKER)
    )
    return [position for position, _ in points], [member for _, member in points]


def preferences(partition: int, members: tuple[str, ...]) -> Iterator[str]:
    """The members in the order in which the partition prefers them; each once."""
    positions, owners = _ring(members)
    start = bisect(positions, xxh3_64_intdigest(partition.to_bytes(2, "little")))
    seen: set[str] = set()
    for step in range(len(owners)):
        member = owners[(start + step) % len(owners)]
        if member not in seen:
            seen.add(member)
            yield member
            if len(seen) == len(members):
                return


def effective_weights(weights: Sequence[float]) -> list[float]:
    """Weights with a small floor; all 1 when there is no weight at all."""
    mean = sum(weights) / len(weights)
    floor = mean * _MINIMUM_SHARE or 1.0
    return [weight + floor for weight in weights]


def overloaded(weights: Sequence[float], owners: Sequence[str | None], members: Sequence[str]) -> bool:
    """Is a member above (1 + EPSILON) of the mean?"""
    if not members:
        return False
    effective = effective_weights(weights)
    loads = _loads(effective, owners, members)
    return max(loads.values()) > (1 + EPSILON) * sum(effective) / len(members)


def assign(weights: Sequence[float], members: Sequence[str], current: Sequence[str | None]) -> list[str | None]:
    """Who is to own each partition, given who owns (or is about to own) it now.

    ``weights`` and ``current`` are indexed by partition.  Without members everything is None.
    """
    if not members:
        return [None] * len(weights)
    names = tuple(sorted(members))
    effective = effective_weights(weights)
    mean = sum(effective) / len(names)
    member_set = set(names)
    newcomers = member_set - set(current)
    owners: list[str | None] = [owner if owner in member_set else None for owner in current]
    loads = _loads(effective, owners, names)

    orphans = [partition for partition, owner in enumerate(owners) if owner is None]
    settled = [partition for partition, owner in enumerate(owners) if owner is not None]
    if newcomers and settled:
        _welcome(newcomers, settled, effective, owners, loads, names, mean)
    orphans.sort(key=lambda partition: -effective[partition])
    for partition in orphans:
        owner = _place(partition, effective[partition], loads, names, mean)
        owners[partition] = owner
        loads[owner] += effective[partition]
    _shed(effective, owners, loads, names, mean)
    return owners


def _loads(effective: Sequence[float], owners: Sequence[str | None], members: Sequence[str]) -> dict[str, float]:
    loads = dict.fromkeys(members, 0.0)
    for partition, owner in enumerate(owners):
        if owner is not None and owner in loads:
            loads[owner] += effective[partition]
    return loads


def _place(partition: int, weight: float, loads: dict[str, float], names: tuple[str, ...], mean: float) -> str:
    for member in preferences(partition, names):
        if loads[member] + weight <= PLACE_BOUND * mean:
            return member
    return min(names, key=lambda member: (loads[member], member))


def _welcome(
    newcomers: set[str],
    settled: list[int],
    effective: Sequence[float],
    owners: list[str | None],
    loads: dict[str, float],
    names: tuple[str, ...],
    mean: float,
) -> None:
    fair_count = len(effective) / len(names)
    counts = dict.fromkeys(newcomers, 0)
    for partition in settled:
        member = next(preferences(partition, names))
        if member in newcomers and counts[member] + 1 <= fair_count and loads[member] + effective[partition] <= mean:
            loads[owners[partition] or ""] -= effective[partition]
            owners[partition] = member
            loads[member] += effective[partition]
            counts[member] += 1


def _shed(
    effective: Sequence[float],
    owners: list[str | None],
    loads: dict[str, float],
    names: tuple[str, ...],
    mean: float,
) -> None:
    for giver in names:
        if loads[giver] <= (1 + EPSILON) * mean:
            continue
        mine = [p for p, owner in enumerate(owners) if owner == giver and effective[p] < mean]
        mine.sort(key=lambda p: (next(preferences(p, names)) == giver, -effective[p]))
        for partition in mine:
            if loads[giver] <= PLACE_BOUND * mean:
                break
            weight = effective[partition]
            for member in preferences(partition, names):
                if member != giver and loads[member] + weight <= PLACE_BOUND * mean:
                    owners[partition] = member
                    loads[giver] -= weight
                    loads[member] += weight
                    break
