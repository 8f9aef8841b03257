"""The worker's WAL on real files, in a real loop with a real thread: what it answers, when, and what is on the disk.

The disk's own troubles are played by replacing the calls to it; everything else is as in a worker's process.
"""

import asyncio
import errno
import logging
import os
import shutil
import threading
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.messages.results import Batch, encode
from cluster.settings import Settings
from cluster.wal.errors import WalError
from cluster.wal.format import Entry
from cluster.wal.log import StreamLog
from tests.wal.streams import Source, directory, files_of, read_all
from tests.worker.wal_double import missed, results
from worker import recorder as recorder_module
from worker.events import (
    AcknowledgeWal,
    ForgetStream,
    OpenStream,
    ReadWal,
    StreamOpened,
    StreamsAdopted,
    StreamTrimmed,
    WalRead,
    WalWriteFailed,
    WalWritten,
    WriteWal,
)
from worker.recorder import WalRecorder, new_stream_id

DEADLINE_S = 10.0
LIMIT = 1 << 20  # the smallest: segments of 128 KiB
PIECE = 40_000  # bytes of a batch: three to a segment
RETAIN_S = 600.0


async def until(condition, what="it", deadline_s=DEADLINE_S):
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {deadline_s} s for {what() if callable(what) else what}"
        await asyncio.sleep(0.002)
    return found


async def turns():
    """What was to be said at once would have been."""
    for _ in range(10):
        await asyncio.sleep(0)


class Recording:
    """A recorder, what it told its core, and the live stream's source of batches."""

    def __init__(self, tmp_path, **settings):
        settings.setdefault("name", "worker-1")
        settings.setdefault("wal_free_floor_bytes", 0)
        self.settings = Settings(data_dir=tmp_path, **settings)
        self.events = []
        self.recorder = WalRecorder(self.settings, self.events.append)
        self.live = self.recorder.first_stream_id
        self.source = Source()
        self.closed = False

    def log(self, stream_id=None):
        return self.recorder._logs[stream_id or self.live]

    def write(self, count=1, *, size=100, stream_id=None):
        entries = self.source.take(count, size)
        self.recorder.perform(WriteWal(stream_id or self.live, entries))
        return entries

    def acknowledge(self, seq, stream_id=None):
        self.recorder.perform(AcknowledgeWal(stream_id or self.live, seq))

    async def open(self):
        """A further stream, with a source of its own; its id is of a later millisecond."""
        born_at_ms = uuid.UUID(self.live).int >> 80
        await until(lambda: time.time_ns() // 1_000_000 > born_at_ms)
        self.recorder.perform(OpenStream())
        opened = await self.told(StreamOpened)
        self.live, self.source = opened.stream_id, Source()
        return self.live

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    async def told(self, kind, count=1):
        """The latest event of a kind, once there are so many."""
        await until(lambda: len(self.of(kind)) >= count, lambda: f"{count} {kind.__name__}, there are {self.events}")
        return self.of(kind)[-1]

    async def close(self):
        if not self.closed:
            self.closed = True
            await self.recorder.close()


@pytest.fixture
async def recording(tmp_path):
    """``recording(**settings)``: a recorder on this test's directory; each is closed."""
    made = []

    def make(**settings):
        made.append(Recording(tmp_path, **settings))
        return made[-1]

    yield make
    for each in made:
        await each.close()


class Disk:
    """Stands in for fdatasync: counts, waits while ``free`` is not set, fails while ``error`` is set."""

    def __init__(self, monkeypatch):
        self.syncs = []  # names of files
        self.free = threading.Event()
        self.free.set()
        self.error = 0
        self.failing_below = ""  # only files whose path has this
        self._real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self._fdatasync)

    def _fdatasync(self, fd):
        path = str(Path(f"/proc/self/fd/{fd}").readlink())
        self.syncs.append(path)
        assert self.free.wait(DEADLINE_S)
        if self.error and self.failing_below in path:
            raise OSError(self.error, os.strerror(self.error))
        self._real(fd)


@pytest.fixture
def disk(monkeypatch):
    made = Disk(monkeypatch)
    yield made
    made.free.set()


