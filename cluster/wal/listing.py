"""What is in a WAL, for people: looks at the files and changes nothing.

A stream's lock is tried for an instant; whoever wants it waits longer than that.  Without ``verify`` only the newest
segment and the one with what was acknowledged last are read, so damage elsewhere is not seen.

What a stream notes of its acknowledgements lags behind by up to a second; who knows the ledger may give its positions.
Directories that no worker made are not looked into.
"""

import fcntl
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from cluster.wal.acked import read_acked
from cluster.wal.errors import WalError
from cluster.wal.format import (
    DamagedRange,
    NewerVersionError,
    decode_segment_header,
    is_stream_id,
    is_torn,
    is_worker_name,
    parse_segment_name,
    stream_key,
)
from cluster.wal.quarantine import NAME as QUARANTINE
from cluster.wal.segment import HEADER_END, Segment, open_for_reading, read_at, scan_file


class StreamInfo(msgspec.Struct, frozen=True, kw_only=True):
    worker: str
    stream_id: str
    state: Literal["in use", "orphan", "delivered", "newer version"]  # the last: only bytes and segments are known
    first_seq: int  # the oldest on disk, 0 when there is nothing
    last_seq: int
    acked_seq: int  # as far as it was noted
    records: int  # on disk
    records_unacked: int
    bytes: int
    segments: int
    oldest_at_ms: int  # when the oldest segment was begun, 0 when there is nothing
    damaged: int  # ranges and gaps; all of them only with ``verify``


def list_streams(path: Path, *, verify: bool = False, committed: Mapping[str, int] | None = None) -> list[StreamInfo]:
    """``path``: DATA_DIR/wal.  By worker and age.  Raises WalError when something can't be read.

    ``committed``: the last seq of streams as the ledger has it, where that is more than was noted.
    """
    streams = []
    for worker in _directories(path):
        if worker.name == QUARANTINE or not is_worker_name(worker.name):
            continue
        for directory in _directories(worker):
            if is_stream_id(directory.name):
                try:
                    committed_seq = (committed or {}).get(directory.name, 0)
                    streams.append(_look(directory, worker.name, committed_seq, verify=verify))
                except FileNotFoundError:
                    continue  # it has just been removed
                except OSError as error:
                    raise _unreadable(error, directory) from error
    return streams


def _directories(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(path / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(error, path) from error


def _unreadable(error: OSError, path: Path) -> WalError:
    return WalError.of(error, "look into", path, "run this as the user that started the cluster")


def _look(path: Path, worker: str, committed_seq: int, *, verify: bool) -> StreamInfo:
    in_use = _is_locked(path)
    found = _Survey(path, in_use=in_use)
    if found.newer:
        return _of_newer_version(found, worker)
    segments = found.segments
    noted = read_acked(path)
    last_seq, records_total = found.newest()
    first_seq = segments[0].first_seq if segments else 0
    acked_seq = min(max(noted[0] if noted is not None else 0, committed_seq), last_seq)
    records_before = found.records_to(first_seq - 1)
    if verify:
        for segment in segments:
            found.scan(segment)
    records_unacked = records_total - max(records_before, found.records_to(acked_seq))
    return StreamInfo(
        worker=found.worker or worker,
        stream_id=path.name,
        state="in use" if in_use else "orphan" if records_unacked else "delivered",
        first_seq=first_seq,
        last_seq=last_seq,
        acked_seq=acked_seq,
        records=records_total - records_before,
        records_unacked=records_unacked,
        bytes=sum(segment.size_bytes for segment in segments),
        segments=len(segments),
        oldest_at_ms=segments[0].created_at_ms if segments else 0,
        damaged=found.damaged + (found.gaps() if verify else 0) + (noted is None),
    )


def _of_newer_version(found: "_Survey", worker: str) -> StreamInfo:
    return StreamInfo(
        worker=worker,
        stream_id=found.path.name,
        state="newer version",
        first_seq=0,
        last_seq=0,
        acked_seq=0,
        records=0,
        records_unacked=0,
        bytes=found.newer_bytes + sum(segment.size_bytes for segment in found.segments),
        segments=found.newer + len(found.segments),
        oldest_at_ms=0,
        damaged=0,
    )


def _is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class _Survey:
    """The segments of a stream and, of those that were scanned, how many records there were with each batch."""

    def __init__(self, path: Path, *, in_use: bool) -> None:
        self.path = path
        self.worker = ""
        self.damaged = 0
        self.newer = self.newer_bytes = 0  # segments of a version that this program doesn't know
        self.segments: list[Segment] = []
        self._in_use = in_use
        self._key = stream_key(path.name)
        self._scanned: dict[Path, dict[int, int]] = {}  # by seq: the records of the stream up to and with it
        with os.scandir(path) as entries:
            names = [(place, entry.name) for entry in entries if (place := parse_segment_name(entry.name)) is not None]
        for place, name in sorted(names):
            self._add(place, path / name)
        self.segments.sort(key=lambda each: (each.first_seq, each.generation))

    def _add(self, place: tuple[int, int], path: Path) -> None:
        try:
            fd = open_for_reading(path)
        except FileNotFoundError:
            return  # it has just expired, or is no file
        state = os.fstat(fd)
        try:
            header = decode_segment_header(read_at(fd, 0, HEADER_END))
        except NewerVersionError:
            self.newer += 1
            self.newer_bytes += state.st_size
            return
        finally:
            os.close(fd)
        segment = Segment(path=path, first_seq=place[0], generation=place[1])
        segment.end = segment.size_bytes = state.st_size
        segment.created_at_ms = int(state.st_mtime * 1000)
        if header is None:
            self.damaged += not (self._in_use and state.st_size < HEADER_END)  # it is being written
        elif header.stream_id != self._key:
            self.damaged += 1
            return
        else:
            segment.first_seq, segment.created_at_ms = header.first_seq, header.created_at_ms
            segment.records_before = header.records_before
            self.worker = header.worker
        self.segments.append(segment)

    def scan(self, segment: Segment) -> dict[int, int]:
        if segment.path in self._scanned:
            return self._scanned[segment.path]
        found: dict[int, int] = {}
        newest = segment is self.segments[-1]
        try:
            fd = open_for_reading(segment.path)
        except FileNotFoundError:
            fd = -1
        try:
            for item, content in scan_file(fd, HEADER_END, segment.end) if fd >= 0 else ():
                if not isinstance(item, DamagedRange):
                    found[item.entry.seq] = item.entry.records_before + item.entry.records
                elif not (newest and item.offset + item.size == segment.end and (self._in_use or is_torn(content))):
                    self.damaged += 1  # else it is being written, or was cut short
        finally:
            if fd >= 0:
                os.close(fd)
        self._scanned[segment.path] = found
        return found

    def newest(self) -> tuple[int, int]:
        """The last seq, and the records of the stream."""
        for segment in reversed(self.segments):
            if found := self.scan(segment):
                return max(found.items())
        return 0, 0

    def records_to(self, seq: int) -> int:
        """The records of the stream up to and with a batch, 0 where nothing tells."""
        for segment in reversed(self.segments):
            if segment.first_seq <= seq and (known := [each for each in self.scan(segment).items() if each[0] <= seq]):
                return max(known)[1]
        return (self.segments[0].records_before or 0) if self.segments else 0

    def gaps(self) -> int:
        """Runs of batches that no segment has, beyond what damage in a segment explains."""
        seqs = sorted({seq for found in self._scanned.values() for seq in found})
        gaps = sum(after != before + 1 for before, after in itertools.pairwise(seqs))
        return max(0, gaps - self.damaged)
