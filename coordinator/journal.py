"""The project list as a file, so that a cluster can start while its database is away.

``DATA_DIR/coordinator/projects.journal``: a magic of 8 bytes, then frames::

    length of the body (4 bytes, big-endian) | crc32 of the body (4) | body: JournalFrame in msgpack

A frame holds projects as they are from then on, and ids that are no more; the last word on an id counts.  A process
that starts writes a new file while it loads, and renames it over the old one when the load is complete
(``begin_rebuild`` .. ``finish_rebuild``): what changed while nobody looked is right in it, and it is compact.  Later
changes are appended.  When more is dead than alive in it, the next full reload rebuilds it in the same way.

All file work happens in one thread, in order; the loop only queues.  The queue is bounded: a loader waits
(``room``), anything else that finds it full is dropped, counted, and the file is rebuilt with the next reload.  A torn
end (a crash, a power cut) is left out on replay.
"""

import asyncio
import logging
import os
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, assert_never

import msgspec

from coordinator.events import ProjectRecord
from coordinator.store import move_aside, prepare_directory, sync_directory

JOURNAL_MAGIC = b"RPJOURN1"
FRAME_BYTES = 512 << 10  # about; a record is never split
FRAME_BYTES_MAX = 16 << 20
PENDING_RECORDS_MAX = 500_000
ROOM_RECORDS = 20_000
DEAD_RECORDS_MIN = 10_000  # fewer are not worth a rebuild
_FRAME_HEADER = struct.Struct(">II")

logger = logging.getLogger("coordinator.journal")


class JournalFrame(msgspec.Struct, array_like=True, frozen=True):
    records: list[ProjectRecord]
    removed: list[int]


class AppendFrames(msgspec.Struct, frozen=True):
    records: list[ProjectRecord]
    removed: list[int]
    only_new: bool = False


class BeginRebuild(msgspec.Struct, frozen=True):
    pass


class FinishRebuild(msgspec.Struct, frozen=True):
    pass


class AbandonRebuild(msgspec.Struct, frozen=True):
    pass


JournalWork = AppendFrames | BeginRebuild | FinishRebuild | AbandonRebuild

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(JournalFrame).decode


class ProjectJournal:
    """Used from one event loop.  ``records_written`` is the number of records and removals in the current file."""

    def __init__(self, directory: Path) -> None:
        prepare_directory(directory)
        self.path = directory / "projects.journal"
        self.damaged = False  # replay found less than was once there
        self.records_dropped = 0
        self.records_written = 0
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._queue: list[JournalWork] = []
        self._queued_records = 0
        self._busy: asyncio.Future[str | None] | None = None
        self._settled = asyncio.Event()  # set after each batch of work
        self._rebuilding = False
        self._closed = False
        self._stale = False  # something is missing in the file
        self._files = _JournalFiles(self.path)

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def wants_rebuild(self, live: int) -> bool:
        dead = self.records_written - live
        return not self._rebuilding and (self._stale or (dead > live and dead > DEAD_RECORDS_MIN))

    # ---- writing ----

    def append(self, records: list[ProjectRecord], removed: list[int]) -> None:
        """What changed; also into the file being rebuilt, if one is."""
        self._put(AppendFrames(records, removed))

    def begin_rebuild(self) -> None:
        self._rebuilding = True
        self._stale = False
        self._put(BeginRebuild())

    def rebuild(self, records: list[ProjectRecord]) -> None:
        """A part of everything, read again from the database."""
        assert self._rebuilding
        self._put(AppendFrames(records, [], only_new=True))

    def finish_rebuild(self) -> None:
        """The rebuilt file takes the place of the old one."""
        assert self._rebuilding
        self._rebuilding = False
        self._put(FinishRebuild())

    def abandon_rebuild(self) -> None:
        """The reading failed; the next reload tries again."""
        assert self._rebuilding
        self._rebuilding = False
        self._stale = True
        self._put(AbandonRebuild())

    async def room(self) -> None:
        """Wait until a loader may hand over more."""
        while self._queued_records > ROOM_RECORDS and self._busy is not None:
            self._settled.clear()
            await self._settled.wait()

    async def close(self) -> None:
        """Write what is queued; nothing may be handed over any more."""
        if self._closed:
            return
        self._closed = True
        while self._busy is not None:
            self._settled.clear()
            await self._settled.wait()
        await self._loop.run_in_executor(self._pool, self._files.close)
        self._pool.shutdown()

    def _put(self, work: JournalWork) -> None:
        if isinstance(work, AppendFrames):
            size = len(work.records) + len(work.removed)
            if self._queued_records + size > PENDING_RECORDS_MAX:
                self.records_dropped += size
                self._missing("the disk does not keep up")
                return
            self._queued_records += size
        self._queue.append(work)
        self._kick()

    def _missing(self, why: str) -> None:
        if not self._stale:
            self._stale = True
            logger.warning("the project file %s is not complete (%s); the next reload writes it again", self.path, why)

    def _kick(self) -> None:
        if self._busy is None and self._queue:
            batch, self._queue = self._queue, []
            self._queued_records = 0
            self._busy = self._loop.run_in_executor(self._pool, self._files.perform, batch)
            self._busy.add_done_callback(self._done)

    def _done(self, finished: asyncio.Future[str | None]) -> None:
        self._busy = None
        try:
            failure = finished.result()
            self.records_written = self._files.records
            if failure is not None:
                self._missing(failure)
            self._kick()
        finally:
            self._settled.set()

    # ---- reading ----

    async def replay(self) -> AsyncIterator[JournalFrame]:
        """The frames of the file that was current when this process started, as far as they are whole."""
        frames = self._read()
        while (frame := await asyncio.to_thread(next, frames, None)) is not None:
            yield frame

    def _read(self) -> Iterator[JournalFrame]:
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("cannot read the project file %s: %s", self.path, error.strerror)
            self.damaged = True
            return
        with file:
            if file.read(len(JOURNAL_MAGIC)) != JOURNAL_MAGIC:
                self.damaged = True
                move_aside(self.path, "is not a project file")
                return
            good = file.tell()
            while (frame := _read_frame(file)) is not None:
                good = file.tell()
                yield frame
            size = os.fstat(file.fileno()).st_size
        if good != size:
            self.damaged = True
            logger.warning("the last %d bytes of the project file %s are damaged and left out", size - good, self.path)


