"""A small tmpfs in place of a directory, which can be made full and free again.

It is filled by shrinking it to what is in it, so no foreign file is needed; what is deleted meanwhile is taken away as
well.  Needs the right to mount; ``why_not`` says when it is missing.
"""

import contextlib
import os
import subprocess
import tempfile
import threading
from pathlib import Path

SHRINK_S = 0.05
PAGE_BYTES = 4096


def why_not():
    """Why nothing can be mounted here, or None."""
    if os.geteuid() != 0:
        return "mounting a tmpfs needs root"
    with tempfile.TemporaryDirectory() as directory:
        try:
            with RamDisk(Path(directory) / "tried", 1 << 20):
                return None
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            return f"mounting a tmpfs is not allowed here: {why}"


class RamDisk:
    """A context manager: the directory is mounted inside it."""

    def __init__(self, directory, size_bytes):
        self.directory = directory
        self._size_bytes = size_bytes
        self._shrinking = None
        self._enough = threading.Event()

    def __enter__(self):
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={self._size_bytes},mode=0700", "tmpfs", str(self.directory))
        return self

    def __exit__(self, *_exc):
        try:
            self.free()
        finally:
            done = subprocess.run(["umount", self.directory], capture_output=True, check=False)
            if done.returncode:  # somebody still has a file open: gone from the tree at once, all of it with that file
                subprocess.run(["umount", "--lazy", self.directory], check=True)

    def fill(self):
        """No byte can be written from now on."""
        self._enough.clear()
        self._shrink()
        self._shrinking = threading.Thread(target=self._keep_full, name="ramdisk", daemon=True)
        self._shrinking.start()

    def free(self):
        if self._shrinking is not None:
            self._enough.set()
            self._shrinking.join()
            self._shrinking = None
            self._resize(self._size_bytes)

    @property
    def used_bytes(self):
        found = os.statvfs(self.directory)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _keep_full(self):
        while not self._enough.wait(SHRINK_S):
            self._shrink()

    def _shrink(self):
        with contextlib.suppress(subprocess.CalledProcessError):  # something was written in between: again, soon
            self._resize(max(PAGE_BYTES, self.used_bytes))

    def _resize(self, size_bytes):
        _mount("-o", f"remount,size={size_bytes}", str(self.directory))


def _mount(*words):
    subprocess.run(["mount", *words], check=True, capture_output=True, text=True)
