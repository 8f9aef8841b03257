"""A real terminal with a shell in it, as a person has it: bash under job control on a pseudo-terminal, read by pyte.

``text`` is what is on the screen now, ``raw`` every byte that was ever sent to it.  pyte has no second screen, so what
was there before a program took it has to be read from ``raw``.
"""

import contextlib
import fcntl
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import psutil
import pyte
import pytest

DEADLINE_S = 30.0
POLL_S = 0.02
PROMPT = "ready> "
# Makes the pseudo-terminal the controlling one of the new session, then becomes the shell.
_LAUNCH = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class PseudoTerminal:
    """``run`` a command line in the shell; use as a context manager."""

    def __init__(self, environ, *, width=120, height=30):
        if shutil.which("bash") is None:
            pytest.skip("bash is not installed: cluster top was not tried in a terminal")
        self._lock = threading.Lock()
        self._screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        self._resize(width, height)
        self._shell = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, "bash", "--norc", "--noprofile", "--noediting", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environ, "TERM": "xterm-256color", "PS1": PROMPT, "LC_ALL": "C.UTF-8", "HISTFILE": ""},
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self):
        self.wait_for(PROMPT.strip())
        return self

    def __exit__(self, *_exc):
        with contextlib.suppress(ProcessLookupError):
            for pid in self.children():
                os.kill(pid, signal.SIGKILL)
        self._shell.kill()
        self._shell.wait()
        self.hang_up()
        self._reader.join()

    def hang_up(self):
        """As when a connection drops."""
        master, self._master = self._master, -1
        if master >= 0:
            os.close(master)

    def _read(self):
        master = self._master
        while True:
            try:
                found = os.read(master, 65_536)
            except OSError:  # nobody has the other end any more
                return
            if not found:
                return
            with self._lock:
                self.raw += found
                self._stream.feed(found)

    # ---- what a person does ---------------------------------------------------------------------------------------

    def type(self, text):
        os.write(self._master, text.encode())

    def run(self, line):
        self.type(line + "\n")

    def resize(self, width, height):
        with self._lock:
            self._screen.resize(height, width)
        self._resize(width, height)  # the kernel sends SIGWINCH

    def _resize(self, width, height):
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    # ---- what a person sees ---------------------------------------------------------------------------------------

    @property
    def lines(self):
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self):
        return "\n".join(self.lines)

    @property
    def is_cursor_hidden(self):
        with self._lock:
            return self._screen.cursor.hidden

    def wait_for(self, *parts, gone=(), deadline_s=DEADLINE_S):
        """Until all of this is on the screen, and none of that; the screen."""
        return self.wait_until(
            lambda: all(part in self.text for part in parts) and not any(part in self.text for part in gone),
            f"{parts} without {gone}",
            deadline_s,
        )

    def wait_until(self, condition, what, deadline_s=DEADLINE_S):
        until = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < until, f"waited {deadline_s} s for {what}; on the screen:\n{self.text}"
            time.sleep(POLL_S)
        return self.text

    def asked(self, line):
        """What a command prints."""
        mark = f"end-{time.monotonic_ns()}"
        self.run(
            f"was=$?; printf '\\033[H\\033[2J'; (exit $was); {line}; echo {mark[:4]}''{mark[4:]}"
        )  # the typed line doesn't have the mark in it
        self.wait_for(mark)
        return [each for each in self.lines[: self.lines.index(mark)] if each and PROMPT.strip() not in each]

    def settings(self):
        """Of the terminal, as ``stty`` has them, but for its size."""
        return self.asked("stty -g")

    def children(self):
        """Processes that the shell started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [each.pid for each in psutil.Process(self._shell.pid).children() if is_alive(each.pid)]
        return []


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
