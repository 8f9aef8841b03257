"""Results to the writer: each exactly once, in order, within the credit, whatever is lost on the way."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.messages.results import (
    Batch,
    Committed,
    MissedRange,
    PollResult,
    Rewind,
    StreamEnd,
    StreamHello,
    StreamWelcome,
    WhichStream,
    decode_to_writer,
)
from worker import outbox as outbox_module
from worker.outbox import (
    BATCH_RECORDS_MAX,
    HELLO_AGAIN_MS,
    KEPT_BYTES_MAX,
    MARKS_MAX,
    SEAL_MS,
    SILENCE_MS,
    Mark,
    Outbox,
)

CREDIT = 1 << 20


def result(number):
    return PollResult(
        number,
        1_000,
        1_000_000,
        "tick",
        "success",
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
        1,
    )


def results(count, first=1):
    return [result(number) for number in range(first, first + count)]


def missed(number):
    return MissedRange(number, 1_000, 1_000, 1_000, "overload", 1)


def mark(at_ms):
    return Mark(1, 2, at_ms, at_ms + 1, {})


def welcomed(credit=CREDIT, committed=0):
    box = Outbox("s", "worker-1", "i", 0)
    box.handle_timer(0)
    box.handle(StreamWelcome("s", committed, credit), 0)
    return box


def decoded(bodies):
    return [decode_to_writer(body) for body in bodies]


def seqs(bodies):
    return [message.seq for message in decoded(bodies) if isinstance(message, Batch)]


def seal(box, count, now_ms=0):
    """``count`` batches of one record each."""
    bodies = []
    for number in range(count):
        bodies += box.add(results(1, number + 1), [], now_ms)
        bodies += box.handle_timer(now_ms + SEAL_MS)
    return bodies


def test_it_introduces_itself_until_it_is_welcome():
    box = Outbox("s", "worker-1", "i", 50)
    assert box.next_timer() == 50
    assert decoded(box.handle_timer(50)) == [StreamHello("s", "worker-1", "i", 1)]
    assert box.next_timer() == 50 + HELLO_AGAIN_MS
    assert decoded(box.handle_timer(50 + HELLO_AGAIN_MS)) == [StreamHello("s", "worker-1", "i", 1)]
    box.handle(StreamWelcome("s", 0, CREDIT), 2_000)
    assert box.next_timer() is None


def test_nothing_is_sent_before_the_welcome():
    box = Outbox("s", "worker-1", "i", 0)
    assert box.add(results(BATCH_RECORDS_MAX), [], 0) == []
    assert seqs(box.handle(StreamWelcome("s", 0, CREDIT), 1)) == [1]


def test_records_wait_a_moment_for_company():
    box = welcomed()
    assert box.add(results(3), [missed(9)], 1_000) == []
    assert box.next_timer() == 1_000 + SEAL_MS
    assert box.handle_timer(1_000 + SEAL_MS - 1) == []
    (batch,) = decoded(box.handle_timer(1_000 + SEAL_MS))
    assert (batch.seq, batch.results, batch.missed) == (1, results(3), [missed(9)])


def test_a_full_batch_does_not_wait():
    box = welcomed()
    assert seqs(box.add(results(BATCH_RECORDS_MAX * 2 + 1), [], 0)) == [1, 2]
    assert seqs(box.handle_timer(SEAL_MS)) == [3]


def test_an_ack_releases_and_only_after_it_is_anything_forgotten():
    box = welcomed()
    assert seqs(seal(box, 3)) == [1, 2, 3]
    assert box.unacked_records == 3
    box.handle(Committed("s", 2), 200)
    assert box.unacked_records == 1
    assert not box.empty
    box.handle(Committed("s", 3), 200)
    assert box.empty
    assert box.next_timer() is None


def test_what_waits_to_be_sealed_is_not_empty():
    box = welcomed()
    box.add(results(1), [], 0)
    assert not box.empty


def test_a_rewind_sends_again_from_there():
    box = welcomed()
    seal(box, 4)
    assert seqs(box.handle(Rewind("s", 3), 0)) == [3, 4]
    box.handle(Committed("s", 3), 0)
    assert seqs(box.handle(Rewind("s", 2), 0)) == [4], "what is committed can't be sent again, and need not be"


def test_a_new_writer_asks_who_we_are_and_goes_on_where_the_database_is():
    box = welcomed()
    seal(box, 4)
    (hello,) = decoded(box.handle(WhichStream(), 500))
    assert hello == StreamHello("s", "worker-1", "i", 1)
    assert box.add(results(BATCH_RECORDS_MAX), [], 500) == [], "not before it says from where"
    assert seqs(box.handle(StreamWelcome("s", 2, CREDIT), 600)) == [3, 4, 5]


def test_the_credit_bounds_what_is_under_way():
    box = welcomed(credit=1)
    assert seqs(seal(box, 3)) == [1], "one always goes, or nothing ever would"
    assert seqs(box.handle(Committed("s", 1), 0)) == [2]
    size = len(box._kept[0].body)
    box = welcomed(credit=2 * size)
    assert seqs(seal(box, 5)) == [1, 2]
    assert seqs(box.handle(Committed("s", 2), 0)) == [3, 4]
    assert seqs(box.handle(Rewind("s", 3), 0)) == [3, 4]


def test_silence_is_asked_about():
    box = welcomed()
    seal(box, 1, now_ms=1_000)
    due = box.next_timer()
    assert due == 1_000 + SEAL_MS + SILENCE_MS
    (hello,) = decoded(box.handle_timer(due))
    assert hello == StreamHello("s", "worker-1", "i", 1)
    assert decoded(box.handle_timer(due + 1)) == []
    assert seqs(box.handle(StreamWelcome("s", 0, CREDIT), due + 2)) == [1], "it was lost"


def test_an_ack_puts_the_question_off():
    box = welcomed()
    seal(box, 2, now_ms=0)
    box.handle(Committed("s", 1), 2_000)
    assert box.next_timer() == 2_000 + SILENCE_MS


def test_words_to_another_stream_are_ignored():
    box = welcomed()
    seal(box, 2)
    for message in (Committed("t", 2), Rewind("t", 1), StreamWelcome("t", 2, 5)):
        assert box.handle(message, 0) == []
    assert box.unacked_records == 2


def test_the_end_is_said():
    assert decoded([welcomed().end()]) == [StreamEnd("s")]


def test_what_is_kept_is_bounded_and_the_bound_is_told(monkeypatch):
    assert KEPT_BYTES_MAX <= 64 << 20
    monkeypatch.setattr(outbox_module, "KEPT_BYTES_MAX", 1_000)
    box = welcomed()
    while not box.full:
        box.add(results(BATCH_RECORDS_MAX), [], 0)
    kept = sum(len(kept.body) for kept in box._kept)
    assert kept == box._kept_bytes >= 1_000
    box.handle(Committed("s", 1), 0)
    assert not box.full


# ---- marks ----------------------------------------------------------------------------------------------------------


def test_a_mark_is_true_when_everything_before_it_is_committed():
    box = welcomed()
    box.add(results(1), [], 0)
    bodies = box.mark(mark(1_000), 0)
    assert seqs(bodies) == [1], "what was gathered goes out, so that the mark can come true"
    assert box.committed_mark is None
    box.handle(Committed("s", 1), 10)
    assert box.committed_mark == mark(1_000)


def test_with_nothing_open_a_mark_is_true_at_once():
    box = welcomed()
    box.mark(mark(1_000), 0)
    assert box.committed_mark == mark(1_000)


def test_later_records_do_not_hold_a_mark_back():
    box = welcomed()
    seal(box, 1)
    box.mark(mark(1_000), 0)
    seal(box, 1)
    box.handle(Committed("s", 1), 10)
    assert box.committed_mark == mark(1_000)


def test_marks_of_a_long_outage_are_bounded_and_the_last_one_comes_true():
    box = welcomed()
    for number in range(1, 4 * MARKS_MAX):
        seal(box, 1)
        box.mark(mark(number), 0)
    assert len(box._marks) <= MARKS_MAX
    box.handle(Committed("s", 1), 0)
    assert box.committed_mark == mark(1)
    box.handle(Committed("s", 4 * MARKS_MAX - 1), 0)
    assert box.committed_mark == mark(4 * MARKS_MAX - 1)


# ---- every record exactly once --------------------------------------------------------------------------------------


class ModelWriter:
    """Receives in order, commits some time, forgets everything but its ledger when it is restarted."""

    def __init__(self, chance):
        self.chance = chance
        self.records = []
        self.ledger = 0
        self.hello = False
        self.received = []

    def take(self, message):
        match message:
            case StreamHello(first_seq=first_seq):
                assert first_seq <= self.ledger + 1, "a hole nobody can fill"
                self.hello = True
                self.received.clear()
                return [StreamWelcome("s", self.ledger, self.chance.choice([1, 300, CREDIT]))]
            case Batch() if not self.hello:
                return [WhichStream()]
            case Batch(seq=seq):
                expected = self.ledger + len(self.received) + 1
                if seq > expected:
                    return [Rewind("s", expected)]
                if seq == expected:
                    self.received.append(message)
                return []

    def commit(self):
        for batch in self.received:
            self.records += batch.results
        self.ledger += len(self.received)
        self.received.clear()
        return [Committed("s", self.ledger)] if self.hello else []

    def restart(self):
        self.hello = False
        self.received.clear()


@settings(max_examples=60)
@given(st.integers(min_value=0, max_value=2**32), st.integers(min_value=5, max_value=120), st.booleans())
def test_every_record_arrives_once_and_in_order(seed, length, lossy):
    chance = random.Random(seed)
    box = Outbox("s", "worker-1", "i", 0)
    writer = ModelWriter(chance)
    to_writer, to_box = [], []
    now = 0
    added = 0
    for step in range(length + 240):
        settling = step >= length
        now += chance.randrange(1, 400)
        kind = chance.choice(["add", "timer", "timer", "deliver", "deliver", "commit", "mark", "restart", "lose"])
        if settling:
            kind = ("timer", "deliver", "commit", "deliver")[step % 4]
        match kind:
            case "add":
                count = chance.choice([1, 3, BATCH_RECORDS_MAX + 5])
                to_writer += box.add(results(count, added + 1), [], now)
                added += count
            case "timer":
                to_writer += box.handle_timer(now)
            case "mark":
                before = box.committed_mark
                to_writer += box.mark(mark(added), now)
                assert before is None or box.committed_mark.at_ms >= before.at_ms
            case "deliver":
                for body in to_writer:
                    to_box += writer.take(decode_to_writer(body))
                to_writer = []
                for message in to_box:
                    to_writer += box.handle(message, now)
                to_box = []
            case "commit":
                to_box += writer.commit()
            case "restart":
                writer.restart()
            case "lose" if lossy:
                # a connection broke: what was under way is gone, in both directions
                to_writer.clear()
                to_box.clear()
        if box.committed_mark is not None:
            assert box.committed_mark.at_ms <= len(writer.records), "a mark came true before its records were committed"
        assert [record.project_id for record in writer.records] == list(range(1, len(writer.records) + 1))
        assert box._sent_bytes == sum(len(kept.body) for kept in box._kept if kept.seq <= box._sent_seq)
        assert box.unacked_records >= added - len(writer.records)
    assert len(writer.records) == added
    assert box.empty


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_welcomes_and_acks_that_come_again_change_nothing(repeats):
    box = welcomed()
    seal(box, 4)
    for _ in range(repeats):
        box.handle(Committed("s", 2), 0)
    assert box.unacked_records == 2
    for _ in range(repeats):
        box.handle(Committed("s", 1), 0)
    assert box.unacked_records == 2
    assert seqs(box.handle(StreamWelcome("s", 1, CREDIT), 0)) == [3, 4], (
        "an old welcome does not bring back what is released"
    )
