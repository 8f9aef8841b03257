"""What is still to be accounted for, and by whom: new projects, debts of former owners, claims, and where all that is
remembered when everybody dies at once."""

import pytest

from cluster.messages.control import BusyProject, Cut, Grant, Leaving, Remove, Revoke, Settle, Settled, WorkerStats
from cluster.ticks import partition_of
from coordinator import telling
from coordinator.events import DrainRequested, ProjectsChanged, ScaleRequested
from tests.coordinator.stage import START_MS, Stage, record, restarted

NEW_ID = 777_777
P = partition_of(NEW_ID)


def grants_of(worker, index):
    """The grants of a partition that wait in its inbox."""
    return [grant for message in worker.told(Grant) for grant in message.partitions if grant.partition == index]


def claims_in(messages):
    """(project, since, until) of what a worker is told to claim, on its own or with a grant."""
    spans = [span for message in messages if isinstance(message, Remove) for span in message.ended]
    grants = [grant for message in messages if isinstance(message, Grant) for grant in message.partitions]
    spans += [span for grant in grants for span in grant.ended]
    return [(span.project_id, span.since_ms, span.until_ms) for span in spans if span.unheard]


def claims_of(worker):
    return claims_in(worker.inbox)


def claims_heard(worker):
    return claims_in(worker.heard)


def claimed(worker, index):
    """The projects of a partition of which it is told to claim something."""
    return {project_id for project_id, _, _ in claims_of(worker) if partition_of(project_id) == index}


def ids_of(stage, index):
    return [project_id for project_id in stage.records if partition_of(project_id) == index]


def holder(stage, index=P):
    name = stage.owners()[index]
    return next(worker for worker in stage.living() if worker.name == name)


def beat(stage, *workers):
    for worker in workers or stage.living():
        worker.beat()


def added(stage, project_id=NEW_ID, *, since_ms=None):
    """A new project, which its owner is told of."""
    stage.records[project_id] = record(project_id, since_ms=stage.now if since_ms is None else since_ms)
    stage.tell(ProjectsChanged([stage.records[project_id]], []))
    return project_id


def begun():
    """Two workers, everything is in the database up to now."""
    stage = Stage(workers=2, slots=30)
    stage.running()
    stage.now += 500
    beat(stage)
    assert stage.core.ownership.partitions[P].mark_ms == stage.now
    return stage


@pytest.fixture
def stage():
    return begun()


# ---- projects that are new to their owner ---------------------------------------------------------------------------


def test_a_project_that_was_acknowledged_after_the_mark_was_made_is_unseen_to_the_next_owner(stage):
    """The mark is of 12:00:04, its first tick may be of 12:00:03: the mark does not speak for it."""
    owner = holder(stage)
    stage.now += 100
    added(stage, since_ms=stage.now - 300)
    owner.obey()
    stage.die(owner)
    (grant,) = grants_of(holder(stage), P)
    assert grant.unseen == [NEW_ID]
    assert grant.immediate == [], "its first poll was started, or will be missed"


def test_a_mark_that_was_made_before_it_was_heard_of_changes_nothing(stage):
    owner = holder(stage)
    before = owner.mark()
    stage.now += 100
    added(stage)
    owner.obey()
    stage.now += 100
    owner.beat(before)
    stage.die(owner)
    assert grants_of(holder(stage), P)[0].unseen == [NEW_ID]


def test_a_mark_that_was_made_after_it_speaks_for_it(stage):
    owner = holder(stage)
    stage.now += 100
    added(stage)
    owner.obey()
    stage.now += 100
    owner.beat()
    stage.die(owner)
    assert grants_of(holder(stage), P)[0].unseen == []


def test_who_hears_of_it_next_has_to_cover_it_too():
    stage = Stage(workers=3, slots=30)
    stage.running()
    added(stage)
    for _ in range(2):
        owner = holder(stage)
        owner.obey()
        stage.die(owner)
        assert grants_of(holder(stage), P)[0].unseen == [NEW_ID]


def test_a_new_session_is_no_mark(stage):
    """The owner's connection breaks; it hears of everything again, and goes on as before."""
    owner = holder(stage)
    before = owner.mark()
    added(stage)
    owner.obey()
    owner.reconnect()
    owner.beat()
    stage.obey()
    owner.beat(before)
    stage.die(owner)
    assert grants_of(holder(stage), P)[0].unseen == [NEW_ID]


