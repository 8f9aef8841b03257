"""The bytes of a segment: what is written is read back, and nothing else is taken for an entry."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.wal import format as wal_format
from cluster.wal.format import (
    BODY_BYTES_MAX,
    ENTRY_HEADER_BYTES,
    ENTRY_MAGIC,
    SEGMENT_HEADER_BYTES,
    DamagedRange,
    Entry,
    NewerVersionError,
    ScannedEntry,
    SegmentHeader,
    decode_segment_header,
    encode_entry_header,
    encode_segment_header,
    is_torn,
    parse_segment_name,
    scan,
    segment_name,
    stream_key,
)
from tests.wal.streams import STREAM, Source

HEADER = SegmentHeader(stream_key(STREAM), 7, 1_700_000_000_123, 40, 4_000, "worker-1")
U63 = st.integers(0, (1 << 63) - 1)
ENTRIES = st.builds(
    Entry,
    seq=st.integers(1, (1 << 63) - 1),
    body=st.binary(min_size=1, max_size=300),
    records=st.integers(0, (1 << 32) - 1),
    records_before=U63,
    bytes_before=U63,
)
# Bytes that are likely to look like something.
NOISE = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.just(ENTRY_MAGIC),
        st.just(ENTRY_MAGIC[:3]),
        st.just(encode_entry_header(Entry(3, b"x" * 70, 1, 1, 1))),
    ),
    max_size=4,
).map(b"".join)


def encoded(*entries):
    return b"".join(encode_entry_header(entry) + entry.body for entry in entries)


def entries_in(found):
    return [item.entry for item in found if isinstance(item, ScannedEntry)]


def damage_in(found):
    return [item for item in found if isinstance(item, DamagedRange)]


def scan_in_pieces(buffer, size, at=0):
    """As a reader does: bytes as they come, more of them when it takes more."""
    found = []
    offset = 0
    wanted = size
    while offset < len(buffer):
        end = min(len(buffer), offset + max(wanted, size))
        part = scan(buffer[offset:end], at=at + offset, final=end == len(buffer))
        assert part.consumed > 0 or part.wanted > end - offset
        found += part.found
        offset += part.consumed
        wanted = part.wanted
    return found


def test_headers_have_the_size_that_is_written_down():
    assert SEGMENT_HEADER_BYTES == len(encode_segment_header(HEADER)) == 164
    assert len(encode_entry_header(Entry(1, b"x", 1, 0, 0))) == ENTRY_HEADER_BYTES == 40


def test_the_layout_does_not_change():
    """Files outlive the version that wrote them."""
    assert encode_entry_header(Entry(5, b"abc", 2, 8, 900)).hex() == (
        "f5b7fec1" + "f632aae0" + "03000000" + "02000000" + "0500000000000000" + "0800000000000000" + "8403000000000000"
    )
    header = encode_segment_header(HEADER)
    assert header[:8] == b"RINGWAL\xf9"
    assert header[12:16] == b"\1\0\0\0"
    assert header[16:32].hex() == STREAM.replace("-", "")
    assert header[64:] == b"worker-1" + bytes(92)


@given(first_seq=st.integers(1, (1 << 63) - 1), at_ms=U63, records=U63, size=U63, worker=st.text(max_size=25))
def test_a_segment_header_is_read_back(first_seq, at_ms, records, size, worker):
    header = SegmentHeader(stream_key(STREAM), first_seq, at_ms, records, size, worker.rstrip("\0"))
    try:
        buffer = encode_segment_header(header)
    except UnicodeEncodeError:  # a lone surrogate
        return
    assert decode_segment_header(buffer + b"more") == header


def test_no_bit_of_a_segment_header_can_flip_unseen():
    header = encode_segment_header(HEADER)
    for bit in range(8 * len(header)):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decode_segment_header(bytes(flipped)) is None, bit
    assert all(decode_segment_header(header[:size]) is None for size in range(len(header)))


def test_a_newer_version_is_told_from_damage(monkeypatch):
    monkeypatch.setattr(wal_format, "VERSION", 2)
    newer = encode_segment_header(HEADER)
    monkeypatch.undo()
    with pytest.raises(NewerVersionError, match="version 2"):
        decode_segment_header(newer)


def test_a_worker_with_too_long_a_name_is_refused():
    with pytest.raises(ValueError, match="at most 100 bytes"):
        encode_segment_header(msgspec.structs.replace(HEADER, worker="w" * 101))


@pytest.mark.parametrize("text", ["", "x", STREAM.upper(), STREAM + "0", STREAM[:-1], f"../{STREAM}", "quarantine"])
def test_what_is_no_stream_id(text):
    with pytest.raises(ValueError, match="is not the id of a stream"):
        stream_key(text)


def test_names_of_segments():
    assert segment_name(5) == "00000000000000000005.wal"
    assert parse_segment_name(segment_name(5)) == (5, 0)
    assert parse_segment_name(segment_name(1 << 62, 12)) == (1 << 62, 12)
    for name in ("5.wal", "00000000000000000000.wal", "99999999999999999999.wal", "00000000000000000005.wal.bak",
                 "00000000000000000005.x.wal", "acked", "0000000000000000000\u0665.wal"):  # fmt: skip
        assert parse_segment_name(name) is None, name


@given(st.lists(ENTRIES, max_size=8), st.integers(1, 200), st.integers(0, 1000))
def test_entries_are_read_back_in_pieces_of_any_size(entries, size, at):
    buffer = encoded(*entries)
    found = scan_in_pieces(buffer, size, at)
    assert entries_in(found) == entries
    offset = at
    for item, entry in zip(found, entries, strict=True):
        assert item.offset == offset
        offset = item.end
        assert item.end - item.offset == ENTRY_HEADER_BYTES + len(entry.body)


@given(st.lists(ENTRIES, min_size=1, max_size=3), st.integers(1, 400))
def test_an_entry_may_hold_entries(inner, size):
    """They are its content, however little of it has been read."""
    before, after = Entry(1, b"before", 1, 0, 0), Entry(3, b"after", 1, 2, 12)
    outer = Entry(2, encoded(*inner), 1, 1, 6)
    found = scan_in_pieces(encoded(before, outer, after), size)
    assert entries_in(found) == [before, outer, after]
    assert damage_in(found) == []


@given(ENTRIES, st.data())
def test_no_bit_of_an_entry_can_flip_unseen(entry, data):
    before, after = Entry(1, b"before", 1, 0, 0), Entry(3, b"after", 1, 2, 12)
    buffer = bytearray(encoded(before, entry, after))
    start = len(encoded(before))
    size = len(encoded(entry))
    bit = data.draw(st.integers(0, 8 * size - 1))
    buffer[start + bit // 8] ^= 1 << bit % 8
    found = scan(bytes(buffer), final=True).found
    assert entries_in(found) == [before, after]
    assert damage_in(found) == [DamagedRange(start, size)]


@given(st.lists(st.one_of(ENTRIES, NOISE), max_size=8), st.integers(1, 120))
def test_every_entry_is_found_between_whatever_else_there_is(parts, size):
    """But noise that happens to hold the beginning of an entry can't swallow what follows: a CRC tells."""
    buffer = b"".join(encoded(part) if isinstance(part, Entry) else part for part in parts)
    found = scan(buffer, final=True).found
    assert entries_in(found) == [part for part in parts if isinstance(part, Entry)]
    covered = 0
    for item in found:
        assert item.offset == covered
        covered = item.end if isinstance(item, ScannedEntry) else item.offset + item.size
    assert covered == len(buffer)
    assert scan_in_pieces(buffer, size) == found