class Full:
    """Stands in for pwritev: half of it is written, then the disk is full."""

    def __init__(self, monkeypatch):
        self.error = errno.ENOSPC
        self._real = os.pwritev
        monkeypatch.setattr(os, "pwritev", self._pwritev)

    def _pwritev(self, fd, buffers, offset):
        if self.error:
            os.pwrite(fd, b"".join(buffers)[: sum(map(len, buffers)) // 2], offset)
            raise OSError(self.error, os.strerror(self.error))
        return self._real(fd, buffers, offset)


@pytest.fixture
def full(monkeypatch):
    return Full(monkeypatch)


@pytest.fixture
def wall(monkeypatch):
    """The wall clock of the recorder, to be moved."""
    clock = SimpleNamespace(ahead_s=0.0)
    monkeypatch.setattr(
        recorder_module,
        "time",
        SimpleNamespace(time=lambda: time.time() + clock.ahead_s, monotonic=time.monotonic, time_ns=time.time_ns),
    )
    return clock


def lines(caplog, level=logging.WARNING):
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def orphan(tmp_path, count=3, *, worker="worker-9", acked=0, size=100):
    """What a worker that died left."""
    left = directory(tmp_path, worker, segment_bytes=1 << 20)
    log = left.create(new_stream_id())
    entries = Source().take(count, size)
    log.append(entries)
    if acked:
        log.acknowledged(acked, time.time())
    left.close()
    return log.stream_id, entries


def adopted_by(tmp_path):
    """Everything that can be adopted now, as {stream id: batches}."""
    heir = directory(tmp_path, "heir")
    found = {log.stream_id: read_all(log) for log in heir.adopt(1_000)}
    heir.close()
    return found


# ---- the three policies ------------------------------------------------------------------------------------------


async def test_off_says_written_at_once_and_never_syncs(recording, disk):
    worker = recording(wal_fsync="off", wal_fsync_interval_ms=10)
    worker.write(3)
    assert worker.events == [WalWritten(worker.live, 3)]
    worker.recorder.beat()
    worker.write(1)
    assert worker.recorder._sync_timer is None
    await worker.close()
    assert disk.syncs == []


async def test_interval_says_written_at_once_and_syncs_within_the_interval(recording, disk):
    worker = recording(wal_fsync="interval", wal_fsync_interval_ms=100)
    for _ in range(5):
        worker.write(1)
    began = time.monotonic()
    assert worker.events == [WalWritten(worker.live, seq) for seq in range(1, 6)]
    assert disk.syncs == []
    await until(lambda: disk.syncs, "an fsync")
    assert time.monotonic() - began >= 0.08
    await until(lambda: not worker.recorder._syncing)
    assert len(disk.syncs) == 1, "one for all five"
    worker.write(1)
    await until(lambda: len(disk.syncs) == 2, "an fsync for what came after")


async def test_batch_says_written_when_the_fsync_that_covers_it_returned(recording, disk):
    worker = recording(wal_fsync="batch")
    disk.free.clear()
    worker.write(1)
    await until(lambda: disk.syncs)
    worker.write(2)  # while the disk is busy: these share the next one
    worker.write(1)
    await turns()
    assert worker.events == []
    disk.free.set()
    await worker.told(WalWritten, 2)
    assert worker.events == [WalWritten(worker.live, 1), WalWritten(worker.live, 4)]
    assert len(disk.syncs) == 2


async def test_nothing_is_synced_for_an_idle_worker(recording, disk):
    worker = recording(wal_fsync="interval", wal_fsync_interval_ms=10)
    worker.write(1)
    await until(lambda: disk.syncs and not worker.recorder._syncing)
    for _ in range(5):
        worker.recorder.beat()
        await asyncio.sleep(0.012)
    assert len(disk.syncs) == 1


# ---- a slow disk, a failing disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["interval", "batch"])
async def test_the_loop_goes_on_while_the_disk_is_slow(recording, disk, policy):
    worker = recording(wal_fsync=policy, wal_fsync_interval_ms=10)
    worker.write(1)
    disk.free.clear()
    await until(lambda: disk.syncs)
    turns = 0
    began = time.monotonic()
    while time.monotonic() - began < 0.2:
        worker.write(1)
        worker.recorder.beat()
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 20, "the loop waited for the disk"
    assert len(disk.syncs) == 1, "one at a time"
    assert len(worker.of(WalWritten)) == (turns + 1 if policy == "interval" else 0)
    disk.free.set()
    if policy == "batch":
        await until(lambda: worker.events and worker.events[-1] == WalWritten(worker.live, turns + 1))
    await worker.close()
    assert worker.recorder.sync_failures == 0


async def test_without_descriptors_no_fsync_has_failed(recording, disk, caplog, monkeypatch):
    monkeypatch.setattr(recorder_module, "SYNC_AGAIN_S", 0.02)
    worker = recording(wal_fsync="batch")
    real = os.dup

    def refuse(_fd):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", refuse)
    worker.write(2)
    (line,) = await until(lambda: lines(caplog, logging.WARNING))
    assert "Too many open files" in line
    assert line.endswith("what was written is made safe later")
    assert worker.of(WalWritten) == []
    monkeypatch.setattr(os, "dup", real)
    await until(lambda: worker.of(WalWritten))
    assert lines(caplog, logging.CRITICAL) == []
    await worker.close()
    assert worker.recorder.sync_failures == 0


@pytest.mark.parametrize("policy", ["interval", "batch"])
async def test_after_a_failed_fsync_the_batches_are_in_a_new_segment(
    recording, disk, policy, caplog, monkeypatch, tmp_path
):
    monkeypatch.setattr(recorder_module, "SYNC_AGAIN_S", 0.02)
    worker = recording(wal_fsync=policy, wal_fsync_interval_ms=10)
    entries = worker.write(2)
    await until(lambda: disk.syncs and not worker.recorder._syncing)
    before = files_of(worker.log())
    disk.error = errno.EIO
    entries += worker.write(2)
    await until(lambda: worker.recorder.sync_failures)
    (alarm,) = lines(caplog, logging.CRITICAL)
    assert str(worker.log().path) in alarm
    assert "check the disk" in alarm
    disk.error = 0
    await until(lambda: worker.events[-1] == WalWritten(worker.live, 4))
    entries += worker.write(1)  # and it goes on
    await until(lambda: worker.events[-1] == WalWritten(worker.live, 5))
    assert files_of(worker.log())[:1] == before, "what was safe stays where it is"
    assert len(files_of(worker.log())) > 1
    await worker.close()
    assert adopted_by(tmp_path) == {worker.live: entries}


async def test_what_waits_for_an_fsync_that_fails_still_waits_when_its_directory_was_made_again(
    recording, disk, monkeypatch
):
    """That wants an fsync as well, for which nobody waits."""
    monkeypatch.setattr(recorder_module, "SYNC_AGAIN_S", 0.01)
    worker = recording(wal_fsync="batch")
    disk.free.clear()
    worker.write(1)
    await until(lambda: disk.syncs)
    worker.recorder._on_restored([worker.live])
    disk.error = errno.EIO
    disk.free.set()
    await until(lambda: worker.recorder.sync_failures)
    disk.error = 0
    assert await worker.told(WalWritten) == WalWritten(worker.live, 1)


async def test_with_batch_nothing_is_written_before_a_later_fsync_succeeded(recording, disk, monkeypatch):
    monkeypatch.setattr(recorder_module, "SYNC_AGAIN_S", 0.01)
    worker = recording(wal_fsync="batch")
    disk.error = errno.EIO
    worker.write(2)
    for _ in range(3):
        await until(lambda before=worker.recorder.sync_failures: worker.recorder.sync_failures > before)
        assert worker.events == []
        worker.write(1)
    disk.error = 0
    await worker.told(WalWritten)
    assert worker.events[-1].seq == 5


async def test_with_batch_a_disk_that_fails_for_the_copy_too_has_written_nothing(recording, disk, monkeypatch):
    monkeypatch.setattr(recorder_module, "SYNC_AGAIN_S", 0.01)
    worker = recording(wal_fsync="batch")
    disk.error = errno.EIO
    worker.write(1)  # and nothing after it
    await until(lambda: worker.recorder.sync_failures >= 3 or worker.events, "it to be tried again")
    assert worker.events == []
    disk.error = 0
    await worker.told(WalWritten)


async def test_one_stream_s_failure_does_not_hold_up_another(recording, disk, monkeypatch):
    monkeypatch.setattr(recorder_module, "SYNC_AGAIN_S", 0.01)
    worker = recording(wal_fsync="batch")
    old = worker.live
    worker.write(1)
    await worker.told(WalWritten)
    old_source = worker.source
    live = await worker.open()
    disk.failing_below, disk.error = old, errno.EIO
    disk.free.clear()
    worker.recorder.perform(WriteWal(old, old_source.take(1)))
    worker.write(1)
    disk.free.set()
    await until(lambda: WalWritten(live, 1) in worker.events)
    assert WalWritten(old, 2) not in worker.events
    disk.error = 0
    await until(lambda: WalWritten(old, 2) in worker.events)


async def test_a_disk_that_keeps_failing_is_neither_busily_tried_nor_said_each_time(
    recording, disk, caplog, monkeypatch
):
    monkeypatch.setattr(recorder_module, "SYNC_AGAIN_S", 0.02)
    worker = recording(wal_fsync="batch")
    disk.error = errno.EIO
    began = time.monotonic()
    while worker.recorder.sync_failures < 5:
        worker.write(1)
        await asyncio.sleep(0.005)
        assert time.monotonic() - began < DEADLINE_S
    assert time.monotonic() - began >= 4 * 0.02
    assert len(lines(caplog, logging.CRITICAL)) == 1
    monkeypatch.setattr(recorder_module, "ALARM_EVERY_S", 0.0)
    worker.recorder._alarm_at_s = 0.0
    worker.write(1)
    await until(lambda: len(lines(caplog, logging.CRITICAL)) >= 2)
    count = int(lines(caplog, logging.CRITICAL)[1].partition("(failures so far: ")[2].rstrip(")"))
    assert count > 5


async def test_a_failure_that_also_can_t_be_written_again_is_not_tried_in_a_circle(
    recording, disk, full, caplog, monkeypatch
):
    monkeypatch.setattr(recorder_module, "SYNC_AGAIN_S", 0.05)
    full.error = 0
    worker = recording(wal_fsync="batch")
    worker.write(1)
    await worker.told(WalWritten)
    worker.write(1)
    disk.error, full.error = errno.EIO, errno.ENOSPC
    began = time.monotonic()
    await until(lambda: worker.recorder.sync_failures >= 4)
    assert time.monotonic() - began >= 3 * 0.05
    assert worker.events == [WalWritten(worker.live, 1)]
    assert len(lines(caplog, logging.CRITICAL)) == 1
    disk.error = full.error = 0
    await until(lambda: worker.events[-1] == WalWritten(worker.live, 2))
    assert read_all(worker.log()) == worker.source.entries


async def test_a_failure_while_closing_is_said(recording, disk, caplog):
    worker = recording(wal_fsync="interval", wal_fsync_interval_ms=60_000)
    worker.write(1)
    disk.error = errno.EIO
    await worker.close()
    (alarm,) = lines(caplog, logging.CRITICAL)
    assert str(worker.settings.wal_dir) in alarm


# ---- writing ------------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_said_once_and_so_is_its_end(recording, full, caplog, tmp_path):
    full.error = 0
    worker = recording(wal_fsync="off")
    worker.write(2)
    full.error = errno.ENOSPC
    worker.write(2)
    for _ in range(3):  # as the outbox does: all that is not known to be there, again
        worker.recorder.perform(WriteWal(worker.live, worker.source.entries[2:]))
    assert worker.events == [WalWritten(worker.live, 2)] + 4 * [WalWriteFailed()]
    (line,) = lines(caplog)
    assert str(worker.log().path) in line
    assert "No space left on device" in line
    assert "free space there" in line
    assert "no polls are started until it can be written again" in line
    assert read_all(worker.log()) == worker.source.entries[:2], "nothing of it counts"
    full.error = 0
    worker.recorder.perform(WriteWal(worker.live, worker.source.entries[2:]))
    assert worker.events[-1] == WalWritten(worker.live, 4)
    assert lines(caplog)[1:] == ["the WAL can be written again"]
    worker.write(1)
    assert len(lines(caplog)) == 2
    await worker.close()
    assert adopted_by(tmp_path) == {worker.live: worker.source.entries}


async def test_an_io_error_is_the_same_with_another_advice(recording, full, caplog):
    full.error = 0
    worker = recording(wal_fsync="off")
    worker.write(1)
    full.error = errno.EIO
    worker.write(1)
    assert worker.events[-1] == WalWriteFailed()
    assert "check the disk" in lines(caplog, logging.ERROR)[0]
    full.error = 0
    worker.recorder.perform(WriteWal(worker.live, worker.source.entries[1:]))
    assert worker.events[-1] == WalWritten(worker.live, 2)
    assert read_all(worker.log()) == worker.source.entries


async def test_what_is_there_already_is_passed_over(recording, caplog):
    worker = recording(wal_fsync="off")
    worker.write(3)
    worker.recorder.perform(WriteWal(worker.live, worker.source.entries))
    entries = [*worker.source.entries[1:], *worker.source.take(2)]
    worker.recorder.perform(WriteWal(worker.live, entries))
    assert worker.events == [WalWritten(worker.live, seq) for seq in (3, 3, 5)]
    assert read_all(worker.log()) == worker.source.entries
    assert not lines(caplog)


async def test_with_batch_what_is_there_already_is_written_once_it_is_safe(recording, disk):
    worker = recording(wal_fsync="batch")
    disk.free.clear()
    entries = worker.write(2)
    worker.recorder.perform(WriteWal(worker.live, entries))
    await until(lambda: disk.syncs)
    assert worker.events == []
    disk.free.set()
    await worker.told(WalWritten)
    assert worker.events[0] == WalWritten(worker.live, 2)


async def test_nothing_is_written_past_a_hole(recording, caplog):
    worker = recording(wal_fsync="off")
    worker.write(1)
    worker.source.take(1)  # could not be written
    worker.write(1)
    assert worker.events == [WalWritten(worker.live, 1), WalWriteFailed()]
    worker.recorder.perform(WriteWal(worker.live, worker.source.entries[1:]))
    assert worker.events[-1] == WalWritten(worker.live, 3)
    assert read_all(worker.log()) == worker.source.entries
    assert not lines(caplog), "the failure before it was said"


# ---- a directory that somebody removes -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["off", "interval", "batch"])
@pytest.mark.parametrize("how", ["the stream", "the whole WAL", "made by hand"])
async def test_a_stream_whose_directory_was_removed_goes_on_in_a_new_one(recording, tmp_path, caplog, policy, how):
    worker = recording(wal_fsync=policy, wal_fsync_interval_ms=10, wal_limit_bytes=LIMIT)
    entries = worker.write(2)
    await worker.told(WalWritten)
    path = worker.log().path
    shutil.rmtree(tmp_path / "wal" if how == "the whole WAL" else path)
    if how == "made by hand":
        path.mkdir()
    entries += worker.write(1)
    for _ in range(4):  # more than its segment holds
        entries += worker.write(1, size=PIECE)
    worker.recorder.beat()
    await until(lambda: not worker.recorder._restoring)
    worker.recorder.perform(WriteWal(worker.live, entries))
    await until(lambda: WalWritten(worker.live, 7) in worker.events, lambda: worker.events)
    (alarm,) = [line for line in lines(caplog, logging.CRITICAL) if "removed" in line]
    assert str(path) in alarm
    worker.recorder.beat()
    assert not worker.recorder._restoring
    assert worker.recorder.damaged == 0, "what was in it was open, and is written again"
    await worker.close()
    assert adopted_by(tmp_path) == {worker.live: entries}


async def test_what_can_t_be_written_again_is_counted_but_for_what_was_acknowledged(recording):
    worker = recording(wal_fsync="batch", wal_limit_bytes=LIMIT)
    for number in range(1, 11):  # three to a segment, and all of it safe
        worker.write(1, size=PIECE)
        await until(lambda number=number: WalWritten(worker.live, number) in worker.events)
    worker.acknowledge(3)
    worker.events.clear()
    for segment in worker.log()._chain.segments[:3]:
        segment.close()
    shutil.rmtree(worker.log().path)
    worker.recorder.beat()
    await until(lambda: not worker.recorder._restoring)
    assert worker.recorder.damaged == 2, "of three segments that were closed one was acknowledged"
    worker.recorder.perform(ReadWal(worker.live, 4, 1 << 20))
    read = (await worker.told(WalRead)).entries
    assert [each.seq for each in read if not each.body] == [4, 5, 6, 7, 8, 9]
    worker.recorder.beat()
    assert worker.of(StreamTrimmed) == [StreamTrimmed(worker.live, 4)]
    worker.write(1)
    await worker.told(WalWritten)


async def test_a_directory_that_can_t_be_made_again_is_tried_every_second_and_said_once(
    recording, monkeypatch, caplog, tmp_path
):
    worker = recording(wal_fsync="off")
    entries = worker.write(1)
    shutil.rmtree(worker.log().path)
    real = os.mkdir
    monkeypatch.setattr(os, "mkdir", _raises(OSError(errno.ENOSPC, "No space left on device")))
    for _ in range(3):
        worker.recorder.beat()
        await until(lambda: not worker.recorder._restoring)
    (line,) = lines(caplog)
    assert "No space left on device" in line
    monkeypatch.setattr(os, "mkdir", real)
    worker.recorder.beat()
    await until(lambda: not worker.recorder._restoring)
    entries += worker.write(1)
    await worker.close()
    assert adopted_by(tmp_path) == {worker.live: entries}


async def test_a_directory_that_is_there_is_left_alone(recording):
    worker = recording(wal_fsync="off")
    worker.write(1)
    worker.recorder.beat()
    assert not worker.recorder._restoring


# ---- reading ------------------------------------------------------------------------------------------------------


async def test_reads_are_answered_from_the_disk(recording):
    worker = recording(wal_fsync="off")
    entries = worker.write(10, size=1_000)
    worker.recorder.perform(ReadWal(worker.live, 1, 1 << 20))
    assert await worker.told(WalRead) == WalRead(worker.live, entries)
    worker.recorder.perform(ReadWal(worker.live, 5, 2_500))
    assert await worker.told(WalRead, 2) == WalRead(worker.live, entries[4:6])
    worker.recorder.perform(ReadWal(worker.live, 5, 1))
    assert await worker.told(WalRead, 3) == WalRead(worker.live, entries[4:5]), "at least one"
    worker.recorder.perform(ReadWal(worker.live, 11, 1 << 20))
    assert await worker.told(WalRead, 4) == WalRead(worker.live, [])


async def test_a_read_waits_in_the_thread_and_not_in_the_loop(recording, disk):
    worker = recording(wal_fsync="batch")
    disk.free.clear()
    entries = worker.write(2)
    await until(lambda: disk.syncs)
    worker.recorder.perform(ReadWal(worker.live, 1, 1 << 20))
    await turns()
    assert worker.events == []
    disk.free.set()
    assert await worker.told(WalRead) == WalRead(worker.live, entries)


async def test_what_can_t_be_read_is_said_and_answered_with_nothing(recording, caplog, monkeypatch):
    worker = recording(wal_fsync="off")
    worker.write(2)
    monkeypatch.setattr(StreamLog, "read", _raises(WalError("cannot read x: Input/output error; check the disk")))
    worker.recorder.perform(ReadWal(worker.live, 1, 1 << 20))
    assert await worker.told(WalRead) == WalRead(worker.live, [])
    assert lines(caplog) == ["cannot read x: Input/output error; check the disk; trying again later"]


def _raises(error):
    def raising(*_args, **_kwargs):
        raise error

    return raising


def flip_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


async def test_damage_is_read_as_holes_and_counted(recording, tmp_path, caplog):
    stream_id, entries = orphan(tmp_path, 3, size=5_000)
    (path,) = (tmp_path / "wal" / "worker-9" / stream_id).glob("*.wal")
    flip_in_the_middle(path)
    worker = recording()
    worker.recorder.beat()
    await worker.told(StreamsAdopted)
    worker.recorder.perform(ReadWal(stream_id, 1, 1 << 20))
    read = (await worker.told(WalRead)).entries
    assert [(each.seq, each.body == b"") for each in read] == [(1, False), (2, True), (3, False)]
    assert [read[0], read[2]] == [entries[0], entries[2]]
    assert worker.recorder.damaged == 1
    assert sum("damage in the WAL" in line for line in lines(caplog)) == 1


# ---- streams ------------------------------------------------------------------------------------------------------


async def test_a_stream_s_id_tells_its_age():
    before = time.time_ns() // 1_000_000
    ids = [new_stream_id() for _ in range(100)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 100
    for each in ids:
        value = uuid.UUID(each)
        assert (value.version, value.variant) == (7, uuid.RFC_4122)
        assert before <= value.int >> 80 <= after


async def test_a_directory_that_can_t_be_used_is_one_error(tmp_path, recording):
    (tmp_path / "wal").write_text("in the way")
    with pytest.raises(WalError, match=r"cannot create the stream .*/wal/worker-1/") as caught:
        recording()
    assert "\n" not in str(caught.value)


async def test_a_worker_that_begins_on_a_full_disk_waits_for_room(recording, monkeypatch, caplog, tmp_path):
    """Ended, it would be started again and again, and in the end stay down."""
    real = os.mkdir
    monkeypatch.setattr(os, "mkdir", _raises(OSError(errno.ENOSPC, "No space left on device")))
    worker = recording(wal_fsync="off")
    for _ in range(3):
        worker.recorder.beat()
        assert worker.recorder.full, "so nothing is polled"
    entries = worker.write(1)  # ranges of missed ticks, at a release or a stop
    assert worker.events == [WalWriteFailed()]
    (line,) = lines(caplog)
    assert "No space left on device" in line
    assert "no polls are started until" in line
    monkeypatch.setattr(os, "mkdir", real)
    worker.recorder.beat()
    assert not worker.recorder.full
    worker.recorder.perform(WriteWal(worker.live, entries))
    assert worker.events[-1] == WalWritten(worker.live, 1)
    await worker.close()
    assert adopted_by(tmp_path) == {worker.live: entries}


async def test_a_worker_that_never_had_room_ends_all_the_same(recording, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "mkdir", _raises(OSError(errno.ENOSPC, "No space left on device")))
    worker = recording()
    worker.recorder.beat()
    await worker.close()
    assert not (tmp_path / "wal").exists()


async def test_a_further_stream_takes_what_is_new(recording, tmp_path):
    worker = recording(wal_fsync="off")
    first = worker.live
    old = worker.write(2)
    second = await worker.open()
    assert second != first
    assert sorted([second, first]) == [first, second]
    new = worker.write(3)
    worker.acknowledge(2, first)
    await worker.close()
    assert adopted_by(tmp_path) == {first: old, second: new}


async def test_a_stream_that_can_t_be_opened_now_is_opened_later(recording, monkeypatch, caplog):
    worker = recording()
    real = os.mkdir
    monkeypatch.setattr(os, "mkdir", _raises(OSError(errno.ENOSPC, "No space left on device")))
    worker.recorder.perform(OpenStream())
    for _ in range(3):
        worker.recorder.beat()
    assert worker.of(StreamOpened) == []
    (line,) = lines(caplog)
    assert "No space left on device" in line
    monkeypatch.setattr(os, "mkdir", real)
    worker.recorder.beat()
    (opened,) = worker.of(StreamOpened)
    worker.write(1, stream_id=opened.stream_id)
    assert worker.events[-1] == WalWritten(opened.stream_id, 1)
    worker.recorder.beat()
    assert len(worker.of(StreamOpened)) == 1


# ---- adoption -----------------------------------------------------------------------------------------------------


async def test_orphans_are_adopted_at_the_first_beat_and_then_every_few_seconds(recording, tmp_path, monkeypatch):
    first, entries = orphan(tmp_path, 5, acked=2)
    worker = recording()
    worker.recorder.beat()
    (found,) = (await worker.told(StreamsAdopted)).streams
    assert (found.stream_id, found.worker, found.first_seq, found.last_seq, found.acked_seq) == (
        first, "worker-9", 1, 5, 2,
    )  # fmt: skip
    assert (found.records, found.size_bytes) == (entries[4].records_before + entries[4].records, _bytes(entries))
    assert (found.records_acked, found.bytes_acked) == (entries[2].records_before, _bytes(entries[:2]))
    second, _ = orphan(tmp_path)
    for _ in range(3):
        worker.recorder.beat()
        await until(lambda: not worker.recorder._adopting)
    assert len(worker.of(StreamsAdopted)) == 1, "not before its time"
    monkeypatch.setattr(worker.recorder, "_adopt_at", 0.0)  # five seconds later
    worker.recorder.beat()
    (found,) = (await worker.told(StreamsAdopted, 2)).streams
    assert found.stream_id == second
    assert recorder_module.ADOPT_EVERY_S == 5.0
    assert worker.recorder._adopt_at - worker.recorder._loop.time() == pytest.approx(5.0, abs=1.0)
    worker.recorder.perform(ReadWal(first, 3, 1 << 20))
    assert await worker.told(WalRead) == WalRead(first, entries[2:])


def _bytes(entries):
    return sum(len(each.body) for each in entries)


async def test_one_that_is_acknowledged_throughout_has_nothing_waiting(recording, tmp_path):
    orphan(tmp_path, 4, acked=4)
    worker = recording()
    worker.recorder.beat()
    (found,) = (await worker.told(StreamsAdopted)).streams
    assert (found.records_acked, found.bytes_acked) == (found.records, found.size_bytes)


async def test_one_that_is_dying_meanwhile_is_no_orphan(recording, tmp_path):
    """Its owner has the lock until it is gone."""
    left = directory(tmp_path, "worker-2", segment_bytes=1 << 20)
    log = left.create(new_stream_id())
    log.append(Source().take(2))
    worker = recording()
    worker.recorder.beat()
    await until(lambda: not worker.recorder._adopting)
    assert worker.events == []
    left.close()
    worker.recorder._adopt_at = 0.0
    worker.recorder.beat()
    await worker.told(StreamsAdopted)


async def test_two_on_one_directory_adopt_each_orphan_once(recording, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "ADOPT_EVERY_S", 0.0)
    orphans = {orphan(tmp_path, worker=f"worker-{number % 5}")[0] for number in range(50)}
    workers = [recording(name="left"), recording(name="right")]

    def adopted(worker):
        return [each.stream_id for event in worker.of(StreamsAdopted) for each in event.streams]

    def everything():
        for worker in workers:
            worker.recorder.beat()
        return len(adopted(workers[0])) + len(adopted(workers[1])) >= len(orphans)

    await until(everything, "all orphans to be adopted")
    left, right = (set(adopted(worker)) for worker in workers)
    assert left | right == orphans
    assert not left & right
    assert len(left) == len(adopted(workers[0]))
    assert len(right) == len(adopted(workers[1]))
    for worker in workers:
        assert max(len(event.streams) for event in worker.of(StreamsAdopted)) <= recorder_module.ADOPT_MAX


async def test_all_orphans_at_once(recording, tmp_path):
    orphans = {orphan(tmp_path)[0] for _ in range(recorder_module.ADOPT_MAX + 5)}
    worker = recording()
    assert await worker.recorder.adopt_everything() == len(orphans)
    (adopted,) = worker.events
    assert {each.stream_id for each in adopted.streams} == orphans
    assert await worker.recorder.adopt_everything() == 0
    assert len(worker.events) == 1


@pytest.mark.parametrize("policy", ["off", "interval", "batch"])
async def test_what_a_dead_worker_left_is_made_safe_when_it_is_adopted(recording, tmp_path, disk, policy, monkeypatch):
    """It may have died between a write and the fsync that the policy promises."""
    monkeypatch.setattr(recorder_module, "SYNC_AGAIN_S", 0.01)
    stream_id, _ = orphan(tmp_path, 3)
    worker = recording(wal_fsync=policy, wal_fsync_interval_ms=10)
    worker.recorder.beat()
    await worker.told(StreamsAdopted)
    if policy == "off":
        await turns()
        assert worker.recorder._sync_timer is None
    else:
        await until(lambda: any(stream_id in path for path in disk.syncs), "an fsync")
        await until(lambda: not worker.recorder._syncing)
    assert worker.of(WalWritten) == [], "nobody waits for it"
    worker.write(1)
    await worker.told(WalWritten)
    assert sum(stream_id in path for path in disk.syncs) <= 1


async def test_a_disk_that_takes_its_time_over_an_orphan_holds_back_no_fsync(recording, tmp_path, monkeypatch):
    orphan(tmp_path, 3)
    worker = recording(wal_fsync="batch")
    reading, free = threading.Event(), threading.Event()
    adopt = worker.recorder._directory.adopt

    def slow(streams_max):
        reading.set()
        assert free.wait(DEADLINE_S)
        return adopt(streams_max)

    monkeypatch.setattr(worker.recorder._directory, "adopt", slow)
    worker.recorder.beat()
    await until(reading.is_set)
    try:
        worker.write(1)
        assert await worker.told(WalWritten) == WalWritten(worker.live, 1)
        closing = asyncio.ensure_future(worker.close())
        await turns()
        assert not closing.done()
    finally:
        free.set()
    await asyncio.wait_for(closing, DEADLINE_S)
    assert len(adopted_by(tmp_path)) == 2, "and what it found is given up again"


# ---- expiry -------------------------------------------------------------------------------------------------------


async def test_what_was_acknowledged_expires_and_its_stream_with_it(recording, wall, tmp_path):
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT)
    first = worker.live
    worker.write(6, size=PIECE)
    second = await worker.open()
    worker.events.clear()
    worker.acknowledge(6, first)
    worker.recorder.beat()
    assert worker.events == []
    wall.ahead_s = RETAIN_S - 5
    worker.recorder.beat()
    assert worker.events == []
    assert (tmp_path / "wal" / "worker-1" / first).is_dir()
    wall.ahead_s = RETAIN_S + 5
    worker.recorder.beat()
    assert worker.events == [StreamTrimmed(first, 7)]
    assert (tmp_path / "wal" / "worker-1" / first).is_dir(), "more may come: only the core knows"
    worker.recorder.perform(ForgetStream(first))
    assert not (tmp_path / "wal" / "worker-1" / first).exists()
    worker.recorder.beat()
    assert worker.events == [StreamTrimmed(first, 7)]
    worker.write(1)  # the live one goes on
    assert worker.events[-1] == WalWritten(second, 1)


async def test_whole_segments_expire_and_the_rest_stays(recording, wall):
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT)
    for _ in range(7):
        worker.write(1, size=PIECE)
    worker.events.clear()
    worker.acknowledge(5)
    wall.ahead_s = RETAIN_S + 5
    worker.recorder.beat()
    assert worker.events == [StreamTrimmed(worker.live, 4)], "of three batches each"
    assert read_all(worker.log()) == worker.source.entries[3:]
    worker.acknowledge(7)
    wall.ahead_s = 2 * RETAIN_S + 10
    worker.recorder.beat()
    assert worker.events[-1] == StreamTrimmed(worker.live, 8)
    assert worker.log().path.is_dir(), "the live one stays, whatever is in it"
    worker.write(1)
    assert worker.events[-1] == WalWritten(worker.live, 8)


async def test_an_adopted_stream_goes_when_its_time_is_over(recording, wall, tmp_path):
    stream_id, _ = orphan(tmp_path, 3)
    worker = recording()
    worker.recorder.beat()
    await worker.told(StreamsAdopted)
    worker.acknowledge(3, stream_id)
    wall.ahead_s = RETAIN_S + 5
    worker.recorder.beat()
    assert worker.events[-1] == StreamTrimmed(stream_id, 4)
    worker.recorder.perform(ForgetStream(stream_id))
    assert not (tmp_path / "wal" / "worker-9").exists()
    assert (tmp_path / "wal" / "worker-1").is_dir()


async def test_damage_is_still_counted_when_its_stream_is_gone(recording, wall, tmp_path):
    stream_id, _ = orphan(tmp_path, 3, size=5_000)
    (path,) = (tmp_path / "wal" / "worker-9" / stream_id).glob("*.wal")
    flip_in_the_middle(path)
    worker = recording()
    worker.recorder.beat()
    await worker.told(StreamsAdopted)
    worker.recorder.perform(ReadWal(stream_id, 1, 1 << 20))
    await worker.told(WalRead)
    worker.acknowledge(3, stream_id)
    wall.ahead_s = RETAIN_S + 5
    worker.recorder.beat()
    worker.recorder.perform(ForgetStream(stream_id))
    assert not path.exists()
    assert worker.recorder.damaged == 1


# ---- limits -------------------------------------------------------------------------------------------------------


class Given:
    """Batches of real results, as a worker would write them."""

    def __init__(self, stream_id):
        self.stream_id = stream_id
        self.batches = []
        self.entries = []

    def take(self, count):
        fresh = []
        for _ in range(count):
            seq = len(self.entries) + 1
            polled = results(100, first=1 + 100 * seq, text="x" * 400)
            gone = [missed(seq)]
            last = self.entries[-1] if self.entries else Entry(0, b"", 0, 0, 0)
            body = encode(Batch(self.stream_id, seq, polled, gone))
            self.batches.append((polled, gone))
            self.entries.append(
                Entry(seq, body, 101, last.records_before + last.records, last.bytes_before + len(last.body))
            )
            fresh.append(self.entries[-1])
        return fresh

    def records(self, first_seq, last_seq):
        """Of batches, as a trimmed stream tells them."""
        chosen = self.batches[first_seq - 1 : last_seq]
        return [each for polled, _ in chosen for each in polled], [each for _, gone in chosen for each in gone]


def fill(worker, given=None):
    """Write until there is no room; returns the number of batches."""
    count = 0
    while worker.recorder._directory.bytes_on_disk < LIMIT:
        if given is None:
            worker.write(1, size=PIECE)
        else:
            worker.recorder.perform(WriteWal(given.stream_id, given.take(1)))
        count += 1
    return count


async def test_full_stops_the_polls_until_something_is_acknowledged(recording, caplog):
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="stop")
    worker.recorder.beat()
    assert not worker.recorder.full
    count = fill(worker)
    worker.events.clear()
    for _ in range(3):
        worker.recorder.beat()
        assert worker.recorder.full
    (line,) = lines(caplog)
    assert str(worker.settings.wal_dir) in line
    assert "no polls are started until" in line
    assert worker.events == [], "nothing is given up"
    assert worker.log().first_seq == 1
    worker.write(1)  # what is in flight is still kept
    assert worker.events == [WalWritten(worker.live, count + 1)]
    worker.acknowledge(7)
    worker.recorder.beat()
    assert not worker.recorder.full
    assert worker.events[1:] == [StreamTrimmed(worker.live, 4)], "acknowledged: it needn't be kept its ten minutes"
    assert lines(caplog)[1:] == [f"the WAL in {worker.settings.wal_dir} has room again"]


