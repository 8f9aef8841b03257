"""Results on their way: into the WAL first, then to the writer, stream by stream; what is parked, adopted, set back."""

import pytest

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
from tests.worker.wal_double import CREDIT, DiskDouble, hand_over, missed, result, results
from worker import outbox as outbox_module
from worker import outgoing as outgoing_module
from worker.events import (
    AcknowledgeWal,
    OpenStream,
    ReadWal,
    TellWriter,
    WriteWal,
)
from worker.outbox import (
    ASK_AGAIN_MS,
    BACKLOG_ACTIVE_MAX,
    BATCH_RECORDS_MAX,
    MARKS_MAX,
    SEAL_MS,
    UNWRITTEN_BYTES_MAX,
    WRITE_AGAIN_MS,
    Mark,
    Outbox,
)
from worker.outgoing import HELLO_AGAIN_MS

LIVE = "s1"
LOOP_TURN_MS = 10  # of a busy worker


def mark(at_ms):
    return Mark(1, 2, at_ms, at_ms + 1, {})


class Post:
    """An outbox, a clock, and the WAL, which answers at once unless it is held."""

    def __init__(self, *, welcome=True, held=False, credit=CREDIT):
        self.now = 0
        self.box = Outbox(LIVE, "worker-1", "i", 0)
        self.disk = DiskDouble()
        self.held = held
        self.unanswered = []
        self.wal = []  # effects on the WAL since they were last looked at
        self.said = []  # to the writer, since it was last looked at
        if welcome:
            self.later(0)
            self.welcome(credit=credit)
            self.said.clear()

    def take(self):
        self.box.check()
        while self.box.effects:
            effects, self.box.effects = self.box.effects, []
            for effect in effects:
                if isinstance(effect, TellWriter):
                    self.said.append(decode_to_writer(effect.body))
                    continue
                self.wal.append(effect)
                self.unanswered.append(effect)
                if not self.held:
                    self.answer()
        return self

    def answer(self, *, everything=False):
        """The WAL answers what it was asked first, or everything."""
        while self.unanswered:
            effect = self.unanswered.pop(0)
            hand_over(self.disk.perform(effect), self.box, self.now)
            self.take()
            if not everything:
                break
        return self

    def at(self, now_ms):
        rings = 0
        while (due := self.box.next_timer()) is not None and due <= now_ms:
            rings += 1
            assert rings < 1_000, f"its timer rings again and again at {due}"
            self.now = max(self.now, due)
            self.box.handle_timer(self.now)
            self.take()
        self.now = now_ms
        return self

    def later(self, duration_ms):
        return self.at(self.now + duration_ms)

    def add(self, count=1, first=1, *, ranges=(), text=None):
        self.box.add(results(count, first, text=text), list(ranges), self.now)
        return self.take()

    def seal(self, count, *, text=None):
        """``count`` batches of one record each."""
        for number in range(count):
            self.box.add([result(number + 1, text=text)], [], self.now)
            self.box.seal(self.now)
            self.take()
        return self

    def mark(self, at_ms):
        self.box.mark(mark(at_ms), self.now)
        return self.take()

    def say(self, message):
        self.box.handle(message, self.now)
        return self.take()

    def welcome(self, stream_id=LIVE, committed=0, *, credit=CREDIT):
        return self.say(StreamWelcome(stream_id, committed, credit))

    def commit(self, seq, stream_id=LIVE):
        return self.say(Committed(stream_id, seq))

    def adopt(self, *streams):
        self.box.adopt(list(streams), self.now)
        return self.take()

    def heard(self):
        said, self.said = self.said, []
        return said

    def batches(self):
        """(stream, seq) of what was sent since it was last asked."""
        return [(message.stream_id, message.seq) for message in self.heard() if isinstance(message, Batch)]

    def seqs(self):
        return [seq for _, seq in self.batches()]

    def hellos(self):
        return [message for message in self.heard() if isinstance(message, StreamHello)]

    def written(self):
        """Seqs of each ``WriteWal`` since it was last asked."""
        wal, self.wal = self.wal, []
        return [[entry.seq for entry in effect.entries] for effect in wal if isinstance(effect, WriteWal)]


