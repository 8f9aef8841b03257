"""One stream on its way to the writer: what of it is sealed, in the WAL, sent, acknowledged.

Pure.  ``acked_seq <= sent_seq <= appended_seq <= sealed_seq``: a batch is sealed, then written to the WAL, and only
when it is there (``appended_seq``) may it be sent.  The *window* is what of the WAL is also in memory: contiguous, from
the oldest batch that is not acknowledged on, and bounded by WINDOW_BYTES, so an outage of any length costs the same
memory.  What lies behind it is read from the WAL when it is wanted (``wants_read``).  The writer's credit bounds what
is sent and not acknowledged.

An acknowledgement can be taken back: a database that was set back has the results only if they are sent again.

It knows nothing of other streams, of batches' content or of files.
"""

from collections import deque

import msgspec

from cluster.messages.results import Batch, MissedRange, PollResult, StreamHello, encode
from cluster.wal.format import Entry
from worker.events import AdoptedStream

WINDOW_BYTES = 1 << 20
READ_BYTES = 512 << 10  # at a time
HELLO_AGAIN_MS = 1_000
SILENCE_MS = 3_000  # unacknowledged for so long: ask where the writer stands, then after twice as long
SILENCE_MAX_MS = 12_000  # each answer makes the worker send again what the writer may have


