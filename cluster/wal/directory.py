"""A worker's share of ``DATA_DIR/wal``: makes streams, adopts what others left behind, and keeps within its limits.

Who holds the flock() on a stream's directory owns it.  A directory may vanish between being made and being locked, and
two may want the same orphan: whoever has the lock looks whether it is still the directory of that name.

Foreign files, links and directories on any level go to the quarantine; ``lost+found`` of a volume is left alone.

``room`` is asked before results are made, not before each write: one append may go over the limit.  What is orphaned
and not adopted yet counts for nobody.
"""

import contextlib
import errno
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.wal import acked
from cluster.wal.chain import StreamState
from cluster.wal.errors import WalError
from cluster.wal.format import NewerVersionError, is_stream_id, is_worker_name
from cluster.wal.listing import StreamInfo, list_streams
from cluster.wal.log import RETAIN_S, SEGMENT_BYTES, StreamLog
from cluster.wal.quarantine import NAME as QUARANTINE
from cluster.wal.quarantine import Quarantine
from cluster.wal.reader import DamageLedger
from cluster.wal.recovery import recover
from cluster.wal.segment import remove_file

__all__ = ["StreamInfo", "WalDirectory", "list_streams"]

SEGMENT_BYTES_MIN = 64 << 10
SEGMENTS_MIN = 8  # that the limit has room for, so that there is something to delete
UNLINKS_MAX = 32  # by one call on the loop: each may take milliseconds
LOCK_S = 0.5  # who only looks has the lock for an instant
PAUSE_S = 0.02
UNREADABLE_AGAIN_S = 10.0  # a stream of which the disk gives nothing back; then twice that, and so on
UNREADABLE_AGAIN_MAX_S = 600.0

_LEFT_ALONE = (QUARANTINE, "lost+found")

logger = logging.getLogger("cluster.wal")


