"""Tells systemd what the supervisor does, as sd_notify(3) says; without NOTIFY_SOCKET nothing happens."""

import contextlib
import os
import socket

VARIABLE = "NOTIFY_SOCKET"


def notify_service_manager(*states: str) -> None:
    """``READY=1``, ``STOPPING=1``, ``STATUS=...``.  Best effort: a service must not fail because its log is lost."""
    address = os.environ.get(VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect(target)
        client.send("\n".join(states).encode())
