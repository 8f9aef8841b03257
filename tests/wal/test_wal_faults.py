"""Writes and fsyncs that fail: nothing of a failed append counts, nothing that was appended is lost."""

import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cluster.wal import syncer
from cluster.wal.errors import WalError
from cluster.wal.format import SEGMENT_HEADER_BYTES
from tests.wal.streams import STREAM, Source, crash, directory, files_of, one_warning, read_all, warnings_of

NOW_S = 1_800_000_000.0


class FailingDisk:
    """Writes that stop after so many bytes, and fsyncs that fail so many times."""

    def __init__(self, monkeypatch):
        self.room = None  # bytes that can still be written
        self.error = errno.ENOSPC
        self.cutting_fails = False
        self.syncs_fail = 0
        self.directory_syncs_fail = 0
        self.synced = []  # names of files, in order
        self._pwritev, self._pwrite = os.pwritev, os.pwrite
        self._ftruncate, self._fdatasync, self._fsync = os.ftruncate, os.fdatasync, os.fsync
        for name in ("pwritev", "pwrite", "ftruncate", "fdatasync", "fsync"):
            monkeypatch.setattr(os, name, getattr(self, name))

    def _fail(self):
        raise OSError(self.error, os.strerror(self.error))

    def pwritev(self, fd, buffers, offset):
        return self.pwrite(fd, b"".join(buffers), offset)

    def pwrite(self, fd, content, offset):
        if self.room is None:
            return self._pwrite(fd, content, offset)
        if self.room == 0:
            self._fail()
        written = self._pwrite(fd, content[: self.room], offset)
        self.room -= written
        return written

    def ftruncate(self, fd, size):
        if self.cutting_fails:
            self._fail()
        self._ftruncate(fd, size)

    def fdatasync(self, fd):
        self.synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        if self.syncs_fail:
            self.syncs_fail -= 1
            raise OSError(errno.EIO, "Input/output error")
        self._fdatasync(fd)

    def fsync(self, fd):
        if self.directory_syncs_fail:
            self.directory_syncs_fail -= 1
            raise OSError(errno.EIO, "Input/output error")
        self._fsync(fd)


@pytest.fixture
def disk(monkeypatch):
    return FailingDisk(monkeypatch)


def reopened(wal, log):
    """After SIGKILL."""
    crash(log)
    (adopted,) = wal.adopt(1)
    return adopted


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("cutting_fails", [False, True])
def test_an_append_that_fails_anywhere_leaves_nothing(wal, log, source, disk, error, cutting_fails):
    """Then the same is appended again, and is there once."""
    log.append(source.take(3, 20))
    size = 3 * 60 + 164
    disk.error, disk.cutting_fails = error, cutting_fails
    for room in (0, 1, 39, 40, 59, 60, 61, 119, 120, 179):
        fresh = source.take(3, 20)
        disk.room = room
        with pytest.raises(WalError) as caught:
            log.append(fresh)
        assert caught.value.kind == ("io" if error == errno.EIO else "full")
        assert "\n" not in str(caught.value)
        assert os.strerror(error) in str(caught.value)
        assert log.last_seq == fresh[0].seq - 1
        assert read_all(log) == source.entries[:-3]
        disk.room = None
        log.append(fresh)
        assert read_all(log) == source.entries
    assert log.damaged == 0
    assert log.bytes_on_disk == sum(path.stat().st_size for path in files_of(log)) >= size
    log = reopened(wal, log)
    assert read_all(log) == source.entries
    if not cutting_fails:
        assert log.damaged == 0


def test_another_batch_may_take_the_place_of_one_that_failed(wal, log, source, disk):
    """What was left half-way of the first is not taken for it, even where it was whole."""
    log.append(source.take(3, 20))
    fresh = source.take(3, 20)
    disk.room, disk.cutting_fails = 130, True
    with pytest.raises(WalError):
        log.append(fresh)
    disk.room = None
    source.forget(3)
    source.seed = 1
    log.append(source.take(3, 20))
    assert read_all(log) == source.entries
    log = reopened(wal, log)
    assert read_all(log) == source.entries


