"""Whatever happens to the files: what is undamaged is delivered, the rest is counted and kept, and nothing raises."""

import errno
import itertools
import os
import random
import shutil
from pathlib import Path

import pytest

from cluster.wal.errors import WalError
from cluster.wal.format import SEGMENT_HEADER_BYTES, Entry, encode_entry_header
from cluster.wal.quarantine import Quarantine
from cluster.wal.segment import PAGE_BYTES
from tests.examples import ALL
from tests.wal.streams import STREAM, Source, crash, directory, files_of, one_warning, read_all, warnings_of

SEGMENT_BYTES = 420  # a header and three small entries
ENTRIES = 11
NOW_S = 1_800_000_000.0


class Original:
    """A stream on disk, as it was written, and where each entry of it lies."""

    def __init__(self, tmp_path):
        self.root = tmp_path / "original"
        wal = directory(self.root, segment_bytes=SEGMENT_BYTES)
        log, source = wal.create(STREAM), Source()
        for _ in range(ENTRIES):
            log.append(source.take(1, 30))
        wal.close()
        self.entries = source.entries
        self.names = [path.name for path in files_of(log)]
        self.contents = [path.read_bytes() for path in files_of(log)]
        self.places = []  # (segment, begin, end)
        for number, content in enumerate(self.contents):
            offset = SEGMENT_HEADER_BYTES
            while offset < len(content):
                end = offset + len(encode_entry_header(self.entries[len(self.places)]))
                end += len(self.entries[len(self.places)].body)
                self.places.append((number, offset, end))
                offset = end
        assert len(self.places) == ENTRIES
        assert len(self.names) == 4

    def damaged(self, tmp_path, number, content):
        """A WAL with one segment changed, adopted."""
        root = tmp_path / "damaged"
        shutil.rmtree(root, ignore_errors=True)
        path = root / "wal" / "worker-1" / STREAM
        path.mkdir(parents=True)
        for each, (name, original) in enumerate(zip(self.names, self.contents, strict=True)):
            (path / name).write_bytes(content if each == number else original)
        wal = directory(root, segment_bytes=SEGMENT_BYTES)
        return wal, wal.adopt(1)[0]


@pytest.fixture
def original(tmp_path):
    return Original(tmp_path)


def kept_files(wal):
    path = wal.path / "quarantine"
    return sorted(path.iterdir()) if path.exists() else []


def check(original, tmp_path, number, content, lost):
    """``lost``: the indices of the entries whose bytes were touched."""
    wal, log = original.damaged(tmp_path, number, content)
    try:
        whole = [entry for index, entry in enumerate(original.entries) if index not in lost]
        entries = read_all(log)
        assert [entry for entry in entries if entry.body] == whole
        holes = [entry.seq for entry in entries if not entry.body]
        assert set(holes) <= {index + 1 for index in lost}
        missing_at_ends = len(lost) - len(holes)
        if missing_at_ends:  # the end of the newest segment, or the whole of the oldest
            assert log.last_seq < ENTRIES or log.first_seq > 1
        for before, after in itertools.pairwise(entries):
            assert after.records_before == before.records_before + before.records
        if entries:
            assert entries[0].records_before == original.entries[entries[0].seq - 1].records_before
            assert log.records_total == entries[-1].records_before + entries[-1].records
        for bytes_max in (1, 70):
            assert read_all(log, bytes_max=bytes_max) == entries
        counted = log.damaged
        if holes:
            assert counted >= 1
        log.append([Entry(log.last_seq + 1, b"more", 1, log.records_total, log.bytes_total)])
        assert read_all(log)[: len(entries)] == entries
        log.close()
        kept = [path.name for path in kept_files(wal)]
        (again,) = wal.adopt(1)
        assert read_all(again)[: len(entries)] == entries
        assert [path.name for path in kept_files(wal)] == kept
        return counted
    finally:
        wal.close()


def touched(original, number, offset):
    return {
        index for index, (each, begin, end) in enumerate(original.places) if each == number and begin <= offset < end
    }


def every_byte(original):
    for number, content in enumerate(original.contents):
        for offset in range(len(content)):
            yield number, content, offset


