"""The kinds of fault: how each is done to a cluster, undone, recognised in its log, and what it may cost.

A fault is made from a random generator, so a seed gives the same faults again.  ``inject`` does it and returns when it
is done, ``heal`` ends it; between them ``lasts_s`` pass.  What the judges need to know is in its fields:

    waits_s    before it is done, so that it doesn't always meet the cluster in the same part of its second
    gap_s      how much longer than an interval a project may go unpolled; None: polling may stand still
    sign       what the log says when the cluster has noticed; None: it need not notice
    may_end    names of processes that may end while it is there
    struck_at  when it was done (the machine's clock)
    deaths     workers that recorded nothing from an instant on: what they had not yet in their WAL is polled again

It never waits for the cluster to recover, and judges nothing.
"""

import contextlib
import re
import signal
import time
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from tests.integration.harness import is_alive, wait_until

KILL_GAP_S = 1.0  # promised after a worker's death
HANG_GAP_S = 5.0  # promised after a hang
COORDINATOR_START_S = 3.0  # until a new coordinator can move what a dead worker had
HANG_DEADLINE_S = 25.0
AWAY = r"database.*(is away|failed|is not usable|did not answer)|cannot reach the database"
NOT_WORKERS = frozenset({"coordinator", "writer"})
NOT_CHOSEN = frozenset({"workers", "waits_s", "sign", "may_end", "struck_at", "deaths", "gap_s", "healed_at"})


class WorkerDeath(NamedTuple):
    name: str
    at: float
    unwritten_since: float  # from then on it could not write what it found; usually its death


class Fault(ABC):
    gap_s: float | None = 0.0
    needs_disk: ClassVar[bool] = False

    def __init__(self, rng, workers):
        self.workers = workers
        self.waits_s = rng.uniform(0.0, 1.0)
        self.lasts_s = 0.0
        self.sign = None
        self.may_end = frozenset()
        self.struck_at = 0.0
        self.deaths = []
        self.choose(rng)

    @property
    def kind(self):
        return re.sub(r"(?<!^)(?=[A-Z])", " ", type(self).__name__).lower()

    def __str__(self):
        chosen = {
            name: round(value, 2) if isinstance(value, float) else value
            for name, value in vars(self).items()
            if name not in NOT_CHOSEN and value not in (0.0, None)
        }
        return " ".join([self.kind, *(f"{name}={value}" for name, value in chosen.items())])

    def choose(self, rng):  # noqa: B027 - many kinds leave nothing open
        """Decide what is left open by the kind."""

    def hurry(self, lasts_max_s):
        """Be over sooner, where there is little time."""
        self.lasts_s = min(self.lasts_s, lasts_max_s)

    @abstractmethod
    def inject(self, stage):
        """Strike."""

    def heal(self, stage):  # noqa: B027 - see above
        """End it; many end by themselves."""

    def complaints(self, stage):
        """What else is not as it must be once the cluster has recovered, in words."""
        return []

    # ---- parts ----------------------------------------------------------------------------------------------------

    def kill(self, stage, name):
        _process, at = stage.cluster.strike(name, signal.SIGKILL)
        self.struck_at = self.struck_at or at
        if name in self.workers:
            self.deaths.append(WorkerDeath(name, at, at))


class _RoleFault(Fault):
    def choose(self, rng):
        self.name = self.pick(rng)
        self.may_end = frozenset({self.name})

    def pick(self, rng):
        return rng.choice(self.workers)


class KilledWorker(_RoleFault):
    gap_s = KILL_GAP_S

    def inject(self, stage):
        self.sign = rf"^{self.name} was ended by signal 9"
        self.kill(stage, self.name)


class KilledWriter(KilledWorker):
    gap_s = 0.0

    def pick(self, _rng):
        return "writer"


class KilledCoordinator(KilledWorker):
    gap_s = 0.0

    def pick(self, _rng):
        return "coordinator"


