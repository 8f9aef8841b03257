"""Token buckets: how much passes, for how long the rest waits, how much is remembered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.access.rate_limit import RateLimit, address_key


def test_a_burst_passes_and_then_one_at_a_time():
    limit = RateLimit(burst=3, per_s=0.5)
    assert [limit.take("a", 10.0) for _ in range(4)] == [0.0, 0.0, 0.0, 2.0]
    assert limit.take("a", 11.0) == pytest.approx(1.0)
    assert limit.take("a", 12.0) == 0.0
    assert limit.take("a", 12.0) > 0
    assert limit.take("b", 12.0) == 0.0


def test_looking_takes_nothing():
    limit = RateLimit(burst=1, per_s=1.0)
    assert [limit.wait_s("a", 0.0) for _ in range(5)] == [0.0] * 5
    assert len(limit) == 0
    limit.take("a", 0.0)
    assert limit.wait_s("a", 0.25) == pytest.approx(0.75)


def test_what_was_forgiven_is_full_again():
    limit = RateLimit(burst=2, per_s=0.001)
    assert [limit.take("a", 0.0) == 0.0 for _ in range(3)] == [True, True, False]
    limit.forgive("a")
    assert [limit.take("a", 0.0) == 0.0 for _ in range(3)] == [True, True, False]


def test_memory_is_bounded_and_the_busy_ones_are_remembered():
    limit = RateLimit(burst=1, per_s=0.001, keys_max=10)
    limit.take("busy", 0.0)
    for number in range(1_000):
        limit.take(str(number), float(number) / 1_000)
        assert limit.take("busy", float(number) / 1_000) > 0
        assert len(limit) <= 10


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 100)), max_size=60))
def test_no_more_than_the_burst_and_what_has_flowed_in(steps):
    limit = RateLimit(burst=5, per_s=2.0)
    now = 0.0
    passed = {"a": 0, "b": 0}
    for key, wait in steps:
        now += wait
        waited = limit.take(key, now)
        assert waited >= 0
        passed[key] += waited == 0
        assert passed[key] <= 5 + 2.0 * now + 1e-6


def test_a_clock_that_goes_back_gives_nothing():
    limit = RateLimit(burst=1, per_s=1.0)
    limit.take("a", 100.0)
    assert limit.take("a", 50.0) > 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"), (None, "unknown"), ("nonsense", "unknown"),
    ],
)  # fmt: skip
def test_what_is_one_client(address, key):
    assert address_key(address) == key
