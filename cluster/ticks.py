"""Tick arithmetic: a pure function of project id and interval, the same in every process.

    h         = xxh3_64(project_id as 8 bytes, little-endian)
    partition = the top 12 bits of h                       (4096 of them)
    phase_ms  = h % interval_ms
    tick k    = phase_ms + k * interval_ms                 (milliseconds since the epoch)

A tick belongs to a span [since, until) when since <= tick < until.
"""

from datetime import UTC, datetime, timedelta

from xxhash import xxh3_64_intdigest

PARTITIONS = 4096
_PARTITION_SHIFT = 64 - 12
UNIT_MS = {"seconds": 1_000, "minutes": 60_000, "hours": 3_600_000}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def milliseconds_of(instant: datetime) -> int:
    return (instant - EPOCH) // _MILLISECOND


def instant_of(instant_ms: int) -> datetime:
    return EPOCH + instant_ms * _MILLISECOND


def project_hash(project_id: int) -> int:
    return xxh3_64_intdigest(project_id.to_bytes(8, "little", signed=True))


def partition_of(project_id: int) -> int:
    return project_hash(project_id) >> _PARTITION_SHIFT


def phase_ms(project_id: int, interval_ms: int) -> int:
    return project_hash(project_id) % interval_ms


def first_tick_from(instant_ms: int, phase: int, interval_ms: int) -> int:
    """The first tick at or after an instant."""
    return instant_ms + (phase - instant_ms) % interval_ms


def last_tick_before(instant_ms: int, phase: int, interval_ms: int) -> int:
    """The last tick strictly before an instant."""
    return instant_ms - 1 - (instant_ms - 1 - phase) % interval_ms


def ticks_in(since_ms: int, until_ms: int, phase: int, interval_ms: int) -> int:
    """How many ticks lie in [since, until)."""
    if until_ms <= since_ms:
        return 0
    return (until_ms - 1 - phase) // interval_ms - (since_ms - 1 - phase) // interval_ms