def orphan(post, stream_id, count=3, *, first_seq=1, acked_seq=0, worker="worker-9"):
    """A stream that a dead worker left in the WAL."""
    dead = Post(welcome=False)
    dead.box = Outbox(stream_id, worker, "dead", 0)
    dead.disk = post.disk
    dead.seal(count)
    return post.disk.adopted(stream_id, worker=worker, first_seq=first_seq, acked_seq=acked_seq)


def trim(post, stream_id, first_seq):
    post.disk.drop(stream_id, first_seq)
    post.box.trim(stream_id, first_seq)
    return post.take()


# ---- sealed and written ---------------------------------------------------------------------------------------------


def test_records_wait_a_moment_for_company():
    post = Post().at(1_000).add(3, ranges=[missed(9)])
    assert post.box.next_timer() == 1_000 + SEAL_MS
    assert post.at(1_000 + SEAL_MS - 1).written() == []
    assert post.at(1_000 + SEAL_MS).written() == [[1]]
    (batch,) = post.heard()
    assert batch == Batch(LIVE, 1, results(3), [missed(9)])


def test_the_moment_counts_from_the_first_record():
    post = Post().add().later(SEAL_MS - 10).add()
    assert post.later(10).written() == [[1]]
    assert len(post.heard()[0].results) == 2
    assert post.box.next_timer() > post.now + 1_000, "nothing waits any more"


def test_the_moment_leaves_the_loop_a_turn_of_the_50_ms_that_are_promised():
    assert SEAL_MS <= 50 - LOOP_TURN_MS


def test_a_full_batch_does_not_wait():
    post = Post().add(BATCH_RECORDS_MAX * 2 + 1)
    assert post.written() == [[1, 2]], "in one write"
    assert post.later(SEAL_MS).written() == [[3]]
    assert [len(message.results) for message in post.heard()] == [BATCH_RECORDS_MAX, BATCH_RECORDS_MAX, 1]


def test_results_and_missed_ranges_fill_a_batch_together():
    post = Post().add(BATCH_RECORDS_MAX - 1, ranges=[missed(n) for n in range(5)])
    post.later(SEAL_MS)
    assert [(len(m.results), len(m.missed)) for m in post.heard()] == [(BATCH_RECORDS_MAX - 1, 1), (0, 4)]


def test_nothing_is_nothing():
    post = Post()
    post.box.add([], [], 0)
    post.box.seal(0)
    assert post.take().box.next_timer() is None
    assert post.written() == []


def test_nothing_is_sent_before_it_is_in_the_wal():
    post = Post(held=True).seal(2)
    assert post.written() == [[1], [2]]
    assert post.seqs() == []
    assert post.answer().seqs() == [1]
    assert post.answer().seqs() == [2]


def test_counts_of_what_is_on_its_way():
    post = Post(held=True).seal(2).add(3, ranges=[missed(1)])
    box = post.box
    assert (box.unwritten_records, box.unacked_records, box.unacked_bytes) == (6, 6, 0)
    post.answer()
    assert (box.unwritten_records, box.unacked_records) == (5, 6)
    assert box.unacked_bytes == len(post.disk.streams[LIVE][1].body)
    post.answer().commit(1)
    assert (box.unwritten_records, box.unacked_records) == (4, 5)
    post.later(SEAL_MS).answer(everything=True).commit(3)
    assert (box.unwritten_records, box.unacked_records, box.unacked_bytes) == (0, 0, 0)


def test_what_waits_anywhere_is_not_empty():
    post = Post(held=True)
    assert post.box.empty
    post.add()
    assert not post.box.empty, "to be sealed"
    post.later(SEAL_MS)
    assert not post.box.empty, "on its way to the WAL"
    post.answer()
    assert not post.box.empty, "not acknowledged"
    assert post.commit(1).box.empty


# ---- trouble with the WAL -------------------------------------------------------------------------------------------


def test_what_could_not_be_written_is_written_again_with_everything_sealed_since_in_order():
    post = Post()
    post.disk.failing = True
    post.seal(1)
    assert post.written() == [[1]]
    assert post.box.failing
    assert post.box.full
    post.later(100).seal(2)
    assert post.written() == [], "not before its time"
    assert post.at(WRITE_AGAIN_MS).written() == [[1, 2, 3]]
    post.disk.failing = False
    assert post.at(2 * WRITE_AGAIN_MS - 1).seqs() == []
    assert post.later(1).written()[0] == [1, 2, 3]
    assert post.seqs() == [1, 2, 3]
    assert not post.box.failing
    assert not post.box.full
    assert sorted(post.disk.streams[LIVE]) == [1, 2, 3]
    assert post.seal(1).seqs() == [4]