class HungWorker(_RoleFault):
    gap_s = HANG_GAP_S
    silent = "{name} .*has been silent"

    def inject(self, stage):
        self.sign = self.silent.format(name=self.name)
        self._process, self.struck_at = stage.cluster.strike(self.name, signal.SIGSTOP)
        if self.name in self.workers:
            self.deaths.append(WorkerDeath(self.name, self.struck_at, self.struck_at))

    def heal(self, stage):
        """The cluster does it: a process that hangs is killed."""
        pid = self._process.pid
        wait_until(lambda: not is_alive(pid), lambda: f"{self.name} to be killed: {stage.state()}", HANG_DEADLINE_S)

    def __str__(self):
        return f"{self.kind} name={self.name}"


class HungWriter(HungWorker):
    gap_s = 0.0
    silent = "the writer has been silent"

    def pick(self, _rng):
        return "writer"


class HungCoordinator(HungWorker):
    gap_s = 0.0
    silent = "no heartbeat of the coordinator"

    def pick(self, _rng):
        return "coordinator"


class PausedRole(_RoleFault):
    """Stopped for so short a time that nobody may take it for dead."""

    def choose(self, rng):
        super().choose(rng)
        self.may_end = frozenset()
        self.lasts_s = rng.uniform(0.3, 1.8)
        self.gap_s = self.lasts_s if self.name in self.workers else 0.0

    def pick(self, rng):
        return rng.choice([*self.workers, "writer", "coordinator"])

    def inject(self, stage):
        self._process, self.struck_at = stage.cluster.strike(self.name, signal.SIGSTOP)

    def heal(self, stage):
        self._process.send_signal(signal.SIGCONT)

    def __str__(self):
        return f"{self.kind} name={self.name} lasts_s={self.lasts_s:.2f}"


class PausedSupervisor(Fault):
    def choose(self, rng):
        self.lasts_s = rng.uniform(0.5, 6.0)

    def inject(self, stage):
        self.struck_at = time.time()
        stage.cluster.process.send_signal(signal.SIGSTOP)

    def heal(self, stage):
        stage.cluster.process.send_signal(signal.SIGCONT)


class KilledCoordinatorAndWriter(Fault):
    def choose(self, _rng):
        self.may_end = NOT_WORKERS

    def inject(self, stage):
        self.sign = r"^(coordinator|writer) was ended by signal 9"
        self.kill(stage, "coordinator")
        self.kill(stage, "writer")


class KilledCoordinatorAndWorker(Fault):
    gap_s = KILL_GAP_S + COORDINATOR_START_S

    def choose(self, rng):
        self.name = rng.choice(self.workers)
        self.may_end = frozenset({"coordinator", self.name})

    def inject(self, stage):
        self.sign = rf"^{self.name} was ended by signal 9"
        self.kill(stage, "coordinator")
        self.kill(stage, self.name)


class HungWorkerAndKilledCoordinator(HungWorker):
    gap_s = HANG_GAP_S + COORDINATOR_START_S

    def choose(self, rng):
        super().choose(rng)
        self.may_end |= {"coordinator"}

    def inject(self, stage):
        super().inject(stage)
        self.kill(stage, "coordinator")


class KilledWorkers(Fault):
    """Several at once, perhaps all."""

    gap_s = None  # when all are gone, nobody polls before the first has started

    def choose(self, rng):
        self.names = rng.sample(self.workers, rng.randint(2, len(self.workers)))
        self.may_end = frozenset(self.names)

    def inject(self, stage):
        self.sign = rf"^({'|'.join(self.names)}) was ended by signal 9"
        for name in self.names:
            self.kill(stage, name)


class KilledWorkerAgainAndAgain(_RoleFault):
    """Its successors are killed soon after they started, in the middle of taking over what was left behind."""

    gap_s = KILL_GAP_S

    def choose(self, rng):
        super().choose(rng)
        self.pauses_s = [rng.uniform(0.0, 0.8) for _ in range(rng.randint(1, 3))]

    def inject(self, stage):
        self.sign = rf"^{self.name} was ended by signal 9"
        self.kill(stage, self.name)
        for pause_s in self.pauses_s:
            stage.let_pass(pause_s)
            self.kill(stage, self.name)


