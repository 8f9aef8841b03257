"""The coordinator's core as sequence diagrams: joins, moves, deaths, hangs, restarts, slots, changes, the horizon."""

import pytest

from cluster.messages.control import (
    CoordinatorHeartbeat,
    Grant,
    KillProcess,
    Leaving,
    Limits,
    ProcessExited,
    Remove,
    RemovedProject,
    Reset,
    Resync,
    Retire,
    Revoke,
    SetWorkers,
    SnapshotEnd,
    SupervisorStopping,
    Upsert,
    WhoAreYou,
    WorkerStats,
    WriterHeartbeat,
)
from cluster.ticks import partition_of
from coordinator.core import HANG_MS
from coordinator.events import DrainRequested, ProjectsChanged, ScaleRequested
from coordinator.link import RESEND_MS, WINDOW
from tests.coordinator.stage import START_MS, SUPERVISOR, Stage, record, restarted

MOVEMENT = 1.1


def of(kind, messages):
    return [message for message in messages if isinstance(message, kind)]


# ---- joining --------------------------------------------------------------------------------------------------------


def test_a_cluster_begins_when_everybody_is_there():
    stage = Stage(workers=2)
    stage.supervise()
    first = stage.start("worker-1")
    assert first.inbox == [], "still loading"
    stage.load()
    assert stage.core.phase == "gathering"
    second = stage.start("worker-2")
    assert stage.core.phase == "running"
    assert stage.epochs, "an epoch is saved before anything is granted"
    assert isinstance(first.inbox[0], Reset)
    stage.obey()
    stage.assert_whole()
    assert abs(len(first.held) - len(second.held)) < 4096 * 0.1


def test_a_snapshot_is_reset_limits_grants_end():
    stage = Stage(workers=1)
    (worker,) = stage.running()
    worker.heard.clear()
    worker.say(Resync(worker.session))
    stage.obey()
    kinds = [type(message) for message in worker.heard]
    assert kinds[0] is Reset
    assert kinds[-1] is SnapshotEnd
    assert set(kinds[1:-1]) == {Limits, Grant}
    assert [message.seq for message in worker.heard] == list(range(1, len(kinds) + 1))
    assert len({message.session for message in worker.heard}) == 1


def test_a_first_start_resumes_nowhere():
    stage = Stage(workers=1)
    (worker,) = stage.running()
    assert set(worker.resume.values()) == {(None, "down")}


def test_who_is_missing_is_not_waited_for_for_ever():
    stage = Stage(workers=2)
    stage.load()
    first = stage.start("worker-1")
    stage.later(4_000)
    assert stage.core.phase == "gathering"
    stage.later(2_000)
    assert stage.core.phase == "running"
    assert len(first.held) == 4096


def test_a_stranger_is_asked_who_he_is():
    stage = Stage()
    stage.say(b"stranger", Resync(1))
    assert stage.to_strangers == [(b"stranger", WhoAreYou())]


def test_without_a_supervisor_a_worker_is_as_good():
    stage = Stage(workers=1)
    stage.load()
    worker = stage.start("worker-1", supervised=False)
    stage.obey()
    stage.assert_whole()
    assert len(worker.held) == 4096


# ---- planned moves --------------------------------------------------------------------------------------------------


def test_a_newcomer_gets_its_share_by_revoke_cut_grant():
    stage = Stage(workers=2, slots=30, projects=3_000)
    old = stage.running()
    before = stage.owners()
    stage.tell(ScaleRequested(3, None))
    assert of(SetWorkers, stage.to_supervisor)[-1].names == ["worker-1", "worker-2", "worker-3"]
    newcomer = stage.start("worker-3")
    stage.later(1_000, beats=False)
    newcomer.obey()
    revoked = {index for worker in old for message in worker.told(Revoke) for index in message.partitions}
    assert revoked
    assert newcomer.held == {}, "nothing is granted before it was given up"
    cut_at = stage.now
    for worker in old:
        worker.obey()
    newcomer.obey()
    assert set(newcomer.held) == revoked
    assert {newcomer.resume[index] for index in revoked} == {(cut_at, "handover")}
    stage.later(3_000)
    stage.assert_whole()
    moved = [index for index, owner in enumerate(stage.owners()) if owner != before[index]]
    assert len(moved) <= MOVEMENT * 4096 / 3
    assert {stage.owners()[index] for index in moved} == {"worker-3"}