def test_a_write_under_way_when_one_before_it_failed_fails_too_and_both_come_again():
    post = Post(held=True).seal(2)
    post.disk.failing = True
    post.answer()
    post.disk.failing = False
    post.answer()  # the second finds a hole before it
    assert post.box.failing
    post.written()
    assert post.later(WRITE_AGAIN_MS).answer(everything=True).written()[0] == [1, 2]
    assert post.seqs() == [1, 2]


def test_what_was_sealed_while_the_wal_was_tried_again_follows_at_once():
    post = Post(held=True).seal(1)
    post.disk.failing = True
    post.answer()
    post.later(WRITE_AGAIN_MS).seal(1)
    post.disk.failing = False
    post.written()
    post.answer(everything=True)
    assert post.written() == [[2]]
    assert post.seqs() == [1, 2]


def test_a_batch_that_was_written_again_for_nothing_may_be_long_gone_when_that_is_answered():
    """Another stream's write failed, so this one's is repeated; it is delivered, and evicted, before the answer."""
    post = Post(held=True).seal(1)
    post.box.write_failed(post.now)
    post.later(WRITE_AGAIN_MS)
    assert post.written() == [[1], [1]]
    post.answer()
    post.box.opened("s2", post.now)
    post.take().commit(1)
    trim(post, LIVE, 2).answer(everything=True)
    assert post.box.empty


def test_a_failure_says_nothing_of_what_was_written_before():
    post = Post().seal(2)
    post.disk.failing = True
    post.seal(1)
    assert post.seqs() == [1, 2]
    assert post.box.unwritten_records == 1
    assert post.commit(2).box.unacked_records == 1


def test_no_room_and_too_much_unwritten_are_full():
    post = Post(held=True)
    post.box.no_room = True
    assert post.box.full
    post.box.no_room = False
    assert not post.box.full
    while not post.box.full:
        post.add(BATCH_RECORDS_MAX, text="x" * 400)
    assert post.box.live.sealed_bytes >= UNWRITTEN_BYTES_MAX
    assert not post.box.failing
    post.answer(everything=True)
    assert not post.box.full


# ---- the writer -----------------------------------------------------------------------------------------------------


def test_it_introduces_itself_until_it_is_welcome():
    post = Post(welcome=False)
    assert post.box.next_timer() == 0
    assert post.later(0).heard() == [StreamHello(LIVE, "worker-1", "i", 1)]
    assert post.later(2 * HELLO_AGAIN_MS).heard() == 2 * [StreamHello(LIVE, "worker-1", "i", 1)]
    assert post.welcome().box.next_timer() is None


def test_an_acknowledgement_reaches_the_wal_once():
    post = Post().seal(3)
    post.wal.clear()
    post.commit(2).commit(2).commit(1)
    assert post.wal == [AcknowledgeWal(LIVE, 2)]
    assert post.box.unacked_records == 1


def test_a_rewind_sends_again_from_there():
    post = Post().seal(4)
    post.heard()
    assert post.say(Rewind(LIVE, 3)).seqs() == [3, 4]


def test_words_to_a_stream_that_is_not_known_are_ignored():
    post = Post().seal(2)
    post.heard()
    for message in (Committed("t", 2), Rewind("t", 1), StreamWelcome("t", 2, 5)):
        assert post.say(message).heard() == []
    assert post.box.unacked_records == 2


def test_a_new_writer_is_told_of_every_stream_and_says_from_where():
    post = Post()
    post.adopt(orphan(post, "a"), orphan(post, "b")).later(0)
    post.welcome("a").welcome("b").commit(3, "b")  # delivered, and still in the WAL
    post.seal(4).commit(1)
    post.heard()
    hellos = post.say(WhichStream()).heard()
    assert {(h.stream_id, h.first_seq, h.acked_seq, h.adopted_by) for h in hellos} == {
        (LIVE, 1, 1, ""), ("a", 1, 0, "worker-1"), ("b", 1, 3, "worker-1"),
    }  # fmt: skip
    assert post.seal(1).seqs() == [], "not before it says from where"
    assert post.welcome(LIVE, 2).batches() == [(LIVE, 3), (LIVE, 4), (LIVE, 5)]


