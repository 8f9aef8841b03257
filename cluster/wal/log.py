"""One stream in the WAL: its segments on disk, from the oldest that is kept to the one that is written.

``append`` and ``acknowledged`` belong to one thread (the loop); ``read`` and ``sync`` may run in others at the same
time, and the appender waits for neither, except while a segment whose fsync failed is copied.  An append is all or
nothing.  What is damaged or gone is read as holes; see ``reader``.

Acknowledged segments are kept for ``retain_s`` after that, whole.  ``now_s`` is the wall clock, given by the caller.

It does not decide when to sync or what may be given up, and starts no thread; limits of space are the directory's.
"""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from cluster.wal import acked
from cluster.wal.acked import AckedFile
from cluster.wal.appender import Appender
from cluster.wal.chain import SegmentChain, StreamState
from cluster.wal.errors import WalError
from cluster.wal.format import Entry, stream_key
from cluster.wal.reader import DamageLedger, SegmentReader
from cluster.wal.segment import Segment, remove_file
from cluster.wal.syncer import Syncer

SEGMENT_BYTES = 8 << 20
RETAIN_S = 600.0
ENTRIES_MAX = 10_000  # of one read: holes have no bytes

logger = logging.getLogger("cluster.wal")


class StreamLog:
    def __init__(
        self,
        path: Path,
        *,
        lock_fd: int,
        stream_id: str,
        worker: str,
        ledger: DamageLedger,
        state: StreamState,
        segment_bytes: int = SEGMENT_BYTES,
        retain_s: float = RETAIN_S,
        parents: Sequence[Path] = (),
    ) -> None:
        """``lock_fd``: of the stream's directory, locked; from now on the log's.  ``parents``: see ``Syncer``."""
        self.path = path
        self.stream_id = stream_id
        self.worker = worker
        self.acked_seq = state.acked_seq  # as far as it was noted; then as far as we were told
        self._chain = SegmentChain(path, state, ledger)
        self._appender = Appender(
            self._chain, stream_key=stream_key(stream_id), worker=worker, segment_bytes=segment_bytes
        )
        self._syncer = Syncer(self._chain, self._appender, directory_fd=lock_fd, parents=parents)
        self._lock_fd = lock_fd
        self._ledger = ledger
        self._retain_s = retain_s
        self._confirmed_seq = 0  # acknowledged to us
        self._noted_seq, self._noted_at_s = state.acked_seq, state.acked_at_s
        self._acked_file = AckedFile(path, state.acked_seq)
        self._reader = SegmentReader(ledger)
        self._reading = threading.Lock()

    def __repr__(self) -> str:
        return f"StreamLog({self.stream_id}, {self.first_seq}-{self.last_seq}, acknowledged {self.acked_seq})"

    @property
    def first_seq(self) -> int:
        """The oldest batch on disk; the next one when there is none."""
        return self._chain.first_seq

    @property
    def last_seq(self) -> int:
        return self._chain.last_seq

    @property
    def records_total(self) -> int:
        """Of the stream ever, its last batch included."""
        return self._chain.records_total

    @property
    def bytes_total(self) -> int:
        """Of all bodies ever."""
        return self._chain.bytes_total

    @property
    def bytes_on_disk(self) -> int:
        return self._chain.bytes_on_disk

    @property
    def damaged(self) -> int:
        """Ranges of bytes that were no entries where entries should be, and gaps."""
        return self._ledger.count

    @property
    def closed(self) -> bool:
        return self._chain.closed

    @property
    def finished(self) -> bool:
        """All is acknowledged, and nothing of it is kept any more."""
        return not self._chain.segments and self._confirmed_seq >= self.last_seq

    def append(self, entries: Sequence[Entry]) -> None:
        """Write what is not there yet, contiguous after ``last_seq``.  Raises WalError; then nothing of it counts."""
        self._appender.append(entries)

    def sync(self) -> None:
        """Make safe what was appended so far.  Raises WalError when an fsync failed.

        What was not safe is then in a new segment, probably synced; called again, ``sync`` says whether it is.
        """
        self._syncer.sync()

    def read(self, from_seq: int, bytes_max: int) -> list[Entry]:
        """From ``from_seq`` on without a gap: at least one entry when there is one, bodies of about ``bytes_max``.

        What is gone from the disk and what is damaged are holes.  Raises WalError when a segment can't be opened.
        """
        with self._reading:
            entries: list[Entry] = []
            size = 0
            seq = max(1, from_seq)
            bytes_max = max(1, bytes_max)
            while size < bytes_max and len(entries) < ENTRIES_MAX and seq <= self._chain.last_seq:
                part = self._read(self._reader, seq, bytes_max - size, ENTRIES_MAX - len(entries), one=not entries)
                if not part:
                    break
                entries += part
                size += sum(len(entry.body) for entry in part)
                seq = part[-1].seq + 1
            return entries

    def _read(self, reader: SegmentReader, seq: int, bytes_max: int, entries_max: int, *, one: bool) -> list[Entry]:
        """Of one segment."""
        while True:
            with self._chain.lock:
                self._chain.check_open()
                extent = self._chain.extent(seq)
                if extent is None:
                    return self._gone(seq, entries_max)
            try:
                return reader.read(extent, seq, bytes_max=bytes_max, entries_max=entries_max, one=one)
            except FileNotFoundError:
                self._file_is_gone(extent.segment)
            except OSError as error:
                raise WalError.of(error, "read", extent.segment.path) from error

    def _file_is_gone(self, segment: Segment) -> None:
        """There is no file of that name: we have just deleted it, or somebody else did."""
        with self._chain.lock:
            if segment not in self._chain.segments:
                return
            if segment.fd is None:
                self._chain.lose(segment)
                return
        self._syncer.rescue(segment)

    def _gone(self, seq: int, entries_max: int) -> list[Entry]:
        """Holes for what was deleted before the first segment.  With the lock."""
        segments = self._chain.segments
        records = segments[0].records_before or 0 if segments else self.records_total
        size = segments[0].bytes_before if segments else self.bytes_total
        stop = min(self.first_seq, seq + entries_max)
        return [Entry(number, b"", 0, records, size) for number in range(seq, stop)]

    # ---- what may go ----------------------------------------------------------------------------------------------

    def acknowledged(self, seq: int, now_s: float) -> None:
        """Everything up to ``seq`` is committed.  Less than before: the database was set back."""
        chain = self._chain
        with chain.lock:
            if chain.closed:
                return
            seq = max(0, min(seq, chain.last_seq))
            if seq < self._confirmed_seq or seq < self._noted_seq:
                self._noted_seq = min(self._noted_seq, seq)
                for index in range(max(0, chain.index_of(seq)), len(chain.segments)):
                    if chain.last_seq_of(index) > seq:
                        chain.segments[index].acked_at_s = None
            self._confirmed_seq = self.acked_seq = seq
            index = chain.index_of(seq)
            while index >= 0 and (segment := chain.segments[index]).acked_at_s is None:
                last_seq = chain.last_seq_of(index)
                if last_seq <= seq:
                    noted = last_seq <= self._noted_seq
                    segment.acked_at_s = min(now_s, self._noted_at_s) if noted else now_s
                index -= 1
        self._acked_file.note(seq, now_s)

    def expire(self, now_s: float, segments_max: int | None = None) -> int:
        """Delete segments that were acknowledged ``retain_s`` ago or earlier, the oldest first; bytes freed."""
        freed = 0
        for segment in self._chain.segments[:segments_max]:
            if segment.acked_at_s is None or now_s - segment.acked_at_s < self._retain_s:
                break
            if not (size_bytes := self._delete(segment)) and not segment.lost:
                break
            freed += size_bytes
        if not self.closed:
            self._acked_file.flush_if_due(now_s)
        return freed

    @property
    def evictable_since_s(self) -> float | None:
        """When the oldest segment was acknowledged; None when that one has to stay."""
        segments = self._chain.segments
        return segments[0].acked_at_s if segments and not segments[0].stuck else None

    def evict_acknowledged(self) -> int:
        """Delete the oldest segment if it is acknowledged; bytes freed."""
        while (segments := self._chain.segments) and segments[0].acked_at_s is not None:
            freed = self._delete(segments[0])
            if freed or segments[0] in self._chain.segments:
                return freed
        return 0

    def drop_oldest(self) -> list[Entry]:
        """Give up the oldest segment with something unacknowledged: delete it, return that.

        Empty when everything is acknowledged, or when the segment can't be read or deleted, which is said in the log.
        """
        while True:
            with self._chain.lock:
                if not self._chain.segments:
                    return []
                segment = self._chain.segments[0]
                self._appender.seal(segment)
                last_seq = self._chain.last_seq_of(0)
            entries: list[Entry] = []
            seq = max(segment.first_seq, self.acked_seq + 1)
            reader = SegmentReader(self._ledger)
            try:
                while seq <= last_seq:
                    part = self._read(reader, seq, 1 << 62, last_seq + 1 - seq, one=True)
                    entries += part
                    seq = part[-1].seq + 1
            except WalError as error:
                logger.warning("cannot give up the oldest results: %s", error)
                return []
            self._delete(segment)
            if segment in self._chain.segments:
                return []
            if entries:
                return entries

    def _delete(self, segment: Segment) -> int:
        with self._chain.lock:
            self._appender.seal(segment)
        return self._chain.delete(segment)

    # ---- a directory that is gone ---------------------------------------------------------------------------------

    @property
    def displaced(self) -> bool:
        """Somebody removed the directory, or moved it, while it was in use."""
        try:
            there, ours = self.path.stat(follow_symlinks=False), os.fstat(self._lock_fd)
        except OSError as error:
            return not self.closed and error.errno in (errno.ENOENT, errno.ENOTDIR)
        return not self.closed and (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def settle(self, lock_fd: int, parents: Sequence[Path] = ()) -> None:
        """Go on in the directory that is at ``path`` now, of which ``lock_fd`` is; that is the log's from now on.
        ``parents``: see ``Syncer``.

        What is in files that are still open is written again, the rest is lost.  Raises WalError.
        """
        with self._reading:
            self._syncer.add_parents(parents)
            try:
                self._chain.check_open()
                os.dup2(lock_fd, self._lock_fd, inheritable=False)  # the same number for all who have it
            finally:
                os.close(lock_fd)
            for segment in self._chain.segments:
                if os.path.lexists(segment.path):
                    continue
                if segment.acked_at_s is not None:
                    self._delete(segment)
                else:
                    self._file_is_gone(segment)

    # ---- the end --------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Delete the directory of a finished stream and give it up.  What can't be removed is left to adoption."""
        assert self.finished, self
        try:
            remove_file(self.path / acked.NAME)
            self.path.rmdir()
        except OSError as error:
            logger.warning("cannot remove %s, with which the WAL is finished: %s", self.path, error.strerror)
        finally:
            self._close()
        with contextlib.suppress(OSError):  # not empty, unless it was a worker's last stream
            self.path.parent.rmdir()

    def close(self) -> None:
        """Give the stream up as it is; whoever wants may adopt it.  Does not sync."""
        if not self.closed:
            self._acked_file.flush()
            self._close()

    def _close(self) -> None:
        with self._reading:
            self._syncer.close()
        os.close(self._lock_fd)
