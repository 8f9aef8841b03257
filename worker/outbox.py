"""Results on their way to the writer: gathered into batches, numbered, sent within the writer's credit, kept until
they are acknowledged.

Pure.  The stream of this incarnation begins at seq 1 and has no holes; the writer acknowledges after COMMIT, so what is
kept here is exactly what a crash of the writer or the database can cost, and it is sent again.  What is kept is bounded
by ``KEPT_BYTES_MAX``; then ``full`` is true and the worker starts no polls.

*Marks* tie the progress of the schedule to that of the database: a mark says how far every partition was brought when
batch ``seq`` was sealed, and becomes true of the tables when that batch is acknowledged.

It does not know of sockets or of the schedule.
"""

from collections import deque

import msgspec

from cluster.messages.results import (
    Batch,
    Committed,
    FromWriter,
    MissedRange,
    PollResult,
    Rewind,
    StreamEnd,
    StreamHello,
    StreamWelcome,
    WhichStream,
    encode,
)

SEAL_MS = 100
BATCH_RECORDS_MAX = 400  # about 64 KiB
KEPT_BYTES_MAX = 64 << 20
HELLO_AGAIN_MS = 1_000
SILENCE_MS = 3_000  # unacknowledged for so long: ask where the writer stands, then after twice as long
SILENCE_MAX_MS = 12_000  # each answer makes the worker send again what the writer may have
MARKS_MAX = 16


class Mark(msgspec.Struct, frozen=True):
    session: int  # with ``seq``: what of the coordinator's sequence was applied when the mark was made
    seq: int
    at_ms: int
    oldest_ms: int  # over everything, released partitions included
    lagging: dict[int, int]


class Kept(msgspec.Struct, frozen=True, gc=False):
    seq: int
    body: bytes
    records: int


