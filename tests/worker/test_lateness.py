"""The recent past is between five and ten heartbeats long; totals are forever."""

from worker.lateness import WINDOW_BEATS, Lateness


def test_what_was_late_is_seen_at_the_next_beat_and_forgotten_after_a_while():
    lateness = Lateness()
    lateness.add(800.0)
    assert lateness.beat().max_ms == 800.0
    seen = [lateness.beat().max_ms for _ in range(2 * WINDOW_BEATS)]
    assert seen[: WINDOW_BEATS - 1] == [800.0] * (WINDOW_BEATS - 1)
    assert seen[-1] == 0.0
    assert lateness.total.max_ms == 800.0


def test_beats_add_up_within_the_window():
    lateness = Lateness()
    for _ in range(3):
        lateness.add(4.0)
        recent = lateness.beat()
    assert sum(recent.counts) == 3
    assert sum(lateness.total.counts) == 3


def test_nobody_shares_the_histograms():
    lateness = Lateness()
    lateness.add(1.0)
    first = lateness.beat()
    first.counts[0] += 100
    assert sum(lateness.beat().counts) == 1
