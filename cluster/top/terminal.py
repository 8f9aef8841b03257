"""The terminal of ``cluster top``: keys one by one, the other screen, signals as events, all as it was in the end.

- What was changed is undone when the block is left, whichever way: an exception, SIGTERM, SIGINT, SIGHUP.  At SIGTSTP
  (Ctrl-Z) it is undone, the process stops, and it is done again when the process goes on; also after a SIGSTOP.
- ``wait`` returns when there is a key, a signal, news (``wake``), or the time is over.  Signal handlers only note.
- A terminal that is gone (a dropped SSH connection) ends it like SIGHUP.

It knows nothing of what is shown.
"""

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from cluster.top.state import read_keys

ESCAPE_WAIT_S = 0.05  # for what follows an Escape byte, over a slow line too
READ_BYTES = 4_096
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"  # the other screen, no cursor, no wrapping, cleared
_LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_SIGNALS = (
    signal.SIGWINCH,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGTSTP,
    signal.SIGCONT,
)


class Terminal:
    """Use as a context manager.  ``ending``: the signal that asked for the end."""

    def __init__(self, fd_in: int | None = None, fd_out: int | None = None) -> None:
        self._in = sys.stdin.fileno() if fd_in is None else fd_in
        self._out = sys.stdout.fileno() if fd_out is None else fd_out
        self._before: list[Any] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self._noted: list[int] = []
        self._pending = b""
        self._read_at = 0.0
        self._shown: list[str] = []
        self._is_entered = False
        self.ending: int | None = None

    def __enter__(self) -> Self:
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._before = termios.tcgetattr(self._in)
        # Handlers first: from here on no signal ends the process on a screen that isn't its own.
        self._wakeup_before = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for each in _SIGNALS:
            self._handlers[each] = signal.signal(each, self._note)
        try:
            self._take_screen()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._give_screen_back()
        for each, handler in self._handlers.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._wake_read)
        os.close(self._wake_write)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            found = os.get_terminal_size(self._out)
        except OSError:
            return (80, 24)
        return (found.columns or 80, found.lines or 24)

    def wake(self) -> None:
        """From any thread."""
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake; closed: it is over
            os.write(self._wake_write, b"\0")

    def wait(self, timeout_s: float) -> list[str]:
        """The keys that came; also none, for another reason to look."""
        deadline = time.monotonic() + timeout_s
        keys: list[str] = []
        while not keys:
            left_s = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(
                [self._in, self._wake_read], [], [], min(left_s, ESCAPE_WAIT_S) if self._pending else left_s
            )
            woken = self._wake_read in ready and self._drain()
            self._heed_signals()
            if self.ending is not None:
                break
            if self._in in ready and not self._read():
                self.ending = signal.SIGHUP
                break
            is_complete = time.monotonic() - self._read_at >= ESCAPE_WAIT_S
            keys, self._pending = read_keys(self._pending, is_complete=is_complete)
            if woken or time.monotonic() >= deadline:
                break
        return keys

    def show(self, lines: list[str]) -> None:
        """Send the lines that differ from what is there, in one write."""
        changed = [
            f"\x1b[{number};1H{line}\x1b[0m\x1b[K"
            for number, line in enumerate(lines, start=1)
            if number > len(self._shown) or self._shown[number - 1] != line
        ]
        if len(lines) < len(self._shown):
            changed.append(f"\x1b[{len(lines) + 1};1H\x1b[J")
        self._shown = list(lines)
        if changed:
            self._write("".join(changed))

    def forget(self) -> None:
        """The next ``show`` draws everything: the screen is not what it was."""
        self._shown = []
        self._write("\x1b[2J")

    # ---- the screen -----------------------------------------------------------------------------------------------

    def _take_screen(self) -> None:
        mode = list(self._before)
        mode[0] &= ~(termios.IXON | termios.ICRNL)  # Ctrl-S would stand still with a screen that isn't the user's
        mode[3] &= ~(termios.ECHO | termios.ICANON)  # ISIG stays: Ctrl-C and Ctrl-Z are signals
        mode[6] = list(mode[6])
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        try:
            termios.tcsetattr(self._in, termios.TCSADRAIN, mode)
        except termios.error:  # it is gone
            self.ending = signal.SIGHUP
            return
        self._is_entered = True
        self._shown = []
        self._write(_ENTER)

    def _give_screen_back(self) -> None:
        if not self._is_entered:
            return
        self._is_entered = False
        self._write(_LEAVE)
        with contextlib.suppress(termios.error):  # a terminal that is gone
            termios.tcsetattr(self._in, termios.TCSAFLUSH, self._before)

    def _write(self, text: str) -> None:
        data = text.encode(sys.stdout.encoding or "utf-8", errors="replace")
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except BlockingIOError:  # standard output was made non-blocking by whoever shares it
            select.select([], [self._out], [], 1.0)
            self._shown = []  # what was sent of it is not known
        except OSError:
            self.ending = signal.SIGHUP

    # ---- signals --------------------------------------------------------------------------------------------------

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.append(number)

    def _heed_signals(self) -> None:
        noted, self._noted = self._noted, []
        for number in noted:
            match number:
                case signal.SIGWINCH:
                    self.forget()
                case signal.SIGTSTP:
                    self._stop()
                case signal.SIGCONT:
                    self._take_screen()  # whoever had the terminal meanwhile may have changed it
                case _:
                    self.ending = number

    def _stop(self) -> None:
        self._give_screen_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)  # of this thread: it doesn't return before the stop
        # Here the process stands still until SIGCONT.
        signal.signal(signal.SIGTSTP, self._note)
        self._noted = [number for number in self._noted if number != signal.SIGCONT]  # that is what follows
        self._take_screen()

    def _drain(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, READ_BYTES):
                pass
        return True

    def _read(self) -> bool:
        try:
            found = os.read(self._in, READ_BYTES)
        except OSError:
            return False
        self._pending += found
        self._read_at = time.monotonic()
        return bool(found)
