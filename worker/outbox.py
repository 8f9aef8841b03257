"""Results on their way into the database: sealed into batches, written to the WAL, sent, acknowledged.

Pure; what it wants done is in ``effects``.  Records are sealed into a batch after SEAL_MS or at BATCH_RECORDS_MAX, the
batch goes to the WAL, and only when it is there, to the writer.  The writer acknowledges after COMMIT.

Streams (see ``outgoing``): the *live* one takes what is new.  When much has piled up in it, after an outage, it is
*parked* and a new one is opened, so that new results don't wait for the old ones.  *Adopted* ones are what dead
workers left in the WAL.  Parked and adopted streams are the *backlog*, delivered BACKLOG_ACTIVE_MAX at a time.  A
stream that is delivered stays known while its WAL is kept, and the writer is asked now and then where it stands: a
database that was set back gets it again.  It is over (``ForgetStream``) when nothing of it is left: not in the WAL, and
not on its way there.

*Marks* tie the progress of the schedule to that of the database: a mark says how far every partition was brought when
a batch was sealed, and becomes true of the tables when that batch, and everything older of this incarnation, is
acknowledged.

While the WAL can't take more, ``full`` is true and the worker starts no polls.  What is sealed waits in memory; it is
bounded by the polls in flight and by UNWRITTEN_BYTES_MAX.
"""

from collections import deque
from collections.abc import Iterable

import msgspec

