"""A PostgreSQL server of a test's own, to be killed, stopped, frozen, locked, and set back to an older state.

Every way back leads through ``start``.  ``end`` leaves nothing running, whatever was done to the server before.  Only
processes of this server are signalled, by pid.
"""

import contextlib
import shutil
import signal
import subprocess
import time

import psutil

from cluster.embedded import EmbeddedPostgres
from cluster.errors import ClusterError
from tests.integration.harness import Sql

# Durable, as a real one: how soon a result is visible depends on it.  A test reads everything, so it's no small server.
SETTINGS = {"max_connections": 50, "shared_buffers": "128MB", "max_wal_size": "512MB", "log_checkpoints": "off"}
START_S = 60.0
POLL_S = 0.02
TABLES = ("poll_results", "missed_polls", "ingest_stream", "cluster_state", "projects")


class FaultyPostgres:
    def __init__(self, base):
        base.mkdir(mode=0o755)
        self._server = EmbeddedPostgres(base, settings=SETTINGS, die_with_parent=True)
        self._older = base / "older"
        self._frozen = []
        self._locks = None
        self.url = ""

    def begin(self):
        self._server.start()
        self.url = self._server.dsn()
        return self

    def end(self):
        self.thaw()
        self.unlock()
        self._server.stop()

    def sql(self):
        """A new connection; the caller closes it."""
        return Sql(self.url)

    # ---- away and back --------------------------------------------------------------------------------------------

    def stop(self):
        """As an administrator stops it."""
        self._end_server(signal.SIGINT)

    def crash(self):
        """As it stops itself after an error: without a checkpoint."""
        self._end_server(signal.SIGQUIT)

    def kill(self):
        """Every process of it at once, as a loss of power does."""
        self._end_server(signal.SIGKILL)

    def start(self):
        until = time.monotonic() + START_S
        while True:
            try:
                self._server.revive()
            except ClusterError:  # the shared memory of what was killed may be in use for a moment
                if time.monotonic() > until:
                    raise
                time.sleep(POLL_S)
            else:
                return

    def _end_server(self, number):
        processes = self._processes()
        assert processes, "PostgreSQL is not running"
        for each in processes if number == signal.SIGKILL else processes[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)
        self._server._server.wait(START_S)
        _gone, left = psutil.wait_procs(processes[1:], START_S)
        assert not left, f"processes of PostgreSQL did not end: {left}"

    def _processes(self):
        """The postmaster, then its children; nothing when it is not running."""
        server = self._server._server
        if server is None or server.poll() is not None:
            return []
        postmaster = psutil.Process(server.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    # ---- there, and not answering ---------------------------------------------------------------------------------

    def freeze(self):
        """Connections stay open, and nothing answers on them."""
        for each in self._processes():  # the postmaster first: then no child is added
            self._stop_process(each)
        for each in self._processes()[1:]:
            self._stop_process(each)

    def _stop_process(self, process):
        if process not in self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
                self._frozen.append(process)

    def thaw(self):
        frozen, self._frozen = self._frozen, []
        for each in reversed(frozen):
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil knows a reused pid
                each.send_signal(signal.SIGCONT)

    def lock(self, tables):
        """Whoever wants to read or write these tables waits."""
        assert set(tables) <= set(TABLES)
        self._locks = self.sql()
        self._locks.execute("SET lock_timeout = '20s'")
        self._locks.execute("BEGIN")
        self._locks.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")

    def unlock(self):
        locks, self._locks = self._locks, None
        if locks is not None:
            locks.close()

    # ---- an older state -------------------------------------------------------------------------------------------

    def remember(self):
        """Keep the present state for ``set_back``; the server must have ended."""
        assert not self._processes(), "only the files of a stopped server are a state"
        self.forget()
        subprocess.run(["cp", "-a", "--reflink=auto", self._server.data, self._older], check=True)

    def set_back(self):
        """Replace the present state by the one kept; the server must have ended."""
        assert not self._processes(), "only a stopped server can be set back"
        shutil.rmtree(self._server.data)
        self._older.rename(self._server.data)

    def forget(self):
        if self._older.exists():
            shutil.rmtree(self._older)
