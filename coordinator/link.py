"""The coordinator's end of its link to one worker: a session of numbered messages, a window, resending.

Pure.  A session opens with ``Reset`` at seq 1.  At most ``WINDOW`` messages are unacknowledged; what does not fit waits
with the caller as *what is to be said*, not as messages.  Acks are cumulative.  When the oldest unacknowledged message
is older than ``RESEND_MS``, all are sent again (go-back-N); the worker ignores what it has seen.  A gap that this does
not mend, or a new hello, opens a new session.

It does not know what the messages mean.
"""

from collections import deque
from typing import Any

import msgspec

WINDOW = 16
RESEND_MS = 2_000


class Unacked(msgspec.Struct, frozen=True):
    seq: int
    message: msgspec.Struct
    note: Any  # what the sender wants to know again when it is acknowledged


class WorkerLink:
    def __init__(self, peer: bytes, session: int) -> None:
        self.peer = peer
        self.session = session
        self.next_seq = 1
        self.acked_seq = 0
        self._unacked: deque[Unacked] = deque()
        self._sent_at_ms = 0

    @property
    def has_room(self) -> bool:
        return len(self._unacked) < WINDOW

    @property
    def settled(self) -> bool:
        return not self._unacked

    def number(self) -> int:
        """The seq of the message that ``push`` is given next."""
        return self.next_seq

    def push(self, message: msgspec.Struct, note: Any, now_ms: int) -> msgspec.Struct:
        """Number and remember a message.  A large partition's parts may go beyond the window, nothing else does."""
        if not self._unacked:
            self._sent_at_ms = now_ms
        self._unacked.append(Unacked(self.next_seq, message, note))
        self.next_seq += 1
        return message

    def ack(self, session: int, seq: int, now_ms: int) -> list[Unacked]:
        """What is acknowledged by this for the first time, oldest first."""
        if session != self.session or seq >= self.next_seq:
            return []
        done: list[Unacked] = []
        while self._unacked and self._unacked[0].seq <= seq:
            done.append(self._unacked.popleft())
        if done:
            self.acked_seq = done[-1].seq
            self._sent_at_ms = now_ms
        return done

    def unacked(self) -> list[Unacked]:
        return list(self._unacked)

    def resend_at(self) -> int | None:
        return self._sent_at_ms + RESEND_MS if self._unacked else None

    def resend(self, now_ms: int) -> list[msgspec.Struct]:
        due = self.resend_at()
        if due is None or now_ms < due:
            return []
        self._sent_at_ms = now_ms
        return [entry.message for entry in self._unacked]
