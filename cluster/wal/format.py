"""What the bytes of a segment mean.  Pure: no files, no clock.

A segment is one header and any number of entries, little-endian, without padding::

    segment   magic 8 | crc32c u32 over the rest | version u32 | stream_id 16 | first_seq u64 | created_at_ms u64 |
              records_before u64 | bytes_before u64 | worker 100 (UTF-8, padded with zeros)
    entry     magic 4 | crc32c u32 over the rest and the body | length u32 | records u32 | seq u64 |
              records_before u64 | bytes_before u64 | body

The magic of an entry can't occur in UTF-8 text, so a scan that lost its way seldom looks at a body.  The header of a
segment keeps its size in later versions: the CRC tells a newer version from damage.

``scan`` says which bytes are entries and which are not.  Whether an entry is in its place (its seq) is the reader's
business.
"""

import re
import struct

import google_crc32c
import msgspec

VERSION = 1
BODY_BYTES_MAX = 16 << 20
WORKER_BYTES_MAX = 100
SEGMENT_MAGIC = b"RINGWAL\xf9"
ENTRY_MAGIC = b"\xf5\xb7\xfe\xc1"

_SEGMENT_FRONT = struct.Struct("<8sI")
_SEGMENT_REST = struct.Struct("<I16sQQQQ100s")
_ENTRY_FRONT = struct.Struct("<4sI")
_ENTRY_REST = struct.Struct("<IIQQQ")
SEGMENT_HEADER_BYTES = _SEGMENT_FRONT.size + _SEGMENT_REST.size
ENTRY_HEADER_BYTES = _ENTRY_FRONT.size + _ENTRY_REST.size

_STREAM_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
_WORKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SEGMENT_NAME = re.compile(r"([0-9]{20})(?:\.([0-9]{1,6}))?\.wal")
_SEQ_MAX = (1 << 63) - 1

_extend = google_crc32c.extend


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One batch as it goes over the wire.  An empty body is a hole: the content was damaged or dropped."""

    seq: int
    body: bytes
    records: int
    records_before: int  # of the whole stream before this entry
    bytes_before: int


class SegmentHeader(msgspec.Struct, frozen=True):
    stream_id: bytes
    first_seq: int
    created_at_ms: int
    records_before: int
    bytes_before: int
    worker: str


class NewerVersionError(ValueError):
    """A whole header, of a version that this code doesn't know."""


class ScannedEntry(msgspec.Struct, frozen=True, gc=False):
    offset: int
    entry: Entry

    @property
    def end(self) -> int:
        return self.offset + ENTRY_HEADER_BYTES + len(self.entry.body)


class DamagedRange(msgspec.Struct, frozen=True, gc=False):
    offset: int
    size: int


class Scan(msgspec.Struct, frozen=True):
    """``found``, at offsets of the segment, covers the buffer up to ``consumed`` without a gap."""

    found: list[ScannedEntry | DamagedRange]
    consumed: int
    wanted: int  # bytes from ``consumed`` on that it takes to go on; 0 when the buffer was final


def is_stream_id(text: str) -> bool:
    return _STREAM_ID.fullmatch(text) is not None


def is_worker_name(text: str) -> bool:
    """May a worker's directory be called so?"""
    return _WORKER_NAME.fullmatch(text) is not None


def stream_key(stream_id: str) -> bytes:
    """The 16 bytes of a stream's id; raises ValueError."""
    if not is_stream_id(stream_id):
        raise ValueError(f"{stream_id!r} is not the id of a stream")
    return bytes.fromhex(stream_id.replace("-", ""))


def segment_name(first_seq: int, generation: int = 0) -> str:
    return f"{first_seq:020d}.{generation}.wal" if generation else f"{first_seq:020d}.wal"


def parse_segment_name(name: str) -> tuple[int, int] | None:
    """First seq and generation, or None when it isn't the name of a segment."""
    found = _SEGMENT_NAME.fullmatch(name)
    if found is None or not 0 < int(found[1]) <= _SEQ_MAX:
        return None
    return int(found[1]), int(found[2] or 0)


def encode_segment_header(header: SegmentHeader) -> bytes:
    worker = header.worker.encode()
    if len(worker) > WORKER_BYTES_MAX:
        raise ValueError(f"a worker's name has at most {WORKER_BYTES_MAX} bytes: {header.worker!r}")
    rest = _SEGMENT_REST.pack(
        VERSION,
        header.stream_id,
        header.first_seq,
        header.created_at_ms,
        header.records_before,
        header.bytes_before,
        worker,
    )
    return _SEGMENT_FRONT.pack(SEGMENT_MAGIC, _extend(0, rest)) + rest


