"""Reads a stream in order, past whatever damage there is.

An *extent* is the part of a segment that counts: from ``first_seq`` to ``last_seq``, in the bytes before ``end``.
Where segments overlap (after a failed fsync, or a write that failed half-way) the later one counts and an earlier one
fills its gaps.  What no segment has is a hole: an entry with an empty body.  The first hole of a gap carries all
records that were lost in it, so that ``records_before`` stays right.

A reader remembers where it stopped, so going on from there costs nothing.  It is for one thread at a time.
"""

import logging
import os
from collections.abc import Iterator, Sequence

import msgspec

from cluster.wal.errors import is_shortage
from cluster.wal.format import DamagedRange, Entry
from cluster.wal.quarantine import Quarantine
from cluster.wal.segment import CHUNK_BYTES, HEADER_END, Segment, open_for_reading, remove_file, scan_file

SLACK_BYTES = 128 << 10  # read beyond what is asked for: headers, and the entry that is too much
CHUNK_BYTES_MIN = 256 << 10

logger = logging.getLogger("cluster.wal")


class Extent(msgspec.Struct, frozen=True, eq=False):
    segment: Segment
    first_seq: int
    last_seq: int
    end: int
    records_before: int | None  # of the stream before first_seq; None: unknown
    bytes_before: int
    records_after: int | None  # of the stream up to and with last_seq
    bytes_after: int
    earlier: Sequence[Segment]  # that may overlap with it


class Place(msgspec.Struct, frozen=True):
    """Where to go on: the next entry of a segment is expected at ``offset`` and to be ``seq``."""

    offset: int
    seq: int
    records: int | None  # of the stream before it
    size_bytes: int


class DamageLedger:
    """Counts each damaged range once, however often it is met."""

    def __init__(self, quarantine: Quarantine, prefix: str) -> None:
        self.count = 0
        self._quarantine = quarantine
        self._prefix = prefix
        self._known: set[tuple[str, int]] = set()

    def is_new(self, segment: Segment, offset: int) -> bool:
        key = (segment.name, offset)
        if key in self._known:
            return False
        self._known.add(key)
        self.count += 1
        return True

    def note(self, segment: Segment, offset: int) -> None:
        """Nothing more is to be said of that place."""
        self._known.add((segment.name, offset))

    def keep(self, segment: Segment, offset: int, content: bytes) -> str:
        """Copy to the quarantine; says where."""
        if segment.unread and not content.strip(b"\0"):  # no bytes of the file, which is kept
            return "which could not be read"
        return self._quarantine.keep(f"{self._prefix}.{segment.name}.{offset}-{offset + len(content)}", content)

    def remove(self, segment: Segment) -> None:
        """Delete the file, or keep it whole where the disk did not give back all of it.  Raises OSError."""
        name = f"{self._prefix}.{segment.name}"
        try:
            if segment.unread and self._quarantine.take(segment.path, name, "a segment that could not all be read"):
                return
        except FileNotFoundError:  # somebody removed it; or the quarantine, just now
            if os.path.lexists(segment.path):
                raise
        remove_file(segment.path)


