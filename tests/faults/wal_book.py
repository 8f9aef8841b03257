"""The WAL as a book: every result that was found whole in a segment, read again and again while a cluster runs.

Segments are deleted ten minutes after they are acknowledged, or sooner when the disk is full, so a thread collects what
was added while the book is open; ``collect`` does it at once.  An entry counts once, by stream and seq, wherever it
lies; that two different ones share a seq is a ``conflict``.  What is not whole yet at a segment's end is read the next
time.  Nothing is written or locked.
"""

import os
import threading
import zlib
from array import array
from collections import defaultdict

from cluster.messages.results import Batch, decode_to_writer
from cluster.wal.directory import list_streams
from cluster.wal.format import (
    SEGMENT_HEADER_BYTES,
    ScannedEntry,
    parse_segment_name,
    scan,
    stream_key,
)
from tests.faults.background import Watcher

COLLECT_S = 0.5
SIZE_BITS = 10  # a body's size, 0 for none, is kept in the lower bits of its tick


class WalBook(Watcher):
    """A context manager: a thread collects inside it.  ``directory``: DATA_DIR/wal."""

    def __init__(self, directory):
        super().__init__()
        self._directory = directory
        self._collecting = threading.Lock()
        self._failure = None  # of the thread
        self._read_to = {}  # (inode, path) -> offset
        self._seen = {}  # (stream id, seq) -> checksum
        self._results = defaultdict(lambda: array("q"))  # by project id
        self.last_seqs = {}  # stream id -> last seq
        self.conflicts = []

    def watch(self):
        while not self.enough.wait(COLLECT_S):
            try:
                self.collect()
            except Exception as error:  # noqa: BLE001 - told to who collects next
                self._failure = error
                return

    def collect(self):
        if self._failure is not None:
            raise self._failure
        with self._collecting:
            for path in self.segments():
                try:
                    self._read(path)
                except FileNotFoundError:
                    continue  # acknowledged long enough ago, and deleted meanwhile
        return self

    def segments(self):
        """Files of DATA_DIR/wal/WORKER/STREAM that have a segment's name."""
        return sorted(
            path
            for path in self._directory.glob("*/*/*.wal")
            if path.parts[-3] != "quarantine" and parse_segment_name(path.name) and is_stream(path.parent.name)
        )

    def streams(self):
        """What ``cluster wal list`` says."""
        return list_streams(self._directory)

    def results(self, project_id):
        """[(scheduled_ms, size_bytes)] of a project, each as often as it was recorded."""
        mask = (1 << SIZE_BITS) - 1
        return [(packed >> SIZE_BITS, packed & mask) for packed in self._results.get(project_id, ())]

    def _read(self, path):
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            key = (found.st_ino, str(path))
            offset = self._read_to.get(key, 0)
            if found.st_size < offset:
                offset = 0  # cut; what was read before is known by its seq
            if offset == 0:
                if found.st_size < SEGMENT_HEADER_BYTES:
                    return
                offset = SEGMENT_HEADER_BYTES
            file.seek(offset)
            part = scan(file.read(), at=offset, final=False)
        for item in part.found:
            if isinstance(item, ScannedEntry):
                self._note(path, item.entry)
        self._read_to[key] = offset + part.consumed

    def _note(self, path, entry):
        batch = decode_to_writer(entry.body)
        assert isinstance(batch, Batch), f"{path}: seq {entry.seq} is no batch"
        key, checksum = (batch.stream_id, entry.seq), zlib.crc32(entry.body)
        before = self._seen.get(key)
        if before is None:
            self._seen[key] = checksum
            self.last_seqs[batch.stream_id] = max(entry.seq, self.last_seqs.get(batch.stream_id, 0))
            for result in batch.results:
                self._results[result.project_id].append(result.scheduled_at_ms << SIZE_BITS | (result.size_bytes or 0))
        elif before != checksum:
            self.conflicts.append(f"{path}: stream {batch.stream_id} has two batches {entry.seq}")


def is_stream(name):
    try:
        stream_key(name)
    except ValueError:
        return False
    return True