def test_the_end_is_said():
    post = Post()
    post.box.end()
    assert post.take().heard() == [StreamEnd(LIVE)]


# ---- a database that was set back -----------------------------------------------------------------------------------


def test_what_was_acknowledged_is_sent_again_from_the_wal():
    post = Post().seal(5).commit(5)
    assert post.box.empty
    post.heard()
    post.wal.clear()
    post.welcome(LIVE, 2)
    assert post.wal[:2] == [AcknowledgeWal(LIVE, 2), ReadWal(LIVE, 3, outgoing_module.READ_BYTES)]
    assert post.seqs() == [3, 4, 5]
    assert not post.box.empty
    assert post.commit(5).box.empty


def test_a_stream_that_was_delivered_comes_back():
    post = Post()
    post.adopt(orphan(post, "a")).later(0).welcome("a").commit(3, "a")
    assert StreamEnd("a") in post.heard()
    assert post.box.empty
    post.welcome("a", 1)
    assert post.batches() == [("a", 2), ("a", 3)]
    assert not post.box.empty
    assert post.commit(3, "a").heard() == [StreamEnd("a")]
    assert post.box.empty


def test_what_cannot_be_read_now_is_asked_for_again_when_the_writer_speaks():
    """Not at once: a disk that fails would be asked again and again."""
    post = Post().seal(5).commit(5)
    post.disk.unreadable = True
    post.wal.clear()
    post.welcome(LIVE, 2)
    assert len([effect for effect in post.wal if isinstance(effect, ReadWal)]) == 1
    post.heard()
    post.disk.unreadable = False
    assert post.welcome(LIVE, 2).seqs() == [3, 4, 5]


def test_what_the_wal_no_longer_has_is_told():
    post = Post().seal(5).commit(5)
    post.box.trim(LIVE, 4)
    post.take().heard()
    (hello,) = post.say(Rewind(LIVE, 2)).heard()
    assert (hello.first_seq, hello.acked_seq) == (4, 5)
    assert post.welcome(LIVE, 3).seqs() == [4, 5]


# ---- parked ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Much is more than 2,000 bytes; memory keeps 1,000."""
    monkeypatch.setattr(outbox_module, "PARK_BYTES", 2_000)
    monkeypatch.setattr(outgoing_module, "WINDOW_BYTES", 1_000)
    monkeypatch.setattr(outbox_module, "READ_BYTES", 600)


def behind(post):
    """An outage: much is waiting; then the writer is back and commits a first batch."""
    post.seal(40)
    assert post.box.live.unacked_bytes > outbox_module.PARK_BYTES
    assert OpenStream() not in post.wal, "while nothing is acknowledged it is of no use"
    post.commit(1)
    return post


def test_after_an_outage_new_results_get_a_stream_of_their_own(small):
    post = behind(Post())
    assert post.wal.count(OpenStream()) == 1
    assert post.box.live.stream_id == "s2"
    sent = post.seqs()
    assert len(sent) < 40
    assert post.later(0).heard() == [StreamHello("s2", "worker-1", "i", 1)]
    post.welcome("s2").seal(1)
    assert post.batches() == [("s2", 1)], "it does not wait for the old ones"
    post.commit(1, "s2").commit(sent[-1])
    assert post.batches()[0] == (LIVE, sent[-1] + 1), "which follow"
    assert post.box.unacked_records == 40 - sent[-1]


def test_a_parked_stream_ends_when_it_is_delivered_and_stays_known(small):
    post = behind(Post()).later(0)
    post.welcome("s2")
    post.heard()
    for seq in range(2, 41):
        post.commit(seq)
    said = post.heard()
    assert said.count(StreamEnd(LIVE)) == 1
    assert post.box.empty
    assert [hello.stream_id for hello in post.say(WhichStream()).hellos()] == ["s2", LIVE]


def test_one_is_parked_at_a_time(small):
    post = behind(Post()).later(0)
    post.welcome("s2").seal(40).commit(1, "s2")
    assert post.disk.opened == 1
    post.commit(40)
    assert post.disk.opened == 1
    post.commit(2, "s2")
    assert post.disk.opened == 2


