"""Lateness and duration histograms: fixed bounds, so that those of many workers add up.

Not a sketch: a percentile is the upper bound of the bucket it falls in, interpolated, which is what a status page
needs.  Bounds are in milliseconds; the last bucket has none.
"""

from bisect import bisect_left

BOUNDS_MS = (0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0,
             750.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 30_000.0, 60_000.0)  # fmt: skip
BUCKETS = len(BOUNDS_MS) + 1


class Histogram:
    __slots__ = ("counts", "max_ms", "sum_ms")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.sum_ms = 0.0
        self.max_ms = 0.0

    def add(self, value_ms: float) -> None:
        self.counts[bisect_left(BOUNDS_MS, value_ms)] += 1
        self.sum_ms += value_ms
        self.max_ms = max(self.max_ms, value_ms)

    def __add__(self, other: "Histogram") -> "Histogram":
        both = Histogram()
        both.counts = [one + another for one, another in zip(self.counts, other.counts, strict=True)]
        both.sum_ms = self.sum_ms + other.sum_ms
        both.max_ms = max(self.max_ms, other.max_ms)
        return both

    def percentile(self, share: float) -> float:
        return percentile(self.counts, share, self.max_ms)


def percentile(counts: list[int], share: float, max_ms: float) -> float:
    """The value below which ``share`` of the samples lie, 0.0 for none; never above ``max_ms``."""
    total = sum(counts)
    if total == 0:
        return 0.0
    rank = share * total
    seen = 0
    for index, count in enumerate(counts):
        if count and seen + count >= rank:
            low = BOUNDS_MS[index - 1] if index else 0.0
            high = BOUNDS_MS[index] if index < len(BOUNDS_MS) else max(max_ms, low)
            return min(low + (high - low) * (rank - seen) / count, max_ms)
        seen += count
    return max_ms