def test_the_last_word_of_a_worker_covers_what_it_had_heard_of(stage):
    owner = holder(stage)
    added(stage)
    owner.obey()
    stage.now += 100
    owner.say(Leaving(owner.incarnation, WorkerStats(), stage.now))
    stage.die(owner)
    assert grants_of(holder(stage), P)[0].unseen == []


def test_a_project_that_ended_meanwhile_is_nobodys_any_more(stage):
    owner = holder(stage)
    added(stage)
    owner.obey()
    stage.remove(NEW_ID)
    stage.die(owner)
    assert grants_of(holder(stage), P)[0].unseen == []


@pytest.mark.parametrize("acknowledged", [False, True])
def test_the_horizon_waits_for_new_projects(stage, acknowledged):
    owner = holder(stage)
    before = owner.mark()
    others = [worker for worker in stage.living() if worker is not owner]
    since_ms = stage.now - 200
    stage.now += 1_000
    added(stage, since_ms=since_ms)
    if acknowledged:
        owner.obey()
    beat(stage, *others)
    owner.beat(before)
    assert stage.core.horizon_ms() == since_ms
    owner.obey()
    stage.now += 1_000
    beat(stage)
    assert stage.core.horizon_ms() == stage.now + 1


def test_a_project_that_ended_before_any_mark_spoke_for_it_is_claimed(stage):
    """Its owner may not have heard of it in time, and where the next owner resumes says nothing of it."""
    owner = holder(stage)
    stage.now += 100
    since_ms = stage.now - 300
    added(stage, since_ms=since_ms)
    owner.obey()
    stage.remove(NEW_ID)
    until_ms = stage.now
    assert (NEW_ID, since_ms, until_ms) in claims_of(owner)
    owner.obey()
    stage.die(owner)
    assert (NEW_ID, since_ms, until_ms) in claims_of(holder(stage))
    stage.later(3_000)
    assert stage.core.horizon_ms() > until_ms


def test_a_project_whose_interval_changed_before_any_mark_spoke_for_it_is_claimed(stage):
    owner = holder(stage)
    stage.now += 100
    since_ms = stage.now - 300
    added(stage, since_ms=since_ms)
    stage.tell(ProjectsChanged([record(NEW_ID, interval_ms=2_000, since_ms=stage.now - 50)], []))
    assert (NEW_ID, since_ms, stage.now - 50) in claims_of(owner)


def test_a_project_its_owner_was_told_of_after_the_revoke_is_heard_of_by_the_next_owner(stage):
    """It ignores what it is told of a partition it gave up; no mark of its own will ever speak for the project."""
    loser, index = about_to_move(stage)
    new_id = next(n for n in range(10_000, 10_000_000) if partition_of(n) == index)
    added(stage, new_id)
    loser.obey()
    newcomer = holder(stage, index)
    assert newcomer is not loser
    assert grants_of(newcomer, index)[0].immediate == [new_id]
    stage.later(3_000)
    assert stage.core.horizon_ms() > stage.now - 2_000


def test_how_far_everything_is_accounted_for_is_known_without_reading_projects(stage, monkeypatch):
    """It is asked for several times a second, whatever number of projects is new."""
    since_ms = stage.now - 200
    added(stage, since_ms=since_ms)

    def read(blob):
        raise AssertionError(f"{blob} is decoded")

    monkeypatch.setattr(telling, "decode_spec", read)
    assert stage.core.horizon_ms() == since_ms
    assert durable_mark(stage) == since_ms - 1


# ---- marks that outlive everybody -----------------------------------------------------------------------------------


def durable_mark(stage, index=P):
    return stage.core.durable(stage.now).marks[index]


def test_durable_marks_are_those_of_the_owners_when_nothing_is_owed(stage):
    assert durable_mark(stage) == stage.now
    assert stage.core.durable(stage.now).marks == stage.core.ownership.marks()


def test_a_durable_mark_lies_before_a_project_that_nobody_has_heard_of(stage):
    since_ms = stage.now - 200
    added(stage, since_ms=since_ms)
    assert durable_mark(stage) == since_ms - 1
    stage.now += 1_000
    beat(stage)  # made before they heard of it
    assert durable_mark(stage) == since_ms - 1


