"""A few seconds of each fuzzer; ``python -m tests.fuzz`` runs them for as long as wanted."""

import pytest
from hypothesis import example, given, settings

from tests.fuzz.answers import Script, Stage
from tests.fuzz.projects import check_row, check_written
from tests.fuzz.strategies import row_specs, scripts, written_maps

EXAMPLES = 400
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
# An error that follows a chunk's end at once: aiohttp's reader did not hear of it, and the poll ended by its time-out.
BEHIND_A_CHUNK = Script("GET", "close", (CHUNKED, b"2\r\nok\r", b"\n0\r\nX: y\r\n\r\xaf\n"))


@pytest.fixture(scope="module")
def stage():
    stage = Stage()
    yield stage
    stage.close()


@settings(max_examples=EXAMPLES, deadline=None)
@given(script=scripts())
@example(script=BEHIND_A_CHUNK)
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
