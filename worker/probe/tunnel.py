"""A way through a proxy: CONNECT on a TCP connection that is there (RFC 9110, 9.3.6).

It is done on the bare socket, before anything speaks TLS or HTTP on it, and reads not one byte more than the proxy's
answer: behind that our peer waits for us.
"""

import asyncio
import re
import socket

from worker.probe.connection_settings import Proxy
from worker.probe.errors import ProbeError, from_lost
from worker.probe.in_flight import PollInFlight

ANSWER_MAX_BYTES = 65_536
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")


async def open_tunnel(poll: PollInFlight, connected: socket.socket, authority: str, proxy: Proxy) -> None:
    """``authority``: the host and port to be led to.  Raises ProbeError."""
    peer = poll.peer
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    loop = asyncio.get_running_loop()
    answer = b""
    try:
        poll.remote_address = str(connected.getpeername()[0])
        await loop.sock_sendall(connected, ("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in answer:
            if len(answer) > ANSWER_MAX_BYTES:
                raise ProbeError("protocol", f"connecting to {peer}: the proxy's answer has no end")
            received = await loop.sock_recv(connected, 4_096)
            if not received:
                raise from_lost(None, peer, "before the proxy had answered")
            answer += received
    except OSError as error:
        raise from_lost(error, peer, "before the proxy had answered") from error
    status = _STATUS.match(answer)
    if status is None:
        raise ProbeError("protocol", f"connecting to {peer}: the proxy sent no valid HTTP answer")
    if not 200 <= int(status[1]) < 300:
        raise ProbeError("connect_unreachable", f"connecting to {peer}: the proxy answered {status[1].decode()}")
    if not answer.endswith(b"\r\n\r\n") or answer.index(b"\r\n\r\n") != len(answer) - 4:
        raise ProbeError("protocol", f"connecting to {peer}: the proxy sent more than its answer")