def decode_segment_header(buffer: bytes) -> SegmentHeader | None:
    """The header at the beginning of a segment; None when it is damaged.  Raises NewerVersionError."""
    if len(buffer) < SEGMENT_HEADER_BYTES:
        return None
    magic, crc = _SEGMENT_FRONT.unpack_from(buffer)
    rest = buffer[_SEGMENT_FRONT.size : SEGMENT_HEADER_BYTES]
    if magic != SEGMENT_MAGIC or crc != _extend(0, rest):
        return None
    version, stream_id, first_seq, created_at_ms, records_before, bytes_before, worker = _SEGMENT_REST.unpack(rest)
    if version != VERSION:
        raise NewerVersionError(f"version {version}")
    name = worker.rstrip(b"\0").decode(errors="replace")
    return SegmentHeader(stream_id, first_seq, created_at_ms, records_before, bytes_before, name)


def encode_entry_header(entry: Entry) -> bytes:
    """What goes before the body."""
    body = entry.body
    rest = _ENTRY_REST.pack(len(body), entry.records, entry.seq, entry.records_before, entry.bytes_before)
    return _ENTRY_FRONT.pack(ENTRY_MAGIC, _extend(_extend(0, rest), body)) + rest


def scan(buffer: bytes, *, at: int = 0, final: bool) -> Scan:
    """What lies in the buffer, which begins ``at`` a place of the segment, where an entry is expected.

    Unless the buffer is ``final``, the scan stops before what might be the beginning of an entry, or of more damage,
    that goes on after it.
    """
    found: list[ScannedEntry | DamagedRange] = []
    size = len(buffer)
    offset = 0
    lost_at = -1  # where the damage began
    while offset < size:
        entry, length = _entry_at(buffer, offset, size)
        if entry is not None:
            if lost_at >= 0:
                found.append(DamagedRange(at + lost_at, offset - lost_at))
                lost_at = -1
            found.append(ScannedEntry(at + offset, entry))
            offset += length
            continue
        if length > size - offset and not final:
            start = offset if lost_at < 0 else lost_at
            return Scan(found, start, offset + length - start)
        if lost_at < 0:
            lost_at = offset
        offset = buffer.find(ENTRY_MAGIC, offset + 1)
        if offset < 0:
            break
    if lost_at >= 0 and not final:
        return Scan(found, lost_at, size - lost_at + 1)
    if lost_at >= 0:
        found.append(DamagedRange(at + lost_at, size - lost_at))
    return Scan(found, size, 0 if final else 1)


def is_torn(tail: bytes, last: Entry | None = None) -> bool:
    """Does what follows the last entry look like a write that was cut short?  Else it is damage.

    That is the beginning of the next entry, or zeros where the file grew and the data never came.  A whole entry with
    another length than it says is damage: it has the CRC of the length that it has.  (The header has no check of its
    own, so of half an entry nobody can tell whether its length is right.)
    """
    if not tail.strip(b"\0"):
        return True
    if len(tail) < ENTRY_HEADER_BYTES:
        return tail[:4] == ENTRY_MAGIC[: len(tail)]
    if tail[:4] != ENTRY_MAGIC:
        return False
    length, _, seq, records_before, bytes_before = _ENTRY_REST.unpack_from(tail, _ENTRY_FRONT.size)
    there = len(tail) - ENTRY_HEADER_BYTES
    if not there < length <= BODY_BYTES_MAX:
        return False
    _, crc = _ENTRY_FRONT.unpack_from(tail)
    if crc == _extend(0, there.to_bytes(4, "little") + tail[_ENTRY_FRONT.size + 4 :]):
        return False
    return last is None or (seq, records_before, bytes_before) == (
        last.seq + 1,
        last.records_before + last.records,
        last.bytes_before + len(last.body),
    )


def _entry_at(buffer: bytes, offset: int, size: int) -> tuple[Entry | None, int]:
    """The entry there and its length.  Without one: the length that it would have, 0 when it can't be one at all."""
    body_at = offset + ENTRY_HEADER_BYTES
    if body_at > size:
        there = buffer[offset : offset + 4]
        return None, ENTRY_HEADER_BYTES if there == ENTRY_MAGIC[: len(there)] else 0
    magic, crc = _ENTRY_FRONT.unpack_from(buffer, offset)
    if magic != ENTRY_MAGIC:
        return None, 0
    rest_at = offset + _ENTRY_FRONT.size
    length, records, seq, records_before, bytes_before = _ENTRY_REST.unpack_from(buffer, rest_at)
    if not 0 < length <= BODY_BYTES_MAX or not 0 < seq <= _SEQ_MAX:
        return None, 0
    end = body_at + length
    if end > size:
        return None, end - offset
    body = buffer[body_at:end]
    if crc != _extend(_extend(0, buffer[rest_at:body_at]), body):
        return None, 0
    return Entry(seq, body, records, records_before, bytes_before), end - offset