def many_bytes(original):
    """All around where something begins, every fifth elsewhere."""
    begins = {(number, begin) for number, begin, _ in original.places} | {(number, 0) for number in range(4)}
    for number, content, offset in every_byte(original):
        if offset % 5 == 0 or any((number, offset + near) in begins for near in (-9, -1, 0, 1)):
            yield number, content, offset


def test_any_bit_may_flip(original, tmp_path):
    last = len(original.names) - 1
    for number, content, offset in every_byte(original) if ALL else many_bytes(original):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << (offset % 8)
        counted = check(original, tmp_path, number, bytes(flipped), touched(original, number, offset))
        begin = original.places[-1][1]
        assert counted == 1 or (
            (number, counted) == (last, 0) and begin + 8 <= offset < begin + 12  # a length: it looks cut short
        )


def test_every_bit_of_a_header_may_flip(original, tmp_path):
    """The second entry of the second segment, all of it, and the segment's header."""
    number, begin, _ = original.places[4]
    content = original.contents[number]
    for offset in (*range(begin, begin + 40), *range(0, SEGMENT_HEADER_BYTES, 7)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[offset] ^= 1 << bit
            assert check(original, tmp_path, number, bytes(flipped), touched(original, number, offset)) == 1


def test_a_segment_may_end_anywhere(original, tmp_path):
    last = len(original.names) - 1
    for number, content, offset in many_bytes(original):
        lost = {index for index, (each, _, end) in enumerate(original.places) if each == number and end > offset}
        counted = check(original, tmp_path, number, content[:offset], lost)
        if number not in (0, last):
            assert counted >= 1


def test_a_byte_may_be_too_much_anywhere(original, tmp_path):
    last, begin = len(original.names) - 1, original.places[-1][1]
    for number, content, offset in many_bytes(original):
        lost = {
            index for index, (each, start, end) in enumerate(original.places) if each == number and start < offset < end
        }
        counted = check(original, tmp_path, number, content[:offset] + b"?" + content[offset:], lost)
        in_last_length = number == last and begin + 8 <= offset < begin + 12
        assert 1 - in_last_length <= counted <= 2  # a header, and the byte that it spilled
    for number, content in enumerate(original.contents):
        assert check(original, tmp_path, number, content + b"?", set()) == 1


def test_a_page_may_be_zeros_or_noise_or_somebody_elses(original, tmp_path):
    chance = random.Random(3)
    for _ in range(150):
        number = chance.randrange(len(original.contents))
        content = bytearray(original.contents[number])
        begin = chance.randrange(SEGMENT_HEADER_BYTES, len(content))
        end = min(len(content), begin + chance.randint(1, 150))
        other = original.contents[(number + 1) % len(original.contents)]
        content[begin:end] = chance.choice(
            [bytes(end - begin), chance.randbytes(end - begin), other[begin:end].ljust(end - begin, b"?")]
        )
        lost = {
            index
            for index, (each, start, stop) in enumerate(original.places)
            if each == number
            and start < end
            and stop > begin
            and bytes(content[start:stop]) != original.contents[number][start:stop]
        }
        check(original, tmp_path, number, bytes(content), lost)


def test_a_disk_may_write_where_it_should_not(original, tmp_path):
    """Whole entries in the place of others: what is there at all is delivered in order."""
    places = [place for place in original.places if place[0] == 1]
    content = original.contents[1]
    one, two, three = (content[begin:end] for _, begin, end in places)
    header = content[:SEGMENT_HEADER_BYTES]
    first = original.contents[0][SEGMENT_HEADER_BYTES : original.places[0][2]]
    assert check(original, tmp_path, 1, header + three + two + three, {3}) == 1
    for shuffled in (
        three + two + one,
        two + one + three,
        two + three + one,
        one + one + two + two + three,
        first + one + two + three,
    ):
        check(original, tmp_path, 1, header + shuffled, set())


def test_damage_is_counted_once_even_if_it_is_read_in_portions(original, tmp_path, monkeypatch):
    content = bytearray(original.contents[1])
    content[SEGMENT_HEADER_BYTES + 10] ^= 1
    content[original.places[4][1] + 10] ^= 1
    monkeypatch.setattr("cluster.wal.log.ENTRIES_MAX", 1)
    assert check(original, tmp_path, 1, bytes(content), {3, 4}) == 1
    last = original.contents[2][: SEGMENT_HEADER_BYTES + 10]
    assert check(original, tmp_path, 2, last, {6, 7, 8}) == 1


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 420, b"nonsense", bytes(range(256)) * 4], ids=["empty", "zeros", "text", "bytes"]
)
def test_a_segment_with_nothing_in_it(original, tmp_path, number, content, caplog):
    lost = {index for index, place in enumerate(original.places) if place[0] == number}
    check(original, tmp_path, number, content, lost)
    assert warnings_of(caplog)
    assert all("\n" not in line for line in warnings_of(caplog))


