"""The worker's core on a stage: a clock, a WAL that answers at once, and everything it says, kept until looked at."""

from cluster.messages.control import Ack, Grant, Heartbeat, Limits, PartitionGrant, Reset, Revoke, SnapshotEnd
from cluster.messages.results import Batch, Committed, PollResult, StreamWelcome, decode_to_writer
from tests.worker.stage import IDS, START_MS, P, spec
from tests.worker.wal_double import DiskDouble
from worker.core import WorkerCore
from worker.events import (
    AbortPolls,
    CoordinatorSaid,
    Exit,
    HeartbeatDue,
    PollsFinished,
    StartPolls,
    StopRedirects,
    StopRequested,
    TellCoordinator,
    TellWriter,
    Vitals,
    WriterSaid,
)

A, B, C = IDS[:3]
GRACE_MS = 30_000
SESSION = 1_000_001
OTHER = (P + 1) % 4096


def of(kind, messages):
    return [message for message in messages if isinstance(message, kind)]


class Play:
    """One core, a clock, and a WAL that answers at once.  What the core says is collected until it is looked at."""

    def __init__(self, *, name="worker-1", incarnation="i1", stream_id="s1", disk=None, **options):
        self.now = START_MS
        who = {"name": name, "incarnation": incarnation, "pid": 10, "stream_id": stream_id}
        self.core = WorkerCore(**who, grace_ms=GRACE_MS, now_ms=self.now, **options)
        self.disk = disk or DiskDouble()
        self.effects = []  # every one, in order
        self.session = SESSION
        self.seq = 0
        self.epoch = 1
        self.said = []  # to the coordinator
        self.written = []  # to the writer, decoded
        self.running = {}  # project -> PollStart
        self.started = []
        self.exits = []
        self.aborts = 0

    def take(self, effects):
        answers = []
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case TellCoordinator(message):
                    self.said.append(message)
                case TellWriter(body):
                    self.written.append(decode_to_writer(body))
                case StartPolls(polls):
                    for poll in polls:
                        assert poll.spec.id not in self.running
                        self.running[poll.spec.id] = poll
                    self.started += polls
                case AbortPolls():
                    self.aborts += 1
                case Exit():
                    self.exits.append(effect)
                case StopRedirects():
                    pass
                case _:
                    answers.append(self.disk.perform(effect))
        self.core.check()
        self.core.outbox.check()
        for answer in answers:
            if answer is not None:
                self.tell_core(answer)
        return self

    def tell_core(self, event):
        return self.take(self.core.handle(event, self.now))

    def heard(self):
        """What the coordinator was told since it was last asked, acks of the ordinary kind left out."""
        said, self.said = self.said, []
        return [message for message in said if not isinstance(message, Ack)]

    # ---- the coordinator

    def tell(self, message):
        return self.tell_core(CoordinatorSaid(message))

    def numbered(self, make):
        self.seq += 1
        return self.tell(make(self.session, self.seq))

    def reset(self, *, session=None, epoch=None):
        self.session = session or self.session
        self.epoch = epoch or self.epoch
        self.seq = 1
        return self.tell(Reset(self.session, 1, self.epoch))

    def grant(self, *specs, after=None, partition=P, **more):
        grant = PartitionGrant(partition, self.now if after is None else after, "handover", list(specs), **more)
        return self.numbered(lambda session, seq: Grant(session, seq, self.epoch, [grant]))

    def limits(self, size, per_host=0):
        return self.numbered(lambda session, seq: Limits(session, seq, size, per_host))

    def revoke(self, *partitions):
        return self.numbered(lambda session, seq: Revoke(session, seq, self.epoch, list(partitions)))

    def snapshot_end(self):
        return self.numbered(SnapshotEnd)

    def joined(self, *specs, size=10):
        """A session with one partition."""
        self.reset().limits(size).grant(*(specs or [spec(A)])).snapshot_end()
        self.said.clear()
        return self

    # ---- time, polls, writer

    def at(self, now_ms):
        """Time passes; timers ring when they are due."""
        rings = 0
        while (due := self.core.next_timer()) is not None and due <= now_ms:
            rings = rings + 1 if due <= self.now else 0
            assert rings < 100, f"its timer rings again and again at {due}: a loop that never sleeps"
            self.now = max(self.now, due)
            self.take(self.core.handle_timer(self.now))
        self.now = now_ms
        return self

    def later(self, duration_ms):
        return self.at(self.now + duration_ms)

    def finish(self, *project_ids, status="success", local_causes=None):
        results = []
        for project_id in project_ids or list(self.running):
            poll = self.running.pop(project_id)
            results.append(
                PollResult(
                    project_id,
                    poll.scheduled_at_ms,
                    self.now * 1_000,
                    poll.trigger,
                    status,
                    200,
                    1.0,
                    None,
                    None,
                    None,
                    None,
                    None,
                    None,
                    None,
                    0,
                    None,
                    None,
                    poll.epoch,
                )
            )
        return self.tell_core(PollsFinished(results, local_causes or {}))

    def beat(self, **vitals):
        self.tell_core(HeartbeatDue(Vitals(**vitals)))
        return next((m for m in reversed(self.said) if isinstance(m, Heartbeat)), None)

    def writer_says(self, message):
        return self.tell_core(WriterSaid(message))

    def welcome(self, committed=0, stream_id="s1"):
        return self.writer_says(StreamWelcome(stream_id, committed, 1 << 20))

    def commit(self, stream_id="s1"):
        """Everything that was sent of a stream."""
        batches = [m for m in self.written if isinstance(m, Batch) and m.stream_id == stream_id]
        return self.writer_says(Committed(stream_id, batches[-1].seq)) if batches else self

    def reported(self):
        """Every missed range the writer was sent."""
        return [entry for message in self.written if isinstance(message, Batch) for entry in message.missed]

    def stop(self):
        return self.tell_core(StopRequested())
