"""A stand-in for a cluster whose status document can be changed, and a terminal with ``cluster`` in its PATH."""

import contextlib
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
import zmq

from cluster import sockets
from cluster.supervisor.lock import LockHolder, supervisor_lock
from tests.checkout_command import path_with_cluster
from tests.top.known import status
from tests.top.pseudo_terminal import PseudoTerminal


class StatusServer:
    """Holds the lock of a data directory and answers each request with the document it has."""

    def __init__(self, data_dir):
        self.document = status()
        self.asked = 0
        self._stack = contextlib.ExitStack()
        lock = self._stack.enter_context(supervisor_lock(data_dir / "run"))
        lock.write(LockHolder(pid=os.getpid(), http="127.0.0.1:8700", embedded=False))
        self._context = zmq.Context()
        self._socket = sockets.bind_router(self._context, f"ipc://{data_dir}/run/admin.sock", admin=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while not self._stop.is_set():
            if self._socket.poll(20):
                *envelope, body = self._socket.recv_multipart()
                assert json.loads(body) == {"type": "status"}
                self.asked += 1
                reply = json.dumps({"type": "ok", "status": self.document}).encode()
                self._socket.send_multipart([*envelope, reply])
        self._socket.close()
        self._context.term()

    def close(self):
        self._stop.set()
        self._thread.join()
        self._stack.close()


@pytest.fixture
def data_dir():
    """Short, because socket paths are bounded."""
    path = Path(tempfile.mkdtemp(prefix="rp-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make_server(data_dir):
    with contextlib.ExitStack() as stack:

        def make():
            server = StatusServer(data_dir)
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def server(make_server):
    return make_server()


@pytest.fixture
def environ(tmp_path, data_dir):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_")}
    for name in ("DATABASE_URL", "NO_COLOR", "MAX_CONCURRENT_HTTP", "PROMPT_COMMAND"):
        kept.pop(name, None)
    return kept | {"PATH": path_with_cluster(tmp_path), "CLUSTER_DATA_DIR": str(data_dir)}


@pytest.fixture
def terminal(environ):
    with PseudoTerminal(environ) as opened:
        yield opened
