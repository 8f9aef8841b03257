"""Damage to the files of a WAL while nobody runs: what a crash, a bad disk or a careless person does to it.

Every function does one kind of harm and says what it is: which file, which batches can't be read any more, and what the
log has to say.  A batch is beyond saving when any of its bytes was changed or cut away; everything else must be
delivered.  The batches that are harmed come after ``committed_seq``, because harm to others would prove nothing.
"""

import os
import re
import struct
from typing import NamedTuple

from cluster.messages.results import decode_to_writer
from cluster.wal.format import (
    ENTRY_HEADER_BYTES,
    ENTRY_MAGIC,
    SEGMENT_HEADER_BYTES,
    Entry,
    ScannedEntry,
    encode_entry_header,
    scan,
)

LENGTH_AT = len(ENTRY_MAGIC) + 4  # in an entry's header
DAMAGE, CUT = "damage in the WAL", "a write that was cut short"


class Harm(NamedTuple):
    what: str
    path: str
    says: str  # a pattern of its line in the log
    lost: frozenset  # (stream id, seq)
    results: frozenset  # (project id, scheduled_ms, size_bytes) in them


def entries_of(path):
    found = scan(_body(path), at=SEGMENT_HEADER_BYTES, final=True).found
    return [item for item in found if isinstance(item, ScannedEntry)]


def _body(path):
    with path.open("rb") as file:
        file.seek(SEGMENT_HEADER_BYTES)
        return file.read()


def _harm(what, path, says, lost=()):
    """``says``: how the line begins that names the file."""
    batches = [(each.entry.seq, decode_to_writer(each.entry.body)) for each in lost]
    return Harm(
        what,
        str(path),
        rf"({says}).*{re.escape(str(path))}",
        frozenset((batch.stream_id, seq) for seq, batch in batches),
        frozenset(
            (result.project_id, result.scheduled_at_ms, result.size_bytes)
            for _, batch in batches
            for result in batch.results
        ),
    )


def _overwrite(path, offset, content):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _flip(path, offset, bit):
    with path.open("rb") as file:
        file.seek(offset)
        (byte,) = file.read(1)
    _overwrite(path, offset, bytes([byte ^ 1 << bit]))


def _inner(rng, path, committed_seq):
    """An entry that is neither committed nor the last of its segment."""
    entries = [each for each in entries_of(path)[:-1] if each.entry.seq > committed_seq]
    assert entries, f"{path}: nothing that was not committed"
    return rng.choice(entries)


def flipped_body(rng, path, committed_seq):
    hit = _inner(rng, path, committed_seq)
    _flip(path, rng.randrange(hit.offset + ENTRY_HEADER_BYTES, hit.end), rng.randrange(8))
    return _harm("a bit of a batch flipped", path, DAMAGE, [hit])


def flipped_length(rng, path, committed_seq):
    hit = _inner(rng, path, committed_seq)
    _overwrite(path, hit.offset + LENGTH_AT, struct.pack("<I", rng.choice([0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF])))
    return _harm("a batch's length overwritten", path, DAMAGE, [hit])


def flipped_header(rng, path, _committed_seq):
    _flip(path, rng.randrange(SEGMENT_HEADER_BYTES), rng.randrange(8))
    return _harm("a bit of the segment's header flipped", path, DAMAGE)


def zeroed(rng, path, committed_seq):
    """As a disk does that lost a sector."""
    hit = _inner(rng, path, committed_seq)
    content = path.read_bytes()
    first = rng.choice([at for at in range(hit.offset, hit.end) if content[at]])  # zeros over zeros are no harm
    size = rng.choice([1, 512, 4096])
    end = min(first + size, entries_of(path)[-1].end)
    lost = [each for each in entries_of(path) if each.offset < end and first < each.end]
    _overwrite(path, first, bytes(end - first))
    after = {each.entry.seq for each in entries_of(path)}
    lost = [each for each in lost if each.entry.seq not in after]  # zeros over its zeros change nothing
    return _harm("some bytes zeroed", path, f"{DAMAGE}|{CUT}", lost)


def truncated(rng, path, committed_seq):
    """Cut within a batch; what follows is gone."""
    hit = _inner(rng, path, committed_seq)
    lost = [each for each in entries_of(path) if each.offset >= hit.offset]
    os.truncate(path, rng.randrange(hit.offset + 1, hit.end))
    return _harm("cut short", path, CUT, lost)


def torn(rng, path, _committed_seq):
    """A write that came only half way, as a loss of power leaves it."""
    last = entries_of(path)[-1].entry
    records, size = last.records_before + last.records, last.bytes_before + len(last.body)
    half = Entry(last.seq + 1, last.body, last.records, records, size)
    content = encode_entry_header(half) + half.body
    with path.open("ab") as file:
        file.write(content[: rng.randrange(1, len(content))])
    return _harm("half a batch at the end", path, CUT)


def trailing_garbage(rng, path, _committed_seq):
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 10_000)))
    return _harm("garbage at the end", path, f"{DAMAGE}|{CUT}")


SEGMENT_HARMS = (flipped_body, flipped_length, flipped_header, zeroed, truncated, torn, trailing_garbage)


def foreign_files(rng, wal_dir, stream_dir):
    """Things that are none of ours, everywhere."""
    worker_dir = stream_dir.parent
    places = [wal_dir / "notes.txt", worker_dir / "core.1234", stream_dir / "backup.wal", stream_dir / "x.tmp"]
    for path in places:
        path.write_bytes(rng.randbytes(100))
    directory = worker_dir / "not-a-stream"
    directory.mkdir()
    (directory / "00000000000000000001.wal").write_bytes(rng.randbytes(1000))
    link = stream_dir / "00000000000000000009.wal"
    link.symlink_to("/dev/null")
    return [_harm(f"foreign: {path.name}", path, "a foreign file in the WAL") for path in [*places, directory, link]]
