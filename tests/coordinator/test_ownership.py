"""Partitions through grants, cuts, deaths and restarts: where the next owner goes on."""

import random

import pytest

from cluster.messages.control import BusyProject, Cut, WaitingPoll
from cluster.ticks import PARTITIONS, partition_of
from coordinator.ownership import Ownership, Resume

P = partition_of(1)
OTHER = (P + 1) % PARTITIONS
WAITING = WaitingPoll(1, 5_000, "tick")
BUSY = BusyProject(1, 40_000)


def ownership(mark_ms=1_000, **options):
    marks = [None] * PARTITIONS
    marks[P] = mark_ms
    return Ownership(marks, **options)


def granted(book, worker="a", epoch=1, seq=2):
    book.granted(P, worker, epoch, seq)
    book.grant_acked(P, worker, seq)
    return book.partitions[P]


def released(book, one, worker, *, same_session=True):
    return book.released(one, worker, same_session=same_session)


def cut(cut_ms=9_000, epoch=1, waiting=(), busy=(), *, fresh=True):
    return Cut(P, epoch, cut_ms, list(waiting), list(busy), fresh)


def test_a_new_cluster_resumes_nowhere_and_counts_time_before_as_down():
    book = Ownership([])
    assert len(book.partitions) == PARTITIONS
    assert book.partitions[0].resume == Resume(None, "down")
    assert book.assigned() == 0


def test_a_restarted_cluster_resumes_after_its_marks():
    assert ownership(cold_reason="handover").partitions[P].resume == Resume(1_000, "handover")


def test_a_resume_point_is_kept_until_its_grant_is_acknowledged():
    book = ownership()
    book.granted(P, "a", 1, 2)
    assert book.partitions[P].resume is not None
    book.grant_acked(P, "b", 2)
    book.grant_acked(P, "a", 3)
    assert book.partitions[P].resume is not None
    book.grant_acked(P, "a", 2)
    assert book.partitions[P].resume is None


def test_a_partition_is_never_granted_over_its_owners_head():
    book = ownership()
    granted(book)
    with pytest.raises(AssertionError):
        book.granted(P, "b", 2, 2)


def test_a_cut_is_where_the_next_owner_goes_on():
    book = ownership()
    granted(book)
    assert released(book, cut(waiting=[WAITING], busy=[BUSY]), "a")
    partition = book.partitions[P]
    assert partition.owner is None
    assert partition.resume == Resume(9_000, "handover", [WAITING])
    assert book.still_busy(P, 39_999) == [BUSY]
    assert book.still_busy(P, 40_000) == []


@pytest.mark.parametrize(("worker", "epoch"), [("b", 1), ("a", 0), ("a", 2)])
def test_a_cut_that_is_old_news_changes_nothing(worker, epoch):
    book = ownership()
    granted(book)
    assert not released(book, cut(epoch=epoch), worker)
    assert book.partitions[P].owner == "a"


def test_a_cut_that_comes_twice_counts_once():
    book = ownership()
    granted(book)
    assert released(book, cut(), "a")
    assert not released(book, cut(), "a")


def test_a_worker_that_never_had_it_gives_back_the_resume_point():
    """The grant was lost with its session: whoever is next goes on from where that one would have."""
    book = ownership()
    granted(book)
    released(book, cut(waiting=[WAITING]), "a")
    book.granted(P, "b", 2, 5)
    book.session_opened("b")
    assert released(book, cut(cut_ms=None, epoch=0), "b")
    resume = book.partitions[P].resume
    assert (resume.after_ms, resume.reason) == (9_000, "handover")
    assert [poll.scheduled_at_ms for poll in resume.waiting] == [5_000]


def test_an_answer_of_a_former_session_does_not_give_up_what_was_granted_since():
    book = ownership()
    granted(book)
    assert not released(book, cut(cut_ms=None, epoch=0), "a")
    assert not released(book, cut(cut_ms=None, epoch=0), "a", same_session=False)
    assert book.partitions[P].owner == "a"


