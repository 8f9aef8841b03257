"""Where damaged bytes and foreign files go: ``DATA_DIR/wal/quarantine``.

Nothing in it is read or deleted by us, and several workers may use it at once.  It has limits, so that a bad disk
doesn't fill what is left of it; what can't be kept is said to be so, and the WAL goes on.  Only a whole segment that
can't be moved is an error: whoever wanted to delete it leaves it.
"""

import contextlib
import itertools
import logging
import os
import re
import stat
import threading
from pathlib import Path

import google_crc32c

BYTES_MAX = 256 << 20
FILES_MAX = 4096
NAME = "quarantine"

_ODD = re.compile(r"[^A-Za-z0-9._-]")

logger = logging.getLogger("cluster.wal")


class Quarantine:
    def __init__(self, path: Path) -> None:
        """``path``: of the WAL, not of the quarantine."""
        self.path = path / NAME
        self._counted = False
        self._counting = threading.Lock()
        self._files = 0
        self._bytes = 0
        self._left: set[Path] = set()  # foreign files that could not be moved, which was said

    def keep(self, name: str, content: bytes) -> str:
        """Copy damaged bytes; the rest of a log line that says where they are."""
        if not content:
            return "nothing of it is left"
        target = self.path / f"{_plain(name)}.{google_crc32c.value(content):08x}.bad"
        try:
            self._prepare()
            if target.exists():  # found damaged in an earlier life
                return f"kept as {target}"
            if self._files >= FILES_MAX or self._bytes + len(content) > BYTES_MAX:
                return f"not kept, because {self.path} is full"
            _write_new(target, content)
        except FileExistsError:
            return f"kept as {target}"  # another worker found the same
        except OSError as error:
            return f"not kept, because {target} can't be written: {error.strerror}"
        self._files += 1
        self._bytes += len(content)
        return f"kept as {target}"

    def move(self, path: Path, name: str, why: str) -> bool:
        """Move a foreign file, directory or link out of the way, and say so."""
        try:
            self._move_and_say(path, name, why)
        except FileNotFoundError:
            return False  # somebody else was quicker
        except OSError as error:
            if path not in self._left:
                self._left.add(path)
                logger.warning(
                    "%s in the WAL: %r; it stays there, because it can't be moved to %s: %s",
                    why, str(path), self.path, error.strerror,
                )  # fmt: skip
            return False
        return True

    def take(self, path: Path, name: str, why: str) -> bool:
        """As ``move``, for a file of our own, which may be large; False when there is no room for it, which is said.

        Raises OSError when it can't be moved: then it is where it was.
        """
        self._prepare()
        size_bytes = path.stat(follow_symlinks=False).st_size
        if self._files >= FILES_MAX or self._bytes + size_bytes > BYTES_MAX:
            logger.warning("%s is deleted, not kept, because %s is full: %r", why, self.path, str(path))
            return False
        self._move_and_say(path, name, why)
        self._bytes += size_bytes
        return True

    def _move_and_say(self, path: Path, name: str, why: str) -> None:
        self._prepare()
        target = self._move(path, _plain(name))
        self._files += 1
        logger.warning("%s in the WAL: %r; moved to %s", why, str(path), target)

    def _prepare(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._counting:
            if self._counted:
                return
            with os.scandir(self.path) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # somebody tidies up
                        self._bytes += entry.stat(follow_symlinks=False).st_size
                    self._files += 1
            self._counted = True

    def _move(self, path: Path, name: str) -> Path:
        """To the first free name, which is taken first: workers who move at once don't replace each other's."""
        is_directory = stat.S_ISDIR(path.lstat().st_mode)
        for number in itertools.count():
            target = self.path / (f"{name}.{number}" if number else name)
            try:
                if is_directory:
                    target.mkdir(mode=0o700)
                else:
                    _write_new(target, b"")
            except FileExistsError:
                continue
            try:
                path.rename(target)
            except OSError:
                with contextlib.suppress(OSError):
                    target.rmdir() if is_directory else target.unlink()
                raise
            return target
        raise AssertionError  # count() has no end


def _write_new(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _plain(name: str) -> str:
    return _ODD.sub("_", name)[-200:]