async def test_the_free_space_of_the_disk_counts_too(recording, monkeypatch):
    worker = recording(wal_fsync="off", wal_free_floor_bytes=1 << 30)
    free = SimpleNamespace(f_bavail=1, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _path: free)
    worker.recorder.beat()
    assert worker.recorder.full
    free.f_bavail = 1 << 20
    worker.recorder.beat()
    assert not worker.recorder.full


async def test_drop_oldest_gives_up_until_there_is_room_and_tells_what(recording, caplog):
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="drop_oldest")
    given = Given(worker.live)
    fill(worker, given)
    while worker.recorder._directory.bytes_on_disk < LIMIT + 300_000:  # it was late to look
        worker.recorder.perform(WriteWal(given.stream_id, given.take(1)))
    worker.events.clear()
    worker.recorder.beat()
    assert not worker.recorder.full
    await until(lambda: worker.recorder._directory.bytes_on_disk < LIMIT, "room")
    await until(lambda: not worker.recorder._dropping)
    first_seq = worker.log().first_seq
    assert first_seq > 1
    trimmed = worker.of(StreamTrimmed)
    assert len(trimmed) > 1, "segment by segment"
    assert [each.first_seq for each in trimmed] == sorted({each.first_seq for each in trimmed})
    assert trimmed[-1].first_seq == first_seq
    told = [each for event in trimmed for each in event.results], [each for event in trimmed for each in event.missed]
    assert told == given.records(1, first_seq - 1)
    said = [line for line in lines(caplog) if "were given up" in line]
    assert len(said) == len(trimmed)
    assert worker.live in said[0]
    worker.recorder.beat()
    assert worker.of(StreamTrimmed) == trimmed
    assert read_all(worker.log()) == given.entries[first_seq - 1 :]


