"""What a project asserts of its answer: holds for every engine."""

import asyncio
import gzip
import json
import ssl
import threading
import time
import zlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from probe_scripts import Peer, answer, check, redirect, spec, until

from cluster.assertions import encode_assertions, parse_assertion
from worker.probe import judging
from worker.probe.interface import probe
from worker.probe.judging import Answer, JudgeThread, judge_for, judged

JSON = b'{"status": "down", "items": [{"id": 1, "n": 2}, {"id": 2, "n": 5}], "on": true}'


def asserting(*lines: str) -> bytes:
    encoded = encode_assertions([parse_assertion(line) for line in lines])
    assert encoded is not None
    return encoded


@pytest.fixture
def polled(serve, poll):
    """One poll of a project that asserts something, of a server that gives one answer."""

    async def poll_answer(given, *lines: str, **fields: object):
        server = await serve(given)
        outcome = await poll(server.url(), assertions=asserting(*lines), **fields)
        outcome_server.append(server)
        return outcome

    outcome_server: list[object] = []
    poll_answer.servers = outcome_server
    return poll_answer


HOLDS = [
    "status 2xx",
    'body contains "status"',
    "body matches (?i)STATUS.*down",
    'json $.status == "down"',
    "json $.items[?@.id == 2].n == 5",
    "json $.items[*].n >= 2",
    "json $.items[*].id != 3",
    "json $.on == true",
    "json $.on != 1",
    'json $.items[0] == {"n": 2, "id": 1.0}',
    'json $.status contains "ow"',
    'json $.items contains {"id": 1, "n": 2}',
    "json $.status matches ^d",
    "json $.none absent",
    "json $.items",
    "header x-kind == a, b",
    "header X-KIND contains b",
    "header content-type matches ^application/json",
    'header x-empty == ""',
    "time < 5s",
]  # fmt: skip
ANSWER = answer(200, JSON, "Content-Type: application/json", "X-Kind: a", "x-kind:  b ", "X-Empty:")


@pytest.mark.parametrize("line", HOLDS)
async def test_what_holds_is_a_success(polled, line):
    outcome = await polled(ANSWER, line)
    assert (outcome.status, outcome.error_message) == ("success", None)
    assert outcome.size_bytes == len(JSON)


async def test_all_that_hold_are_a_success(polled):
    assert (await polled(ANSWER, *HOLDS)).status == "success"


FAILS = [
    ("status 404,5xx", "got 200"),
    ("body contains up", f'not found in {len(JSON)} bytes (\'{{"status": "down", "items": '),
    ("body matches ^up", f"not found in {len(JSON)} bytes"),
    ('json $.status == "up"', 'found "down"'),
    ("json $.on == 1", "found true"),
    ("json $.items[*].n > 2", "found 2"),
    ("json $.status > 1", 'found "down"'),
    ('json $.on < "x"', "found true"),
    ("json $.none exists", "found nothing there"),
    ("json $.none == 1", "found nothing there"),
    ("json $.items[0] absent", 'found {"id":1,"n":2}'),
    ("json $.on contains true", "found true"),
    ("json $.on matches true", "found true"),
    ("header x-none == a", "there is no such header"),
    ("header x-kind == a", "found 'a, b'"),
    ("header x-kind contains c", "found 'a, b'"),
    ("header x-kind matches ^b", "found 'a, b'"),
    ("certificate > 1d", "there was no TLS, so no certificate"),
]


@pytest.mark.parametrize(("line", "found"), FAILS, ids=[line for line, _ in FAILS])
async def test_what_fails_is_told_with_what_was_found(polled, line, found):
    outcome = await polled(ANSWER, line)
    assert (outcome.status, outcome.status_code, outcome.error_code) == ("failure", 200, "assertion_failed")
    assert outcome.error_message.startswith(f"assertion failed: {line}: {found}")
    assert outcome.response_time_ms is not None
    assert outcome.size_bytes == len(JSON)


async def test_all_that_fail_are_told(polled):
    outcome = await polled(ANSWER, "status 500", "time < 5s", "body contains up", "json $.none")
    assert outcome.error_message.startswith("3 assertions failed: status 500: got 200; body contains up: not found")
    assert outcome.error_message.endswith("; json $.none exists: found nothing there")


