"""Speaks to a cluster's admin socket: one request, one reply.

A cluster on this host is looked for first, so that "none is running" is said at once and with its own exit status
instead of a time-out: by its supervisor's lock, or, where roles run without one, by who listens on the admin socket.
Nothing is retried: a request that changes something may have been carried out.
"""

import time
from typing import Any, Self

import orjson
import zmq

from cluster import sockets
from cluster.errors import ClusterError, InvalidInputError, NotRunningError
from cluster.settings import Settings
from cluster.supervisor.lock import find_holder

REQUEST_TIMEOUT_S = 15.0  # the coordinator answers within ten
LOOK_EVERY_MS = 500


class AdminClient:
    """Usable as a context manager; a request that wasn't answered leaves it unusable."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._is_local = settings.admin.startswith("ipc://")
        self._require_running()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = sockets.connect_dealer(self._context, settings.admin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()
        self._context.term()

    def request(self, message: dict[str, Any], timeout_s: float = REQUEST_TIMEOUT_S) -> dict[str, Any]:
        """The reply of type ``ok``.  An error reply is raised as ClusterError with its code."""
        try:
            body = orjson.dumps(message)
        except orjson.JSONEncodeError as error:
            raise InvalidInputError(f"the request cannot be sent: {error}; an id has at most 19 digits") from error
        self._socket.send(body, flags=zmq.DONTWAIT)
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._socket.poll(min(LOOK_EVERY_MS, max(1, int(left_s * 1_000)))):
                return _checked(self._socket.recv_multipart()[-1])
            self._require_running()
        raise ClusterError(
            f"the cluster did not answer within {timeout_s:g} s at {self._settings.admin}; it may still be starting, "
            "see its log and `cluster status`",
            code="timeout",
        )

    def _require_running(self) -> None:
        settings = self._settings
        if self._is_local and find_holder(settings.run_dir) is None and not sockets.is_served(settings.admin):
            raise NotRunningError(
                f"no cluster is running on {settings.data_dir}; start one with `cluster up`, or give --data-dir"
            )


def request(settings: Settings, message: dict[str, Any], timeout_s: float = REQUEST_TIMEOUT_S) -> dict[str, Any]:
    with AdminClient(settings) as client:
        return client.request(message, timeout_s)


def _checked(body: bytes) -> dict[str, Any]:
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ClusterError("the cluster's answer is not JSON; is it of another version?", code="protocol") from error
    if isinstance(reply, dict) and reply.get("type") == "ok":
        return reply
    if isinstance(reply, dict) and reply.get("type") == "error":
        code, text = str(reply.get("code", "failed")), str(reply.get("message", "the cluster refused"))
        if code == "invalid_request":
            raise InvalidInputError(text)
        raise ClusterError(text, code=code)
    raise ClusterError("the cluster's answer is not understood; is it of another version?", code="protocol")