def test_a_durable_mark_lies_before_a_project_that_no_mark_speaks_for(stage):
    owner = holder(stage)
    since_ms = stage.now - 200
    added(stage, since_ms=since_ms)
    owner.obey()
    assert durable_mark(stage) == since_ms - 1
    stage.now += 1_000
    owner.beat()
    assert durable_mark(stage) == stage.now


@pytest.mark.parametrize(("heard_ms", "unheard_ms"), [(100, 300), (300, 100)])
def test_the_oldest_of_several_counts(stage, heard_ms, unheard_ms):
    since_ms = stage.now - max(heard_ms, unheard_ms)
    other_id = next(n for n in range(10_000, 10_000_000) if partition_of(n) == P and n != NEW_ID)
    added(stage, since_ms=stage.now - heard_ms)
    stage.obey()
    added(stage, other_id, since_ms=stage.now - unheard_ms)
    assert durable_mark(stage) == since_ms - 1


def test_a_new_project_says_nothing_for_the_others_of_a_partition_that_was_never_polled():
    """Every tick of the older ones is still to be accounted for, from their beginning."""
    stage = Stage(workers=1)
    old_id = next(n for n in range(1, 1_000_000) if partition_of(n) == P and n != NEW_ID)
    stage.records[old_id] = record(old_id, since_ms=START_MS - 60_000)
    stage.supervise()
    stage.load()
    added(stage)
    assert durable_mark(stage) is None
    successor = Stage(workers=1, projects=0, restored=stage.core.durable(stage.now), now=stage.now + 5_000)
    successor.records = dict(stage.records)
    (worker,) = successor.running()
    after_ms, _ = worker.resume[P]
    assert after_ms is None or after_ms < START_MS - 60_000


def test_a_durable_mark_lies_before_what_a_former_owner_has_still_to_commit(stage):
    released, index, mark_ms = moved(stage)
    owner = holder(stage, index)
    owner.obey()
    stage.now += 1_000
    owner.beat()
    assert stage.core.ownership.partitions[index].mark_ms == stage.now
    assert durable_mark(stage, index) == mark_ms, "ticks between mark and cut are with the former owner"
    released.beat()
    assert durable_mark(stage, index) == stage.now


def test_the_horizon_waits_for_what_a_former_owner_took_over_and_has_still_to_commit(stage):
    """Its marks don't know of that: it gave the partition up before it made one that speaks for it."""
    stage.now += 1_000
    survivor, dead = stage.living()
    index = next(each for each in dead.held if stage.core.catalog.size(each))
    mark_ms = stage.core.ownership.partitions[index].mark_ms
    before = survivor.mark()
    stage.die(dead)
    survivor.obey()
    restarted_one = stage.start(dead.name)
    stage.later(400, beats=False)
    stage.obey()
    assert index in survivor.cuts
    stage.now += 1_000
    restarted_one.beat()
    survivor.beat(before)
    assert stage.core.horizon_ms() == mark_ms + 1
    survivor.beat()
    assert stage.core.horizon_ms() == stage.now + 1


def test_a_durable_mark_lies_before_what_is_claimed_and_not_committed(stage):
    released, index, mark_ms = moved(stage)
    owner = holder(stage, index)
    owner.obey()
    stage.now += 1_000
    owner.beat()
    stage.die(released)
    assert claims_of(owner)
    assert durable_mark(stage, index) == mark_ms
    stage.later(3_000)
    assert durable_mark(stage, index) > mark_ms, "the claims are in the database"


def test_an_older_state_never_says_more_than_a_newer_one_knew(stage):
    """Whenever everybody dies, the next coordinator goes on from before all that is owed."""
    since_ms = stage.now - 50
    added(stage, since_ms=since_ms)
    stage.obey()
    successor = Stage(workers=2, projects=0, restored=stage.core.durable(stage.now), now=stage.now + 5_000)
    successor.records = dict(stage.records)
    successor.running()
    assert holder(successor).resume[P] == (since_ms - 1, "handover")


def test_a_mark_goes_back_for_a_tick_that_lags(stage):
    """Of a project whose owner heard of it after the mark was made."""
    owner = holder(stage)
    mark_ms = durable_mark(stage)
    added(stage, since_ms=mark_ms - 400)
    owner.obey()
    stage.now += 100
    owner.beat(lagging={P: mark_ms - 300})
    assert stage.core.ownership.partitions[P].mark_ms == durable_mark(stage) == mark_ms - 301
    stage.die(owner)
    (grant,) = grants_of(holder(stage), P)
    assert (grant.resume_after_ms, grant.unseen) == (mark_ms - 301, [])