def test_a_full_disk_keeps_the_segment_and_goes_on_in_it(log, source, disk, caplog):
    log.append(source.take(1, 20))
    for room in (0, 10, 50):
        fresh = source.take(1, 20)
        disk.room = room
        with pytest.raises(WalError, match=r"cannot append to .*No space left on device; free space there"):
            log.append(fresh)
        disk.room = None
        log.append(fresh)
    assert len(files_of(log)) == 1
    assert warnings_of(caplog) == []


def test_after_an_input_output_error_the_segment_is_sealed(log, source, disk, caplog):
    log.append(source.take(1, 20))
    fresh = source.take(1, 20)
    disk.room, disk.error = 10, errno.EIO
    with pytest.raises(WalError):
        log.append(fresh)
    disk.room = None
    log.append(fresh)
    assert [path.name for path in files_of(log)] == [f"{1:020d}.wal", f"{2:020d}.wal"]
    one_warning(caplog, "sealed", files_of(log)[0], "Input/output error")


@pytest.mark.parametrize("room", [0, 1, 163, 164, 200, 223])
def test_a_new_segment_that_cannot_be_written_is_gone(wal, log, source, disk, room):
    for size in (20, 1300):  # the first of the stream, and a later one
        fresh = source.take(1, size)
        before = [path.name for path in files_of(log)]
        disk.room = room
        with pytest.raises(WalError, match=r"cannot write .*No space left"):
            log.append(fresh)
        assert [path.name for path in files_of(log)] == before
        assert log.bytes_on_disk == sum(path.stat().st_size for path in files_of(log))
        disk.room = None
        log.append(fresh)
    assert read_all(log) == source.entries
    assert len(files_of(log)) == 2