def test_the_line_about_damage_says_what_where_and_what_becomes_of_it(original, tmp_path, caplog):
    _, begin, end = original.places[4]
    content = bytearray(original.contents[1])
    content[begin + 50] ^= 255
    wal, log = original.damaged(tmp_path, 1, bytes(content))
    hole = read_all(log)[4]
    entry = original.entries[4]
    assert hole == Entry(5, b"", entry.records, entry.records_before, entry.bytes_before)
    (kept,) = kept_files(wal)
    assert kept.read_bytes() == content[begin:end]
    assert kept.name.startswith(f"worker-1.{STREAM}.{original.names[1]}.{begin}-{end}.")
    one_warning(
        caplog,
        f"damage in the WAL: {end - begin} bytes at offset {begin} of {files_of(log)[1]}, kept as {kept}; "
        f"1 of the batches 5 to 5 are lost, with {entry.records} records",
    )
    wal.close()


# ---- files that are gone --------------------------------------------------------------------------------------------


@pytest.fixture
def stream(tmp_path):
    """A log of eight segments of five batches."""
    wal = directory(tmp_path)
    log, source = wal.create(STREAM), Source()
    for _ in range(40):
        log.append(source.take(1, 200))
    log.sync()
    assert len(files_of(log)) == 8
    yield wal, log, source
    wal.close()


def holes_of(source, first, last):
    """What a gap looks like: the first hole has all its records."""
    before, after = source.entries[first - 1], source.entries[last]
    lost = after.records_before - before.records_before
    return [Entry(first, b"", lost, before.records_before, before.bytes_before)] + [
        Entry(seq, b"", 0, after.records_before, after.bytes_before) for seq in range(first + 1, last + 1)
    ]


def test_a_segment_that_is_deleted_by_hand_is_a_gap(stream, caplog):
    _, log, source = stream
    assert log.read(1, 300)
    victim = files_of(log)[2]
    size = log.bytes_on_disk
    victim.unlink()
    expected = source.entries[:10] + holes_of(source, 11, 15) + source.entries[15:]
    for bytes_max in (1 << 20, 1, 500):
        assert read_all(log, bytes_max=bytes_max) == expected
    one_warning(caplog, victim, "is gone", "batches 11 to 15 are lost")
    assert log.damaged == 1
    assert log.bytes_on_disk == size - 5 * 240 - SEGMENT_HEADER_BYTES
    log.acknowledged(40, NOW_S)
    log.expire(NOW_S + 600)
    assert log.finished


def test_segments_that_were_deleted_before_adoption_are_a_gap(stream, caplog):
    wal, log, source = stream
    log.close()
    for file in (files_of(log)[0], files_of(log)[3], files_of(log)[4]):
        file.unlink()
    (log,) = wal.adopt(1)
    assert (log.first_seq, log.last_seq) == (6, 40)
    expected = source.entries[5:15] + holes_of(source, 16, 25) + source.entries[25:]
    for bytes_max in (1 << 20, 1, 500):
        assert read_all(log, bytes_max=bytes_max) == expected
    assert read_all(log, 20)[0].seq == 20
    assert log.damaged == 1
    one_warning(caplog, "10 of the batches 16 to 25 are lost")


def test_a_gap_of_millions_comes_in_portions(stream):
    """Only the names tell how large it is."""
    wal, log, source = stream
    log.close()
    last = files_of(log)[-1]
    crafted = directory(log.path.parent.parent.parent / "other", segment_bytes=1500).create(STREAM)
    crafted._chain.last_seq = 5_000_000
    crafted._chain.records_total = 9_000
    crafted.append([Entry(5_000_001, b"farther", 1, 9_000, 0)])
    shutil.copy(files_of(crafted)[0], last.parent)
    crafted.close()
    (log,) = wal.adopt(1)
    assert log.last_seq == 5_000_001
    seq, records = 41, 0  # 40 is the last there is
    for _ in range(4):
        part = log.read(seq, 1 << 20)
        assert 1 <= len(part) <= 10_000
        seq = part[-1].seq + 1
        records += sum(entry.records for entry in part)
    assert seq > 30_000
    assert records == 9_000 - source.entries[-1].records_before - source.entries[-1].records
    assert log.read(5_000_000, 1 << 20)[-1].body == b"farther"
    assert log.damaged == 1


