"""Who owns a stream, what becomes of what others left behind, and the limits of space."""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.wal import directory as directory_module
from cluster.wal import format as wal_format
from cluster.wal.directory import WalDirectory, list_streams
from cluster.wal.errors import WalError
from tests.wal.streams import (
    OTHER,
    STREAM,
    Source,
    crash,
    directory,
    files_of,
    new_stream_id,
    one_warning,
    read_all,
    warnings_of,
)

NOW_S = 1_800_000_000.0
DEADLINE_S = 60.0


def written(wal, stream_id=STREAM, count=40, size=200):
    """A stream of several segments."""
    log, source = wal.create(stream_id), Source()
    for _ in range(count):
        log.append(source.take(1, size))
    return log, source


def child(script, *arguments):
    """A process that says "ready", and goes on when it reads a line."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def children(*processes):
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# ---- owning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "quarantine", "a/b", "..", ".hidden", "a b", "x" * 101])
def test_a_worker_needs_a_name_of_its_own(tmp_path, name):
    with pytest.raises(WalError, match="can't be called"):
        directory(tmp_path, name)


def test_nothing_is_made_before_it_is_needed(tmp_path):
    wal = directory(tmp_path)
    assert wal.room()
    assert wal.adopt(10) == []
    assert wal.expire(NOW_S) == wal.bytes_on_disk == 0
    wal.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stream_id", ["", "x", "../" + STREAM, STREAM.upper()])
def test_a_stream_needs_an_id(wal, stream_id):
    with pytest.raises(WalError, match="is not the id of a stream"):
        wal.create(stream_id)


def test_a_stream_is_made_once(wal):
    log, _ = written(wal)
    with pytest.raises(WalError, match="another process has it"):
        wal.create(STREAM)
    log.close()
    with pytest.raises(WalError, match="there is a stream of that id already"):
        wal.create(STREAM)
    (adopted,) = wal.adopt(1)  # nobody holds it after that refusal
    assert adopted.last_seq == 40


def test_what_is_in_use_is_not_adopted(tmp_path, wal):
    log, source = written(wal)
    other = directory(tmp_path, "worker-2")
    assert wal.adopt(10) == other.adopt(10) == []
    assert read_all(log) == source.entries
    log.close()
    assert [each.stream_id for each in other.adopt(10)] == [STREAM]
    assert wal.adopt(10) == []
    other.close()


def test_an_adopted_stream_is_what_it_was(tmp_path, wal):
    log, source = written(wal)
    log.acknowledged(7, NOW_S)
    crash(log)
    other = directory(tmp_path, "worker-2")
    (adopted,) = other.adopt(10)
    assert adopted.stream_id == STREAM
    assert adopted.worker == "worker-1"
    assert (adopted.first_seq, adopted.last_seq, adopted.acked_seq) == (1, 40, 7)
    assert (adopted.records_total, adopted.bytes_total) == (log.records_total, log.bytes_total)
    assert adopted.bytes_on_disk == log.bytes_on_disk == other.bytes_on_disk
    assert read_all(adopted) == source.entries
    assert adopted.damaged == 0
    assert not adopted.finished
    adopted.append(source.take(5))
    assert read_all(adopted) == source.entries
    assert files_of(adopted)[-1].name == f"{41:020d}.wal"  # nobody writes to another's file
    other.close()


def test_orphans_come_own_name_first_oldest_first_and_so_many_at_a_time(tmp_path):
    ids = sorted(new_stream_id() for _ in range(6))
    for number, stream_id in enumerate(ids):
        made = directory(tmp_path, f"worker-{1 + number % 2}")
        written(made, stream_id, 5)
        made.close()
    wal = directory(tmp_path, "worker-2")
    assert [log.stream_id for log in wal.adopt(2)] == [ids[1], ids[3]]
    assert [log.stream_id for log in wal.adopt(2)] == [ids[5], ids[0]]
    assert wal.adopt(0) == []
    assert [log.stream_id for log in wal.adopt(1 << 30)] == [ids[2], ids[4]]
    assert wal.adopt(1 << 30) == []
    wal.close()
    assert len(wal.adopt(1 << 30)) == 6
    wal.close()


def test_an_empty_stream_is_removed_and_so_is_its_workers_directory(tmp_path, wal):
    wal.create(STREAM).close()
    log = wal.create(OTHER)
    log.append(Source().take(2))
    log.acknowledged(2, NOW_S)
    log.expire(NOW_S + 600)
    crash(log)
    assert sorted(path.name for path in log.path.iterdir()) == ["acked"]
    assert directory(tmp_path, "worker-2").adopt(10) == []
    assert list((tmp_path / "wal").iterdir()) == []


def test_who_only_looks_does_not_keep_a_stream_from_being_adopted(tmp_path, wal, monkeypatch):
    """A listing has the lock for an instant."""
    log, _ = written(wal)
    log.close()
    fd = os.open(log.path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)

    class Clock:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(_seconds):
            os.close(fd)

    monkeypatch.setattr(directory_module, "time", Clock)
    (adopted,) = wal.adopt(1)
    assert adopted.last_seq == 40


def test_a_directory_that_is_removed_between_being_made_and_being_locked(wal, monkeypatch):
    """By one who adopts: he takes it for an orphan without anything in it."""
    path = wal.path / "worker-1" / STREAM
    flock = fcntl.flock
    removed = []

    def remove_first(fd, operation):
        if len(removed) < 3:
            removed.append(path)
            path.rmdir()
            if len(removed) == 2:
                path.mkdir()  # somebody else's, of the same name
        return flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    log = wal.create(STREAM)
    assert len(removed) == 3
    log.append(Source().take(3))
    assert path.stat().st_ino == os.fstat(log._lock_fd).st_ino
    assert len(files_of(log)) == 1


def test_of_a_process_that_is_killed_everything_that_was_appended_is_adopted(tmp_path, wal):
    script = """
        import sys
        from pathlib import Path
        from tests.wal.streams import STREAM, Source, directory
        log, source = directory(Path(sys.argv[1]), "worker-2").create(STREAM), Source()
        while True:
            log.append(source.take(3, 150))
            print(log.last_seq, flush=True)
    """
    process = child(script, tmp_path)
    with children(process):
        for _ in range(50):
            last_seq = int(process.stdout.readline())
        assert wal.adopt(10) == []
        process.send_signal(signal.SIGKILL)
        last_seq = max([last_seq, *map(int, process.communicate()[0].split())])
    (adopted,) = wal.adopt(10)
    assert adopted.last_seq >= last_seq
    source = Source()
    source.take(adopted.last_seq, 150)
    assert read_all(adopted) == source.entries
    assert adopted.worker == "worker-2"


def test_each_orphan_is_adopted_by_one_of_those_who_race_for_it(tmp_path):
    made = directory(tmp_path)
    ids = sorted(new_stream_id() for _ in range(20))
    for stream_id in ids:
        written(made, stream_id, 10)
    made.create(new_stream_id())  # empty: whoever comes first removes it
    made.close()
    script = """
        import sys
        from pathlib import Path
        from tests.wal.streams import directory, read_all
        wal = directory(Path(sys.argv[1]), sys.argv[2])
        print("ready", flush=True)
        sys.stdin.readline()
        for log in wal.adopt(1 << 30):
            assert len(read_all(log)) == 10
            print(log.stream_id, flush=True)
        print("done", flush=True)
        sys.stdin.readline()
    """
    racers = [child(script, tmp_path, f"worker-{number}") for number in range(1, 4)]
    with children(*racers):
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("\n")
            racer.stdin.flush()
        adopted = []
        for racer in racers:
            while (line := racer.stdout.readline().strip()) != "done":
                assert line
                adopted.append(line)
        assert sorted(adopted) == ids
        for racer in racers:
            racer.communicate("\n")
            assert racer.returncode == 0


def test_a_stream_of_a_newer_version_is_left_alone(tmp_path, wal, monkeypatch, caplog):
    monkeypatch.setattr(wal_format, "VERSION", 2)
    log, _ = written(wal)
    monkeypatch.undo()
    (log.path / "notes").touch()
    crash(log)
    before = {path.name: path.read_bytes() for path in log.path.iterdir()}
    for _ in range(3):
        assert wal.adopt(10) == []
    one_warning(caplog, log.path, "newer version")
    assert {path.name: path.read_bytes() for path in log.path.iterdir()} == before


# ---- what is foreign ------------------------------------------------------------------------------------------------


def make_file(path):
    path.write_bytes(b"foreign")


def make_directory(path):
    path.mkdir()
    (path / "inside").write_bytes(b"foreign")


def make_link(path):
    path.symlink_to("/nowhere")


def make_pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize("make", [make_file, make_directory, make_link, make_pipe])
@pytest.mark.parametrize("level", ["wal", "worker", "stream"])
@pytest.mark.parametrize("name", ["notes.txt", "a b\n\udcff", "00000000000000000099.wal.tmp"])
def test_what_is_foreign_is_moved_away(tmp_path, wal, caplog, make, level, name):
    log, source = written(wal)
    log.close()
    path = {"wal": wal.path, "worker": log.path.parent, "stream": log.path}[level] / name
    if level == "wal" and make is make_directory and name != "a b\n\udcff":
        name = "no worker"
        path = wal.path / name
    make(path)
    (adopted,) = wal.adopt(10)
    assert read_all(adopted) == source.entries
    assert not os.path.lexists(path)
    (kept,) = (wal.path / "quarantine").iterdir()
    one_warning(caplog, "a foreign file in the WAL", repr(str(path)), kept)
    if make is make_file:
        assert kept.read_bytes() == b"foreign"
    if make is make_directory:
        assert (kept / "inside").read_bytes() == b"foreign"
    if make is make_link:
        assert str(kept.readlink()) == "/nowhere"
    adopted.close()


@pytest.mark.parametrize("make", [make_directory, make_link, make_pipe])
@pytest.mark.parametrize("name", ["00000000000000000099.wal", "acked"])
def test_a_name_of_ours_that_is_no_file_is_foreign(wal, caplog, make, name):
    log, source = written(wal)
    log.close()
    make(log.path / name)
    (adopted,) = wal.adopt(10)
    assert read_all(adopted) == source.entries
    one_warning(caplog, "a foreign file in the WAL", log.path / name)


def test_a_link_in_the_place_of_a_stream_or_a_worker_is_not_followed(tmp_path, wal, caplog):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / STREAM).mkdir(parents=True)
    (elsewhere / STREAM / "precious").touch()
    wal.path.mkdir()
    (wal.path / "worker-1").symlink_to(elsewhere)
    log, source = written(wal)
    (log.path.parent / OTHER).symlink_to(elsewhere / STREAM)
    wal.create(OTHER)
    assert len(warnings_of(caplog)) == 2
    log.close()
    (adopted,) = wal.adopt(10)
    assert read_all(adopted) == source.entries
    assert [path.name for path in elsewhere.rglob("*")] == [STREAM, "precious"]


def test_foreign_files_of_one_name_are_all_kept(wal):
    log, _ = written(wal)
    for number in range(3):
        log.close()
        (log.path / "notes").write_text(str(number))
        (log,) = wal.adopt(1)
    kept = sorted((wal.path / "quarantine").iterdir())
    assert [path.read_text() for path in kept] == ["0", "1", "2"]


def test_lost_and_found_of_a_volume_stays(wal, caplog):
    log, _ = written(wal)
    log.close()
    (wal.path / "lost+found").mkdir()
    assert len(wal.adopt(10)) == 1
    assert (wal.path / "lost+found").is_dir()
    assert not warnings_of(caplog)


def test_what_cannot_be_moved_stays_and_is_said_once(wal, caplog):
    log, source = written(wal)
    (log.path / "notes").touch()
    (wal.path / "quarantine").touch()  # there can be no directory of that name
    for _ in range(3):
        log.close()
        (log,) = wal.adopt(1)
        assert read_all(log) == source.entries
    one_warning(caplog, log.path / "notes", "it stays there")
    assert (log.path / "notes").exists()


def test_a_segment_of_another_stream_is_not_read(wal, caplog):
    log, source = written(wal)
    other, _ = written(wal, OTHER, 100)
    (other.path / f"{81:020d}.wal").write_bytes(files_of(other)[0].read_bytes())
    stranger = log.path / f"{41:020d}.wal"
    stranger.write_bytes(files_of(other)[-1].read_bytes())
    content = stranger.read_bytes()
    log.close()
    (adopted,) = wal.adopt(1)
    assert read_all(adopted) == source.entries
    one_warning(caplog, "a segment of another stream", stranger)
    (kept,) = (wal.path / "quarantine").iterdir()
    assert kept.read_bytes() == content


# ---- permissions ----------------------------------------------------------------------------------------------------


def refusing(monkeypatch, name, path, error=errno.EACCES):
    """``os.NAME`` of one path fails, as it would for anyone but root."""
    real = getattr(os, name)

    def refuse(where, *args, **kwargs):
        if os.fspath(where) == os.fspath(path):
            raise OSError(error, os.strerror(error), str(path))
        return real(where, *args, **kwargs)

    monkeypatch.setattr(os, name, refuse)


def test_a_directory_without_permission_is_passed_over_and_said_once(tmp_path, monkeypatch, caplog):
    made = {}
    for number in (1, 2, 3):
        wal = directory(tmp_path, f"worker-{number}")
        made[number], _ = written(wal, new_stream_id())
        wal.close()
    wal = directory(tmp_path, "worker-9")
    refusing(monkeypatch, "scandir", made[1].path.parent)
    refusing(monkeypatch, "open", made[2].path)
    adopted = wal.adopt(10)
    assert [log.stream_id for log in adopted] == [made[3].stream_id]
    assert wal.adopt(10) == []
    lines = warnings_of(caplog)
    assert len(lines) == 2
    assert str(made[1].path.parent) in lines[0]
    assert str(made[2].path) in lines[1]
    assert all("Permission denied" in line for line in lines)
    monkeypatch.undo()
    assert len(wal.adopt(10)) == 2
    wal.close()


def test_a_segment_without_permission_keeps_its_stream_from_being_adopted_not_the_others(wal, monkeypatch, caplog):
    log, source = written(wal)
    other, other_source = written(wal, OTHER)
    log.close()
    other.close()
    with monkeypatch.context() as patched:
        refusing(patched, "open", files_of(log)[1])
        (adopted,) = wal.adopt(10)
        assert read_all(adopted) == other_source.entries
        assert wal.adopt(10) == []
    one_warning(caplog, "cannot adopt", log.path, files_of(log)[1])
    (adopted,) = wal.adopt(10)  # and nobody kept its lock
    assert read_all(adopted) == source.entries


def test_a_segment_that_cannot_be_opened_is_an_error_of_that_read(wal, monkeypatch):
    log, source = written(wal)
    third = files_of(log)[2]
    with monkeypatch.context() as patched:
        refusing(patched, "open", third)
        before = log.read(1, 1000)
        assert before
        with pytest.raises(WalError, match=f"cannot read {third}: Permission denied"):
            read_all(log)
    assert read_all(log) == source.entries
    assert log.damaged == 0


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_stream_that_cannot_be_made_is_one_line(wal, monkeypatch, error):
    def refuse(path, *_args, **_kwargs):
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(WalError) as caught:
        wal.create(STREAM)
    assert caught.value.kind == ("full" if error == errno.ENOSPC else "io")
    assert str(wal.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_try_that_failed_has_made_is_made_safe_too(wal, monkeypatch):
    """A disk that is full for a while: of a directory, of a stream that is made, and of one that is made again."""
    mkdir, fsync, fails, synced = Path.mkdir, os.fsync, [], set()

    def fail_once(path, *arguments, **more):
        if path.name == STREAM and not fails:
            fails.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(path, *arguments, **more)

    monkeypatch.setattr(Path, "mkdir", fail_once)
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(Path(f"/proc/self/fd/{fd}").readlink()) or fsync(fd))
    with pytest.raises(WalError, match="No space left"):
        wal.create(STREAM)
    log, source = wal.create(STREAM), Source()
    log.append(source.take(1))
    log.sync()
    above = {wal.path.parent, wal.path, wal.path / "worker-1"}
    assert above <= synced
    synced.clear()
    fails.clear()
    shutil.rmtree(wal.path)
    assert wal.restore() == [STREAM]
    assert log.displaced
    assert wal.restore() == [STREAM]
    log.append(source.take(1))
    log.sync()
    assert above <= synced
    assert read_all(log) == source.entries


def test_a_file_in_the_place_of_the_wal_is_one_line(tmp_path):
    (tmp_path / "wal").touch()
    with pytest.raises(WalError, match=r"cannot create the stream .*File exists"):
        directory(tmp_path).create(STREAM)


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_room_is_made_of_what_is_acknowledged_the_oldest_first_over_all_streams(tmp_path):
    wal = directory(tmp_path, limit=30_000)
    log, _ = written(wal, STREAM, 60)
    other, _ = written(wal, OTHER, 30)
    assert wal.bytes_on_disk == log.bytes_on_disk + other.bytes_on_disk
    assert 20_000 < wal.bytes_on_disk < 30_000
    assert wal.room()
    other.acknowledged(20, NOW_S)
    log.acknowledged(40, NOW_S + 1)
    assert (log.first_seq, other.first_seq) == (1, 1)
    source = Source()
    source.take(30)
    other.append(source.take(8, 1200))
    assert wal.bytes_on_disk > 30_000
    assert wal.room()
    assert wal.bytes_on_disk < 30_000
    assert (log.first_seq, other.first_seq > 1) == (1, True)
    other.append(source.take(20, 1200))
    assert not wal.room()
    assert log.first_seq == 41  # what is acknowledged is gone, nothing else
    assert other.first_seq == 21
    assert log.drop_oldest()
    assert not wal.room()
    log.acknowledged(60, NOW_S)
    other.acknowledged(30, NOW_S)
    assert not wal.room()
    assert log.bytes_on_disk == 0
    assert other.first_seq == 31
    wal.close()


class Volume(NamedTuple):
    f_bavail: int
    f_frsize: int


def test_the_floor_of_free_space_is_kept(tmp_path, monkeypatch):
    free = [1000]
    monkeypatch.setattr(os, "statvfs", lambda path: Volume(free[0], 4096))
    wal = directory(tmp_path, floor=1000 * 4096)
    log, _ = written(wal)
    assert wal.room()
    free[0] = 999
    assert not wal.room()
    log.acknowledged(20, NOW_S)
    monkeypatch.setattr(os, "statvfs", lambda path: Volume(999 + (log.first_seq > 6), 4096))
    assert wal.room()
    assert log.first_seq == 11  # no more than was needed
    wal.close()


def test_a_disk_that_cannot_be_asked_counts_as_full(wal, monkeypatch, caplog):
    written(wal)

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "statvfs", fail)
    assert not wal.room()
    assert not wal.room()
    one_warning(caplog, "free space", wal.path)


def test_a_small_limit_still_has_several_segments(tmp_path):
    """Else there would never be one to delete."""
    wal = WalDirectory(tmp_path / "wal", worker="w", limit_bytes=1 << 20, free_floor_bytes=0)
    log, source = wal.create(STREAM), Source()
    while wal.room():
        log.append(source.take(1, 20_000))
    assert len(files_of(log)) >= 7
    assert wal.bytes_on_disk < (1 << 20) + 21_000
    wal.close()


def test_expiry_is_of_all_streams(wal):
    log, _ = written(wal)
    other, _ = written(wal, OTHER)
    total = wal.bytes_on_disk
    log.acknowledged(40, NOW_S)
    other.acknowledged(40, NOW_S)
    assert wal.expire(NOW_S + 599) == 0
    assert wal.expire(NOW_S + 600) == total
    assert log.finished
    assert other.finished
    assert wal.bytes_on_disk == 0


def test_after_a_long_outage_files_are_deleted_a_few_at_a_time(tmp_path, monkeypatch):
    """The loop deletes them, and polls in between."""
    monkeypatch.setattr("cluster.wal.directory.UNLINKS_MAX", 3)
    wal = directory(tmp_path, segment_bytes=1500)
    log, _ = written(wal, count=80)
    total = len(files_of(log))
    assert total > 6
    log.acknowledged(log.last_seq, NOW_S)
    wal.expire(NOW_S + 600)
    assert len(files_of(log)) == total - 3
    wal._limit_bytes = 1
    assert wal.room(), "what may go makes room, only not at once"
    assert len(files_of(log)) == total - 6
    while files_of(log):
        wal.room()
    assert log.finished
    assert wal.room()


def test_after_adoption_what_was_acknowledged_long_ago_goes_when_it_is_acknowledged_again(tmp_path):
    now_s = time.time()
    wal = directory(tmp_path)
    log, _ = written(wal)
    log.acknowledged(22, now_s)
    second = int(files_of(log)[4].stem)
    crash(log)
    (log,) = wal.adopt(1)
    assert log.expire(now_s + 10_000) == 0  # this process was told nothing yet
    os.utime(log.path / "acked", (now_s - 590, now_s - 590))
    log.close()
    (log,) = wal.adopt(1)
    log.acknowledged(40, now_s)
    log.expire(now_s + 9)
    assert log.first_seq == 1
    log.expire(now_s + 11)
    assert log.first_seq == second  # the rest was acknowledged just now
    log.expire(now_s + 599)
    assert log.first_seq == second
    log.expire(now_s + 600)
    assert log.finished
    wal.close()


def test_after_adoption_a_database_that_was_set_back_counts_from_when_it_has_it_again(tmp_path):
    now_s = time.time()
    wal = directory(tmp_path)
    log, _ = written(wal)
    log.acknowledged(22, now_s)
    os.utime(log.path / "acked", (now_s - 590, now_s - 590))
    crash(log)
    (log,) = wal.adopt(1)
    assert log.acked_seq == 22
    log.acknowledged(3, now_s)
    log.acknowledged(22, now_s)
    log.expire(now_s + 599)
    assert log.first_seq == 1
    log.expire(now_s + 600)
    assert log.first_seq == 21
    wal.close()


# ---- the listing ----------------------------------------------------------------------------------------------------


def test_a_listing_says_what_there_is_and_changes_nothing(tmp_path, wal):
    assert list_streams(wal.path) == []
    log, source = written(wal)
    log.acknowledged(13, NOW_S)
    other = directory(tmp_path, "worker-2")
    orphan, orphan_source = written(other, OTHER, 7)
    orphan.close()
    (wal.path / "notes").touch()
    (wal.path / "quarantine").mkdir()
    before = sorted(wal.path.rglob("*"))
    first, second = list_streams(wal.path, verify=True)
    assert (first.worker, first.stream_id, first.state) == ("worker-1", STREAM, "in use")
    assert (first.first_seq, first.last_seq, first.acked_seq) == (1, 40, 13)
    assert first.records == sum(entry.records for entry in source.entries)
    assert first.records_unacked == sum(entry.records for entry in source.entries[13:])
    assert (first.bytes, first.segments, first.damaged) == (log.bytes_on_disk, len(files_of(log)), 0)
    assert abs(first.oldest_at_ms - time.time() * 1000) < 60_000
    assert (second.worker, second.state, second.last_seq, second.acked_seq) == ("worker-2", "orphan", 7, 0)
    assert second.records == second.records_unacked == sum(entry.records for entry in orphan_source.entries)
    assert sorted(wal.path.rglob("*")) == before
    log.evict_acknowledged()
    assert list_streams(wal.path)[0].records == sum(entry.records for entry in source.entries[5:])
    log.evict_acknowledged()
    log.append(source.take(1))
    assert list_streams(wal.path)[0].last_seq == 41


def test_a_listing_counts_damage_when_it_is_asked_to(wal):
    log, _ = written(wal)
    log.close()
    file = files_of(log)[1]
    content = bytearray(file.read_bytes())
    content[700] ^= 1
    file.write_bytes(content)
    files_of(log)[4].unlink()
    assert list_streams(wal.path)[0].damaged == 0
    (info,) = list_streams(wal.path, verify=True)
    assert info.damaged == 2
    assert (info.first_seq, info.last_seq, info.segments) == (1, 40, 7)
    (log.path / "acked").write_bytes(b"x")
    files_of(log)[0].write_bytes(b"x")
    assert list_streams(wal.path)[0].damaged == 2


def test_a_listing_of_nothing_but_an_empty_stream(wal):
    wal.create(STREAM)
    (info,) = list_streams(wal.path, verify=True)
    assert (info.first_seq, info.last_seq, info.records, info.segments, info.oldest_at_ms) == (0, 0, 0, 0, 0)


def test_a_listing_without_permission_is_one_line(wal, monkeypatch):
    log, _ = written(wal)
    refusing(monkeypatch, "scandir", log.path)
    with pytest.raises(WalError, match="run this as the user that started the cluster"):
        list_streams(wal.path)


def test_a_listing_of_a_stream_that_is_written_to(wal):
    """What is half-way there is no damage."""
    log, _ = written(wal)
    with files_of(log)[-1].open("ab") as file:
        file.write(b"\xf5\xb7")
    assert list_streams(wal.path, verify=True)[0].damaged == 0
    with files_of(log)[-1].open("ab") as file:
        file.write(b"?" * 100)
    assert list_streams(wal.path, verify=True)[0].damaged == 0
    log.close()
    assert list_streams(wal.path, verify=True)[0].damaged == 1
