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
from writer.core import AWAY_BYTES, CREDIT_BYTES, FLUSH_ROWS, IDLE_MS, RETRY_MAX_MS, WriterCore
from writer.events import (
    CommitFlush,
    DatabaseFailed,
    Finish,
    FlushCommitted,
    LedgerLoaded,
    LedgerWentBack,
    LoadLedger,
    MarkEnded,
    MessageReceived,
    PeerUnreachable,
    Send,
    StopRequested,
    WriteLog,
)

S1, S2, S3 = (str(uuid.UUID(int=n)) for n in (1, 2, 3))
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

    def hello(
        self, peer=b"p", stream=S1, worker="worker-1", first_seq=1, *, incarnation="i", acked_seq=0, adopted_by=""
    ):
        return self.say(peer, StreamHello(stream, worker, incarnation, first_seq, acked_seq, adopted_by))

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

    def welcomed(self, peer=b"p", stream=S1, position=0, **hello):
        self.hello(peer, stream, **hello)
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
    play.batch(1, size_bytes=500)
    first = play.flush()
    for seq in range(2, 6):
        play.batch(seq, size_bytes=500)
    assert play.core.view(play.now).pending_bytes == 2000
    assert play.core.view(play.now).dropped == {"over_credit": 1}
    play.pass_ms(3000).batch(6, size_bytes=500)
    assert play.sent() == [], "no room yet, so nothing is asked for"
    play.commit(first)
    effects = play.take()
    assert effects[:1] == [Send(b"p", Committed(S1, 1))]
    play.pass_ms(3000)
    assert play.sent() == [], "three wait, more than the credit"
    play.commit(effects[1].flush)
    assert play.sent() == [(b"p", Committed(S1, 4)), (b"p", Rewind(S1, 5))]


def fail(play):
    [commit] = play.take(CommitFlush)
    play.tell(DatabaseFailed("retry", "no database"))
    return commit.flush


def test_while_the_database_is_away_little_is_kept_and_the_rest_fetched_at_once_when_it_is_back():
    play = Play().welcomed().welcomed(b"q", S2, worker="worker-2").batch(1, size_bytes=100_000).pass_ms(100)
    flush = fail(play)
    for seq in range(2, 40):
        play.batch(seq, size_bytes=50_000).batch(seq - 1, peer=b"q", stream=S2, size_bytes=50_000)
    assert play.core.view(play.now).pending_bytes == 250_000 <= AWAY_BYTES
    for _ in range(20):
        play.pass_ms(5_000).tell(DatabaseFailed("retry", "no database"))
    assert play.sent() == [], "nobody is asked for what there is no room for"
    play.pass_ms(5_000).commit(flush)
    assert play.sent() == [(b"p", Committed(S1, 1)), (b"p", Rewind(S1, 4)), (b"q", Rewind(S2, 2))]
    assert play.batch(4, size_bytes=900_000).core.view(play.now).pending_bytes == 1_050_000


def test_a_worker_that_says_hello_again_while_the_database_is_away_is_welcomed_when_it_is_back():
    """Welcomed at once it would send all that is not acknowledged, each time, to be turned away."""
    play = Play().welcomed().batch(1).pass_ms(100)
    flush = fail(play)
    play.batch(2).hello().hello()
    assert play.sent() == []
    play.pass_ms(5_000).commit(flush)
    assert play.sent() == [(b"p", Committed(S1, 1)), (b"p", StreamWelcome(S1, 1, CREDIT_BYTES))]
    play.hello()
    assert play.sent() == [(b"p", StreamWelcome(S1, 1, CREDIT_BYTES))]


def test_a_database_that_nobody_waits_for_any_more_is_still_asked_whether_it_is_back():
    play = Play().welcomed().hello(b"q", S2, "worker-2")
    play.tell(PeerUnreachable(b"q")).pass_ms(IDLE_MS + 20_000)
    assert play.core.view(play.now).streams == 0
    play.hello().take()
    play.tell(DatabaseFailed("retry", "no database")).tell(PeerUnreachable(b"p")).pass_ms(IDLE_MS + 20_000)
    play.tell(DatabaseFailed("retry", "no database")).pass_ms(RETRY_MAX_MS)
    [asked] = play.take(LoadLedger)[-1:]
    play.tell(LedgerLoaded(dict.fromkeys(asked.stream_ids, 0)))
    assert play.core.view(play.now).state == "running"


