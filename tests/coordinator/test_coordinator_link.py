"""The sequence to one worker: window, cumulative acks, going back after a silence."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from coordinator.link import RESEND_MS, WINDOW, WorkerLink


class Word(msgspec.Struct, frozen=True):
    seq: int


def link():
    return WorkerLink(b"p", 7)


def push(link, now_ms=0, note=None):
    return link.push(Word(link.number()), note, now_ms)


def test_numbers_have_no_holes():
    side = link()
    assert [push(side).seq for _ in range(3)] == [1, 2, 3]


def test_the_window_closes_and_an_ack_opens_it():
    side = link()
    while side.has_room:
        push(side)
    assert side.next_seq == WINDOW + 1
    side.ack(7, 1, 0)
    assert side.has_room


def test_acks_are_cumulative_and_told_once_in_order():
    side = link()
    for note in "abc":
        push(side, note=note)
    assert [entry.note for entry in side.ack(7, 2, 0)] == ["a", "b"]
    assert side.ack(7, 2, 0) == []
    assert side.ack(7, 1, 0) == []
    assert [entry.note for entry in side.ack(7, 3, 0)] == ["c"]
    assert side.settled
    assert side.acked_seq == 3


def test_an_ack_of_another_session_or_of_what_was_never_said_is_ignored():
    side = link()
    push(side)
    assert side.ack(6, 1, 0) == []
    assert side.ack(7, 2, 0) == []
    assert not side.settled


def test_silence_sends_everything_again_and_then_waits():
    side = link()
    sent = [push(side, 100), push(side, 600)]
    assert side.resend(100 + RESEND_MS - 1) == []
    assert side.resend(100 + RESEND_MS) == sent
    assert side.resend(100 + RESEND_MS + 1) == []
    assert side.resend(100 + 2 * RESEND_MS) == sent


def test_progress_puts_the_next_attempt_off():
    side = link()
    push(side, 0)
    second = push(side, 0)
    side.ack(7, 1, 1_500)
    assert side.resend(RESEND_MS) == []
    assert side.resend(1_500 + RESEND_MS) == [second]


def test_nothing_is_sent_again_when_all_is_acknowledged():
    side = link()
    push(side)
    side.ack(7, 1, 0)
    assert side.resend_at() is None
    assert side.resend(10**9) == []


def test_a_message_after_a_long_calm_has_its_full_time():
    side = link()
    push(side, 0)
    side.ack(7, 1, 0)
    push(side, 50_000)
    assert side.resend(50_001) == []


@given(st.lists(st.integers(min_value=-3, max_value=25), max_size=60))
def test_what_was_sent_is_what_is_acknowledged_plus_what_is_open(script):
    """Positive: an ack up to there, else messages to push; whatever comes, nothing is lost and nothing told twice."""
    side = link()
    told = []
    for step in script:
        if step <= 0:
            for _ in range(-step):
                if side.has_room:
                    push(side, note=side.number())
        else:
            told += [entry.note for entry in side.ack(7, step, 0)]
        unacked = [entry.seq for entry in side.unacked()]
        assert told + unacked == list(range(1, side.next_seq))
        assert len(unacked) <= WINDOW
