"""The error codes: one list, explained in the README, whose examples are what really is said."""

import asyncio
import errno
import re
from pathlib import Path

import pytest
import uvloop

from tests.docs.documents import row_of
from tests.docs.repository_facts import read
from tests.truth.cases import CASES
from tests.truth.runs import ENGINES, run_all
from worker.probe.errors import ERROR_CODES, MEANINGS, from_connect

README = read("README.md")

# In which case each example is said; the others can't be brought about by a server.
EXAMPLES = {
    "dns": "a lookup: EAI_NONAME",
    "blocked": "redirect: to ftp",
    "connect_refused": "nobody listens",
    "connect_unreachable": "no way there",
    "connect_timeout": "TLS: silence in the handshake",
    "tls_verify": "TLS: a certificate for another name",
    "tls_expired": "TLS: expired",
    "tls_other": "TLS: plain HTTP on its port",
    "read_timeout": "silence before anything",
    "total_timeout": "redirect: to silence",
    "closed": "closed in the body",
    "reset": "reset before anything",
    "protocol": "another protocol: Redis",
    "too_many_redirects": "redirect: to itself",
    "status_mismatch": "status 500 where 200 is expected",
    "invalid_request": "no request: CONNECT",
}
NOT_FROM_A_SERVER = {"local", "body_limit", "assertion_failed"}


def example_of(code):
    return row_of(README, f"`{code}`")[2].strip()


def bare(message):
    """A message without what differs from host to host and from poll to poll."""
    hosts = r"(www\.example\.org|127\.0\.0\.1|255\.255\.255\.255|[a-z]+\.test)(:\d+)?"
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(hosts, "HOST", message))


@pytest.mark.parametrize("code", ERROR_CODES)
def test_every_code_has_a_row_with_its_meaning_and_a_message(code):
    assert row_of(README, f"`{code}`")[1] == MEANINGS[code]
    assert example_of(code)


def test_every_code_has_an_example_or_can_have_none():
    assert set(ERROR_CODES) - set(EXAMPLES) <= NOT_FROM_A_SERVER
    assert set(EXAMPLES) <= set(ERROR_CODES)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    wanted = [case for case in CASES if case.name in EXAMPLES.values()]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_all(wanted, tmp_path_factory.mktemp("examples"), with_curl=False))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_is_what_is_said(said, code, engine):
    outcome = said[EXAMPLES[code]].ours[engine]
    assert outcome.error_code == code
    assert f"`{bare(outcome.error_message)}`" == bare(example_of(code))


def test_what_this_machine_lacks_is_said_as_in_the_example():
    error = from_connect(OSError(errno.EMFILE, "x"), "www.example.org:443")
    assert f"`{error.message}`" == example_of("local")


def test_a_code_without_a_message_is_raised_nowhere():
    assert example_of("body_limit").startswith("none")
    sources = [path.read_text(encoding="utf-8") for path in Path("worker").rglob("*.py")]
    assert len(sources) > 10
    assert not [source for source in sources if 'ProbeError("body_limit"' in source]
