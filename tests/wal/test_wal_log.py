"""One stream: what is appended is read back in order and once, and goes when its time has come."""

import contextlib
import os
import random
import struct
import threading
from pathlib import Path

import google_crc32c
import pytest

from cluster.wal import log as log_module
from cluster.wal.acked import read_acked
from cluster.wal.errors import WalError
from cluster.wal.format import SEGMENT_HEADER_BYTES, Entry, encode_entry_header
from cluster.wal.segment import IOV_MAX
from tests.wal.streams import STREAM, Source, crash, directory, files_of, one_warning, read_all

NOW_S = 1_800_000_000.0


def file_behind(fd):
    return Path(f"/proc/self/fd/{fd}").readlink()


def fill(log, source, count=40, size=200):
    """Several segments, an append each time."""
    for _ in range(count):
        log.append(source.take(1, size))
    assert len(files_of(log)) > 3


# ---- appending and reading ------------------------------------------------------------------------------------------


def test_a_new_stream_is_empty(log):
    assert (log.first_seq, log.last_seq, log.records_total, log.bytes_total, log.bytes_on_disk) == (1, 0, 0, 0, 0)
    assert log.read(1, 1000) == []
    assert log.stream_id == STREAM
    assert log.worker == "worker-1"
    assert log.finished
    log.append([])
    log.sync()
    assert files_of(log) == []


def test_what_is_appended_is_read_back(log, source):
    fill(log, source)
    assert read_all(log) == source.entries
    last = source.entries[-1]
    assert (log.first_seq, log.last_seq) == (1, last.seq)
    assert log.records_total == last.records_before + last.records
    assert log.bytes_total == last.bytes_before + len(last.body)
    assert log.bytes_on_disk == sum(path.stat().st_size for path in files_of(log))
    assert log.damaged == 0
    assert not log.finished


def test_one_append_is_one_write_and_one_segment(log, source, monkeypatch):
    calls = []
    pwritev = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, *rest: calls.append(rest) or pwritev(fd, *rest))
    log.append(source.take(30, 100))  # more than a segment
    log.append(source.take(3, 100))
    assert len(calls) == 2
    assert [path.name for path in files_of(log)] == ["00000000000000000001.wal", "00000000000000000031.wal"]
    log.append(source.take(IOV_MAX, 20))
    assert len(calls) == 2 + 3  # a header, and two buffers for each entry
    assert read_all(log) == source.entries


def test_a_segment_takes_what_fits(wal, source):
    log = wal.create(STREAM)
    entry_bytes = 40 + 96
    count = (1500 - SEGMENT_HEADER_BYTES) // entry_bytes
    for _ in range(count + 1):
        log.append(source.take(1, 96))
    first, second = files_of(log)
    assert first.stat().st_size == SEGMENT_HEADER_BYTES + count * entry_bytes <= 1500
    assert second.name == f"{count + 1:020d}.wal"


def test_modes_keep_others_out(log, source):
    log.append(source.take())
    (file,) = files_of(log)
    assert file.stat().st_mode & 0o777 == 0o600
    for path in (log.path, log.path.parent, log.path.parent.parent):
        assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("bytes_max", [-1, 0, 1, 250, 1000, 5000, 1 << 30])
def test_reading_in_pieces(log, source, bytes_max):
    fill(log, source)
    for from_seq in (1, 2, 17, 40):
        assert read_all(log, from_seq, bytes_max) == source.entries[from_seq - 1 :]


def test_reading_from_anywhere_in_any_order(log, source):
    fill(log, source)
    chance = random.Random(1)
    for _ in range(200):
        seq = chance.randint(1, 40)
        part = log.read(seq, chance.choice([1, 500, 3000]))
        assert part == source.entries[seq - 1 : seq - 1 + len(part)]
        assert part
    assert log.read(41, 1000) == []
    assert log.read(10_000, 1000) == []
    assert log.read(0, 1)[0].seq == 1


def test_going_on_reading_does_not_begin_the_segment_again(tmp_path, source, monkeypatch):
    log = directory(tmp_path, segment_bytes=8 << 20).create(STREAM)
    log.append(source.take(4000, 1000))
    offsets = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: offsets.append((offset, size)) or pread(fd, size, offset))
    assert read_all(log, bytes_max=100_000) == source.entries
    assert offsets == sorted(offsets)
    assert sum(size for _, size in offsets) < 4 * log.bytes_on_disk  # with what is looked at ahead
    log.close()