# ---- what a worker owes for partitions it gave up -------------------------------------------------------------------


def moved(stage):
    """A partition with projects goes to a third worker.  Returns who gave it up, which, and its mark then."""
    loser, index = about_to_move(stage)
    mark_ms = stage.core.ownership.partitions[index].mark_ms
    loser.obey()
    newcomer = holder(stage, index)
    newcomer.obey()
    assert newcomer.name == "worker-3"
    return loser, index, mark_ms


def about_to_move(stage, index=None):
    """A worker that is told, and has not heard yet, to give up a partition with projects (this one, or any)."""
    stage.tell(ScaleRequested(3, None))
    newcomer = stage.start("worker-3")
    stage.later(400, beats=False)
    newcomer.obey()
    for worker in stage.living():
        for message in worker.told(Revoke):
            for each in message.partitions:
                if stage.core.catalog.size(each) and index in (None, each):
                    return worker, each
    raise AssertionError(f"partition {index} does not move")


def a_partition_that_will_move():
    return about_to_move(begun())[1]


def test_what_a_dead_worker_owed_is_claimed_by_the_owner_of_today(stage):
    released, index, mark_ms = moved(stage)
    owner = holder(stage, index)
    stage.die(released)
    expected = {(n, mark_ms + 1, released.cuts[index].cut_ms + 1) for n in ids_of(stage, index)}
    assert expected <= set(claims_of(owner))


def test_of_a_project_that_ended_since_it_is_claimed_too(stage):
    released, index, mark_ms = moved(stage)
    owner = holder(stage, index)
    owner.obey()
    ended_id = ids_of(stage, index)[0]
    stage.now += 1_000
    stage.remove(ended_id)
    owner.obey()
    stage.die(released)
    assert (ended_id, mark_ms + 1, released.cuts[index].cut_ms + 1) in claims_of(owner)


def drained(stage):
    """worker-1 gives everything up to worker-2, and dies before what it did since its mark is committed.

    Returns the owner, its mark of before it heard of that, and the claims it is told.
    """
    leaver, owner = stage.living()
    mark_ms = stage.core.ownership.partitions[P].mark_ms
    stage.now += 800
    stage.tell(DrainRequested("worker-1"))
    stage.obey()
    assert not leaver.held
    stage.now += 1_000
    mark = owner.mark()
    stage.die(leaver, restarting=False)
    claims = {
        (project_id, mark_ms + 1, cut.cut_ms + 1)
        for index, cut in leaver.cuts.items()
        for project_id in ids_of(stage, index)
    }
    assert claims
    assert set(claims_of(owner)) == claims
    return owner, mark, claims


def first_of(claims):
    return min(since_ms for _, since_ms, _ in claims)


def test_the_horizon_waits_for_claims(stage):
    owner, mark, claims = drained(stage)
    owner.beat(mark)
    assert stage.core.horizon_ms() == first_of(claims)
    owner.obey()
    owner.beat(mark)
    assert stage.core.horizon_ms() == first_of(claims), "it heard of them after it made the mark"
    stage.now += 1_000
    owner.beat(lagging={P: stage.now - 500})
    assert stage.core.horizon_ms() == stage.now - 500, "a mark that was made after it speaks for them"
    assert durable_mark(stage) == stage.now - 501


@pytest.mark.parametrize("heard", [False, True])
def test_claims_are_kept_until_an_owner_has_committed_them(stage, heard):
    """However many owners die before."""
    owner, mark, claims = drained(stage)
    for _ in range(2):
        if heard:
            owner.obey()
        owner.beat(mark)
        stage.later(2_000, beats=False)
        owner.beat(mark)
        stage.die(owner)
        owner = stage.start("worker-2")
        owner.reach()
        stage.later(400, beats=False)
        assert claims <= set(claims_of(owner))
        mark = owner.mark()
    stage.obey()
    stage.later(2_000)
    assert stage.core.horizon_ms() > stage.now - 2_000
    stage.later(2_000)
    stage.die(owner)
    owner = stage.start("worker-2")
    stage.later(400, beats=False)
    assert claims_of(owner) == [], "they are in the database"