def test_a_revoke_that_is_not_answered_is_said_again():
    stage = Stage(workers=2)
    old = stage.running()
    stage.tell(ScaleRequested(3, None))
    stage.start("worker-3").obey()
    stage.later(1_000, beats=False)
    for worker in old:
        assert worker.told(Revoke)
        worker.inbox.clear()  # the connection broke
    stage.later(RESEND_MS + 500, beats=False)
    assert all(worker.told(Revoke) for worker in old)
    stage.later(3_000)
    stage.assert_whole()


def test_several_newcomers_make_one_plan():
    stage = Stage(workers=1, slots=40)
    stage.running()
    stage.tell(ScaleRequested(4, None))
    epochs = len(stage.epochs)
    for name in ("worker-2", "worker-3", "worker-4"):
        stage.start(name)
    stage.later(3_000)
    stage.assert_whole()
    assert len(stage.epochs) - epochs <= 2


def test_scaling_down_drains_and_retires():
    stage = Stage(workers=3, slots=30)
    workers = stage.running()
    stage.tell(ScaleRequested(2, None))
    assert of(SetWorkers, stage.to_supervisor)[-1].names == ["worker-1", "worker-2"]
    leaver = next(worker for worker in workers if worker.name == "worker-3")
    assert leaver.told(Revoke)
    assert not leaver.told(Retire)
    assert next(view for view in stage.core.view(stage.now).workers if view.name == "worker-3").state == "draining"
    stage.later(2_000)
    assert leaver.held == {}
    assert leaver.retired
    stage.die(leaver, restarting=False)
    stage.later(1_000)
    stage.assert_whole()
    assert [view.name for view in stage.core.view(stage.now).workers] == ["worker-1", "worker-2"]
    assert sum(worker.slice for worker in stage.living()) == 30, "its slots are given to the others"


def test_drain_is_scaling_down_by_name():
    stage = Stage(workers=3)
    stage.running()
    stage.tell(DrainRequested("worker-1"))
    stage.later(2_000)
    drained = next(worker for worker in stage.living() if worker.name == "worker-1")
    assert drained.retired
    assert stage.names == ["worker-2", "worker-3"]


def test_it_is_not_retired_while_it_holds_anything():
    stage = Stage(workers=2)
    stage.running()
    stage.tell(DrainRequested("worker-1"))
    drained = next(worker for worker in stage.living() if worker.name == "worker-1")
    stage.later(1_900, beats=False)
    drained.beat()
    assert not drained.told(Retire)


# ---- death and hangs ------------------------------------------------------------------------------------------------


def test_after_a_death_the_others_go_on_from_the_mark():
    stage = Stage(workers=2)
    first, second = stage.running()
    stage.later(2_000)
    marks = stage.core.ownership.marks()
    lost = set(first.held)
    assert all(marks[index] is not None for index in lost)
    stage.die(first)
    stage.obey()
    assert lost <= set(second.held)
    assert all(second.resume[index] == (marks[index], "handover") for index in lost)
    assert len(second.held) == 4096


def test_the_restarted_process_gets_its_share_back():
    stage = Stage(workers=2)
    first, _ = stage.running()
    stage.die(first)
    again = stage.start("worker-1")
    stage.later(3_000)
    stage.assert_whole()
    assert len(again.held) > 4096 / 2 * 0.85


def test_nobody_elses_partitions_move_when_one_dies():
    stage = Stage(workers=4, slots=40)
    workers = stage.running()
    before = stage.owners()
    stage.die(workers[0])
    stage.obey()
    after = stage.owners()
    assert all(after[index] == owner for index, owner in enumerate(before) if owner != workers[0].name)


def test_a_hang_is_killed_and_only_then_are_its_partitions_moved():
    stage = Stage(workers=2)
    hung, other = stage.running()
    del stage.workers[hung.peer]  # it neither hears nor speaks
    began = stage.now
    stage.later(HANG_MS + 1_500)
    (kill, *_) = of(KillProcess, stage.to_supervisor)
    assert (kill.name, kill.incarnation) == (hung.name, hung.incarnation)
    assert stage.now - began < 6_000
    assert len(other.held) < 4096, "it may still be polling"
    assert next(view for view in stage.core.view(stage.now).workers if view.name == hung.name).state == "hung"
    stage.workers[hung.peer] = hung
    stage.die(hung)
    stage.obey()
    assert len(other.held) == 4096