def test_the_segment_in_use_may_be_removed_and_nothing_is_lost(stream, caplog):
    """It is open: what is in it is written again, to a file with a name."""
    _, log, source = stream
    log.append(source.take(1, 20))
    log.append(source.take(1, 20))
    victim = files_of(log)[-1]
    victim.unlink()
    log.append(source.take(1, 20))
    with pytest.raises(WalError, match="somebody removed it"):
        log.sync()
    log.sync()
    assert [path.name for path in files_of(log)[-2:]] == [f"{36:020d}.1.wal", f"{43:020d}.wal"]
    log.append(source.take(1, 20))
    assert read_all(log) == source.entries
    assert log.damaged == 0
    assert log.bytes_on_disk == sum(path.stat().st_size for path in files_of(log))
    one_warning(caplog, "batches 36 to 42 were written again")


def test_a_reader_that_finds_the_segment_in_use_gone_has_it_written_again(stream, caplog):
    _, log, source = stream
    log.append(source.take(2, 20))
    victim = files_of(log)[-1]
    victim.unlink()
    assert read_all(log) == source.entries
    log.append(source.take(2, 20))
    log.sync()
    assert read_all(log) == source.entries
    assert sum(path.stat().st_size for path in files_of(log)) == log.bytes_on_disk
    assert log.damaged == 0
    assert "somebody removed" in warnings_of(caplog)[0]


def test_a_sealed_segment_that_vanished_before_it_was_synced(tmp_path):
    """And is no longer open."""
    wal = directory(tmp_path)
    log, source = wal.create(STREAM), Source()
    for _ in range(60):
        log.append(source.take(1, 200))
    files_of(log)[0].unlink()
    log.sync()
    assert log.damaged == 1
    assert [entry.seq for entry in read_all(log) if not entry.body] == [1, 2, 3, 4, 5]
    wal.close()


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("/nowhere"), os.mkfifo])
def test_something_else_in_the_place_of_a_segment(stream, make, caplog):
    _, log, source = stream
    victim = files_of(log)[1]
    victim.unlink()
    make(victim)
    assert read_all(log) == source.entries[:5] + holes_of(source, 6, 10) + source.entries[10:]
    one_warning(caplog, victim, "is gone")


def test_a_segment_that_is_cut_while_it_is_in_use(stream, caplog):
    _, log, source = stream
    victim = files_of(log)[1]
    os.truncate(victim, SEGMENT_HEADER_BYTES + 2 * 240 + 100)
    assert read_all(log) == source.entries[:7] + holes_of(source, 8, 10) + source.entries[10:]
    assert log.damaged == 1
    assert all(str(victim) in line for line in warnings_of(caplog))


def test_the_segment_that_is_written_to_may_be_cut(stream):
    _, log, source = stream
    log.append(source.take(1, 1000))
    log.append(source.take(3, 20))
    assert files_of(log)[-1].name == f"{41:020d}.wal"
    os.truncate(files_of(log)[-1], SEGMENT_HEADER_BYTES + 1040 + 60 + 7)
    log.append(source.take(2, 20))
    entries = read_all(log)
    assert [entry.seq for entry in entries if not entry.body] == [43, 44]
    assert [entry for entry in entries if entry.body] == source.entries[:42] + source.entries[44:]
    assert log.damaged == 1


def test_copies_of_segments_do_no_harm(stream):
    """By hand, under whatever name: each batch is there once."""
    wal, log, source = stream
    log.close()
    files = files_of(log)
    shutil.copy(files[0], log.path / f"{1:020d}.7.wal")
    shutil.copy(files[3], log.path / f"{900:020d}.wal")
    shutil.copy(files[5], log.path / f"{2:020d}.wal")
    (log,) = wal.adopt(1)
    assert read_all(log) == source.entries
    assert log.last_seq == 40
    for seq in range(1, 41):
        assert log.read(seq, 1) == [source.entries[seq - 1]]
    log.append(source.take(3))
    log.acknowledged(43, NOW_S)
    log.expire(NOW_S + 600)
    assert files_of(log) == []


