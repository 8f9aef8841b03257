"""A stream to the writer under everything that can happen to it, compared with a model that is a few numbers.

The writer takes batches in order, forgets what it has not committed, has its database set back.  The WAL is slow,
reads are late or fail, segments expire or are given up, bytes are damaged.  After each step:

- what was sent is what follows in order, from where the last rewind or welcome said;
- it is in the WAL, as it was sealed, or empty where the WAL is damaged;
- under way is at most the credit, or one batch;
- memory holds at most WINDOW_BYTES, one read and one batch.

In the end everything arrived, whatever was lost on the way.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.messages.results import Batch, StreamHello, decode_to_writer
from cluster.wal.format import Entry
from tests.examples import examples
from tests.worker.wal_double import CREDIT, DiskDouble, results
from worker import outgoing as outgoing_module
from worker.outgoing import OutgoingStream

WINDOW = 900
READ = 500
STEPS = {
    "seal": 12, "write": 8, "commit": 5, "lose": 2, "rewind": 3, "restart": 1, "welcome": 3, "set_back": 1, "read": 6,
    "read_nothing": 1, "expire": 1, "give_up": 0.3, "damage": 0.2, "ask": 1,
}  # fmt: skip


class Model:
    def __init__(self, seed, *, adopted):
        self.chance = random.Random(seed)
        self.now = 0
        self.disk = {}  # seq -> Entry
        self.sealed = {}  # seq -> body
        self.damaged = set()
        self.first = 1  # the oldest on disk
        self.next = 1  # to be sent
        self.acked = 0
        self.received = 0  # by the writer, in order
        self.ledger = 0
        self.arrived = set()  # what the writer had at least once since its database was set back
        self.welcomed = False
        self.credit = 0
        self.under_way = {}  # seq -> bytes, as it was sent last
        self.lossy = False
        self.reads = []
        self.largest = 0
        hello = StreamHello("s", "worker-1", "i", 1)
        if adopted:
            former = OutgoingStream(hello, 0)
            for _ in range(adopted):
                entry = self._entry(former)
                former.written(entry.seq, 0)
                self.disk[entry.seq] = entry
            disk = DiskDouble()
            disk.streams["s"] = self.disk
            self.stream = OutgoingStream(hello, 0, adopted=disk.adopted("s"))
        else:
            self.stream = OutgoingStream(hello, 0)

    @property
    def last(self):
        return max(self.disk, default=0)

    def _entry(self, stream):
        text = "x" * self.chance.choice([0, 0, 30, 200, 2 * WINDOW])
        entry = stream.seal(results(1, stream.sealed_seq + 1, text=text or None), [])
        self.largest = max(self.largest, len(entry.body))
        self.sealed[entry.seq] = entry.body
        return entry

    # ---- steps

    def step(self, kind):
        getattr(self, f"do_{kind}")()
        self.settle()

    def do_seal(self):
        self._entry(self.stream)

    def do_write(self):
        if self.stream.sealed:
            seq = self.chance.choice(self.stream.sealed).seq
            self.disk |= {entry.seq: entry for entry in self.stream.sealed if entry.seq <= seq}
            self.stream.written(seq, self.now)

    def do_commit(self, ledger=None):
        self.ledger = ledger or self.chance.randint(self.ledger, self.received)
        self.stream.acknowledge(self.ledger, self.now)
        self.acked = max(self.acked, self.ledger)
        self.next = max(self.next, self.acked + 1)

    def do_lose(self):
        """What is sent until the next step of this kind does not arrive."""
        self.lossy = not self.lossy

    def do_rewind(self):
        """The writer misses what follows what it has."""
        seq = self.received + 1
        if seq < self.first:
            self.do_restart()  # as the outbox does: the writer is told what is gone
            return
        self.stream.rewind(seq)
        self._go_back_to(seq)

    def do_restart(self):
        """Of the writer: it does not know us any more."""
        self.received = self.ledger
        self.stream.forget_writer()
        self.welcomed = False

    def do_ask(self):
        self.now += 10
        hello = decode_to_writer(self.stream.say_hello(self.now))
        assert hello.first_seq == min(self.first, self.last + 1)
        return hello

    def do_welcome(self):
        hello = self.do_ask()
        self.received = max(self.received, hello.first_seq - 1)  # what lies before is with nobody
        self.credit = self.chance.choice([1, 300, 700, CREDIT])
        committed = max(self.ledger, hello.first_seq - 1)
        self.stream.welcome(committed, self.credit, self.now)
        self.welcomed = True
        if committed > self.acked:
            self.acked = min(committed, self.last)
        self._go_back_to(committed + 1)

    def do_set_back(self):
        self.ledger = self.received = self.chance.randint(0, self.ledger)
        self.arrived = {seq for seq in self.arrived if seq <= self.ledger}
        self.do_welcome()

    def do_read(self):
        if self.reads:
            self._answer(self._read(self.reads.pop(0)))

    def do_read_nothing(self):
        if self.reads:
            self.reads.pop(0)
            self.stream.take_read([])
            self.asks = False

    def do_expire(self):
        """Acknowledged segments go."""
        self.first = self.chance.randint(self.first, max(self.first, self.acked + 1))
        self.stream.trim(self.first)

    def do_give_up(self):
        """There is no room: what nobody has acknowledged goes, too."""
        self.first = self.chance.randint(self.first, max(self.first, self.last + 1))
        self.stream.trim(self.first)
        if self.acked < self.first - 1:
            self.welcomed = False
            self.acked = self.first - 1
            self.next = max(self.next, self.first)

    def do_damage(self):
        for seq in [seq for seq in self.disk if self.chance.random() < 0.1]:
            entry = self.disk[seq]
            self.disk[seq] = Entry(seq, b"", entry.records, entry.records_before, entry.bytes_before)
            self.damaged.add(seq)

    def _go_back_to(self, seq):
        seq = min(max(seq, self.first), self.last + 1)
        self.acked = min(self.acked, seq - 1)
        self.next = seq

    def _read(self, from_seq):
        found = []
        size = 0
        while from_seq in self.disk and (not found or size + len(self.disk[from_seq].body) <= READ):
            entry = self.disk[from_seq]
            found.append(entry if from_seq >= self.first else Entry(from_seq, b"", 0, 0, 0))
            size += len(entry.body)
            from_seq += 1
        return found

    def _answer(self, found):
        self.stream.take_read(found)
        self.asks = bool(found)

    # ---- what has to hold after each

    def settle(self):
        stream = self.stream
        stream.check()
        for body in stream.send():
            message = decode_to_writer(body)
            assert self.welcomed
            assert message.seq == self.next, "in order, and nothing twice but after a rewind"
            assert message.seq in self.disk, "it is in the WAL first"
            hole = message == Batch("s", message.seq, [], [])
            assert message.seq in self.damaged if hole else body == self.sealed[message.seq]
            self.under_way[message.seq] = 0 if hole else len(body)
            under_way = sum(size for seq, size in self.under_way.items() if self.acked < seq <= self.next)
            assert under_way <= self.credit or under_way == self.under_way[message.seq], "beyond the credit"
            self.next += 1
            self.arrive(message)
        asked = getattr(self, "asks", True)
        self.asks = True
        if asked and (from_seq := stream.wants_read) is not None:
            assert self.welcomed, "for nobody yet"
            assert not self.reads, "one at a time"
            assert self.acked < from_seq <= self.last
            stream.reading = True
            self.reads.append(from_seq)
        stream.check()
        position = (stream.first_seq, stream.appended_seq, stream.acked_seq, stream.sent_seq)
        assert position == (self.first, self.last, self.acked, self.next - 1)
        in_memory = sum(len(entry.body) for entry in stream._window)
        assert in_memory <= WINDOW + max(READ, self.largest)
        assert stream.drained == (not stream.sealed and self.acked == self.last)

    def arrive(self, message):
        if not self.lossy and message.seq == self.received + 1:
            self.received += 1
            self.arrived.add(message.seq)

    def finish(self):
        """Nothing is lost any more, and the writer goes on until it has everything."""
        self.lossy = False
        while self.stream.sealed:
            self.step("write")
        self.step("welcome")
        steps = 0
        while not self.stream.drained:
            steps += 1
            assert steps < 1_000, f"it stands still: {self.stream}"
            self.step("read")
            self.do_commit(self.received)
            self.settle()


@pytest.fixture(scope="module", autouse=True)
def _small_windows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outgoing_module, "WINDOW_BYTES", WINDOW)
        patch.setattr(outgoing_module, "READ_BYTES", READ)
        yield


@settings(max_examples=examples(500))
@given(
    st.integers(min_value=0, max_value=2**32),
    st.integers(min_value=0, max_value=150),
    st.sampled_from([0, 0, 1, 12]),
)
def test_whatever_happens_it_is_sent_in_order_from_the_wal_and_arrives(seed, length, adopted):
    model = Model(seed, adopted=adopted)
    for _ in range(length):
        model.step(*model.chance.choices(list(STEPS), list(STEPS.values())))
    model.finish()
    assert model.stream.unacked_records == 0
    gone = set(range(1, model.first))
    assert set(model.disk) - gone <= model.arrived | gone