def test_a_kill_that_nobody_carried_out_is_asked_for_again():
    stage = Stage(workers=2)
    hung, _ = stage.running()
    del stage.workers[hung.peer]
    stage.later(HANG_MS + 6_000)
    assert len(of(KillProcess, stage.to_supervisor)) >= 2


def test_ones_own_stall_is_forgiven():
    stage = Stage(workers=2)
    workers = stage.running()
    stage.now += 60_000
    stage.take(stage.core.handle_timer(stage.now))
    assert of(KillProcess, stage.to_supervisor) == []
    assert any("stood still" in entry.text for entry in stage.logs)
    for worker in workers:
        worker.beat()
    stage.later(5_000)
    assert of(KillProcess, stage.to_supervisor) == []


def test_a_hung_worker_without_a_supervisor_may_come_back_on_a_new_connection():
    """A broken network: nobody can kill it, it polls on, and it says hello again."""
    stage = Stage(workers=1)
    stage.load()
    worker = stage.start("worker-1", supervised=False)
    stage.obey()
    stage.later(HANG_MS + 2_000, beats=False)
    assert stage.core.view(stage.now).workers[0].state == "hung"
    worker.inbox.clear()
    worker.reconnect()
    worker.beat()
    stage.obey()
    stage.later(2_000)
    assert stage.core.view(stage.now).workers[0].state == "running"
    stage.assert_whole()


def test_a_process_the_supervisor_does_not_list_any_more_is_dead():
    """The message of its end was lost: the next hello heals it."""
    stage = Stage(workers=2)
    gone, other = stage.running()
    stage.later(3_000)
    del stage.alive[gone.name]
    del stage.workers[gone.peer]
    stage.supervise()
    stage.obey()
    assert len(other.held) == 4096


def test_an_end_that_is_old_news_disturbs_nobody():
    stage = Stage(workers=2)
    first, _ = stage.running()
    stage.die(first)
    again = stage.start("worker-1")
    stage.later(2_000)
    held = set(again.held)
    stage.alive[again.name] = again.incarnation
    stage.say(SUPERVISOR, ProcessExited("worker-1", first.incarnation, -9, restarting=True))
    stage.later(500)
    assert set(again.held) == held


def test_a_writer_that_hangs_is_killed():
    stage = Stage(workers=1)
    stage.running()
    stage.alive["writer"] = "w1"
    stage.supervise()
    stage.say(b"writer", WriterHeartbeat("w1", 5, "running"))
    stage.later(12_000)
    assert [kill.name for kill in of(KillProcess, stage.to_supervisor)][:1] == ["writer"]


# ---- links ----------------------------------------------------------------------------------------------------------


def test_a_gap_opens_a_new_session_with_everything():
    stage = Stage(workers=2)
    worker, _ = stage.running()
    session, held = worker.session, set(worker.held)
    worker.say(Resync(session))
    worker.say(Resync(session))
    stage.obey()
    assert worker.session > session
    assert set(worker.held) == held
    stage.assert_whole()


def test_a_worker_that_reads_slowly_costs_a_window_and_no_more():
    stage = Stage(workers=1)
    (worker,) = stage.running()
    for number in range(500):
        stage.tell(ProjectsChanged([record(1_000_000 + number)], []))
    assert len(worker.inbox) <= 16
    stage.obey()
    stage.assert_whole()


def test_a_reconnected_worker_keeps_what_it_holds():
    stage = Stage(workers=2)
    worker, _ = stage.running()
    held = dict(worker.held)
    worker.reconnect()
    worker.beat()
    assert of(WhoAreYou, worker.inbox)
    stage.obey()
    assert set(worker.held) == set(held)
    stage.assert_whole()


# ---- the coordinator's own restart ----------------------------------------------------------------------------------


