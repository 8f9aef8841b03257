"""The writer's decisions: which batches to take, when to commit what, whom to tell.

- A stream begins with ``StreamHello``; its ledger position is loaded, then it is welcomed, in both cases once the
  database answers: a worker that is not welcome sends nothing.  A batch of a stream that
  was not introduced on that connection gets ``WhichStream``, once a second at most.
- Batches of a stream are taken in order.  One that was taken before is ignored, and its acknowledgement repeated if it
  is committed; one that leaves a gap is ignored and gets ``Rewind``, repeated each second while the gap stays.
- A flush is due ``FLUSH_MS`` after the oldest batch came, at ``FLUSH_ROWS``, or when half of a stream's credit waits.
  One database operation at a time; one that failed is repeated unchanged, 0.2 to 5 s later.  Acknowledged is what is
  committed, never more.
- When the ledger turns out to be behind what was acknowledged, the database is an older one (a failover, a restored
  copy): every position is read again, and every worker is asked for all it still has.
- Memory: a stream may have twice its credit waiting, and all together AWAY_BYTES while the database does not answer;
  what exceeds that is ignored, and ``Rewind`` is sent when there is room.  Streams are limited, and leave memory when
  they have ended or are idle.
- ``StopRequested``: what was received is committed at once, then ``Finish``; or ``Finish`` when the grace is over.

It knows nothing of rows, transactions or sockets (see store.py and service.py).
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable
from typing import Literal, assert_never

import msgspec

from cluster.messages.results import (
    Batch,
    Committed,
    Rewind,
    StreamEnd,
    StreamHello,
    StreamWelcome,
    ToWriter,
    WhichStream,
)
from cluster.wal.format import is_stream_id, is_worker_name
from writer.events import (
    CommitFlush,
    DatabaseFailed,
    Effect,
    Event,
    Finish,
    Flush,
    FlushCommitted,
    LedgerLoaded,
    LedgerWentBack,
    LoadLedger,
    MarkEnded,
    MessageReceived,
    PeerUnreachable,
    Send,
    StopRequested,
    StreamPart,
    WriteLog,
)
from writer.stream import PendingBatch, Stream

CREDIT_BYTES = 1 << 20
AWAY_BYTES = 256 << 10  # decoded they take four times as much; the rest waits in the workers' WAL
SLOW_MS = 3_000  # an answer that takes longer is not waited for with more and more in memory
FLUSH_MS = 100
FLUSH_ROWS = 20_000
FLUSH_BATCHES = 4_096
RETRY_FIRST_MS = 200
RETRY_MAX_MS = 5_000
REWIND_MS = 1_000
STRANGER_MS = 1_000
STRANGERS_MAX = 1_024
STREAMS_MAX = 4_096
STREAM_BATCHES_MAX = 16_384  # of one stream waiting: batches of next to nothing cost memory, too
STOP_AWAY_MS = 5_000  # for a database that is away: what it does not get is in the workers' WAL
IDLE_MS = 600_000
HOUSEKEEPING_MS = 10_000
RATE_WINDOW_MS = 10_000
SEQ_MAX = 2**63 - 1

# Why a message was not taken.
Dropped = Literal["duplicate", "early", "gap", "invalid_hello", "over_credit", "stranger", "too_many_streams"]


class WriterView(msgspec.Struct, frozen=True):
    """What a heartbeat and a test need to know.  Counts are of this process; they never go back."""

    state: Literal["running", "waiting_for_database"]
    rows_written: int
    rows_per_s: float
    lag_ms: float
    duplicates: int
    rejects: int
    streams: int
    pending_rows: int
    pending_bytes: int
    dropped: dict[str, int]


class WriterCore:
    def __init__(self, *, now_ms: int, credit_bytes: int = CREDIT_BYTES) -> None:
        self._credit_bytes = credit_bytes
        self._streams: dict[str, Stream] = {}
        self._unloaded: set[str] = set()
        self._gaps: set[str] = set()  # streams with an open gap
        self._unwelcomed: set[str] = set()  # loaded ones that said hello again while the database did not answer
        self._strangers: dict[bytes, int] = {}  # routing id -> when WhichStream was last sent

        self._flush: Flush | None = None  # in progress, or to be repeated
        self._flush_id = 0
        self._operation: Literal["flush", "load"] | None = None  # asked for and not answered
        self._asked_ms = 0  # when
        self._loaded_last = False
        self._retry_at: int | None = None
        self._retry_ms = 0
        self._error = ""  # of the last failure, "" while the database answers

        self._waiting_rows = 0  # of batches in no flush
        self._reload_wanted = False  # of all positions, as soon as no flush is under way
        self._pressed = False  # half of a stream's credit, or more, waits
        self._oldest_waiting_ms: int | None = None
        self._stop_deadline: int | None = None
        self._finished = False
        self._housekeeping_at = now_ms + HOUSEKEEPING_MS

        self._written = 0
        self._duplicates = 0
        self._rejects = 0
        self._recent: deque[tuple[int, int]] = deque()  # (when, rows written) within RATE_WINDOW_MS
        self._dropped: Counter[Dropped] = Counter()

    # ---- the Core interface -----------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        if self._finished:
            return effects
        match event:
            case MessageReceived(peer, message, size_bytes):
                self._on_message(peer, message, size_bytes, now_ms, effects)
            case PeerUnreachable(peer):
                for stream in self._streams.values():
                    if stream.peer == peer:
                        stream.peer = None
                self._strangers.pop(peer, None)
            case LedgerLoaded(positions):
                self._on_loaded(positions, effects)
            case FlushCommitted():
                self._on_committed(event, now_ms, effects)
            case LedgerWentBack(flush_id):
                assert self._operation == "flush"
                assert self._flush is not None
                assert self._flush.flush_id == flush_id
                self._operation = self._flush = None
                self._on_answer(effects)
                self._reload_wanted = True
            case DatabaseFailed():
                self._on_failed(event, now_ms, effects)
            case StopRequested(grace_ms):
                self._stop_deadline = now_ms + (min(grace_ms, STOP_AWAY_MS) if self._error else grace_ms)
            case _:
                assert_never(event)
        self._advance(now_ms, effects)
        return effects

    def next_timer(self) -> int | None:
        if self._finished:
            return None
        due = self._housekeeping_at
        if self._stop_deadline is not None:
            due = min(due, self._stop_deadline)
        if self._gaps:
            due = min(due, *(self._rewind_due(self._streams[stream_id]) for stream_id in self._gaps))
        if self._operation is None:
            if self._retry_at is not None:
                due = min(due, self._retry_at)
            elif self._oldest_waiting_ms is not None:
                due = min(due, self._oldest_waiting_ms + FLUSH_MS)
        return due

    def handle_timer(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        if self._finished:
            return effects
        for stream_id in sorted(self._gaps):
            stream = self._streams[stream_id]
            if now_ms >= self._rewind_due(stream):
                self._rewind(stream, now_ms, effects)
        if now_ms >= self._housekeeping_at:
            self._keep_house(now_ms)
        self._advance(now_ms, effects)
        return effects

    # ---- what others may look at ------------------------------------------------------------------------------------

    def view(self, now_ms: int) -> WriterView:
        while self._recent and self._recent[0][0] <= now_ms - RATE_WINDOW_MS:
            self._recent.popleft()
        oldest = self._oldest_ms()
        return WriterView(
            state="waiting_for_database" if self._error else "running",
            rows_written=self._written,
            rows_per_s=sum(rows for _, rows in self._recent) * 1_000 / RATE_WINDOW_MS,
            lag_ms=0.0 if oldest is None else float(max(0, now_ms - oldest)),
            duplicates=self._duplicates,
            rejects=self._rejects,
            streams=len(self._streams),
            pending_rows=self._pending_rows(),
            pending_bytes=self._pending_bytes(),
            dropped={str(reason): count for reason, count in self._dropped.items()},
        )

    def check(self) -> None:
        """Our invariants, for tests and the simulator; raises AssertionError."""
        for stream in self._streams.values():
            stream.check()
        waiting = [p for s in self._streams.values() for p in list(s.pending)[s.taken :]]
        assert self._waiting_rows == sum(p.rows for p in waiting)
        assert self._oldest_waiting_ms == min((p.received_ms for p in waiting), default=None)
        assert self._unloaded == {s.stream_id for s in self._streams.values() if not s.loaded}
        assert self._unwelcomed <= {s.stream_id for s in self._streams.values() if s.loaded}
        assert self._gaps == {s.stream_id for s in self._streams.values() if s.rewound_ms is not None}
        assert (self._flush is not None) == any(s.taken for s in self._streams.values())
        assert self._operation != "flush" or self._flush is not None
        assert self._retry_at is None or self._error, "a pause without a failure"
        assert len(self._streams) <= STREAMS_MAX

    # ---- messages ---------------------------------------------------------------------------------------------------

    def _on_message(self, peer: bytes, message: ToWriter, size_bytes: int, now_ms: int, effects: list[Effect]) -> None:
        match message:
            case Batch():
                self._on_batch(peer, message, size_bytes, now_ms, effects)
            case StreamHello():
                self._on_hello(peer, message, now_ms, effects)
            case StreamEnd(stream_id):
                self._on_end(stream_id, effects)
            case _:
                assert_never(message)

    def _on_hello(self, peer: bytes, hello: StreamHello, now_ms: int, effects: list[Effect]) -> None:
        valid = is_stream_id(hello.stream_id) and is_worker_name(hello.worker)
        if not valid or not 1 <= hello.first_seq <= SEQ_MAX:
            if not self._dropped["invalid_hello"]:
                effects.append(WriteLog("warning", "a stream introduced itself with an unusable id, name or position"))
            self._dropped["invalid_hello"] += 1
            return
        stream = self._streams.get(hello.stream_id)
        if stream is None:
            if len(self._streams) >= STREAMS_MAX:
                self._dropped["too_many_streams"] += 1
                return
            stream = Stream(hello.stream_id, hello.worker, peer, hello.first_seq, now_ms)
            self._streams[hello.stream_id] = stream
            self._unloaded.add(hello.stream_id)
        self._strangers.pop(peer, None)
        stream.peer = peer
        self._forget_predecessors(hello)
        stream.sender = (hello.adopted_by or hello.worker, hello.incarnation)
        stream.acked_seq = max(stream.acked_seq, min(hello.acked_seq, SEQ_MAX))
        stream.welcome_seq = hello.first_seq
        stream.heard_ms = now_ms
        stream.ending = stream.abandoned = False
        self._close_gap(stream)
        if stream.loaded and stream.is_ahead:
            self._reload_wanted = True
        elif stream.loaded and self._stands_still(now_ms):
            self._unwelcomed.add(stream.stream_id)
        elif stream.loaded:
            self._welcome(stream, effects)

    def _forget_predecessors(self, hello: StreamHello) -> None:
        """Streams of an earlier incarnation of the sender get no more; whoever adopts them introduces them again."""
        name = hello.adopted_by or hello.worker
        for stream in list(self._streams.values()):
            sender, incarnation = stream.sender
            if sender == name and incarnation != hello.incarnation and stream.stream_id != hello.stream_id:
                stream.peer = None
                stream.abandoned = True
                self._forget_if_abandoned(stream)

    def _on_batch(self, peer: bytes, batch: Batch, size_bytes: int, now_ms: int, effects: list[Effect]) -> None:
        stream = self._streams.get(batch.stream_id)
        if stream is None or stream.peer != peer:
            self._dropped["stranger"] += 1
            self._ask(peer, now_ms, effects)
            return
        stream.heard_ms = now_ms
        if not stream.loaded:
            self._dropped["early"] += 1  # it was not welcomed yet, and will be
        elif batch.seq <= stream.received_seq:
            self._dropped["duplicate"] += 1
            if batch.seq <= stream.committed_seq:
                effects.append(Send(peer, Committed(stream.stream_id, stream.committed_seq)))
        elif batch.seq > stream.received_seq + 1:
            self._dropped["gap"] += 1
            if stream.rewound_ms is None:
                self._rewind(stream, now_ms, effects)
        elif not self._has_room(stream, size_bytes, now_ms):
            self._dropped["over_credit"] += 1
            stream.refused = True
            stream.rewound_ms = now_ms
            self._gaps.add(stream.stream_id)
        else:
            rows = len(batch.results) + len(batch.missed)
            stream.accept(PendingBatch(batch, size_bytes, rows, now_ms))
            self._gaps.discard(stream.stream_id)
            self._waiting_rows += rows
            self._pressed = self._pressed or stream.waiting_bytes * 2 >= self._credit_bytes
            if self._oldest_waiting_ms is None:
                self._oldest_waiting_ms = now_ms

    def _has_room(self, stream: Stream, size_bytes: int, now_ms: int) -> bool:
        if self._stands_still(now_ms) and self._pending_bytes() + size_bytes > AWAY_BYTES:
            return not self._pending_bytes()
        return not stream.pending or (
            stream.pending_bytes + size_bytes <= 2 * self._credit_bytes and len(stream.pending) < STREAM_BATCHES_MAX
        )

    def _on_end(self, stream_id: str, effects: list[Effect]) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.ending = True
            self._end_if_done(stream, effects)
        elif is_stream_id(stream_id):  # introduced to an earlier incarnation of the writer
            effects.append(MarkEnded([stream_id]))

    def _ask(self, peer: bytes, now_ms: int, effects: list[Effect]) -> None:
        asked_ms = self._strangers.get(peer)
        if asked_ms is not None and now_ms - asked_ms < STRANGER_MS:
            return
        if asked_ms is None and len(self._strangers) >= STRANGERS_MAX:
            self._strangers.pop(next(iter(self._strangers)))
        self._strangers[peer] = now_ms
        effects.append(Send(peer, WhichStream()))

    def _welcome(self, stream: Stream, effects: list[Effect]) -> None:
        self._unwelcomed.discard(stream.stream_id)
        skipped = stream.skip_to(stream.welcome_seq)
        if skipped:
            effects.append(
                WriteLog(
                    "error",
                    f"{stream.worker}: batches {stream.welcome_seq - skipped} to {stream.welcome_seq - 1} of stream "
                    f"{stream.stream_id} are neither in the database nor with the worker; was the database set back?",
                )
            )
        if stream.peer is not None:
            # committed_seq names what not to send again: what the worker no longer has belongs to it.
            position = max(stream.committed_seq, stream.welcome_seq - 1)
            effects.append(Send(stream.peer, StreamWelcome(stream.stream_id, position, self._credit_bytes)))

    # ---- gaps -------------------------------------------------------------------------------------------------------

    def _rewind_due(self, stream: Stream) -> int:
        assert stream.rewound_ms is not None
        return stream.rewound_ms + REWIND_MS

    def _rewind(self, stream: Stream, now_ms: int, effects: list[Effect]) -> None:
        """Ask for what follows what was taken, unless there is no room for it yet or nobody to ask."""
        stream.rewound_ms = now_ms
        self._gaps.add(stream.stream_id)
        if stream.refused and (stream.pending_bytes >= self._credit_bytes or self._stands_still(now_ms)):
            return
        stream.refused = False
        if stream.peer is not None:
            effects.append(Send(stream.peer, Rewind(stream.stream_id, stream.received_seq + 1)))

    def _close_gap(self, stream: Stream) -> None:
        stream.rewound_ms = None
        stream.refused = False
        self._gaps.discard(stream.stream_id)

    # ---- the database -----------------------------------------------------------------------------------------------

    def _on_loaded(self, positions: dict[str, int], effects: list[Effect]) -> None:
        assert self._operation == "load"
        self._operation = None
        self._loaded_last = True
        self._on_answer(effects)
        set_back: list[Stream] = []
        for stream_id, position in positions.items():
            stream = self._streams.get(stream_id)
            if stream is None or stream.loaded:
                continue
            self._unloaded.discard(stream_id)
            in_order = stream.load(position)
            if not in_order:
                set_back.append(stream)
            self._welcome(stream, effects)
            self._end_if_done(stream, effects)
        if set_back:
            self._on_set_back(set_back, positions, effects)

    def _reload(self, streams: Iterable[Stream]) -> None:
        """The database may be an older one: positions are read again, and what was received is sent again."""
        for stream in list(streams):
            stream.reset()
            self._unloaded.add(stream.stream_id)
            self._gaps.discard(stream.stream_id)
            self._unwelcomed.discard(stream.stream_id)
        self._count_waiting()

    def _on_set_back(self, set_back: list[Stream], loaded: Collection[str], effects: list[Effect]) -> None:
        """These streams stand before what was acknowledged: the others may, too, and those that were delivered."""
        some = ", ".join(f"{stream.stream_id} of {stream.worker} at {stream.committed_seq}" for stream in set_back[:3])
        more = f" and {len(set_back) - 3} more" if len(set_back) > 3 else ""
        effects.append(
            WriteLog(
                "error",
                f"the database is older than what it had acknowledged ({some}{more}); "
                "the workers are asked for everything they still have",
            )
        )
        self._reload(s for s in self._streams.values() if s.loaded and s.stream_id not in loaded)
        peers = dict.fromkeys(s.peer for s in self._streams.values() if s.peer is not None)
        effects += [Send(peer, WhichStream()) for peer in peers]

    def _on_committed(self, event: FlushCommitted, now_ms: int, effects: list[Effect]) -> None:
        flush = self._flush
        assert self._operation == "flush"
        assert flush is not None
        assert flush.flush_id == event.flush_id
        self._operation = None
        self._loaded_last = False
        self._flush = None
        self._on_answer(effects)
        self._written += event.written
        self._duplicates += event.duplicates
        self._rejects += event.rejects
        self._recent.append((now_ms, event.written))
        for part in flush.parts:
            stream = self._streams[part.stream_id]
            position = event.positions[part.stream_id]
            assert position >= part.last_seq, "a flush is committed in one piece"
            stream.commit(position)
            if stream.peer is not None:
                effects.append(Send(stream.peer, Committed(stream.stream_id, stream.committed_seq)))
            self._end_if_done(stream, effects)
            self._forget_if_abandoned(stream)
        for stream_id in sorted(self._gaps):  # those turned away while the database did not answer, too
            stream = self._streams[stream_id]
            if stream.refused and stream.pending_bytes < self._credit_bytes:
                self._rewind(stream, now_ms, effects)
        self._count_waiting()

    def _on_failed(self, event: DatabaseFailed, now_ms: int, effects: list[Effect]) -> None:
        assert self._operation is not None
        self._operation = None
        self._retry_ms = min(RETRY_MAX_MS, self._retry_ms * 2 or RETRY_FIRST_MS)
        if event.kind == "fatal":
            self._retry_ms = RETRY_MAX_MS
        self._retry_at = now_ms + self._retry_ms
        if event.error != self._error:
            held = "results wait with their workers; trying again every few seconds"
            effects.append(WriteLog("error" if event.kind == "fatal" else "warning", f"{event.error}; {held}"))
        self._error = event.error or "the database failed"

    def _on_answer(self, effects: list[Effect]) -> None:
        self._retry_at = None
        self._retry_ms = 0
        if self._error:
            self._error = ""
            effects.append(WriteLog("info", f"the database answers again; {self._pending_rows()} rows are waiting"))

    def _stands_still(self, now_ms: int) -> bool:
        """Does the database fail, or leave us waiting?"""
        return bool(self._error) or (self._operation is not None and now_ms - self._asked_ms >= SLOW_MS)

    def _advance(self, now_ms: int, effects: list[Effect]) -> None:
        """Ask for the next database operation, if one is due and none is under way; or finish."""
        if self._reload_wanted and self._operation is None and self._flush is None:
            self._reload_wanted = False
            self._reload(self._streams.values())
        if self._unwelcomed and not self._stands_still(now_ms):
            for stream_id in sorted(self._unwelcomed):
                self._welcome(self._streams[stream_id], effects)
        if self._stop_deadline is not None and (now_ms >= self._stop_deadline or self._is_empty()):
            self._finished = True
            effects.append(Finish(self._pending_rows()))
            return
        if self._operation is not None or (self._retry_at is not None and now_ms < self._retry_at):
            return
        self._asked_ms = now_ms
        if self._flush is not None:
            self._operation = "flush"
            effects.append(CommitFlush(self._flush))
        elif self._unloaded and not (self._loaded_last and self._flush_is_due(now_ms)):
            self._operation = "load"
            effects.append(LoadLedger(sorted(self._unloaded)))
        elif self._flush_is_due(now_ms):
            self._operation = "flush"
            self._flush = self._gather()
            effects.append(CommitFlush(self._flush))
        elif self._error:  # only an answer ends the failure, though whoever waited for it has gone
            self._operation = "load"
            effects.append(LoadLedger([]))

    def _flush_is_due(self, now_ms: int) -> bool:
        if self._oldest_waiting_ms is None:
            return False
        return (
            self._stop_deadline is not None
            or self._waiting_rows >= FLUSH_ROWS
            or self._pressed
            or now_ms >= self._oldest_waiting_ms + FLUSH_MS
        )

    def _gather(self) -> Flush:
        """Batches of all streams in turn, until FLUSH_ROWS or FLUSH_BATCHES are reached."""
        taken: dict[str, list[PendingBatch]] = {}
        rows = batches = 0
        turn = deque(stream for stream in self._streams.values() if stream.waiting)
        while turn and rows < FLUSH_ROWS and batches < FLUSH_BATCHES:
            stream = turn.popleft()
            pending = stream.take()
            taken.setdefault(stream.stream_id, []).append(pending)
            rows += pending.rows
            batches += 1
            if stream.waiting:
                turn.append(stream)
        parts = [
            StreamPart(stream_id, stream.worker, stream.committed_seq, [pending.batch for pending in some])
            for stream_id, some in taken.items()
            for stream in [self._streams[stream_id]]
        ]
        self._flush_id += 1
        self._count_waiting()
        oldest_ms = min(some[0].received_ms for some in taken.values())
        return Flush(self._flush_id, parts, rows, oldest_ms)

    def _count_waiting(self) -> None:
        self._waiting_rows = 0
        self._oldest_waiting_ms = None
        self._pressed = any(s.waiting_bytes * 2 >= self._credit_bytes for s in self._streams.values())
        for stream in self._streams.values():
            for index in range(stream.taken, len(stream.pending)):
                pending = stream.pending[index]
                self._waiting_rows += pending.rows
                if self._oldest_waiting_ms is None or pending.received_ms < self._oldest_waiting_ms:
                    self._oldest_waiting_ms = pending.received_ms

    # ---- housekeeping -----------------------------------------------------------------------------------------------

    def _end_if_done(self, stream: Stream, effects: list[Effect]) -> None:
        if stream.ending and stream.loaded and not stream.pending:
            self._forget(stream)
            effects.append(MarkEnded([stream.stream_id]))

    def _forget_if_abandoned(self, stream: Stream) -> None:
        if stream.abandoned and not stream.pending:
            self._forget(stream)

    def _keep_house(self, now_ms: int) -> None:
        self._housekeeping_at = now_ms + HOUSEKEEPING_MS
        for stream in list(self._streams.values()):
            waits = not stream.loaded and stream.peer is not None  # for its welcome, however long the database is away
            if not stream.pending and not waits and now_ms - stream.heard_ms >= IDLE_MS:
                self._forget(stream)
        for peer in [p for p, asked_ms in self._strangers.items() if now_ms - asked_ms >= STRANGER_MS]:
            del self._strangers[peer]

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.stream_id]
        self._unloaded.discard(stream.stream_id)
        self._gaps.discard(stream.stream_id)
        self._unwelcomed.discard(stream.stream_id)

    def _is_empty(self) -> bool:
        owed = any(stream.owed_rows for stream in self._streams.values())
        return self._flush is None and self._oldest_waiting_ms is None and not self._reload_wanted and not owed

    def _pending_rows(self) -> int:
        owed = sum(stream.owed_rows for stream in self._streams.values())
        return self._waiting_rows + (self._flush.rows if self._flush is not None else 0) + owed

    def _pending_bytes(self) -> int:
        return sum(stream.pending_bytes for stream in self._streams.values())

    def _oldest_ms(self) -> int | None:
        if self._flush is None:
            return self._oldest_waiting_ms
        if self._oldest_waiting_ms is None:
            return self._flush.oldest_ms
        return min(self._flush.oldest_ms, self._oldest_waiting_ms)
