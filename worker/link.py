"""The worker's end of its link to the coordinator: hello, session, sequence.

Pure.  ``accept`` tells whether a message is to be applied now; what it means is the core's business.  A session older
than the highest epoch seen is refused: it comes from a coordinator that has been replaced.
"""

from enum import Enum

import msgspec

from cluster.messages.control import Ack, Reset, Resync, ToCoordinator

HELLO_AGAIN_MS = 1_000
HELLO_ONCE_MS = 100  # a new coordinator asks who we are for each message that comes before our hello
RESYNC_AGAIN_MS = 1_000


class Verdict(Enum):
    APPLY = "apply"
    REPEATED = "repeated"
    GAP = "gap"
    FOREIGN = "foreign"  # of another session, or from a replaced coordinator


class CoordinatorLink:
    def __init__(self, now_ms: int) -> None:
        self.session = 0
        self.seq = 0
        self.epoch = 0
        self.hello_at_ms = now_ms
        self._said_hello_ms: int | None = None  # not answered yet
        self._resync_at_ms = 0
        self.refused = 0

    @property
    def introduced(self) -> bool:
        return self.session > 0

    def say_hello(self, now_ms: int) -> None:
        self._said_hello_ms = now_ms
        self.hello_at_ms = now_ms + HELLO_AGAIN_MS

    def just_said_hello(self, now_ms: int) -> bool:
        return self._said_hello_ms is not None and now_ms - self._said_hello_ms < HELLO_ONCE_MS

    def accept(self, message: msgspec.Struct, session: int, seq: int, epoch: int | None) -> Verdict:
        if isinstance(message, Reset):
            if (epoch or 0) < self.epoch or session < self.session:
                self.refused += 1
                return Verdict.FOREIGN
            if session == self.session:
                return Verdict.REPEATED
            self.session, self.seq, self.epoch = session, seq, epoch or 0
            self._said_hello_ms = None
            return Verdict.APPLY
        if session != self.session:
            self.refused += 1
            return Verdict.FOREIGN
        if seq <= self.seq:
            return Verdict.REPEATED
        if seq != self.seq + 1:
            return Verdict.GAP
        self.seq = seq
        self.epoch = max(self.epoch, epoch or 0)
        return Verdict.APPLY

    def answer(self, verdict: Verdict, now_ms: int) -> list[ToCoordinator]:
        match verdict:
            case Verdict.APPLY | Verdict.REPEATED:
                return [Ack(self.session, self.seq)]
            case Verdict.GAP:
                if now_ms < self._resync_at_ms:
                    return []
                self._resync_at_ms = now_ms + RESYNC_AGAIN_MS
                return [Resync(self.session)]
            case Verdict.FOREIGN:
                return []