def test_a_damaged_note_of_what_is_acknowledged_is_written_anew(stream, caplog):
    wal, log, source = stream
    log.acknowledged(9, NOW_S)
    log.close()
    for content in (b"", b"x" * 12, bytes(12), b"y" * 13):
        (log.path / "acked").write_bytes(content)
        (adopted,) = wal.adopt(1)
        assert adopted.acked_seq == 0
        assert read_all(adopted) == source.entries
        adopted.acknowledged(11, NOW_S)
        adopted.close()
    assert len(warnings_of(caplog)) == 4
    (adopted,) = wal.adopt(1)
    assert adopted.acked_seq == 11


# ---- disks ----------------------------------------------------------------------------------------------------------


def failing_pages(monkeypatch, path, pages):
    """Reading any of these pages of a file is an input/output error."""
    pread = os.pread

    def fail(fd, size, offset):
        if os.readlink(f"/proc/self/fd/{fd}") == str(path):  # noqa: PTH115 - there is no Path method for what it yields
            first, last = offset // PAGE_BYTES, (offset + size - 1) // PAGE_BYTES
            bad = sorted(page for page in pages if first <= page <= last)
            if bad and bad[0] * PAGE_BYTES > offset:
                return pread(fd, bad[0] * PAGE_BYTES - offset, offset)
            if bad:
                raise OSError(errno.EIO, "Input/output error")
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", fail)