def test_a_batch_larger_than_what_is_kept_meanwhile_passes_when_nothing_waits():
    play = Play().hello()
    play.tell(DatabaseFailed("retry", "no database")).pass_ms(200).tell(LedgerLoaded({S1: 0}))
    play.hello(b"q", S2).tell(DatabaseFailed("retry", "no database"))
    play.batch(1, size_bytes=AWAY_BYTES + 1).batch(2, size_bytes=1)
    assert play.core.view(play.now).pending_bytes == AWAY_BYTES + 1


def test_a_database_that_does_not_answer_is_as_good_as_away():
    play = Play().welcomed().batch(1, size_bytes=500_000).pass_ms(100)
    flush = play.flush()
    play.pass_ms(2_999).batch(2, size_bytes=500_000)
    play.pass_ms(1).batch(3, size_bytes=100)
    assert play.core.view(play.now).dropped == {"over_credit": 1}
    play.commit(flush)
    assert (b"p", Rewind(S1, 3)) in play.sent()


def test_half_a_credit_is_committed_at_once():
    """The worker may send the other half meanwhile, so that it never stands still."""
    assert CREDIT_BYTES == 1 << 20
    play = Play().welcomed().batch(1, size_bytes=CREDIT_BYTES // 2 - 1)
    assert play.take() == []
    play.batch(2, size_bytes=1)
    flush = play.flush()
    assert [b.seq for b in flush.parts[0].batches] == [1, 2]
    play.batch(3, size_bytes=CREDIT_BYTES // 4)
    play.commit(flush)
    assert [type(e) for e in play.take()] == [Send], "what waits in no flush counts, and that is a quarter"
    play.batch(4, size_bytes=CREDIT_BYTES // 4)
    assert [b.seq for b in play.flush().parts[0].batches] == [3, 4]


def test_half_a_credit_that_came_during_a_flush_follows_it():
    play = Play().welcomed().batch(1, size_bytes=CREDIT_BYTES // 2)
    flush = play.flush()
    play.batch(2, size_bytes=CREDIT_BYTES // 2)
    assert play.take() == []
    play.commit(flush)
    assert [b.seq for b in play.flush().parts[0].batches] == [2]


def test_one_stream_in_a_hurry_takes_the_others_along():
    play = Play().welcomed().welcomed(b"q", S2, worker="worker-2").batch(1, peer=b"q", stream=S2)
    play.batch(1, size_bytes=CREDIT_BYTES)
    assert {part.stream_id for part in play.flush().parts} == {S1, S2}


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


# ---- who sends ------------------------------------------------------------------------------------------------------


def test_a_newer_incarnation_of_a_worker_ends_the_streams_of_the_one_before():
    play = Play().welcomed(incarnation="i1").welcomed(b"q", S2, worker="worker-2", incarnation="j")
    play.hello(b"r", S3, incarnation="i2")
    play.tell(LedgerLoaded({S3: 0}))
    assert play.core.view(play.now).streams == 2
    play.sent()
    play.batch(1)
    assert play.sent() == [(b"p", WhichStream())], "what comes now is of a process that is dead"


def test_what_a_dead_incarnation_had_sent_is_committed_first():
    play = Play().welcomed(incarnation="i1").batch(1).batch(2)
    play.hello(b"r", S3, incarnation="i2")
    play.take()
    play.tell(LedgerLoaded({S3: 0})).pass_ms(100)
    assert play.core.view(play.now).streams == 2
    [commit] = play.take(CommitFlush)
    play.commit(commit.flush)
    assert play.sent() == [], "there is nobody to tell"
    assert play.core.view(play.now).streams == 1
    assert play.core.view(play.now).rows_written == 2


def test_several_streams_of_one_incarnation_live_side_by_side():
    play = Play().welcomed(incarnation="i1").welcomed(b"p", S2, incarnation="i1")
    play.welcomed(b"p", S3, worker="worker-9", incarnation="i1", adopted_by="worker-1")
    assert play.core.view(play.now).streams == 3
    play.hello(b"p", S1, incarnation="i1").hello(b"p", S2, incarnation="i1")
    assert play.core.view(play.now).streams == 3


def test_a_stream_belongs_to_who_sends_it():
    """worker-2 has adopted a stream of worker-1: the next worker-1 has nothing to do with it."""
    play = Play().welcomed(b"q", S1, worker="worker-1", incarnation="j1", adopted_by="worker-2")
    play.welcomed(b"r", S2, worker="worker-1", incarnation="i2")
    assert play.core.view(play.now).streams == 2
    play.batch(1, peer=b"q").pass_ms(100)
    assert play.flush().rows == 1
    play.hello(b"s", S3, worker="worker-2", incarnation="j2")
    play.batch(2, peer=b"q")
    assert (b"q", WhichStream()) in play.sent(), "its sender is dead"


def test_what_was_adopted_speaks_for_who_sends_it_not_for_who_polled():
    play = Play().welcomed(b"p", S1, worker="worker-1", incarnation="i1")
    play.welcomed(b"q", S2, worker="worker-9", incarnation="k2")
    play.hello(b"r", S3, worker="worker-9", incarnation="i2", adopted_by="worker-1").take()
    play.batch(1).batch(1, peer=b"q", stream=S2)
    assert play.sent() == [(b"p", WhichStream())], "worker-1 is a new one, worker-9 is what it was"


def test_a_stream_that_is_adopted_before_its_rest_was_committed_goes_on():
    play = Play().welcomed(incarnation="i1").batch(1)
    play.hello(b"r", S2, incarnation="i2").take()
    play.tell(LedgerLoaded({S2: 0}))
    play.hello(b"r", S1, incarnation="i2", adopted_by="worker-1")
    play.take()
    play.pass_ms(100)
    play.commit(play.flush())
    assert (b"r", Committed(S1, 1)) in play.sent()
    play.batch(2, peer=b"r").pass_ms(100)
    assert play.flush().parts[0].base_seq == 1


def test_a_stream_whose_position_is_being_read_may_be_forgotten():
    play = Play().hello(incarnation="i1").hello(b"r", S2, incarnation="i2")
    assert play.take(LoadLedger) == [LoadLedger([S1])]
    play.tell(LedgerLoaded({S1: 3}))
    assert play.take() == [LoadLedger([S2])]
    assert play.core.view(play.now).streams == 1


# ---- a database that was set back -----------------------------------------------------------------------------------


def logs(play):
    return [e for e in play.effects if isinstance(e, WriteLog)]


def committed(play, *, peer=b"p", stream=S1, until, **hello):
    """A stream of which so much is committed and acknowledged."""
    play.welcomed(peer, stream, **hello)
    for seq in range(1, until + 1):
        play.batch(seq, peer=peer, stream=stream)
    play.pass_ms(100)
    play.commit(play.flush())
    assert (peer, Committed(stream, until)) in play.sent()
    return play


def test_a_flush_finds_the_ledger_set_back():
    play = committed(Play(), until=5)
    play = committed(play, peer=b"q", stream=S2, worker="worker-2", until=3)
    play.batch(6).batch(4, peer=b"q", stream=S2).pass_ms(100)
    flush = play.flush()
    play.tell(LedgerWentBack(flush.flush_id))
    assert play.take() == [LoadLedger([S1, S2])], "every position is read again"
    view = play.core.view(play.now)
    assert (view.pending_bytes, view.pending_rows) == (0, 2), "what was received is sent again, and still owed"
    play.tell(LedgerLoaded({S1: 2, S2: 3}))
    [log] = logs(play)
    assert log.level == "error"
    assert f"{S1} of worker-1 at 2" in log.text
    assert S2 not in log.text
    assert play.sent() == [
        (b"p", StreamWelcome(S1, 2, CREDIT_BYTES)),
        (b"q", StreamWelcome(S2, 3, CREDIT_BYTES)),
        (b"p", WhichStream()),
        (b"q", WhichStream()),
    ]


def test_what_is_sent_again_goes_on_from_the_ledger():
    play = committed(Play(), until=3).batch(4).pass_ms(100)
    play.tell(LedgerWentBack(play.flush().flush_id))
    play.tell(LedgerLoaded({S1: 1}))
    for seq in (2, 3, 4):
        play.take()
        play.batch(seq).pass_ms(100)
        flush = play.flush()
        assert flush.parts[0].base_seq == seq - 1
        play.commit(flush)


def test_a_hello_ahead_of_the_ledger_says_so():
    """The writer was restarted, or had forgotten the stream."""
    play = Play().hello(acked_seq=7)
    play.take()
    play.tell(LedgerLoaded({S1: 4}))
    assert "at 4" in logs(play)[0].text
    assert play.sent() == [(b"p", StreamWelcome(S1, 4, CREDIT_BYTES)), (b"p", WhichStream())]
    for seq in range(5, 9):
        play.batch(seq)
    play.pass_ms(100)
    play.flush()


def test_a_hello_of_a_known_stream_ahead_of_the_ledger_has_every_position_read_again():
    play = Play().welcomed(position=3).welcomed(b"q", S2, position=9, worker="worker-2")
    play.hello(acked_seq=8)
    assert play.take() == [LoadLedger([S1, S2])]
    play.tell(LedgerLoaded({S1: 3, S2: 5}))
    sent = play.sent()
    assert (b"p", StreamWelcome(S1, 3, CREDIT_BYTES)) in sent
    assert (b"q", StreamWelcome(S2, 5, CREDIT_BYTES)) in sent
    assert [peer for peer, message in sent if message == WhichStream()] == [b"p", b"q"]
    play.batch(6, peer=b"q", stream=S2).pass_ms(100)
    play.flush()


def test_when_one_stream_was_set_back_the_others_are_read_again():
    play = committed(Play(), until=3)
    play.hello(b"q", S2, worker="worker-2", acked_seq=6)
    play.take()
    play.tell(LedgerLoaded({S2: 2}))
    effects = play.take()
    assert LoadLedger([S1]) in effects
    assert effects.index(Send(b"p", WhichStream())) < effects.index(LoadLedger([S1]))
    play.tell(LedgerLoaded({S1: 3}))
    assert play.sent() == [(b"p", StreamWelcome(S1, 3, CREDIT_BYTES))], "this one was not"


def test_everybody_is_asked_once_not_in_a_circle():
    """The answers to WhichStream are hellos that know of the older database."""
    play = committed(Play(), until=5)
    play.hello(acked_seq=5).batch(6).pass_ms(100)
    play.tell(LedgerWentBack(play.flush().flush_id))
    play.tell(LedgerLoaded({S1: 2})).take()
    play.effects = []
    play.hello(acked_seq=2)
    assert play.take() == [Send(b"p", StreamWelcome(S1, 2, CREDIT_BYTES))]
    assert logs(play) == []


def test_what_nobody_has_any_more_is_not_waited_for():
    """Set back further than the WAL is kept: the worker goes on where it can, however often it says hello."""
    play = Play().hello(first_seq=61, acked_seq=60)
    play.take(LoadLedger)
    play.tell(LedgerLoaded({S1: 15}))
    assert ["batches 16 to 60" in log.text for log in logs(play)] == [True]
    assert play.take() == [Send(b"p", StreamWelcome(S1, 60, CREDIT_BYTES))]
    for _ in range(3):
        play.hello(first_seq=61, acked_seq=60)
        assert play.take() == [Send(b"p", StreamWelcome(S1, 60, CREDIT_BYTES))]
    play.batch(61).pass_ms(100)
    flush = play.flush()
    assert (flush.parts[0].base_seq, flush.parts[0].first_seq) == (15, 61)
    play.commit(flush)
    assert play.sent() == [(b"p", Committed(S1, 61))]


def test_what_was_given_up_for_want_of_room_is_no_sign_of_an_older_database():
    play = Play().welcomed(position=15).batch(16)
    play.hello(first_seq=61, acked_seq=15)
    assert (b"p", StreamWelcome(S1, 60, CREDIT_BYTES)) in play.sent()
    play.hello(first_seq=61, acked_seq=60)
    assert play.sent() == [(b"p", StreamWelcome(S1, 60, CREDIT_BYTES))]
    assert not [log for log in logs(play) if "older" in log.text]


def test_a_flush_under_way_is_finished_before_positions_are_read_again():
    play = Play().welcomed().welcomed(b"q", S2, worker="worker-2").batch(1).pass_ms(100)
    flush = play.flush()
    play.hello(b"q", S2, worker="worker-2", acked_seq=7)
    assert play.take() == []
    play.hello(b"r", S3, incarnation="newer")  # of worker-1, whose stream is in the flush
    play.commit(flush)
    [load] = play.take(LoadLedger)
    assert {S2, S3} <= set(load.stream_ids)
    play.tell(LedgerLoaded({stream: int(stream == S1) for stream in load.stream_ids}))
    assert (b"q", StreamWelcome(S2, 0, CREDIT_BYTES)) in play.sent()


def test_a_flush_that_fails_meanwhile_is_repeated_first():
    play = Play().welcomed().welcomed(b"q", S2, worker="worker-2").batch(1).pass_ms(100)
    flush = play.flush()
    play.hello(b"q", S2, worker="worker-2", acked_seq=7)
    play.tell(DatabaseFailed("retry", "away")).pass_ms(200)
    assert play.take(CommitFlush, LoadLedger) == [CommitFlush(flush)]
    play.commit(flush)
    assert play.take(CommitFlush, LoadLedger) == [LoadLedger([S1, S2])]


def test_a_position_that_was_read_and_told_counts_as_acknowledged():
    """The worker does not know how far it was, the ledger does: 9.  Later it says 5."""
    play = Play().welcomed(position=9).batch(10).pass_ms(100)
    play.tell(LedgerWentBack(play.flush().flush_id))
    play.tell(LedgerLoaded({S1: 5}))
    assert len(logs(play)) == 1
    assert play.sent() == [(b"p", StreamWelcome(S1, 5, CREDIT_BYTES)), (b"p", WhichStream())]
    play.batch(6).pass_ms(100)
    play.flush()


def test_an_older_database_that_turns_out_to_be_the_newer_one_after_all():
    """A failover and back: what was committed before counts again."""
    play = committed(Play(), until=5).batch(6).pass_ms(100)
    play.tell(LedgerWentBack(play.flush().flush_id))
    play.tell(LedgerLoaded({S1: 2})).batch(3).pass_ms(100)
    flush = play.flush()
    play.sent()
    play.tell(FlushCommitted(flush.flush_id, {S1: 5}, 0))
    assert play.sent() == [(b"p", Committed(S1, 5))]
    play.batch(6).pass_ms(100)
    assert play.flush().parts[0].base_seq == 5


def test_an_absent_worker_is_asked_when_it_comes():
    play = committed(Play(), until=5)
    play.welcomed(b"q", S2, worker="worker-2").batch(1, peer=b"q", stream=S2).tell(PeerUnreachable(b"p"))
    play.pass_ms(100)
    play.tell(LedgerWentBack(play.flush().flush_id))
    play.tell(LedgerLoaded({S1: 2, S2: 0}))
    assert [peer for peer, message in play.sent() if message == WhichStream()] == [b"q"]
    play.hello(b"r", acked_seq=5)
    play.tell(LedgerLoaded({stream: 2 for e in play.take(LoadLedger) for stream in e.stream_ids}))
    assert (b"r", StreamWelcome(S1, 2, CREDIT_BYTES)) in play.sent()


def stopped_by_an_older_database():
    """Three rows were received, and the flush that had them was not committed."""
    play = Play().welcomed(position=9).batch(10, rows=3).pass_ms(100)
    flush = play.flush()
    play.tell(StopRequested(30_000))
    play.tell(LedgerWentBack(flush.flush_id))
    assert play.take(Finish, LoadLedger) == [LoadLedger([S1])]
    play.tell(LedgerLoaded({S1: 5}))
    assert play.take(Finish) == []
    return play


def test_a_stop_waits_for_what_an_older_database_did_not_take():
    play = stopped_by_an_older_database()
    for seq in range(6, 11):
        play.batch(seq, rows=3)
        play.commit(play.flush())
    assert play.take(Finish) == [Finish(0)]


def test_a_stop_counts_what_an_older_database_did_not_take():
    assert stopped_by_an_older_database().pass_ms(30_000).take(Finish) == [Finish(3)]


def test_what_is_received_again_is_owed_no_more_once_it_is_committed():
    play = committed(Play(), until=5).batch(6, rows=3).pass_ms(100)
    play.tell(LedgerWentBack(play.flush().flush_id))
    play.tell(LedgerLoaded({S1: 4}))
    for seq, owed in ((5, 3), (6, 0)):
        play.take()
        play.batch(seq).pass_ms(100)
        play.commit(play.flush())
        assert play.core.view(play.now).pending_rows == owed


def test_what_somebody_else_committed_is_not_owed():
    play = Play().welcomed().welcomed(b"q", S2, worker="worker-2").batch(1, rows=3)
    play.hello(b"q", S2, worker="worker-2", acked_seq=7)
    assert play.take(LoadLedger) == [LoadLedger([S1, S2])]
    play.tell(LedgerLoaded({S1: 1, S2: 7}))
    assert play.core.view(play.now).pending_rows == 0
    assert play.tell(StopRequested(30_000)).take(Finish) == [Finish(0)]
