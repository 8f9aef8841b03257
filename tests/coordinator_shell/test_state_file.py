"""The coordinator's state file: what is read back, in which order it is written, what becomes of a bad one."""

import asyncio
import logging
import os
import stat

import pytest

from cluster.errors import ClusterError
from cluster.messages.control import WorkerStats
from cluster.ticks import PARTITIONS
from coordinator.events import DurableState, Totals
from coordinator.project_rows import ClusterMemory
from coordinator.service import recalled
from coordinator.store import StateFile


def a_state(epoch=7):
    return DurableState(
        run_id="r",
        epoch=epoch,
        marks=[None, *range(1, PARTITIONS)],
        totals=Totals(executed=3, missed={"down": 2}),
        counted={"abc": WorkerStats(executed=5)},
    )


def test_what_is_saved_is_loaded(tmp_path):
    StateFile(tmp_path / "coordinator").save(a_state())
    assert StateFile(tmp_path / "coordinator").load() == a_state()


def test_no_file_is_no_state(tmp_path):
    assert StateFile(tmp_path / "coordinator").load() is None


def test_only_the_owner_can_read_it(tmp_path):
    file = StateFile(tmp_path / "coordinator")
    file.save(a_state())
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


async def test_save_soon_is_durable_when_it_returns(tmp_path):
    file = StateFile(tmp_path)
    await file.save_soon(a_state(8))
    assert StateFile(tmp_path).load().epoch == 8


async def test_an_older_state_never_replaces_a_newer_one(tmp_path, monkeypatch):
    file = StateFile(tmp_path)
    written = []
    held = asyncio.Event()
    loop = asyncio.get_running_loop()
    write = file._write

    def slow(version, body):
        if version == 1:  # the thread is overtaken before it begins
            asyncio.run_coroutine_threadsafe(held.wait(), loop).result(10)
        written.append(version)
        write(version, body)

    monkeypatch.setattr(file, "_write", slow)
    late = asyncio.create_task(file.save_soon(a_state(1)))
    await asyncio.sleep(0)
    file.save(a_state(2))
    held.set()
    await late
    assert written == [2, 1]
    assert StateFile(tmp_path).load().epoch == 2


async def test_the_same_content_is_written_once(tmp_path):
    file = StateFile(tmp_path)
    await file.save_soon(a_state())
    before = file.path.stat().st_ino
    await file.save_soon(a_state())
    assert file.path.stat().st_ino == before
    await file.save_soon(a_state(9))
    assert file.path.stat().st_ino != before


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:10],
        lambda raw: raw[:-1],
        lambda raw: raw + b"x",
        lambda raw: b"PK\x03\x04" + raw[4:],
        lambda raw: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:],
    ],
    ids=["empty", "short", "truncated", "longer", "foreign", "flipped"],
)
def test_a_bad_file_is_moved_aside_with_one_warning(tmp_path, caplog, damage):
    file = StateFile(tmp_path)
    file.save(a_state())
    raw = damage(file.path.read_bytes())
    file.path.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        assert file.load() is None
    assert len(caplog.records) == 1
    assert not file.path.exists()
    (aside,) = tmp_path.glob("state.msgpack.corrupt-*")
    assert aside.read_bytes() == raw
    assert file.load() is None
    assert len(caplog.records) == 1


def test_a_state_with_another_shape_is_refused(tmp_path):
    file = StateFile(tmp_path)
    file._write(1, b"\x81\xa5epoch\xa3one")  # {"epoch": "one"}, rightly framed
    assert file.load() is None


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, os.strerror(28))

    file = StateFile(tmp_path)
    file.save(a_state(1))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ClusterError, match=r"cannot save .*No space left"):
        file.save(a_state(2))
    monkeypatch.undo()
    assert StateFile(tmp_path).load().epoch == 1


def test_a_data_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="cannot create"):
        StateFile(tmp_path / "file" / "coordinator")


def test_the_database_stands_in_for_a_lost_file():
    state = recalled(None, ClusterMemory(epoch=9, accounted_to_ms=1_000))
    assert state.epoch == 9
    assert state.marks == [999] * PARTITIONS
    assert recalled(None, ClusterMemory(0, None)).marks == [None] * PARTITIONS


def test_the_higher_epoch_counts_and_the_files_marks():
    assert recalled(a_state(7), ClusterMemory(9, 5)).epoch == 9
    assert recalled(a_state(7), ClusterMemory(2, 5)).epoch == 7
    assert recalled(a_state(7), ClusterMemory(9, 5)).marks == a_state().marks
    assert recalled(a_state(7), None).epoch == 7
