"""Appends to a stream: all of it or nothing.

What a failed write left in the file lies behind the segment's end: it is cut off, or the segment is sealed.  A new
segment that could not be written to is gone.

It remembers which segments are not safe yet; making them so is the syncer's work.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Sequence

from cluster.wal.chain import SegmentChain
from cluster.wal.errors import WalError
from cluster.wal.format import BODY_BYTES_MAX, Entry, encode_entry_header
from cluster.wal.segment import Segment, create_segment, remove_file, write_at

UNSYNCED_FILES_MAX = 4  # kept open after they were sealed; more are opened again to be synced

logger = logging.getLogger("cluster.wal")


class Appender:
    def __init__(self, chain: SegmentChain, *, stream_key: bytes, worker: str, segment_bytes: int) -> None:
        self.active: Segment | None = None  # that is appended to
        self.unsynced: list[Segment] = chain.segments[-2:]  # whoever wrote them may have died before they were safe
        self._chain = chain
        self._key = stream_key
        self._worker = worker
        self.segment_bytes = segment_bytes

    def append(self, entries: Sequence[Entry]) -> None:
        chain = self._chain
        with chain.lock:
            chain.check_open()
            if entries and entries[0].seq <= chain.last_seq:
                entries = [entry for entry in entries if entry.seq > chain.last_seq]
            if not entries:
                return
            buffers = _encode(entries, chain.last_seq)
            segment = self.active
            if segment is not None and segment.end + sum(map(len, buffers)) <= self.segment_bytes:
                self._write(segment, buffers)
            else:
                former, segment = segment, self.create(entries[0].seq, chain.records_total, chain.bytes_total, buffers)
                self.active = segment
                if former is not None and former not in self.unsynced:  # nobody needs its descriptor any more
                    former.close()
            segment.acked_at_s = None
            last = entries[-1]
            chain.last_seq = last.seq
            chain.records_total = last.records_before + last.records
            chain.bytes_total = last.bytes_before + len(last.body)

    # ---- with the lock --------------------------------------------------------------------------------------------

    def seal(self, segment: Segment) -> None:
        """Nothing more is appended to it."""
        if self.active is segment:
            self.active = None

    def create(self, first_seq: int, records_before: int, bytes_before: int, buffers: Sequence[bytes]) -> Segment:
        """A new segment with entries in it.  Raises WalError; then there is none."""
        chain = self._chain
        generations = [each.generation + 1 for each in chain.segments if each.first_seq == first_seq]
        try:
            segment = create_segment(
                chain.path,
                first_seq,
                max(generations, default=0),
                records_before=records_before,
                bytes_before=bytes_before,
                now_ms=time.time_ns() // 1_000_000,
            )
        except OSError as error:
            raise WalError.of(error, "create a segment in", chain.path) from error
        assert segment.fd is not None
        try:
            segment.end = write_at(segment.fd, [segment.header(self._key, self._worker), *buffers], 0)
        except OSError as error:
            segment.close()
            with contextlib.suppress(OSError):
                remove_file(segment.path)
            raise WalError.of(error, "write", segment.path) from error
        segment.size_bytes = segment.end
        chain.insert(segment)
        there = set(chain.segments)
        self.unsynced = [each for each in self.unsynced if each in there] + [segment]
        for each in [each for each in self.unsynced if each.fd is not None][: -1 - UNSYNCED_FILES_MAX]:
            each.close()
        return segment

    def _write(self, segment: Segment, buffers: Sequence[bytes]) -> None:
        """At the segment's end.  Raises WalError; then it is as it was, or sealed."""
        assert segment.fd is not None
        try:
            end = write_at(segment.fd, buffers, segment.end)
        except OSError as error:
            self._undo(segment, error)
            raise WalError.of(error, "append to", segment.path) from error
        segment.end = end
        self._chain.resize(segment, end)
        if not self.unsynced or (self.unsynced[-1] is not segment and segment not in self.unsynced):
            self.unsynced = [*self.unsynced, segment]

    def _undo(self, segment: Segment, error: OSError) -> None:
        assert segment.fd is not None
        try:
            os.ftruncate(segment.fd, segment.end)
        except OSError as second:
            logger.warning("sealed %s: half a write can't be cut off its end: %s", segment.path, second.strerror)
        else:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return
            logger.warning("sealed %s after a failed write: %s", segment.path, error.strerror)
        self.active = None
        with contextlib.suppress(OSError):
            self._chain.resize(segment, os.fstat(segment.fd).st_size)
        if segment not in self.unsynced:
            segment.close()


def _encode(entries: Sequence[Entry], last_seq: int) -> list[bytes]:
    """The bytes of entries that follow ``last_seq``."""
    buffers: list[bytes] = []
    for seq, entry in enumerate(entries, last_seq + 1):
        assert entry.seq == seq, f"batch {entry.seq} where {seq} is due"
        assert 0 < len(entry.body) <= BODY_BYTES_MAX, f"a body of {len(entry.body)} bytes"
        buffers += (encode_entry_header(entry), entry.body)
    return buffers