def test_claims_go_on_to_the_next_owner(stage):
    """Who heard of them gives the partition up before it has committed them, and dies as well."""
    owner, _, claims = drained(stage)
    owner.obey()
    stage.tell(ScaleRequested(2, None))
    newcomer = stage.start("worker-1")
    stage.later(400, beats=False)
    stage.obey()
    moved_on = {claim for claim in claims if partition_of(claim[0]) in newcomer.held}
    assert moved_on
    assert moved_on <= set(claims_heard(newcomer))
    stage.now += 1_000
    owner.beat()
    assert stage.core.horizon_ms() == first_of(claims)
    newcomer.beat()
    assert stage.core.horizon_ms() == stage.now + 1


def test_what_it_has_committed_since_is_not_claimed(stage):
    released, index, _ = moved(stage)
    owner = holder(stage, index)
    released.beat()
    stage.die(released)
    assert claimed(owner, index) == set()


def test_what_lags_is_still_owed(stage):
    """A poll that was in flight when the partition moved has not ended: its tick is not in the database."""
    released, index, mark_ms = moved(stage)
    owner = holder(stage, index)
    stage.now += 1_000
    released.beat(lagging={index: mark_ms + 10})
    stage.die(released)
    assert claimed(owner, index) == set(ids_of(stage, index))


def about_to_move_with_a_new_project():
    """No mark speaks for the project, which began 300 ms before its partition's mark."""
    index = a_partition_that_will_move()
    stage = begun()
    new_id = next(n for n in range(10_000, 10_000_000) if partition_of(n) == index)
    mark_ms = stage.core.ownership.partitions[index].mark_ms
    added(stage, new_id, since_ms=mark_ms - 300)
    stage.obey()
    released, _ = about_to_move(stage, index)
    return stage, released, index, new_id, mark_ms


def test_it_owes_for_a_new_project_from_its_beginning():
    """No mark spoke for the project when its partition was given up."""
    stage, released, index, new_id, mark_ms = about_to_move_with_a_new_project()
    released.obey()
    owner = holder(stage, index)
    owner.obey()
    assert durable_mark(stage, index) == mark_ms - 301
    stage.die(released)
    assert (new_id, mark_ms - 300, released.cuts[index].cut_ms + 1) in claims_of(owner)


def test_a_heartbeat_that_does_not_speak_for_a_partition_does_not_cover_its_projects():
    """It may have given the partition up; the mark is not taken, so what it says of what lags is not, either."""
    stage, released, index, new_id, mark_ms = about_to_move_with_a_new_project()
    tick_ms = mark_ms - 200  # in flight
    released.beat(lagging={index: tick_ms})
    released.obey()
    owner = holder(stage, index)
    owner.obey()
    stage.die(released)
    begins = [since_ms for project_id, since_ms, _ in claims_of(owner) if project_id == new_id]
    assert begins, "it has died with the poll"
    assert min(begins) <= tick_ms


def test_a_poll_in_flight_at_a_worker_that_died_is_settled(stage):
    loser, index = about_to_move(stage)
    busy = BusyProject(ids_of(stage, index)[0], stage.now + 60_000)
    loser.busy = [busy]
    loser.obey()
    owner = holder(stage, index)
    owner.obey()
    stage.die(loser)
    assert busy in [entry for message in owner.told(Settle) for entry in message.finished]


# ---- after a restart of the coordinator -----------------------------------------------------------------------------


def gathered(stage, *, without=()):
    """A new coordinator on the saved state, and everybody who lives has said hello."""
    for worker in without:
        del stage.alive[worker.name]
        del stage.workers[worker.peer]
    successor = restarted(stage)
    successor.supervise()
    successor.load()
    for worker in successor.living():
        worker.hello()
    successor.later(6_000 if without else 0)
    successor.obey()
    assert successor.core.phase == "running"
    return successor


def moved_with_a_poll_in_flight(stage):
    """As ``moved``, while the coordinator dies before it grants the partition, and its successor gathers.

    Returns the new stage, who gave it up, its poll, and another worker that has not said hello yet.
    """
    loser, index = about_to_move(stage)
    busy = BusyProject(ids_of(stage, index)[0], stage.now + 60_000)
    loser.busy = [busy]
    loser.inbox.clear()
    loser.release([index])
    successor = restarted(stage)
    successor.supervise()
    successor.load()
    last = next(worker for worker in successor.living() if worker is not loser)
    for worker in successor.living():
        if worker is not last:
            worker.hello()
    assert successor.core.phase == "gathering"
    return successor, loser, busy, last


