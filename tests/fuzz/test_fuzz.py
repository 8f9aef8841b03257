"""A few seconds of each fuzzer; ``python -m tests.fuzz`` runs them for as long as wanted."""

import pytest
from hypothesis import given, settings

from tests.fuzz.answers import Stage
from tests.fuzz.projects import check_row, check_written
from tests.fuzz.strategies import row_specs, scripts, written_maps

EXAMPLES = 400


@pytest.fixture(scope="module")
def stage():
    stage = Stage()
    yield stage
    stage.close()


@settings(max_examples=EXAMPLES, deadline=None)
@given(script=scripts())
def test_any_answer_is_one_outcome(stage, script):
    stage.play(script)


@settings(max_examples=EXAMPLES, deadline=None)
@given(written=written_maps)
def test_any_map_is_a_project_or_refused(written):
    check_written(written)


@settings(max_examples=EXAMPLES, deadline=None)
@given(spec=row_specs)
def test_any_row_is_a_request_or_a_reason(spec):
    check_row(spec)
