"""What a result says is true: every case, by both engines, with curl as the oracle.

All cases that were asked for run together first, in one loop, which is what keeps them below a minute; each test then
looks at one of them.
"""

import asyncio
import re

import pytest
import uvloop

from tests.probe.probe_scripts import check
from tests.truth import curl
from tests.truth.cases import CASES
from tests.truth.runs import ENGINES, run_all, shown
from tests.truth.servers import has_ipv6
from worker.probe.errors import ERROR_CODES

# What has no place in a message for people: exceptions and their texts, OpenSSL's and asyncio's own.
NOT_FOR_PEOPLE = re.compile(
    r"\[SSL|_ssl\.c|\[?Errno|Traceback|[a-z]Error\b|Exception|object at 0x|codec can't|\w+\(\)|error:[0-9A-F]{8}"
)

by_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture(scope="module")
def rows(request, tmp_path_factory):
    wanted = {
        item.callspec.params["case"].name: item.callspec.params["case"]
        for item in request.session.items
        if hasattr(item, "callspec") and "case" in item.callspec.params and item.path == request.path
    }
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(
            run_all(list(wanted.values()), tmp_path_factory.mktemp("truth"), with_curl=curl.version() is not None)
        )


@by_case
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_says_what_is_so(rows, case, engine):
    skip_without_ipv6(case)
    row = rows[case.name]
    outcome = row.ours[engine]
    check(outcome)
    assert (outcome.status_code, outcome.error_code) == (case.status_code, case.code()), shown(outcome)
    assert outcome.status == ("success" if case.code() is None else "failure")
    if case.size is not None:
        assert outcome.size_bytes == case.size
    if case.requests is not None and case.server is not None:
        assert row.requests[engine] == case.requests
    if outcome.error_message is not None:
        assert case.says in outcome.error_message
        assert not NOT_FOR_PEOPLE.search(outcome.error_message), outcome.error_message
        if outcome.error_code != "invalid_request":
            assert any(host in outcome.error_message for host in hosts(case)), outcome.error_message
    check_that_phases_are_there_where_they_happened(case, outcome)


def check_that_phases_are_there_where_they_happened(case, outcome):
    message = outcome.error_message or ""
    assert (outcome.response_time_ms is not None) == case.is_complete()
    assert (outcome.transfer_ms is not None) == case.is_complete()
    assert (outcome.first_byte_ms is not None) == (outcome.status_code is not None)
    if case.other is not None or "redirect" in case.name or case.polls > 1:
        return  # sums over hops: those of the phase tests
    named = re.search("[a-z]", host_of(case), re.IGNORECASE) is not None and not host_of(case).startswith("[")
    found = outcome.error_code not in {"dns", "invalid_request"}
    assert (outcome.dns_ms is not None) == (found and named)
    connected = found and not message.startswith("connecting to ") and "passed connecting" not in message
    assert (outcome.connect_ms is not None) == connected
    secured = connected and "TLS handshake with" not in message and not message.startswith("certificate of")
    assert (outcome.tls_ms is not None) == (secured and case.url.startswith("https:"))
    assert (outcome.remote_address is not None) == connected


@by_case
def test_curl_says_the_same_or_the_case_says_why_not(rows, case):
    if curl.version() is None:
        pytest.skip("there is no curl on this machine: what we say is tested, and not compared")
    skip_without_ipv6(case)
    disagreement = rows[case.name].disagreement()
    if bool(disagreement) != bool(case.differs) and not curl.version().startswith(curl.TESTED_VERSION):
        pytest.skip(f"curl {curl.version()} says otherwise than {curl.TESTED_VERSION}, for which the reasons are given")
    if case.differs:
        assert disagreement, f"curl says the same, so there is nothing to explain: {rows[case.name].oracle.shown()}"
    else:
        assert not disagreement


def skip_without_ipv6(case):
    if case.needs_ipv6() and not has_ipv6():
        pytest.skip("this machine has no IPv6 on its loopback")


def host_of(case):
    return re.match(r"(?:https?://)?(?:[^@/]*@)?(\[[^]]*\]|[^:/?#]*)", case.url)[1]


def hosts(case):
    return {"127.0.0.1", "[::1]", *case.names, host_of(case)}


def test_there_are_enough_of_them_and_each_has_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES) >= 400


def test_every_code_of_a_case_is_one_of_the_list_and_nearly_all_of_the_list_occur():
    found = {case.error_code for case in CASES} - {None}
    assert found <= set(ERROR_CODES)
    # What says nothing about a target is tested where a machine can be made to lack something.
    assert {code for code in ERROR_CODES if code not in found} <= {"local", "body_limit", "blocked", "assertion_failed"}


def test_a_version_of_curl_is_a_version():
    if curl.version() is None:
        pytest.skip("there is no curl on this machine: what we say is tested, and not compared")
    assert re.match(r"\d+\.\d+", curl.version())