async def test_where_giving_up_frees_nothing_polling_is_held_back_and_it_is_tried_once_a_second(recording, caplog):
    """What the core writes for it is as much."""
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="drop_oldest")
    given = Given(worker.live)
    fill(worker, given)
    told = worker.recorder._submit

    def submit(event):
        told(event)
        if answering and isinstance(event, StreamTrimmed) and event.results:
            count = len(event.results) // 100
            worker.recorder.perform(WriteWal(worker.live, given.take(count)))

    answering = True
    worker.recorder._submit = submit
    for attempt in range(1, 4):
        worker.recorder.beat()
        await until(lambda: not worker.recorder._dropping)
        await turns()
        assert len([event for event in worker.of(StreamTrimmed) if event.results]) == attempt, "not in a circle"
    assert worker.recorder.full
    assert len([line for line in lines(caplog) if "no polls are started until" in line]) == 1
    answering = False
    worker.recorder.beat()
    await until(lambda: worker.recorder._directory.bytes_on_disk < LIMIT, "room")
    worker.recorder.beat()
    assert not worker.recorder.full
    assert lines(caplog)[-1].endswith("has room again")


async def test_where_nothing_can_be_given_up_polling_is_held_back(recording, monkeypatch):
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="drop_oldest")
    fill(worker, Given(worker.live))
    monkeypatch.setattr(StreamLog, "drop_oldest", lambda log: [])
    worker.recorder.beat()
    await until(lambda: not worker.recorder._dropping)
    worker.recorder.beat()
    assert worker.recorder.full


