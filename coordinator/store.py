"""What the coordinator must not forget, as one file: ``DATA_DIR/coordinator/state.msgpack``.

    magic (8 bytes) | crc32 of the body (4, big-endian) | length of the body (4) | body: DurableState in msgpack

Written to a temporary file, synced, renamed: a reader sees the old or the new one, never half of it.  ``save`` is
durable when it returns (an epoch must be, before anyone acts on it); ``save_soon`` writes in a thread.  Both keep the
order in which they were called.  A file that can't be used is moved aside once, with one warning, and the caller
starts from the database.

It doesn't know what the state means, nor which ``cluster up`` it belongs to (see core.py).
"""

import asyncio
import contextlib
import logging
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import msgspec

from cluster.errors import ClusterError
from coordinator.events import DurableState

STATE_MAGIC = b"RPSTATE1"
STATE_BYTES_MAX = 64 << 20
_HEADER = struct.Struct(">8sII")

logger = logging.getLogger("coordinator.store")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(DurableState).decode


class StateFile:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "state.msgpack"
        self._writing = threading.Lock()
        self._version = 0  # of the newest content handed over
        self._written_version = 0
        self._written = b""
        prepare_directory(directory)

    def load(self) -> DurableState | None:
        """The state as last saved; None when there is none, or none that can be used."""
        try:
            with self.path.open("rb") as file:
                raw = file.read(STATE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ClusterError(f"cannot read {self.path}: {error.strerror}; check its owner and mode") from error
        try:
            return _parse(raw)
        except (ValueError, struct.error) as error:
            move_aside(self.path, f"cannot be used ({error})")
            return None

    def save(self, state: DurableState) -> None:
        """Durable when it returns.  Raises ClusterError."""
        self._version += 1
        try:
            self._write(self._version, _encode(state))
        except OSError as error:
            raise ClusterError(f"cannot save {self.path}: {error.strerror}; is the disk full?") from error

    async def save_soon(self, state: DurableState) -> None:
        """Returns when it is durable, or when something newer is; the loop isn't held up.  Raises OSError."""
        body = _encode(state)
        if body == self._written:
            return
        self._version += 1
        await asyncio.to_thread(self._write, self._version, body)

    def _write(self, version: int, body: bytes) -> None:
        with self._writing:
            if version < self._written_version:
                return
            temporary = self.path.with_suffix(".new")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, for the mode
                file.write(_HEADER.pack(STATE_MAGIC, zlib.crc32(body), len(body)))
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            sync_directory(self.path.parent)
            self._written_version = version
            self._written = body


def _parse(raw: bytes) -> DurableState:
    if len(raw) < _HEADER.size:
        raise ValueError("it is truncated")
    magic, checksum, length = _HEADER.unpack_from(raw)
    body = raw[_HEADER.size :]
    if magic != STATE_MAGIC:
        raise ValueError("it was not written by this program")
    if len(body) != length:
        raise ValueError(f"it has {len(body)} bytes instead of {length}")
    if zlib.crc32(body) != checksum:
        raise ValueError("its checksum is wrong")
    return _decode(body)


def prepare_directory(directory: Path) -> None:
    """For our own files only: projects carry credentials."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(f"cannot create {directory}: {error.strerror}; choose another --data-dir") from error


def sync_directory(directory: Path) -> None:
    """Makes a rename in it durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_aside(path: Path, why: str) -> None:
    """Keep an unusable file for people to look at, out of the way."""
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns() // 1_000_000}")
    logger.warning("%s %s; it is kept as %s", path, why, aside.name)
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
