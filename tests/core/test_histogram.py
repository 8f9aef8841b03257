"""Percentiles of the histogram lie in the bucket of the exact ones, and histograms of many workers add up."""

import math
from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from cluster.histogram import BOUNDS_MS, BUCKETS, Histogram, percentile

values = st.lists(st.floats(min_value=0, max_value=200_000), min_size=1, max_size=200)
shares = st.sampled_from([0.01, 0.1, 0.5, 0.9, 0.99, 1.0])


def filled(samples):
    histogram = Histogram()
    for sample in samples:
        histogram.add(sample)
    return histogram


@given(values, shares)
def test_a_percentile_lies_in_the_bucket_of_the_exact_one(samples, share):
    exact = sorted(samples)[math.ceil(share * len(samples)) - 1]
    bucket = bisect_left(BOUNDS_MS, exact)
    low = BOUNDS_MS[bucket - 1] if bucket else 0.0
    high = BOUNDS_MS[bucket] if bucket < len(BOUNDS_MS) else max(samples)
    assert low <= filled(samples).percentile(share) <= high


@given(values)
def test_percentiles_rise_and_stop_at_the_maximum(samples):
    histogram = filled(samples)
    row = [histogram.percentile(share / 20) for share in range(1, 21)]
    assert row == sorted(row)
    assert row[-1] <= histogram.max_ms == max(samples)
    assert histogram.sum_ms == sum(samples)


@given(values, values)
def test_histograms_of_two_workers_add_up(one, other):
    counts = [a + b for a, b in zip(filled(one).counts, filled(other).counts, strict=True)]
    assert counts == filled(one + other).counts
    assert sum(counts) == len(one) + len(other)


def test_nothing_measured_is_zero():
    assert percentile([0] * BUCKETS, 0.99, 0.0) == 0.0
    assert Histogram().percentile(0.5) == 0.0


def test_a_value_on_a_bound_belongs_below_it():
    counts = filled([BOUNDS_MS[3]]).counts
    assert counts.index(1) == 3


def test_what_is_beyond_all_bounds_is_counted_in_the_last_bucket():
    histogram = filled([500_000.0])
    assert histogram.counts[-1] == 1
    assert histogram.percentile(0.5) <= 500_000.0
