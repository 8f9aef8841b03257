"""What is known of a poll while it runs, and the outcome it becomes.  Pure but for reading the monotonic clock once.

An engine fills it in phase by phase; whichever way the poll ends, what was measured until then is in the outcome.
"""

import time
from collections.abc import Sequence
from typing import Literal, Protocol

from cluster.masking import masked_url
from cluster.project import ProjectSpec
from worker.probe.errors import ProbeError, blunder, mismatch
from worker.probe.interface import FailedOutcome, OnOutcome, ProbeOutcome
from worker.probe.lookup_threads import AddressInfo
from worker.probe.request import REDIRECTS_MAX, ForeignSchemeError, HttpRequest, Target, redirected_request

LATE_MAX_S = 0.5  # when our loop stood still for longer, a time-out tells of it, not of the target

# A bug of ours that one project brings out must not end every worker that gets the project.
UNFORESEEN = "probing project %d (%s) failed in an unforeseen way"

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
    late_s = 0.0  # how long our loop stood still meanwhile, its time-out's lateness included
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
    certificate_expires_at_s: int | None = None  # of the project's own server
    addresses: Sequence[AddressInfo] = ()  # those a new connection was tried to

    def __init__(self, spec: ProjectSpec, done: OnOutcome) -> None:
        self.spec = spec
        self.done = done
        self.peer = ""
        self.connection: PollConnection | None = None
        self.needed_connection: bool | None = None
        self.started_at = time.monotonic()

    def named(self) -> tuple[int, str]:
        """For ``UNFORESEEN``."""
        return self.spec.id, masked_url(self.spec.url)

    def blunder(self) -> ProbeError:
        return blunder(self.peer or masked_url(self.spec.url))

    def redirected(self, own: Target, previous: HttpRequest, status: int, location: str) -> HttpRequest:
        """The request that follows a redirect; ``own``: the target of the project's URL.  Raises ProbeError."""
        if self.hops == REDIRECTS_MAX:
            raise ProbeError("too_many_redirects", f"{self.peer} redirects once more after {REDIRECTS_MAX} redirects")
        try:
            return redirected_request(self.spec, own, previous, status, location)
        except ForeignSchemeError as error:
            raise ProbeError("blocked", f"{self.peer} redirects to where polls don't go: {error}") from error
        except ValueError as error:
            raise ProbeError("protocol", f"{self.peer} redirects to where HTTP can't follow: {error}") from error

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

    def failed(self, error: ProbeError) -> FailedOutcome:
        addresses = self.addresses
        return FailedOutcome(
            "unknown" if error.code == "local" else "failure",
            self.status_code,
            None,
            error.code,
            error.message,
            *self._measures(),
            error.cause,
            self.peer.rpartition(":")[0].strip("[]"),
            self.remote_address or (str(addresses[0][4][0]) if addresses else None),
            self.started_at,
        )

    def _measures(
        self,
    ) -> tuple[
        float | None,
        float | None,
        float | None,
        float | None,
        float | None,
        int | None,
        bool | None,
        str | None,
        int | None,
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
            self.certificate_expires_at_s,
        )

    def out_of_time(self) -> ProbeError:
        limit = f"{self.spec.timeout_ms / 1000:g} s"
        if self.late_s > LATE_MAX_S:
            return ProbeError(
                "local",
                f"this machine was too busy or asleep: {self.late_s:.1f} s late {self.doing()} {self.peer}, with a "
                f"time-out of {limit}",
                "stall",
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
                return ProbeError("dns", f"looking up {self.peer}: no answer within {limit}", "resolver")
            case "connect":
                return ProbeError(
                    "connect_timeout", f"time-out of {limit} passed {self.doing()} {self.peer}", "network"
                )
            case "handshake":
                return ProbeError("connect_timeout", f"time-out of {limit} passed {self.doing()} {self.peer}")
            case "send":
                return ProbeError("total_timeout", f"time-out of {limit} passed {self.doing()} {self.peer}")
            case "wait" | "body":
                # Nothing at all on a connection that was there already is what a network that has gone looks like.
                silent = self.phase == "wait" and self.needed_connection is False
                return ProbeError(
                    "read_timeout",
                    f"time-out of {limit} passed {self.doing()} {self.peer}",
                    "network" if silent else None,
                )

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