class SegmentReader:
    def __init__(self, ledger: DamageLedger) -> None:
        self._ledger = ledger
        self._segment: Segment | None = None
        self._place: Place | None = None
        self._overlap_of: Segment | None = None
        self._overlap: dict[int, Entry] = {}  # what of it lies elsewhere

    def read(self, extent: Extent, seq: int, *, bytes_max: int, entries_max: int, one: bool) -> list[Entry]:
        """Entries from ``seq`` on, at least one of them when ``one``.  Raises OSError when the file can't be opened."""
        place = Place(HEADER_END, extent.first_seq, extent.records_before, extent.bytes_before)
        if self._segment is extent.segment and self._place is not None and self._place.seq == seq:
            place = self._place
        entries: list[Entry] = []
        size = 0
        chunk_bytes = min(max(bytes_max + SLACK_BYTES, CHUNK_BYTES_MIN), CHUNK_BYTES)
        fd = None if extent.segment.lost else open_for_reading(extent.segment.path)
        try:
            for entry, after in self._walk(extent, fd, place, seq, chunk_bytes):
                size += len(entry.body)
                if len(entries) >= entries_max or (size > bytes_max and (entries or not one)):
                    break
                entries.append(entry)
                self._segment, self._place = extent.segment, after
        finally:
            if fd is not None:
                os.close(fd)
        return entries

    def _walk(
        self, extent: Extent, fd: int | None, place: Place, seq: int, chunk_bytes: int
    ) -> Iterator[tuple[Entry, Place]]:
        """Every seq of the extent from ``seq`` on, each with the place after it."""
        damage: list[tuple[DamagedRange, bytes]] = []
        unread: list[int] = []
        items = (
            scan_file(fd, place.offset, extent.end, chunk_bytes=chunk_bytes, unread=unread) if fd is not None else ()
        )
        for item, content in items:
            if unread:
                extent.segment.unread = True
            if isinstance(item, DamagedRange):
                damage.append((item, content))
                continue
            entry = item.entry
            if not place.seq <= entry.seq <= extent.last_seq:
                continue  # it was there already, or a later segment has it
            if damage or entry.seq > place.seq:
                bound = Place(item.offset, entry.seq, entry.records_before, entry.bytes_before)
                yield from self._gap(extent, place, bound, seq, damage)
                damage = []
            place = Place(item.end, entry.seq + 1, *_totals(entry))
            if entry.seq >= seq:
                yield entry, place
            if entry.seq == extent.last_seq and item.end >= extent.end:
                return
        bound = Place(extent.end, extent.last_seq + 1, extent.records_after, extent.bytes_after)
        yield from self._gap(extent, place, bound, seq, damage)

    def _gap(
        self, extent: Extent, place: Place, bound: Place, seq: int, damage: list[tuple[DamagedRange, bytes]]
    ) -> Iterator[tuple[Entry, Place]]:
        """What is not where it should be between two places: from elsewhere, else as holes.  Maybe no seq at all."""
        elsewhere: list[Entry] = []
        if place.seq < bound.seq:
            overlap = self._elsewhere(extent)
            elsewhere = [overlap[number] for number in sorted(overlap) if place.seq <= number < bound.seq]
        self._report(extent, place, bound, damage, len(elsewhere))
        at, records, size = place.seq, place.records, place.size_bytes
        if at < seq:  # the gap began before what is wanted
            at, records = seq, None
        for found in (*(entry for entry in elsewhere if entry.seq >= at), None):
            if found is None:
                stop, records_after, bytes_after = bound.seq, bound.records, bound.size_bytes
            else:
                stop, records_after, bytes_after = found.seq, found.records_before, found.bytes_before
            while at < stop:
                before = records if records is not None else records_after or 0
                after = records_after if records_after is not None else before
                records, size_after = after, max(size, bytes_after)
                hole = Entry(at, b"", max(0, after - before), before, size)
                size = size_after
                at += 1
                yield hole, Place(bound.offset, at, records, size)
            if found is not None:
                records, size = _totals(found)
                at += 1
                yield found, Place(bound.offset, at, records, size)

    def _elsewhere(self, extent: Extent) -> dict[int, Entry]:
        """What earlier segments have of the extent, and other places of this one, where a disk may write by mistake.

        Read only when something is missing.
        """
        if self._overlap_of is not extent.segment:
            overlap: dict[int, Entry] = {}
            for segment in extent.earlier:
                overlap.update((entry.seq, entry) for entry in _entries(segment) if entry.seq >= extent.first_seq)
            highest_seq = 0
            for entry in _entries(extent.segment):
                if entry.seq <= highest_seq:
                    overlap[entry.seq] = entry
                elif entry.seq <= extent.last_seq:
                    highest_seq = entry.seq
            self._overlap_of, self._overlap = extent.segment, overlap
        return self._overlap

    def _report(
        self, extent: Extent, place: Place, bound: Place, damage: list[tuple[DamagedRange, bytes]], found: int
    ) -> None:
        """One line for each damaged range, and for a gap without any."""
        segment = extent.segment
        if segment.lost:  # that was said
            return
        missing = bound.seq - place.seq - found
        consequence = "no batch is lost"
        if missing:
            records = bound.records - place.records if bound.records is not None and place.records is not None else 0
            consequence = f"{missing} of the batches {place.seq} to {bound.seq - 1} are lost"
            if not found and records > 0:
                consequence += f", with {records} records"
        for item, content in damage:
            if self._ledger.is_new(segment, item.offset):
                kept = self._ledger.keep(segment, item.offset, content)
                logger.warning(
                    "damage in the WAL: %d bytes at offset %d of %s, %s; %s",
                    item.size, item.offset, segment.path, kept, consequence,
                )  # fmt: skip
        if damage:
            self._ledger.note(segment, bound.offset)
        elif missing and self._ledger.is_new(segment, bound.offset):
            logger.warning("damage in the WAL: before offset %d of %s %s", bound.offset, segment.path, consequence)


def _entries(segment: Segment) -> Iterator[Entry]:
    """Whatever is in it, in the order in which it lies there."""
    if segment.lost:
        return
    try:
        fd = open_for_reading(segment.path)
    except OSError as error:
        if is_shortage(error):
            raise
        logger.warning("cannot read %s to look for missing batches: %s", segment.path, error.strerror)
        return
    try:
        for item, _ in scan_file(fd, HEADER_END, segment.end):
            if not isinstance(item, DamagedRange):
                yield item.entry
    finally:
        os.close(fd)


def _totals(entry: Entry) -> tuple[int, int]:
    """Records and bytes of the stream up to and with an entry."""
    return entry.records_before + entry.records, entry.bytes_before + len(entry.body)
