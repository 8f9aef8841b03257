"""Secrets that a target sends back are in no message."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_scripts import Peer, answer, spec

from cluster.assertions import encode_assertions, parse_assertion
from cluster.http_options import HttpOptions
from cluster.secret_values import SecretSource
from worker.probe.choose import ChoosingProber
from worker.probe.hiding import hidden
from worker.probe.interface import probe

SECRETS = {"RINGPOLL_SECRET_TOKEN": 'c4nary"of\\mine', "RINGPOLL_SECRET_PLAIN": "plainc4nary"}


@pytest.mark.parametrize(
    ("message", "secrets", "shown"),
    [
        ("nothing here", ["c4nary"], "nothing here"),
        ("found 'Bearer c4nary', and c4nary", ["c4nary"], "found 'Bearer ***', and ***"),
        ("found 'Bearer c4na...' (900 characters)", ["c4nary"], "found 'Bearer ***...' (900 characters)"),
        ("found 'Bearer c4nar'", ["c4nary"], "found 'Bearer ***'"),
        ("a c4nab and c4nar", ["c4nary"], "a c4nab and ***"),
        ("the canal is open", ["canary"], "the canal is open"),
        ("abc is too short to hide", ["abc"], "abc is too short to hide"),
        ("longer-secret", ["long", "longer-secret"], "***"),
    ],
)
def test_what_is_hidden(message, secrets, shown):
    assert hidden(message, secrets) == shown


@given(st.text(min_size=4, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_a_secret_is_never_left(secret, before, after):
    assert secret not in hidden(before + secret + after, [secret]) or secret in "***"


@pytest.mark.parametrize(
    "fields",
    [
        {"headers": (("Authorization", "Bearer ${TOKEN}"),)},
        {"headers": (("X-Other", "${PLAIN}"),)},
        {"headers": (("Cookie", "session=c4nary-of-mine"),)},
        {"options": HttpOptions(basic_auth="me:${TOKEN}")},
        {"options": HttpOptions(basic_auth="me:c4nary-of-mine")},
        {"options": HttpOptions(bearer_token="c4nary-of-mine")},
    ],
    ids=str,
)
@pytest.mark.parametrize("line", ["body contains NOPE", 'json $.all == "NOPE"', "header x-echo == NOPE"])
async def test_no_message_has_what_an_echo_sends_back(serve, names, fields, line):
    async def echo(peer: Peer) -> None:
        while request := await peer.request():
            sent = [value for name, value in request.headers if name.lower() in {"authorization", "x-other", "cookie"}]
            body = json.dumps({"all": " ".join(sent)}).encode()
            peer.send(answer(200, body, f"X-Echo: {sent[0]}"))

    server = await serve(echo)
    prober = ChoosingProber(body_limit_bytes=1 << 20, lookup=names, secrets=SecretSource(SECRETS, None))
    try:
        outcome = await probe(
            prober, spec(server.url(), assertions=encode_assertions([parse_assertion(line)]), **fields)
        )
    finally:
        await prober.close(0)
    assert outcome.error_code == "assertion_failed"
    assert "***" in outcome.error_message
    for secret in ("c4nary", "plainc4", "bWU6"):
        assert secret not in outcome.error_message