def test_a_new_segment_that_can_neither_be_written_nor_removed(wal, log, source, disk, monkeypatch):
    fresh = source.take(2, 20)
    disk.room = 20
    with monkeypatch.context() as patched:
        patched.setattr(
            Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
        with pytest.raises(WalError):
            log.append(fresh)
    disk.room = None
    log.append(fresh)
    assert [path.name for path in files_of(log)] == [f"{1:020d}.1.wal", f"{1:020d}.wal"]
    assert read_all(log) == source.entries
    log = reopened(wal, log)
    assert read_all(log) == source.entries


def test_of_two_segments_with_one_name_the_later_counts(wal, log, source, disk, monkeypatch):
    """The first was not removed after its append had failed, and whole batches are in it."""
    disk.room = 164 + 2 * 60 + 30
    with monkeypatch.context() as patched:
        patched.setattr(
            Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
        with pytest.raises(WalError):
            log.append(source.take(3, 20))
    disk.room = None
    source.forget(0)
    source.seed = 1
    log.append(source.take(2, 20))
    log = reopened(wal, log)
    assert read_all(log) == source.entries
    log.append(source.take(1, 20))
    log = reopened(wal, log)
    assert read_all(log) == source.entries


def test_short_writes_are_carried_on(log, source, monkeypatch):
    """As after a signal: no error, only less than was asked for."""
    chance = random.Random(1)
    pwritev, pwrite = os.pwritev, os.pwrite

    def short(fd, buffers, offset):
        whole = b"".join(buffers)
        return pwrite(fd, whole[: chance.randint(1, len(whole))], offset)

    monkeypatch.setattr(os, "pwritev", short)
    monkeypatch.setattr(os, "pwrite", lambda fd, rest, offset: pwrite(fd, rest[: chance.randint(1, 30)], offset))
    for _ in range(50):
        log.append(source.take(chance.randint(1, 4), chance.choice([5, 50, 500])))
    assert read_all(log) == source.entries
    assert log.damaged == 0
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(WalError, match="nothing could be written"):
        log.append(source.take(1))
    monkeypatch.setattr(os, "pwritev", pwritev)
    log.append(source.entries)
    assert read_all(log) == source.entries


def test_a_directory_that_is_gone_is_one_line(log, source):
    log.append(source.take(1, 1400))
    shutil.rmtree(log.path)
    with pytest.raises(WalError, match=f"cannot create a segment in {log.path}: No such file or directory"):
        log.append(source.take(1, 1400))


# ---- fsync ----------------------------------------------------------------------------------------------------------


def test_a_failed_fsync_is_never_tried_again_and_what_was_not_safe_is_elsewhere(wal, log, source, disk, caplog):
    log.append(source.take(2, 20))
    log.sync()
    log.append(source.take(2, 20))
    log.append(source.take(1, 20))
    disk.synced.clear()
    disk.syncs_fail = 1
    with pytest.raises(
        WalError, match=r"cannot make safe .*Input/output error; what was not safe is written to a new"
    ) as caught:
        log.sync()
    assert caught.value.kind == "io"
    assert disk.synced == [f"{1:020d}.wal", f"{3:020d}.wal"]
    one_warning(caplog, "batches 3 to 5 were written again, to", files_of(log)[1])
    log.sync()  # now it is safe
    log.append(source.take(3, 20))
    log.sync()
    assert disk.synced == [f"{1:020d}.wal", f"{3:020d}.wal", f"{6:020d}.wal"]
    assert read_all(log) == source.entries
    assert log.damaged == 0
    for seq in range(1, 9):
        assert log.read(seq, 1) == [source.entries[seq - 1]]
    assert log.bytes_on_disk == sum(path.stat().st_size for path in files_of(log))
    log = reopened(wal, log)
    assert read_all(log) == source.entries
    log.acknowledged(8, NOW_S)
    log.expire(NOW_S + 600)
    assert files_of(log) == []


def test_a_segment_of_which_nothing_is_safe_is_replaced(wal, log, source, disk):
    """So a disk that goes on failing is not filled with copies."""
    for _ in range(20):
        log.append(source.take(2, 20))
        disk.syncs_fail = 1
        with pytest.raises(WalError):
            log.sync()
        log.sync()
    assert read_all(log) == source.entries
    assert len(files_of(log)) == 20
    assert log.bytes_on_disk == 20 * (SEGMENT_HEADER_BYTES + 120)
    assert read_all(reopened(wal, log)) == source.entries


def test_until_a_copy_is_safe_nothing_is_said_to_be(wal, log, source, disk, caplog):
    """And a disk that goes on failing costs one copy for each call, never an fsync of the same file."""
    log.append(source.take(2, 20))
    disk.syncs_fail = 1_000_000
    for calls in range(1, 11):
        with pytest.raises(WalError, match="cannot make safe"):
            log.sync()
        assert len(disk.synced) == calls + 1  # the first call began with the segment itself
        log.append(source.take(1, 20))
        assert read_all(log) == source.entries
        assert len(files_of(log)) == 2  # a copy, and what came after it
    assert len(set(disk.synced)) == len(disk.synced)
    assert warnings_of(caplog) == []  # each call has raised
    disk.syncs_fail = 0
    log.sync()
    one_warning(caplog, "batches 1 to 2 were written again")
    assert disk.synced[-1] == files_of(log)[-1].name
    assert read_all(reopened(wal, log)) == source.entries


def test_what_failed_in_a_row_is_copied_together(wal, log, source, disk):
    """As far as a segment holds it."""
    for _ in range(12):
        log.append(source.take(1, 20))
        log._appender.active = None  # as after other errors
    assert len(files_of(log)) == 12
    disk.syncs_fail = 12
    with pytest.raises(WalError):
        log.sync()
    log.sync()
    assert [path.name for path in files_of(log)] == [f"{1:020d}.1.wal", f"{7:020d}.1.wal"]
    assert read_all(log) == source.entries
    assert log.bytes_on_disk == sum(path.stat().st_size for path in files_of(log))
    assert read_all(reopened(wal, log)) == source.entries


def test_what_did_not_fail_in_between_stays(wal, log, source, disk, monkeypatch):
    for _ in range(4):
        log.append(source.take(1, 20))
        log._appender.active = None
    failing = {files_of(log)[number].name for number in (0, 1, 3)}
    fdatasync = disk.fdatasync

    def fail_some(fd):
        disk.syncs_fail = int(Path(f"/proc/self/fd/{fd}").readlink().name in failing)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", fail_some)
    with pytest.raises(WalError):
        log.sync()
    log.sync()
    assert [path.name for path in files_of(log)] == [f"{1:020d}.1.wal", f"{3:020d}.wal", f"{4:020d}.1.wal"]
    assert read_all(log) == source.entries
    assert read_all(reopened(wal, log)) == source.entries


def test_several_segments_may_fail_at_once(wal, log, source, disk):
    for _ in range(30):
        log.append(source.take(1, 200))
    before = len(files_of(log))
    disk.syncs_fail = before
    with pytest.raises(WalError):
        log.sync()
    log.sync()
    assert len(disk.synced) == 2 * before
    assert read_all(log) == source.entries
    assert len(files_of(log)) == before
    assert read_all(reopened(wal, log)) == source.entries


def test_a_failed_fsync_of_the_directory_counts_for_the_files_that_are_new_in_it(log, source, disk):
    log.sync()
    log.append(source.take(2, 20))
    disk.directory_syncs_fail = 1
    with pytest.raises(WalError, match="cannot make safe"):
        log.sync()
    log.sync()
    assert [path.name for path in files_of(log)] == [f"{1:020d}.1.wal"]
    log.append(source.take(1, 20))
    log.sync()
    assert read_all(log) == source.entries


def test_a_failed_fsync_of_the_directories_above_is_raised(log, source, disk):
    log.append(source.take(2, 20))
    disk.directory_syncs_fail = 100
    with pytest.raises(WalError):
        log.sync()
    assert read_all(log) == source.entries


def test_a_directory_above_is_synced_again_until_that_succeeds(wal, log, source, disk, monkeypatch):
    log.append(source.take(2, 20))
    disk.directory_syncs_fail = 100
    for _ in range(2):
        with pytest.raises(WalError):
            log.sync()
    disk.directory_syncs_fail = 0
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink()) or real(fd))
    log.sync()
    assert {wal.path, log.path.parent} <= set(synced)
    synced.clear()
    log.append(source.take(1, 20))
    log.sync()
    assert set(synced) <= {log.path}


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.ENOENT, errno.EACCES])
def test_a_directory_above_that_can_never_be_synced_is_said_once(wal, log, source, monkeypatch, caplog, error):
    real = syncer.sync_directory

    def refuse(path):
        if path == wal.path.parent:
            raise OSError(error, os.strerror(error))
        real(path)

    monkeypatch.setattr(syncer, "sync_directory", refuse)
    for _ in range(3):
        log.append(source.take(1, 20))
        log.sync()
    one_warning(caplog, "cannot fsync", wal.path.parent, os.strerror(error))


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("call", ["dup", "open"])
def test_without_descriptors_no_fsync_has_failed(wal, log, source, disk, monkeypatch, caplog, error, call):
    """Nothing is sealed or written again, nothing is said to be safe, and the next call makes it so."""
    log.sync()
    log.append(source.take(2, 20))
    if call == "open":
        log._chain.segments[-1].close()
        log._appender.seal(log._chain.segments[-1])
    real = getattr(os, call)

    def refuse(*arguments, **more):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, call, refuse)
    for _ in range(3):
        with pytest.raises(WalError) as caught:
            log.sync()
        assert caught.value.kind == "shortage"
        assert "open files" in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(os, call, real)
    assert warnings_of(caplog) == []
    assert disk.synced == []
    log.sync()
    assert disk.synced == [f"{1:020d}.wal"]
    assert [path.name for path in files_of(log)] == [f"{1:020d}.wal"]
    log.append(source.take(2, 20))
    assert len(files_of(log)) == (1 if call == "dup" else 2), "it goes on where it was"
    assert read_all(reopened(wal, log)) == source.entries


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EMFILE])
@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_an_fsync_that_lacks_something_has_failed(wal, log, source, disk, monkeypatch, error, call):
    """It was tried, and nobody knows what the kernel has dropped since."""
    if call == "fdatasync":
        log.sync()
    log.append(source.take(2, 20))
    real, calls = getattr(os, call), []

    def refuse_once(fd):
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(error, os.strerror(error))
        real(fd)

    monkeypatch.setattr(os, call, refuse_once)
    with pytest.raises(WalError, match="cannot make safe") as caught:
        log.sync()
    assert caught.value.kind == "io", "it counts as a failure"
    log.sync()
    assert [path.name for path in files_of(log)] == [f"{1:020d}.1.wal"]
    assert read_all(reopened(wal, log)) == source.entries


