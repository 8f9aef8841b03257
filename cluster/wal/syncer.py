"""Makes safe what was appended: fdatasync for each file with something new, fsync for the directory with a new file.

Each is called once for the same file and bytes.  After a failure nobody knows what is on the disk, and the kernel may
have dropped what it could not write: that segment is sealed and never synced again; what was not safe in it is read
back and written to a new segment, which is synced in turn.  If that fails, too, the next call begins with another copy,
of at most a segment's size, and looks at nothing else before that one is safe: a disk that goes on failing costs one
copy for each call.  A file that somebody removed is written again from its open descriptor.  Where no descriptor is to
be had nothing was tried: the next call tries it; whatever an fsync itself answers is a failure.  A directory above
whose fsync failed is tried by the next call, too: no file is safe before the names above it are.  Where it can't ever
be done (no permission to open it, a file system that doesn't know it), that is said, once, and no longer tried.

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
from cluster.wal.errors import WalError, is_shortage
from cluster.wal.format import DamagedRange, Entry, encode_entry_header
from cluster.wal.segment import HEADER_END, Segment, is_removed, open_for_reading, scan_file

_NEVER = (errno.EINVAL, errno.ENOTSUP, errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM)  # of a directory above

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
        self._failed: list[Segment] = []  # not copied yet, in order
        self._syncing = threading.Lock()

    def sync(self) -> None:
        """Raises WalError when anything failed, even if it is safe now.  Without an error everything is."""
        with self._syncing:
            problem = self._copy_and_sync()
            if problem is None:
                problem = self._sync(self._appender.unsynced)
                if problem is not None:
                    self._copy_and_sync()  # what it says is said the next time
            if problem is not None:
                raise problem

    def rescue(self, segment: Segment) -> None:
        """Somebody removed the file while it was open.  Raises WalError when it can't be written again."""
        with self._chain.lock:
            if self._chain.closed or segment not in self._chain.segments or segment.fd is None:
                return
            segment.synced_end = 0
            if segment not in self._failed:
                logger.warning("somebody removed %s, which is in use; what was in it is written again", segment.path)
                self._fail(segment)
            copy = self._copy([segment])
            if copy is not None:
                self._say(copy)

    def add_parents(self, parents: Sequence[Path]) -> None:
        """With the next ``sync``."""
        with self._chain.lock:
            self._parents += [parent for parent in parents if parent not in self._parents]

    def close(self) -> None:
        with self._syncing, self._chain.lock:
            self._chain.closed = True
            self._appender.active = None
            for segment in self._chain.segments:
                segment.close()

    def _copy_and_sync(self) -> WalError | None:
        """What failed, as long as the disk takes it."""
        while self._failed and not self._chain.closed:
            try:
                with self._chain.lock:
                    copy = self._copy(self._group())
            except WalError as error:
                return error
            if copy is not None:
                problem = self._sync([copy])
                if problem is not None:
                    return problem
                with self._chain.lock:
                    self._say(copy)
        return None

    def _sync(self, segments: Sequence[Segment]) -> WalError | None:
        with self._chain.lock:
            if self._chain.closed:
                return None
            there = set(self._chain.segments)
            jobs = [job for segment in segments if segment in there and (job := self._job(segment)) is not None]
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
        unsafe_parents = []
        for parent in parents:
            try:
                sync_directory(parent)
            except OSError as error:
                if error.errno in _NEVER:
                    self._say_never(parent, error)
                    continue
                unsafe_parents.append(parent)
                failure = _worse(WalError.of(error, "fsync", parent), failure)
        with self._chain.lock:
            self._parents += unsafe_parents
            for job in jobs:
                failure = _worse(self._settle(job), failure)
        return failure

    def _say_never(self, parent: Path, error: OSError) -> None:
        logger.warning(
            "cannot fsync %s: %s; should the machine crash soon, the WAL's new directories in it may be missing",
            parent, error.strerror,
        )  # fmt: skip

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
        segment = job.segment
        if segment not in self._chain.segments or segment in self._failed:  # deleted, or rescued, meanwhile
            return None
        if job.error is None:
            segment.synced_end = job.end
            segment.unlisted = False
            if segment.end == job.end:
                self._forget(segment)
            return None
        if job.fd < 0 and is_shortage(job.error):  # else it was the fsync's answer
            return WalError.of(job.error, "open", segment.path)
        if job.all_unsafe:
            segment.synced_end = 0
        self._fail(segment)
        advice = "what was not safe is written to a new segment; check the disk"
        failure = WalError.of(job.error, "make safe", segment.path, advice)
        return failure if failure.kind != "shortage" else WalError(str(failure))

    def _forget(self, segment: Segment) -> None:
        """It is safe, or no longer what is to be made safe."""
        self._appender.unsynced = [each for each in self._appender.unsynced if each is not segment]
        if segment is not self._appender.active:
            segment.close()

    def _fail(self, segment: Segment) -> None:
        """Nothing is appended to it and no fsync tried any more.  It stays open: it may have lost its name."""
        self._appender.unsynced = [each for each in self._appender.unsynced if each is not segment]
        self._appender.seal(segment)
        self._failed = sorted([*self._failed, segment], key=lambda each: (each.first_seq, each.generation))

    def _group(self) -> list[Segment]:
        """Of what failed, the first and as many right after it as one segment may hold."""
        segments = self._chain.segments
        there = {segment: index for index, segment in enumerate(segments)}
        self._failed = [segment for segment in self._failed if segment in there]
        group = self._failed[:1]
        size_bytes = sum(segment.end - segment.synced_end for segment in group)
        for segment in self._failed[1:]:
            size_bytes += segment.end
            follows = there[segment] == there[group[-1]] + 1 and segment.synced_end == 0
            if not follows or size_bytes > self._appender.segment_bytes:
                break
            group.append(segment)
        return group

    def _copy(self, group: Sequence[Segment]) -> Segment | None:
        """What was not safe of segments that failed, in a new one; None when nothing is left.  Raises WalError."""
        entries: list[Entry] = []
        for segment in group:
            try:
                entries += self._read_back(segment)
            except FileNotFoundError:
                self._chain.lose(segment)
            except OSError as error:
                raise WalError.of(error, "read", segment.path) from error
        copy = None
        if entries:
            first = entries[0]
            buffers = [part for entry in entries for part in (encode_entry_header(entry), entry.body)]
            copy = self._appender.create(first.seq, first.records_before, first.bytes_before, buffers)
            copy.acked_at_s = group[-1].acked_at_s
        for segment in group:
            self._failed = [each for each in self._failed if each is not segment]
            segment.close()
            if segment.synced_end == 0:  # nothing in it is safe, and everything is elsewhere
                self._discard(segment)
        return copy

    def _say(self, copy: Segment) -> None:
        if copy in self._chain.segments:  # else it was acknowledged and deleted meanwhile
            last_seq = self._chain.last_seq_of(self._chain.segments.index(copy))
            logger.warning("batches %d to %d were written again, to %s", copy.first_seq, last_seq, copy.path)

    def _read_back(self, segment: Segment) -> list[Entry]:
        entries: list[Entry] = []
        fd = _reopen(segment)
        try:
            unread: list[int] = []
            for item, content in scan_file(fd, max(segment.synced_end, HEADER_END), segment.end, unread=unread):
                if unread:
                    segment.unread = True
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
        if segment.lost:  # it keeps the place of what is missing
            return
        try:
            self._ledger.remove(segment)
        except OSError as error:
            logger.warning("cannot delete the WAL segment %s: %s; check its permissions", segment.path, error.strerror)
        else:
            self._chain.take_out(segment)


class _SyncJob(msgspec.Struct, eq=False, kw_only=True):
    segment: Segment
    end: int
    fd: int
    error: OSError | None = None
    all_unsafe: bool = False

    def sync(self) -> None:
        """Once."""
        if self.error is not None:
            return
        try:
            if is_removed(self.fd):
                self.all_unsafe = True
                self.error = FileNotFoundError(errno.ENOENT, "somebody removed it")
            else:
                os.fdatasync(self.fd)
        except OSError as error:
            self.error = error
        finally:
            os.close(self.fd)


def _worse(first: WalError | None, second: WalError | None) -> WalError | None:
    """Of two the one that is to be said: a failure before a shortage, after which nothing is known to be wrong."""
    if first is None or second is None:
        return first or second
    return second if first.kind == "shortage" else first


def _reopen(segment: Segment) -> int:
    return os.dup(segment.fd) if segment.fd is not None else open_for_reading(segment.path)


def sync_directory(path: Path) -> None:
    """What was made in it outlives a loss of power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
