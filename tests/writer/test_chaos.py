"""Random trouble from a seed: lossy connections, a failing database that is set back, crashes of writer and workers.

Workers resend until they are told that a batch is committed, keep everything, and answer ``WhichStream`` with a hello;
in the end each batch is in the table once, in order, and nothing was acknowledged that was never there.  The database
double keeps a ledger like the real one; some of its commits happen although they are reported as failed, and now and
then it is what it was a while ago.
"""

import random
import uuid

import msgspec
import pytest

from cluster.messages.results import (
    Batch,
    Committed,
    MissedRange,
    Rewind,
    StreamEnd,
    StreamHello,
    StreamWelcome,
    WhichStream,
)
from writer.core import WriterCore
from writer.events import (
    CommitFlush,
    DatabaseFailed,
    FlushCommitted,
    LedgerLoaded,
    LedgerWentBack,
    LoadLedger,
    MarkEnded,
    MessageReceived,
    PeerUnreachable,
    Send,
    WriteLog,
)

BATCHES = 60
STEP_MS = 20
SILENCE_MS = 1_500
ASK_AGAIN_MS = 5_000  # of a stream that was delivered: is it still in the database?
TROUBLE_MS = 30_000


class Database:
    def __init__(self, rng):
        self.rng = rng
        self.ledger = {}
        self.table = []  # (stream_id, seq) as committed
        self.best = {}  # the ledger at its furthest
        self.former = ({}, [])  # as it was, to be set back to
        self.set_backs = 0
        self.trouble = True

    def remember(self):
        self.former = (dict(self.ledger), list(self.table))

    def set_back(self):
        """It is what it was when it was last remembered."""
        self.set_backs += self.former[0] != self.ledger
        self.ledger, self.table = dict(self.former[0]), list(self.former[1])

    def whole(self, workers):
        return all(self.ledger.get(worker.stream_id) == BATCHES for worker in workers)

    def answer(self, effect):
        fails = self.trouble and self.rng.random() < 0.3
        if isinstance(effect, LoadLedger):
            if fails:
                return DatabaseFailed("retry", "away")
            return LedgerLoaded({stream_id: self.ledger.get(stream_id, 0) for stream_id in effect.stream_ids})
        if fails and self.rng.random() < 0.5:
            return DatabaseFailed("retry", "away")
        positions = {part.stream_id: self.ledger.get(part.stream_id, 0) for part in effect.flush.parts}
        if any(positions[part.stream_id] < part.base_seq for part in effect.flush.parts):
            return LedgerWentBack(effect.flush.flush_id)
        for part in effect.flush.parts:
            last_seq = self.ledger.get(part.stream_id, 0)
            self.table += [(part.stream_id, batch.seq) for batch in part.batches if batch.seq > last_seq]
            self.ledger[part.stream_id] = max(last_seq, part.last_seq)
            self.best[part.stream_id] = max(self.best.get(part.stream_id, 0), part.last_seq)
        if fails:  # the outcome is unknown to the client
            return DatabaseFailed("retry", "connection lost in COMMIT")
        positions = {part.stream_id: self.ledger[part.stream_id] for part in effect.flush.parts}
        return FlushCommitted(effect.flush.flush_id, positions, effect.flush.rows)


class Worker:
    """As careful as a worker has to be, and no cleverer."""

    def __init__(self, number):
        self.stream_id = str(uuid.UUID(int=number + 1))
        self.name = f"worker-{number}"
        self.peer = b""
        self.connections = 0
        self.incarnation = 0
        self.welcome = False
        self.committed = 0
        self.next_seq = 1
        self.heard = 0
        self.ended = False

    def connect(self, send_from):
        self.connections += 1
        self.peer = self.stream_id[-2:].encode() + b"%d" % self.connections
        self.hello(send_from(self))

    def restart(self, send_from, rng):
        """Its successor adopts the stream, and may not know how far it was."""
        self.incarnation += 1
        self.ended = False
        self.committed = rng.choice([0, self.committed])
        self.connect(send_from)

    def hello(self, send):
        self.welcome = False
        adopted_by = self.name if self.incarnation else ""
        send(StreamHello(self.stream_id, self.name, f"i{self.incarnation}", 1, self.committed, adopted_by))

    def receive(self, message, now, send, database):
        if isinstance(message, StreamWelcome | Committed):
            self.heard = now
        match message:
            case WhichStream():
                self.hello(send)
            case StreamWelcome(_, position, _):
                self.welcome = True
                assert position <= database.best.get(self.stream_id, 0), "welcomed beyond what was ever committed"
                self.ended = False  # to be said again, and the writer need not keep the stream
                self.committed = position  # less than before: the database was set back
                self.next_seq = position + 1
            case Rewind(_, seq):
                self.next_seq = min(self.next_seq, max(seq, self.committed + 1))
            case Committed(_, seq):
                assert seq <= database.best[self.stream_id], "acknowledged and never committed"
                self.committed = max(self.committed, seq)

    def work(self, now, send):
        if self.committed == BATCHES:
            if not self.ended:
                self.ended = True
                send(StreamEnd(self.stream_id))
            elif now - self.heard > ASK_AGAIN_MS:
                self.heard = now
                self.hello(send)
            return
        if now - self.heard > SILENCE_MS:  # begin again from what is acknowledged
            self.heard = now
            self.hello(send)
        elif self.welcome and self.next_seq <= min(BATCHES, self.committed + 20):
            ranges = [MissedRange(1, self.next_seq, self.next_seq, 1, "overload", 1)]
            send(Batch(self.stream_id, self.next_seq, [], ranges))
            self.next_seq += 1