async def test_what_is_given_up_is_the_oldest_and_no_more_than_is_needed(recording):
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="drop_oldest")
    given = Given(worker.live)
    fill(worker, given)
    before = worker.recorder._directory.bytes_on_disk
    worker.recorder.beat()
    await worker.told(StreamTrimmed)
    await until(lambda: not worker.recorder._dropping)
    assert len(worker.of(StreamTrimmed)) == 1
    assert 0 < before - worker.recorder._directory.bytes_on_disk <= LIMIT / 8 + 70_000


async def test_of_a_segment_that_is_lost_nothing_is_said_to_be_given_up(recording, caplog):
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="drop_oldest")
    fill(worker, Given(worker.live))
    worker.log()._chain.segments[0].path.unlink()
    worker.log()._chain.segments[0].close()
    worker.recorder.beat()
    trimmed = await worker.told(StreamTrimmed)
    assert (trimmed.results, trimmed.missed) == ([], [])
    await until(lambda: not worker.recorder._dropping)
    assert not [line for line in lines(caplog) if " 0 results" in line]


async def test_only_what_is_not_acknowledged_was_given_up(recording):
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="drop_oldest")
    given = Given(worker.live)
    fill(worker, given)
    second = worker.log()._chain.segments[1].first_seq
    worker.acknowledge(1)
    worker.recorder.beat()
    trimmed = await worker.told(StreamTrimmed)
    assert (trimmed.results, trimmed.missed) == given.records(2, second - 1)
    assert trimmed.first_seq == second