async def test_an_unexpected_status_comes_first_and_hides_nothing(polled):
    outcome = await polled(answer(503, b"no"), "body contains ok")
    assert (outcome.status, outcome.error_code) == ("failure", "status_mismatch")
    assert outcome.error_message.endswith(
        " answered 503, expected 200; assertion failed: body contains ok: not found in 2 bytes ('no')"
    )
    outcome = await polled(answer(503, b"ok"), "body contains ok")
    assert outcome.error_message.endswith(" answered 503, expected 200")


@pytest.mark.parametrize(("expected", "asserted", "code"), [
    ("200", "2xx", "status_mismatch"), ("2xx", "200", "assertion_failed"), ("2xx", "204", None),
])  # fmt: skip
async def test_expected_and_asserted_status_must_both_hold(polled, expected, asserted, code):
    given = b"HTTP/1.1 204 X\r\n\r\n"
    assert (await polled(given, f"status {asserted}", expected_status=expected)).error_code == code


async def test_the_response_time_is_that_of_the_result(serve, poll):
    async def slow(peer: Peer) -> None:
        while await peer.request():
            await asyncio.sleep(0.03)
            peer.send(answer())

    server = await serve(slow)
    outcome = await poll(server.url(), assertions=asserting("time < 20ms"))
    assert outcome.error_message == f"assertion failed: time < 20ms: took {outcome.response_time_ms:.0f} ms"


async def test_a_body_in_pieces_is_put_together(serve, poll):
    async def pieces(peer: Peer) -> None:
        while await peer.request():
            peer.send(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
            for piece in (b"he", b"llo ", b"wor", b"ld"):
                await asyncio.sleep(0.002)
                peer.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            peer.send(b"0\r\n\r\n")

    server = await serve(pieces)
    for _ in range(2):  # the second on a kept connection: nothing of the first is left
        assert (await poll(server.url(), assertions=asserting("body matches ^hello world$"))).status == "success"
    assert server.connections == 1


async def test_a_body_that_ends_with_the_connection_is_looked_at(serve, poll):
    async def until_the_end(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 X\r\n\r\n{}")
        await peer.writer.drain()

    server = await serve(until_the_end)
    assert (await poll(server.url(), assertions=asserting("json $ == {}"))).status == "success"


async def test_projects_with_and_without_assertions_share_connections(serve, poll):
    server = await serve(answer(200, b"ok"))
    for number in range(3):
        assert (await poll(server.url(), number=1)).status == "success"
        assert (await poll(server.url(), number=2, assertions=asserting("body matches ^ok$"))).status == "success", (
            number
        )
    assert server.connections == 1


async def test_head_has_no_body(serve, poll):
    server = await serve(b"HTTP/1.1 200 X\r\nContent-Length: 5\r\nX-A: b\r\n\r\n")
    lines = ("header x-a == b", "json $.a", "body contains x")
    outcome = await poll(server.url(), method="HEAD", assertions=asserting(*lines))
    assert outcome.error_message == (
        "2 assertions failed: json $.a exists: the body is empty; body contains x: not found in 0 bytes ('')"
    )


async def test_the_last_answer_of_redirects_is_judged(serve, poll):
    async def script(peer: Peer) -> None:
        while request := await peer.request():
            peer.send(redirect(302, "/b", "X-A: 1") if request.target == "/" else answer(200, b"end"))

    server = await serve(script)
    outcome = await poll(server.url(), assertions=asserting("body matches ^end$", "header x-a == 1"))
    assert outcome.error_message == "assertion failed: header x-a == 1: there is no such header"
    assert [request.header("accept-encoding") for request in server.requests] == ["identity"] * 2


# ---- limits, encodings -----------------------------------------------------------------------------------------------


async def test_the_body_is_looked_at_up_to_the_limit(serve, make_prober):
    prober = make_prober(body_limit_bytes=10)
    server = await serve(answer(200, b'["2345678"]  '))
    lines = ("body contains 678", "body contains ]", "json $[0]")  # fmt: skip
    outcome = await asyncio.wait_for(probe(prober, spec(server.url(), assertions=asserting(*lines))), 10)
    check(outcome)
    assert outcome.error_message == (
        "2 assertions failed: body contains ]: not found in the first 10 bytes ('[\"2345678\"'); "
        "json $[0] exists: the body is longer than 10 bytes, so its JSON is not complete"
    )
    server = await serve(answer(200, b'["234567"]'))
    assert (await probe(prober, spec(server.url(), assertions=asserting("json $[0]")))).status == "success"


async def test_no_more_than_4_mib_of_a_body_are_looked_at(serve, make_prober):
    prober = make_prober(body_limit_bytes=16 << 20)
    body = b"x" * (4 << 20) + b"end"
    server = await serve(answer(200, body))
    outcome = await asyncio.wait_for(probe(prober, spec(server.url(), assertions=asserting("body contains end"))), 10)
    check(outcome)
    assert outcome.size_bytes == len(body)
    assert outcome.error_message.startswith(
        "assertion failed: body contains end: not found in the first 4194304 bytes ('xxx"
    )


@pytest.mark.parametrize("headers", [(("Accept-Encoding", "gzip"),), ()])
async def test_what_is_asked_for_is_identity_unless_the_project_says_otherwise(serve, poll, headers):
    server = await serve(answer(200, b"ok"))
    await poll(server.url(), headers=headers, assertions=asserting("body contains ok"))
    await poll(server.url(), headers=headers, assertions=asserting("status 200"))
    await poll(server.url(), headers=headers)
    asked = [request.header("accept-encoding") for request in server.requests]
    assert asked == (["gzip"] * 3 if headers else ["identity", None, None])


RAW_DEFLATE = zlib.compress(b"hello", wbits=-15)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"hello")),
        ("X-GZIP", gzip.compress(b"hel") + gzip.compress(b"lo") + b"\0" * 8),
        ("deflate", zlib.compress(b"hello")),
        ("deflate", RAW_DEFLATE),
        ("identity", b"hello"),
        ("deflate, gzip", gzip.compress(zlib.compress(b"hello"))),
    ],
)
async def test_a_body_is_decoded(polled, encoding, body):
    outcome = await polled(answer(200, body, f"Content-Encoding: {encoding}"), "body matches ^hello$")
    assert (outcome.status, outcome.error_message) == ("success", None)
    assert outcome.size_bytes == len(body)


