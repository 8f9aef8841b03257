"""One child process: started with pipes, its output cut into lines, its end reported at once, and reaped.

The end is seen through a pidfd, or by a waiting thread where there is none; the process is reaped and signalled
only from the loop's thread, so a signal never meets a foreign process that got the same number.  It decides nothing.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence

from cluster.logs import LineAssembler

READ_BYTES = 65_536
DRAIN_READS_MAX = 64  # what is read at once after the process has ended

OnLine = Callable[[int, bytes], None]  # pid, line
OnEnd = Callable[[int], None]  # exit status, negative: ended by that signal


class ChildProcess:
    """Raises OSError when the program can't be started."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        on_line: OnLine,
        on_end: OnEnd,
        *,
        use_pidfd: bool = hasattr(os, "pidfd_open"),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_line = on_line
        self._on_end = on_end
        self._lines = LineAssembler()
        self._process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.PIPE,  # end of file tells the child that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # no ^C from a terminal: we tell it when to stop
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._loop.add_reader(self._output, self._read)
        self._pidfd = -1
        if use_pidfd:
            with contextlib.suppress(OSError):  # no descriptor to be had: it runs all the same, and must be watched
                self._pidfd = os.pidfd_open(self.pid)
        if self._pidfd >= 0:
            self._loop.add_reader(self._pidfd, self._ended)
        else:
            threading.Thread(target=self._wait, name=f"wait-{self.pid}", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens to a process that has ended."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                if self._pidfd >= 0:
                    signal.pidfd_send_signal(self._pidfd, number)
                else:
                    os.kill(self.pid, number)  # not reaped yet, so the number is still its own

    def _read(self) -> bool:
        """Hand over what has been written; False when there is no more for now."""
        try:
            data = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._output)
            return False
        for line in self._lines.feed(data):
            self._on_line(self.pid, line)
        return True

    def _wait(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # leaves it to the loop's thread to reap
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            self._loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        exit_status = self._process.wait()
        for _ in range(DRAIN_READS_MAX):  # its last words, before its end
            if not self._read():
                break
        for line in self._lines.end():
            self._on_line(self.pid, line)
        self._loop.remove_reader(self._output)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._on_end(exit_status)
