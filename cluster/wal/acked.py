"""The file ``acked`` of a stream: how far it was acknowledged, for people and for the next process.

Advisory: it lags behind, and may be missing or damaged.  8 bytes little-endian and their CRC32C, written in place at
most once a second, and at once when the database was set back.  Its mtime is when that was so at the latest.
"""

import logging
import os
import struct
from pathlib import Path

import google_crc32c

from cluster.wal.segment import open_for_reading

NAME = "acked"
REWRITE_S = 1.0

_LAYOUT = struct.Struct("<QI")

logger = logging.getLogger("cluster.wal")


class AckedFile:
    def __init__(self, directory: Path, seq: int) -> None:
        """``seq``: what is in the file."""
        self._path = directory / NAME
        self._seq = self._written_seq = seq
        self._written_at_s = 0.0
        self._failing = False

    def note(self, seq: int, now_s: float) -> None:
        set_back = seq < self._seq
        self._seq = seq
        if set_back:  # what the file says must not be taken for true later
            self._written_at_s = now_s
            self.flush()
        else:
            self.flush_if_due(now_s)

    def flush_if_due(self, now_s: float) -> None:
        if not 0 <= now_s - self._written_at_s < REWRITE_S:
            self._written_at_s = now_s
            self.flush()

    def flush(self) -> None:
        if self._seq == self._written_seq:
            return
        number = self._seq.to_bytes(8, "little")
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(fd, _LAYOUT.pack(self._seq, google_crc32c.value(number)), 0)
                os.ftruncate(fd, _LAYOUT.size)  # should it have been something else
            finally:
                os.close(fd)
        except OSError as error:
            if not self._failing:
                logger.warning(
                    "cannot note in %s what is acknowledged: %s; nothing depends on it", self._path, error.strerror
                )
            self._failing = True
        else:
            self._written_seq = self._seq
            self._failing = False


def read_acked(directory: Path) -> tuple[int, float] | None:
    """The seq and when it was noted, in seconds since the epoch; (0, 0) without a file, None when it is damaged."""
    try:
        fd = open_for_reading(directory / NAME)
    except FileNotFoundError:
        return 0, 0.0
    try:
        content = os.pread(fd, _LAYOUT.size + 1, 0)
        modified_at_s = os.fstat(fd).st_mtime
    finally:
        os.close(fd)
    if len(content) != _LAYOUT.size:
        return None
    seq, crc = _LAYOUT.unpack(content)
    return (seq, modified_at_s) if crc == google_crc32c.value(content[:8]) else None