@pytest.mark.parametrize(
    ("encoding", "body", "why"),
    [
        ("br", b"x", "the body is encoded as 'br', which is not decoded here"),
        ("gzip", b"hello", "the body is no gzip data: "),
        ("gzip", gzip.compress(b"hello" * 99)[:-20], "the body is no complete gzip data"),
        ("gzip", gzip.compress(b"\0" * (2 << 20)), "the body is larger than 1048576 bytes when decoded"),
        ("gzip,gzip", gzip.compress(gzip.compress(b"\0" * (200 << 20))), "the body is larger than 1048576 bytes"),
        ("gzip," * 5, b"x", "the body is encoded 5 times"),
    ],
)
async def test_a_body_that_is_not_decoded_says_why(polled, encoding, body, why):
    outcome = await polled(answer(200, body, f"Content-Encoding: {encoding}"), "body contains hello")
    assert outcome.error_code == "assertion_failed"
    assert outcome.error_message.startswith(f"assertion failed: body contains hello: {why}")


@pytest.mark.parametrize(
    ("charset", "body"),
    [("iso-8859-1", "é".encode("latin-1")), ('"Windows-1252"', b"\xe9"), ("UTF-16", "é".encode("utf-16")),
     ("utf-8", "é".encode()), ("nonsense", "é".encode()), ("zip", "é".encode()), ("punycode", "é".encode())],
)  # fmt: skip
async def test_a_charset_is_heeded(polled, charset, body):
    given = answer(200, body, f"Content-Type: text/plain; x=y; charset={charset}")
    assert (await polled(given, "body contains é", "body matches ^.$")).status == "success"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body is empty"),
        (b"<html>", "the body is not JSON: "),
        (b"[" + b"{}," * 100_000 + b"1]", "the body is JSON of more than 100000 lists and maps"),
        (b"[" * 91 + b"]" * 91, "the body is JSON nested more than 90 deep"),
        (b"[" * 5_000 + b"]" * 5_000, "the body is not JSON: "),
    ],
)
async def test_a_body_that_is_no_json_says_so(polled, body, why):
    outcome = await polled(answer(200, body), "json $.a")
    assert outcome.error_message.startswith(f"assertion failed: json $.a exists: {why}")


async def test_a_byte_order_mark_is_no_part_of_json(polled):
    assert (await polled(answer(200, b"\xef\xbb\xbf[1]"), "json $[0] == 1")).status == "success"


async def test_a_message_is_one_printable_line_of_500_characters(polled):
    given = answer(
        200,
        b'{"a": "' + b"\\u0007\\n\xe2\x80\xae" * 500 + b'"}',
        "X-A: " + "\xff\x80" * 300,
    )
    outcome = await polled(given, *[f"json $.a == {n}" for n in range(25)], *[f"header x-a == {n}" for n in range(25)])
    assert outcome.error_message.startswith("50 assertions failed: json $.a == 0: found ")
    assert outcome.error_message.rpartition("; and ")[2].endswith(" more")


