"""Between the prober and whoever takes its outcomes: failures that are this machine's own become ``unknown``/``local``.

It brings outcomes before the judges of ``own_fault``, asks the machine what can be asked of it, and counts what was
local, by cause.  A failure that may be the network's or the resolver's is held back until it is ruled upon, for less
than a second; everything else passes at once.  Nothing is changed of what was measured.

``asks`` keeps ordinary polls cheap: an outcome without an error is to be brought here only while it is set.  About once
a second it is, until an answer has come, or ``LOOKS_MAX`` that prove nothing because they came from this machine; while
anything is held back, or an outage goes on, it stays.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from worker.probe.deadlines import LATE_READ_S, READ_FIRST_S
from worker.probe.errors import ErrorCode, LocalCause, printable
from worker.probe.interface import FailedOutcome, OnOutcome, ProbeOutcome
from worker.probe.own_fault import OwnFaultJudge, Ruling, Suspect, is_own_host, relations_of
from worker.probe.own_machine import has_route, name_servers_answer

# Failures in which something came back, if only a refusal.
_REACHED: frozenset[ErrorCode | None] = frozenset(
    {"connect_refused", "tls_verify", "tls_other", "closed", "reset", "protocol", "too_many_redirects"}
)

LOOKS_MAX = 100

HeldFailure = tuple[FailedOutcome, OnOutcome]


class OwnFaultSieve:
    """To be made inside a running loop.

    ``names_answered_at``: when a name server last said anything (monotonic seconds).  ``has_route`` and
    ``name_servers_answer``: as in ``own_machine``.
    """

    def __init__(
        self,
        names_answered_at: Callable[[], float],
        *,
        has_route: Callable[[str | None], bool] = has_route,
        name_servers_answer: Callable[[], Awaitable[bool]] = name_servers_answer,
    ) -> None:
        self.asks = True
        self._looks = 0  # since ``ask``
        self._loop = asyncio.get_running_loop()
        self._names_answered_at = names_answered_at
        self._has_route = has_route
        self._name_servers_answer = name_servers_answer
        self._network: OwnFaultJudge[HeldFailure] = OwnFaultJudge(
            "could not be reached within a second, and none answered: this machine's network is down"
        )
        self._resolver: OwnFaultJudge[HeldFailure] = OwnFaultJudge(
            "could not be looked up within a second, and no name could: this machine's resolver is down"
        )
        self._causes: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<OwnFaultSieve {self._network!r} {self._resolver!r}>"

    def ask(self) -> None:
        """Have the next answer noted; to be said about once a second."""
        self.asks = True
        self._looks = 0

    def sift(self, outcome: ProbeOutcome, deliver: OnOutcome) -> ProbeOutcome | None:
        """What is to be recorded of an outcome; None: ``deliver`` is called with that, now or in less than a second."""
        now = time.monotonic()
        if not isinstance(outcome, FailedOutcome):
            if not self.asks:
                return outcome
            if not is_own_host("", outcome.remote_address):
                self._heard(now)
            else:
                self._looks += 1
                self.asks = self._looks < LOOKS_MAX or self._network.is_curious
            return outcome
        if outcome.error_code == "local":
            self._count(outcome.cause or "other")
            return outcome.found()
        is_own = is_own_host(outcome.host, outcome.address)
        if is_own or outcome.cause not in ("network", "resolver"):
            if not is_own and outcome.error_code in _REACHED:
                self._heard(now)
            return outcome.found()
        suspect: Suspect[HeldFailure] = Suspect(
            (outcome, deliver), relations_of(outcome.host, outcome.address), outcome.began_at, now
        )
        if outcome.cause == "network":
            self._network.failed(suspect, now, lambda: self._routeless(outcome.address))
        else:
            self._resolver.answered(self._names_answered_at())
            self._resolver.failed(suspect, now)
            if len(self._resolver) and self._asking is None:
                self._asking = self._loop.create_task(self._ask_name_servers())
        self._settle(now)
        return None

    def take_causes(self) -> dict[str, int]:
        """What of this machine polls came to grief on, counted since the last time."""
        causes, self._causes = self._causes, {}
        return causes

    def let_go(self) -> None:
        """Deliver what is held back."""
        self._network.let_go()
        self._resolver.let_go()
        self._settle(time.monotonic())

    async def close(self) -> None:
        """What is still held back is not delivered."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    # ---- rulings ----------------------------------------------------------------------------------------------------

    def _heard(self, now: float) -> None:
        self._network.answered(now)
        self._settle(now)
        self.asks = self._network.is_curious

    def _routeless(self, address: str | None) -> str | None:
        if self._has_route(address):
            return None
        return "this machine has no route, to there or to anywhere beyond its own networks"

    async def _ask_name_servers(self) -> None:
        asked_at = time.monotonic()
        try:
            is_answered = await self._name_servers_answer()
        finally:
            self._asking = None
        now = time.monotonic()
        self._resolver.answered(self._names_answered_at())
        if not is_answered and self._names_answered_at() < asked_at:
            self._resolver.found_out("none of this machine's name servers answers", now)
        self._settle(now)

    def _on_timer(self, has_read: bool = False) -> None:
        now = time.monotonic()
        if not has_read and now - self._due_at >= LATE_READ_S:  # our loop is late: answers may wait to be read
            self._timer = self._loop.call_later(READ_FIRST_S, self._on_timer, True)
            return
        self._timer = None
        self._resolver.answered(self._names_answered_at())
        self._network.handle_timer(now)
        self._resolver.handle_timer(now)
        self._settle(now)

    def _settle(self, now: float) -> None:
        """Deliver what was ruled upon, and see to it that the rest is in time."""
        judges: tuple[tuple[OwnFaultJudge[HeldFailure], LocalCause], ...] = (
            (self._network, "network"),
            (self._resolver, "resolver"),
        )
        for judge, cause in judges:
            rulings, judge.rulings = judge.rulings, []
            for ruling in rulings:
                self._deliver(ruling, cause)
        self.asks = self.asks or self._network.is_curious
        timers = [at for judge, _ in judges if (at := judge.next_timer()) is not None]
        due_at = min(timers, default=None)
        if self._timer is not None:
            if due_at == self._due_at:
                return
            self._timer.cancel()
            self._timer = None
        if due_at is not None and not self._closed:
            self._due_at = due_at
            self._timer = self._loop.call_later(max(0.0, due_at - now), self._on_timer)

    def _deliver(self, ruling: Ruling[HeldFailure], cause: LocalCause) -> None:
        (outcome, deliver), why = ruling
        found = outcome.found()
        if why is not None:
            self._count(cause)
            message = printable(f"{why}; {outcome.error_message}")
            found = msgspec.structs.replace(found, status="unknown", error_code="local", error_message=message)
        deliver(found)

    def _count(self, cause: LocalCause) -> None:
        self._causes[cause] = self._causes.get(cause, 0) + 1
