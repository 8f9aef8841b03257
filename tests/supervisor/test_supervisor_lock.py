"""Who is in charge of a data directory."""

import contextlib
import errno
import fcntl
import os
import resource
import threading
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.runtime import role_lock
from cluster.supervisor.lock import (
    RECORD_BYTES,
    LockHolder,
    find_holder,
    held_role_locks,
    last_words,
    open_lock_file,
    supervisor_lock,
)

HOLDER = LockHolder(pid=4711, started_at="now", http="http://127.0.0.1:8700", embedded=True)


def test_the_lock_is_held_told_and_leaves_nothing(data_dir):
    run_dir = data_dir / "run"
    assert find_holder(run_dir) is None
    with supervisor_lock(run_dir) as lock:
        assert find_holder(run_dir) == LockHolder()
        lock.write(HOLDER)
        lock.write(HOLDER)
        assert find_holder(run_dir) == HOLDER
        assert run_dir.stat().st_mode & 0o777 == 0o700
    assert find_holder(run_dir) is None
    assert list(run_dir.iterdir()) == []


def test_a_second_one_is_refused_with_who_holds_it(data_dir):
    with supervisor_lock(data_dir / "run") as lock:
        lock.write(HOLDER)
        said = r"already running on .* \(pid 4711, status at http://127.0.0.1:8700\)"
        with pytest.raises(ClusterError, match=said), supervisor_lock(data_dir / "run"):
            pass
        assert find_holder(data_dir / "run") == HOLDER


def test_of_many_at_once_exactly_one_has_it(data_dir):
    """Taking, giving up and removing the file may interleave in any way."""
    inside = []
    overlaps = []
    barrier = threading.Barrier(6)

    def contend():
        barrier.wait()
        for _ in range(30):
            with contextlib.suppress(ClusterError), supervisor_lock(data_dir / "run"):
                inside.append(1)
                overlaps.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(overlaps) == {1}
    assert len(overlaps) >= 30


def test_one_who_only_looks_does_not_get_in_the_way(data_dir):
    (data_dir / "run").mkdir()
    path = data_dir / "run" / "supervisor.lock"
    with path.open("a") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, looking.close)
        timer.start()
        with supervisor_lock(data_dir / "run"):
            pass
        timer.join()


def test_roles_that_still_run_are_known(data_dir):
    run_dir = data_dir / "run"
    assert held_role_locks(run_dir) == []
    with role_lock(run_dir, "worker-2"), role_lock(run_dir, "writer"):
        assert held_role_locks(run_dir) == ["worker-2", "writer"]
    assert held_role_locks(run_dir) == []


def test_a_directory_that_cannot_be_used_is_one_line(data_dir):
    (data_dir / "file").touch()
    said = r"cannot use the data directory .*/file/x: Not a directory"
    with pytest.raises(ClusterError, match=said), supervisor_lock(data_dir / "file" / "x" / "run"):
        pass


@contextlib.contextmanager
def nothing_can_be_written():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def end_badly(run_dir, problem, disk):
    """A supervisor that ends with a problem, on such a disk: (what it says, its last words)."""
    with contextlib.ExitStack() as stack:

        def run_and_fail():
            with supervisor_lock(run_dir) as lock:
                lock.write(HOLDER)
                files.append(stack.enter_context(open_lock_file(run_dir)))
                stack.enter_context(disk)
                raise ClusterError(problem)

        files = []
        with pytest.raises((ClusterError, OSError)) as said:
            run_and_fail()
        assert os.fstat(files[0].fileno()).st_size == RECORD_BYTES
        return said.value, last_words(files[0])


def test_what_went_wrong_is_said_though_nothing_can_be_written_any_more(data_dir):
    """... and the file still has what its holder said before."""
    said, words = end_badly(data_dir / "run", "7 results wait", nothing_can_be_written())
    assert repr(said) == repr(ClusterError("7 results wait"))
    assert words == HOLDER
    assert list((data_dir / "run").iterdir()) == []


def test_a_file_that_can_not_be_written_is_one_line(data_dir):
    said = r"cannot write .*/supervisor.lock: File too large; make it writable again"
    with pytest.raises(ClusterError, match=said), supervisor_lock(data_dir / "run") as lock, nothing_can_be_written():
        lock.write(HOLDER)
    assert list((data_dir / "run").iterdir()) == []


def test_a_file_that_can_not_be_removed_hides_nothing_and_is_nobodys(data_dir, monkeypatch):
    def refuse(path, missing_ok=False):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        said, _ = end_badly(data_dir / "run", "7 results wait", contextlib.nullcontext())
    assert repr(said) == repr(ClusterError("7 results wait"))
    assert find_holder(data_dir / "run") is None
    with supervisor_lock(data_dir / "run"):
        assert find_holder(data_dir / "run") == LockHolder(), "that was somebody else"


@pytest.mark.parametrize("letter", ["x", '"', "\x01", "\U0001f600"])
def test_a_problem_too_long_for_the_record_is_cut_short(data_dir, letter):
    problem = "7 results wait" + RECORD_BYTES * letter
    _, words = end_badly(data_dir / "run", problem, contextlib.nullcontext())
    assert words.ended
    assert words.pid == HOLDER.pid
    assert words.problem.endswith("...")
    assert len(words.problem) > 500
    assert problem.startswith(words.problem.removesuffix("..."))