def test_an_entry_larger_than_a_read(log, source):
    big = source.take(1, 3 << 20)
    log.append(big)
    log.append(source.take(2))
    assert log.read(1, 1000) == big
    assert read_all(log) == source.entries


def test_appending_what_is_there_already_changes_nothing(log, source):
    log.append(source.take(3))
    size = log.bytes_on_disk
    log.append(source.entries)
    assert log.bytes_on_disk == size
    source.take(2)
    log.append(source.entries)
    assert read_all(log) == source.entries


@pytest.mark.parametrize(
    "entry", [Entry(5, b"x", 1, 0, 0), Entry(2, b"", 0, 0, 0), Entry(2, bytes((16 << 20) + 1), 1, 0, 0)],
    ids=["gap", "hole", "too large"],
)  # fmt: skip
def test_what_a_worker_must_not_append(log, source, entry):
    log.append(source.take())
    with pytest.raises(AssertionError):
        log.append([entry])
    assert read_all(log) == source.entries


def test_a_closed_log_says_so(log, source):
    log.append(source.take(2))
    log.close()
    log.close()
    log.acknowledged(2, NOW_S)
    assert log.closed
    with pytest.raises(WalError, match="is closed"):
        log.append(source.take())
    with pytest.raises(WalError, match="is closed"):
        log.read(1, 1000)
    log.sync()
    assert "acknowledged" in repr(log)


def test_readers_and_syncs_in_threads_see_whole_entries_only(tmp_path):
    """While the loop appends, of which a reader never sees half."""
    log = directory(tmp_path, segment_bytes=20_000).create(STREAM)
    source = Source()
    chance = random.Random(2)
    done = threading.Event()
    problems = []

    def read(seed):
        mine = random.Random(seed)
        seq = 1
        while not (done.is_set() and seq > log.last_seq):
            last = log.last_seq
            part = log.read(seq, mine.choice([1, 1000, 50_000]))
            if part != source.entries[seq - 1 : seq - 1 + len(part)] or (seq <= last and not part):
                problems.append((seq, part[:1]))
                return
            seq += len(part)
            if mine.random() < 0.01:
                seq = 1

    def sync():
        while not done.is_set():
            log.sync()

    threads = [threading.Thread(target=read, args=(seed,)) for seed in (3, 4)] + [threading.Thread(target=sync)]
    for thread in threads:
        thread.start()
    for _ in range(400):
        log.append(source.take(chance.randint(1, 5), chance.choice([30, 500, 3000])))
    done.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not problems
    assert log.damaged == 0
    log.close()


def test_appending_does_not_wait_for_a_reader_or_an_fsync(log, source, monkeypatch):
    """Both hang; what is appended meanwhile is there."""
    fill(log, source, 20)
    go_on, reading, syncing = threading.Event(), threading.Event(), threading.Event()
    pread, fdatasync = os.pread, os.fdatasync

    def slow_pread(*args):
        reading.set()
        assert go_on.wait(60)
        return pread(*args)

    def slow_fdatasync(fd):
        syncing.set()
        assert go_on.wait(60)
        return fdatasync(fd)

    monkeypatch.setattr(os, "pread", slow_pread)
    monkeypatch.setattr(os, "fdatasync", slow_fdatasync)
    before = list(source.entries)
    read = []
    threads = [threading.Thread(target=lambda: read.append(log.read(1, 1 << 20))), threading.Thread(target=log.sync)]
    for thread in threads:
        thread.start()
    assert reading.wait(60)
    assert syncing.wait(60)
    fill(log, source, 20)
    log.acknowledged(30, NOW_S)
    assert log.last_seq == 40
    go_on.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert read[0][:20] == before
    assert read_all(log) == source.entries