async def test_acknowledged_segments_go_before_anything_is_given_up(recording, caplog):
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="drop_oldest")
    given = Given(worker.live)
    fill(worker, given)
    worker.acknowledge(len(given.entries))
    worker.recorder.beat()
    (trimmed,) = worker.of(StreamTrimmed)
    assert (trimmed.results, trimmed.missed) == ([], [])
    assert not lines(caplog)
    assert worker.recorder._directory.room()


async def test_the_oldest_stream_s_results_go_first_and_streams_without_any_are_passed_over(recording):
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="drop_oldest")
    first = worker.live  # nothing is in it
    second = await worker.open()
    given = Given(second)
    worker.recorder.perform(WriteWal(second, given.take(3)))
    third = await worker.open()
    newer = Given(third)
    fill(worker, newer)
    worker.recorder.beat()
    trimmed = await worker.told(StreamTrimmed)
    assert first < second < third
    assert trimmed == StreamTrimmed(second, 4, *given.records(1, 3))
    assert worker.log(third).first_seq == 1


async def test_what_is_being_given_up_is_told_once_with_its_results(recording, monkeypatch):
    """Its segment is gone before its results are decoded; a beat in between must not say that it was just trimmed."""
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="drop_oldest")
    given = Given(worker.live)
    fill(worker, given)
    worker.events.clear()
    going_on = threading.Event()
    deleted = threading.Event()
    real = StreamLog.drop_oldest

    def slow(log):
        dropped = real(log)
        deleted.set()
        assert going_on.wait(DEADLINE_S)
        return dropped

    monkeypatch.setattr(StreamLog, "drop_oldest", slow)
    worker.recorder.beat()
    await until(deleted.is_set)
    worker.recorder.beat()
    worker.recorder.beat()
    assert worker.events == []
    going_on.set()
    trimmed = await worker.told(StreamTrimmed)
    assert (trimmed.results, trimmed.missed) == given.records(1, trimmed.first_seq - 1)
    worker.recorder.beat()
    assert worker.events == [trimmed]