class RollingRestart(Fault):
    """SIGTERM to one role after the other, as after an upgrade of the program."""

    gap_s = KILL_GAP_S

    def choose(self, rng):
        self.names = [*self.workers, "writer", "coordinator"]
        rng.shuffle(self.names)
        self.may_end = frozenset(self.names)

    def inject(self, stage):
        self.sign = r" ended with status 0"
        for name in self.names:
            process, at = stage.cluster.strike(name, signal.SIGTERM)
            self.struck_at = self.struck_at or at
            wait_until(lambda pid=process.pid: not is_alive(pid), f"{name} to end", HANG_DEADLINE_S)
            stage.wait_recovered(at)


# ---- the database -------------------------------------------------------------------------------------------------


class StoppedDatabase(Fault):
    def choose(self, rng):
        self.lasts_s = rng.uniform(1.0, 8.0)

    def inject(self, stage):
        self.sign = AWAY
        self.struck_at = time.time()
        self.take_away(stage.postgres)

    def take_away(self, postgres):
        postgres.stop()

    def heal(self, stage):
        stage.postgres.start()


class KilledDatabase(StoppedDatabase):
    def choose(self, rng):
        self.lasts_s = rng.choice([0.0, rng.uniform(1.0, 8.0)])

    def take_away(self, postgres):
        postgres.kill()


class FrozenDatabase(StoppedDatabase):
    """Its connections stay open and nothing answers."""

    def choose(self, rng):
        self.lasts_s = rng.uniform(1.0, 12.0)

    def inject(self, stage):
        self.struck_at = time.time()
        stage.postgres.freeze()

    def heal(self, stage):
        stage.postgres.thaw()


class LockedTables(Fault):
    """The database answers, but somebody holds the tables."""

    def choose(self, rng):
        self.tables = rng.sample(["poll_results", "missed_polls", "ingest_stream", "cluster_state"], rng.randint(1, 3))
        self.lasts_s = rng.uniform(1.0, 8.0)

    def inject(self, stage):
        self.struck_at = time.time()
        stage.postgres.lock(self.tables)

    def heal(self, stage):
        stage.postgres.unlock()


class SetBackDatabase(Fault):
    """Restarted, and later restarted again with the state of the first time: what was committed between is gone.

    ``killed``: a process that is killed before it is back.  Without the writer nobody remembers how far it had come;
    what a worker had recorded is for its successor to bring.
    """

    def choose(self, rng):
        self.forgets_s = rng.uniform(2.0, 10.0)
        self.killed = rng.choice([None, "writer", rng.choice(self.workers)])
        self.may_end = frozenset({self.killed})
        self.gap_s = KILL_GAP_S if self.killed in self.workers else 0.0

    def hurry(self, lasts_max_s):
        self.forgets_s = min(self.forgets_s, lasts_max_s)

    def inject(self, stage):
        self.sign = AWAY
        self.struck_at = time.time()
        stage.postgres.crash()
        stage.postgres.remember()
        stage.postgres.start()
        restarted_at = time.time()
        stage.wait_recovered(restarted_at)
        stage.let_pass(self.forgets_s)
        stage.postgres.crash()
        stage.postgres.set_back()
        if self.killed:
            self.kill(stage, self.killed)

    def heal(self, stage):
        stage.postgres.start()


class DatabaseAwayAndKilledWorkers(StoppedDatabase):
    """What they had found is on their disk only, and nobody can take it yet."""

    gap_s = KILL_GAP_S

    def choose(self, rng):
        self.lasts_s = rng.uniform(1.0, 4.0)
        self.names = rng.sample(self.workers, rng.randint(1, min(2, len(self.workers))))
        self.may_end = frozenset(self.names)

    def inject(self, stage):
        super().inject(stage)
        for name in self.names:
            stage.let_pass(self.lasts_s)
            self.kill(stage, name)


