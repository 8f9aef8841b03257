"""Whatever happens between an outbox, its WAL and the writer: what reached the WAL is in the table, once.

Messages are lost, the writer and the worker die, the disk is full for a while and slow, the oldest is given up, the
database is set back to what it was.  Windows are so small that most is read from the WAL, and streams are parked.
After each step:

- nothing is sent that was not in the WAL before;
- a mark is true of the tables: what was taken before it is there, as a result or counted missed (unless the database
  was set back since).
"""

import copy
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.messages.results import (
    Batch,
    Committed,
    Rewind,
    StreamEnd,
    StreamHello,
    StreamWelcome,
    WhichStream,
    decode_to_writer,
)
from tests.worker.wal_double import CREDIT, DiskDouble, hand_over, missed, results
from worker import outbox as outbox_module
from worker import outgoing as outgoing_module
from worker.events import AcknowledgeWal, TellWriter
from worker.outbox import BATCH_RECORDS_MAX, Mark, Outbox

STEPS = {
    "add": 8, "timer": 8, "disk": 10, "deliver": 10, "commit": 6, "mark": 3, "restart_writer": 1, "lose": 1,
    "disk_fails": 1, "set_back": 0.5, "remember": 1, "crash": 0.4, "give_up": 0.5,
}  # fmt: skip


class ModelWriter:
    """Receives in order, commits some time, forgets everything but its database when it is restarted."""

    def __init__(self, chance):
        self.chance = chance
        self.table = []  # numbers of the records, as committed
        self.missed = set()  # those that are counted missed
        self.ledger = {}
        self.received = {}  # stream -> batches, in order; a stream is here once it has introduced itself
        self.skipped = {}  # stream -> what its sender no longer has ends here

    def position(self, stream_id):
        return max(self.ledger.get(stream_id, 0), self.skipped.get(stream_id, 0))

    def take(self, message):
        stream_id = message.stream_id
        match message:
            case StreamHello(first_seq=first_seq, acked_seq=acked_seq):
                self.received[stream_id] = []
                self.skipped[stream_id] = first_seq - 1
                position = self.position(stream_id)
                welcome = StreamWelcome(stream_id, position, self.chance.choice([1, 300, 2_000, CREDIT]))
                return [welcome, WhichStream()] if acked_seq > position else [welcome]
            case Batch() if stream_id not in self.received:
                return [WhichStream()]
            case Batch(seq=seq):
                expected = self.position(stream_id) + len(self.received[stream_id]) + 1
                if seq > expected:
                    return [Rewind(stream_id, expected)]
                if seq == expected:
                    self.received[stream_id].append(message)
                return []
            case StreamEnd():
                self.received.pop(stream_id, None)
                return []

    def commit(self):
        said = []
        for stream_id, batches in self.received.items():
            if batches:
                self.table += [row.project_id for batch in batches for row in batch.results]
                self.missed |= {entry.project_id for batch in batches for entry in batch.missed}
                self.ledger[stream_id] = batches[-1].seq
                said.append(Committed(stream_id, batches[-1].seq))
                batches.clear()
        return said

    def state(self):
        return copy.deepcopy((self.table, self.missed, self.ledger))

    def set_back(self, state):
        self.table, self.missed, self.ledger = copy.deepcopy(state)
        self.received.clear()


