"""Latency sketches: how many values fell into each of a fixed row of buckets, so that those of many hours add up.

After DDSketch (Masson, Rim, Lee: "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees",
VLDB 2019): buckets grow by GAMMA, and the middle of a bucket is within RELATIVE_ERROR of all that is in it.  Below
LOWEST_MS everything is one bucket, and so it is from the last bound (beyond any time-out) on.

A sketch in PostgreSQL is a numeric: the sum over all values of ``10 ^ (8 * bucket)`` (table rollup_weights), eight
decimal digits for the count of each bucket.  So ``sum()`` over values makes one, and ``sum()`` over sketches merges
them, both in C; zeros before the first and behind the last bucket take no space.  Counts must stay below COUNT_MAX.
PostgreSQL finds the bucket by ``width_bucket(value, BOUNDS_MS)``, so both sides use the same numbers.

Pure, and exact but for the width of buckets: merging is addition, so it does not matter in which order.
"""

import math
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

RELATIVE_ERROR = 0.02
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
LOWEST_MS = 0.1
HIGHEST_MS = 700_000.0
BOUNDS_MS = tuple(LOWEST_MS * GAMMA**n for n in range(math.ceil(math.log(HIGHEST_MS / LOWEST_MS, GAMMA)) + 1))
BUCKETS = len(BOUNDS_MS) + 1
DIGITS = 8  # of each count; two of PostgreSQL's own digits, which are of base 10,000
COUNT_MAX = 10**DIGITS - 1
_BASE = 10_000
_MIDDLES_MS = (
    LOWEST_MS,
    *(2 * low * GAMMA / (1 + GAMMA) for low in BOUNDS_MS[:-1]),
    BOUNDS_MS[-1],
)
_HEAD = struct.Struct("!hhHH")  # digits, weight of the first, sign, scale: what numeric_send() puts first

Sketch = dict[int, int]  # count by bucket; none is 0


def bucket_of(value_ms: float) -> int:
    return bisect_right(BOUNDS_MS, value_ms)


def sketch_of(values_ms: Iterable[float]) -> Sketch:
    sketch: Sketch = {}
    for value_ms in values_ms:
        bucket = bucket_of(value_ms)
        sketch[bucket] = sketch.get(bucket, 0) + 1
    return sketch


def merge(sketches: Iterable[Sketch]) -> Sketch:
    merged: Sketch = {}
    for sketch in sketches:
        for bucket, count in sketch.items():
            merged[bucket] = merged.get(bucket, 0) + count
    return merged


def quantiles(sketch: Sketch, shares: Sequence[float]) -> list[float | None]:
    """For each share q of 0..1 the value of rank q * (count - 1), rounded down, within RELATIVE_ERROR."""
    buckets = sorted(sketch)
    return _quantiles(buckets, [sketch[bucket] for bucket in buckets], shares)


def _quantiles(buckets: Sequence[int], counts: Sequence[int], shares: Sequence[float]) -> list[float | None]:
    up_to = list(accumulate(counts))
    if not up_to or not up_to[-1]:
        return [None] * len(shares)
    return [_MIDDLES_MS[buckets[bisect_left(up_to, int(share * (up_to[-1] - 1)) + 1)]] for share in shares]


# ---- as PostgreSQL has them -----------------------------------------------------------------------------------------


def to_numeric(sketch: Sketch) -> int:
    """The number that stands for it."""
    assert all(0 < count <= COUNT_MAX for count in sketch.values()), "a count has DIGITS digits"
    return sum(count * 10 ** (DIGITS * bucket) for bucket, count in sketch.items())


def from_wire(sent: bytes | None) -> Sketch:
    """What ``numeric_send(sketch)`` gives; None is the empty sketch."""
    if sent is None:
        return {}
    first, counts = _counts(sent)
    return {first + n: count for n, count in enumerate(counts) if count}


def quantiles_of_wire(sent: bytes | None, shares: Sequence[float]) -> list[float | None]:
    """``quantiles`` of what ``numeric_send(sketch)`` gives."""
    if sent is None:
        return [None] * len(shares)
    first, counts = _counts(sent)
    return _quantiles(range(first, first + len(counts)), counts, shares)


def _counts(sent: bytes) -> tuple[int, tuple[int, ...]]:
    """The first bucket, and the counts from there on, zeros included."""
    length, weight, _, _ = _HEAD.unpack_from(sent)
    digits = struct.unpack_from(f"!{length}H", sent, _HEAD.size)
    if not digits:
        return 0, ()
    # From the last bucket down, each a high and a low digit; a high one that is 0 does not begin, a low one not end it.
    if weight % 2:
        highs, lows = digits[0::2], digits[1::2]
    else:
        highs, lows = (0, *digits[1::2]), digits[0::2]
    if len(lows) < len(highs):
        lows = (*lows, 0)
    counts = lows[::-1]
    if any(highs):
        counts = tuple(high * _BASE + low for high, low in zip(highs[::-1], counts, strict=True))
    return weight // 2 - len(counts) + 1, counts