class DatabaseAwayAndKilledCoordinatorAndWriter(StoppedDatabase):
    def choose(self, rng):
        self.lasts_s = rng.uniform(1.0, 4.0)
        self.may_end = NOT_WORKERS

    def inject(self, stage):
        super().inject(stage)
        stage.let_pass(self.lasts_s)
        self.kill(stage, "coordinator")
        self.kill(stage, "writer")


class OneDuringAnother(Fault):
    """A process dies or hangs while the database is away, slow or silent, or the clock is wrong."""

    def choose(self, rng):
        self.outer = rng.choice(OUTER)(rng, self.workers)
        self.inner = rng.choice(INNER)(rng, self.workers)
        self.may_end = self.inner.may_end
        self.gap_s = self.inner.gap_s + self.outer.gap_s

    def hurry(self, lasts_max_s):
        self.outer.hurry(lasts_max_s)

    def inject(self, stage):
        self.outer.inject(stage)
        stage.let_pass(self.outer.lasts_s / 2)
        self.inner.inject(stage)
        self.sign, self.struck_at, self.deaths = self.inner.sign, self.inner.struck_at, self.inner.deaths
        stage.let_pass(self.inner.lasts_s)
        self.inner.heal(stage)
        stage.let_pass(self.outer.lasts_s / 2)

    def heal(self, stage):
        self.outer.heal(stage)

    def __str__(self):
        return f"{self.inner} during {self.outer}"


# ---- the machine --------------------------------------------------------------------------------------------------


# Of ranges that reach into a window.
MISSED_WITHIN = """
    SELECT reason, sum(ticks)::int FROM missed_polls
    WHERE last_tick >= to_timestamp($1::float8) AND first_tick < to_timestamp($2::float8) GROUP BY reason
"""


class FullDisk(Fault):
    """No byte more into the WAL: workers stop polling, and what they don't poll is missed(overload)."""

    gap_s = None
    needs_disk = True

    def choose(self, rng):
        self.lasts_s = rng.uniform(2.0, 5.0)

    def inject(self, stage):
        self.sign = r"(?i)no space|disk.*full|\bfull\b"
        self.struck_at = time.time()
        stage.disk.fill()

    def heal(self, stage):
        stage.disk.free()
        self.healed_at = time.time()

    def complaints(self, stage):
        ahead_s = stage.clock.slowest_offset_s()
        with contextlib.closing(stage.postgres.sql()) as sql:
            missed = dict(map(tuple, sql.fetch(MISSED_WITHIN, self.struck_at + ahead_s, self.healed_at + ahead_s)))
        return [] if set(missed) - {"overrun"} == {"overload"} else [f"ticks missed meanwhile: {missed}"]


class FullDiskAndKilledWorker(FullDisk):
    def choose(self, rng):
        super().choose(rng)
        self.name = rng.choice(self.workers)
        self.may_end = frozenset({self.name})

    def inject(self, stage):
        super().inject(stage)
        stage.let_pass(self.lasts_s)
        self.kill(stage, self.name)
        self.deaths = [each._replace(unwritten_since=self.struck_at) for each in self.deaths]

    def complaints(self, stage):
        return []  # some are claimed by the next owner


class ClockForward(Fault):
    """For good; what is skipped is missed."""

    def choose(self, rng):
        self.step_s = rng.uniform(2.1, 5.0)

    def inject(self, stage):
        self.struck_at = time.time()
        stage.clock.step(self.step_s)


class ClockBack(Fault):
    """And forward again, as when two time servers differ."""

    def choose(self, rng):
        self.step_s = rng.uniform(0.5, 5.0)
        self.lasts_s = rng.uniform(1.0, 6.0)

    def inject(self, stage):
        self.struck_at = time.time()
        stage.clock.step(-self.step_s)

    def heal(self, stage):
        stage.clock.step(self.step_s)


