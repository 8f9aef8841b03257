"""One stream to the writer: in order, out of the WAL, within window and credit, whatever is rewound."""

import msgspec
import pytest

from cluster.messages.results import Batch, StreamHello, decode_to_writer
from cluster.wal.format import Entry
from tests.worker.wal_double import CREDIT, missed, results
from worker import outgoing as outgoing_module
from worker.events import AdoptedStream
from worker.outgoing import (
    HELLO_AGAIN_MS,
    SILENCE_MAX_MS,
    SILENCE_MS,
    OutgoingStream,
)

HELLO = StreamHello("s", "worker-1", "i", 1)
ADOPTED = AdoptedStream("s", "worker-9", 5, 12, 7, records=100, size_bytes=5_000, records_acked=70, bytes_acked=3_800)


def seqs(bodies):
    return [decode_to_writer(body).seq for body in bodies]


class Line:
    """A stream, the WAL behind it, and what was sent since it was last looked at."""

    def __init__(self, *, hello=HELLO, welcome=True, credit=CREDIT, adopted=None):
        self.stream = OutgoingStream(hello, 0, adopted=adopted)
        self.disk = {}  # seq -> Entry
        self.sent = []
        self.reads = []  # from_seq, not answered
        self.sizes = {}
        if welcome and adopted is None:
            self.stream.welcome(0, credit, 0)

    def go(self):
        """What the outbox does after each step."""
        self.stream.check()
        self.sent += self.stream.send()
        if (from_seq := self.stream.wants_read) is not None:
            self.stream.reading = True
            self.reads.append(from_seq)
        self.stream.check()
        return self

    def seal(self, count=1, *, text=None):
        for _ in range(count):
            entry = self.stream.seal(results(1, self.stream.sealed_seq + 1, text=text), [])
            self.sizes[entry.seq] = len(entry.body)
        self.stream.check()
        return self

    def write(self, now_ms=0):
        """All that is sealed reaches the WAL."""
        self.disk.update({entry.seq: entry for entry in self.stream.sealed})
        self.stream.written(self.stream.sealed_seq, now_ms)
        return self.go()

    def append(self, count=1, *, text=None):
        return self.seal(count, text=text).write()

    def answer(self, count=1 << 30, *, found=None):
        """The oldest read is answered with at most so many batches; nothing when it could not be read."""
        from_seq = self.reads.pop(0)
        if found is None:
            found = [self.disk[seq] for seq in range(from_seq, min(from_seq + count, max(self.disk) + 1))]
        self.stream.take_read(found)
        return self.go() if found else self

    def take(self):
        sent, self.sent = seqs(self.sent), []
        return sent

    def in_memory(self):
        return [entry.seq for entry in self.stream._window]


@pytest.fixture
def small(monkeypatch):
    """Windows of three batches, reads of two: a batch of one result has about 100 bytes."""
    size = len(OutgoingStream(HELLO, 0).seal(results(1), []).body)
    monkeypatch.setattr(outgoing_module, "WINDOW_BYTES", 3 * size - 10)
    return size


# ---- sealed, in the WAL, sent ---------------------------------------------------------------------------------------


def test_a_batch_is_sealed_written_and_only_then_sent():
    line = Line().seal(2)
    assert line.go().take() == []
    assert (line.stream.sealed_seq, line.stream.appended_seq) == (2, 0)
    line.stream.written(1, 0)
    assert line.go().take() == [1]
    line.stream.written(2, 0)
    assert line.go().take() == [2]
    assert line.stream.sealed_bytes == 0


def test_what_is_sent_is_what_was_sealed():
    line = Line()
    entry = line.stream.seal(results(2), [missed(7)])
    line.write()
    assert line.sent == [entry.body]
    assert decode_to_writer(entry.body) == Batch("s", 1, results(2), [missed(7)])
    assert (entry.records, entry.records_before, entry.bytes_before) == (3, 0, 0)


def test_each_batch_knows_what_of_the_stream_lies_before_it():
    line = Line().append(2).seal(2)
    entries = [*line.disk.values(), *line.stream.sealed]
    assert [entry.records_before for entry in entries] == [0, 1, 2, 3]
    assert [entry.bytes_before for entry in entries] == [sum(len(e.body) for e in entries[:n]) for n in range(4)]


def test_an_adopted_stream_goes_on_with_its_totals():
    line = Line(hello=msgspec.structs.replace(HELLO, first_seq=5), adopted=ADOPTED)
    entry = line.stream.seal(results(1), [])
    assert (entry.seq, entry.records_before, entry.bytes_before) == (13, 100, 5_000)


