"""A failure is asked about again before it counts: how often, when, and what ends it."""

import asyncio

import pytest

from cluster.http_options import HttpOptions
from cluster.project import ProjectSpec, longest_poll_ms
from worker.events import PollStart
from worker.probe.interface import ProbeOutcome
from worker.retries import Retries

STARTED_US = 1_700_000_000_000_000
OK, BAD, OURS = (ProbeOutcome(status) for status in ("success", "failure", "unknown"))


def poll_of(project_id=1, retries=2, delay_ms=1):
    options = HttpOptions(retries=retries, retry_delay_ms=delay_ms)
    return PollStart(ProjectSpec(project_id, "http://h/", 1_000, 0, options=options), 5_000, "tick", 1)


class Prober:
    """Gives scripted outcomes at once; a poll beyond them is in flight for ever."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.asked = 0
        self.ended = []
        self.retries = Retries(self.ask, self.finish)

    def ask(self, poll, started_us):
        assert started_us == STARTED_US
        self.asked += 1
        if self.outcomes:
            self.finish(poll, started_us, self.outcomes.pop(0))

    def finish(self, poll, started_us, outcome):
        attempts = self.retries.take(poll, started_us, outcome)
        if attempts is not None:
            self.ended.append((poll.spec.id, outcome.status, attempts))

    async def until_ended(self, count=1):
        async with asyncio.timeout(5):
            while len(self.ended) < count:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("retries", "outcomes", "ended"),
    [
        (2, [OK], ("success", 1)),
        (2, [BAD, OK], ("success", 2)),
        (2, [BAD, BAD, OK], ("success", 3)),
        (2, [BAD, BAD, BAD], ("failure", 3)),
        (1, [BAD, BAD], ("failure", 2)),
        (2, [OURS], ("unknown", 1)),
        (2, [BAD, OURS], ("unknown", 2)),
    ],
)
async def test_the_first_answer_that_is_no_failure_ends_it(retries, outcomes, ended):
    prober = Prober(*outcomes)
    for _ in range(2):  # nothing is left of the poll before
        prober.outcomes = list(outcomes)
        prober.ask(poll_of(retries=retries), STARTED_US)
        await prober.until_ended()
        assert prober.ended == [(1, *ended)]
        assert prober.asked == len(outcomes)
        prober.ended.clear()
        prober.asked = 0


async def test_projects_are_asked_again_each_by_itself():
    prober = Prober(BAD, BAD, OK, BAD, BAD)
    prober.ask(poll_of(1, delay_ms=1), STARTED_US)
    prober.ask(poll_of(2, delay_ms=50), STARTED_US)
    await prober.until_ended(2)
    assert prober.ended == [(1, "success", 2), (2, "failure", 3)]


async def test_a_removed_project_is_not_asked_again_and_its_last_outcome_counts():
    prober = Prober(BAD)
    prober.ask(poll_of(delay_ms=60_000), STARTED_US)
    prober.retries.stop({1, 2})
    await prober.until_ended()
    assert prober.ended == [(1, "failure", 1)]
    assert prober.asked == 1

    prober.outcomes = [BAD]
    prober.ask(poll_of(), STARTED_US)  # added again: it begins anew
    await asyncio.wait_for(_asked(prober, 3), 5)
    prober.retries.stop({1})  # while it is asked the second time
    prober.finish(poll_of(), STARTED_US, BAD)
    assert prober.ended[1:] == [(1, "failure", 2)]


async def _asked(prober, count):
    while prober.asked < count:
        await asyncio.sleep(0.001)


async def test_what_is_broken_off_is_neither_asked_again_nor_delivered():
    prober = Prober(BAD, BAD)
    prober.ask(poll_of(1), STARTED_US)
    prober.ask(poll_of(2, delay_ms=60_000), STARTED_US)
    prober.retries.let_go()
    prober.outcomes = [BAD, OK]
    prober.ask(poll_of(3, delay_ms=20), STARTED_US)  # longer than the pause of the first
    await prober.until_ended()
    prober.retries.stop({1, 2})
    assert (prober.asked, prober.ended) == (4, [(3, "success", 2)])


def test_how_long_a_poll_may_take():
    assert longest_poll_ms(ProjectSpec(1, "http://h/", 1_000, 0, timeout_ms=700)) == 700
    assert longest_poll_ms(ProjectSpec(1, "http://h/", 1_000, 0, timeout_ms=700, options=HttpOptions())) == 700
    spec = poll_of(retries=2, delay_ms=100).spec
    assert longest_poll_ms(spec) == 3 * 30_000 + 2 * (100 + 1_000)