def test_everything_at_once(tmp_path):
    """Appending, acknowledging and expiring in one thread; reading, syncing and giving up in others."""
    log = directory(tmp_path, segment_bytes=10_000, retain_s=1.0).create(STREAM)
    source = Source()
    chance = random.Random(5)
    done = threading.Event()
    dropped = {}
    problems = []

    def until_done(step):
        def run():
            try:
                while not done.is_set():
                    step()
            except BaseException as error:  # noqa: BLE001 - whatever it is
                problems.append(error)

        return threading.Thread(target=run)

    def read():
        seq = max(1, log.first_seq - 3)
        for _ in range(20):
            part = log.read(seq, 20_000)
            for entry in part:
                known = source.entries[entry.seq - 1]
                assert entry.seq == seq
                assert entry == known or (not entry.body and seq < log.first_seq)
                seq += 1

    def drop():
        for entry in log.drop_oldest():
            assert entry.seq not in dropped
            dropped[entry.seq] = entry

    threads = [until_done(read), until_done(log.sync), until_done(drop)]
    for thread in threads:
        thread.start()
    acked, now_s = 0, NOW_S
    for _ in range(1500):
        log.append(source.take(chance.randint(1, 5), chance.choice([30, 500, 2000])))
        now_s += 0.1
        if chance.random() < 0.5:
            acked = max(acked, log.last_seq - chance.randint(0, 20))
            log.acknowledged(acked, now_s)
            log.expire(now_s)
        if chance.random() < 0.05:
            log.evict_acknowledged()
    done.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert problems == []
    assert log.damaged == 0
    assert all(not entry.body or entry == source.entries[seq - 1] for seq, entry in dropped.items())
    assert read_all(log) == source.entries[log.first_seq - 1 :]
    assert log.bytes_on_disk == sum(path.stat().st_size for path in files_of(log))
    log.acknowledged(log.last_seq, now_s)
    log.expire(now_s + 1)
    log.remove()


# ---- safety ---------------------------------------------------------------------------------------------------------


def test_sync_reaches_each_file_and_its_name_once(log, source, monkeypatch):
    synced = []
    fdatasync, fsync = os.fdatasync, os.fsync
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(file_behind(fd)) or fdatasync(fd))
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(file_behind(fd)) or fsync(fd))
    log.sync()
    wal_path = log.path.parent.parent
    assert synced == [wal_path.parent, wal_path, log.path.parent]  # each has a new directory in it
    synced.clear()
    fill(log, source)
    log.sync()
    assert synced == [*files_of(log), log.path]
    synced.clear()
    log.sync()
    assert synced == []
    log.append(source.take(1, 1))
    log.append(source.take(1, 1))
    log.sync()
    assert synced == [files_of(log)[-1]]


def open_segments(log):
    there = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            there.add(fd.readlink())
    return there & set(files_of(log))


def test_few_files_stay_open_though_nobody_syncs(log, source):
    fill(log, source, 200)
    assert len(files_of(log)) > 20
    assert len(open_segments(log)) <= 6
    log.sync()
    assert open_segments(log) == {files_of(log)[-1]}
    log.acknowledged(200, NOW_S)
    log.expire(NOW_S + 600)
    assert open_segments(log) == set()


def test_no_file_stays_open_when_each_was_safe_before_the_next(log, source):
    for _ in range(100):
        log.append(source.take(1, 200))
        log.sync()
    assert len(files_of(log)) > 10
    assert open_segments(log) == {files_of(log)[-1]}


def test_what_is_gone_needs_no_sync(log, source):
    for _ in range(10):
        fill(log, source, 20)
        log.acknowledged(log.last_seq, NOW_S)
        log.expire(NOW_S + 600)
    log.append(source.take(1))
    assert len(log._appender.unsynced) <= 2


def test_an_adopted_stream_is_synced_once_more(wal, log, source, monkeypatch):
    """Whoever wrote it may have been killed before it was."""
    fill(log, source)
    crash(log)
    (adopted,) = wal.adopt(1)
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(file_behind(fd)))
    adopted.sync()
    adopted.sync()
    assert synced == files_of(adopted)[-2:]


# ---- what may go ----------------------------------------------------------------------------------------------------