def test_how_many_more_are_told():
    outcome = judged(judging.ProbeOutcome("success", 200), ["x" * 240] * 50)
    assert outcome.error_message == f"50 assertions failed: {'x' * 240}; and 49 more"
    outcome = judged(judging.ProbeOutcome("failure", 500, None, "status_mismatch", "y" * 490), ["x" * 240] * 2)
    assert len(outcome.error_message) <= 500


async def test_assertions_that_are_none_make_the_project_one_that_cant_be_polled(serve, poll):
    server = await serve(answer())
    for encoded in (b"nonsense", b'[{"type":"other"}]', b'[{"type":"body_matches","pattern":"("}]'):
        outcome = await poll(server.url(), assertions=encoded)
        assert (outcome.status, outcome.error_code) == ("failure", "invalid_request")
    assert not server.requests


# ---- certificates ----------------------------------------------------------------------------------------------------


def tls_valid_for(authority, **span: float) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", not_after=datetime.now(UTC) + timedelta(**span)).configure_cert(context)
    return context


async def test_the_days_of_a_certificate(serve, poll, authority):
    server = await serve(answer(), tls=tls_valid_for(authority, days=10, hours=12))
    for _ in range(2):  # the second on a kept connection
        assert (await poll(server.url(), assertions=asserting("certificate > 10d"))).status == "success"
        outcome = await poll(server.url(), assertions=asserting("certificate > 11d"))
        assert outcome.error_message == "assertion failed: certificate > 11d: valid for 10.5 days"
    assert server.connections == 1