from cluster.messages.results import (
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
from cluster.wal.format import Entry
from worker.events import (
    AcknowledgeWal,
    AdoptedStream,
    ForgetStream,
    OpenStream,
    ReadWal,
    TellWriter,
    WalEffect,
    WriteWal,
)
from worker.outgoing import READ_BYTES, WINDOW_BYTES, OutgoingStream

SEAL_MS = 40  # with a turn of the loop, in the WAL within 50 ms
BATCH_RECORDS_MAX = 400  # about 64 KiB
UNWRITTEN_BYTES_MAX = 4 << 20  # sealed and not in the WAL: then polling is held back
WRITE_AGAIN_MS = 1_000
PARK_BYTES = 2 * WINDOW_BYTES  # not acknowledged: new results get a stream of their own
BACKLOG_ACTIVE_MAX = 4
ASK_AGAIN_MS = 30_000  # whether the database still has the streams that were delivered
MARKS_MAX = 16


class Mark(msgspec.Struct, frozen=True):
    session: int  # with ``seq``: what of the coordinator's sequence was applied when the mark was made
    seq: int
    at_ms: int
    oldest_ms: int  # over everything, released partitions included
    lagging: dict[int, int]


def earliest(*instants: int | None) -> int | None:
    """The first of those there are."""
    first = None
    for instant in instants:
        if instant is not None and (first is None or instant < first):
            first = instant
    return first


class Outbox:
    def __init__(self, stream_id: str, worker: str, incarnation: str, now_ms: int) -> None:
        self._worker = worker
        self._incarnation = incarnation
        self.live = self._open(stream_id, now_ms)
        self._own: deque[OutgoingStream] = deque([self.live])  # of this incarnation, until all is acknowledged
        self._backlog: dict[str, OutgoingStream] = {}  # the first BACKLOG_ACTIVE_MAX are being delivered
        self._delivered: dict[str, OutgoingStream] = {}
        self._ask_again_at_ms = now_ms + ASK_AGAIN_MS
        self._opening = False
        self._results: deque[PollResult] = deque()
        self._missed: deque[MissedRange] = deque()
        self._seal_at_ms: int | None = None
        self._write_again_at_ms: int | None = None
        self._marks: deque[tuple[OutgoingStream, int, Mark]] = deque()
        self.committed_mark: Mark | None = None
        self.no_room = False  # the WAL's limits are reached
        self.delivering = False  # something was acknowledged since whoever looks at it has reset it
        self.effects: list[TellWriter | WalEffect] = []

    # ---- what others may look at ----------------------------------------------------------------------------------

    @property
    def failing(self) -> bool:
        """The last attempt to write the WAL failed."""
        return self._write_again_at_ms is not None

    @property
    def full(self) -> bool:
        if self.no_room or self.failing:
            return True
        unwritten_bytes = 0
        for stream in self._own:
            unwritten_bytes += stream.sealed_bytes
        return unwritten_bytes >= UNWRITTEN_BYTES_MAX

    @property
    def empty(self) -> bool:
        """Everything taken, and everything adopted, is acknowledged."""
        return not self._results and not self._missed and self.live.drained and not self._backlog

    @property
    def unwritten_records(self) -> int:
        return len(self._results) + len(self._missed) + sum(stream.sealed_records for stream in self._own)

    @property
    def unacked_records(self) -> int:
        return self.unwritten_records + sum(stream.unacked_records for stream in self._streams())

    @property
    def unacked_bytes(self) -> int:
        return sum(stream.unacked_bytes for stream in self._streams())

    def next_timer(self) -> int | None:
        due = earliest(
            self._seal_at_ms,
            self._write_again_at_ms,
            self.live.next_timer(),
            self._ask_again_at_ms if self._delivered else None,
        )
        return earliest(due, *(stream.next_timer() for stream in self._active())) if self._backlog else due

    # ---- records --------------------------------------------------------------------------------------------------

    def add(self, results: list[PollResult], missed: list[MissedRange], now_ms: int) -> None:
        if not results and not missed:
            return
        self._results += results
        self._missed += missed
        if self._seal_at_ms is None:
            self._seal_at_ms = now_ms + SEAL_MS
        sealed: list[Entry] = []
        while len(self._results) + len(self._missed) >= BATCH_RECORDS_MAX:
            sealed.append(self._seal(now_ms))
        self._write(sealed)

    def seal(self, now_ms: int) -> None:
        """Everything taken so far goes to the WAL now."""
        sealed: list[Entry] = []
        while self._results or self._missed:
            sealed.append(self._seal(now_ms))
        self._write(sealed)

    def mark(self, mark: Mark, now_ms: int) -> None:
        """Everything taken so far brings the partitions to ``mark``."""
        self.seal(now_ms)
        if len(self._marks) >= MARKS_MAX:
            self._marks.pop()  # the newest but one: a later mark says more
        self._marks.append((self.live, self.live.sealed_seq, mark))
        self._settle_marks()

    def handle_timer(self, now_ms: int) -> None:
        if self._seal_at_ms is not None and now_ms >= self._seal_at_ms:
            self.seal(now_ms)
        if self._write_again_at_ms is not None and now_ms >= self._write_again_at_ms:
            self._write_again_at_ms = now_ms + WRITE_AGAIN_MS
            self._write_everything()
        for stream in self._active():
            ask_at_ms = stream.next_timer()
            if ask_at_ms is not None and now_ms >= ask_at_ms:
                self.effects.append(TellWriter(stream.say_hello(now_ms)))
        if now_ms >= self._ask_again_at_ms:
            self._ask_again_at_ms = now_ms + ASK_AGAIN_MS
            self._introduce(self._delivered.values(), now_ms)

    # ---- the WAL --------------------------------------------------------------------------------------------------

    def written(self, stream_id: str, seq: int, now_ms: int) -> None:
        stream = self._find(stream_id)
        if stream is None:
            return  # written twice after a failure, and done with since
        stream.written(seq, now_ms)
        if self.failing:
            self._write_again_at_ms = None
            self._write_everything()
        if stream in self._active():
            self._send(stream)

    def write_failed(self, now_ms: int) -> None:
        self._write_again_at_ms = now_ms + WRITE_AGAIN_MS

    def take_read(self, stream_id: str, entries: list[Entry]) -> None:
        stream = self._find(stream_id)
        if stream is not None:
            stream.take_read(entries)
            self._send(stream, ask=bool(entries))  # what could not be read is asked for again when the writer speaks

    def give_up(self, stream_id: str, first_seq: int, ranges: list[MissedRange], now_ms: int) -> None:
        """For want of room the stream's WAL begins at ``first_seq`` now.

        ``ranges`` go to the WAL for what was in it; of the rest, the next mark has to know.
        """
        self.add([], ranges, now_ms)
        self.seal(now_ms)
        self._marks.clear()  # they speak for what was given up
        self.trim(stream_id, first_seq)

    def trim(self, stream_id: str, first_seq: int) -> None:
        """The stream's WAL begins at ``first_seq``; without anything left, it is forgotten."""
        stream = self._find(stream_id)
        if stream is None:
            return
        stream.trim(first_seq)
        self._after_acknowledgement(stream)

    def adopt(self, streams: list[AdoptedStream], now_ms: int) -> None:
        for each in streams:
            hello = StreamHello(
                each.stream_id, each.worker, self._incarnation, each.first_seq, each.acked_seq, self._worker
            )
            self._backlog[each.stream_id] = OutgoingStream(hello, now_ms, adopted=each)

    def opened(self, stream_id: str, now_ms: int) -> None:
        """A further stream: what is new goes there, and the one so far becomes backlog."""
        self._opening = False
        parked = self.live
        self._backlog = {parked.stream_id: parked, **self._backlog}  # first: its marks wait for it
        self.live = self._open(stream_id, now_ms)
        self._own.append(self.live)
        self._after_acknowledgement(parked)  # everything may be acknowledged by now

    # ---- the writer -----------------------------------------------------------------------------------------------

    def handle(self, message: FromWriter, now_ms: int) -> None:
        if isinstance(message, WhichStream):
            self._introduce([*self._active(), *self._delivered.values()], now_ms)
        elif (found := self._find(message.stream_id)) is not None:
            self._handle_of(found, message, now_ms)

    def _handle_of(self, stream: OutgoingStream, message: StreamWelcome | Committed | Rewind, now_ms: int) -> None:
        acked_seq = stream.acked_seq
        match message:
            case StreamWelcome(_, committed_seq, credit_bytes):
                stream.welcome(committed_seq, credit_bytes, now_ms)
            case Committed(_, seq):
                stream.acknowledge(seq, now_ms)
            case Rewind(_, seq):
                if seq < stream.first_seq:  # the writer has to be told that this is gone
                    stream.forget_writer()
                    self.effects.append(TellWriter(stream.say_hello(now_ms)))
                else:
                    stream.rewind(seq)
        if stream.acked_seq != acked_seq:
            self.delivering = self.delivering or stream.acked_seq > acked_seq
            self.effects.append(AcknowledgeWal(stream.stream_id, stream.acked_seq))
        self._after_acknowledgement(stream)
        self._send(stream)

    def end(self) -> None:
        """Nothing follows in the live stream."""
        self.effects.append(TellWriter(encode(StreamEnd(self.live.stream_id))))

    def _after_acknowledgement(self, stream: OutgoingStream) -> None:
        stream_id = stream.stream_id
        if stream is self.live:
            self._park_if_behind()
        elif stream.drained:
            if not stream.ended:
                stream.ended = True
                self.effects.append(TellWriter(encode(StreamEnd(stream_id))))
            if self._backlog.pop(stream_id, None) is not None:
                self._delivered[stream_id] = stream
            if stream.first_seq > stream.appended_seq and self._delivered.pop(stream_id, None) is not None:
                self.effects.append(AcknowledgeWal(stream_id, stream.acked_seq))  # also what was given up
                self.effects.append(ForgetStream(stream_id))
        elif self._delivered.pop(stream_id, None) is not None:  # a database that was set back wants it again
            self._backlog[stream_id] = stream
        self._settle_marks()

    def _park_if_behind(self) -> None:
        parked = len(self._own) > 1
        if self.live.unacked_bytes > PARK_BYTES and not parked and not self._opening:
            self._opening = True
            self.effects.append(OpenStream())

    def _introduce(self, streams: Iterable[OutgoingStream], now_ms: int) -> None:
        for stream in streams:
            stream.forget_writer()
            self.effects.append(TellWriter(stream.say_hello(now_ms)))

    # ---- within ---------------------------------------------------------------------------------------------------

    def _open(self, stream_id: str, now_ms: int) -> OutgoingStream:
        return OutgoingStream(StreamHello(stream_id, self._worker, self._incarnation, 1), now_ms)

    def _streams(self) -> list[OutgoingStream]:
        """What is not delivered."""
        return [self.live, *self._backlog.values()]

    def _active(self) -> list[OutgoingStream]:
        """What is being delivered now."""
        return self._streams()[: 1 + BACKLOG_ACTIVE_MAX] if self._backlog else [self.live]

    def _find(self, stream_id: str) -> OutgoingStream | None:
        if stream_id == self.live.stream_id:
            return self.live
        return self._backlog.get(stream_id) or self._delivered.get(stream_id)

    def _seal(self, now_ms: int) -> Entry:
        results = [self._results.popleft() for _ in range(min(BATCH_RECORDS_MAX, len(self._results)))]
        room = BATCH_RECORDS_MAX - len(results)
        missed = [self._missed.popleft() for _ in range(min(room, len(self._missed)))]
        self._seal_at_ms = now_ms + SEAL_MS if self._results or self._missed else None
        return self.live.seal(results, missed)

    def _write(self, sealed: list[Entry]) -> None:
        if sealed and not self.failing:
            self.effects.append(WriteWal(self.live.stream_id, sealed))

    def _write_everything(self) -> None:
        """After a failure: all that is not known to be in the WAL."""
        for stream in self._own:
            if stream.sealed:
                self.effects.append(WriteWal(stream.stream_id, list(stream.sealed)))

    def _send(self, stream: OutgoingStream, *, ask: bool = True) -> None:
        self.effects += [TellWriter(body) for body in stream.send()]
        from_seq = stream.wants_read if ask else None
        if from_seq is not None:
            stream.reading = True
            self.effects.append(ReadWal(stream.stream_id, from_seq, READ_BYTES))

    def _settle_marks(self) -> None:
        while len(self._own) > 1 and self._own[0].drained:
            self._own.popleft()
        while self._marks:
            stream, seq, mark = self._marks[0]
            if stream in self._own and (stream is not self._own[0] or stream.acked_seq < seq):
                return
            self.committed_mark = mark
            self._marks.popleft()

    def check(self) -> None:
        """Invariants, for tests and simulation."""
        for stream in [*self._streams(), *self._delivered.values()]:
            stream.check()
        assert self.live.stream_id not in self._backlog
        assert not self._backlog.keys() & self._delivered.keys()
        assert (self._seal_at_ms is None) == (not self._results and not self._missed)