async def test_a_disk_without_space_also_makes_room(recording, full, caplog):
    """No floor is set, and the WAL is within its limit: the write that failed says it."""
    full.error = 0
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="drop_oldest")
    given = Given(worker.live)
    for _ in range(8):
        worker.recorder.perform(WriteWal(worker.live, given.take(1)))
    second, third = (segment.first_seq for segment in worker.log()._chain.segments[1:3])
    worker.acknowledge(second)
    worker.events.clear()
    full.error = errno.ENOSPC
    worker.recorder.perform(WriteWal(worker.live, given.take(1)))
    assert worker.events == [WalWriteFailed()]
    worker.recorder.beat()
    assert worker.events[1:] == [StreamTrimmed(worker.live, second)], "first what is acknowledged"
    assert not any("given up" in line for line in lines(caplog))
    worker.recorder.perform(WriteWal(worker.live, given.entries[8:]))
    await until(lambda: worker.of(StreamTrimmed)[-1].results, lambda: worker.events)
    trimmed = worker.of(StreamTrimmed)[-1]
    assert trimmed == StreamTrimmed(worker.live, third, *given.records(second + 1, third - 1))
    full.error = 0
    worker.recorder.perform(WriteWal(worker.live, given.entries[8:]))
    assert worker.events[-1] == WalWritten(worker.live, 9)