def _read_frame(file: BinaryIO) -> JournalFrame | None:
    header = file.read(_FRAME_HEADER.size)
    if len(header) < _FRAME_HEADER.size:
        return None
    length, checksum = _FRAME_HEADER.unpack(header)
    if length > FRAME_BYTES_MAX:
        return None
    body = file.read(length)
    if len(body) < length or zlib.crc32(body) != checksum:
        return None
    try:
        return _decode(body)
    except ValueError:
        return None


class _JournalFiles:
    """The thread's side: files, and nothing the loop touches but ``records`` between two batches."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new_path = path.with_suffix(".new")
        self._current: BinaryIO | None = None
        self._new: BinaryIO | None = None
        self._new_records = 0
        self.records = 0

    def perform(self, batch: list[JournalWork]) -> str | None:
        """Returns why something could not be written."""
        failure = None
        for work in batch:
            try:
                match work:
                    case AppendFrames(records, removed, only_new):
                        for body, count in _bodies(records, removed):
                            self._write(body, count, only_new)
                    case BeginRebuild():
                        self._begin()
                    case FinishRebuild():
                        self._finish()
                    case AbandonRebuild():
                        self._abandon()
                    case _:
                        assert_never(work)
            except OSError as error:
                failure = error.strerror or str(error)
                self.close()  # a torn frame would hide what follows it
        if self._current is not None:
            try:
                self._current.flush()
                os.fsync(self._current.fileno())
            except OSError as error:
                failure = error.strerror or str(error)
                self.close()
        return failure

    def close(self) -> None:
        for file in (self._current, self._new):
            if file is not None:
                try:
                    file.close()
                except OSError as error:
                    logger.warning("cannot close the project file %s: %s", self._path, error.strerror)
        self._current = self._new = None

    def _begin(self) -> None:
        if self._new is not None:
            self._new.close()
        descriptor = os.open(self._new_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._new = open(descriptor, "wb", buffering=1 << 20)  # noqa: PTH123, SIM115 - kept open, with its mode
        self._new.write(JOURNAL_MAGIC)
        self._new_records = 0

    def _write(self, body: bytes, count: int, only_new: bool) -> None:
        frame = _FRAME_HEADER.pack(len(body), zlib.crc32(body)) + body
        if self._current is not None and not only_new:
            self._current.write(frame)
            self.records += count
        if self._new is not None:
            self._new.write(frame)
            self._new_records += count

    def _finish(self) -> None:
        if self._new is None:
            return  # it failed, which was told
        self._new.flush()
        os.fsync(self._new.fileno())
        self._new_path.replace(self._path)
        sync_directory(self._path.parent)
        if self._current is not None:
            self._current.close()
        self._current, self._new = self._new, None
        self.records, self._new_records = self._new_records, 0

    def _abandon(self) -> None:
        if self._new is not None:
            self._new.close()
            self._new = None
            self._new_path.unlink()


def _bodies(records: list[ProjectRecord], removed: list[int]) -> Iterator[tuple[bytes, int]]:
    """Frame bodies of bounded size, and how many entries each has."""
    part: list[ProjectRecord] = []
    size = 0
    for record in records:
        part.append(record)
        size += len(record.blob)
        if size >= FRAME_BYTES:
            yield _encode(JournalFrame(part, [])), len(part)
            part, size = [], 0
    if part or removed:
        yield _encode(JournalFrame(part, removed)), len(part) + len(removed)
