"""Projects from their acknowledgement until a mark that was made after it."""

import random
from collections import defaultdict

import pytest

from coordinator.uncovered import Hearing, UncoveredProjects

P, Q = 7, 9

EVERYWHERE = range(4096)


def heard(book, project_id, *, seq, partition=P, incarnation="a#1", session=1):
    book.heard(Hearing(incarnation, session, seq), partition, project_id)
    return book


def shown(book):
    return {partition: sorted(ids) for partition, ids in book.items() if ids}


def test_a_project_is_uncovered_until_a_mark_that_was_made_after_it_was_heard_of():
    book = heard(UncoveredProjects(), 1, seq=5)
    book.covered("a#1", 1, 4, EVERYWHERE)
    assert shown(book) == {P: [1]}
    book.covered("a#1", 1, 5, EVERYWHERE)
    assert shown(book) == {}
    book.covered("a#1", 1, 6, EVERYWHERE)


def test_a_mark_covers_what_was_heard_before_and_nothing_after():
    book = UncoveredProjects()
    for seq in range(1, 6):
        heard(book, seq, seq=seq, partition=P if seq % 2 else Q)
    book.covered("a#1", 1, 3, EVERYWHERE)
    assert shown(book) == {P: [5], Q: [4]}


def test_a_mark_of_a_later_session_covers_every_earlier_one():
    book = heard(UncoveredProjects(), 1, seq=50, session=1)
    heard(book, 2, seq=3, session=2)
    book.covered("a#1", 2, 1, EVERYWHERE)
    assert shown(book) == {P: [2]}
    book.covered("a#1", 1, 99, EVERYWHERE)
    assert shown(book) == {P: [2]}, "an old mark knows nothing of it"


def test_marks_of_others_speak_for_themselves():
    book = heard(UncoveredProjects(), 1, seq=5)
    book.covered("b#1", 9, 99, EVERYWHERE)
    book.covered("a#2", 9, 99, EVERYWHERE)
    assert shown(book) == {P: [1]}


def test_a_project_that_changed_again_waits_for_the_newer_mark():
    book = heard(UncoveredProjects(), 1, seq=5)
    heard(book, 1, seq=8)
    book.covered("a#1", 1, 6, EVERYWHERE)
    assert shown(book) == {P: [1]}
    book.covered("a#1", 1, 8, EVERYWHERE)
    assert shown(book) == {}


def test_a_project_that_ended_is_forgotten():
    book = heard(heard(UncoveredProjects(), 1, seq=5), 2, seq=5)
    book.drop(P, 1)
    book.drop(P, 99)
    book.drop(Q, 1)
    assert shown(book) == {P: [2]}
    book.covered("a#1", 1, 5, EVERYWHERE)
    assert shown(book) == {}


def test_a_partition_without_an_owner_hands_its_projects_out_once():
    book = heard(heard(UncoveredProjects(), 1, seq=5), 2, seq=6, partition=Q)
    assert book.take(P) == [1]
    assert book.take(P) == []
    assert shown(book) == {Q: [2]}
    book.covered("a#1", 1, 9, EVERYWHERE)
    assert shown(book) == {}


def test_what_a_dead_worker_had_heard_is_covered_only_by_who_hears_it_next():
    book = heard(UncoveredProjects(), 1, seq=5)
    book.take(P)
    book.gone("a#1")
    heard(book, 1, seq=2, incarnation="b#1")
    book.covered("a#1", 1, 99, EVERYWHERE)
    assert shown(book) == {P: [1]}
    book.covered("b#1", 1, 2, EVERYWHERE)
    assert shown(book) == {}


def test_what_a_partition_moved_on_with_is_not_covered_by_its_former_owner():
    """Heard of at a, taken, heard of at b: a's mark of the first hearing comes late."""
    book = heard(UncoveredProjects(), 1, seq=5)
    book.take(P)
    heard(book, 1, seq=2, incarnation="b#1")
    book.covered("a#1", 1, 5, EVERYWHERE)
    assert shown(book) == {P: [1]}


def test_a_worker_that_is_gone_leaves_its_projects_to_be_taken():
    book = heard(UncoveredProjects(), 1, seq=5)
    book.gone("a#1")
    book.gone("a#1")
    assert shown(book) == {P: [1]}
    assert book.take(P) == [1]


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_list_of_everything_that_was_heard(seed):
    chance = random.Random(seed)
    book = UncoveredProjects()
    expected = defaultdict(dict)  # partition -> project -> hearing
    seqs = defaultdict(int)
    sessions = defaultdict(lambda: 1)
    gone = set()
    for _ in range(400):
        worker = chance.choice(["a", "b", "c"])
        partition, project_id = chance.randrange(3), chance.randrange(8)
        project_id = project_id * 3 + partition
        match chance.choice(["hear", "hear", "hear", "cover", "drop", "take", "session", "gone"]):
            case "hear" if worker not in gone:
                seqs[worker] += chance.choice([0, 1])
                hearing = Hearing(worker, sessions[worker], seqs[worker])
                book.heard(hearing, partition, project_id)
                expected[partition][project_id] = hearing
            case "cover" if worker not in gone:
                seq = chance.randint(0, seqs[worker])
                book.covered(worker, sessions[worker], seq, EVERYWHERE)
                for projects in expected.values():
                    for known, at in list(projects.items()):
                        if at.incarnation == worker and (at.session, at.seq) <= (sessions[worker], seq):
                            del projects[known]
            case "drop":
                book.drop(partition, project_id)
                expected[partition].pop(project_id, None)
            case "take":
                assert sorted(book.take(partition)) == sorted(expected.pop(partition, {}))
            case "session":
                sessions[worker] += 1
                seqs[worker] = 0
            case "gone" if chance.random() < 0.05:
                gone.add(worker)
                book.gone(worker)
        assert shown(book) == {index: sorted(projects) for index, projects in expected.items() if projects}
