"""Which engine polls a project, and that the prober over both is one: counted, cancelled and closed together."""

import asyncio
import base64
import ssl

import pytest
from probe_scripts import Peer, answer, check, redirect, spec, until
from test_probe_failures import no_descriptors_left

from cluster.http_options import HttpOptions
from cluster.secret_values import SecretSource
from worker.probe.choose import ChoosingProber, engine_for
from worker.probe.interface import probe

SECRETS = {"RINGPOLL_SECRET_TOKEN": "c4nary", "RINGPOLL_SECRET_BROKEN": "two\r\nlines"}
UPGRADE = (("Connection", "upgrade"), ("Upgrade", "websocket"))


@pytest.fixture
async def choosing(authority, names):
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    made = ChoosingProber(body_limit_bytes=1 << 20, lookup=names, tls=tls, secrets=SecretSource(SECRETS, None))
    yield made
    await made.close(0)


@pytest.mark.parametrize(
    ("fields", "engine"),
    [
        ({}, "lean"),
        ({"method": "HEAD"}, "lean"),
        ({"method": "x-Odd~1"}, "lean"),
        ({"headers": (("X-Upgrade", "1"), ("Connection", "close"))}, "lean"),
        ({"options": HttpOptions(verify_tls=False, proxy="http://p:1", connection_reuse="never")}, "lean"),
        ({"headers": UPGRADE}, "aiohttp"),
        ({"headers": UPGRADE, "options": HttpOptions(ip_version=4)}, "aiohttp"),
        ({"headers": (("uPGRADE", "x"),)}, "aiohttp"),
    ],
)
def test_which_engine_polls_a_project(fields, engine):
    assert engine_for(spec("http://h/", **fields)) == engine


async def test_each_engine_polls_its_own(serve, choosing):
    async def script(peer: Peer) -> None:
        while request := await peer.request():
            asked = request.header("Upgrade") is not None
            peer.send(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n" if asked else answer())

    server = await serve(script)
    for number, (headers, expected) in enumerate([((), "200"), (UPGRADE, "101")]):
        outcome = await probe(choosing, spec(server.url(), number=number, headers=headers, expected_status=expected))
        check(outcome)
        assert (outcome.status, outcome.status_code) == ("success", int(expected))


async def test_polls_of_both_engines_are_counted_and_cancelled(serve, choosing):
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    server = await serve(silent)
    outcomes = []
    choosing.start(spec(server.url(), number=1), outcomes.append)
    choosing.start(spec(server.url(), number=2, headers=UPGRADE), outcomes.append)
    assert choosing.in_flight == 2
    await until(lambda: len(server.requests) == 2)
    choosing.cancel_all()
    await until(lambda: choosing.in_flight == 0 and server.open == 0)
    assert outcomes == []


async def test_redirects_of_both_engines_are_cancelled(serve, choosing):
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        peer.send(redirect(302, "/b"))
        await peer.gone()

    server = await serve(script)
    polls = [
        asyncio.ensure_future(probe(choosing, spec(server.url(), number=number, headers=headers)))
        for number, headers in enumerate([(), UPGRADE])
    ]
    await until(lambda: len(server.requests) == 2)
    choosing.cancel_redirects({0, 1})
    go_on.set()
    assert {(await each).error_code for each in polls} == {"local"}


async def test_close_waits_for_both_engines(serve, choosing):
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        peer.send(answer())
        await peer.gone()

    server = await serve(script)
    outcomes = []
    choosing.start(spec(server.url(), number=1), outcomes.append)
    choosing.start(spec(server.url(), number=2, headers=UPGRADE), outcomes.append)
    await until(lambda: len(server.requests) == 2)
    closing = asyncio.ensure_future(choosing.close(5.0))
    asyncio.get_running_loop().call_soon(go_on.set)
    await closing
    assert [outcome.status for outcome in outcomes] == ["success", "success"]
    await until(lambda: server.open == 0)


@pytest.mark.parametrize(("waiting", "lacking"), [((), UPGRADE), (UPGRADE, ())])
async def test_the_connections_of_one_engine_make_room_for_the_other(serve, choosing, waiting, lacking):
    idle, server = await serve(answer()), await serve(answer())
    assert (await probe(choosing, spec(idle.url(), headers=waiting))).status == "success"
    with no_descriptors_left():
        outcome = await probe(choosing, spec(server.url(), number=2, headers=lacking))
        assert outcome.status == "success", outcome
    assert idle.open == 0


@pytest.mark.parametrize("more", [(), UPGRADE], ids=["lean", "aiohttp"])
async def test_secrets_are_filled_in_for_each_poll(serve, choosing, monkeypatch, more):
    server = await serve(answer())
    headers = (("Authorization", "Bearer ${TOKEN}"), ("X-Plain", "$${TOKEN}"), *more)
    for secret in ("c4nary", "c4nary", "another"):
        monkeypatch.setitem(SECRETS, "RINGPOLL_SECRET_TOKEN", secret)
        outcome = await probe(choosing, spec(server.url(), headers=headers))
        check(outcome)
        assert outcome.status == "success"
        assert server.requests[-1].header("Authorization") == f"Bearer {secret}"
        assert server.requests[-1].header("X-Plain") == "${TOKEN}"


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (HttpOptions(bearer_token="${TOKEN}"), "Bearer c4nary"),
        (HttpOptions(basic_auth="me:${TOKEN}"), f"Basic {base64.b64encode(b'me:c4nary').decode()}"),
    ],
)
async def test_secrets_of_options_are_filled_in(serve, choosing, options, sent):
    server = await serve(answer())
    outcome = await probe(choosing, spec(server.url(), options=options))
    check(outcome)
    assert server.requests[-1].header("Authorization") == sent
    gone = await probe(choosing, spec(server.url(), options=HttpOptions(bearer_token="${GONE}")))
    assert gone.error_message.startswith("bearer_token: ${GONE} stands for nothing")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${GONE}", "header X-A: ${GONE} stands for nothing: no variable RINGPOLL_SECRET_GONE on this worker"),
        ("${file:x}", "header X-A: ${file:x} stands for nothing: this worker has no secrets_dir"),
        ("${BROKEN}", "header X-A has a line break or control character in its value"),
    ],
)
async def test_a_secret_that_is_not_there_or_no_value_of_a_header(serve, choosing, value, message):
    server = await serve(answer())
    outcome = await probe(choosing, spec(server.url(), headers=(("X-A", value),)))
    check(outcome)
    assert (outcome.status, outcome.error_code, outcome.error_message) == ("failure", "invalid_request", message)
    assert server.requests == []
    assert choosing.in_flight == 0


async def test_a_refused_poll_can_be_cancelled(choosing):
    outcomes = []
    choosing.start(spec("http://h/", headers=(("X-A", "${GONE}"),)), outcomes.append)
    assert choosing.in_flight == 1
    assert outcomes == []
    choosing.cancel_all()
    await asyncio.sleep(0)
    assert (choosing.in_flight, outcomes) == (0, [])