def test_a_restarted_coordinator_adopts_what_is_held():
    before = Stage(workers=3, slots=30)
    workers = before.running()
    held = {worker.name: set(worker.held) for worker in workers}
    stage = restarted(before)
    stage.supervise()
    stage.load()
    for worker in workers:
        worker.hello()
    stage.obey()
    stage.later(1_000)
    stage.assert_whole()
    assert {worker.name: set(worker.held) for worker in workers} == held, "nothing moves"
    assert stage.core.view(stage.now).epoch > before.core.view(before.now).epoch
    assert not any(of(Revoke, worker.heard) for worker in workers)


def test_a_move_at_the_start_goes_on_from_the_cut_though_the_owner_introduced_itself_twice():
    """Two messages of a worker, two questions who it is, two hellos: the second one knows nothing of the grant yet."""
    before = Stage(workers=2, projects=0)
    first, second = before.running()
    mine = [number for number in range(1, 400) if partition_of(number) in first.held]
    stage = restarted(before)
    stage.records = {number: record(number) for number in mine}
    stage.supervise()
    stage.load()
    for worker in (second, first):
        worker.hello()
    first.hello()  # before it was told anything
    stage.later(50)
    moved = {partition_of(number) for number in mine} & set(second.held)
    assert moved, "the first had all the load"
    assert {index: second.resume[index] for index in moved} == {
        index: (first.cuts[index].cut_ms, "handover") for index in moved
    }
    stage.assert_whole()


def test_a_worker_that_died_meanwhile_is_resumed_from_its_mark():
    before = Stage(workers=2)
    first, second = before.running()
    before.later(3_000)
    marks = before.core.ownership.marks()
    lost = set(first.held)
    del before.alive[first.name]
    stage = restarted(before)
    stage.supervise()
    stage.load()
    second.hello()
    stage.later(6_000)
    assert lost <= set(second.held)
    assert all(second.resume[index] == (marks[index], "handover") for index in lost)


def test_a_restarted_coordinator_does_not_wait_half_a_minute_for_a_worker_that_hangs_since_its_start():
    """It had joined when its coordinator died, which nobody saved; what a third worker had is nobody's meanwhile."""
    before = Stage(workers=3)
    dead, _, living = before.running()
    lost = set(dead.held)
    before.die(dead)
    hung = before.start(dead.name)
    stage = restarted(before)
    del stage.workers[hung.peer]
    stage.core.census.gone(hung.incarnation)  # what the state file knew is older
    stage.supervise()
    stage.load()
    for worker in stage.workers.values():
        worker.hello()
    stage.later(6_000)
    (kill, *_) = of(KillProcess, stage.to_supervisor)
    assert kill.incarnation == hung.incarnation
    stage.workers[hung.peer] = hung
    stage.die(hung)
    stage.obey()
    assert stage.core.phase == "running"
    assert stage.assigned() == 4096
    assert lost & set(living.held)


def test_slots_in_use_are_counted_before_any_are_given():
    """Two workers with 15 each in flight say hello one after the other; there are 30."""
    before = Stage(workers=2, slots=30)
    workers = before.running()
    for worker in workers:
        worker.in_flight = worker.slice
    stage = restarted(before)
    stage.supervise()
    stage.load()
    for worker in workers:
        worker.hello()
        stage.check_slots()
    stage.obey()
    assert stage.core.slices.in_force() <= 30


def test_scale_survives_a_restart():
    before = Stage(workers=2, slots=30)
    before.running()
    before.tell(ScaleRequested(1, 17))
    before.later(2_000)
    stage = restarted(before)
    assert stage.names == ["worker-1"]
    assert stage.core.slices.total == 17


def test_another_run_starts_as_configured():
    before = Stage(workers=2, slots=30)
    before.running()
    before.tell(ScaleRequested(1, 17))
    stage = Stage(workers=2, slots=30, restored=before.core.durable(before.now), run_id="another")
    assert stage.names == ["worker-1", "worker-2"]
    assert stage.core.slices.total == 30
    assert stage.core.view(stage.now).totals.executed == 0


# ---- slots ----------------------------------------------------------------------------------------------------------


def test_fewer_slots_than_workers_leaves_some_without():
    stage = Stage(workers=3, slots=2)
    stage.supervise()
    stage.load()
    workers = [stage.start(name) for name in stage.names]
    stage.later(2_000)
    assert sorted(worker.slice for worker in workers) == [0, 1, 1]
    assert all(worker.held for worker in workers if worker.slice)
    assert not any(worker.held for worker in workers if not worker.slice)
    stage.assert_whole()