class ClockOfOneWorker(Fault):
    """One is ahead or behind for a while; what it has polled is of another time, and it may be killed meanwhile."""

    def choose(self, rng):
        self.name = rng.choice(self.workers)
        self.step_s = rng.choice([-1, 1]) * rng.uniform(0.5, 4.0)
        self.lasts_s = rng.uniform(2.0, 6.0)
        self.killed = rng.random() < 0.5
        self.may_end = frozenset({self.name}) if self.killed else frozenset()
        self.gap_s = abs(self.step_s) + (KILL_GAP_S if self.killed else 0.0)

    def inject(self, stage):
        self.struck_at = time.time()
        stage.clock.step(self.step_s, self.name)
        stage.let_pass(self.lasts_s)
        if self.killed:
            self.kill(stage, self.name)

    def heal(self, stage):
        stage.clock.step(-self.step_s, self.name)


OUTER = (StoppedDatabase, KilledDatabase, FrozenDatabase, LockedTables, ClockBack)
INNER = (
    KilledWorker,
    KilledWriter,
    KilledCoordinator,
    HungWorker,
    HungWriter,
    KilledCoordinatorAndWorker,
    KilledWorkerAgainAndAgain,
    PausedRole,
)


class KilledEverything(Fault):
    """``cluster up`` and all its roles at one stroke, then ``cluster up`` again; ``worse``: the database, too."""

    gap_s = None

    def choose(self, rng):
        self.lasts_s = rng.uniform(0.0, 4.0)
        self.worse = rng.random() < 0.5

    def inject(self, stage):
        if self.worse:
            stage.postgres.kill()
            stage.let_pass(self.lasts_s)
        self.struck_at = stage.cluster.kill_everything()
        self.deaths += [WorkerDeath(name, self.struck_at, self.struck_at) for name in self.workers]
        if self.worse:
            stage.postgres.start()
        stage.cluster.start()


class KilledSupervisor(Fault):
    """The roles see it and stop in no order; ``cluster up`` waits for them."""

    gap_s = None

    def choose(self, _rng):
        self.may_end = frozenset({*self.workers, "coordinator", "writer"})

    def inject(self, stage):
        stage.cluster.note_processes()
        self.struck_at = time.time()
        stage.cluster.process.kill()
        stage.cluster.process.wait()
        stage.cluster.start()


COMMON = (
    OneDuringAnother,
    KilledWorker,
    HungWorker,
    KilledCoordinator,
    KilledWriter,
    KilledCoordinatorAndWriter,
    KilledDatabase,
    StoppedDatabase,
    LockedTables,
    SetBackDatabase,
    FullDisk,
    ClockForward,
    ClockBack,
    KilledEverything,
)
RARER = (
    HungWriter,
    HungCoordinator,
    PausedRole,
    PausedSupervisor,
    KilledCoordinatorAndWorker,
    HungWorkerAndKilledCoordinator,
    KilledWorkers,
    KilledWorkerAgainAndAgain,
    ClockOfOneWorker,
    RollingRestart,
    FrozenDatabase,
    DatabaseAwayAndKilledWorkers,
    DatabaseAwayAndKilledCoordinatorAndWriter,
    FullDiskAndKilledWorker,
    KilledSupervisor,
)
COMMON_WEIGHT = 2


def plan(rng, count, workers, *, with_disk=True, kinds=None):
    """``count`` faults, every kind at least once when there are enough, in an order of their own."""
    kinds = [each for each in (kinds or COMMON + RARER) if with_disk or not each.needs_disk]
    chosen = rng.sample(kinds, min(count, len(kinds)))
    weights = [COMMON_WEIGHT if each in COMMON else 1 for each in kinds]
    chosen += rng.choices(kinds, weights, k=count - len(chosen))
    rng.shuffle(chosen)
    return [each(rng, workers) for each in chosen]
