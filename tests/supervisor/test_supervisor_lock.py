"""Who is in charge of a data directory."""

import contextlib
import fcntl
import threading

import pytest

from cluster.errors import ClusterError
from cluster.runtime import role_lock
from cluster.supervisor.lock import LockHolder, find_holder, held_role_locks, supervisor_lock

HOLDER = LockHolder(pid=4711, started_at="now", http="127.0.0.1:8700", embedded=True)


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
