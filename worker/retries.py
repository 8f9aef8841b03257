"""Failures confirmed: a poll of a project with retries that failed is made again before it counts.

It is asked up to ``retries`` times more, ``retry_delay_ms`` after each failure, and the first answer that is none ends
it.  What counts is the last outcome.  All of it is one poll: one tick, one slot, in flight from its first request to
its last answer.  A fault of this machine (``unknown``) ends it as such: nothing is confirmed by it.

A project that was removed is not asked again, and its last outcome counts.  How a failure counts beyond its poll is the
writer's to say (``writer.standing``).
"""

import asyncio
from collections.abc import Callable, Collection

from worker.events import PollStart
from worker.probe.interface import ProbeOutcome

Ask = Callable[[PollStart, int], None]
Deliver = Callable[[PollStart, int, ProbeOutcome], None]


class Retries:
    """To be made inside a running loop.

    ``ask``: make the poll that began at an instant (us since the epoch) once more.  ``deliver``: its outcome is final.
    """

    def __init__(self, ask: Ask, deliver: Deliver) -> None:
        self._ask = ask
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._attempts: dict[int, int] = {}  # by project, of its poll in flight; those that failed once at least
        self._pausing: dict[int, tuple[asyncio.TimerHandle, PollStart, int, ProbeOutcome]] = {}
        self._stopped: set[int] = set()  # projects that were removed while they were asked again

    def take(self, poll: PollStart, started_us: int, outcome: ProbeOutcome) -> int | None:
        """How many attempts the poll took; None: it is made again.  For polls of projects with retries only."""
        options = poll.spec.options
        assert options is not None
        project_id = poll.spec.id
        attempts = self._attempts.get(project_id, 0) + 1
        if outcome.status != "failure" or attempts > options.retries or project_id in self._stopped:
            self._attempts.pop(project_id, None)
            self._stopped.discard(project_id)
            return attempts
        self._attempts[project_id] = attempts
        timer = self._loop.call_later(options.retry_delay_ms / 1e3, self._go_on, project_id)
        self._pausing[project_id] = (timer, poll, started_us, outcome)
        return None

    def _go_on(self, project_id: int) -> None:
        _, poll, started_us, _ = self._pausing.pop(project_id)
        self._ask(poll, started_us)

    def stop(self, project_ids: Collection[int]) -> None:
        """These projects are removed."""
        for project_id in self._attempts.keys() & project_ids:
            self._stopped.add(project_id)
            pausing = self._pausing.pop(project_id, None)
            if pausing is not None:
                timer, poll, started_us, outcome = pausing
                timer.cancel()
                self._attempts[project_id] -= 1  # it is counted when it is taken
                self._loop.call_soon(self._deliver, poll, started_us, outcome)

    def let_go(self) -> None:
        """Of what is in flight nothing is delivered any more."""
        for timer, *_ in self._pausing.values():
            timer.cancel()
        self._pausing.clear()
        self._attempts.clear()
        self._stopped.clear()