def test_a_remembered_cut_of_an_older_grant_gives_the_partition_up_and_says_nothing_new():
    """It held the partition once, under an older epoch; the grant in force never reached it."""
    book = ownership(mark_ms=20_000)
    book.granted(P, "a", 3, 5)
    book.session_opened("a")
    assert released(book, cut(cut_ms=9_000, epoch=1, fresh=False), "a")
    assert book.partitions[P].owner is None
    assert book.partitions[P].resume.after_ms == 20_000


def test_a_fresh_cut_of_an_older_grant_counts():
    """It held the partition until now, by the grant before: its cut is exact."""
    book = ownership(mark_ms=1_000)
    book.granted(P, "a", 3, 5)
    book.session_opened("a")
    assert released(book, cut(cut_ms=9_000, epoch=1), "a")
    assert book.partitions[P].resume == Resume(9_000, "handover")


def test_death_resumes_after_the_mark():
    book = ownership()
    granted(book)
    book.committed("a", 2, 7_000, {})
    assert book.lost("a") == [P]
    assert book.partitions[P].resume == Resume(7_000, "handover")
    assert book.lost("a") == []


def test_death_before_the_ack_resumes_where_the_dead_would_have():
    book = ownership()
    granted(book)
    released(book, cut(cut_ms=9_000), "a")
    book.granted(P, "b", 2, 5)
    book.lost("b")
    assert book.partitions[P].resume.after_ms == 9_000


def test_death_after_the_ack_and_before_the_first_commit_still_knows_the_cut():
    """The mark is older than the cut: ticks between them were taken care of by an owner that lived."""
    book = ownership(mark_ms=1_000)
    granted(book)
    released(book, cut(cut_ms=9_000, waiting=[WAITING]), "a")
    granted(book, "b", 2, 5)
    book.lost("b")
    resume = book.partitions[P].resume
    assert resume.after_ms == 9_000
    assert [poll.scheduled_at_ms for poll in resume.waiting] == [5_000]


def test_what_waited_and_is_committed_since_does_not_wait_again():
    book = ownership(mark_ms=1_000)
    granted(book)
    released(book, cut(cut_ms=9_000, waiting=[WAITING]), "a")
    granted(book, "b", 2, 5)
    book.committed("b", 5, 8_000, {})
    book.lost("b")
    assert book.partitions[P].resume.waiting == []


def test_only_a_heartbeat_made_after_the_grant_speaks_for_it():
    book = ownership()
    granted(book, seq=5)
    book.committed("a", 4, 50_000, {})
    assert book.partitions[P].mark_ms == 1_000
    book.committed("a", 5, 50_000, {})
    assert book.partitions[P].mark_ms == 50_000


def test_a_mark_stops_before_what_is_not_committed():
    book = ownership()
    granted(book)
    book.committed("a", 2, 9_000, {P: 6_000})
    assert book.partitions[P].mark_ms == 5_999


def test_an_old_heartbeat_does_not_take_a_mark_back():
    book = ownership()
    granted(book)
    book.committed("a", 2, 9_000, {})
    book.committed("a", 2, 5_000, {})
    assert book.partitions[P].mark_ms == 9_000


def test_a_mark_goes_back_for_a_tick_that_lags():
    """Of a project that the owner heard of after it had made the mark."""
    book = ownership()
    granted(book)
    book.committed("a", 2, 9_000, {})
    book.committed("a", 3, 10_000, {P: 8_500})
    assert book.partitions[P].mark_ms == 8_499
    book.lost("a")
    assert book.partitions[P].resume == Resume(8_499, "handover")


def test_what_lags_in_another_partition_does_not_matter():
    book = ownership()
    granted(book)
    book.committed("a", 2, 9_000, {OTHER: 4_000})
    assert book.partitions[P].mark_ms == 9_000
    assert book.partitions[OTHER].mark_ms is None