def test_a_shortage_does_not_hide_a_failure(wal, log, source, disk, monkeypatch):
    log.sync()
    for _ in range(2):
        log.append(source.take(1, 20))
        log._appender.active = None
    later = log._chain.segments[1]
    dup = os.dup

    def refuse(fd):
        if fd == later.fd:
            raise OSError(errno.EMFILE, "Too many open files")
        return dup(fd)

    disk.syncs_fail = 1
    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", refuse)
        with pytest.raises(WalError, match="cannot make safe") as caught:
            log.sync()
    assert caught.value.kind == "io"
    log.sync()
    assert read_all(reopened(wal, log)) == source.entries


def test_without_descriptors_what_lies_elsewhere_is_not_lost(log, source, disk, monkeypatch):
    """A gap that an earlier segment fills is no hole because that can't be opened now."""
    log.append(source.take(3, 20))
    log.sync()
    log.append(source.take(2, 20))
    disk.syncs_fail = 1
    with pytest.raises(WalError):
        log.sync()
    _, later = files_of(log)
    content = bytearray(later.read_bytes())
    content[SEGMENT_HEADER_BYTES + 45] ^= 0xFF
    later.write_bytes(content)
    opened = []
    real = os.open

    def refuse(path, *arguments, **more):
        opened.append(path)
        if len(opened) > 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(WalError, match="Too many open files"):
        log.read(4, 1 << 20)
    monkeypatch.setattr(os, "open", real)
    assert read_all(log) == source.entries


