"""Makes safe what was appended: fdatasync for each file with something new, fsync for the directory with a new file.

Each is called once for the same bytes.  After a failure nobody knows what is on the disk, and the kernel may have
dropped what it could not write: that segment is sealed and never synced again; what was not safe in it is read back
and written to a new segment, which is synced in turn.  If that fails, too, it stays as it is: whole, but not safe
against a power failure.  A file that somebody removed is written again from its open descriptor.

The lock is not held while waiting for the disk, only while copying.
"""

import errno
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cluster.wal.appender import Appender
from cluster.wal.chain import SegmentChain
from cluster.wal.errors import WalError
from cluster.wal.format import DamagedRange, Entry, encode_entry_header
from cluster.wal.segment import HEADER_END, Segment, is_removed, open_for_reading, remove_file, scan_file

logger = logging.getLogger("cluster.wal")


class Syncer:
    def __init__(
        self,
        chain: SegmentChain,
        appender: Appender,
        *,
        directory_fd: int,
        parents: Sequence[Path],
    ) -> None:
        """``parents``: further directories with something new in them."""
        self._chain = chain
        self._appender = appender
        self._directory_fd = directory_fd
        self._parents = list(parents)
        self._ledger = chain.ledger
        self._failed: list[Segment] = []  # not copied yet
        self._syncing = threading.Lock()

    def sync(self) -> None:
        """Raises WalError when anything failed, even if it is safe now."""
        with self._syncing:
            problem = self._copy_failed()
            failure = self._sync_once()
            if failure is not None and self._copy_failed() is None:
                failure = self._sync_once() or failure
            problem = failure or problem
            if problem is not None:
                raise problem

    def rescue(self, segment: Segment) -> None:
        """Somebody removed the file while it was open.  Raises WalError when it can't be written again."""
        with self._chain.lock:
            if segment in self._chain.segments and segment not in self._failed:
                segment.synced_end = 0
                self._appender.unsynced = [each for each in self._appender.unsynced if each is not segment]
                self._appender.seal(segment)
                self._failed = [*self._failed, segment]
                logger.warning("somebody removed %s, which is in use; what was in it is written again", segment.path)
        problem = self._copy_failed()
        if problem is not None:
            raise problem

    def close(self) -> None:
        with self._syncing, self._chain.lock:
            self._chain.closed = True
            self._appender.active = None
            for segment in self._chain.segments:
                segment.close()

    def _sync_once(self) -> WalError | None:
        chain, appender = self._chain, self._appender
        with chain.lock:
            if chain.closed:
                return None
            there = set(chain.segments)
            appender.unsynced = [segment for segment in appender.unsynced if segment in there]
            jobs = [job for segment in appender.unsynced if (job := self._job(segment)) is not None]
            parents, self._parents = self._parents, []
        for job in jobs:
            job.sync()
        fresh = [job for job in jobs if job.segment.unlisted and job.error is None]
        if fresh:
            try:
                os.fsync(self._directory_fd)
            except OSError as error:
                for job in fresh:  # without its name a file is not safe
                    job.error, job.all_unsafe = error, True
        failure: WalError | None = None
        for parent in parents:
            try:
                _sync_directory(parent)
            except OSError as error:
                failure = WalError.of(error, "fsync", parent)
        with chain.lock:
            for job in jobs:
                failure = self._settle(job) or failure
        return failure

    # ---- with the lock --------------------------------------------------------------------------------------------

    def _job(self, segment: Segment) -> "_SyncJob | None":
        try:
            fd = _reopen(segment)
        except FileNotFoundError:
            self._chain.lose(segment)
            return None
        except OSError as error:
            return _SyncJob(segment=segment, end=segment.end, fd=-1, error=error)
        return _SyncJob(segment=segment, end=segment.end, fd=fd)

    def _settle(self, job: "_SyncJob") -> WalError | None:
        chain, appender, segment = self._chain, self._appender, job.segment
        if segment not in chain.segments or segment in self._failed:  # deleted, or rescued, meanwhile
            return None
        if job.error is None:
            segment.synced_end = job.end
            segment.unlisted = False
            if segment.end == job.end:
                appender.unsynced = [each for each in appender.unsynced if each is not segment]
                if segment is not appender.active:
                    segment.close()
            return None
        if job.all_unsafe:
            segment.synced_end = 0
        appender.unsynced = [each for each in appender.unsynced if each is not segment]
        appender.seal(segment)
        if segment.is_copy and not job.removed:
            segment.close()
            advice = "its batches are not safe against a power failure; check the disk"
        else:
            self._failed = [*self._failed, segment]
            advice = "what was not safe is written to a new segment; check the disk"
        return WalError.of(job.error, "make safe", segment.path, advice)

    def _copy_failed(self) -> WalError | None:
        """What can't be copied now is tried again the next time."""
        with self._chain.lock:
            while self._failed and not self._chain.closed:
                segment = self._failed[0]
                if segment in self._chain.segments:
                    try:
                        self._copy(segment)
                    except WalError as error:
                        return error
                self._failed = self._failed[1:]
        return None

    def _copy(self, segment: Segment) -> None:
        """What was not safe of it.  Raises WalError."""
        try:
            entries = self._read_back(segment)
        except FileNotFoundError:
            self._chain.lose(segment)
            return
        except OSError as error:
            raise WalError.of(error, "read", segment.path) from error
        if entries:
            first, last = entries[0], entries[-1]
            buffers = [part for entry in entries for part in (encode_entry_header(entry), entry.body)]
            copy = self._appender.create(first.seq, first.records_before, first.bytes_before, buffers)
            copy.is_copy = True
            copy.acked_at_s = segment.acked_at_s
            logger.warning("batches %d to %d were written again, to %s", first.seq, last.seq, copy.path)
        segment.close()
        if segment.synced_end == 0:  # nothing in it is safe, and everything is elsewhere
            self._discard(segment)

    def _read_back(self, segment: Segment) -> list[Entry]:
        entries: list[Entry] = []
        fd = _reopen(segment)
        try:
            for item, content in scan_file(fd, max(segment.synced_end, HEADER_END), segment.end):
                if not isinstance(item, DamagedRange):
                    entries.append(item.entry)
                elif self._ledger.is_new(segment, item.offset):
                    kept = self._ledger.keep(segment, item.offset, content)
                    logger.warning(
                        "damage in the WAL: %d bytes at offset %d of %s, %s; they can't be written again",
                        item.size, item.offset, segment.path, kept,
                    )  # fmt: skip
        finally:
            os.close(fd)
        return entries

    def _discard(self, segment: Segment) -> None:
        try:
            remove_file(segment.path)
        except OSError as error:
            logger.warning("cannot delete the WAL segment %s: %s; check its permissions", segment.path, error.strerror)
        else:
            self._chain.take_out(segment)


class _SyncJob(msgspec.Struct, eq=False, kw_only=True):
    segment: Segment
    end: int
    fd: int
    error: OSError | None = None
    removed: bool = False
    all_unsafe: bool = False

    def sync(self) -> None:
        """Once."""
        if self.error is not None:
            return
        try:
            if is_removed(self.fd):
                self.removed = self.all_unsafe = True
                self.error = FileNotFoundError(errno.ENOENT, "somebody removed it")
            else:
                os.fdatasync(self.fd)
        except OSError as error:
            self.error = error
        finally:
            os.close(self.fd)


def _reopen(segment: Segment) -> int:
    return os.dup(segment.fd) if segment.fd is not None else open_for_reading(segment.path)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