def test_while_a_further_stream_is_being_opened_the_old_one_takes_what_comes(small):
    post = Post(held=True)
    for _ in range(40):
        post.seal(1).answer()
    post.commit(1).commit(2)
    assert post.wal.count(OpenStream()) == 1, "asked for once"
    post.seal(1).answer(everything=True)
    assert max(post.disk.streams[LIVE]) == 41
    post.seal(1).answer(everything=True)
    assert list(post.disk.streams["s2"]) == [1]


def test_what_was_acknowledged_before_the_further_stream_was_opened_is_delivered(small):
    post = Post(held=True)
    for _ in range(40):
        post.seal(1).answer()
    post.commit(1)
    while post.box.live.acked_seq < 40:
        post.commit(post.box.live.sent_seq)
        for effect in [e for e in post.unanswered if isinstance(e, ReadWal)]:
            post.unanswered.remove(effect)
            post.box.take_read(LIVE, post.disk.read(LIVE, effect.from_seq, effect.bytes_max))
            post.take()
    assert post.box.live.stream_id == LIVE
    post.heard()
    post.answer(everything=True)
    assert post.box.live.stream_id == "s2"
    assert post.heard() == [StreamEnd(LIVE)]
    assert post.box.empty


def test_a_parked_stream_that_could_not_be_written_is_written_again(small):
    post = Post(held=True)
    for _ in range(40):
        post.seal(1).answer()
    post.commit(1)
    assert OpenStream() in post.unanswered
    post.disk.failing = True
    post.seal(1).answer(everything=True)
    assert post.box.live.stream_id == "s2"
    assert post.box.failing
    post.seal(1)
    assert post.box.unwritten_records == 2
    post.disk.failing = False
    post.held = False
    post.later(WRITE_AGAIN_MS)
    assert max(post.disk.streams[LIVE]) == 41
    assert list(post.disk.streams["s2"]) == [1]
    assert not post.box.failing


# ---- adopted --------------------------------------------------------------------------------------------------------


def test_an_adopted_stream_is_delivered_under_its_own_name_and_then_ended():
    post = Post()
    post.adopt(orphan(post, "a", 3, acked_seq=1))
    assert not post.box.empty
    assert post.later(0).hellos() == [StreamHello("a", "worker-9", "i", 1, 1, "worker-1")]
    assert post.welcome("a", 1).batches() == [("a", 2), ("a", 3)]
    assert post.commit(2, "a").heard() == []
    post.commit(3, "a")
    assert post.heard() == [StreamEnd("a")]
    assert post.disk.acked["a"] == 3
    assert post.box.empty


def test_an_adopted_stream_that_was_committed_to_the_end_needs_nothing_sent():
    post = Post()
    post.adopt(orphan(post, "a", 3)).later(0).heard()
    assert post.welcome("a", 3).heard() == [StreamEnd("a")]
    assert post.box.empty


def test_the_end_of_a_stream_is_said_once_for_each_welcome():
    post = Post()
    post.adopt(orphan(post, "a")).later(0).welcome("a").commit(3, "a")
    post.heard()
    assert post.commit(3, "a").say(Rewind("a", 4)).heard() == []
    assert post.welcome("a", 3).heard() == [StreamEnd("a")]


def test_of_many_adopted_streams_a_few_are_delivered_at_a_time():
    post = Post()
    names = [f"a{number}" for number in range(BACKLOG_ACTIVE_MAX + 2)]
    post.adopt(*(orphan(post, name) for name in names)).later(0)
    assert [hello.stream_id for hello in post.hellos()] == names[:BACKLOG_ACTIVE_MAX]
    post.welcome(names[0]).commit(3, names[0])
    post.heard()
    assert [hello.stream_id for hello in post.later(0).hellos()] == [names[BACKLOG_ACTIVE_MAX]]
    for name in names[1:]:
        post.later(0).welcome(name).commit(3, name)
    assert post.box.empty


def test_its_own_older_results_do_not_wait_for_adopted_streams(small):
    """Marks wait for them."""
    post = Post()
    post.adopt(*(orphan(post, f"a{n}") for n in range(BACKLOG_ACTIVE_MAX + 2))).later(0)
    post.heard()
    post.seal(50).mark(1_000).commit(1)
    assert post.box.live.stream_id == "s2"
    assert LIVE in {hello.stream_id for hello in post.later(0).say(WhichStream()).hellos()}
    post.welcome(LIVE, 1)
    post.commit(post.disk.last[LIVE], LIVE)
    assert post.box.committed_mark == mark(1_000)