class Rig:
    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.now = 0
        self.disk = DiskDouble()
        self.writer = ModelWriter(self.chance)
        self.to_writer = []
        self.to_box = []
        self.wal = []
        self.added = 0
        self.streams = 0
        self.snapshot = self.writer.state()
        self.set_backs = 0
        self.gone = set()  # numbers of records that were acknowledged and deleted
        self.do_crash()

    def step(self, kind):
        self.now += self.chance.randrange(1, 400)
        getattr(self, f"do_{kind}")()
        self.take()
        self.assert_marks()

    def take(self):
        effects, self.box.effects = self.box.effects, []
        for effect in effects:
            if isinstance(effect, TellWriter):
                message = decode_to_writer(effect.body)
                if isinstance(message, Batch):
                    assert message.seq <= self.disk.last[message.stream_id], "sent and not in the WAL"
                self.to_writer.append(message)
            elif isinstance(effect, AcknowledgeWal):
                self.disk.perform(effect)
            else:
                self.wal.append(effect)
        self.box.check()

    def assert_marks(self):
        mark = self.box.committed_mark
        if mark is not None and not self.was_set_back:
            missing = set(range(self.first, mark.at_ms + 1)) - set(self.writer.table) - self.writer.missed
            assert not missing, f"a mark came true before these were committed: {sorted(missing)[:5]}"

    # ---- steps

    def do_add(self):
        count = self.chance.choice([1, 3, 3, BATCH_RECORDS_MAX + 5])
        self.box.add(results(count, self.added + 1), [], self.now)
        self.added += count

    def do_timer(self):
        self.box.handle_timer(self.now)

    def do_mark(self):
        before = self.box.committed_mark
        self.box.mark(Mark(1, 1, self.added, 0, {}), self.now)
        assert before is None or self.box.committed_mark.at_ms >= before.at_ms

    def do_disk(self):
        for _ in range(self.chance.choice([1, 3, 10])):
            if self.wal:
                hand_over(self.disk.perform(self.wal.pop(0)), self.box, self.now)
                self.take()

    def do_disk_fails(self):
        self.disk.failing = not self.disk.failing

    def do_deliver(self):
        messages, self.to_writer = self.to_writer, []
        for message in messages:
            self.to_box += self.writer.take(message)
        messages, self.to_box = self.to_box, []
        for message in messages:
            self.box.handle(message, self.now)

    def do_commit(self):
        self.to_box += self.writer.commit()

    def do_lose(self):
        """A connection broke: what was under way is gone, in both directions."""
        self.to_writer.clear()
        self.to_box.clear()

    def do_restart_writer(self):
        self.do_lose()
        self.writer.received.clear()

    def do_remember(self):
        self.snapshot = self.writer.state()

    def do_set_back(self):
        """The database as it was; the writer notices, and is told of every stream again."""
        self.was_set_back = True
        self.set_backs += 1
        self.writer.set_back(self.snapshot)
        self.do_lose()
        self.to_box.append(WhichStream())

    def do_crash(self):
        """Of the worker: its successor adopts what is in the WAL."""
        self.do_lose()
        self.wal.clear()
        self.was_set_back = False
        self.first = self.added + 1
        orphans = [stream_id for stream_id, log in self.disk.streams.items() if log]
        self.box = Outbox(self.disk.new_stream_id(), "worker-1", f"i{self.disk.opened}", self.now)
        self.box.adopt([self._adopted(stream_id) for stream_id in orphans], self.now)

    def _adopted(self, stream_id):
        return self.disk.adopted(stream_id, acked_seq=self.chance.choice([0, self.disk.acked.get(stream_id, 0)]))

    def do_give_up(self):
        """The oldest of a stream; of what nobody has acknowledged, all is counted missed."""
        kept = sorted(stream_id for stream_id, log in self.disk.streams.items() if log)
        if not kept:
            return
        stream_id = self.chance.choice(kept)
        first_seq = self.chance.randint(min(self.disk.streams[stream_id]), self.disk.last[stream_id] + 1)
        ranges = []
        for entry in self.disk.drop(stream_id, first_seq):
            batch = decode_to_writer(entry.body)
            numbers = [each.project_id for each in batch.results + batch.missed]
            if entry.seq > self.disk.acked.get(stream_id, 0):
                ranges += [missed(number) for number in numbers]
            else:  # if the database is set back now, nobody has them
                self.gone.update(numbers)
        if ranges:
            self.box.give_up(stream_id, first_seq, ranges, self.now)
        else:
            self.box.trim(stream_id, first_seq)

    def finish(self):
        self.disk.failing = False
        self.do_restart_writer()
        self.to_box.append(WhichStream())
        self.step("deliver")
        self.step("deliver")
        turns = 0
        while self.wal or not self.box.empty:
            turns += 1
            assert turns < 3_000, f"it stands still: {self.box.live}, {self.box.unacked_records} waiting"
            for kind in ("timer", "disk", "deliver", "commit", "deliver"):
                self.step(kind)


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outgoing_module, "WINDOW_BYTES", 1_000)
        patch.setattr(outbox_module, "READ_BYTES", 600)
        patch.setattr(outbox_module, "PARK_BYTES", 3_000)
        patch.setattr(outbox_module, "ASK_AGAIN_MS", 3_000)
        patch.setattr(outbox_module, "BACKLOG_ACTIVE_MAX", 2)
        yield


@settings(max_examples=150)
@given(st.integers(min_value=0, max_value=2**32), st.integers(min_value=0, max_value=200))
def test_what_is_in_the_wal_is_in_the_table_once(seed, length):
    rig = Rig(seed)
    for _ in range(length):
        rig.step(*rig.chance.choices(list(STEPS), list(STEPS.values())))
    rig.finish()
    batches = [decode_to_writer(entry.body) for log in rig.disk.streams.values() for entry in log.values()]
    in_the_wal = [row.project_id for batch in batches for row in batch.results]
    table = set(rig.writer.table)
    assert len(table) == len(rig.writer.table), "once"
    assert set(in_the_wal) <= table
    assert {entry.project_id for batch in batches for entry in batch.missed} <= rig.writer.missed
    lost = set(range(rig.first, rig.added + 1)) - table - rig.writer.missed
    assert lost <= (rig.gone if rig.set_backs else set()), "taken since the last crash"
    assert rig.box.unacked_records == rig.box.unacked_bytes == 0