def test_a_new_total_takes_effect_without_a_restart():
    stage = Stage(workers=2, slots=30)
    workers = stage.running()
    stage.tell(ScaleRequested(None, 10))
    stage.later(1_500)
    assert sum(worker.slice for worker in workers) == 10
    stage.tell(ScaleRequested(None, 50))
    stage.later(1_500)
    assert sum(worker.slice for worker in workers) == 50


def test_slots_follow_demand_and_shrink_before_they_grow():
    stage = Stage(workers=2, slots=40)
    busy, idle = stage.running()
    start = busy.slice
    for _ in range(10):
        busy.beat(active_http=busy.slice, queue_depth=100)
        idle.beat(active_http=0)
        stage.later(1_000, beats=False)
        stage.obey()
    assert busy.slice > start
    assert busy.slice + idle.slice == 40
    assert idle.slice >= 1


def test_a_workers_slots_are_free_when_it_is_dead_and_not_before():
    stage = Stage(workers=2, slots=30)
    first, second = stage.running()
    first.in_flight = first.slice
    del stage.workers[first.peer]
    stage.later(3_000)
    assert second.slice <= 30 - first.slice
    stage.workers[first.peer] = first
    stage.die(first)
    stage.later(1_500)
    assert second.slice == 30


@pytest.mark.parametrize(("limit", "workers", "share"), [(100, 3, 34), (0, 3, 0), (2, 3, 1)])
def test_each_worker_takes_its_share_of_the_limit_per_host(limit, workers, share):
    stage = Stage(workers=workers, slots=30, max_per_host=limit)
    played = stage.running()
    assert {of(Limits, worker.heard)[-1].max_per_host for worker in played} == {share}


# ---- projects -------------------------------------------------------------------------------------------------------


def owner_of(stage, project_id):
    name = stage.owners()[partition_of(project_id)]
    return next(worker for worker in stage.living() if worker.name == name)


def test_a_new_project_reaches_its_owner_at_once_with_its_first_poll():
    stage = Stage(workers=2)
    stage.running()
    owner = owner_of(stage, 777_777)
    stage.tell(ProjectsChanged([record(777_777)], []))
    (upsert,) = owner.told(Upsert)
    assert [spec.id for spec in upsert.projects] == [777_777]
    assert upsert.immediate == [777_777]
    assert not any(worker.inbox for worker in stage.living() if worker is not owner)


def test_what_did_not_change_is_not_told():
    stage = Stage(workers=2)
    stage.running()
    stage.tell(ProjectsChanged(list(stage.records.values()), []))
    assert not any(worker.inbox for worker in stage.living())
    assert stage.journal[1:] == []


def test_a_changed_project_is_told_without_an_immediate_poll():
    stage = Stage(workers=2)
    stage.running()
    stage.tell(ProjectsChanged([record(1, url="http://other/")], []))
    (upsert,) = owner_of(stage, 1).told(Upsert)
    assert (upsert.projects[0].url, upsert.immediate) == ("http://other/", [])


def test_a_removal_is_confirmed_only_after_its_owner_acknowledged_it():
    stage = Stage(workers=2)
    stage.running()
    owner = owner_of(stage, 1)
    stage.remove(1, token=7)
    assert len(owner.told(Remove)) == 1
    assert stage.confirmed == []
    stage.later(100, beats=False)
    assert stage.confirmed == []
    stage.obey()
    assert stage.confirmed == [7]
    assert not stage.core.has_project(1)


def test_a_removal_of_what_nobody_knows_is_confirmed_when_its_owner_has_heard_so():
    """It may have been dropped a moment ago, and its owner may still poll it: asking again must not say otherwise."""
    stage = Stage(workers=2)
    stage.running()
    stage.remove(999_999, token=7)
    assert stage.confirmed == []
    stage.obey()
    assert stage.confirmed == [7]


def test_a_removal_at_two_workers_waits_for_both():
    stage = Stage(workers=2)
    first, second = stage.running()
    ids = [next(n for n in stage.records if owner_of(stage, n) is worker) for worker in (first, second)]
    stage.tell(ProjectsChanged([], [RemovedProject(n, stage.now) for n in ids], token=8))
    first.obey()
    assert stage.confirmed == []
    second.obey()
    assert stage.confirmed == [8]


