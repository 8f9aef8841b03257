"""Every ZeroMQ socket of the project is made here: all options in one place.

Transport rules (see messages/PROTOCOL.md): ROUTER at the server, DEALER at the client, automatic routing ids (identity
comes from the hello message), one body frame per message, sends that never block, nothing lingers at close.
"""

import contextlib
import os
import socket as system_socket
from pathlib import Path

import zmq

from cluster.errors import ClusterError

MESSAGE_BYTES_MAX = 8 << 20  # a peer that sends more is disconnected by ZeroMQ
ADMIN_REQUEST_BYTES_MAX = 1 << 20  # a larger one is refused in words
ADMIN_MESSAGE_BYTES_MAX = 4 * ADMIN_REQUEST_BYTES_MAX  # ... and one larger than this as above
QUEUE_MESSAGES_MAX = 4_096  # per peer and direction
HEARTBEAT_MS = 1_000
HEARTBEAT_TIMEOUT_MS = 10_000
RECONNECT_MS = 50
RECONNECT_MAX_MS = 500
BACKLOG = 1_024
SERVED_TIMEOUT_S = 1.0
IPC_PATH_MAX = 103  # sun_path is 108 bytes on Linux, 104 on macOS


def _common(socket: zmq.Socket[bytes], bytes_max: int) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, bytes_max)
    socket.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES_MAX)
    socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES_MAX)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)


def bind_router(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, admin: bool = False) -> zmq.Socket[bytes]:
    """A server's socket.  Raises ClusterError when the endpoint can't be bound."""
    check_endpoint(endpoint)
    socket = context.socket(zmq.ROUTER)
    _common(socket, ADMIN_MESSAGE_BYTES_MAX if admin else MESSAGE_BYTES_MAX)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise ClusterError(
            f"cannot listen on {endpoint}: {error.strerror}; is another cluster using it?", code="endpoint_unavailable"
        ) from error
    return socket


def connect_dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A client's socket; ZeroMQ connects and reconnects in the background."""
    check_endpoint(endpoint)
    socket = context.socket(zmq.DEALER)
    _common(socket, MESSAGE_BYTES_MAX)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    socket.connect(endpoint)
    return socket


def check_endpoint(endpoint: str) -> None:
    """Raises ClusterError when an ipc endpoint's path is longer than the system allows."""
    path = endpoint.removeprefix("ipc://")
    if path != endpoint and len(os.fsencode(path)) > IPC_PATH_MAX:
        raise ClusterError(
            f"the socket path {path} is longer than {IPC_PATH_MAX} bytes; choose a shorter --data-dir",
            code="path_too_long",
        )


def is_served(endpoint: str) -> bool:
    """Does anybody listen at this ipc endpoint?  Raises ClusterError when that isn't ours to know."""
    path = endpoint.removeprefix("ipc://")
    with system_socket.socket(system_socket.AF_UNIX) as client:
        client.settimeout(SERVED_TIMEOUT_S)
        try:
            client.connect(path)
        except PermissionError as error:
            raise ClusterError(
                f"cannot look at {path}: {error.strerror}; run this as the user that started the cluster",
                code="data_dir",
            ) from error
        except BlockingIOError:  # a full backlog: somebody who doesn't keep up
            return True
        except OSError:  # nobody, or no path that anybody could listen at
            return False
        return True


def remove_ipc_path(endpoint: str) -> None:
    """Remove the file of a server's ipc endpoint after closing it; ZeroMQ leaves it after a crash."""
    path = endpoint.removeprefix("ipc://")
    if path != endpoint:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()


def make_ipc_private(endpoint: str) -> None:
    """Whoever may write to the file of an ipc endpoint may speak there: only our own user may."""
    path = endpoint.removeprefix("ipc://")
    if path != endpoint:
        with contextlib.suppress(FileNotFoundError):
            Path(path).chmod(0o600)
