"""Traces of some polls: one of ``every``, in steps drawn at random, so that no project is always or never among them.

A span runs from the start of a poll to its result and names the project by its id: URLs and answers may hold secrets.
Its phases are events at their ends, laid one after another from the start; of redirects they are sums, as in a result.
"""

import random
from collections.abc import Callable, Iterator

from cluster.tracing import SpanAttributes, Tracing
from worker.events import PollStart
from worker.probe.interface import ProbeOutcome

PHASES = ("dns_ms", "connect_ms", "tls_ms", "first_byte_ms", "transfer_ms")


class PollTracing:
    def __init__(self, tracing: Tracing, every: int, now_us: Callable[[], int]) -> None:
        assert every > 0
        self._tracing = tracing
        self._every = every
        self._now_us = now_us
        self._untraced = self._draw()

    @property
    def dropped(self) -> int:
        return self._tracing.dropped

    def poll_finished(self, poll: PollStart, started_us: int, outcome: ProbeOutcome) -> None:
        """Called for each poll; most of them only count."""
        self._untraced -= 1
        if self._untraced > 0:
            return
        self._untraced = self._draw()
        self._tracing.record(
            "poll",
            started_us * 1_000,
            self._now_us() * 1_000,
            {
                "ringpoll.project.id": poll.spec.id,
                "ringpoll.trigger": poll.trigger,
                "ringpoll.epoch": poll.epoch,
                "ringpoll.lateness_ms": started_us / 1_000 - poll.scheduled_at_ms,
                "ringpoll.status": outcome.status,
                "ringpoll.response_time_ms": outcome.response_time_ms,
                "ringpoll.connection_reused": outcome.connection_reused,
                "http.response.status_code": outcome.status_code,
                "http.response.body.size": outcome.size_bytes,
                "error.type": outcome.error_code,
            },
            kind="client",
            error=None if outcome.status == "success" else outcome.error_code or outcome.status,
            events=tuple(_phases(started_us, outcome)),
        )

    async def close(self) -> None:
        await self._tracing.close()

    def _draw(self) -> int:
        return random.randrange(1, 2 * self._every)  # noqa: S311 - no secret depends on it


def _phases(started_us: int, outcome: ProbeOutcome) -> Iterator[tuple[str, int, SpanAttributes]]:
    so_far_ms = 0.0
    for name in PHASES:
        took_ms: float | None = getattr(outcome, name)
        if took_ms is not None:
            so_far_ms += took_ms
            yield name.removesuffix("_ms"), started_us * 1_000 + int(so_far_ms * 1e6), {"duration_ms": took_ms}