def test_written_twice_is_written_once():
    """After a failure everything is written again, and some of it was there already."""
    line = Line().append(2)
    line.stream.written(2, 0)
    line.stream.written(1, 0)
    assert line.go().take() == [1, 2]


def test_counts_are_of_what_is_not_acknowledged():
    line = Line().append(3).seal(2)
    sizes = line.sizes
    assert (line.stream.unacked_records, line.stream.unacked_bytes) == (3, sizes[1] + sizes[2] + sizes[3])
    assert (line.stream.sealed_records, line.stream.sealed_bytes) == (2, sizes[4] + sizes[5])
    line.stream.acknowledge(2, 0)
    assert (line.stream.unacked_records, line.stream.unacked_bytes) == (1, sizes[3])
    assert not line.stream.drained
    line.stream.acknowledge(3, 0)
    assert (line.stream.unacked_records, line.stream.unacked_bytes) == (0, 0)
    assert not line.stream.drained, "two are on their way to the WAL"
    line.write().stream.acknowledge(5, 0)
    assert line.stream.drained


# ---- the writer -----------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_welcome():
    line = Line(welcome=False).append(2)
    assert line.take() == []
    line.stream.welcome(0, CREDIT, 5)
    assert line.go().take() == [1, 2]


def test_nothing_is_sent_to_a_writer_that_is_not_known_yet():
    line = Line().append(2)
    line.take()
    line.stream.forget_writer()
    line.append()
    line.stream.rewind(1)
    assert line.go().take() == []
    line.stream.welcome(1, CREDIT, 5)
    assert line.go().take() == [2, 3]


def test_the_credit_bounds_what_is_under_way():
    line = Line(credit=1).append(3)
    assert line.take() == [1], "one always goes, or nothing ever would"
    line.stream.acknowledge(1, 0)
    assert line.go().take() == [2]
    line = Line(welcome=False).append(5)
    line.stream.welcome(0, 2 * line.sizes[1], 0)
    assert line.go().take() == [1, 2]
    line.stream.acknowledge(2, 0)
    assert line.go().take() == [3, 4]
    line.stream.rewind(3)
    assert line.go().take() == [3, 4], "what is sent again counts once"


def test_a_welcome_says_from_where():
    line = Line().append(5)
    line.take()
    line.stream.welcome(2, CREDIT, 0)
    assert line.go().take() == [3, 4, 5]
    assert line.stream.acked_seq == 2


@pytest.mark.parametrize(("seq", "sent"), [(1, [3, 4, 5]), (4, [4, 5]), (6, []), (99, [])])
def test_a_rewind_sends_again_from_there_or_from_the_oldest_there_is(seq, sent):
    line = Line().append(5)
    line.stream.acknowledge(2, 0)
    line.stream.trim(3)
    line.go().take()
    line.stream.rewind(seq)
    assert line.go().take() == sent
    assert line.stream.acked_seq == 2


def test_a_rewind_into_what_was_acknowledged_takes_that_back():
    """The database was set back: the results are in it only if they are sent again, from the WAL."""
    line = Line().append(4)
    line.stream.acknowledge(4, 0)
    assert line.go().stream.drained
    line.take()
    line.stream.rewind(3)
    assert not line.go().stream.drained
    assert line.reads == [3], "they are in memory no more"
    assert line.answer().take() == [3, 4]
    assert line.stream.unacked_records == 2


def test_a_welcome_before_what_was_acknowledged_takes_that_back():
    line = Line().append(4)
    line.stream.acknowledge(3, 0)
    line.go().take()
    line.stream.welcome(1, CREDIT, 0)
    line.go()
    assert line.stream.acked_seq == 1
    assert line.reads == [2]
    assert line.answer().take() == [2, 3, 4]
    assert decode_to_writer(line.stream.say_hello(0)).acked_seq == 1, "as the writer knows it now"


def test_acknowledgements_that_come_again_or_exceed_everything_change_nothing():
    line = Line().append(3)
    for seq in (2, 2, 1, 0):
        line.stream.acknowledge(seq, 0)
    assert line.go().stream.acked_seq == 2
    line.stream.acknowledge(1_000, 0)
    assert line.go().stream.acked_seq == 3


def test_an_acknowledgement_of_what_was_not_sent_skips_it():
    """It was sent by the worker that died, and committed."""
    line = Line(welcome=False).append(4)
    line.stream.welcome(3, CREDIT, 0)
    assert line.go().take() == [4]
    line = Line(credit=1).append(4)
    line.take()
    line.stream.acknowledge(3, 0)
    assert line.go().take() == [4]


