"""The coordinator's core on a stage: workers that obey or keep silent, a supervisor, and everything in virtual time.

Messages are encoded and decoded as on the wire.  A ``PlayedWorker`` keeps the protocol's side of a worker and polls
nothing; what it is told waits in its ``inbox`` until it ``obey``s.
"""

import msgspec

from cluster.messages import control
from cluster.messages.control import (
    Ack,
    Cut,
    Grant,
    Heartbeat,
    HeldPartition,
    Hello,
    Limits,
    ProcessAlive,
    ProcessExited,
    ProcessStarted,
    Released,
    Remove,
    RemovedProject,
    Reset,
    Retire,
    Revoke,
    SliceReached,
    SnapshotEnd,
    SupervisorHello,
    Upsert,
    WhoAreYou,
    WorkerStats,
)
from cluster.project import ProjectSpec, encode_spec
from cluster.ticks import partition_of
from coordinator.core import CoordinatorCore
from coordinator.events import (
    ConfirmChange,
    DurableState,
    JournalProjects,
    LoadFinished,
    MessageReceived,
    ProjectRecord,
    ProjectsChanged,
    SaveEpoch,
    Send,
    WriteLog,
)

START_MS = 1_700_000_000_000
SUPERVISOR = b"supervisor"


def record(project_id, interval_ms=1_000, since_ms=START_MS, url="http://h/"):
    return ProjectRecord(
        project_id, 1_000 / interval_ms, encode_spec(ProjectSpec(project_id, url, interval_ms, since_ms))
    )


class PlayedWorker:
    def __init__(self, stage, name, incarnation, slice_=0, held=()):
        self.stage = stage
        self.name = name
        self.incarnation = incarnation
        self.peer = f"{incarnation}/0".encode()
        self.inbox = []
        self.heard = []  # everything it obeyed
        self.session = 0
        self.seq = 0
        self.slice = slice_
        self.in_flight = 0
        self.held = dict(held)  # partition -> epoch
        self.projects = {}  # partition -> ids
        self.resume = {}  # partition -> (after_ms, reason) of its last grant
        self.cuts = {}  # partition -> the last cut, when it was given up
        self.unconfirmed = set()
        self.limits = None
        self.busy = []  # BusyProject, in flight
        self.retired = False
        self.executed = 0
        self.said = 0
        stage.workers[self.peer] = self

    def say(self, message):
        return self.stage.say(self.peer, message)

    def hello(self, *, draining=False):
        held = [HeldPartition(index, epoch, self.resume.get(index, (None,))[0]) for index, epoch in self.held.items()]
        slice_ = max(self.slice, self.in_flight)
        return self.say(
            Hello(self.name, self.incarnation, 1, "s", slice_, held, list(self.cuts.values()), draining=draining)
        )

    def reconnect(self):
        """A new connection: the routing id changes, the worker does not."""
        del self.stage.workers[self.peer]
        self.said += 1
        self.peer = f"{self.incarnation}/{self.said}".encode()
        self.stage.workers[self.peer] = self

    def obey(self):
        """Do everything it was told, and answer."""
        while self.inbox:
            message = self.inbox.pop(0)
            self.heard.append(message)
            if isinstance(message, WhoAreYou):
                self.hello()
                continue
            if isinstance(message, Retire):
                self.retired = True
                continue
            if isinstance(message, Reset):
                self.session, self.seq = message.session, 1
                self.unconfirmed = set(self.held)
            elif message.session != self.session or message.seq != self.seq + 1:
                continue
            self.seq = message.seq
            self._apply(message)
            self.say(Ack(self.session, self.seq))
        self.reach()

    def _apply(self, message):
        match message:
            case Grant(epoch=epoch, partitions=partitions):
                for grant in partitions:
                    ids = self.projects.setdefault(grant.partition, set())
                    if grant.partition not in self.held:
                        ids.clear()
                        self.resume[grant.partition] = (grant.resume_after_ms, grant.reason)
                    self.held[grant.partition] = epoch
                    self.cuts.pop(grant.partition, None)
                    self.unconfirmed.discard(grant.partition)
                    ids |= {spec.id for spec in grant.projects}
            case Revoke(partitions=indices):
                self.release(indices)
            case SnapshotEnd():
                self.release(sorted(self.unconfirmed))
                self.unconfirmed = set()
            case Limits(slice=size):
                self.slice = size
                self.limits = message
            case Upsert(projects=specs):
                for spec in specs:
                    self.projects.setdefault(partition_of(spec.id), set()).add(spec.id)
            case Remove(projects=removed):
                for entry in removed:
                    self.projects.get(partition_of(entry.project_id), set()).discard(entry.project_id)

    def release(self, indices):
        cuts = [
            Cut(
                index,
                epoch,
                self.stage.now,
                busy=[each for each in self.busy if partition_of(each.project_id) == index],
                resume_after_ms=self.resume.get(index, (None,))[0],
            )
            if (epoch := self.held.pop(index, None)) is not None
            else Cut(index, 0, None)
            for index in indices
        ]
        self.cuts |= {cut.partition: msgspec.structs.replace(cut, fresh=False) for cut in cuts}
        if cuts:
            self.say(Released(self.session, cuts))

    def reach(self):
        if self.limits is not None and self.in_flight <= self.slice:
            limits, self.limits = self.limits, None
            self.say(SliceReached(limits.session, limits.seq, limits.slice))

    def mark(self):
        """How far it has come; true of the database when a later ``beat`` says so."""
        return (self.session, self.seq, self.stage.now)

    def beat(self, mark=None, *, lagging=None, **stats):
        """Everything is in the database up to a mark (now), but for what lags."""
        stats.setdefault("executed", self.executed)
        session, seq, at_ms = mark or self.mark()
        lagging = lagging or {}
        oldest_ms = min([at_ms + 1, *lagging.values()])
        return self.say(Heartbeat(self.incarnation, session, seq, WorkerStats(**stats), at_ms, oldest_ms, lagging))

    def told(self, kind):
        """What waits in its inbox, of a kind."""
        return [message for message in self.inbox if isinstance(message, kind)]