def test_a_removal_is_confirmed_when_its_owner_is_dead():
    stage = Stage(workers=2)
    stage.running()
    owner = owner_of(stage, 1)
    stage.remove(1, token=7)
    stage.die(owner)
    assert stage.confirmed == [7]


def test_a_removal_during_a_new_session_waits_for_the_snapshot():
    stage = Stage(workers=2)
    stage.running()
    owner = owner_of(stage, 1)
    owner.say(Resync(owner.session))
    stage.remove(1, token=7)
    assert stage.confirmed == []
    stage.obey()
    assert stage.confirmed == [7]
    stage.assert_whole()


def test_a_removal_while_its_partition_is_given_up_by_a_snapshot_waits_for_it():
    """The partition is left out of the owner's new session because it moves: until that session's end is acknowledged
    the owner polls on, and the removal is not confirmed."""
    stage = Stage(workers=2, slots=30)
    workers = stage.running()
    stage.tell(ScaleRequested(3, None))
    stage.start("worker-3")
    stage.later(1_000, beats=False)
    moving = next(w for w in workers if w.told(Revoke))
    index = next(i for m in moving.told(Revoke) for i in m.partitions if stage.core.catalog.size(i))
    project_id = next(n for n in stage.records if partition_of(n) == index)
    moving.inbox.clear()  # its connection broke; the new session leaves the partition out
    moving.reconnect()
    moving.hello()
    stage.remove(project_id, token=9)
    assert index in moving.held
    assert stage.confirmed == [], "it is still polled there"
    stage.obey()
    assert index not in moving.held
    assert stage.confirmed == [9]


def test_a_project_added_while_its_partition_moves_is_polled_at_once_by_the_new_owner():
    stage = Stage(workers=2, slots=30)
    workers = stage.running()
    stage.tell(ScaleRequested(3, None))
    newcomer = stage.start("worker-3")
    stage.later(1_000, beats=False)
    for worker in workers:
        worker.obey()
    index = next(grant.partition for message in newcomer.told(Grant) for grant in message.partitions)
    newcomer.inbox.clear()
    new_id = next(n for n in range(10_000, 10_000_000) if partition_of(n) == index)
    stage.tell(ProjectsChanged([record(new_id)], []))
    newcomer.hello()
    grants = [grant for message in newcomer.told(Grant) for grant in message.partitions if grant.partition == index]
    assert [grant.immediate for grant in grants] == [[new_id]]
    stage.obey()
    stage.later(1_000)
    stage.assert_whole()


@pytest.mark.parametrize(("changed", "unseen"), [("url", False), ("interval", True)])
def test_only_a_new_span_makes_the_former_owners_cut_doubtful(changed, unseen):
    """A project changes while its partition is on its way.  With another URL its ticks are what they were: the cut
    counts, or its whole life would be claimed and its newest tick polled twice."""
    stage = Stage(workers=2, slots=30)
    workers = stage.running()
    stage.tell(ScaleRequested(3, None))
    newcomer = stage.start("worker-3")
    stage.later(1_000, beats=False)
    for worker in workers:
        worker.obey()
    moving = {grant.partition for message in newcomer.told(Grant) for grant in message.partitions}
    project_id = next(n for n in stage.records if partition_of(n) in moving)
    newcomer.inbox.clear()  # the grants are lost with their connection
    new = record(project_id, url="http://other/") if changed == "url" else record(project_id, 2_000, stage.now - 10)
    stage.tell(ProjectsChanged([new], []))
    newcomer.inbox.clear()
    newcomer.hello()
    grants = [grant for message in newcomer.told(Grant) for grant in message.partitions]
    (grant,) = [grant for grant in grants if grant.partition == partition_of(project_id)]
    assert grant.unseen == ([project_id] if unseen else [])


def test_a_project_that_ended_is_accounted_for_by_whoever_comes_next():
    stage = Stage(workers=2)
    stage.running()
    owner = owner_of(stage, 1)
    stage.now += 100
    stage.remove(1)
    stage.die(owner)
    other = next(iter(stage.living()))
    grants = [
        grant for message in other.told(Grant) for grant in message.partitions if grant.partition == partition_of(1)
    ]
    spans = [span for grant in grants for span in grant.ended]
    assert [(span.project_id, span.until_ms, span.interval_ms) for span in spans] == [(1, stage.now, 1_000)]