def test_appending_goes_on_while_a_failed_fsync_is_handled(wal, log, source, disk, monkeypatch):
    log.append(source.take(2, 20))
    fdatasync = disk.fdatasync

    def append_meanwhile(fd):
        log.append(source.take(1, 20))
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", append_meanwhile)
    disk.syncs_fail = 1
    with pytest.raises(WalError):
        log.sync()
    log.sync()
    assert read_all(log) == source.entries
    assert len(source.entries) >= 5
    assert read_all(reopened(wal, log)) == source.entries


def test_what_is_appended_during_an_fsync_is_not_safe_yet(wal, log, source, disk, monkeypatch):
    log.append(source.take(2, 20))
    fdatasync = disk.fdatasync

    def append_meanwhile(fd):
        fdatasync(fd)
        if log.last_seq == 2:
            log.append(source.take(1, 20))

    monkeypatch.setattr(os, "fdatasync", append_meanwhile)
    log.sync()
    assert log.last_seq == 3
    disk.syncs_fail = 1
    with pytest.raises(WalError):
        log.sync()
    assert [path.name for path in files_of(log)] == [f"{1:020d}.wal", f"{3:020d}.wal"]
    os.truncate(files_of(log)[0], 164 + 2 * 60)  # what a power failure may leave
    assert read_all(reopened(wal, log)) == source.entries


def test_no_space_for_the_copy_is_said_and_tried_again(wal, log, source, disk):
    log.append(source.take(2, 20))
    log.sync()
    log.append(source.take(3, 20))
    disk.syncs_fail, disk.room = 1, 70
    with pytest.raises(WalError, match="cannot make safe"):
        log.sync()
    disk.room = 70
    with pytest.raises(WalError, match="No space left on device") as caught:
        log.sync()
    assert caught.value.kind == "full"
    assert read_all(log) == source.entries
    disk.room = None
    log.append(source.take(2, 20))  # meanwhile, in a segment of its own
    log.sync()
    assert [path.name for path in files_of(log)] == [f"{seq:020d}.wal" for seq in (1, 3, 6)]
    assert read_all(log) == source.entries
    assert read_all(reopened(wal, log)) == source.entries


def test_a_segment_that_goes_while_its_fsync_fails(log, source, disk, monkeypatch):
    """It was acknowledged, and there was no room."""
    log.append(source.take(2, 20))

    def evict(fd):
        log.acknowledged(2, NOW_S)
        log.evict_acknowledged()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", evict)
    log.sync()
    assert files_of(log) == []
    assert log.finished