def test_results_of_now_do_not_wait_for_adopted_streams():
    post = Post()
    post.adopt(*(orphan(post, f"a{number}") for number in range(9))).later(0)
    post.heard()
    assert post.seal(1).batches() == [(LIVE, 1)]


def test_delivered_streams_are_asked_about_now_and_then():
    post = Post().later(100)
    post.adopt(orphan(post, "a")).later(0).welcome("a").commit(3, "a")
    post.heard()
    post.at(ASK_AGAIN_MS - 1)
    assert post.heard() == []
    for _ in range(3):
        (hello,) = post.at(post.box.next_timer()).heard()
        assert (hello.stream_id, hello.acked_seq) == ("a", 3)
        assert post.welcome("a", 3).heard() == [StreamEnd("a")], "the writer need not keep it"
        assert post.box.next_timer() == post.now + ASK_AGAIN_MS


def test_a_stream_is_forgotten_when_its_wal_is_gone():
    post = Post()
    post.adopt(orphan(post, "a")).later(0).welcome("a").commit(3, "a")
    post.heard()
    trim(post, "a", 3)
    assert [hello.stream_id for hello in post.take().say(WhichStream()).hellos()] == [LIVE, "a"]
    trim(post, "a", 4)
    assert post.disk.forgotten == {"a"}
    assert [hello.stream_id for hello in post.take().say(WhichStream()).hellos()] == [LIVE]
    assert post.say(StreamWelcome("a", 1, CREDIT)).heard() == []


def test_of_a_stream_that_was_acknowledged_in_part_not_everything_waits():
    """How much waits is said at a stop, and shown to people."""
    post = Post()
    post.adopt(orphan(post, "a", 10, first_seq=9, acked_seq=9))
    assert post.box.unacked_records == 1
    post.later(0).welcome("a", 9)
    assert post.box.unacked_records == 1


def test_when_its_worker_noted_too_little_that_is_what_seems_to_wait_until_the_writer_speaks():
    post = Post()
    post.adopt(orphan(post, "a", 10, acked_seq=4))
    assert post.box.unacked_records == 6
    post.later(0).welcome("a", 7)
    assert post.box.unacked_records == 3
    assert post.box.unacked_bytes == sum(len(post.disk.streams["a"][seq].body) for seq in (8, 9, 10))


# ---- given up for room ----------------------------------------------------------------------------------------------


def give_up(post, first_seq, *ranges, stream_id=LIVE):
    """The WAL is full: the disk has the stream from ``first_seq`` on, and the ranges stand for what was before."""
    if stream_id in post.disk.streams:
        post.disk.drop(stream_id, first_seq)
    post.box.give_up(stream_id, first_seq, list(ranges), post.now)
    return post.take()


def test_what_was_given_up_is_told_to_the_writer_and_the_rest_goes_on():
    post = Post(credit=1).seal(5)
    post.heard()
    give_up(post, 4)
    assert post.heard() == []
    assert post.later(0).heard() == [StreamHello(LIVE, "worker-1", "i", 4)]
    assert post.welcome(LIVE, 3, credit=CREDIT).seqs() == [4, 5]
    assert post.box.unacked_records == 2
    assert post.commit(5).box.empty


def test_the_ranges_for_what_was_given_up_go_to_the_wal_at_once():
    post = Post().add(2).seal(1)
    post.written()
    post.add(2)
    give_up(post, 2, missed(1), missed(2))
    assert post.written() == [[2]]
    batch = decode_to_writer(post.disk.streams[LIVE][2].body)
    assert (len(batch.results), batch.missed) == (2, [missed(1), missed(2)])


def test_a_backlog_stream_that_was_given_up_altogether_is_done():
    post = Post()
    post.adopt(orphan(post, "a")).later(0)
    post.heard()
    give_up(post, 4, stream_id="a")
    assert post.heard() == [StreamEnd("a")]
    assert post.disk.forgotten == {"a"}
    assert post.box.empty
    assert [hello.stream_id for hello in post.say(WhichStream()).hellos()] == [LIVE]