def test_while_a_revoke_is_under_way_no_heartbeat_speaks_for_the_partition():
    book = ownership()
    granted(book)
    book.partitions[P].revoked_at_ms = 8_000
    book.committed("a", 2, 9_000, {})
    assert book.partitions[P].mark_ms == 1_000


def test_a_heartbeat_of_another_does_not_speak_for_it():
    book = ownership()
    granted(book)
    book.committed("b", 99, 9_000, {})
    assert book.partitions[P].mark_ms == 1_000


def test_of_two_that_say_they_hold_it_the_newer_grant_wins():
    book = ownership()
    assert book.adopt(P, "a", 3)
    assert not book.adopt(P, "b", 3)
    assert not book.adopt(P, "b", 2)
    assert book.adopt(P, "b", 4)
    assert book.partitions[P].owner == "b"
    assert book.partitions[P].resume is None


def test_a_new_session_sends_every_grant_again():
    book = ownership()
    granted(book)
    book.session_opened("a")
    book.committed("a", 99, 9_000, {})
    assert book.partitions[P].mark_ms == 1_000, "nothing of this session has been applied yet"


def test_a_poll_that_ended_at_the_former_owner_is_settled_once():
    book = ownership()
    granted(book)
    released(book, cut(busy=[BUSY]), "a")
    assert book.settled(BusyProject(1, 41_000)) is None
    assert book.settled(BUSY) == P
    assert book.settled(BUSY) is None


def test_busy_polls_of_two_former_owners_are_both_waited_for():
    book = ownership()
    granted(book)
    released(book, cut(busy=[BUSY]), "a")
    granted(book, "b", 2, 5)
    second = BusyProject(2, 41_000)
    released(book, cut(epoch=2, busy=[second]), "b")
    assert book.still_busy(P, 0) == [BUSY, second]


def test_a_poll_in_flight_is_waited_for_whatever_its_cut_is_worth():
    """The cut is of an older grant, and no resume point; the poll runs all the same."""
    book = ownership(mark_ms=20_000)
    book.granted(P, "a", 3, 5)
    book.session_opened("a")
    assert released(book, cut(cut_ms=9_000, epoch=1, busy=[BUSY], fresh=False), "a")
    assert book.still_busy(P, 0) == [BUSY]


def test_a_resume_point_never_lies_before_the_cut_it_came_from():
    book = ownership(mark_ms=20_000)
    granted(book)
    released(book, cut(cut_ms=9_000), "a")
    granted(book, "b", 2, 5)
    book.lost("b")
    assert book.partitions[P].resume.after_ms == 20_000, "what is committed beyond the cut stays committed"


def test_counts():
    book = ownership()
    granted(book)
    assert book.assigned() == 1
    assert book.owned_by("a") == [P]
    assert book.owners()[OTHER] is None
    assert book.marks()[P] == 1_000


def test_who_owns_what_is_known_from_both_sides():
    """By partition and by owner, after whatever happened."""
    chance = random.Random(1)
    book = Ownership([])
    for step in range(2_000):
        index = chance.randrange(50)
        worker = chance.choice("abc")
        partition = book.partitions[index]
        match chance.choice(["grant", "grant", "release", "adopt", "lose"]):
            case "grant" if partition.owner in (None, worker):
                book.granted(index, worker, step, 2)
            case "release":
                book.released(Cut(index, partition.epoch, step), worker, same_session=True)
            case "adopt":
                book.adopt(index, worker, step)
            case "lose" if chance.random() < 0.1:
                had = [each for each, partition in enumerate(book.partitions) if partition.owner == worker]
                assert sorted(book.lost(worker)) == had
        for each in "abc":
            owned = [number for number, owner in enumerate(book.owners()) if owner == each]
            assert sorted(book.owned_by(each)) == owned
        assert book.assigned() == sum(owner is not None for owner in book.owners())