def test_what_the_disk_cannot_give_back_is_damage_and_no_more_than_that(tmp_path, monkeypatch, caplog):
    wal = directory(tmp_path, segment_bytes=100_000)
    log, source = wal.create(STREAM), Source()
    for _ in range(120):
        log.append(source.take(1, 1000))
    bad = {3, 4, 11}
    failing_pages(monkeypatch, files_of(log)[0], bad)
    lost = set()
    offset = SEGMENT_HEADER_BYTES
    for index in range(int(files_of(log)[1].stem) - 1):
        pages = range(offset // PAGE_BYTES, (offset + 1040 - 1) // PAGE_BYTES + 1)
        if bad & set(pages):
            lost.add(index + 1)
        offset += 1040
    for bytes_max in (1 << 20, 10_000):
        entries = read_all(log, bytes_max=bytes_max)
        assert {entry.seq for entry in entries if not entry.body} == lost
        assert [entry for entry in entries if entry.body] == [e for e in source.entries if e.seq not in lost]
    assert log.damaged == len(warnings_of(caplog)) == 2
    log.close()
    (log,) = wal.adopt(1)
    assert [entry for entry in read_all(log) if entry.body] == [e for e in source.entries if e.seq not in lost]
    wal.close()


def test_adopting_from_a_disk_that_fails(tmp_path, monkeypatch):
    """The newest segment, which is read when it is adopted, begins and ends with what can't be read."""
    wal = directory(tmp_path, segment_bytes=100_000)
    log, source = wal.create(STREAM), Source()
    log.append(source.take(90, 1000))
    log.append(source.take(60, 1000))
    crash(log)
    failing_pages(monkeypatch, files_of(log)[1], {0, 14, 15})
    (log,) = wal.adopt(1)
    entries = [entry for entry in read_all(log) if entry.body]
    assert entries[:90] == source.entries[:90]
    assert len(entries) > 135
    assert {entry.seq for entry in entries} <= set(range(1, 151))
    assert log.damaged >= 2
    wal.close()


@pytest.mark.parametrize("page", [0, 1, 2])
def test_what_cannot_be_read_is_not_what_was_never_written(tmp_path, monkeypatch, caplog, page):
    """While the disk fails the stream ends before it, or is not opened; nothing of the file is cut or removed."""
    wal = directory(tmp_path, segment_bytes=100_000)
    log, source = wal.create(STREAM), Source()
    log.append(source.take(10, 1000))
    crash(log)
    (path,) = files_of(log)
    content = path.read_bytes()
    with monkeypatch.context() as failing:
        failing_pages(failing, path, {page, 2})
        adopted = wal.adopt(1)
        assert path.read_bytes() == content
        if page == 0:
            assert len(read_all(adopted[0])) == 7, "the header and what is on the first page are lost, if it stays so"
        else:
            assert read_all(adopted[0]) == source.entries[: 3 if page == 1 else 7]
        assert adopted[0].damaged
        (line,) = [line for line in warnings_of(caplog) if "can't give back" in line]
        assert str(path) in line
        adopted[0].close()
    assert path.read_bytes() == content
    (again,) = wal.adopt(1)
    assert read_all(again) == source.entries
    wal.close()


def test_a_segment_of_which_nothing_can_be_read_waits_for_the_disk(tmp_path, monkeypatch, caplog):
    wal = directory(tmp_path, segment_bytes=100_000)
    log, source = wal.create(STREAM), Source()
    log.append(source.take(10, 100))
    crash(log)
    (path,) = files_of(log)
    with monkeypatch.context() as failing:
        failing_pages(failing, path, {0})
        assert wal.adopt(1) == wal.adopt(1) == []
    one_warning(caplog, "cannot adopt", "Input/output error", path, "check the disk")
    monkeypatch.setattr("cluster.wal.directory.time.monotonic", lambda: 1e9)  # it is not tried at once
    (again,) = wal.adopt(1)
    assert read_all(again) == source.entries
    assert not again.damaged
    wal.close()


def test_what_cannot_be_read_is_tried_ever_more_rarely(tmp_path, monkeypatch, caplog):
    """And each time with a few reads: a disk may take seconds over each."""
    wal = directory(tmp_path, segment_bytes=1 << 20)
    log, source = wal.create(STREAM), Source()
    log.append(source.take(90, 10_000))
    crash(log)
    (path,) = files_of(log)
    failing_pages(monkeypatch, path, range(1000))
    pread, failed = os.pread, []

    def count(fd, size, offset):
        try:
            return pread(fd, size, offset)
        except OSError:
            failed.append(offset)
            raise

    monkeypatch.setattr(os, "pread", count)
    now_s = 1000.0
    monkeypatch.setattr("cluster.wal.directory.time.monotonic", lambda: now_s)
    tried = []
    while now_s < 5000:
        failed.clear()
        assert wal.adopt(1) == []
        if failed:
            tried.append(now_s)
            assert len(failed) < 60
        now_s += 5
    waited = [after - before for before, after in itertools.pairwise(tried)]
    assert waited[:8] == [10, 20, 40, 80, 160, 320, 600, 600]
    one_warning(caplog, "cannot adopt", path)
    wal.close()


def test_what_is_said_of_a_stream_that_cannot_be_adopted_is_said_once(wal, monkeypatch, caplog):
    log, source = wal.create(STREAM), Source()
    for _ in range(9):
        log.append(source.take(1, 400))
    crash(log)
    first = files_of(log)[0]
    content = bytearray(first.read_bytes())
    content[20] ^= 1
    first.write_bytes(content)
    with monkeypatch.context() as failing:
        failing.setattr("cluster.wal.recovery.read_acked", lambda _: (_ for _ in ()).throw(PermissionError(13, "no")))
        for _ in range(3):
            assert wal.adopt(1) == []
    lines = warnings_of(caplog)
    assert len([line for line in lines if "the header of" in line]) == 1
    assert len(lines) == 2
    (adopted,) = wal.adopt(1)
    assert read_all(adopted) == source.entries
    assert adopted.damaged == 1


def test_one_segment_of_which_nothing_can_be_read_keeps_only_its_own_batches(tmp_path, monkeypatch, caplog):
    """Wherever it is in the stream.  The file stays, and what is lost is counted, with its records."""
    for number in range(3):
        caplog.clear()
        wal = directory(tmp_path / str(number), segment_bytes=1500)
        log, source = wal.create(STREAM), Source()
        for _ in range(30):
            log.append(source.take(1, 400))
        crash(log)
        files = files_of(log)
        path = (files[0], files[len(files) // 2], files[-1])[number]
        first_seq = int(path.stem)
        next_seq = ([int(each.stem) for each in files if each > path] or [31])[0]
        content = path.read_bytes()
        with monkeypatch.context() as failing:
            failing_pages(failing, path, {0})
            (adopted,) = wal.adopt(1)
            entries = read_all(adopted)
            lost = range(first_seq, next_seq)
            assert [each for each in entries if each.body] == [e for e in source.entries if e.seq not in lost]
            assert adopted.damaged == 1
            if path == files[-1]:
                assert adopted.last_seq == first_seq - 1, "the stream ends before it"
                one_warning(caplog, "can't give back", path, "check the disk")
            else:
                records = sum(entry.records for entry in source.entries if entry.seq in lost)
                assert sum(entry.records for entry in entries if not entry.body) == records
                said = f"of the batches {first_seq} to {next_seq - 1} are lost, with {records} records"
                one_warning(caplog, path, "which could not be read", said)
            assert path.read_bytes() == content
            adopted.close()
        (again,) = wal.adopt(1)
        assert read_all(again) == source.entries
        wal.close()


def test_a_segment_that_cannot_be_read_and_is_acknowledged_does_not_matter(tmp_path, monkeypatch, caplog):
    wal = directory(tmp_path, segment_bytes=1500)
    log, source = wal.create(STREAM), Source()
    for _ in range(30):
        log.append(source.take(1, 400))
    log.acknowledged(20, NOW_S)
    log.close()
    path = files_of(log)[0]
    content = path.read_bytes()
    failing_pages(monkeypatch, path, {0})
    (adopted,) = wal.adopt(1)
    assert read_all(adopted, 21) == source.entries[20:]
    assert warnings_of(caplog) == []
    adopted.acknowledged(30, NOW_S)
    adopted.expire(NOW_S + 600)
    assert adopted.finished
    (kept,) = kept_files(wal)
    assert kept.read_bytes() == content, "whole: it may be read on another disk"
    wal.close()


def test_several_at_the_end_that_cannot_be_read_are_left_to_another_time(tmp_path, monkeypatch, caplog):
    """What is before them is delivered; then they are a stream of which nothing can be read."""
    wal = directory(tmp_path, segment_bytes=1500)
    log, source = wal.create(STREAM), Source()
    for _ in range(30):
        log.append(source.take(1, 400))
    crash(log)
    files = files_of(log)
    bad = files[-2:]
    with monkeypatch.context() as failing:
        for path in bad:
            failing_pages(failing, path, {0})
        (adopted,) = wal.adopt(1)
        last_seq = int(bad[0].stem) - 1
        assert read_all(adopted) == source.entries[:last_seq]
        assert len([line for line in warnings_of(caplog) if "can't give back" in line]) == 2
        adopted.acknowledged(last_seq, NOW_S)
        adopted.expire(NOW_S + 600)
        assert adopted.finished
        adopted.remove()
        assert wal.adopt(1) == []
        assert files_of(log) == bad
    monkeypatch.setattr("cluster.wal.directory.time.monotonic", lambda: 1e9)  # it is not tried at once
    (again,) = wal.adopt(1)
    assert read_all(again) == source.entries[last_seq:]
    wal.close()


def test_a_segment_that_could_not_all_be_read_is_kept_when_its_time_has_come(tmp_path, monkeypatch, caplog):
    wal = directory(tmp_path, segment_bytes=100_000)
    log, source = wal.create(STREAM), Source()
    log.append(source.take(10, 1000))
    log.close()
    (path,) = files_of(log)
    content = path.read_bytes()
    failing_pages(monkeypatch, path, {1})
    (log,) = wal.adopt(1)
    assert [entry for entry in read_all(log) if entry.body] != source.entries
    log.acknowledged(log.last_seq, NOW_S)
    log.expire(NOW_S + 600)
    assert log.finished
    (kept,) = [each for each in kept_files(wal) if not each.name.endswith(".bad")]
    assert kept.read_bytes() == content
    assert any("could not all be read" in line and str(kept) in line for line in warnings_of(caplog))
    wal.close()


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EACCES, errno.ENOSPC])
def test_a_segment_that_could_not_all_be_read_stays_where_it_cannot_be_moved(tmp_path, monkeypatch, caplog, error):
    wal = directory(tmp_path, segment_bytes=100_000)
    log, source = wal.create(STREAM), Source()
    log.append(source.take(10, 1000))
    log.close()
    (path,) = files_of(log)
    content = path.read_bytes()
    failing_pages(monkeypatch, path, {1})
    (log,) = wal.adopt(1)
    read_all(log)
    log.acknowledged(log.last_seq, NOW_S)
    caplog.clear()
    with monkeypatch.context() as failing:
        failing.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(error, os.strerror(error))))
        for _ in range(2):
            log.expire(NOW_S + 600)
        assert path.read_bytes() == content
        one_warning(caplog, "cannot delete the WAL segment", path, os.strerror(error))
    log.expire(NOW_S + 600)
    assert log.finished
    assert not path.exists()
    (kept,) = [each for each in kept_files(wal) if not each.name.endswith(".bad")]
    assert kept.read_bytes() == content
    wal.close()