@given(st.binary(max_size=2_000), st.booleans())
def test_no_bytes_are_too_odd(buffer, final):
    part = scan(buffer, final=final)
    assert entries_in(part.found) == []
    assert part.consumed == len(buffer) or not final


@pytest.mark.parametrize(
    "entry",
    [Entry(0, b"x", 1, 0, 0), Entry(1, b"", 1, 0, 0), Entry(1 << 63, b"x", 1, 0, 0)],
    ids=["seq 0", "hole", "big"],
)
def test_what_no_worker_writes_is_no_entry(entry):
    assert entries_in(scan(encoded(entry), final=True).found) == []


def test_a_length_that_is_too_large_is_not_waited_for():
    header = bytearray(encode_entry_header(Entry(1, b"x", 1, 0, 0)))
    header[8:12] = (BODY_BYTES_MAX + 1).to_bytes(4, "little")
    part = scan(bytes(header) + encoded(Entry(2, b"y", 1, 1, 1)), final=False)
    assert entries_in(part.found) == [Entry(2, b"y", 1, 1, 1)]


@pytest.mark.parametrize("bit", range(32))
def test_a_whole_entry_with_a_wrong_length_is_damage(bit):
    """The last of a file: with a length that is too large it looks like one that was cut short."""
    entry = Entry(7, b"x" * 100, 5, 30, 600)
    last = Entry(6, b"y" * 100, 5, 25, 500)
    whole = bytearray(encode_entry_header(entry) + entry.body)
    assert is_torn(bytes(whole[:-1]), last)
    whole[8 + bit // 8] ^= 1 << bit % 8
    assert not is_torn(bytes(whole), last)
    assert not is_torn(bytes(whole))


def test_a_write_that_was_cut_short_is_told_from_damage():
    whole = encoded(*Source().take(1))
    assert all(is_torn(whole[:size]) for size in range(len(whole)))
    assert is_torn(bytes(5_000))
    first, second = Source().take(2)
    beginning = encoded(second)[:-1]
    assert is_torn(beginning, first)
    assert not is_torn(beginning, second)
    assert not is_torn(whole)  # its CRC must have been wrong
    assert not is_torn(b"x" + whole[1:20])
    assert not is_torn(b"\xff" * 60)
    assert not is_torn(whole + b"more")