class OutgoingStream:
    def __init__(self, hello: StreamHello, now_ms: int, *, adopted: AdoptedStream | None = None) -> None:
        self._hello = hello
        self.stream_id = hello.stream_id
        self.first_seq = hello.first_seq  # the oldest in the WAL
        self.appended_seq = hello.first_seq - 1
        self.appended_records = self._acked_records = 0
        self.appended_bytes = self._acked_bytes = 0
        if adopted is not None:
            self.appended_seq = max(adopted.last_seq, self.appended_seq)
            self.appended_records, self._acked_records = adopted.records, adopted.records_acked
            self.appended_bytes, self._acked_bytes = adopted.size_bytes, adopted.bytes_acked
        self.acked_seq = self.sent_seq = hello.first_seq - 1
        self._confirmed_seq = hello.acked_seq  # by the writer; what was given up counts as acknowledged, too
        self.ended = False  # StreamEnd was said: all is acknowledged and nothing follows
        self.sealed: deque[Entry] = deque()  # on their way to the WAL
        self.sealed_bytes = 0
        self.reading = False
        self._window: deque[Entry] = deque()
        self._window_bytes = 0
        self._in_flight_bytes = 0
        self._credit_bytes = 0
        self._welcomed = False
        self._ask_at_ms = now_ms
        self._silence_ms = SILENCE_MS

    def __repr__(self) -> str:
        return (
            f"OutgoingStream({self.stream_id}, in the WAL {self.first_seq}-{self.appended_seq}, sent {self.sent_seq}, "
            f"acknowledged {self.acked_seq}, {len(self._window)} in memory)"
        )

    @property
    def drained(self) -> bool:
        """Everything is acknowledged."""
        return not self.sealed and self.acked_seq >= self.appended_seq

    @property
    def sealed_seq(self) -> int:
        return self.sealed[-1].seq if self.sealed else self.appended_seq

    @property
    def sealed_records(self) -> int:
        return sum(entry.records for entry in self.sealed)

    @property
    def unacked_records(self) -> int:
        """In the WAL and not acknowledged."""
        return 0 if self.acked_seq >= self.appended_seq else self.appended_records - self._acked_records

    @property
    def unacked_bytes(self) -> int:
        return 0 if self.acked_seq >= self.appended_seq else self.appended_bytes - self._acked_bytes

    def next_timer(self) -> int | None:
        return self._ask_at_ms if not self._welcomed or self.acked_seq < self.appended_seq else None

    # ---- the WAL --------------------------------------------------------------------------------------------------

    def seal(self, results: list[PollResult], missed: list[MissedRange]) -> Entry:
        """The next batch."""
        if self.sealed:
            last = self.sealed[-1]
            records_before, bytes_before = last.records_before + last.records, last.bytes_before + len(last.body)
        else:
            records_before, bytes_before = self.appended_records, self.appended_bytes
        seq = self.sealed_seq + 1
        body = encode(Batch(self.stream_id, seq, results, missed))
        entry = Entry(seq, body, len(results) + len(missed), records_before, bytes_before)
        self.sealed.append(entry)
        self.sealed_bytes += len(body)
        return entry

    def written(self, seq: int, now_ms: int) -> None:
        """What was sealed is in the WAL, up to ``seq``."""
        while self.sealed and self.sealed[0].seq <= seq:
            entry = self.sealed.popleft()
            self.sealed_bytes -= len(entry.body)
            if self._welcomed and self.acked_seq >= self.appended_seq:
                self._ask_at_ms = now_ms + SILENCE_MS
            if self._window_end() == entry.seq - 1 and self._window_bytes < WINDOW_BYTES:
                self._push(entry)
            self.appended_seq = entry.seq
            self.appended_records = entry.records_before + entry.records
            self.appended_bytes = entry.bytes_before + len(entry.body)
        if self.acked_seq < self.first_seq - 1:  # given up before it was known to be written
            self._acked(min(self.first_seq - 1, self.appended_seq))

    @property
    def wants_read(self) -> int | None:
        """From where the WAL is to be read now; None: nothing is wanted."""
        behind = self._window_end() < self.appended_seq
        wanted = self._welcomed and not self.reading and behind and self._window_bytes < WINDOW_BYTES
        return self._window_end() + 1 if wanted else None

    def take_read(self, entries: list[Entry]) -> None:
        """What the WAL had from the place asked for; of no use any more when the stream was rewound meanwhile."""
        self.reading = False
        for entry in entries:
            if entry.seq > self.appended_seq:
                break  # written, but not known to be as safe as the fsync policy wants it
            if entry.seq == self._window_end() + 1:
                self._push(entry)
            if entry.seq == self.acked_seq + 1:
                self._acked_records, self._acked_bytes = entry.records_before, entry.bytes_before

    def trim(self, first_seq: int) -> None:
        """The WAL begins at ``first_seq`` now."""
        if first_seq <= self.first_seq:
            return
        self.first_seq = first_seq
        if self.acked_seq < first_seq - 1:  # given up unacknowledged: the writer has to be told
            self._welcomed = False
            self._ask_at_ms = 0
            self._acked(min(first_seq - 1, self.appended_seq))  # what is not known to be written yet goes on from there

    # ---- the writer -----------------------------------------------------------------------------------------------

    def say_hello(self, now_ms: int) -> bytes:
        if self._welcomed:
            self._silence_ms = min(SILENCE_MAX_MS, 2 * self._silence_ms)
            self._ask_at_ms = now_ms + self._silence_ms
        else:
            self._ask_at_ms = now_ms + HELLO_AGAIN_MS
        hello = self._hello
        first = self.first_seq if self.first_seq <= self.appended_seq else self.appended_seq + 1
        return encode(msgspec.structs.replace(hello, first_seq=first, acked_seq=self._confirmed_seq))

    def forget_writer(self) -> None:
        """There is a new writer, or a new connection: nothing is sent until it has welcomed the stream."""
        self._welcomed = False

    def welcome(self, committed_seq: int, credit_bytes: int, now_ms: int) -> None:
        if not self._welcomed:
            self._welcomed = True
            self._ask_at_ms = now_ms + self._silence_ms
        self._credit_bytes = credit_bytes
        self.ended = False
        if committed_seq >= self.first_seq:
            self._confirmed_seq = min(committed_seq, self.appended_seq)
        else:  # it may just say what we no longer have
            self._confirmed_seq = min(committed_seq, self._confirmed_seq)
        if committed_seq > self.acked_seq:
            self.acknowledge(committed_seq, now_ms)
        self.rewind(committed_seq + 1)

    def acknowledge(self, seq: int, now_ms: int) -> None:
        seq = min(seq, self.appended_seq)
        self._confirmed_seq = max(self._confirmed_seq, seq)
        if seq > self.acked_seq:
            self._acked(seq)
            self._silence_ms = SILENCE_MS
            if self._welcomed:
                self._ask_at_ms = now_ms + SILENCE_MS

    def rewind(self, seq: int) -> None:
        """Send again from ``seq`` on, or from the oldest there is.  What was acknowledged of it is taken back."""
        seq = min(max(seq, self.first_seq), self.appended_seq + 1)
        if seq <= self.acked_seq:
            self.acked_seq = self._confirmed_seq = seq - 1
            self._clear()
        if self._window and seq < self._window[0].seq:
            self._clear()
        self.sent_seq = seq - 1
        if not self._window or self._window_end() < self.sent_seq:
            self._clear()
        self._in_flight_bytes = sum(len(entry.body) for entry in self._window if entry.seq <= self.sent_seq)

    def send(self) -> list[bytes]:
        """The batches that may go out now."""
        bodies: list[bytes] = []
        if not self._welcomed or not self._window:
            return bodies
        first = self._window[0].seq
        for index in range(self.sent_seq + 1 - first, len(self._window)):
            entry = self._window[index]
            if self._in_flight_bytes and self._in_flight_bytes + len(entry.body) > self._credit_bytes:
                break
            self._in_flight_bytes += len(entry.body)
            self.sent_seq = entry.seq
            bodies.append(entry.body or encode(Batch(self.stream_id, entry.seq, [], [])))  # a hole, so that seq goes on
        return bodies

    def _acked(self, seq: int) -> None:
        self.acked_seq = seq
        while self._window and self._window[0].seq <= seq:
            entry = self._window.popleft()
            self._window_bytes -= len(entry.body)
            if entry.seq <= self.sent_seq:
                self._in_flight_bytes -= len(entry.body)
            self._acked_records = entry.records_before + entry.records
            self._acked_bytes = entry.bytes_before + len(entry.body)
        if seq >= self.appended_seq:
            self._acked_records, self._acked_bytes = self.appended_records, self.appended_bytes
        self.sent_seq = max(self.sent_seq, seq)

    def _window_end(self) -> int:
        """The last batch in memory; without any: the one before the next to be sent."""
        return self._window[-1].seq if self._window else self.sent_seq

    def _push(self, entry: Entry) -> None:
        self._window.append(entry)
        self._window_bytes += len(entry.body)

    def _clear(self) -> None:
        self._window.clear()
        self._window_bytes = self._in_flight_bytes = 0

    def check(self) -> None:
        """Invariants, for tests and simulation."""
        begin = min(self.first_seq - 1, self.appended_seq)
        assert begin <= self.acked_seq <= self.sent_seq <= self.appended_seq, self
        sealed = [entry.seq for entry in self.sealed]
        assert sealed == list(range(self.appended_seq + 1, self.appended_seq + 1 + len(sealed))), self
        assert self.sealed_bytes == sum(len(entry.body) for entry in self.sealed), self
        seqs = [entry.seq for entry in self._window]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs))) if seqs else True, self
        assert not seqs or seqs[0] == self.acked_seq + 1 or seqs[0] <= self.sent_seq + 1, self
        assert not seqs or (seqs[0] > self.acked_seq and seqs[-1] <= self.appended_seq), self
        assert self._window_bytes == sum(len(entry.body) for entry in self._window), self
        assert self._in_flight_bytes == sum(len(e.body) for e in self._window if e.seq <= self.sent_seq), self
