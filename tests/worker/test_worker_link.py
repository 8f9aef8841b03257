"""The worker's end of the sequence: what is applied, repeated, refused, asked for again."""

import pytest

from cluster.messages.control import Ack, Limits, Remove, Reset, Resync
from worker.link import RESYNC_AGAIN_MS, CoordinatorLink, Verdict


def reset(session, epoch=1):
    return Reset(session, 1, epoch)


def accept(link, message, epoch=None):
    return link.accept(message, message.session, message.seq, epoch)


@pytest.fixture
def link():
    link = CoordinatorLink(0)
    assert accept(link, reset(10, 3), 3) is Verdict.APPLY
    return link


def test_it_is_introduced_by_a_session():
    fresh = CoordinatorLink(500)
    assert not fresh.introduced
    assert fresh.hello_at_ms == 500
    accept(fresh, reset(1), 1)
    assert fresh.introduced


def test_before_a_session_everything_is_foreign():
    fresh = CoordinatorLink(0)
    assert accept(fresh, Limits(7, 2, 1, 0)) is Verdict.FOREIGN
    assert fresh.answer(Verdict.FOREIGN, 0) == []
    assert fresh.refused == 1


def test_the_sequence_is_applied_in_order(link):
    for seq in (2, 3, 4):
        assert accept(link, Limits(10, seq, 1, 0)) is Verdict.APPLY
        assert link.answer(Verdict.APPLY, 0) == [Ack(10, seq)]


def test_what_was_seen_is_acknowledged_again_and_not_applied(link):
    accept(link, Limits(10, 2, 1, 0))
    for again in (reset(10, 3), Limits(10, 2, 9, 0)):
        assert accept(link, again, 3) is Verdict.REPEATED
        assert link.answer(Verdict.REPEATED, 0) == [Ack(10, 2)]


def test_a_gap_asks_for_a_new_session_but_not_at_every_message(link):
    assert accept(link, Limits(10, 3, 1, 0)) is Verdict.GAP
    assert link.answer(Verdict.GAP, 1_000) == [Resync(10)]
    assert link.answer(Verdict.GAP, 1_000 + RESYNC_AGAIN_MS - 1) == []
    assert link.answer(Verdict.GAP, 1_000 + RESYNC_AGAIN_MS) == [Resync(10)]
    assert accept(link, Limits(10, 2, 1, 0)) is Verdict.APPLY, "go-back-N mends it"


def test_a_new_session_begins_at_one(link):
    accept(link, Limits(10, 2, 1, 0))
    assert accept(link, reset(11, 3), 3) is Verdict.APPLY
    assert (link.session, link.seq) == (11, 1)
    assert accept(link, Limits(10, 3, 1, 0)) is Verdict.FOREIGN
    assert accept(link, Limits(11, 2, 1, 0)) is Verdict.APPLY


@pytest.mark.parametrize(("session", "epoch"), [(9, 3), (12, 2), (9, 2)])
def test_a_coordinator_that_was_replaced_is_refused(link, session, epoch):
    assert accept(link, reset(session, epoch), epoch) is Verdict.FOREIGN
    assert link.session == 10
    assert link.refused == 1


def test_epochs_of_assignments_are_remembered(link):
    assert accept(link, Remove(10, 2, 8, []), 8) is Verdict.APPLY
    assert link.epoch == 8
    assert accept(link, reset(11, 7), 7) is Verdict.FOREIGN
    assert accept(link, reset(11, 8), 8) is Verdict.APPLY