# ---- introduction and silence ---------------------------------------------------------------------------------------


def test_it_introduces_itself_each_second_until_it_is_welcome():
    line = Line(welcome=False)
    assert line.stream.next_timer() == 0
    assert decode_to_writer(line.stream.say_hello(0)) == HELLO
    assert line.stream.next_timer() == HELLO_AGAIN_MS
    line.stream.say_hello(HELLO_AGAIN_MS)
    assert line.stream.next_timer() == 2 * HELLO_AGAIN_MS
    line.stream.welcome(0, CREDIT, 5_000)
    assert line.stream.next_timer() is None


def test_results_do_not_put_the_next_hello_off():
    line = Line(welcome=False)
    line.stream.say_hello(0)
    line.seal().write(now_ms=200)
    assert line.stream.next_timer() == HELLO_AGAIN_MS, "the first one may have been lost"


def test_silence_is_asked_about_more_and_more_seldom():
    line = Line().seal().write(now_ms=1_000)
    due = line.stream.next_timer()
    assert due == 1_000 + SILENCE_MS
    pauses = []
    for _ in range(4):
        line.stream.say_hello(due)
        line.stream.welcome(0, CREDIT, due + 5)
        pauses.append(line.stream.next_timer() - due)
        due = line.stream.next_timer()
    assert pauses == [2 * SILENCE_MS, 4 * SILENCE_MS, SILENCE_MAX_MS, SILENCE_MAX_MS]
    line.stream.acknowledge(1, due)
    assert line.stream.next_timer() is None
    line.seal().write(now_ms=due)
    assert line.stream.next_timer() == due + SILENCE_MS, "an acknowledgement ended it"


def test_an_acknowledgement_puts_the_question_off():
    line = Line().seal(2).write(now_ms=0)
    line.stream.acknowledge(1, 2_000)
    assert line.stream.next_timer() == 2_000 + SILENCE_MS


def test_a_hello_names_the_oldest_batch_in_the_wal_and_what_was_acknowledged():
    line = Line().append(5)
    line.stream.acknowledge(3, 0)
    hello = decode_to_writer(line.stream.say_hello(0))
    assert (hello.first_seq, hello.acked_seq) == (1, 3), "it keeps what is acknowledged for a while"
    line.stream.trim(3)
    hello = decode_to_writer(line.stream.say_hello(0))
    assert (hello.first_seq, hello.acked_seq) == (3, 3)


def test_with_nothing_in_the_wal_a_hello_names_what_comes_next():
    line = Line().append(5)
    line.stream.acknowledge(5, 0)
    line.stream.trim(6)
    hello = decode_to_writer(line.stream.say_hello(0))
    assert (hello.first_seq, hello.acked_seq) == (6, 5)


def test_a_hello_of_an_adopted_stream_says_who_polled_who_sends_and_what_was_noted():
    hello = StreamHello("s", "worker-9", "i", 5, 7, "worker-1")
    line = Line(hello=hello, adopted=ADOPTED)
    assert decode_to_writer(line.stream.say_hello(0)) == hello
    assert (line.stream.acked_seq, line.stream.appended_seq) == (4, 12), "what was noted is only advice"
    assert not line.stream.drained


# ---- what is given up -----------------------------------------------------------------------------------------------


def test_acknowledged_segments_that_expire_need_no_word():
    line = Line().append(4)
    line.stream.acknowledge(3, 0)
    line.go().take()
    line.stream.trim(3)
    assert line.append().take() == [5], "it is still welcome"


def test_what_is_given_up_unacknowledged_is_told_before_anything_else_is_sent():
    line = Line().append(4)
    line.take()
    line.stream.trim(4)
    line.append()
    assert line.take() == []
    assert line.stream.next_timer() == 0
    hello = decode_to_writer(line.stream.say_hello(0))
    assert (hello.first_seq, hello.acked_seq) == (4, 0), "it was not committed"
    line.stream.welcome(3, CREDIT, 0)
    assert line.go().take() == [4, 5]


def test_what_is_given_up_is_not_confirmed_by_a_welcome_that_skips_it():
    """Else the next hello claims an acknowledgement that the ledger knows nothing of."""
    line = Line().append(4)
    line.stream.trim(4)
    line.stream.say_hello(0)
    line.stream.welcome(3, CREDIT, 0)
    hello = decode_to_writer(line.stream.say_hello(0))
    assert (hello.first_seq, hello.acked_seq) == (4, 0)
    line.stream.acknowledge(4, 0)
    assert decode_to_writer(line.stream.say_hello(0)).acked_seq == 4