def granted_busy(stage, entry):
    """The polls the owner of a project's partition is told to wait for, in what it has heard."""
    owner = holder(stage, partition_of(entry.project_id))
    grants = [grant for message in owner.heard if isinstance(message, Grant) for grant in message.partitions]
    return next(grant.busy for grant in reversed(grants) if grant.partition == partition_of(entry.project_id))


def test_a_poll_that_is_in_flight_when_the_coordinator_restarts_is_waited_for(stage):
    successor, _, busy, last = moved_with_a_poll_in_flight(stage)
    last.hello()
    successor.obey()
    assert granted_busy(successor, busy) == [busy]


def test_a_poll_that_ends_while_hellos_are_gathered_is_settled(stage):
    """Else the next owner would not poll its project until the poll's time-out."""
    successor, loser, busy, last = moved_with_a_poll_in_flight(stage)
    loser.say(Settled([busy]))
    last.hello()
    successor.obey()
    assert granted_busy(successor, busy) == []


def test_a_poll_whose_worker_dies_while_hellos_are_gathered_is_settled(stage):
    successor, loser, busy, last = moved_with_a_poll_in_flight(stage)
    successor.die(loser)
    last.hello()
    successor.start(loser.name)
    successor.obey()
    assert granted_busy(successor, busy) == []


def test_a_restarted_coordinator_knows_what_is_owed_for_cuts(stage):
    released, index, mark_ms = moved(stage)
    owner = holder(stage, index)
    stage.now += 1_000
    owner.beat()
    assert durable_mark(stage, index) == mark_ms
    successor = gathered(stage)
    owner.beat()
    assert successor.core.ownership.partitions[index].mark_ms > mark_ms
    assert durable_mark(successor, index) == mark_ms, "the former owner has still to commit what it did"
    successor.die(released)
    assert claimed(owner, index) == set(ids_of(stage, index))


def test_what_the_former_owner_commits_after_the_restart_is_not_claimed(stage):
    released, index, mark_ms = moved(stage)
    owner = holder(stage, index)
    successor = gathered(stage)
    beat(successor)
    assert durable_mark(successor, index) > mark_ms
    successor.die(released)
    assert claimed(owner, index) == set()


def test_of_a_former_owner_that_died_with_the_coordinator_everything_is_claimed(stage):
    """Nobody speaks for the ticks between the mark and where the owner took over."""
    released, index, mark_ms = moved(stage)
    owner = holder(stage, index)
    cut_ms = released.cuts[index].cut_ms
    owner.heard.clear()
    gathered(stage, without=[released])
    claims = [claim for claim in claims_heard(owner) if partition_of(claim[0]) == index]
    assert {(n, mark_ms + 1, cut_ms + 1) for n in ids_of(stage, index)} == set(claims)


def test_who_took_over_where_the_mark_is_owes_nothing(stage):
    """Everything was committed before the restart."""
    released, index, _ = moved(stage)
    owner = holder(stage, index)
    stage.now += 1_000
    beat(stage)
    owner.heard.clear()
    gathered(stage, without=[released])
    assert [claim for claim in claims_heard(owner) if partition_of(claim[0]) == index] == []


def test_a_former_owner_that_lives_answers_only_from_where_it_had_taken_over_itself(stage):
    """Z had it until +4 s and is dead, A until +8 s, its owner of today since; nothing was committed meanwhile."""
    owner = holder(stage)
    former = next(worker for worker in stage.living() if worker is not owner)
    mark_ms = stage.now
    owner.resume[P] = (mark_ms + 8_000, "handover")
    former.cuts[P] = Cut(P, owner.held[P] - 1, mark_ms + 8_000, fresh=False, resume_after_ms=mark_ms + 4_000)
    owner.heard.clear()
    stage.now += 10_000
    successor = gathered(stage)
    claims = {claim for claim in claims_heard(owner) if partition_of(claim[0]) == P}
    assert claims == {(n, mark_ms + 1, mark_ms + 4_001) for n in ids_of(stage, P)}
    successor.die(former)
    claims = {claim for claim in claims_heard(owner) if partition_of(claim[0]) == P} - claims
    assert claims == {(n, mark_ms + 4_001, mark_ms + 8_001) for n in ids_of(stage, P)}
