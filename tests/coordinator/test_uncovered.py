"""New spans and claims, from their beginning until a mark that was made after their hearing."""

import random
from collections import defaultdict

import pytest

from cluster.messages.control import EndedSpan
from coordinator.uncovered import Hearing, Uncovered

P, Q = 7, 9
SINCE = 1_000
CLAIM = EndedSpan(1, SINCE, 5_000, 1_000, unheard=True)

EVERYWHERE = range(4096)


def begun(*owed, partition=P, book=None, since_ms=SINCE):
    book = book or Uncovered()
    for each in owed:
        book.begin(partition, each, since_ms, wants_poll=isinstance(each, int))
    return book


def heard(book, owed, *, seq, partition=P, incarnation="a#1", session=1, since_ms=SINCE):
    book.heard(Hearing(incarnation, session, seq), partition, owed, since_ms)
    return book


def shown(book, *owed):
    """Those of them that are uncovered in P."""
    return [each for each in owed or (1, 2, 3, CLAIM) if book.since_of(P, each) is not None]


@pytest.mark.parametrize("owed", [1, CLAIM])
def test_it_is_uncovered_until_a_mark_that_was_made_after_it_was_heard_of(owed):
    book = begun(owed)
    book.covered("a#1", 1, 99, EVERYWHERE)
    assert shown(book) == [owed], "nobody has heard of it"
    heard(book, owed, seq=5)
    book.covered("a#1", 1, 4, EVERYWHERE)
    assert shown(book) == [owed]
    assert book.since() == {P: SINCE}
    book.covered("a#1", 1, 5, EVERYWHERE)
    assert shown(book) == []
    assert book.since() == {}
    book.covered("a#1", 1, 6, EVERYWHERE)


def test_a_mark_covers_what_was_heard_before_and_nothing_after():
    book = begun(1, 2, 3)
    for seq in (1, 2, 3):
        heard(book, seq, seq=seq)
    book.covered("a#1", 1, 2, EVERYWHERE)
    assert shown(book) == [3]


def test_a_mark_covers_where_it_speaks():
    book = heard(begun(1), 1, seq=5)
    heard(begun(2, partition=Q, book=book), 2, seq=5, partition=Q)
    book.covered("a#1", 1, 5, {Q})
    assert book.since() == {P: SINCE}
    book.covered("a#1", 1, 5, {P})
    assert book.since() == {}


def test_a_mark_of_a_later_session_covers_every_earlier_one():
    book = heard(heard(begun(1, 2), 1, seq=50), 2, seq=3, session=2)
    book.covered("a#1", 2, 1, EVERYWHERE)
    assert shown(book) == [2]
    book.covered("a#1", 1, 99, EVERYWHERE)
    assert shown(book) == [2], "an old mark knows nothing of it"


def test_marks_of_others_speak_for_themselves():
    book = heard(begun(1), 1, seq=5)
    book.covered("b#1", 9, 99, EVERYWHERE)
    book.covered("a#2", 9, 99, EVERYWHERE)
    assert shown(book) == [1]


def test_a_project_that_changed_again_waits_to_be_heard_of_and_for_the_newer_mark():
    book = heard(begun(1), 1, seq=5)
    begun(1, book=book, since_ms=SINCE + 500)
    heard(book, 1, seq=6)
    book.covered("a#1", 1, 7, EVERYWHERE)
    assert book.since() == {P: SINCE + 500}, "what was acknowledged is the span of before"
    heard(book, 1, seq=8, since_ms=SINCE + 500)
    book.covered("a#1", 1, 7, EVERYWHERE)
    assert shown(book) == [1]
    book.covered("a#1", 1, 8, EVERYWHERE)
    assert shown(book) == []


def test_unseen_is_a_project_nobody_has_acknowledged():
    book = begun(1, 2, CLAIM)
    book.begin(P, 3, SINCE, wants_poll=False)
    assert book.unseen(P) == {1: True, 2: True, 3: False}
    heard(book, 1, seq=5)
    assert book.unseen(P) == {2: True, 3: False}
    assert book.unseen(Q) == {}


def test_the_immediate_poll_is_wanted_until_it_was_heard_of():
    book = begun(1)
    book.begin(P, 1, SINCE + 10)
    assert book.unseen(P) == {1: True}
    heard(book, 1, seq=5, since_ms=SINCE + 10)
    book.begin(P, 1, SINCE + 20)
    assert book.unseen(P) == {1: False}


