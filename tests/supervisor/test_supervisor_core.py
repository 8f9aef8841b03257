"""The supervisor's core in virtual time: what happens is told, what it wants done is read."""

import itertools
import random

import pytest

from cluster.messages.control import (
    CoordinatorHeartbeat,
    KillProcess,
    ProcessExited,
    ProcessStarted,
    SetWorkers,
    SupervisorHello,
    SupervisorStopping,
    WhoAreYou,
)
from cluster.supervisor import core as c
from cluster.supervisor.core import (
    CoordinatorSpoke,
    EndSupervision,
    ProcessEnded,
    ProcessSpawned,
    Report,
    SignalProcess,
    SpawnFailed,
    SpawnProcess,
    StopRequested,
    SupervisionBegan,
    SupervisorCore,
    TellCoordinator,
)
from cluster.supervisor.states import ProcessState

BEAT = CoordinatorHeartbeat(0, None, 0, "running", True)


class Stage:
    """A host on which processes are started and end as the test says."""

    def __init__(self, *, workers=2, grace_ms=30_000, demo=False, spawn=True):
        self.now = 1_000_000
        self.numbers = itertools.count(1)
        self.core = SupervisorCore(
            pid=1,
            run_id="run",
            workers=workers,
            grace_ms=grace_ms,
            new_incarnation=lambda: f"i{next(self.numbers)}",
            demo=demo,
        )
        self.spawning = spawn
        self.pids = itertools.count(100)
        self.alive = {}  # incarnation -> name
        self.signals = []
        self.told = []
        self.reports = []
        self.end = None
        self.feed(SupervisionBegan())

    def feed(self, event):
        self._perform(self.core.handle(event, self.now))
        self._check()

    def _perform(self, effects):
        for effect in effects:
            match effect:
                case SpawnProcess():
                    assert effect.name not in self.alive.values(), "two processes of one name"
                    if self.spawning:
                        self.alive[effect.incarnation] = effect.name
                        self.feed(ProcessSpawned(effect.name, effect.incarnation, next(self.pids)))
                    else:
                        self.feed(SpawnFailed(effect.name, effect.incarnation, "no memory"))
                case SignalProcess():
                    assert self.alive.get(effect.incarnation) == effect.name, "a signal to a process that is gone"
                    self.signals.append((effect.name, effect.signal))
                case TellCoordinator():
                    self.told.append(effect.message)
                case Report():
                    self.reports.append((effect.level, effect.text))
                case EndSupervision():
                    assert self.end is None
                    assert not self.alive
                    self.end = effect

    def _check(self):
        for each in self.core.processes.values():
            if each.pid:
                assert each.state.is_alive
                assert self.alive.get(each.incarnation) == each.name

    def run(self, duration_ms, *, beat=True):
        """Let time pass; the coordinator, if it is alive, answers once a second."""
        until = self.now + duration_ms
        while (due := self.core.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            hellos = sum(isinstance(each, SupervisorHello) for each in self.told)
            self._perform(self.core.handle_timer(self.now))
            self._check()
            said_hello = sum(isinstance(each, SupervisorHello) for each in self.told) > hellos
            if beat and said_hello and "coordinator" in self.alive.values():
                self.feed(CoordinatorSpoke(BEAT))
        self.now = max(self.now, until)

    def incarnation(self, name):
        return next(incarnation for incarnation, each in self.alive.items() if each == name)

    def ends(self, name, status=-9, error=""):
        incarnation = self.incarnation(name)
        del self.alive[incarnation]
        self.feed(ProcessEnded(name, incarnation, status, error))
        return incarnation

    def state(self, name):
        return self.core.processes[name].state

    def names(self):
        return sorted(self.alive.values())

    def heard(self, kind):
        return [each for each in self.told if isinstance(each, kind)]


ALL = ["coordinator", "worker-1", "worker-2", "writer"]


def test_everything_is_started_at_once_and_the_coordinator_hears_of_it():
    stage = Stage()
    assert stage.names() == ALL
    assert [each.name for each in stage.heard(ProcessStarted)] == ["writer", "worker-1", "worker-2"]


def test_hello_each_second_names_all_that_is_alive():
    stage = Stage()
    stage.run(3_000)
    hellos = stage.heard(SupervisorHello)
    assert len(hellos) == 3
    assert sorted(each.name for each in hellos[-1].alive) == ["worker-1", "worker-2", "writer"]
    assert hellos[-1].workers_wanted == 2
    assert not hellos[-1].stopping


def test_hello_at_once_when_asked():
    stage = Stage()
    stage.feed(CoordinatorSpoke(WhoAreYou()))
    assert len(stage.heard(SupervisorHello)) == 1


def test_the_demo_is_not_the_coordinators_business():
    stage = Stage(demo=True)
    stage.run(1_000)
    assert "demo" in stage.names()
    stage.ends("demo", 0)
    assert "demo" in stage.names()
    assert "demo" not in {each.name for each in stage.heard(ProcessStarted) + stage.heard(ProcessExited)}
    assert "demo" not in {each.name for each in stage.heard(SupervisorHello)[-1].alive}


def test_a_killed_worker_is_back_at_once():
    stage = Stage()
    stage.run(10_000)
    gone = stage.ends("worker-1")
    assert stage.names() == ALL
    assert stage.heard(ProcessExited) == [ProcessExited("worker-1", gone, -9, True)]
    assert stage.heard(ProcessStarted)[-1].incarnation == stage.incarnation("worker-1") != gone


def test_quick_ends_are_delayed_more_and_more_and_a_long_life_forgets_them():
    stage = Stage()
    stage.run(10_000)
    delays = []
    for _ in range(5):
        stage.ends("worker-1", 70)
        ended = stage.now
        while "worker-1" not in stage.names():
            stage.run(50)
        delays.append(stage.now - ended)
    assert delays == [0, 0, 500, 1_000, 2_000]
    stage.run(6_000)
    stage.ends("worker-1", 70)
    assert "worker-1" in stage.names()


def test_a_worker_that_always_ends_is_given_up_and_the_others_go_on():
    stage = Stage()
    for _ in range(c.RESTARTS_MAX + 1):
        stage.ends("worker-1", 1, "no")
        if stage.state("worker-1") is ProcessState.BACKOFF:
            stage.run(stage.core.processes["worker-1"].restart_at_ms - stage.now)
    assert stage.state("worker-1") is ProcessState.FATAL
    assert stage.heard(ProcessExited)[-1].restarting is False
    stage.run(120_000)
    assert stage.names() == ["coordinator", "worker-2", "writer"]
    stage.feed(CoordinatorSpoke(SetWorkers(["worker-1", "worker-2"])))  # saying it again changes nothing
    assert stage.state("worker-1") is ProcessState.FATAL


def test_slow_restarts_never_use_up_the_budget():
    stage = Stage()
    for _ in range(3 * c.RESTARTS_MAX):
        stage.run(c.BUDGET_MS // c.RESTARTS_MAX + 1)
        stage.ends("writer", 70)
        assert "writer" in stage.names()


@pytest.mark.parametrize("name", ["coordinator", "writer"])
def test_a_core_role_that_always_ends_stops_the_cluster(name):
    stage = Stage()
    stage.run(10_000)
    for _ in range(c.RESTARTS_MAX + 1):
        stage.ends(name, 70, "it broke")
        if stage.state(name) is ProcessState.BACKOFF:
            stage.run(stage.core.processes[name].restart_at_ms - stage.now)
    assert stage.state(name) is ProcessState.FATAL
    for _ in range(10):
        for each in list(stage.alive.values()):
            if (each, "term") in stage.signals:
                stage.ends(each, 0)
    assert stage.end == EndSupervision(1, f"{name} ended 11 times in 60 s, last it ended with status 70: it broke")


@pytest.mark.parametrize("name", ["coordinator", "writer"])
@pytest.mark.parametrize("status", [1, 2])
def test_a_wrong_configuration_at_the_first_start_ends_with_its_line(name, status):
    stage = Stage()
    stage.ends(name, status, "the port is in use")
    for each in ("worker-1", "worker-2"):
        stage.ends(each, 0)
    for each in {"coordinator", "writer"} - {name}:
        stage.ends(each, 0)
    assert stage.end == EndSupervision(1, "the port is in use")


def test_the_same_status_later_is_a_restart():
    stage = Stage()
    stage.run(10_000)
    stage.ends("coordinator", 1, "something")
    assert "coordinator" in stage.names()
    stage.ends("writer", 2, "something")
    assert "writer" in stage.names()


def test_a_worker_with_a_wrong_configuration_is_a_restart():
    stage = Stage()
    stage.ends("worker-1", 2, "something")
    assert "worker-1" in stage.names()


def test_a_process_that_cannot_be_started_is_tried_again():
    stage = Stage(spawn=False)
    assert stage.names() == []
    stage.spawning = True
    stage.run(1_000)
    assert stage.names() == ALL


def test_a_silent_coordinator_is_killed_after_ten_seconds():
    stage = Stage()
    stage.run(5_000)
    stage.run(9_000, beat=False)
    assert stage.signals == []
    stage.run(2_000, beat=False)
    assert stage.signals == [("coordinator", "kill")]
    stage.ends("coordinator")
    assert "coordinator" in stage.names()


def test_a_coordinator_that_starts_has_a_minute():
    stage = Stage()
    stage.run(59_000, beat=False)
    assert stage.signals == []
    stage.run(2_000, beat=False)
    assert stage.signals == [("coordinator", "kill")]


def test_a_supervisor_that_was_suspended_blames_nobody():
    stage = Stage()
    stage.run(5_000)
    stage.now += 600_000
    stage.run(1, beat=False)
    assert stage.signals == []
    stage.run(5_000)
    assert stage.signals == []


def test_a_worker_is_killed_when_the_coordinator_says_so_and_only_that_incarnation():
    stage = Stage()
    old = stage.incarnation("worker-2")
    stage.feed(CoordinatorSpoke(KillProcess("worker-2", old, "it hangs")))
    assert stage.signals == [("worker-2", "kill")]
    stage.ends("worker-2")
    stage.feed(CoordinatorSpoke(KillProcess("worker-2", old, "it hangs")))
    stage.feed(CoordinatorSpoke(KillProcess("worker-9", old, "it hangs")))
    assert stage.signals == [("worker-2", "kill")]


def test_more_workers_are_started_and_fewer_are_not_started_again():
    stage = Stage()
    stage.feed(CoordinatorSpoke(SetWorkers(["worker-1", "worker-2", "worker-3"])))
    assert "worker-3" in stage.names()
    stage.feed(CoordinatorSpoke(SetWorkers(["worker-1", "worker-3"])))
    assert "worker-2" in stage.names()  # it ends by itself, when it has handed everything over
    assert stage.signals == []
    stage.ends("worker-2", 0)
    stage.run(20_000)
    assert stage.names() == ["coordinator", "worker-1", "worker-3", "writer"]
    assert "worker-2" not in stage.core.processes
    assert stage.heard(ProcessExited)[-1].restarting is False
    stage.feed(CoordinatorSpoke(SetWorkers(["worker-1", "worker-2", "worker-3"])))
    assert "worker-2" in stage.names()


def test_a_worker_that_waits_to_be_started_and_is_not_wanted_any_more_is_forgotten():
    stage = Stage()
    stage.run(10_000)
    for _ in range(3):
        stage.ends("worker-2", 70)
    assert stage.state("worker-2") is ProcessState.BACKOFF
    stage.feed(CoordinatorSpoke(SetWorkers(["worker-1"])))
    stage.run(60_000)
    assert "worker-2" not in stage.core.processes


@pytest.mark.parametrize("names", [["coordinator"], ["worker-x"], [f"worker-{n}" for n in range(300)], ["../x"]])
def test_a_list_of_workers_that_is_none_is_refused(names):
    stage = Stage()
    stage.feed(CoordinatorSpoke(SetWorkers(names)))
    assert stage.names() == ALL
    assert stage.reports[-1][0] == "error"


def test_the_stop_is_ordered():
    stage = Stage(demo=True)
    stage.run(10_000)
    stage.feed(StopRequested("SIGTERM"))
    assert stage.heard(SupervisorStopping)
    assert stage.signals == [("worker-1", "term"), ("worker-2", "term")]
    stage.run(1_000)
    assert stage.heard(SupervisorHello)[-1].stopping
    stage.ends("worker-1", 0)
    assert len(stage.signals) == 2
    stage.ends("worker-2", 0)
    assert stage.signals[2:] == [("writer", "term")]
    stage.ends("writer", 0)
    assert sorted(stage.signals[3:]) == [("coordinator", "term"), ("demo", "term")]
    stage.ends("coordinator", 0)
    assert stage.end is None
    stage.ends("demo", 0)
    assert stage.end == EndSupervision(0, "")
    assert stage.core.next_timer() is None


def test_writer_and_coordinator_are_started_again_while_workers_stop():
    stage = Stage()
    stage.run(10_000)
    stage.feed(StopRequested("SIGTERM"))
    stage.ends("writer")
    stage.ends("coordinator")
    assert stage.names() == ALL
    stage.ends("worker-1", 0)
    stage.ends("worker-2", -9)
    assert stage.names() == ["coordinator", "writer"]
    stage.ends("writer", 0)
    stage.ends("coordinator", 0)
    assert stage.end == EndSupervision(1, "worker-2 was ended by signal 9 while stopping")


def test_a_worker_that_could_not_commit_makes_the_status_one():
    stage = Stage(workers=1)
    stage.feed(StopRequested("SIGTERM"))
    stage.ends("worker-1", 1, "17 results are not committed")
    stage.ends("writer", 0)
    stage.ends("coordinator", 0)
    assert stage.end.exit_status == 1
    assert "17 results are not committed" in stage.end.why


def test_who_does_not_stop_in_time_is_killed():
    stage = Stage(workers=1, grace_ms=30_000)
    stage.run(10_000)
    stage.feed(StopRequested("SIGTERM"))
    stage.run(30_000 + c.STOP_WORKERS_MS - 1_000)
    assert ("worker-1", "kill") not in stage.signals
    stage.run(1_500)
    assert ("worker-1", "kill") in stage.signals
    stage.ends("worker-1")
    stage.run(c.STOP_WRITER_MS)
    assert stage.signals[-1] == ("writer", "kill")
    stage.ends("writer")
    stage.run(c.STOP_LAST_MS)
    assert stage.signals[-1] == ("coordinator", "kill")
    stage.ends("coordinator")
    assert stage.end == EndSupervision(1, "worker-1 did not stop in time and was killed")


def test_a_second_signal_kills_everything():
    stage = Stage()
    stage.run(10_000)
    stage.feed(StopRequested("SIGINT"))
    stage.feed(StopRequested("SIGINT"))
    assert sorted(name for name, signal in stage.signals if signal == "kill") == ALL
    for name in ALL:
        stage.ends(name)
    assert stage.end.exit_status == 1
    assert stage.names() == []


def test_a_process_waiting_to_be_started_is_not_started_in_a_stop():
    stage = Stage()
    stage.run(10_000)
    for _ in range(3):
        stage.ends("worker-1", 70)
    stage.feed(StopRequested("SIGTERM"))
    stage.run(20_000)
    assert "worker-1" not in stage.names()


def test_word_of_a_process_that_was_replaced_changes_nothing():
    stage = Stage()
    old = stage.ends("worker-1")
    before = repr(stage.core.processes)
    stage.feed(ProcessEnded("worker-1", old, 0))
    stage.feed(ProcessSpawned("worker-1", old, 4))
    assert repr(stage.core.processes) == before


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_it_ends_when_told_and_leaves_nothing(seed):
    """Random lives: the invariants in Stage hold after each event, and a stop always comes to an end."""
    chance = random.Random(seed)
    stage = Stage(workers=chance.randint(1, 4), demo=chance.random() < 0.3)
    for _ in range(150):
        if stage.end is not None:
            break
        match chance.randrange(7):
            case 0 | 1:
                stage.run(chance.choice([10, 700, 1_500, 7_000]), beat=chance.random() < 0.9)
            case 2 if stage.alive:
                stage.ends(chance.choice(stage.names()), chance.choice([0, 1, 2, 70, -9]))
            case 3:
                wanted = [f"worker-{n}" for n in range(1, chance.randint(2, 6))]
                stage.feed(CoordinatorSpoke(SetWorkers(wanted)))
            case 4 if stage.alive:
                name = chance.choice(stage.names())
                stage.feed(CoordinatorSpoke(KillProcess(name, stage.incarnation(name), "test")))
            case 5 if chance.random() < 0.05:
                stage.feed(StopRequested("SIGTERM"))
            case _:
                stage.spawning = chance.random() < 0.95
    stage.spawning = True
    if stage.end is None:
        stage.feed(StopRequested("SIGTERM"))
    for _ in range(200):
        if stage.end is not None:
            break
        stage.run(1_000)
        for name in stage.names():
            if chance.random() < 0.3 and {(name, "term"), (name, "kill")} & set(stage.signals):
                stage.ends(name, 0)
    assert stage.end is not None
    assert not stage.alive
