"""The writer's core in virtual time, played as a sequence of events; its invariants are checked after each."""

import uuid

import pytest

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
)
from writer import core as core_module
from writer.core import CREDIT_BYTES, FLUSH_ROWS, IDLE_MS, RETRY_MAX_MS, WriterCore
from writer.events import (
    CommitFlush,
    DatabaseFailed,
    Finish,
    FlushCommitted,
    LedgerLoaded,
    LoadLedger,
    MarkEnded,
    MessageReceived,
    PeerUnreachable,
    Send,
    StopRequested,
    WriteLog,
)

S1, S2 = (str(uuid.UUID(int=n)) for n in (1, 2))
RESULT = PollResult(
    1, 1000, 1_000_000, "tick", "success", 200, 1.0, None, None, None, None, None, None, None, 1, None, "", 1
)
MISSED = MissedRange(1, 1000, 1000, 1000, "overload", 1)


class Play:
    """One core and a clock; what it wants is collected until it is looked at."""

    def __init__(self, **options):
        self.now = 1_000_000
        self.core = WriterCore(now_ms=self.now, **options)
        self.effects = []

    def tell(self, event):
        self.effects += self.core.handle(event, self.now)
        self.core.check()
        return self

    def say(self, peer, message, size_bytes=100):
        return self.tell(MessageReceived(peer, message, size_bytes))

    def hello(self, peer=b"p", stream=S1, worker="worker-1", first_seq=1):
        return self.say(peer, StreamHello(stream, worker, "i", first_seq))

    def batch(self, seq, *, peer=b"p", stream=S1, rows=1, missed=0, size_bytes=100):
        return self.say(peer, Batch(stream, seq, [RESULT] * rows, [MISSED] * missed), size_bytes)

    def pass_ms(self, ms):
        """Let time pass, with every timer on the way."""
        end = self.now + ms
        while (due := self.core.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self.effects += self.core.handle_timer(self.now)
            self.core.check()
            assert self.core.next_timer() is None or self.core.next_timer() > due, "a timer that does not move"
        self.now = end
        return self

    def take(self, *kinds):
        """The effects so far (of these kinds); logs are looked at only when asked for."""
        kinds = kinds or (Send, LoadLedger, CommitFlush, MarkEnded, Finish)
        found = [effect for effect in self.effects if isinstance(effect, kinds)]
        self.effects = []
        return found

    def sent(self):
        return [(effect.peer, effect.message) for effect in self.take(Send)]

    def flush(self):
        [commit] = self.take(CommitFlush)
        return commit.flush

    def commit(self, flush, **counts):
        counts.setdefault("written", sum(len(b.results) for part in flush.parts for b in part.batches))
        return self.tell(FlushCommitted(flush.flush_id, {p.stream_id: p.last_seq for p in flush.parts}, **counts))

    def welcomed(self, peer=b"p", stream=S1, position=0):
        self.hello(peer, stream, first_seq=1)
        assert LoadLedger([stream]) in self.take()
        self.tell(LedgerLoaded({stream: position}))
        assert (peer, StreamWelcome(stream, position, CREDIT_BYTES)) in self.sent()
        return self


def test_a_stream_from_hello_to_end():
    play = Play().hello()
    assert play.take() == [LoadLedger([S1])]
    play.tell(LedgerLoaded({S1: 0}))
    assert play.sent() == [(b"p", StreamWelcome(S1, 0, CREDIT_BYTES))]
    play.batch(1, rows=3, missed=1).batch(2)
    assert play.take() == []
    assert play.core.next_timer() == play.now + 100
    play.pass_ms(99)
    assert play.take() == []
    play.pass_ms(1)
    flush = play.flush()
    [part] = flush.parts
    assert (part.stream_id, part.worker, part.base_seq, part.first_seq, part.last_seq) == (S1, "worker-1", 0, 1, 2)
    assert flush.rows == 5
    assert play.core.view(play.now).lag_ms == 100
    play.commit(flush)
    assert play.sent() == [(b"p", Committed(S1, 2))]
    play.say(b"p", StreamEnd(S1))
    assert play.take() == [MarkEnded([S1])]
    view = play.core.view(play.now)
    assert (view.streams, view.rows_written, view.pending_rows, view.lag_ms) == (0, 4, 0, 0.0)
    assert view.rows_per_s == 0.4


def test_a_stream_goes_on_where_the_ledger_stands():
    play = Play().hello(first_seq=8)
    play.take()
    play.tell(LedgerLoaded({S1: 9}))
    assert play.sent() == [(b"p", StreamWelcome(S1, 9, CREDIT_BYTES))]
    play.batch(8).batch(9).batch(10).pass_ms(100)
    effects = play.take()
    assert effects[:2] == [Send(b"p", Committed(S1, 9)), Send(b"p", Committed(S1, 9))]
    assert (effects[2].flush.parts[0].base_seq, effects[2].flush.parts[0].first_seq) == (9, 10)


def test_what_neither_ledger_nor_worker_has_is_skipped_and_said():
    play = Play().hello(first_seq=101)
    play.tell(LedgerLoaded({S1: 50}))
    [log] = [e for e in play.effects if isinstance(e, WriteLog)]
    assert "batches 51 to 100" in log.text
    assert (b"p", StreamWelcome(S1, 100, CREDIT_BYTES)) in play.sent()
    play.batch(101).pass_ms(100)
    [part] = play.flush().parts
    assert (part.base_seq, part.first_seq, part.last_seq) == (50, 101, 101)


def test_a_stranger_is_asked_once_a_second():
    play = Play().batch(1).batch(2).batch(3)
    assert play.sent() == [(b"p", WhichStream())]
    play.pass_ms(999).batch(1)
    assert play.sent() == []
    play.pass_ms(1).batch(1)
    assert play.sent() == [(b"p", WhichStream())]
    assert play.core.view(play.now).dropped == {"stranger": 5}


def test_batches_before_the_welcome_are_dropped_quietly():
    play = Play().hello().batch(1)
    assert play.take() == [LoadLedger([S1])]
    play.tell(LedgerLoaded({S1: 0})).batch(1).pass_ms(100)
    assert play.flush().rows == 1


def test_a_new_connection_takes_the_stream_over():
    play = Play().welcomed().batch(1)
    play.hello(b"q")
    assert play.sent() == [(b"q", StreamWelcome(S1, 0, CREDIT_BYTES))]
    play.batch(2, peer=b"p")  # left over from the old connection
    assert play.sent() == [(b"p", WhichStream())]
    play.tell(PeerUnreachable(b"p"))
    play.batch(1, peer=b"q").batch(2, peer=b"q").pass_ms(100)
    flush = play.flush()
    assert [b.seq for b in flush.parts[0].batches] == [1, 2]
    play.commit(flush)
    assert play.sent() == [(b"q", Committed(S1, 2))]


def test_commits_go_on_while_the_worker_is_away():
    play = Play().welcomed().batch(1).tell(PeerUnreachable(b"p")).pass_ms(100)
    play.commit(play.flush())
    assert play.sent() == []
    play.hello(b"q")
    assert play.sent() == [(b"q", StreamWelcome(S1, 1, CREDIT_BYTES))]


def test_a_gap_is_rewound_once_a_second_until_it_closes():
    play = Play().welcomed().batch(1).batch(3).batch(4)
    assert play.sent() == [(b"p", Rewind(S1, 2))]
    play.pass_ms(1000)
    assert (b"p", Rewind(S1, 2)) in play.sent()
    play.batch(2).batch(3)
    assert play.sent() == []
    play.pass_ms(5000)
    assert play.core.view(play.now).dropped == {"gap": 2}
    assert play.sent() == []


def test_duplicates_are_acknowledged_again_only_when_committed():
    play = Play().welcomed().batch(1).pass_ms(100)
    flush = play.flush()
    play.batch(1).batch(2).batch(2)
    assert play.take() == []
    play.commit(flush)
    assert play.sent() == [(b"p", Committed(S1, 1))]
    play.batch(1)
    assert play.sent() == [(b"p", Committed(S1, 1))]
    play.pass_ms(100)
    assert [b.seq for b in play.flush().parts[0].batches] == [2]


def test_one_flush_at_a_time_and_full_ones_at_once():
    play = Play().welcomed()
    play.batch(1, rows=FLUSH_ROWS)
    first = play.flush()
    play.batch(2, rows=FLUSH_ROWS // 2).batch(3, rows=FLUSH_ROWS // 2).batch(4).pass_ms(1000)
    assert play.take(CommitFlush) == []
    play.commit(first)
    effects = play.take()
    assert effects[0] == Send(b"p", Committed(S1, 1))
    second = effects[1].flush
    assert [b.seq for b in second.parts[0].batches] == [2, 3]
    assert second.parts[0].base_seq == 1
    play.commit(second)
    effects = play.take()
    assert [b.seq for b in effects[1].flush.parts[0].batches] == [4], "what has waited long goes at once"


def test_streams_take_turns():
    play = Play().welcomed().welcomed(b"q", S2)
    for seq in range(1, 5):
        play.batch(seq, rows=FLUSH_ROWS // 4 - 1)
    play.batch(1, peer=b"q", stream=S2, rows=FLUSH_ROWS // 2)
    [flush] = [e.flush for e in play.take(CommitFlush)]
    assert {part.stream_id: len(part.batches) for part in flush.parts} == {S1: 3, S2: 1}
    play.commit(flush)
    assert set(play.sent()) == {(b"p", Committed(S1, 3)), (b"q", Committed(S2, 1))}


def test_a_failed_flush_is_repeated_unchanged_with_growing_pauses():
    play = Play().welcomed().batch(1).pass_ms(100)
    flush = play.flush()
    pauses = []
    for _ in range(8):
        failed_at = play.now
        play.tell(DatabaseFailed("retry", "the database x failed"))
        play.batch(2)  # nothing else is asked for meanwhile
        assert play.take(CommitFlush, LoadLedger) == []
        assert play.core.view(play.now).state == "waiting_for_database"
        while not (again := play.take(CommitFlush)):
            play.pass_ms(play.core.next_timer() - play.now)
        assert again == [CommitFlush(flush)]
        pauses.append(play.now - failed_at)
    assert pauses == [200, 400, 800, 1600, 3200, 5000, 5000, 5000]
    play.effects = []
    play.commit(flush)
    assert play.core.view(play.now).state == "running"
    assert [e.text for e in play.effects if isinstance(e, WriteLog)] == [
        "the database answers again; 1 rows are waiting"
    ]
    assert [b.seq for b in play.flush().parts[0].batches] == [2]
    play.tell(DatabaseFailed("retry", "again"))
    play.pass_ms(200)
    assert len(play.take(CommitFlush)) == 1, "the pause starts small again"


def test_an_outage_is_logged_once():
    play = Play().welcomed().batch(1).pass_ms(100)
    for _ in range(3):
        play.tell(DatabaseFailed("retry", "no route")).pass_ms(RETRY_MAX_MS)
    play.tell(DatabaseFailed("fatal", "no table"))
    logs = [(e.level, e.text.split(";")[0]) for e in play.effects if isinstance(e, WriteLog)]
    assert logs == [("warning", "no route"), ("error", "no table")]
    assert play.core.next_timer() <= play.now + RETRY_MAX_MS


def test_the_ledger_is_loaded_after_an_outage():
    play = Play().hello()
    play.tell(DatabaseFailed("retry", "away")).hello(b"q", S2, "worker-2")
    play.take()
    play.pass_ms(200)
    assert play.take() == [LoadLedger([S1, S2])]
    play.tell(LedgerLoaded({S1: 4, S2: 0}))
    assert play.sent() == [(b"p", StreamWelcome(S1, 4, CREDIT_BYTES)), (b"q", StreamWelcome(S2, 0, CREDIT_BYTES))]


def test_newcomers_do_not_hold_up_flushes():
    play = Play().welcomed().batch(1).pass_ms(99)
    play.hello(b"q", S2).take()
    play.pass_ms(1).hello(b"r", str(uuid.UUID(int=3)))
    play.tell(LedgerLoaded({S2: 0}))
    kinds = [type(e) for e in play.take() if not isinstance(e, Send)]
    assert kinds == [CommitFlush]


def test_a_stream_that_exceeds_its_credit_is_held_back_and_fetched_later():
    play = Play(credit_bytes=1000)
    play.hello()
    play.tell(LedgerLoaded({S1: 0}))
    play.take()
    for seq in range(1, 6):
        play.batch(seq, size_bytes=500)
    assert play.core.view(play.now).pending_bytes == 2000
    assert play.core.view(play.now).dropped == {"over_credit": 1}
    assert play.sent() == []
    play.pass_ms(100)
    flush = play.flush()
    play.pass_ms(3000).batch(6, size_bytes=500)
    assert play.sent() == [], "no room yet, so nothing is asked for"
    play.commit(flush)
    assert play.sent() == [(b"p", Committed(S1, 4)), (b"p", Rewind(S1, 5))]


def test_one_batch_larger_than_the_credit_passes():
    play = Play(credit_bytes=1000)
    play.hello()
    play.tell(LedgerLoaded({S1: 0}))
    play.batch(1, size_bytes=5000)
    assert play.core.view(play.now).pending_bytes == 5000


def test_memory_is_bounded_in_batches_too(monkeypatch):
    monkeypatch.setattr(core_module, "STREAM_BATCHES_MAX", 5)
    play = Play().welcomed()
    for seq in range(1, 10):
        play.batch(seq, rows=0, size_bytes=1)
    assert play.core.view(play.now).dropped == {"over_credit": 1, "gap": 3}


def test_streams_are_limited(monkeypatch):
    monkeypatch.setattr(core_module, "STREAMS_MAX", 3)
    play = Play()
    for n in range(5):
        play.hello(b"p%d" % n, str(uuid.UUID(int=n)))
    view = play.core.view(play.now)
    assert (view.streams, view.dropped) == (3, {"too_many_streams": 2})


@pytest.mark.parametrize(
    ("stream", "worker", "first_seq"),
    [("x", "w", 1), ("", "w", 1), (S1 + "0", "w", 1), (S1, "", 1), (S1, "a\x00b", 1), (S1, "w" * 101, 1), (S1, "w", 0),
     (S1, "w", 2**63)],
)  # fmt: skip
def test_an_unusable_hello_is_refused(stream, worker, first_seq):
    play = Play().hello(stream=stream, worker=worker, first_seq=first_seq)
    assert play.take() == []
    assert play.core.view(play.now).dropped == {"invalid_hello": 1}


def test_an_empty_batch_is_committed_like_any_other():
    play = Play().welcomed().batch(1, rows=0).pass_ms(100)
    play.commit(play.flush())
    assert play.sent() == [(b"p", Committed(S1, 1))]


def test_idle_streams_leave_memory_and_are_asked_for_again():
    play = Play().welcomed().pass_ms(IDLE_MS + 20_000)
    assert play.core.view(play.now).streams == 0
    play.batch(1)
    assert play.sent() == [(b"p", WhichStream())]


def test_a_stream_that_waits_for_the_database_is_not_forgotten():
    play = Play().hello().hello(b"q", S2)
    play.tell(PeerUnreachable(b"q"))
    while play.now < 1_000_000 + 2 * IDLE_MS:
        if play.take(LoadLedger):
            play.tell(DatabaseFailed("retry", "away"))
        play.pass_ms(1000)
    assert play.core.view(play.now).streams == 1
    while not play.take(LoadLedger):
        play.pass_ms(play.core.next_timer() - play.now)
    play.tell(LedgerLoaded({S1: 0}))
    assert play.sent() == [(b"p", StreamWelcome(S1, 0, CREDIT_BYTES))]


def test_an_end_waits_for_what_is_pending():
    play = Play().welcomed().batch(1).say(b"p", StreamEnd(S1)).pass_ms(100)
    effects = play.take()
    assert [type(e) for e in effects] == [CommitFlush]
    play.commit(effects[0].flush)
    assert play.take() == [Send(b"p", Committed(S1, 1)), MarkEnded([S1])]


def test_the_end_of_a_stream_of_an_earlier_writer():
    play = Play().say(b"p", StreamEnd(S1))
    assert play.take() == [MarkEnded([S1])]
    assert play.say(b"p", StreamEnd("nonsense")).take() == []


def test_stop_commits_at_once_and_finishes():
    play = Play().welcomed().batch(1).tell(StopRequested(30_000))
    flush = play.flush()
    play.batch(2)
    play.commit(flush)
    effects = play.take()
    assert [type(e) for e in effects] == [Send, CommitFlush]
    play.commit(effects[1].flush)
    assert play.take() == [Send(b"p", Committed(S1, 2)), Finish(0)]
    assert play.core.next_timer() is None
    assert play.batch(3).take() == []


def test_stop_with_nothing_to_do_finishes_at_once():
    assert Play().tell(StopRequested(30_000)).take() == [Finish(0)]


def test_stop_gives_up_after_the_grace():
    play = Play().welcomed().batch(1, rows=2).batch(2, missed=1).pass_ms(100)
    play.take()
    stopped_at = play.now
    play.tell(StopRequested(30_000))
    finished = []
    while not finished:
        assert play.now <= stopped_at + 30_000
        if play.core.view(play.now).state == "running" or any(isinstance(e, CommitFlush) for e in play.effects):
            play.effects = []
            play.tell(DatabaseFailed("retry", "away"))
        play.pass_ms(play.core.next_timer() - play.now)
        finished = [e for e in play.effects if isinstance(e, Finish)]
    assert finished == [Finish(4)]
    assert play.now == stopped_at + 30_000


def test_a_ledger_that_is_ahead_is_believed():
    """Another attempt, or another writer, committed more than was asked for."""
    play = Play().welcomed().batch(1).batch(2).pass_ms(100)
    flush = play.flush()
    play.batch(3).batch(4)
    play.tell(FlushCommitted(flush.flush_id, {S1: 3}, 0))
    assert play.sent() == [(b"p", Committed(S1, 3))]
    play.pass_ms(100)
    [part] = play.flush().parts
    assert (part.base_seq, [b.seq for b in part.batches]) == (3, [4])