def test_segments_go_when_all_of_them_was_acknowledged_long_enough(log, source):
    fill(log, source)
    second, third = (int(path.stem) for path in files_of(log)[1:3])
    size = [path.stat().st_size for path in files_of(log)]
    log.acknowledged(second - 2, NOW_S)  # one batch of the first is missing
    assert log.expire(NOW_S + 10_000) == 0
    log.acknowledged(second - 1, NOW_S + 5)
    log.acknowledged(third - 1, NOW_S + 60)
    assert log.expire(NOW_S + 604.9) == 0
    assert log.expire(NOW_S + 605) == size[0]
    assert log.first_seq == second
    assert log.expire(NOW_S + 660) == size[1]
    assert log.first_seq == third
    assert log.bytes_on_disk == sum(size[2:])
    assert read_all(log) == source.entries[third - 1 :]
    assert log.damaged == 0


def test_the_segment_that_is_written_to_goes_too_and_another_one_begins(log, source):
    log.append(source.take(2))
    log.acknowledged(2, NOW_S)
    log.append(source.take(1))  # not acknowledged, so it stays
    assert log.expire(NOW_S + 10_000) == 0
    log.acknowledged(3, NOW_S)
    assert log.expire(NOW_S + 600) > 0
    assert log.finished
    assert (log.first_seq, log.last_seq, log.bytes_on_disk) == (4, 3, 0)
    log.append(source.take(2))
    assert not log.finished
    assert read_all(log) == source.entries[3:]
    assert log.records_total == source.entries[-1].records_before + source.entries[-1].records


def test_what_is_gone_is_read_as_holes(log, source, monkeypatch):
    monkeypatch.setattr(log_module, "ENTRIES_MAX", 7)
    fill(log, source)
    log.acknowledged(40, NOW_S)
    kept = int(files_of(log)[3].stem)
    for _ in range(3):
        assert log.evict_acknowledged() > 0
    assert log.first_seq == kept
    entries = read_all(log, 2)
    assert entries[kept - 2 :] == source.entries[kept - 1 :]
    before = source.entries[kept - 1]
    assert entries[: kept - 2] == [
        Entry(seq, b"", 0, before.records_before, before.bytes_before) for seq in range(2, kept)
    ]
    assert log.damaged == 0
    log.expire(NOW_S + 600)
    assert read_all(log, 39) == [Entry(seq, b"", 0, log.records_total, log.bytes_total) for seq in (39, 40)]


def test_a_database_that_was_set_back_gets_it_again(log, source):
    """What is no longer acknowledged may not be deleted, however long ago it was."""
    fill(log, source)
    second = int(files_of(log)[1].stem)
    log.acknowledged(40, NOW_S)
    log.acknowledged(second, NOW_S + 1)
    assert log.acked_seq == second
    log.expire(NOW_S + 10_000)
    assert log.first_seq == second
    assert log.evict_acknowledged() == 0
    log.acknowledged(40, NOW_S + 20_000)
    assert log.expire(NOW_S + 20_599) == 0
    log.expire(NOW_S + 20_600)
    assert log.finished


def test_an_acknowledgement_of_what_never_was_counts_up_to_the_end(log, source):
    fill(log, source, 20)
    log.acknowledged(1 << 40, NOW_S)
    assert log.acked_seq == 20
    log.append(source.take(1))
    log.acknowledged(-5, NOW_S)
    assert log.acked_seq == 0


def test_eviction_takes_acknowledged_segments_only(log, source):
    fill(log, source)
    assert log.evict_acknowledged() == 0
    second, third = (int(path.stem) for path in files_of(log)[1:3])
    log.acknowledged(third - 1, NOW_S)
    assert log.evict_acknowledged() > 0
    assert log.first_seq == second
    assert log.evict_acknowledged() > 0
    assert log.evict_acknowledged() == 0
    assert read_all(log) == source.entries[third - 1 :]


def test_dropping_returns_what_nobody_has(log, source):
    fill(log, source)
    second, third = (int(path.stem) for path in files_of(log)[1:3])
    log.acknowledged(second + 1, NOW_S)
    assert log.drop_oldest() == source.entries[second + 1 : third - 1]
    assert log.first_seq == third
    assert log.bytes_on_disk == sum(path.stat().st_size for path in files_of(log))
    while dropped := log.drop_oldest():
        assert dropped == source.entries[dropped[0].seq - 1 : dropped[-1].seq]
    assert log.first_seq == 41
    assert files_of(log) == []
    assert not log.finished  # nobody was told
    log.acknowledged(40, NOW_S)
    assert log.finished
    log.append(source.take(1))
    assert read_all(log) == source.entries[40:]