def test_a_trim_to_where_it_begins_already_is_nothing():
    line = Line().append(2)
    line.stream.trim(1)
    assert line.go().stream.first_seq == 1


# ---- the window -----------------------------------------------------------------------------------------------------


def test_what_is_beyond_the_window_is_read_when_it_is_wanted(small):
    line = Line(credit=2 * small).append(8)
    assert line.in_memory() == [1, 2, 3]
    assert line.take() == [1, 2]
    assert line.reads == [], "there is enough in memory"
    line.stream.acknowledge(1, 0)
    assert line.go().reads == [4]
    assert line.in_memory() == [2, 3]
    line.answer(2)
    assert line.in_memory() == [2, 3, 4, 5]
    assert line.take() == [3]
    line.stream.acknowledge(3, 0)
    assert line.go().take() == [4, 5]
    assert line.reads == [6]


def test_the_window_is_contiguous_what_comes_later_waits_in_the_wal(small):
    line = Line(credit=1).append(4)
    line.stream.acknowledge(1, 0)
    line.go()
    assert line.in_memory() == [2, 3]
    line.append()
    assert line.in_memory() == [2, 3], "5 may not follow 3"
    line.answer(1)
    assert line.in_memory() == [2, 3, 4]


def test_new_batches_stay_in_memory_while_they_follow_the_window():
    line = Line().append(3)
    line.stream.acknowledge(3, 0)
    line.append(2)
    assert line.in_memory() == [4, 5]
    assert line.reads == []
    assert line.take() == [1, 2, 3, 4, 5]


def test_one_read_at_a_time(small):
    line = Line(credit=CREDIT).append(9)
    line.stream.acknowledge(2, 0)
    line.go()
    line.stream.acknowledge(3, 0)
    line.append().go()
    assert line.reads == [4]


def test_nothing_is_read_for_a_writer_that_has_not_welcomed_us(small):
    line = Line(welcome=False).append(9)
    line.stream.trim(5)
    assert line.go().reads == []
    line.stream.welcome(4, CREDIT, 0)
    assert line.go().reads == [5]


def test_a_read_that_was_overtaken_is_ignored(small):
    line = Line(credit=2 * small).append(9)
    line.stream.acknowledge(3, 0)
    assert line.go().reads == [4]
    line.stream.rewind(2)
    line.go()
    assert line.reads == [4], "still on its way"
    line.take()
    line.answer(2)
    assert line.take() == [], "4 and 5 do not follow 1"
    assert line.reads == [2], "so it is asked again, from the right place"
    assert line.answer(2).take() == [2, 3]


def test_a_read_that_failed_is_asked_for_again_when_the_writer_speaks(small):
    line = Line().append(9)
    line.stream.acknowledge(3, 0)
    line.go().answer(found=[])
    assert line.reads == []
    line.stream.welcome(3, CREDIT, 0)
    assert line.go().reads == [4]


def test_a_read_that_is_ahead_of_what_is_known_to_be_in_the_wal_does_not_count():
    """The file has more than the WAL has confirmed: with fsync policy batch that is not safe yet."""
    line = Line().append(2)
    line.stream.acknowledge(2, 0)
    line.go().take()
    line.stream.welcome(0, CREDIT, 0)
    line.go().seal()
    line.disk.update({entry.seq: entry for entry in line.stream.sealed})
    line.answer()
    assert line.take() == [1, 2]
    line.write()
    assert line.take() == [3]


def test_a_hole_goes_out_as_an_empty_batch(small):
    line = Line().append(6)
    line.stream.acknowledge(3, 0)
    line.go().take()
    hole = Entry(4, b"", 1, 3, 3 * small)
    line.answer(found=[hole, line.disk[5]])
    assert [decode_to_writer(body) for body in line.sent][:1] == [Batch("s", 4, [], [])]
    assert line.take()[:2] == [4, 5]
    line.stream.acknowledge(4, 0)
    assert line.go().stream.unacked_records == 2


def test_counts_of_an_adopted_stream_are_as_noted_until_it_is_read():
    line = Line(hello=msgspec.structs.replace(HELLO, first_seq=5), adopted=ADOPTED)
    assert (line.stream.unacked_records, line.stream.unacked_bytes) == (30, 1_200)
    line.stream.welcome(11, CREDIT, 0)
    assert line.go().reads == [12]
    line.stream.take_read([Entry(12, b"x" * 100, 10, 90, 4_900)])
    assert (line.stream.unacked_records, line.stream.unacked_bytes) == (10, 100)