class Stage:
    def __init__(
        self, *, workers=2, slots=10, projects=200, restored=None, run_id="run", max_per_host=100, now=START_MS
    ):
        self.now = now
        self.core = CoordinatorCore(
            max_concurrent_http=slots,
            max_per_host=max_per_host,
            workers_wanted=workers,
            run_id=run_id,
            restored=restored or DurableState(),
            now_ms=now,
        )
        self.records = {number: record(number) for number in range(1, projects + 1)}
        self.workers = {}  # peer -> PlayedWorker
        self.to_supervisor = []
        self.to_strangers = []
        self.epochs = []
        self.confirmed = []
        self.journal = []
        self.logs = []
        self.alive = {}  # name -> incarnation
        self.starts = 0

    @property
    def names(self):
        """Who is to run."""
        return self.core.state.names

    # ---- events

    def take(self, effects):
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self._sent(peer, control.encode(message))
                case SaveEpoch(epoch):
                    assert epoch > max(self.epochs, default=0), "epochs rise"
                    self.epochs.append(epoch)
                case ConfirmChange(token):
                    self.confirmed.append(token)
                case JournalProjects():
                    self.journal.append(effect)
                case WriteLog():
                    self.logs.append(effect)
        self.core.check()
        self.check_slots()
        return self

    def _sent(self, peer, body):
        if peer == SUPERVISOR:
            self.to_supervisor.append(control.decode_to_supervisor(body))
        elif peer in self.workers:
            self.workers[peer].inbox.append(control.decode_to_worker(body))
        else:
            self.to_strangers.append((peer, control.decode_to_worker(body)))

    def check_slots(self):
        if self.core.slices.in_force() <= self.core.slices.total:
            used = sum(max(w.slice, w.in_flight) for w in self.living())
            assert used <= self.core.slices.total, "more slots in use than there are"

    def living(self):
        return [worker for worker in self.workers.values() if self.alive.get(worker.name) == worker.incarnation]

    def tell(self, event):
        return self.take(self.core.handle(event, self.now))

    def say(self, peer, message):
        return self.tell(MessageReceived(peer, control.decode_to_coordinator(control.encode(message))))

    def later(self, duration_ms, *, beats=True):
        """Time passes in steps of the core's own timer; living workers beat once a second and obey, unless not to."""
        end = self.now + duration_ms
        while self.now < end:
            due = self.core.next_timer()
            self.now = min(end, max(self.now + 1, due if due is not None else end))
            self.take(self.core.handle_timer(self.now))
            if beats and self.now % 1_000 < 300:
                for worker in self.living():
                    if worker.session:
                        worker.beat()
                    else:
                        worker.hello()
            if beats:
                self.obey()
        return self

    # ---- processes

    def start(self, name, *, held=(), slice_=0, supervised=True):
        self.starts += 1
        worker = PlayedWorker(self, name, f"{name}#{self.starts}", slice_, held)
        self.alive[name] = worker.incarnation
        if supervised:
            self.say(SUPERVISOR, ProcessStarted(name, worker.incarnation, self.starts))
        worker.hello()
        return worker

    def die(self, worker, *, restarting=True):
        del self.alive[worker.name]
        del self.workers[worker.peer]
        return self.say(SUPERVISOR, ProcessExited(worker.name, worker.incarnation, -9, restarting))

    def supervise(self, *, stopping=False):
        alive = [ProcessAlive(name, incarnation, 1) for name, incarnation in self.alive.items()]
        return self.say(SUPERVISOR, SupervisorHello(1, "run", len(self.names), alive, stopping))

    # ---- shortcuts

    def load(self):
        self.tell(ProjectsChanged(list(self.records.values()), [], initial=True))
        return self.tell(LoadFinished())

    def obey(self):
        """Everybody does what it is told until there is nothing more to say."""
        for _ in range(100):
            busy = [worker for worker in self.living() if worker.inbox]
            if not busy:
                return self
            for worker in busy:
                worker.obey()
        raise AssertionError("they never come to rest")

    def running(self, *names):
        """Loaded, everybody there, everything assigned."""
        self.supervise()
        self.load()
        workers = [self.start(name) for name in names or self.names]
        self.obey()
        self.later(1_000)
        assert self.core.phase == "running"
        assert self.assigned() == 4096
        return workers

    def assigned(self):
        return self.core.ownership.assigned()

    def owners(self):
        return self.core.ownership.owners()

    def assert_whole(self):
        """Every partition has one owner, who knows it, with exactly the projects it has."""
        held = {}
        for worker in self.living():
            for index in worker.held:
                assert index not in held, f"{index} is held by {held[index]} and {worker.name}"
                held[index] = worker.name
        assert held == dict(enumerate(self.owners()))
        ids = {project_id for worker in self.living() for index in worker.held for project_id in worker.projects[index]}
        assert ids == self.core.project_ids()
        assert sum(worker.slice for worker in self.living()) <= self.core.slices.total

    def remove(self, project_id, token=None):
        self.records.pop(project_id, None)
        return self.tell(ProjectsChanged([], [RemovedProject(project_id, self.now)], token=token))


def restarted(stage, *, after_ms=500):
    """A new coordinator on the saved state; its workers polled on meanwhile."""
    successor = Stage(
        workers=len(stage.names), slots=stage.core.slices.total, projects=0, restored=stage.core.durable(stage.now),
        now=stage.now + after_ms,
    )  # fmt: skip
    successor.records = dict(stage.records)
    for worker in stage.living():
        worker.stage = successor
        worker.inbox.clear()
        successor.workers[worker.peer] = worker
        successor.alive[worker.name] = worker.incarnation
    return successor