def test_an_unfinished_copy_hides_nothing(wal, log, source, disk):
    """Killed while it copied: the beginning of the copy is there, and all of the original."""
    log.append(source.take(2, 20))
    log.sync()
    log.append(source.take(5, 20))
    disk.syncs_fail = 1
    with pytest.raises(WalError):
        log.sync()
    crash(log)
    copy = files_of(log)[1]
    whole = copy.read_bytes()
    for size in (*range(0, len(whole), 17), len(whole)):
        copy.write_bytes(whole[:size])
        (log,) = wal.adopt(1)
        assert log.last_seq == 7
        for bytes_max in (1 << 20, 1):
            assert read_all(log, bytes_max=bytes_max) == source.entries
        assert log.damaged == 0
        log.close()
        if not copy.exists():
            copy.touch()


def test_damage_in_what_is_copied_is_counted_and_kept(wal, log, source, disk, caplog):
    log.append(source.take(5, 20))
    content = bytearray(files_of(log)[0].read_bytes())
    content[164 + 60 + 45] ^= 1
    files_of(log)[0].write_bytes(content)
    disk.syncs_fail = 1
    with pytest.raises(WalError):
        log.sync()
    assert log.damaged >= 1
    assert [entry.seq for entry in read_all(log) if not entry.body] == [2]
    assert [entry for entry in read_all(log) if entry.body] == [e for e in source.entries if e.seq != 2]
    assert "can't be written again" in warnings_of(caplog)[0]
    assert len(list((wal.path / "quarantine").iterdir())) >= 1


# ---- for real -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(path, size):
    """A tmpfs; the test is skipped where nobody may mount one."""
    path.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small file system")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def append_for_ever(log, source):
    while True:
        log.append(source.take(4, 1000))


def test_a_disk_that_is_really_full(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        wal = directory(disk, limit=1 << 30, floor=200_000, segment_bytes=100_000)
        log, source = wal.create(STREAM), Source()
        while wal.room():
            log.append(source.take(4, 1000))
        state = os.statvfs(disk)
        assert 150_000 < state.f_bavail * state.f_frsize < 200_000
        with pytest.raises(WalError) as caught:
            append_for_ever(log, source)
        assert caught.value.kind == "full"
        fresh = source.entries[-4:]
        for _ in range(20):
            with pytest.raises(WalError, match="No space left on device"):
                log.append(fresh)
        assert read_all(log) == source.entries[:-4]
        log.acknowledged(300, NOW_S)  # a note needs no more than a page, and does without
        freed = wal.bytes_on_disk
        assert not wal.room() or wal.bytes_on_disk < freed
        assert wal.room()
        log.append(fresh)
        log.sync()
        assert read_all(log) == source.entries[log.first_seq - 1 :]
        assert log.damaged == 0
        crash(log)
        (log,) = wal.adopt(1)
        assert read_all(log) == source.entries[log.first_seq - 1 :]
        assert log.damaged == 0
        with (disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
            while True:  # somebody else takes what is left
                other.write(bytes(4096))
        assert not wal.room()
        with pytest.raises(WalError, match="No space left on device"):
            log.append(source.take(4, 1000))
        assert len(log.drop_oldest()) > 50
        log.append(source.entries[-4:])
        assert read_all(log) == source.entries[log.first_seq - 1 :]
        wal.close()


def test_a_limit_of_the_file_size(tmp_path):
    """A real short write: the first segment can't grow as large as it should."""
    script = """
        import resource, signal, sys
        from pathlib import Path
        from cluster.wal.errors import WalError
        from tests.wal.streams import STREAM, Source, directory, files_of, read_all
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        log, source = directory(Path(sys.argv[1]), segment_bytes=100_000).create(STREAM), Source()
        failures = 0
        for _ in range(100):
            fresh = source.take(1, 1000)
            try:
                log.append(fresh)
            except WalError as error:
                assert "File too large" in str(error)
                failures += 1
                log.append(fresh)
        assert read_all(log) == source.entries
        assert all(path.stat().st_size <= 20_000 for path in files_of(log))
        print(failures)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 5