class WalDirectory:
    def __init__(
        self,
        path: Path,
        *,
        worker: str,
        limit_bytes: int,
        free_floor_bytes: int,
        retain_s: float = RETAIN_S,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """``path``: DATA_DIR/wal.  Nothing is made before it is needed."""
        if not is_worker_name(worker) or worker == QUARANTINE:
            raise WalError(f"a worker can't be called {worker!r} in the WAL {path}; give it another name")
        self.path = path
        self._own = path / worker
        self._worker = worker
        self._limit_bytes = limit_bytes
        self._free_floor_bytes = free_floor_bytes
        self._retain_s = retain_s
        self._segment_bytes = min(segment_bytes, max(limit_bytes // SEGMENTS_MIN, SEGMENT_BYTES_MIN))
        self._quarantine = Quarantine(path)
        self._logs: list[StreamLog] = []  # replaced, never changed
        self._parents: list[Path] = []  # something was made in them, maybe by a try that failed: see ``Syncer``
        self._lock = threading.Lock()
        self._said: set[Path] = set()  # streams that can't be adopted
        self._ledgers: dict[Path, DamageLedger] = {}  # of these: what was said isn't said again
        self._unreadable: dict[Path, tuple[float, float]] = {}  # when to try again, and how long to wait after that

    @property
    def bytes_on_disk(self) -> int:
        return sum(log.bytes_on_disk for log in self._logs if not log.closed)

    def create(self, stream_id: str) -> StreamLog:
        """A new stream.  Raises WalError."""
        if not is_stream_id(stream_id):
            raise WalError(f"{stream_id!r} is not the id of a stream")
        path = self._own / stream_id
        try:
            lock_fd = self._make_and_lock(path)
        except OSError as error:
            raise WalError.of(error, "create the stream", path) from error
        ledger = DamageLedger(self._quarantine, f"{self._worker}.{stream_id}")
        return self._opened(path, lock_fd, self._worker, StreamState(), ledger, self._take_parents())

    def adopt(self, max_streams: int) -> list[StreamLog]:
        """Orphans, those of our own name first, the oldest first.  What can't be adopted is said, once.

        One that the disk can't give back is tried ever more rarely: each try may take it minutes.  One call at a time.
        """
        adopted: list[StreamLog] = []
        now_s = time.monotonic()
        waiting = [path for path in self._streams() if now_s >= self._unreadable.get(path, (0.0, 0.0))[0]]
        for _ in range(2):
            blocked: list[Path] = []
            for path in waiting:
                if len(adopted) >= max_streams:
                    return adopted
                try:
                    log = self._adopt(path)
                except BlockingIOError:
                    blocked.append(path)
                    continue
                if log is not None:
                    adopted.append(log)
            waiting = blocked
            if not waiting:
                break
            time.sleep(PAUSE_S)  # maybe someone only looked
        return adopted

    def room(self) -> bool:
        """May more be written?  What is acknowledged is deleted before it says no, the oldest first.

        Asked on the loop, it deletes only so much at a time, and goes on the next time.
        """
        for _ in range(UNLINKS_MAX):
            if self._within_limits():
                return True
            if not self.evict():
                return False
        return self._within_limits() or any(log.evictable_since_s is not None for log in self._open_logs())

    def expire(self, now_s: float) -> int:
        """Bytes freed; only so many segments of each stream at a time."""
        return sum(log.expire(now_s, UNLINKS_MAX) for log in self._open_logs())

    def displaced(self) -> bool:
        """Did somebody remove the directory of a stream in use?"""
        return any(log.displaced for log in self._open_logs())

    def restore(self) -> list[str]:
        """Streams in use whose directory was removed go on in a new one; returns their ids.  Trouble is said, once."""
        restored = []
        for log in self._open_logs():
            if not log.displaced:
                continue
            try:
                lock_fd = self._try_make_and_lock(log.path)
                if lock_fd is None:
                    continue  # somebody looks at it: the next time
                logger.critical(
                    "somebody removed %s, which is in use; it is made again, and what can be written again is", log.path
                )
                log.settle(lock_fd, self._take_parents())
            except WalError as error:
                self._say(log.path, str(error))
            except OSError as error:
                self._say(log.path, f"cannot make {log.path} again: {error.strerror}; free space or make it by hand")
            restored.append(log.stream_id)
        return restored

    def close(self) -> None:
        for log in self._open_logs():
            log.close()

    def _make_and_lock(self, path: Path) -> int:
        """A new, empty directory."""
        deadline = time.monotonic() + LOCK_S
        while (lock_fd := self._try_make_and_lock(path)) is None:
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "another process has it")
            time.sleep(PAUSE_S)
        if any(path.iterdir()):
            os.close(lock_fd)
            raise OSError(errno.EEXIST, "there is a stream of that id already")
        return lock_fd

    def _try_make_and_lock(self, path: Path) -> int | None:
        """None: someone has it, or has just removed it."""
        if not self.path.is_dir():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._add_parent(self.path.parent)
        try:
            for each in (path.parent, path):
                if os.path.lexists(each) and not stat.S_ISDIR(each.lstat().st_mode):
                    self._quarantine.move(each, each.name, "a foreign file")
                with contextlib.suppress(FileExistsError):
                    each.mkdir(mode=0o700)
                    self._add_parent(each.parent)
            return _lock(path)
        except (FileNotFoundError, BlockingIOError):
            return None

    def _add_parent(self, parent: Path) -> None:
        with self._lock:
            if parent not in self._parents:
                self._parents.append(parent)

    def _take_parents(self) -> list[Path]:
        with self._lock:
            parents, self._parents = self._parents, []
            return parents

    # ---- limits ---------------------------------------------------------------------------------------------------

    def _open_logs(self) -> list[StreamLog]:
        with self._lock:
            self._logs = [log for log in self._logs if not log.closed]
            return self._logs

    def _within_limits(self) -> bool:
        if self.bytes_on_disk >= self._limit_bytes:
            return False
        try:
            state = os.statvfs(self.path)
        except FileNotFoundError:
            return True  # nothing was written yet
        except OSError as error:
            self._say(self.path, f"cannot look at the free space of {self.path}: {error.strerror}; it counts as full")
            return False
        return state.f_bavail * state.f_frsize >= self._free_floor_bytes

    def evict(self) -> bool:
        """Delete the segment that was acknowledged first; False: there is none."""
        evictable = [(since, log) for log in self._open_logs() if (since := log.evictable_since_s) is not None]
        return any(log.evict_acknowledged() for _, log in sorted(evictable, key=lambda each: each[0]))

    # ---- adoption -------------------------------------------------------------------------------------------------

    def _streams(self) -> list[Path]:
        """Directories of streams that aren't ours; foreign things are out of the way afterwards."""
        ours = {log.path for log in self._open_logs()}
        streams = []
        workers = self._directories(self.path, is_worker_name, _LEFT_ALONE)
        for worker in sorted(workers, key=lambda each: (each != self._own, each)):
            streams += sorted(self._directories(worker, is_stream_id))
        return [path for path in streams if path not in ours]

    def _directories(self, path: Path, is_ours: Callable[[str], bool], left_alone: Sequence[str] = ()) -> list[Path]:
        found = []
        prefix = "" if path == self.path else f"{path.name}."
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name in left_alone:
                        continue
                    if entry.is_dir(follow_symlinks=False) and is_ours(entry.name):
                        found.append(path / entry.name)
                    else:
                        self._quarantine.move(path / entry.name, prefix + entry.name, "a foreign file")
        except FileNotFoundError:
            return []
        except OSError as error:
            self._say(path, f"cannot look into {path} for streams: {error.strerror}; check its permissions")
        return found

    def _adopt(self, path: Path) -> StreamLog | None:
        """None when there is nothing to adopt.  Raises BlockingIOError when somebody has it."""
        lock_fd: int | None = None
        worker = path.parent.name
        ledger = self._ledgers.pop(path, None) or DamageLedger(self._quarantine, f"{worker}.{path.name}")
        _, again_s = self._unreadable.pop(path, (0.0, UNREADABLE_AGAIN_S))
        try:
            lock_fd = _lock(path)
            if lock_fd is None:
                return None
            found = recover(path, path.name, worker, self._quarantine, ledger)
            if found is not None:
                log = self._opened(path, lock_fd, found.worker, found.state, ledger, ())
                lock_fd = None
                return log
            remove_file(path / acked.NAME)
            path.rmdir()
            with contextlib.suppress(OSError):  # not empty, unless it was a worker's last stream
                path.parent.rmdir()
        except BlockingIOError:
            raise
        except NewerVersionError:
            self._say(path, f"{path} was written by a newer version of this program; it is left alone")
        except OSError as error:
            self._ledgers[path] = ledger
            advice = "check its permissions"
            if error.errno == errno.EIO:
                advice = "check the disk"
                self._unreadable[path] = (time.monotonic() + again_s, min(2 * again_s, UNREADABLE_AGAIN_MAX_S))
            self._say(path, f"cannot adopt {path}: {error.strerror}: {error.filename or path}; {advice}")
        finally:
            if lock_fd is not None:
                os.close(lock_fd)
        return None

    def _say(self, path: Path, line: str) -> None:
        if path not in self._said:
            self._said.add(path)
            logger.warning("%s", line)

    def _opened(
        self,
        path: Path,
        lock_fd: int,
        worker: str,
        state: StreamState,
        ledger: DamageLedger,
        parents: Sequence[Path],
    ) -> StreamLog:
        log = StreamLog(
            path,
            lock_fd=lock_fd,
            stream_id=path.name,
            worker=worker,
            ledger=ledger,
            state=state,
            segment_bytes=self._segment_bytes,
            retain_s=self._retain_s,
            parents=parents,
        )
        with self._lock:
            self._logs = [*self._logs, log]
        return log


def _lock(path: Path) -> int | None:
    """The directory, locked; None when it is gone.  Raises BlockingIOError when somebody else has it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours, there = os.fstat(fd), path.stat(follow_symlinks=False)
    except FileNotFoundError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
        os.close(fd)
        return None
    return fd