async def test_with_stop_a_disk_without_space_costs_only_what_is_acknowledged(recording, full):
    full.error = 0
    worker = recording(wal_fsync="off", wal_limit_bytes=LIMIT, wal_full="stop")
    for _ in range(8):
        worker.write(1, size=PIECE)
    worker.acknowledge(3)
    full.error = errno.ENOSPC
    entries = worker.write(1)
    for _ in range(5):
        worker.recorder.perform(WriteWal(worker.live, entries))
        worker.recorder.beat()
    assert worker.of(StreamTrimmed) == [StreamTrimmed(worker.live, 4)]
    assert read_all(worker.log()) == worker.source.entries[3:8]


# ---- the end ------------------------------------------------------------------------------------------------------


async def test_close_leaves_everything_to_adopt_and_nothing_else(recording, tmp_path, disk):
    stream_id, inherited = orphan(tmp_path, 3)
    worker = recording(wal_fsync="interval", wal_fsync_interval_ms=60_000)
    worker.recorder.beat()
    await worker.told(StreamsAdopted)
    entries = worker.write(2)
    empty = await worker.open()
    await worker.close()
    assert str(files_of_stream(tmp_path, worker.settings.name)[0]) in disk.syncs
    assert not (tmp_path / "wal" / "worker-1" / empty).exists()
    found = adopted_by(tmp_path)
    assert found.pop(stream_id) == inherited
    assert list(found.values()) == [entries]
    worker.recorder.beat()  # the process may still beat


def files_of_stream(tmp_path, worker):
    return sorted((tmp_path / "wal" / worker).rglob("*.wal"))


async def test_a_worker_that_found_nothing_leaves_nothing(recording, tmp_path):
    worker = recording()
    worker.recorder.beat()
    await until(lambda: not worker.recorder._adopting)
    await worker.close()
    assert list((tmp_path / "wal").iterdir()) == []


async def test_close_waits_for_what_is_in_progress(recording, disk, tmp_path):
    worker = recording(wal_fsync="batch")
    disk.free.clear()
    entries = worker.write(1)
    await until(lambda: disk.syncs)
    worker.recorder.perform(ReadWal(worker.live, 1, 1 << 20))
    closing = asyncio.ensure_future(worker.close())
    await turns()
    assert not closing.done()
    disk.free.set()
    await asyncio.wait_for(closing, DEADLINE_S)
    assert worker.events == [], "nobody is there to be told"
    assert adopted_by(tmp_path) == {worker.live: entries}
    assert not [each for each in threading.enumerate() if each.name.startswith("wal")]
