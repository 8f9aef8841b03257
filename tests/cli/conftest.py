"""The command line in this process, and a stand-in for a coordinator's admin socket."""

import contextlib
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
import zmq

from cluster import cli, sockets
from cluster.supervisor.lock import LockHolder, supervisor_lock


class Ran:
    def __init__(self, status, out, err):
        self.status = status
        self.out = out
        self.err = err

    def __repr__(self):
        return f"status {self.status}\n--- out\n{self.out}\n--- err\n{self.err}"

    @property
    def error(self):
        """The one line it complained with."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self
        assert lines[0].startswith("Error: "), self
        return lines[0].removeprefix("Error: ")


class FakeAdmin:
    """Answers each request with the next scripted reply; None: not at all."""

    def __init__(self, run_dir):
        self.requests = []
        self.replies = []
        self._context = zmq.Context()
        self._socket = sockets.bind_router(self._context, f"ipc://{run_dir}/admin.sock", admin=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while not self._stop.is_set():
            if self._socket.poll(20):
                *envelope, body = self._socket.recv_multipart()
                self.requests.append(json.loads(body))
                reply = self.replies.pop(0) if self.replies else {"type": "ok"}
                if reply is not None:
                    raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                    self._socket.send_multipart([*envelope, raw])
        self._socket.close()
        self._context.term()

    def close(self):
        self._stop.set()
        self._thread.join()


@pytest.fixture
def data_dir():
    path = Path(tempfile.mkdtemp(prefix="rp-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def cluster(data_dir, capfd, monkeypatch):
    """Run a command line on the data directory."""
    for name in list(os.environ):
        if name.startswith("CLUSTER_") or name in {"DATABASE_URL", "MAX_CONCURRENT_HTTP"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLUSTER_DATA_DIR", str(data_dir))
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments):
        capfd.readouterr()
        status = cli.run_command([str(each) for each in arguments])
        return Ran(status, *capfd.readouterr())

    return run


@pytest.fixture
def admin(data_dir):
    """A cluster that seems to run: its lock is held, its admin socket answers."""
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(supervisor_lock(data_dir / "run"))
        lock.write(LockHolder(pid=os.getpid(), http="127.0.0.1:8700", embedded=False))
        fake = FakeAdmin(data_dir / "run")
        stack.callback(fake.close)
        yield fake