class Outbox:
    def __init__(self, stream_id: str, worker: str, incarnation: str, now_ms: int) -> None:
        self._hello = StreamHello(stream_id, worker, incarnation, 1)
        self._stream_id = stream_id
        self._results: deque[PollResult] = deque()
        self._missed: deque[MissedRange] = deque()
        self._seal_at_ms: int | None = None
        self._kept: deque[Kept] = deque()
        self._kept_bytes = 0
        self._next_seq = 1
        self._sent_seq = 0
        self._sent_bytes = 0
        self._acked_seq = 0
        self._credit_bytes = 0
        self._welcomed = False
        self._ask_at_ms = now_ms
        self._silence_ms = SILENCE_MS
        self._marks: deque[tuple[int, Mark]] = deque()
        self.committed_mark: Mark | None = None
        self.unacked_records = 0

    @property
    def full(self) -> bool:
        return self._kept_bytes >= KEPT_BYTES_MAX

    @property
    def empty(self) -> bool:
        return not self._kept and not self._results and not self._missed

    def next_timer(self) -> int | None:
        asks = not self._welcomed or self._kept
        times = [t for t in (self._seal_at_ms, self._ask_at_ms if asks else None) if t is not None]
        return min(times, default=None)

    def add(self, results: list[PollResult], missed: list[MissedRange], now_ms: int) -> list[bytes]:
        """Take records; returns what is to be sent now."""
        if not results and not missed:
            return []
        self._results += results
        self._missed += missed
        self.unacked_records += len(results) + len(missed)
        if self._seal_at_ms is None:
            self._seal_at_ms = now_ms + SEAL_MS
        while len(self._results) + len(self._missed) >= BATCH_RECORDS_MAX:
            self._seal(now_ms)
        return self._send(now_ms)

    def handle_timer(self, now_ms: int) -> list[bytes]:
        if self._seal_at_ms is not None and now_ms >= self._seal_at_ms:
            self._seal(now_ms)
        bodies = self._send(now_ms)
        if now_ms >= self._ask_at_ms and (not self._welcomed or self._kept):
            bodies.append(self._say_hello(now_ms))
        return bodies

    def mark(self, mark: Mark, now_ms: int) -> list[bytes]:
        """Everything taken so far brings the partitions to ``mark``; returns what is to be sent now."""
        while self._results or self._missed:
            self._seal(now_ms)
        if self._next_seq - 1 <= self._acked_seq:
            self._marks.clear()
            self.committed_mark = mark
        else:
            if len(self._marks) >= MARKS_MAX:
                self._marks.pop()  # the newest but one: a later mark says more
            self._marks.append((self._next_seq - 1, mark))
        return self._send(now_ms)

    def handle(self, message: FromWriter, now_ms: int) -> list[bytes]:
        match message:
            case WhichStream():
                self._welcomed = False
                return [self._say_hello(now_ms)]
            case StreamWelcome(stream_id, committed_seq, credit_bytes):
                if stream_id != self._stream_id:
                    return []
                if not self._welcomed:
                    self._welcomed = True
                    self._ask_at_ms = now_ms + self._silence_ms
                self._credit_bytes = credit_bytes
                self._acked(committed_seq, now_ms)
                self._rewind(committed_seq + 1)
            case Committed(stream_id, seq):
                if stream_id != self._stream_id:
                    return []
                self._acked(seq, now_ms)
            case Rewind(stream_id, seq):
                if stream_id != self._stream_id:
                    return []
                self._rewind(seq)
        return self._send(now_ms)

    def end(self) -> bytes:
        return encode(StreamEnd(self._stream_id))

    def _say_hello(self, now_ms: int) -> bytes:
        if self._welcomed:
            self._silence_ms = min(SILENCE_MAX_MS, 2 * self._silence_ms)
            self._ask_at_ms = now_ms + self._silence_ms
        else:
            self._ask_at_ms = now_ms + HELLO_AGAIN_MS
        first = self._kept[0].seq if self._kept else self._next_seq
        return encode(msgspec.structs.replace(self._hello, first_seq=first))

    def _seal(self, now_ms: int) -> None:
        results = [self._results.popleft() for _ in range(min(BATCH_RECORDS_MAX, len(self._results)))]
        room = BATCH_RECORDS_MAX - len(results)
        missed = [self._missed.popleft() for _ in range(min(room, len(self._missed)))]
        body = encode(Batch(self._stream_id, self._next_seq, results, missed))
        if not self._kept:
            self._ask_at_ms = now_ms + SILENCE_MS
        self._kept.append(Kept(self._next_seq, body, len(results) + len(missed)))
        self._kept_bytes += len(body)
        self._next_seq += 1
        self._seal_at_ms = now_ms + SEAL_MS if self._results or self._missed else None

    def _send(self, now_ms: int) -> list[bytes]:  # noqa: ARG002 - every step of a core takes the time
        bodies: list[bytes] = []
        if not self._welcomed or not self._kept or self._sent_seq >= self._next_seq - 1:
            return bodies
        first = self._kept[0].seq
        for index in range(max(0, self._sent_seq + 1 - first), len(self._kept)):
            kept = self._kept[index]
            if self._sent_bytes and self._sent_bytes + len(kept.body) > self._credit_bytes:
                break
            self._sent_bytes += len(kept.body)
            self._sent_seq = kept.seq
            bodies.append(kept.body)
        return bodies

    def _acked(self, seq: int, now_ms: int) -> None:
        progress = False
        while self._kept and self._kept[0].seq <= seq:
            kept = self._kept.popleft()
            progress = True
            self._kept_bytes -= len(kept.body)
            self.unacked_records -= kept.records
            if kept.seq <= self._sent_seq:
                self._sent_bytes -= len(kept.body)
        self._acked_seq = max(self._acked_seq, seq)
        self._sent_seq = max(self._sent_seq, seq)
        if progress:
            self._silence_ms = SILENCE_MS
            self._ask_at_ms = now_ms + SILENCE_MS
        while self._marks and self._marks[0][0] <= self._acked_seq:
            self.committed_mark = self._marks.popleft()[1]

    def _rewind(self, seq: int) -> None:
        """Send again from ``seq`` on, or from the oldest batch that is kept."""
        first = self._kept[0].seq if self._kept else self._next_seq
        self._sent_seq = max(seq, first) - 1
        self._sent_bytes = sum(len(kept.body) for kept in self._kept if kept.seq <= self._sent_seq)