def test_dropping_while_it_is_read(log, source, monkeypatch):
    fill(log, source)
    third = int(files_of(log)[2].stem)
    pread = os.pread
    at = []

    def drop_first(*args):
        if not at:
            at.append(True)
            log.drop_oldest()
            log.drop_oldest()
        return pread(*args)

    monkeypatch.setattr(os, "pread", drop_first)
    entries = log.read(1, 1 << 20)
    assert [entry.seq for entry in entries] == list(range(1, 41))
    assert entries[third - 1 :] == source.entries[third - 1 :]
    assert all(not entry.body or entry == source.entries[entry.seq - 1] for entry in entries)
    assert log.damaged == 0


def test_a_file_that_cannot_be_deleted_stays_and_is_said_once(log, source, monkeypatch, caplog):
    fill(log, source)
    log.acknowledged(40, NOW_S)
    size = log.bytes_on_disk

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    for _ in range(3):
        assert log.expire(NOW_S + 600) == 0
        assert log.evict_acknowledged() == 0
    assert log.bytes_on_disk == size
    one_warning(caplog, "cannot delete", files_of(log)[0], "Permission denied")
    log.acknowledged(3, NOW_S)
    assert log.drop_oldest() == []
    assert read_all(log) == source.entries
    monkeypatch.undo()
    log.acknowledged(40, NOW_S)
    assert log.expire(NOW_S + 600) == size


# ---- the file `acked` -----------------------------------------------------------------------------------------------


def noted(log):
    return read_acked(log.path)[0]


def test_what_is_acknowledged_is_noted_once_a_second(log, source):
    fill(log, source)
    assert noted(log) == 0
    log.acknowledged(3, NOW_S)
    assert noted(log) == 3
    content = (log.path / "acked").read_bytes()
    assert content == struct.pack("<QI", 3, google_crc32c.value(struct.pack("<Q", 3)))
    log.acknowledged(4, NOW_S + 0.5)
    assert noted(log) == 3
    log.expire(NOW_S + 0.9)
    assert noted(log) == 3
    log.expire(NOW_S + 1.1)
    assert noted(log) == 4
    log.acknowledged(9, NOW_S + 1.2)
    log.acknowledged(10, NOW_S - 3600)  # the clock was set back
    assert noted(log) == 10
    log.acknowledged(2, NOW_S - 3600)  # the database was
    assert noted(log) == 2
    log.acknowledged(10, NOW_S - 3600)
    assert noted(log) == 2
    log.acknowledged(12, NOW_S - 3600)
    log.close()
    assert noted(log) == 12


def test_a_note_that_cannot_be_written_is_said_once_and_costs_nothing(log, source, caplog):
    log.append(source.take(5))
    (log.path / "acked").mkdir()
    for seq in (1, 2, 3):
        log.acknowledged(seq, NOW_S + 2 * seq)
    one_warning(caplog, log.path / "acked", "Is a directory")
    assert log.acked_seq == 3
    (log.path / "acked").rmdir()
    log.acknowledged(4, NOW_S + 20)
    assert noted(log) == 4


# ---- the end --------------------------------------------------------------------------------------------------------


def test_a_finished_stream_leaves_nothing(wal, log, source):
    fill(log, source)
    log.acknowledged(40, NOW_S)
    assert not log.finished
    log.expire(NOW_S + 600)
    assert log.finished
    assert log.path.is_dir()
    log.remove()
    assert log.closed
    assert list(wal.path.iterdir()) == []
    assert wal.bytes_on_disk == 0


def test_removing_keeps_what_is_foreign(wal, log, source, caplog):
    (log.path / "notes.txt").write_text("mine")
    log.remove()
    one_warning(caplog, "cannot remove", log.path)
    assert (log.path / "notes.txt").read_text() == "mine"
    assert log.closed


def test_a_stream_with_something_in_it_is_not_removed(log, source):
    log.append(source.take())
    with pytest.raises(AssertionError):
        log.remove()
    assert read_all(log) == source.entries


def test_an_encoded_entry_costs_its_body_and_40_bytes(log, source):
    (entry,) = source.take(1, 1000)
    log.append([entry])
    assert log.bytes_on_disk == SEGMENT_HEADER_BYTES + len(encode_entry_header(entry)) + 1000