def test_when_the_quarantine_is_full_what_could_not_be_read_goes_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("cluster.wal.quarantine.BYTES_MAX", 5_000)
    wal = directory(tmp_path, segment_bytes=100_000)
    log, source = wal.create(STREAM), Source()
    log.append(source.take(10, 1000))
    log.close()
    (path,) = files_of(log)
    failing_pages(monkeypatch, path, {1})
    (log,) = wal.adopt(1)
    read_all(log)
    log.acknowledged(log.last_seq, NOW_S)
    log.expire(NOW_S + 600)
    assert log.finished
    assert not path.exists()
    assert any("is deleted, not kept" in line and "is full" in line for line in warnings_of(caplog))
    wal.close()


def test_two_who_move_at_once_do_not_replace_each_others(tmp_path, monkeypatch, caplog):
    """Two workers look into the data directory, and find the same and other things of one name."""
    first, second = Quarantine(tmp_path), Quarantine(tmp_path)
    paths = [tmp_path / each / "x" for each in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(path.parent.name)
    real = Path.rename

    def rename(path, target):
        monkeypatch.setattr(Path, "rename", real)
        assert second.move(paths[1], "x", "a foreign file")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert first.move(paths[0], "x", "a foreign file")
    assert sorted(path.read_text() for path in (tmp_path / "quarantine").iterdir()) == ["a", "b"]

    paths[0].write_text("again")

    def rename_late(path, target):
        monkeypatch.setattr(Path, "rename", real)
        assert second.move(paths[0], "x", "a foreign file")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename_late)
    caplog.clear()
    assert not first.move(paths[0], "x", "a foreign file")
    assert len(warnings_of(caplog)) == 1, "who was quicker said it"
    assert len(list((tmp_path / "quarantine").iterdir())) == 3