def test_what_was_given_up_beyond_memory_is_not_counted(small):
    post = Post().seal(40)
    give_up(post, 41)
    assert (post.box.unacked_records, post.box.unacked_bytes) == (0, 0)
    post.seal(1)
    assert post.box.unacked_records == 1
    assert post.box.unacked_bytes == len(post.disk.streams[LIVE][41].body)


def test_what_was_given_up_before_it_was_known_to_be_written():
    """With fsync policy batch the disk may have, and give up, what it has not confirmed yet."""
    post = Post(held=True).seal(2)
    post.disk.perform(post.unanswered[0])
    give_up(post, 2, missed(1))
    post.answer(everything=True).later(0)
    post.welcome(LIVE, 1)
    assert set(post.seqs()) >= {2, 3}
    assert post.commit(3).box.empty


def test_a_trim_of_what_is_not_known_is_nothing():
    post = Post()
    post.box.trim("nobody", 4)
    give_up(post, 4, stream_id="nobody")
    assert post.heard() == []


# ---- marks ----------------------------------------------------------------------------------------------------------


def test_a_mark_is_true_when_everything_before_it_is_committed():
    post = Post().add().mark(1_000)
    assert post.seqs() == [1], "what was gathered goes out, so that the mark can come true"
    assert post.box.committed_mark is None
    assert post.commit(1).box.committed_mark == mark(1_000)


def test_with_nothing_open_a_mark_is_true_at_once():
    assert Post().mark(1_000).box.committed_mark == mark(1_000)


def test_a_mark_waits_for_the_wal_too():
    post = Post(held=True).add().mark(1_000)
    assert post.box.committed_mark is None
    post.answer()
    assert post.box.committed_mark is None
    assert post.commit(1).box.committed_mark == mark(1_000)


def test_later_records_do_not_hold_a_mark_back():
    post = Post().seal(1).mark(1_000).seal(1)
    assert post.commit(1).box.committed_mark == mark(1_000)


def test_marks_of_a_long_outage_are_bounded_and_the_last_one_comes_true():
    post = Post()
    for number in range(1, 4 * MARKS_MAX):
        post.seal(1).mark(number)
    assert len(post.box._marks) <= MARKS_MAX
    assert post.commit(1).box.committed_mark == mark(1)
    assert post.commit(4 * MARKS_MAX - 1).box.committed_mark == mark(4 * MARKS_MAX - 1)


def test_marks_wait_for_the_parked_stream(small):
    post = behind(Post()).later(0)
    post.welcome("s2").seal(1).mark(1_000).commit(1, "s2")
    assert post.box.committed_mark is None, "older results of this incarnation are not in the database"
    post.commit(39)
    assert post.box.committed_mark is None
    assert post.commit(40).box.committed_mark == mark(1_000)


def test_marks_do_not_wait_for_adopted_streams():
    """Their ticks are claimed by whoever owns the partitions now."""
    post = Post()
    post.adopt(orphan(post, "a")).later(0)
    assert post.seal(1).mark(1_000).commit(1).box.committed_mark == mark(1_000)


def test_a_mark_does_not_come_true_by_giving_up_what_it_stands_for():
    """What was given up is counted missed; until those ranges are in the database no owner may go on from the mark."""
    post = Post().seal(1).mark(1_000)
    post.disk.failing = True
    give_up(post, 2, missed(1))
    assert post.box.committed_mark is None
    post.mark(2_000)
    post.disk.failing = False
    post.later(WRITE_AGAIN_MS).welcome(LIVE, 1)
    assert post.box.committed_mark is None, "the ranges are with the writer"
    assert post.commit(2).box.committed_mark == mark(2_000)


def test_of_marks_made_before_something_was_given_up_none_comes_true():
    """The next one knows of it: of the ranges that are in the WAL, and of those that are not."""
    post = Post().seal(1).mark(1_000).seal(1).mark(2_000)
    give_up(post, 3, missed(1))
    post.mark(3_000).later(0).welcome(LIVE, 2)
    assert post.box.committed_mark is None
    assert post.commit(3).box.committed_mark == mark(3_000)


def test_a_mark_that_was_true_before_stays_true():
    post = Post().seal(1).mark(1_000).commit(1).seal(1)
    give_up(post, 3, missed(1))
    assert post.box.committed_mark == mark(1_000)