class World:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.now = 0
        self.database = Database(self.rng)
        self.core = WriterCore(now_ms=0, credit_bytes=500)
        self.workers = [Worker(number) for number in range(3)]
        self.wire = []  # (due, order, deliver)
        self.order = 0
        self.generation = 0

    def later(self, deliver, delay_ms):
        self.order += 1
        self.wire.append((self.now + delay_ms, self.order, deliver))

    def carry(self, deliver):
        """Over the network: lost, doubled, or late, while there is trouble."""
        if self.database.trouble and self.rng.random() < 0.1:
            return
        for _ in range(2 if self.database.trouble and self.rng.random() < 0.05 else 1):
            self.later(deliver, self.rng.randrange(1, 60) if self.database.trouble else 1)

    def to_writer(self, worker):
        peer = worker.peer

        def send(message):
            body = msgspec.msgpack.encode(message)
            self.carry(lambda: self.step(MessageReceived(peer, message, len(body))))

        return send

    def step(self, event):
        self.perform(self.core.handle(event, self.now))

    def perform(self, effects):
        self.core.check()
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self.send_to_worker(peer, message)
                case CommitFlush() | LoadLedger():
                    generation = self.generation
                    self.later(lambda e=effect, g=generation: self.database_answers(e, g), self.rng.randrange(1, 30))
                case MarkEnded() | WriteLog():
                    pass

    def send_to_worker(self, peer, message):
        worker = next((w for w in self.workers if w.peer == peer), None)
        if worker is None:
            self.later(lambda: self.step(PeerUnreachable(peer)), 0)
            return

        def deliver():
            if worker.peer == peer:
                worker.receive(message, self.now, self.to_writer(worker), self.database)

        self.carry(deliver)

    def database_answers(self, effect, generation):
        answer = self.database.answer(effect)  # also what a dead writer had asked for still happens
        if generation == self.generation:
            self.step(answer)

    def crash(self):
        self.generation += 1
        self.core = WriterCore(now_ms=self.now, credit_bytes=500)

    def disturb(self):
        chance = self.rng.random
        if chance() < 0.01:
            self.crash()
        if chance() < 0.01:
            self.database.remember()
        if chance() < 0.004:
            self.database.set_back()
        for worker in self.workers:
            if chance() < 0.01:
                worker.connect(self.to_writer)
            elif chance() < 0.003:
                worker.restart(self.to_writer, self.rng)

    def run(self):
        for worker in self.workers:
            worker.connect(self.to_writer)
        while self.database.trouble or not self.database.whole(self.workers):
            self.now += STEP_MS
            assert self.now < 600_000, [vars(worker) for worker in self.workers]
            self.database.trouble = self.now <= TROUBLE_MS
            if self.database.trouble:
                self.disturb()
            for worker in self.workers:
                worker.work(self.now, self.to_writer(worker))
            while self.wire and min(self.wire)[0] <= self.now:
                first = min(self.wire, key=lambda item: item[:2])
                self.wire.remove(first)
                first[2]()
            due = self.core.next_timer()
            if due is not None and due <= self.now:
                self.perform(self.core.handle_timer(self.now))


@pytest.mark.parametrize("seed", range(40))
def test_each_batch_is_in_the_table_once_and_in_order(seed):
    world = World(seed)
    world.run()
    for worker in world.workers:
        committed = [seq for stream_id, seq in world.database.table if stream_id == worker.stream_id]
        assert committed == list(range(1, BATCHES + 1)), f"seed {seed}"


def test_the_trouble_is_real():
    worlds = [World(seed) for seed in range(5)]
    for world in worlds:
        world.run()
    assert sum(world.database.set_backs for world in worlds) > 5
    assert sum(worker.incarnation for world in worlds for worker in world.workers) > 5