def test_a_project_that_ended_is_forgotten():
    book = heard(heard(begun(1, 2), 1, seq=5), 2, seq=5)
    book.drop(P, 1)
    book.drop(P, 99)
    book.drop(Q, 1)
    assert shown(book) == [2]
    book.covered("a#1", 1, 5, EVERYWHERE)
    assert shown(book) == []


def test_who_gives_a_partition_up_answers_for_the_projects_it_has_heard_of_and_no_more():
    book = heard(begun(1, 2, since_ms=SINCE + 100), 1, seq=5, since_ms=SINCE + 100)
    heard(begun(CLAIM, book=book), CLAIM, seq=5)
    assert book.given_up(P) == SINCE + 100
    assert shown(book) == [2, CLAIM]
    assert book.given_up(P) is None
    book.covered("a#1", 1, 9, EVERYWHERE)
    assert shown(book) == [2, CLAIM], "of the claim, the next owner hears"


def test_what_a_dead_worker_had_heard_is_covered_only_by_who_hears_it_next():
    book = heard(heard(begun(1, CLAIM), 1, seq=5), CLAIM, seq=5)
    book.lost(P)
    book.gone("a#1")
    assert book.unseen(P) == {1: False}, "its immediate poll was started, or will be missed"
    for owed in (1, CLAIM):
        heard(book, owed, seq=2, incarnation="b#1")
    book.covered("a#1", 1, 99, EVERYWHERE)
    assert shown(book) == [1, CLAIM]
    book.covered("b#1", 1, 2, EVERYWHERE)
    assert shown(book) == []


def test_the_oldest_is_known_whatever_ends():
    book = Uncovered()
    for owed, since_ms in ((1, 300), (2, 100), (3, 200)):
        book.begin(P, owed, since_ms)
    assert book.since() == {P: 100}
    book.drop(P, 2)
    assert book.since() == {P: 200}
    book.begin(P, 3, 400)
    assert book.since() == {P: 300}
    book.drop(P, 1)
    book.drop(P, 3)
    assert book.since() == {}


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_list_of_everything(seed):
    chance = random.Random(seed)
    book = Uncovered()
    expected = defaultdict(dict)  # partition -> project -> [since, hearing]
    seqs = defaultdict(int)
    sessions = defaultdict(lambda: 1)
    gone = set()
    for _ in range(400):
        worker = chance.choice(["a", "b", "c"])
        partition, project_id = chance.randrange(3), chance.randrange(8)
        project_id = project_id * 3 + partition
        since_ms = chance.randrange(5)
        known = expected[partition].get(project_id)
        match chance.choice(["begin", "hear", "hear", "hear", "cover", "drop", "give up", "session", "gone"]):
            case "begin":
                book.begin(partition, project_id, since_ms)
                expected[partition][project_id] = [since_ms, None]
            case "hear" if worker not in gone:
                seqs[worker] += chance.choice([0, 1])
                hearing = Hearing(worker, sessions[worker], seqs[worker])
                book.heard(hearing, partition, project_id, since_ms)
                if known is not None and known == [since_ms, None]:
                    known[1] = hearing
            case "cover" if worker not in gone:
                seq = chance.randint(0, seqs[worker])
                book.covered(worker, sessions[worker], seq, EVERYWHERE)
                for projects in expected.values():
                    for each, (_, at) in list(projects.items()):
                        if at and at.incarnation == worker and (at.session, at.seq) <= (sessions[worker], seq):
                            del projects[each]
            case "drop":
                book.drop(partition, project_id)
                expected[partition].pop(project_id, None)
            case "give up":
                taken = {each: since for each, (since, at) in expected[partition].items() if at}
                assert book.given_up(partition) == min(taken.values(), default=None)
                for each in taken:
                    del expected[partition][each]
            case "session":
                sessions[worker] += 1
                seqs[worker] = 0
            case "gone" if chance.random() < 0.05:
                gone.add(worker)
                for index in range(3):
                    book.lost(index)
                    for item in expected[index].values():
                        item[1] = None
                book.gone(worker)
        oldest = {index: min(at for at, _ in projects.values()) for index, projects in expected.items() if projects}
        assert book.since() == oldest
        for index, projects in expected.items():
            assert book.unseen(index) == {each: False for each, (_, at) in projects.items() if at is None}
