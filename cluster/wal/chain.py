"""The segments of one stream, in order, and how far the stream has come: what its appender and its readers share.

Whoever changes the structure holds ``lock``, and nobody holds it while reading from a disk or waiting for an fsync.
The list of segments is replaced, never changed, so that it can be looked at without the lock.

Segments are in the order of their first seq, then of their making.  Each counts up to where the next one begins.
"""

import bisect
import logging
import threading
from pathlib import Path

import msgspec

from cluster.wal.errors import WalError
from cluster.wal.reader import DamageLedger, Extent
from cluster.wal.segment import Segment

_OVERLAPPING = 2  # earlier segments that are looked through for what one should have

logger = logging.getLogger("cluster.wal")


class StreamState(msgspec.Struct, kw_only=True):
    """What was found of a stream; of a new one: nothing."""

    segments: list[Segment] = []
    last_seq: int = 0
    records_total: int = 0
    bytes_total: int = 0
    acked_seq: int = 0  # as far as it was noted, at ``acked_at_s`` at the latest
    acked_at_s: float = 0.0


class SegmentChain:
    def __init__(self, path: Path, state: StreamState, ledger: DamageLedger) -> None:
        self.path = path
        self.ledger = ledger
        self.lock = threading.Lock()
        self.segments = state.segments
        self.last_seq = state.last_seq
        self.records_total = state.records_total
        self.bytes_total = state.bytes_total
        self.bytes_on_disk = sum(segment.size_bytes for segment in state.segments)
        self.closed = False

    @property
    def first_seq(self) -> int:
        """The oldest batch on disk; the next one when there is none."""
        segments = self.segments
        return segments[0].first_seq if segments else self.last_seq + 1

    def check_open(self) -> None:
        if self.closed:
            raise WalError(f"the WAL in {self.path} is closed")

    # ---- with the lock --------------------------------------------------------------------------------------------

    def insert(self, segment: Segment) -> None:
        self.segments = sorted([*self.segments, segment], key=lambda each: (each.first_seq, each.generation))
        self.bytes_on_disk += segment.size_bytes

    def take_out(self, segment: Segment) -> None:
        assert segment in self.segments
        self.segments = [each for each in self.segments if each is not segment]
        self.bytes_on_disk -= segment.size_bytes

    def resize(self, segment: Segment, size_bytes: int) -> None:
        self.bytes_on_disk += size_bytes - segment.size_bytes
        segment.size_bytes = size_bytes

    def lose(self, segment: Segment) -> None:
        """Somebody removed its file: it stays in its place, and its batches are holes."""
        segment.lost = True
        self.resize(segment, 0)
        if self.ledger.is_new(segment, 0):
            index = self.segments.index(segment)
            logger.warning(
                "damage in the WAL: %s is gone; batches %d to %d are lost",
                segment.path, segment.first_seq, self.last_seq_of(index),
            )  # fmt: skip

    def index_of(self, seq: int) -> int:
        """Of the segment that counts for a seq, -1 before the first."""
        return bisect.bisect_right(self.segments, seq, key=lambda each: each.first_seq) - 1

    def last_seq_of(self, index: int) -> int:
        """Up to where a segment counts; before its first seq when a later one has everything."""
        following = index + 1
        return self.segments[following].first_seq - 1 if following < len(self.segments) else self.last_seq

    def extent(self, seq: int) -> Extent | None:
        """Where a seq is to be found; None before the first segment."""
        index = self.index_of(seq)
        if index < 0:
            return None
        segment = self.segments[index]
        following = self.segments[index + 1] if index + 1 < len(self.segments) else None
        return Extent(
            segment=segment,
            first_seq=segment.first_seq,
            last_seq=self.last_seq_of(index),
            end=segment.end,
            records_before=segment.records_before,
            bytes_before=segment.bytes_before,
            records_after=following.records_before if following else self.records_total,
            bytes_after=following.bytes_before if following else self.bytes_total,
            earlier=[each for each in self.segments[max(0, index - _OVERLAPPING) : index] if not each.lost],
        )

    # ---- without the lock -----------------------------------------------------------------------------------------

    def delete(self, segment: Segment) -> int:
        """Bytes freed, 0 when it couldn't be deleted or was no longer there."""
        with self.lock:
            if segment not in self.segments:
                return 0
            self.take_out(segment)
            size_bytes = segment.size_bytes
        try:
            self.ledger.remove(segment)
        except OSError as error:
            if not segment.stuck:
                logger.warning(
                    "cannot delete the WAL segment %s: %s; check its permissions", segment.path, error.strerror
                )
            segment.stuck = True
            with self.lock:
                self.insert(segment)
            return 0
        with self.lock:
            segment.close()
        return size_bytes