def test_two_who_keep_the_same_at_once_have_both_kept_it(tmp_path, monkeypatch):
    first, second = Quarantine(tmp_path), Quarantine(tmp_path)
    real = Path.exists

    def exists(path):
        monkeypatch.setattr(Path, "exists", real)
        second.keep("a", b"content")
        return False

    monkeypatch.setattr(Path, "exists", exists)
    assert "kept as" in first.keep("a", b"content")
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_the_quarantine_has_limits(tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.wal.quarantine.BYTES_MAX", 1000)
    monkeypatch.setattr("cluster.wal.quarantine.FILES_MAX", 3)
    quarantine = Quarantine(tmp_path)
    assert "kept as" in quarantine.keep("a", b"x" * 600)
    assert "kept as" in quarantine.keep("a", b"x" * 600)  # the same
    assert "is full" in quarantine.keep("b", b"x" * 600)
    assert "kept as" in quarantine.keep("c", b"x")
    assert "kept as" in quarantine.keep("d", b"x")
    assert "is full" in Quarantine(tmp_path).keep("e", b"x")
    assert sorted(path.stat().st_size for path in (tmp_path / "quarantine").iterdir()) == [1, 1, 600]
    assert "nothing of it is left" in quarantine.keep("f", b"")


def test_a_quarantine_that_cannot_be_written_is_said_and_leaves_nothing_half(tmp_path, monkeypatch):
    quarantine = Quarantine(tmp_path)
    real = os.fdopen

    class Full:
        def __init__(self, fd):
            self.file = real(fd, "wb")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            self.file.write(content[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", lambda fd, mode: Full(fd))
    assert "No space left on device" in quarantine.keep("a", b"content")
    assert list((tmp_path / "quarantine").iterdir()) == []
    monkeypatch.undo()
    assert "kept as" in quarantine.keep("a", b"content")
