"""The clock under a system clock that is set, drifts, or stands still; time is made by hand."""

import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import clock as clock_module
from cluster.clock import SLEW_MS_PER_CALL, STEP_MS, Clock

SECOND_NS = 1_000_000_000
START_NS = 1_700_000_000 * SECOND_NS


class FakeTime:
    """A monotonic clock, and a wall clock that somebody sets."""

    def __init__(self):
        self.monotonic = 5_000 * SECOND_NS
        self.wall = START_NS

    def time_ns(self):
        return self.wall

    def monotonic_ns(self):
        return self.monotonic

    def pass_ms(self, ms):
        self.monotonic += ms * 1_000_000
        self.wall += ms * 1_000_000

    def set_ms(self, difference_ms):
        self.wall += difference_ms * 1_000_000


@pytest.fixture
def fake_time(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(clock_module, "time", fake)
    return fake


def off_by_ms(clock, fake):
    return clock.now_ms() - fake.wall / 1e6


@pytest.mark.parametrize("jump", [True, False])
def test_it_agrees_with_the_wall_and_passes_with_the_monotonic_clock(fake_time, jump):
    clock = Clock(jump=jump)
    assert clock.now_ms() == pytest.approx(START_NS / 1e6, abs=1)
    fake_time.pass_ms(12_345)
    assert clock.now_ms() == pytest.approx(START_NS / 1e6 + 12_345, abs=1)
    assert clock.now_us() == pytest.approx(START_NS / 1e3 + 12_345_000, abs=1_000)


def test_a_step_of_the_system_clock_alone_changes_nothing(fake_time):
    """Deadlines run on: only ``follow`` moves the clock."""
    clock = Clock(jump=True)
    before = clock.now_ms()
    fake_time.set_ms(3_600_000)
    assert clock.now_ms() == before


def test_a_suspended_machine_is_caught_up_with_at_once_when_it_may_jump(fake_time):
    clock = Clock(jump=True)
    fake_time.set_ms(STEP_MS * 10)
    clock.follow()
    assert off_by_ms(clock, fake_time) == pytest.approx(0, abs=1)


def test_who_measures_others_does_not_jump(fake_time):
    clock = Clock(jump=False)
    before = clock.now_ms()
    fake_time.set_ms(STEP_MS * 10)
    clock.follow()
    assert clock.now_ms() - before <= SLEW_MS_PER_CALL + 1


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize("difference_ms", [300, -300, -1_900])
def test_small_differences_are_slewed_in(fake_time, jump, difference_ms):
    clock = Clock(jump=jump)
    fake_time.set_ms(difference_ms)
    for _ in range(abs(difference_ms) // SLEW_MS_PER_CALL + 1):
        fake_time.pass_ms(1_000)
        clock.follow()
    assert off_by_ms(clock, fake_time) == pytest.approx(0, abs=1)


def test_a_step_back_is_only_ever_slewed(fake_time):
    clock = Clock(jump=True)
    fake_time.set_ms(-3_600_000)
    before = clock.now_ms()
    fake_time.pass_ms(1_000)
    clock.follow()
    assert clock.now_ms() - before == pytest.approx(1_000 - SLEW_MS_PER_CALL, abs=2)


@pytest.mark.parametrize("jump", [True, False])
def test_it_does_not_go_back_where_it_is_slewed(fake_time, jump):
    """A core may be asked just before and just after a ``follow``."""
    clock = Clock(jump=jump)
    fake_time.set_ms(-500)
    ms, us = clock.now_ms(), clock.now_us()
    clock.follow()
    assert clock.now_ms() >= ms
    assert clock.now_us() >= us


@given(
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(["pass", "set", "follow"]), st.integers(min_value=-5_000, max_value=5_000)),
        max_size=60,
    ),
)
def test_it_never_goes_back(jump, steps):
    fake = FakeTime()
    real, clock_module.time = clock_module.time, fake
    try:
        clock = Clock(jump=jump)
        last_ms, last_us = clock.now_ms(), clock.now_us()
        for kind, amount_ms in steps:
            match kind:
                case "pass":
                    fake.pass_ms(abs(amount_ms))
                case "set":
                    fake.set_ms(amount_ms)
                case "follow":
                    clock.follow()
            now_ms, now_us = clock.now_ms(), clock.now_us()
            assert now_ms >= last_ms
            assert now_us >= last_us
            last_ms, last_us = now_ms, now_us
    finally:
        clock_module.time = real


def test_the_module_is_as_it_was():
    assert isinstance(clock_module.time, types.ModuleType)
