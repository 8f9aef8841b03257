"""Which polls are traced, and what a span says of one."""

from collections import Counter

import pytest

from tests.worker.stage import spec
from worker.events import PollStart
from worker.poll_tracing import PollTracing
from worker.probe.interface import ProbeOutcome

STARTED_US = 1_700_000_000_123_000


class TracingDouble:
    dropped = 7

    def __init__(self):
        self.spans = []
        self.closed = False

    def record(self, name, began_ns, ended_ns, attributes, **rest):
        self.spans.append((name, began_ns, ended_ns, attributes, rest))

    async def close(self):
        self.closed = True


def poll(project_id=1):
    return PollStart(spec(project_id), STARTED_US // 1_000 - 3, "tick", 5)


GOOD = ProbeOutcome(
    "success",
    200,
    12.0,
    dns_ms=1.0,
    connect_ms=2.0,
    first_byte_ms=6.0,
    transfer_ms=2.5,
    size_bytes=9,
    connection_reused=False,
)


def test_a_span_says_what_a_result_says_without_url_and_message():
    double = TracingDouble()
    traced = PollTracing(double, 1, lambda: STARTED_US + 12_500)
    traced.poll_finished(poll(), STARTED_US, GOOD)
    ((name, began_ns, ended_ns, attributes, rest),) = double.spans
    assert (name, began_ns, ended_ns) == ("poll", STARTED_US * 1_000, (STARTED_US + 12_500) * 1_000)
    assert {
        "ringpoll.project.id": 1,
        "ringpoll.lateness_ms": 3.0,
        "ringpoll.status": "success",
    }.items() <= attributes.items()
    assert not any("example" in str(each) or "host-a" in str(each) for each in attributes.values())
    assert rest["error"] is None
    began = STARTED_US * 1_000
    assert [(event, (at_ns - began) / 1e6) for event, at_ns, _ in rest["events"]] == [
        ("dns", 1.0), ("connect", 3.0), ("first_byte", 9.0), ("transfer", 11.5),
    ]  # fmt: skip
    assert rest["events"][0][2] == {"duration_ms": 1.0}
    assert traced.dropped == 7


def test_a_failed_poll_is_an_error_with_its_code():
    double = TracingDouble()
    PollTracing(double, 1, lambda: STARTED_US).poll_finished(
        poll(), STARTED_US, ProbeOutcome("failure", error_code="dns", error_message="no such host: secret.example")
    )
    ((_, _, _, attributes, rest),) = double.spans
    assert (rest["error"], attributes["error.type"]) == ("dns", "dns")
    assert rest["events"] == ()
    assert "secret" not in str(attributes)


@pytest.mark.parametrize("every", [1, 10, 100])
def test_one_of_so_many_is_traced(every):
    double = TracingDouble()
    traced = PollTracing(double, every, lambda: STARTED_US)
    for _ in range(500 * every):
        traced.poll_finished(poll(), STARTED_US, GOOD)
    assert len(double.spans) == pytest.approx(500, rel=0.25 if every > 1 else 0)


def test_no_project_is_always_or_never_traced_though_polls_come_in_turns():
    double = TracingDouble()
    traced = PollTracing(double, 10, lambda: STARTED_US)
    polls = [poll(project_id) for project_id in range(1, 11)]
    for _ in range(1_000):
        for each in polls:
            traced.poll_finished(each, STARTED_US, GOOD)
    seen = Counter(attributes["ringpoll.project.id"] for _, _, _, attributes, _ in double.spans)
    assert set(seen) == set(range(1, 11))
    assert max(seen.values()) < 3 * min(seen.values())
