"""Opens what a process left behind: one stream's directory, which the caller has locked.

Foreign files go to the quarantine.  The headers of all segments are looked at, and the newest segment is read to its
end: a write that was cut short is cut off, after a copy went to the quarantine.  If that end was not clean, the segment
before is read, too, because a copy after a failed fsync may have been under way.  Everything else is checked when it
is read.

What the disk can't give back is not what was never written: nothing is cut off or removed because of it.  At the end
of the stream, the stream ends before it and the file stays; elsewhere a segment of which nothing can be read keeps its
place, and is read as holes.  Only where there is nothing else the stream is not opened; it may be another time.
"""

import errno
import itertools
import logging
import os
import stat
from pathlib import Path

import msgspec

from cluster.wal import acked
from cluster.wal.acked import read_acked
from cluster.wal.chain import StreamState
from cluster.wal.format import (
    SEGMENT_MAGIC,
    DamagedRange,
    Entry,
    decode_segment_header,
    is_torn,
    parse_segment_name,
    stream_key,
)
from cluster.wal.quarantine import Quarantine
from cluster.wal.reader import DamageLedger
from cluster.wal.segment import HEADER_END, Segment, open_for_reading, read_at, remove_file, scan_file

LEAD_MAX = 1 << 20  # batches by which an entry may come after its segment's name, when only the name tells

logger = logging.getLogger("cluster.wal")


class Recovered(msgspec.Struct, frozen=True):
    state: StreamState
    worker: str  # who wrote it


def recover(path: Path, stream_id: str, worker: str, quarantine: Quarantine, ledger: DamageLedger) -> Recovered | None:
    """None when nothing is left.  Raises OSError, and NewerVersionError before anything was changed."""
    recovery = _Recovery(path, stream_id, worker, quarantine, ledger)
    segments = recovery.segments()
    last = recovery.last_entry(segments)
    if last is None:
        return None
    noted = read_acked(path)
    if noted is None:
        logger.warning("damage in the WAL: %s is not readable; it is written anew", path / acked.NAME)
        noted = (0, 0.0)
    state = StreamState(
        segments=segments,
        last_seq=last.seq,
        records_total=last.records_before + last.records,
        bytes_total=last.bytes_before + len(last.body),
        acked_seq=min(noted[0], last.seq),
        acked_at_s=noted[1],
    )
    return Recovered(state, recovery.worker)


