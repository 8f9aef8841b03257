"""What is known of a poll while it runs, and the outcome it becomes.  Pure but for reading the monotonic clock once.

An engine fills it in phase by phase; whichever way the poll ends, what was measured until then is in the outcome.
"""

import time
from typing import Literal, Protocol

from cluster.project import ProjectSpec
from worker.probe.errors import ProbeError, mismatch
from worker.probe.interface import OnOutcome, ProbeOutcome

LATE_MAX_S = 0.5  # a time-out noticed later than this tells of our loop, not of the target

Phase = Literal["files", "lookup", "connect", "handshake", "send", "wait", "body"]


class PollConnection(Protocol):
    """As much of a connection as a poll looks at."""

    @property
    def sent_at(self) -> float | None:
        """When the request's last byte left, None before that."""

    def discard(self) -> None: ...


class PollInFlight:
    """One poll in flight: what is known so far."""

    __slots__ = ("__dict__", "connection", "done", "needed_connection", "peer", "spec", "started_at")

    # What most polls never learn is a default of the class.
    expired = False
    dropped = False
    answered = False  # no time-out any more
    stay = False  # no redirect is followed any more
    late_s = 0.0  # how late its time-out was noticed
    phase: Phase = "lookup"
    hops = 0
    dns_s: float | None = None
    connect_s: float | None = None
    tls_s: float | None = None
    first_byte_s: float | None = None
    transfer_s: float | None = None
    size_bytes: int | None = None
    status_code: int | None = None
    remote_address: str | None = None

    def __init__(self, spec: ProjectSpec, done: OnOutcome) -> None:
        self.spec = spec
        self.done = done
        self.peer = ""
        self.connection: PollConnection | None = None
        self.needed_connection: bool | None = None
        self.started_at = time.monotonic()

    def complete(self, ended_at: float, expected: frozenset[int]) -> ProbeOutcome:
        matches = self.status_code in expected
        return ProbeOutcome(
            "success" if matches else "failure",
            self.status_code,
            (ended_at - self.started_at) * 1e3,
            None if matches else "status_mismatch",
            None if matches else mismatch(self.peer, self.status_code, self.spec.expected_status),
            *self._measures(),
        )

    def failed(self, error: ProbeError) -> ProbeOutcome:
        return ProbeOutcome(
            "unknown" if error.code == "local" else "failure",
            self.status_code,
            None,
            error.code,
            error.message,
            *self._measures(),
        )

    def _measures(
        self,
    ) -> tuple[
        float | None, float | None, float | None, float | None, float | None, int | None, bool | None, str | None
    ]:
        needed = self.needed_connection
        return (
            as_ms(self.dns_s),
            as_ms(self.connect_s),
            as_ms(self.tls_s),
            as_ms(self.first_byte_s),
            as_ms(self.transfer_s),
            self.size_bytes,
            None if needed is None else not needed,
            self.remote_address,
        )

    def out_of_time(self) -> ProbeError:
        limit = f"{self.spec.timeout_ms / 1000:g} s"
        if self.late_s > LATE_MAX_S:
            return ProbeError(
                "local", f"this machine was too busy or asleep: time-out of {limit} noticed {self.late_s:.1f} s late"
            )
        connection = self.connection
        if self.phase == "send" and connection is not None and connection.sent_at is not None:
            self.phase = "wait"
        if self.hops:
            return ProbeError(
                "total_timeout", f"time-out of {limit} passed after {self.hops} redirect(s), {self.doing()} {self.peer}"
            )
        match self.phase:
            case "files":
                return ProbeError("local", f"time-out of {limit} passed {self.doing()} {self.peer}")
            case "lookup":
                return ProbeError("dns", f"looking up {self.peer}: no answer within {limit}")
            case "connect" | "handshake":
                return ProbeError("connect_timeout", f"time-out of {limit} passed {self.doing()} {self.peer}")
            case "send":
                return ProbeError("total_timeout", f"time-out of {limit} passed {self.doing()} {self.peer}")
            case "wait" | "body":
                return ProbeError("read_timeout", f"time-out of {limit} passed {self.doing()} {self.peer}")

    def doing(self) -> str:
        return {
            "files": "reading the TLS files for",
            "lookup": "looking up",
            "connect": "connecting to",
            "handshake": "in the TLS handshake with",
            "send": "sending the request to",
            "wait": "waiting for the answer of",
            "body": f"reading the body ({self.size_bytes} bytes so far) from",
        }[self.phase]


def as_ms(duration_s: float | None) -> float | None:
    return None if duration_s is None else duration_s * 1e3
