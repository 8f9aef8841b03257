"""Streams to write and what they should read back as."""

import logging
import os
import uuid

from cluster.wal.directory import WalDirectory
from cluster.wal.format import Entry

STREAM = "01890a5d-ac96-774b-bcce-b302099a8057"
OTHER = "01890a5d-ac96-774b-bcce-b302099a8058"


class Source:
    """Entries in order, each of another size and content, with the totals a worker would give."""

    def __init__(self, seed=0):
        self.entries = []
        self.seed = seed

    def take(self, count=1, size=100):
        fresh = []
        for _ in range(count):
            seq = len(self.entries) + 1
            last = self.entries[-1] if self.entries else Entry(0, b"", 0, 0, 0)
            head = f"{self.seed}:{seq}:".encode()
            body = head + bytes((seq + each) % 251 for each in range(max(0, size - len(head))))
            entry = Entry(
                seq, body, 1 + seq % 7, last.records_before + last.records, last.bytes_before + len(last.body)
            )
            self.entries.append(entry)
            fresh.append(entry)
        return fresh

    def forget(self, seq):
        """Everything after ``seq`` was never written."""
        del self.entries[seq:]


def directory(tmp_path, worker="worker-1", *, limit=1 << 30, floor=0, segment_bytes=1500, retain_s=600.0):
    return WalDirectory(
        tmp_path / "wal",
        worker=worker,
        limit_bytes=limit,
        free_floor_bytes=floor,
        segment_bytes=segment_bytes,
        retain_s=retain_s,
    )


def new_stream_id():
    return str(uuid.uuid4())


def read_all(log, from_seq=None, bytes_max=1 << 20):
    """Everything, in as many reads as it takes; that it is contiguous and within the limits."""
    entries = []
    seq = log.first_seq if from_seq is None else from_seq
    while part := log.read(seq, bytes_max):
        assert [entry.seq for entry in part] == list(range(seq, seq + len(part)))
        assert len(part) == 1 or sum(len(entry.body) for entry in part) <= bytes_max
        entries += part
        seq = part[-1].seq + 1
    assert seq == log.last_seq + 1 or from_seq is not None
    return entries


def crash(log):
    """What SIGKILL does: the descriptors are closed, nothing is said or written."""
    log._syncer.close()
    os.close(log._lock_fd)


def files_of(log):
    return sorted(path for path in log.path.iterdir() if path.suffix == ".wal")


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def one_warning(caplog, *parts):
    (line,) = warnings_of(caplog)
    assert "\n" not in line
    for part in parts:
        assert str(part) in line, line
    return line