class _Recovery:
    def __init__(self, path: Path, stream_id: str, worker: str, quarantine: Quarantine, ledger: DamageLedger) -> None:
        self.worker = worker
        self._path = path
        self._key = stream_key(stream_id)
        self._prefix = f"{worker}.{stream_id}"
        self._quarantine = quarantine
        self._ledger = ledger

    def segments(self) -> list[Segment]:
        """What there is, in order, with its header."""
        files: list[tuple[tuple[int, int], Path]] = []
        foreign: list[Path] = []
        with os.scandir(self._path) as entries:
            for entry in entries:
                path = self._path / entry.name
                place = parse_segment_name(entry.name)
                if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                    foreign.append(path)
                elif place is not None:
                    files.append((place, path))
                elif entry.name != acked.NAME:
                    foreign.append(path)
        files.sort()
        heads = [_head(path) for _, path in files]
        headers = [decode_segment_header(content) for content, _, _ in heads]  # raises when one is of a newer version
        for path in foreign:
            self._quarantine.move(path, f"{self._prefix}.{path.name}", "a foreign file")
        found = []
        for (place, path), (content, size, unread), header in zip(files, heads, headers, strict=True):
            segment = Segment(
                path=path, first_seq=place[0], generation=place[1], end=size, size_bytes=size, unread=unread
            )
            if header is None:
                if not self._without_header(segment, content, newest=path == files[-1][1]):
                    continue
            elif header.stream_id != self._key:
                self._quarantine.move(path, f"{self._prefix}.{path.name}", "a segment of another stream")
                continue
            else:
                segment.first_seq, segment.created_at_ms = header.first_seq, header.created_at_ms
                segment.records_before, segment.bytes_before = header.records_before, header.bytes_before
                self.worker = header.worker
            found.append(segment)
        found.sort(key=lambda each: (each.first_seq, each.generation))
        if found and found[0].first_seq == 1:
            found[0].records_before = 0  # whatever became of its header
        for before, segment in itertools.pairwise(found):
            if segment.unread and segment.records_before is None:
                self._continue(segment, before)
        return found

    def _continue(self, segment: Segment, before: Segment) -> None:
        """Where there is no header, the segment before tells how much there was: so what is lost can be counted."""
        _, last, _, _ = _ends(before)
        if last is not None and last.seq == segment.first_seq - 1:
            segment.records_before = last.records_before + last.records
            segment.bytes_before = last.bytes_before + len(last.body)

    def _without_header(self, segment: Segment, content: bytes, *, newest: bool) -> bool:
        """Is there something in it all the same?  Else it is out of the way."""
        first, _, _, unread_end = _ends(segment)
        if first is not None:
            if not 0 <= first.seq - segment.first_seq <= LEAD_MAX:
                segment.first_seq = first.seq
            if self._ledger.is_new(segment, 0):
                kept = self._ledger.keep(segment, 0, content)
                logger.warning("damage in the WAL: the header of %s, %s; no batch is lost", segment.path, kept)
            return True
        if unread_end or segment.unread:
            segment.unread = True
            return True
        if newest and _is_torn_header(content):
            logger.warning("removed %s: a write that was cut short, before anything was in it", segment.path)
            remove_file(segment.path)
        elif segment.size_bytes == 0:
            self._ledger.is_new(segment, 0)
            logger.warning("damage in the WAL: %s is empty; it is removed, its batches are lost", segment.path)
            remove_file(segment.path)
        else:
            self._ledger.is_new(segment, 0)
            self._quarantine.move(segment.path, f"{self._prefix}.{segment.name}", "a segment with nothing readable")
        return False

    def last_entry(self, segments: list[Segment]) -> Entry | None:
        """The newest entry; segments without any are removed from the end, those that can't be read from the list."""
        unreadable: list[Segment] = []
        while segments:
            segment = segments[-1]
            _, last, tail, unread_end = _ends(segment)
            if unread_end and (last is None or last.seq < segment.first_seq):
                unreadable.append(segments.pop())
                continue
            for each in unreadable:
                self._end_before(each, 0)
            unreadable = []
            if tail is not None and unread_end > tail:
                self._end_before(segment, tail)
            elif tail is not None:
                self._cut(segment, tail, last)
            if last is None or last.seq < segment.first_seq:
                logger.info("removed %s: there is nothing in it", segment.path)
                remove_file(segment.path)
                segments.pop()
                continue
            earlier = _ends(segments[-2])[1] if tail is not None and len(segments) > 1 else None
            return earlier if earlier is not None and earlier.seq > last.seq else last
        if unreadable:
            raise _unreadable(unreadable[0])
        return None

    def _end_before(self, segment: Segment, tail: int) -> None:
        """The file stays as it is."""
        if self._ledger.is_new(segment, tail):
            logger.warning(
                "the disk can't give back %d bytes at offset %d, the end of %s; they are left as they are, and what is "
                "before them is delivered; check the disk",
                segment.end - tail, tail, segment.path,
            )  # fmt: skip
        segment.end, segment.unread = tail, True

    def _cut(self, segment: Segment, tail: int, last: Entry | None) -> None:
        fd = open_for_reading(segment.path)
        unread: list[int] = []
        try:
            content = read_at(fd, tail, segment.end - tail, unread)
        finally:
            os.close(fd)
        if unread:
            self._end_before(segment, tail)
            return
        kept = self._ledger.keep(segment, tail, content) if content.strip(b"\0") else "all zeros"
        if is_torn(content, last):
            what = "a write that was cut short"
        else:
            what = "damage in the WAL"
            self._ledger.is_new(segment, tail)
        logger.warning(
            "%s: %d bytes at offset %d, the end of %s, %s; they are cut off",
            what, segment.end - tail, tail, segment.path, kept,
        )  # fmt: skip
        segment.end = tail
        try:
            os.truncate(segment.path, tail)
        except OSError as error:
            logger.warning("cannot cut %s: %s; what is behind its end doesn't count", segment.path, error.strerror)
        else:
            segment.size_bytes = tail


def _head(path: Path) -> tuple[bytes, int, bool]:
    """The bytes where the header is, the size of the file, and whether the disk failed to give them back."""
    unread: list[int] = []
    fd = open_for_reading(path)
    try:
        return read_at(fd, 0, HEADER_END, unread), os.fstat(fd).st_size, bool(unread)
    finally:
        os.close(fd)


def _unreadable(segment: Segment) -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO), str(segment.path))


def _ends(segment: Segment) -> tuple[Entry | None, Entry | None, int | None, int]:
    """The first entry, the one with the highest seq, where damage begins that goes on to the end, and up to where the
    disk failed to give back something, 0 when it gave back everything.
    """
    first: Entry | None = None
    last: Entry | None = None
    tail: int | None = None
    unread: list[int] = []
    fd = open_for_reading(segment.path)
    try:
        for item, _ in scan_file(fd, HEADER_END, segment.end, unread=unread):
            if isinstance(item, DamagedRange):
                tail = item.offset
                continue
            tail = None
            first = first or item.entry
            if last is None or item.entry.seq > last.seq:
                last = item.entry
    finally:
        os.close(fd)
    return first, last, tail, max(unread, default=0)


def _is_torn_header(content: bytes) -> bool:
    return not content.strip(b"\0") or (
        len(content) < HEADER_END and content[: len(SEGMENT_MAGIC)] == SEGMENT_MAGIC[: len(content)]
    )
