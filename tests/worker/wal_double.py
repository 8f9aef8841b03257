"""A worker's WAL in memory, and the records that go into it: for tests of the outbox and of the worker's core.

``DiskDouble`` answers the WAL effects as the real one does: what is there already is passed over, nothing is written
past a hole, a read is contiguous and holds at least one batch.  ``failing`` and ``unreadable`` are its troubles.
"""

from cluster.messages.results import MissedRange, PollResult
from worker.events import (
    AcknowledgeWal,
    AdoptedStream,
    ForgetStream,
    OpenStream,
    ReadWal,
    StreamOpened,
    WalRead,
    WalWriteFailed,
    WalWritten,
    WriteWal,
)

CREDIT = 1 << 20


def result(number, *, scheduled_at_ms=1_000, trigger="tick", text=None, epoch=1):
    return PollResult(
        number, scheduled_at_ms, scheduled_at_ms * 1_000, trigger, "success", 200, 1.0, None, text, None, None, None,
        None, None, 0, None, None, epoch,
    )  # fmt: skip


def results(count, first=1, *, text=None):
    return [result(number, text=text) for number in range(first, first + count)]


def missed(number, reason="overload"):
    return MissedRange(number, 1_000, 1_000, 1_000, reason, 1)


class DiskDouble:
    def __init__(self):
        self.streams = {}  # stream_id -> {seq: Entry}
        self.last = {}  # stream_id -> the newest seq it ever had
        self.acked = {}  # stream_id -> seq, as the outbox said
        self.forgotten = set()
        self.failing = False
        self.unreadable = False
        self.opened = 0

    def perform(self, effect):
        """The event that answers an effect, None for one that has no answer."""
        match effect:
            case WriteWal(stream_id, entries):
                assert stream_id not in self.forgotten, "written to after it was over"
                last = self.last.get(stream_id, 0)
                fresh = [entry for entry in entries if entry.seq > last]
                if self.failing or (fresh and fresh[0].seq != last + 1):
                    return WalWriteFailed()
                self.streams.setdefault(stream_id, {}).update({entry.seq: entry for entry in fresh})
                self.last[stream_id] = max(last, entries[-1].seq)
                return WalWritten(stream_id, entries[-1].seq)
            case ReadWal(stream_id, from_seq, bytes_max):
                return WalRead(stream_id, [] if self.unreadable else self.read(stream_id, from_seq, bytes_max))
            case AcknowledgeWal(stream_id, seq):
                self.acked[stream_id] = seq
                return None
            case ForgetStream(stream_id):
                assert not self.streams.get(stream_id), "there is something in it"
                assert self.acked.get(stream_id, 0) >= self.last.get(stream_id, 0), "not all is acknowledged"
                self.forgotten.add(stream_id)
                return None
            case OpenStream():
                return StreamOpened(self.new_stream_id())
        raise AssertionError(effect)

    def new_stream_id(self):
        """``s1`` is the one a worker begins with."""
        self.opened += 1
        return f"s{self.opened + 1}"

    def read(self, stream_id, from_seq, bytes_max):
        log = self.streams[stream_id]
        found = []
        size = 0
        while from_seq in log and (not found or size + len(log[from_seq].body) <= bytes_max):
            found.append(log[from_seq])
            size += len(log[from_seq].body)
            from_seq += 1
        return found

    def drop(self, stream_id, first_seq):
        """The batches before ``first_seq`` are given up; returns them."""
        log = self.streams[stream_id]
        return [log.pop(seq) for seq in sorted(log) if seq < first_seq]

    def adopted(self, stream_id, *, worker="worker-1", first_seq=None, acked_seq=0):
        """What an orphan's finder says of it."""
        log = self.streams[stream_id]
        last = log[max(log)]
        totals = last.records_before + last.records, last.bytes_before + len(last.body)
        oldest = next((log[seq] for seq in sorted(log) if seq > acked_seq), None)
        acked = (oldest.records_before, oldest.bytes_before) if oldest else totals
        return AdoptedStream(stream_id, worker, first_seq or min(log), last.seq, acked_seq, *totals, *acked)


def hand_over(event, box, now):
    """What the WAL answered, to an outbox."""
    match event:
        case WalWritten(stream_id, seq):
            box.written(stream_id, seq, now)
        case WalWriteFailed():
            box.write_failed(now)
        case WalRead(stream_id, entries):
            box.take_read(stream_id, entries)
        case StreamOpened(stream_id):
            box.opened(stream_id, now)
