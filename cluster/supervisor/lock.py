"""Who is in charge of a data directory: ``run/supervisor.lock``, flock()ed for as long as a supervisor lives.

The lock is the truth, the file's JSON only tells who holds it.  The file is removed when the lock is given up; who has
it open reads in it how its holder ended.  Also here: the locks of roles that an earlier, killed supervisor left behind.
"""

import contextlib
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


class LockHolder(msgspec.Struct, frozen=True, kw_only=True):
    pid: int = 0
    started_at: str = ""
    http: str = ""
    embedded: bool = False  # the database is the embedded one below the data directory
    stopping: bool = False
    ended: bool = False  # written last of all; a holder that was killed never says it
    problem: str = ""  # when it ended: what was not as it should be


class SupervisorLock:
    def __init__(self, file: IO[str], path: Path) -> None:
        self._file = file
        self._path = path
        self._holder = LockHolder(pid=os.getpid())

    def write(self, holder: LockHolder) -> None:
        self._holder = holder
        self._file.seek(0)
        self._file.truncate()
        self._file.write(msgspec.json.encode(holder).decode() + "\n")
        self._file.flush()

    def end(self, problem: str = "") -> None:
        """The last words, for whoever waits for the end."""
        with contextlib.suppress(OSError):  # a full disk; then it counts as killed
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
    with file:
        lock = SupervisorLock(file, path)
        try:
            yield lock
        except ClusterError as error:
            lock.end(str(error))
            raise
        else:
            lock.end()
        finally:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def find_holder(run_dir: Path) -> LockHolder | None:
    """The supervisor in charge, or None when there is none."""
    path = run_dir / NAME
    try:
        with path.open() as file:
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


def open_lock_file(run_dir: Path) -> IO[str] | None:
    """To read the last words of its holder after the file was removed; None when there is none."""
    try:
        return (run_dir / NAME).open()
    except FileNotFoundError:
        return None


def last_words(file: IO[str]) -> LockHolder:
    return _read(file)


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


def _acquire(path: Path) -> IO[str]:
    deadline = time.monotonic() + RETRY_S
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
            file.close()  # removed by the one who held it, in between
        except BlockingIOError:
            holder = _read(file)
            file.close()
            if time.monotonic() > deadline:
                data_dir = path.parent.parent
                where = f", status at http://{holder.http}" if holder.http else ""
                raise ClusterError(
                    f"a cluster is already running on {data_dir} (pid {holder.pid}{where}); "
                    "stop it with `cluster down`, or choose another --data-dir",
                    code="already_running",
                ) from None
        except BaseException:
            file.close()
            raise
        time.sleep(POLL_S)


def _read(file: IO[str]) -> LockHolder:
    file.seek(0)
    try:
        return msgspec.json.decode(file.read(65_536), type=LockHolder)
    except msgspec.DecodeError:  # it has just been taken, or is just being given up
        return LockHolder()