async def test_the_certificate_of_a_connection_that_ended_with_the_answer(serve, poll, authority):
    async def until_the_end(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 X\r\n\r\nok")
        await peer.writer.drain()

    server = await serve(until_the_end, tls=tls_valid_for(authority, days=3))
    assert (await poll(server.url(), assertions=asserting("certificate > 2d"))).status == "success"


async def test_a_certificate_that_is_not_verified_is_not_known(serve, make_prober, authority):
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    server = await serve(answer(), tls=tls_valid_for(authority, days=3))
    outcome = await probe(make_prober(tls=unverified), spec(server.url(), assertions=asserting("certificate > 2d")))
    assert outcome.error_message == (
        "assertion failed: certificate > 2d: its end is not known, since the certificate is not verified"
    )


# ---- work that would hold up the loop --------------------------------------------------------------------------------

BIG = b'{"l": [' + b"1," * 300_000 + b'1], "end": "x"}'


async def test_a_large_body_is_judged_in_a_thread(serve, poll, monkeypatch):
    threads = []
    failures = judging.Judge.failures

    def noted(self: judging.Judge, given: Answer) -> list[str]:
        threads.append(threading.current_thread().name)
        return failures(self, given)

    monkeypatch.setattr(judging.Judge, "failures", noted)
    server = await serve(answer(200, BIG))
    outcome = await poll(server.url(), assertions=asserting('json $.end == "x"', "json $.l[3] == 2"))
    assert outcome.error_message == "assertion failed: json $.l[3] == 2: found 1"
    server = await serve(answer(200, b'{"end": "x"}'))
    assert (await poll(server.url(), assertions=asserting('json $.end == "x"'))).status == "success"
    assert len(threads) == 1
    assert threads[0].startswith("judge")


@pytest.mark.parametrize(
    ("line", "body"),
    [("json $..*..*..*..* == 1", b"[" * 80 + b"]" * 80), ("json $.l[?@ == $.l] == 1", BIG)],
)
async def test_a_path_that_asks_for_too_much_fails_its_assertion(serve, poll, line, body):
    server = await serve(answer(200, body))
    outcome = await poll(server.url(), assertions=asserting("status 200", line, "status 201"))
    assert outcome.error_message == (
        f"2 assertions failed: {line}: more work than is allowed: 100000 values visited; status 201: got 200"
    )


@pytest.fixture
def held(monkeypatch):
    """Judgement in a thread does not end before it is told to."""
    let_go = threading.Event()
    monkeypatch.setattr(judging.Judge, "failures", lambda self, given: let_go.wait(10) and [])
    yield let_go
    let_go.set()


async def test_an_answer_that_is_complete_is_in_time_however_long_it_is_judged(serve, prober, held):
    server = await serve(answer(200, BIG))
    loop = asyncio.get_running_loop()
    polling = loop.create_task(probe(prober, spec(server.url(), assertions=asserting("json $"), timeout_ms=400)))
    await asyncio.wait({polling}, timeout=0.8)
    assert not polling.done()
    assert prober.in_flight == 1
    held.set()
    outcome = await asyncio.wait_for(polling, 10)
    check(outcome)
    assert outcome.status == "success"
    assert outcome.response_time_ms < 400


async def test_a_poll_that_is_cancelled_while_it_is_judged_is_told_to_nobody(serve, prober, held, monkeypatch):
    begun = threading.Event()
    monkeypatch.setattr(judging.Judge, "failures", lambda self, given: begun.set() or (held.wait(10) and []))
    server = await serve(answer(200, BIG))
    outcomes = []
    prober.start(spec(server.url(), assertions=asserting("json $")), outcomes.append)
    await until(begun.is_set)
    prober.cancel_all()
    await until(lambda: prober.in_flight == 0)
    held.set()
    await prober.close(1)
    assert not outcomes


async def test_closing_waits_for_what_is_judged(serve, prober, held):
    server = await serve(answer(200, BIG))
    outcomes = []
    prober.start(spec(server.url(), assertions=asserting("json $")), outcomes.append)
    await until(lambda: server.requests)
    asyncio.get_running_loop().call_later(0.2, held.set)
    await prober.close(10)
    assert [outcome.status for outcome in outcomes] == ["success"]


@pytest.mark.parametrize("broken", ["failures", "failures_at_once"])
async def test_a_bug_in_judging_is_this_machines(serve, poll, monkeypatch, caplog, broken):
    monkeypatch.setattr(judging.Judge, broken, lambda self, given: 1 / 0)
    server = await serve(answer(200, BIG))
    outcome = await poll(server.url(), assertions=asserting("json $"))
    assert (outcome.status, outcome.error_code) == ("unknown", "local")
    assert "error in the prober itself" in outcome.error_message
    assert "failed in an unforeseen way" in caplog.text
    assert "ZeroDivisionError" in caplog.text


EVERYTHING = judge_for(
    asserting(
        "status 201", "body contains x", "body matches x.y", "json $..a == 1", "json $[?@.a > 1].b matches x",
        "json $.a contains 1", 'json $.a < "b"', "json $ absent", "json $[?match(@, $.a)]", "header a matches x",
        "header b == x", "time < 1ms", "certificate > 5d",
    )
)  # fmt: skip
json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=9,
).map(lambda value: json.dumps(value).encode())
bodies = st.binary(max_size=60) | json_texts
header_values = st.text(max_size=20) | st.sampled_from(
    ["gzip", "deflate", "gzip, deflate", "x; charset=utf-16", "a; charset"]
)


@given(
    bodies | bodies.map(gzip.compress) | bodies.map(zlib.compress),
    st.lists(st.tuples(st.sampled_from(["a", "b", "content-encoding", "Content-Type"]), header_values), max_size=4),
    st.booleans(),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_comes_is_judged(body, fields, whole):
    given_answer = Answer(200, 1.0, fields, body, whole, None, 100)
    failures = EVERYTHING.failures(given_answer)
    assert EVERYTHING.failures_at_once(given_answer) in (None, failures)
    outcome = judged(judging.ProbeOutcome("success", 200), failures)
    check(outcome)
    assert outcome.error_code == "assertion_failed"


def large(body: bytes, *lines: str) -> tuple[list[str] | None, float]:
    judge = judge_for(asserting(*lines))
    given = Answer(200, 1.0, [], body, True, None, 1 << 20)
    begun_at = time.perf_counter()
    return judge.failures_at_once(given), time.perf_counter() - begun_at


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ("json $", b"[" + b"[]," * 5_000 + b"1]"),
        ("json $..* absent", b"[" + b"1," * 5_000 + b"1]"),
        ("json $" + "[0,0]" * 80, b"[" * 80 + b"]" * 80),
        ("body matches (0|1)*1(0|1){100}2", b"01" * 8_000),
    ],
)
def test_the_loop_gives_up_soon(line, body):
    """Well below the bound, on a busy machine: without one these take up to hours."""
    large(body, line)
    took_s = min(large(body, line)[1] for _ in range(5))
    assert took_s < 0.1


def test_a_judge_thread_that_never_worked_has_nothing_to_close():
    thread = JudgeThread()
    thread.close()
    assert thread._threads is None
