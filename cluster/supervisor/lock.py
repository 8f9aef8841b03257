"""Who is in charge of a data directory: ``run/supervisor.lock``, flock()ed for as long as a supervisor lives.

The lock is the truth, the file's JSON only tells who holds it.  The file is removed when the lock is given up; who has
it open reads in it how its holder ended.  The JSON is one record of fixed width, written over in place: that needs no
room on a full disk, and where it fails, what was said before is still there.  Also here: the locks of roles that an
earlier, killed supervisor left behind.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from cluster.errors import ClusterError

NAME = "supervisor.lock"
RETRY_S = 0.5  # someone who only looks at the lock holds it for an instant
POLL_S = 0.02
RECORD_BYTES = 4_096  # padded; a problem that needs more is cut short


class LockHolder(msgspec.Struct, frozen=True, kw_only=True):
    pid: int = 0
    started_at: str = ""
    http: str = ""  # where its status is: a URL
    embedded: bool = False  # the database is the embedded one below the data directory
    stopping: bool = False
    ended: bool = False  # written last of all; a holder that was killed never says it
    problem: str = ""  # when it ended: what was not as it should be


class SupervisorLock:
    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self._holder = LockHolder(pid=os.getpid())

    def write(self, holder: LockHolder) -> None:
        """Raises ClusterError when it can't be written."""
        self._holder = holder
        record = _record(holder)
        try:
            written = os.pwrite(self._file.fileno(), record, 0)
            why = "" if written == len(record) else os.strerror(errno.ENOSPC)
        except OSError as error:
            why = os.strerror(error.errno or errno.EIO)
        if why:
            raise ClusterError(
                f"cannot write {self._path}: {why}; make it writable again, or choose another --data-dir",
                code="data_dir",
            )

    def end(self, problem: str = "") -> None:
        """The last words, for whoever waits for the end."""
        with contextlib.suppress(ClusterError):  # a full disk; then it counts as killed
            self.write(msgspec.structs.replace(self._holder, ended=True, problem=problem))


@contextlib.contextmanager
def supervisor_lock(run_dir: Path) -> Iterator[SupervisorLock]:
    """Hold the lock; raises ClusterError when the directory can't be used or another supervisor holds it."""
    path = run_dir / NAME
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _acquire(path)
    except OSError as error:
        raise ClusterError(
            f"cannot use the data directory {run_dir.parent}: {error.strerror}: {error.filename or path}; "
            "choose another --data-dir",
            code="data_dir",
        ) from error
    lock = SupervisorLock(file, path)
    try:
        yield lock
    except ClusterError as error:
        lock.end(str(error))
        raise
    else:
        lock.end()
    finally:  # neither may take the place of what there is to say: a file that stays is nobody's
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            file.close()


def find_holder(run_dir: Path) -> LockHolder | None:
    """The supervisor in charge, or None when there is none."""
    path = run_dir / NAME
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read(file)
            return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClusterError(
            f"cannot look at {path}: {error.strerror}; run this as the user that started the cluster", code="data_dir"
        ) from error


def open_lock_file(run_dir: Path) -> IO[bytes] | None:
    """To read the last words of its holder after the file was removed; None when there is none."""
    try:
        return (run_dir / NAME).open("rb")
    except FileNotFoundError:
        return None


def last_words(file: IO[bytes]) -> LockHolder:
    """Without a pid when it had none: it can't be read, or was emptied."""
    with contextlib.suppress(OSError):
        return _read(file)
    return LockHolder()


def held_role_locks(run_dir: Path) -> list[str]:
    """Names of roles that still run on the directory."""
    held = []
    for path in sorted(run_dir.glob("*.lock")):
        if path.name == NAME:
            continue
        with contextlib.suppress(FileNotFoundError), path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.stem)
    return held


def _acquire(path: Path) -> IO[bytes]:
    deadline = time.monotonic() + RETRY_S
    while True:
        file = _open_or_make(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                os.ftruncate(file.fileno(), 0)  # what one that was killed said of itself
                return file
            file.close()  # removed by the one who held it, in between
        except BlockingIOError:
            holder = _read(file)
            file.close()
            if time.monotonic() > deadline:
                data_dir = path.parent.parent
                where = f", status at {holder.http}" if holder.http else ""
                raise ClusterError(
                    f"a cluster is already running on {data_dir} (pid {holder.pid}{where}); "
                    "stop it with `cluster down`, or choose another --data-dir",
                    code="already_running",
                ) from None
        except BaseException:
            file.close()
            raise
        time.sleep(POLL_S)


def _open_or_make(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)


def _record(holder: LockHolder) -> bytes:
    encoded = msgspec.json.encode(holder)
    problem = holder.problem[:RECORD_BYTES]
    while len(encoded) >= RECORD_BYTES and problem:
        problem = problem[: len(problem) * 9 // 10]
        encoded = msgspec.json.encode(msgspec.structs.replace(holder, problem=problem + "..."))
    return encoded.ljust(RECORD_BYTES - 1) + b"\n"


def _read(file: IO[bytes]) -> LockHolder:
    try:
        return msgspec.json.decode(os.pread(file.fileno(), RECORD_BYTES, 0), type=LockHolder)
    except msgspec.DecodeError:  # it has just been taken, or is just being given up
        return LockHolder()
