"""What every probe engine does: take a project, make one exchange, hand over one outcome.

Rules:

- ``start`` returns at once; ``done`` is called exactly once, from the event loop, never from within ``start``.
- A poll that ``cancel_all`` aborted, or that outlived the grace of ``close``, never calls ``done``.
- Whatever the peer, the network or the project's fields do ends in an outcome, never in an exception.
- ``status`` is ``unknown`` when the cause lies with this machine; only then does a poll say nothing about its target.

An engine limits nothing but time: how many polls are in flight is for its caller to decide.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec
from msgspec.structs import astuple

from cluster.messages.results import Status
from cluster.project import ProjectSpec
from worker.probe.errors import ErrorCode, LocalCause


class ProbeOutcome(msgspec.Struct, frozen=True, gc=False):
    """What one poll found.  Durations in milliseconds, None where a phase did not happen.

    ``response_time_ms``: from the start to the last byte of the last answer's body, or to its limit; None when there
    was no complete answer.  With redirects ``dns_ms``, ``connect_ms`` and ``tls_ms`` are sums over the hops that had
    them, ``first_byte_ms``, ``transfer_ms``, ``size_bytes`` and ``remote_address`` those of the last hop.  The phases
    never sum to more than ``response_time_ms``.  ``first_byte_ms`` runs from the request's last byte sent to the first
    byte of the answer; when the answer began before the request was through, from the beginning of the sending.
    ``connection_reused``: no hop needed a new connection; so ``connect_ms`` is None exactly then.

    All of it is measured where this process hears of it.  When its loop stalled meanwhile, an answer that had come is
    still taken for one, and ``response_time_ms`` (like the phase the stall fell into) includes the stall: it says what
    the answer took at most, and may lie above the time-out.
    """

    status: Status
    status_code: int | None = None
    response_time_ms: float | None = None
    error_code: ErrorCode | None = None
    error_message: str | None = None
    dns_ms: float | None = None
    connect_ms: float | None = None
    tls_ms: float | None = None
    first_byte_ms: float | None = None
    transfer_ms: float | None = None
    size_bytes: int | None = None
    connection_reused: bool | None = None
    remote_address: str | None = None
    certificate_expires_at_s: int | None = None  # since the epoch, of the project's own server, if it was verified


class FailedOutcome(ProbeOutcome, frozen=True, gc=False):
    """A poll without a complete answer, with what is needed to tell whose fault that was (see ``own_fault``).

    ``cause``: as ``ProbeError`` has it.  ``host``: of the hop it failed at; ``address``: where that hop led, as far as
    that is known.  ``began_at``: monotonic seconds.
    """

    cause: LocalCause | None = None
    host: str = ""
    address: str | None = None
    began_at: float = 0.0

    def found(self) -> ProbeOutcome:
        """What of it makes a result."""
        return ProbeOutcome(*astuple(self)[: len(ProbeOutcome.__struct_fields__)])


OnOutcome = Callable[[ProbeOutcome], None]


class Prober(Protocol):
    @property
    def in_flight(self) -> int: ...

    def start(self, spec: ProjectSpec, done: OnOutcome) -> None: ...

    def cancel_redirects(self, project_ids: Collection[int]) -> None:
        """From now on no poll in flight of these projects sends a request that follows a redirect.

        The request that is on its way is waited for; a poll that would follow its redirect ends as ``unknown``.
        """

    def cancel_all(self) -> None:
        """Abort what is in flight; ``done`` is not called for it."""

    async def close(self, grace_s: float) -> None:
        """Let what is in flight finish for up to ``grace_s``, abort the rest, close every connection."""


async def probe(prober: Prober, spec: ProjectSpec) -> ProbeOutcome:
    """One poll, awaited."""
    future: asyncio.Future[ProbeOutcome] = asyncio.get_running_loop().create_future()

    def done(outcome: ProbeOutcome) -> None:
        if not future.done():
            future.set_result(outcome)

    prober.start(spec, done)
    return await future