# ---- totals, horizon, the end ---------------------------------------------------------------------------------------


def test_totals_never_go_back():
    stage = Stage(workers=2)
    first, second = stage.running()
    first.executed, second.executed = 100, 50
    first.beat()
    second.beat()
    stage.die(first)
    assert stage.core.view(stage.now).totals.executed == 150
    again = stage.start("worker-1")
    again.executed = 3
    stage.obey()
    again.beat()
    assert stage.core.view(stage.now).totals.executed == 153
    successor = restarted(stage)
    successor.supervise()
    successor.load()
    for worker in successor.living():
        worker.hello()
    successor.obey()
    assert successor.core.view(successor.now).totals.executed == 153


def test_the_horizon_is_behind_everything_that_is_not_committed():
    stage = Stage(workers=2)
    first, second = stage.running()
    stage.later(2_000)
    horizon = stage.core.horizon_ms()
    assert horizon is not None
    assert stage.now - 2_500 < horizon <= stage.now + 1
    before = stage.now
    stage.now += 1_000
    first.beat()
    assert stage.core.horizon_ms() <= before + 1, "the other has not spoken yet"
    second.beat()
    assert stage.core.horizon_ms() == stage.now + 1


def test_there_is_no_horizon_before_everything_was_committed_once():
    stage = Stage(workers=1)
    stage.load()
    assert stage.core.horizon_ms() is None
    stage.start("worker-1")
    stage.obey()
    assert stage.core.horizon_ms() is None


def test_stopping_reassigns_nothing():
    stage = Stage(workers=2)
    first, second = stage.running()
    held = set(second.held)
    stage.say(SUPERVISOR, SupervisorStopping())
    stage.now += 500
    first.say(Leaving(first.incarnation, WorkerStats(executed=5), stage.now))
    stage.die(first, restarting=False)
    stage.later(5_000)
    assert set(second.held) == held
    assert not second.told(Grant)
    assert of(KillProcess, stage.to_supervisor) == []
    assert stage.core.view(stage.now).phase == "stopping"


def test_the_last_words_of_everybody_are_the_horizon():
    stage = Stage(workers=2)
    workers = stage.running()
    stage.later(1_500)
    stage.say(SUPERVISOR, SupervisorStopping())
    for worker in workers:
        stage.now += 300
        stopped_at = stage.now
        worker.say(Leaving(worker.incarnation, WorkerStats(), stopped_at))
        stage.die(worker, restarting=False)
    horizon = stage.core.horizon_ms()
    assert horizon == stage.now - 300 + 1, "where the first of them stopped"


def test_the_supervisor_hears_once_a_second():
    stage = Stage(workers=1)
    stage.running()
    stage.to_supervisor.clear()
    stage.later(5_000)
    assert 4 <= len(of(CoordinatorHeartbeat, stage.to_supervisor)) <= 6
    assert of(CoordinatorHeartbeat, stage.to_supervisor)[-1].partitions_assigned == 4096


def test_partition_weights_are_within_the_bound():
    stage = Stage(workers=5, slots=50, projects=3_000)
    stage.running()
    weights = [view.weight for view in stage.core.view(stage.now).workers]
    assert max(weights) <= 1.15 * sum(weights) / len(weights)
    assert stage.now > START_MS


def test_a_snapshot_whose_messages_fill_up_within_a_partition_keeps_to_the_window():
    stage = Stage(workers=1)
    stage.supervise()
    worker = stage.start("worker-1")
    stage.records = {number: record(number, url=f"http://h/{'x' * 4_000}") for number in range(1, 4_001)}
    stage.load()
    assert len(worker.inbox) <= WINDOW
    stage.obey()
    stage.assert_whole()


# ---- what the status says of the load --------------------------------------------------------------------------------


def test_how_many_projects_there_were_is_known_when_they_are_loaded():
    """Also of an empty table, of which no progress is told."""
    stage = Stage()
    assert stage.core.view(stage.now).projects_total is None
    stage.load()
    assert stage.core.view(stage.now).projects_total == 0
