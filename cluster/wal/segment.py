"""One segment: what is known of its file, and the operations on it.

Everything here touches files and nothing here decides: errors are raised as OSError, and the log says what becomes of
them.  A segment is written at ``end`` and nowhere else: what a failed write left behind that place doesn't count.
"""

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from cluster.wal.format import (
    SEGMENT_HEADER_BYTES,
    DamagedRange,
    ScannedEntry,
    SegmentHeader,
    encode_segment_header,
    scan,
    segment_name,
)

HEADER_END = SEGMENT_HEADER_BYTES
CHUNK_BYTES = 1 << 20
IOV_MAX = 1024
PAGE_BYTES = 4096
BAD_PAGES = 4  # of a segment that are tried one by one: each may take a disk seconds
_GENERATIONS_MAX = 999_999


class Segment(msgspec.Struct, eq=False, kw_only=True):
    path: Path
    first_seq: int
    generation: int = 0
    records_before: int | None = None  # of the stream before this segment; None: its header is damaged
    bytes_before: int = 0
    created_at_ms: int = 0
    end: int = 0  # what lies behind it doesn't count
    size_bytes: int = 0  # on disk
    fd: int | None = None  # while it is written to, and until it is synced
    synced_end: int = 0
    unlisted: bool = False  # its name is not safe in the directory yet
    acked_at_s: float | None = None  # when its last entry was acknowledged
    lost: bool = False  # somebody removed the file; the entries in it are holes
    stuck: bool = False  # it could not be deleted, which was said
    unread: bool = False  # the disk did not give back all of it: that may be there another time, so it isn't destroyed

    @property
    def name(self) -> str:
        return self.path.name

    def close(self) -> None:
        if self.fd is not None:
            fd, self.fd = self.fd, None
            os.close(fd)

    def header(self, stream_id: bytes, worker: str) -> bytes:
        return encode_segment_header(
            SegmentHeader(
                stream_id, self.first_seq, self.created_at_ms, self.records_before or 0, self.bytes_before, worker
            )
        )


def create_segment(
    directory: Path, first_seq: int, generation: int, *, records_before: int, bytes_before: int, now_ms: int
) -> Segment:
    """An empty file under the first free name; its header goes with the first write."""
    for number in itertools.count(generation):
        path = directory / segment_name(first_seq, number)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            if number >= _GENERATIONS_MAX:
                raise
            continue
        return Segment(
            path=path,
            first_seq=first_seq,
            generation=number,
            records_before=records_before,
            bytes_before=bytes_before,
            created_at_ms=now_ms,
            fd=fd,
            unlisted=True,
        )
    raise AssertionError  # count() has no end


def write_at(fd: int, buffers: Sequence[bytes], offset: int) -> int:
    """Write all of it and return where it ends.  After an error any part of it may be there."""
    for start in range(0, len(buffers), IOV_MAX):
        part = buffers[start : start + IOV_MAX] if len(buffers) > IOV_MAX else buffers
        wanted = sum(map(len, part))
        written = os.pwritev(fd, part, offset)
        offset += written
        if written < wanted:  # the disk is full, or a signal came: the next call says which
            rest = memoryview(b"".join(part))[written:]
            while rest:
                written = os.pwrite(fd, rest, offset)
                if written == 0:
                    raise OSError(errno.EIO, "nothing could be written")
                offset += written
                rest = rest[written:]
    return offset


def open_for_reading(path: Path) -> int:
    """Raises FileNotFoundError too when something else than a file has that name."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
            raise FileNotFoundError(errno.ENOENT, "not a file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
    return fd


def read_at(fd: int, offset: int, size: int, unread: list[int] | None = None) -> bytes:
    """``size`` bytes, or fewer where the file ends.

    What the disk can't give back is read as zeros; ``unread`` collects where that ends.  It also counts: from the
    ``BAD_PAGES``th on twice as much is passed over each time, so a file of which nothing can be read costs a few tries.
    """
    unread = [] if unread is None else unread
    parts = []
    while size > 0:
        try:
            part = os.pread(fd, size, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            part = _read_page(fd, offset, size, unread)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_page(fd: int, offset: int, size: int, unread: list[int]) -> bytes:
    """Up to the end of the page, which is tried alone, unless it just was; zeros for what can't be read."""
    page_bytes = PAGE_BYTES - offset % PAGE_BYTES
    if size > page_bytes:
        try:
            return os.pread(fd, page_bytes, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
    passed_bytes = page_bytes + PAGE_BYTES * ((1 << max(0, len(unread) + 1 - BAD_PAGES)) - 1)
    size = max(0, min(size, passed_bytes, os.fstat(fd).st_size - offset))
    unread.append(offset + size)
    return bytes(size)


def scan_file(
    fd: int, offset: int, end: int, *, chunk_bytes: int = CHUNK_BYTES, unread: list[int] | None = None
) -> Iterator[tuple[ScannedEntry | DamagedRange, bytes]]:
    """Everything between two places of a segment; with a damaged range its bytes, as far as there are any.

    ``unread``: see ``read_at``.
    """
    unread = [] if unread is None else unread
    wanted = 0
    while offset < end:
        size = min(max(wanted, chunk_bytes), end - offset)
        buffer = read_at(fd, offset, size, unread)
        short = len(buffer) < size
        part = scan(buffer, at=offset, final=short or offset + size == end)
        damage: DamagedRange | None = None
        for item in part.found:
            if not isinstance(item, DamagedRange):
                yield item, b""
            elif short and item.offset + item.size == offset + len(buffer):
                damage = item  # and what is missing belongs to it
            else:
                start = item.offset - offset
                yield item, buffer[start : start + item.size]
        if short:
            start = damage.offset if damage is not None else offset + len(buffer)
            yield DamagedRange(start, end - start), buffer[start - offset :]
            return
        wanted = part.wanted if part.consumed else max(part.wanted, 2 * size)
        offset += part.consumed


def is_removed(fd: int) -> bool:
    return os.fstat(fd).st_nlink == 0


def remove_file(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
