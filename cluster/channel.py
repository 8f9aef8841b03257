"""A ZeroMQ socket in an asyncio loop, without zmq.asyncio: its file descriptor is watched and drained until ``Again``.

A channel hands over every message in order and sends without blocking.  What can't be sent is the caller's to know:
``send`` returns False when the peer is gone or its queue is full, and nothing was queued.  At most ``DRAIN_MAX``
messages are handed over per turn of the loop, and no further one after ``DRAIN_S``, so neither a flood nor a row of
large messages can starve timers.
"""

import asyncio
import time
from collections.abc import Callable

import zmq

DRAIN_MAX = 512
DRAIN_S = 0.002

# The frames as received: a server gets [routing id, body], a client [body]; anything else is malformed, and the
# receiver's to count (the admin socket also takes REQ's [routing id, b"", body]).
OnFrames = Callable[[list[bytes]], None]


class Channel:
    def __init__(self, socket: zmq.Socket[bytes], on_frames: OnFrames) -> None:
        self._socket = socket
        self._on_frames = on_frames
        self._is_server = socket.getsockopt(zmq.TYPE) == zmq.ROUTER
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._scheduled: asyncio.Handle | None = None
        self._closed = False
        self._loop.add_reader(self._fd, self._drain)
        self._schedule()

    def send(self, body: bytes, peer: bytes = b"") -> bool:
        """Queue one message.  False: the peer is unknown or gone, or its queue is full."""
        if self._closed:
            return False
        try:
            if self._is_server:
                self._socket.send_multipart([peer, body], flags=zmq.DONTWAIT, copy=len(body) < 65_536)
            else:
                self._socket.send(body, flags=zmq.DONTWAIT, copy=len(body) < 65_536)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        finally:
            self._schedule()  # the descriptor is edge-triggered: a send may have consumed the edge
        return True

    def reply(self, frames: list[bytes]) -> bool:
        """Send a multipart message as it is (the admin socket answers REQ clients with their envelope)."""
        if self._closed:
            return False
        try:
            self._socket.send_multipart(frames, flags=zmq.DONTWAIT)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        finally:
            self._schedule()
        return True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            if self._scheduled is not None:
                self._scheduled.cancel()
            self._socket.close()

    def _schedule(self) -> None:
        if self._scheduled is None and not self._closed:
            self._scheduled = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        until = time.monotonic() + DRAIN_S
        for _ in range(DRAIN_MAX):
            if self._closed:
                return
            try:
                frames = self._socket.recv_multipart(flags=zmq.DONTWAIT)
            except zmq.Again:
                return
            self._on_frames(frames)
            if time.monotonic() >= until:
                break
        self._schedule()
