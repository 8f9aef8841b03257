"""The project file: last word counts, torn ends, rebuilding, bounds."""

import logging
import os
import stat

import pytest

from coordinator import journal as journal_module
from coordinator.events import ProjectRecord
from coordinator.journal import ProjectJournal


def record(project_id, blob=b"blob"):
    return ProjectRecord(project_id, 0.5, blob)


async def replayed(directory):
    """What a new process reads: {id: blob}, and whether it found damage."""
    journal = ProjectJournal(directory)
    live = {}
    async for frame in journal.replay():
        live.update((each.id, each.blob) for each in frame.records)
        for project_id in frame.removed:
            live.pop(project_id, None)
    await journal.close()
    return live, journal.damaged


async def written(directory, *changes):
    """A file with these projects, each change appended after the first load."""
    journal = ProjectJournal(directory)
    journal.begin_rebuild()
    journal.append(list(changes[0]), [])
    journal.finish_rebuild()
    for records, removed in changes[1:]:
        journal.append(records, removed)
    await journal.close()
    return journal


async def test_the_last_word_counts(tmp_path):
    await written(
        tmp_path,
        [record(1), record(2), record(3)],
        ([record(2, b"new")], []),
        ([], [3]),
        ([record(4)], [1]),
        ([record(1, b"again")], []),
    )
    assert await replayed(tmp_path) == ({1: b"again", 2: b"new", 4: b"blob"}, False)


async def test_nothing_there(tmp_path):
    assert not ProjectJournal(tmp_path).exists
    assert await replayed(tmp_path) == ({}, False)


async def test_only_the_owner_can_read_it(tmp_path):
    journal = await written(tmp_path, [record(1)])
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600


async def test_a_torn_end_is_left_out_wherever_it_is_torn(tmp_path):
    journal = await written(tmp_path, [record(1)], ([record(2)], []), ([record(3)], []))
    raw = journal.path.read_bytes()
    seen = set()
    for size in range(8, len(raw)):
        journal.path.write_bytes(raw[:size])
        live, damaged = await replayed(tmp_path)
        assert list(live) == list(range(1, len(live) + 1))
        seen.add((len(live), damaged))
    assert {each for each, _ in seen} == {0, 1, 2}
    assert (3, True) not in seen


async def test_a_flipped_bit_ends_the_reading(tmp_path, caplog):
    journal = await written(tmp_path, [record(1)], ([record(2)], []))
    raw = bytearray(journal.path.read_bytes())
    raw[-2] ^= 1
    journal.path.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        assert await replayed(tmp_path) == ({1: b"blob"}, True)
    assert "damaged" in caplog.text


async def test_a_foreign_file_is_moved_aside(tmp_path):
    (tmp_path / "projects.journal").write_bytes(b"hello, world")
    assert await replayed(tmp_path) == ({}, True)
    assert len(list(tmp_path.glob("projects.journal.corrupt-*"))) == 1


async def test_the_old_file_stays_until_the_load_is_complete(tmp_path):
    await written(tmp_path, [record(1)])
    journal = ProjectJournal(tmp_path)
    journal.begin_rebuild()
    journal.append([record(2)], [])
    await journal.close()  # the process ended in the middle of its load
    assert await replayed(tmp_path) == ({1: b"blob"}, False)


async def test_a_rebuild_makes_it_compact_and_loses_no_change(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "DEAD_RECORDS_MIN", 10)
    journal = ProjectJournal(tmp_path)
    journal.begin_rebuild()
    journal.append([record(1), record(2)], [])
    journal.finish_rebuild()
    for _ in range(20):
        journal.append([record(1)], [])
        await drained(journal)
    assert journal.wants_rebuild(live=2)
    before = journal.path.stat().st_size
    journal.begin_rebuild()
    assert not journal.wants_rebuild(live=2)
    journal.rebuild([record(1), record(2)])
    journal.append([record(3)], [])  # changes while it goes on
    journal.append([], [2])
    journal.finish_rebuild()
    await drained(journal)
    assert not journal.wants_rebuild(live=2)
    assert journal.path.stat().st_size < before
    journal.append([record(4)], [])
    await journal.close()
    assert await replayed(tmp_path) == ({1: b"blob", 3: b"blob", 4: b"blob"}, False)
    assert list(tmp_path.iterdir()) == [journal.path]


async def test_an_abandoned_rebuild_changes_nothing_and_is_wanted_again(tmp_path):
    journal = ProjectJournal(tmp_path)
    journal.begin_rebuild()
    journal.append([record(1)], [])
    journal.finish_rebuild()
    journal.begin_rebuild()
    journal.rebuild([record(9)])
    journal.append([record(2)], [])
    journal.abandon_rebuild()
    assert journal.wants_rebuild(live=2)
    await journal.close()
    assert await replayed(tmp_path) == ({1: b"blob", 2: b"blob"}, False)
    assert list(tmp_path.iterdir()) == [journal.path]


async def test_large_changes_are_cut_into_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "FRAME_BYTES", 1_000)
    records = [record(each, b"x" * 100) for each in range(100)]
    await written(tmp_path, records)
    journal = ProjectJournal(tmp_path)
    frames = [len(frame.records) async for frame in journal.replay()]
    await journal.close()
    assert sum(frames) == 100
    assert max(frames) == 10


async def test_a_full_queue_is_counted_and_the_file_written_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(journal_module, "PENDING_RECORDS_MAX", 5)
    journal = await written(tmp_path, [record(1)])
    journal = ProjectJournal(tmp_path)
    journal.begin_rebuild()
    journal.append([record(1)], [])
    journal.append([record(each) for each in range(2, 9)], [])
    journal.finish_rebuild()
    assert journal.records_dropped == 7
    assert journal.wants_rebuild(live=8)
    await journal.close()
    assert "not complete" in caplog.text


async def test_a_full_disk_is_told_once_and_healed_by_a_rebuild(tmp_path, monkeypatch, caplog):
    def full(_descriptor):
        raise OSError(28, os.strerror(28))

    journal = ProjectJournal(tmp_path)
    journal.begin_rebuild()
    journal.append([record(1)], [])
    journal.finish_rebuild()
    await drained(journal)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for each in range(2, 5):
            journal.append([record(each)], [])
            await drained(journal)
    assert caplog.text.count("not complete") == 1
    assert journal.wants_rebuild(live=4)
    journal.begin_rebuild()
    journal.rebuild([record(each) for each in range(1, 5)])
    journal.finish_rebuild()
    await journal.close()
    assert not journal.wants_rebuild(live=4)
    live, damaged = await replayed(tmp_path)
    assert (sorted(live), damaged) == ([1, 2, 3, 4], False)


async def drained(journal):
    while journal._busy is not None:
        journal._settled.clear()
        await journal._settled.wait()


@pytest.mark.parametrize("size", [0, 3])
async def test_a_file_too_short_for_its_magic(tmp_path, size):
    (tmp_path / "projects.journal").write_bytes(b"RPJOURN1"[:size])
    assert await replayed(tmp_path) == ({}, True)
