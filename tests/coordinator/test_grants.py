"""Many projects are granted a message at a time, so that telling all workers takes no long step of the loop."""

from collections import Counter

from cluster.messages import control
from coordinator.events import Send
from coordinator.link import WINDOW
from coordinator.member import BYTES_PER_MESSAGE
from coordinator.telling import FED_MAX, WireGrants
from tests.coordinator.stage import Stage, record, restarted

WORKERS = 3
PROJECTS = 2_000
URL = "http://h/" + "x" * 2_000  # 4 MB in all: more than all windows take


def grants_in(effects):
    """Bytes of grants by receiver."""
    sizes: Counter[bytes] = Counter()
    for effect in effects:
        if isinstance(effect, Send) and isinstance(effect.message, WireGrants):
            sizes[effect.peer] += len(control.encode(effect.message))
    return sizes


def test_no_step_grants_a_worker_more_than_two_messages(monkeypatch):
    stage = Stage(workers=WORKERS)
    stage.records = {number: record(number, url=URL) for number in range(1, PROJECTS + 1)}
    largest = 0
    take = stage.take

    def watched(effects):
        nonlocal largest
        largest = max([largest, *grants_in(effects).values()])
        return take(effects)

    monkeypatch.setattr(stage, "take", watched)
    stage.running()

    assert BYTES_PER_MESSAGE < largest < 3 * BYTES_PER_MESSAGE < WINDOW * BYTES_PER_MESSAGE
    stage.assert_whole()


def large_stage():
    stage = Stage(workers=4)
    stage.records = {number: record(number, url=URL) for number in range(1, PROJECTS + 1)}
    stage.supervise()
    stage.load()
    return stage, [stage.start(name) for name in stage.names]


def waiting_for_grants(stage):
    return {worker.name for worker in stage.living() if worker.told(control.Grant)}


def test_two_workers_are_granted_at_once_and_the_others_when_these_are_done(monkeypatch):
    stage, _ = large_stage()
    turns = [waiting_for_grants(stage)]
    take = stage.take

    def watched(effects):
        taken = take(effects)
        turns.append(waiting_for_grants(stage))
        return taken

    monkeypatch.setattr(stage, "take", watched)
    stage.obey()

    assert max(len(fed) for fed in turns) == FED_MAX
    assert set().union(*turns) == set(stage.names)
    stage.later(1_000)
    stage.assert_whole()


def test_a_worker_that_hangs_with_its_grants_keeps_nobody_waiting():
    stage, workers = large_stage()
    stuck = [worker for worker in workers if worker.told(control.Grant)]
    others = [worker for worker in workers if worker not in stuck]
    assert len(stuck) == FED_MAX

    for _ in range(10):
        for worker in others:
            worker.beat()
            worker.obey()
        stage.later(1_000, beats=False)

    assert all(worker.held for worker in others)
    assert not any(worker.held for worker in stuck)


def test_the_turn_of_a_worker_that_died_goes_to_another():
    stage, workers = large_stage()
    fed = [worker for worker in workers if worker.told(control.Grant)]
    others = [worker for worker in workers if worker not in fed]

    for worker in fed:
        stage.die(worker)
    for worker in others:
        worker.beat()
        worker.obey()

    assert all(worker.held for worker in others)


def test_what_a_worker_holds_it_is_told_of_before_it_gives_it_up():
    """Else nobody knows whether it knew all of the projects that its cut speaks for."""
    before = Stage(workers=3)
    before.records = {number: record(number, url=URL) for number in range(1, PROJECTS + 1)}
    before.running()
    stage = restarted(before)
    workers = stage.living()
    held = {worker.name: set(worker.held) for worker in workers}
    stage.supervise()
    stage.load()
    for worker in workers:
        worker.heard.clear()
        worker.hello()
    stage.core.state.names.append("worker-4")  # it joins while they are being told what they hold
    stage.start("worker-4")
    stage.later(1_500, beats=False)  # and the moves to it are planned
    stage.obey()
    stage.later(3_000)
    stage.assert_whole()
    given_up = 0
    for worker in workers:
        grants = [message for message in worker.heard if isinstance(message, control.Grant)]
        told = {grant.partition for message in grants for grant in message.partitions}
        gone = held[worker.name] - worker.held.keys()
        assert gone <= told
        given_up += len(gone)
    assert given_up > 100
