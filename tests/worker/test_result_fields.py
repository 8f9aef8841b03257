"""A result is made of an outcome by position: see WorkerService._on_outcome."""

from cluster.messages.results import PollResult
from worker.probe.interface import ProbeOutcome


def test_the_fields_of_an_outcome_are_those_of_a_result_in_their_order():
    before = ("project_id", "scheduled_at_ms", "polled_at_us", "trigger")
    *fields, last = ProbeOutcome.__struct_fields__
    assert PollResult.__struct_fields__ == (*before, *fields, "epoch", "attempts", last)
