"""What a worker is still to be told: kept as ids, said once, always the newest."""

from cluster.messages.control import BusyProject, WorkerStats
from coordinator.link import WorkerLink
from coordinator.member import BYTES_PER_MESSAGE, REMOVES_PER_MESSAGE, Member, Note


def member():
    return Member("worker-1", "i1", 10, 0)


def opened(grants=()):
    worker = member()
    worker.peer = b"p"
    worker.state = "running"
    worker.open(WorkerLink(b"p", 1), list(grants))
    return worker


def test_it_speaks_once_it_has_said_hello():
    worker = member()
    assert not worker.speaks
    worker.peer = b"p"
    assert not worker.speaks, "still starting"
    for state, speaks in (("running", True), ("draining", True), ("hung", False), ("restarting", False)):
        worker.state = state
        assert worker.speaks is speaks


def test_removals_go_out_in_portions_and_the_token_with_the_last():
    worker = opened()
    worker.removes = dict.fromkeys(range(REMOVES_PER_MESSAGE + 1), 500)
    worker.remove_tokens = [7]
    first, tokens = worker.take_removes()
    assert len(first) == REMOVES_PER_MESSAGE
    assert tokens == []
    second, tokens = worker.take_removes()
    assert [removed.project_id for removed in second] == [REMOVES_PER_MESSAGE]
    assert tokens == [7]
    assert worker.remove_tokens == []


def test_an_upsert_says_the_newest_and_leaves_out_what_is_gone():
    worker = opened()
    worker.upserts = {1: True, 2: False, 3: True}
    blobs, taken = worker.take_upserts({1: b"one", 2: b"two"}.get)
    assert [bytes(blob) for blob in blobs] == [b"one", b"two"]
    assert taken == {1: True, 2: False}
    assert worker.upserts == {}


def test_an_upsert_message_has_a_size():
    worker = opened()
    worker.upserts = dict.fromkeys(range(5), False)
    blobs, _ = worker.take_upserts(lambda _: b"x" * (BYTES_PER_MESSAGE // 2))
    assert len(blobs) == 2
    assert list(worker.upserts) == [2, 3, 4]


def test_a_new_session_makes_everything_unsaid_part_of_its_snapshot():
    worker = opened([1, 2])
    worker.revokes.add(9)
    worker.upserts[1] = True
    worker.removes[2] = 5
    worker.remove_tokens.append(70)
    worker.settles[BusyProject(1, 2)] = None
    worker.limits = 4
    worker.link.push(WorkerStats(), Note(tokens=[71]), 0)
    worker.snapshot_tokens.append(72)
    worker.open(WorkerLink(b"q", 2), [3])
    assert list(worker.grants) == [3]
    unsaid = [worker.revokes, worker.upserts, worker.removes, worker.settles, worker.remove_tokens]
    assert not any(unsaid)
    assert worker.limits is None
    assert sorted(worker.snapshot_tokens) == [70, 71, 72], "who waits goes on waiting, for the snapshot now"
    assert sorted(worker.snapshot_note().tokens) == [70, 71, 72]
    assert worker.snapshot_note().tokens == []


def test_death_answers_everybody_who_waited_for_it():
    worker = opened([1])
    worker.remove_tokens.append(70)
    worker.snapshot_tokens.append(72)
    worker.link.push(WorkerStats(), Note(tokens=[71]), 0)
    assert sorted(worker.close()) == [70, 71, 72]
    assert worker.close() == []
    assert not worker.speaks
    assert not worker.grants


def test_demand_follows_what_it_does_and_what_waits():
    worker = opened()
    for _ in range(20):
        worker.heard(WorkerStats(active_http=30, queue_depth=10), 1_000)
    assert 39 < worker.demand <= 40
    assert worker.last_heard_ms == 1_000
