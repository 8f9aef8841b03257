"""Redirects: holds for every engine."""

import asyncio
import threading

import pytest
from probe_scripts import Peer, address_info, answer, check, redirect, spec, until

from worker.probe.interface import probe


def routed(routes):
    async def script(peer: Peer) -> None:
        while request := await peer.request():
            peer.send(routes[request.target])

    return script


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(serve, poll, status):
    server = await serve(routed({"/a": redirect(status, "/b?x=%2F"), "/b?x=%2F": answer(200, b"there")}))
    outcome = await poll(server.url("/a"))
    assert (outcome.status, outcome.status_code, outcome.size_bytes) == ("success", 200, 5)
    assert [request.target for request in server.requests] == ["/a", "/b?x=%2F"]
    assert server.connections == 1
    assert outcome.connection_reused is False  # the poll needed one


@pytest.mark.parametrize("status", [300, 304, 305])
async def test_other_statuses_are_not_followed(serve, poll, status):
    server = await serve(routed({"/a": redirect(status, "/b")}))
    assert (await poll(server.url("/a"), expected_status=str(status))).status == "success"


async def test_an_expected_redirect_is_the_answer(serve, poll):
    server = await serve(routed({"/a": redirect(301, "/b")}))
    outcome = await poll(server.url("/a"), expected_status="200,301")
    assert (outcome.status, outcome.status_code) == ("success", 301)


async def test_redirects_are_not_followed_unless_wanted(serve, poll):
    server = await serve(routed({"/a": redirect(302, "/b")}))
    outcome = await poll(server.url("/a"), follow_redirects=False)
    assert (outcome.status_code, outcome.error_code) == (302, "status_mismatch")


async def test_a_redirect_without_location_is_the_answer(serve, poll):
    server = await serve(answer(302, b""))
    outcome = await poll(server.url())
    assert (outcome.status_code, outcome.error_code) == (302, "status_mismatch")


@pytest.mark.parametrize("location", ["http://", "//h:99999/", "http://[::1/", "https://a b:c/"])
async def test_a_redirect_to_nowhere(serve, poll, location):
    server = await serve(redirect(302, location))
    outcome = await poll(server.url())
    assert (outcome.status, outcome.error_code, outcome.status_code) == ("failure", "protocol", 302)
    assert "redirects to where HTTP can't follow" in outcome.error_message


@pytest.mark.parametrize(("length", "code"), [(10, None), (11, "too_many_redirects")])
async def test_ten_are_followed(serve, poll, length, code):
    routes = {f"/{n}": redirect(302, f"/{n + 1}") for n in range(length)}
    server = await serve(routed({**routes, f"/{length}": answer()}))
    outcome = await poll(server.url("/0"))
    assert outcome.error_code == code
    assert len(server.requests) == 11
    if code:
        assert outcome.status_code == 302


@pytest.mark.parametrize(
    ("status", "method", "body"), [(302, "GET", b""), (303, "GET", b""), (307, "POST", b"data"), (308, "POST", b"data")]
)
async def test_what_becomes_of_a_post(serve, poll, status, method, body):
    server = await serve(routed({"/a": redirect(status, "b"), "/b": answer()}))
    await poll(server.url("/a"), method="POST", body="data")
    assert (server.requests[1].method, server.requests[1].body) == (method, body)


async def test_secrets_stay_with_the_origin(serve, poll):
    other = await serve(answer())
    server = await serve(routed({"/a": redirect(307, other.url("/b"), "Set-Cookie: session=1; Path=/")}))
    headers = (("Authorization", "s"), ("Cookie", "s"), ("X-Token", "s"), ("Accept", "text/x"), ("Host", "virtual"))
    assert (await poll(server.url("/a"), headers=headers)).status == "success"
    request = other.requests[0]
    assert request.header("Host") == f"127.0.0.1:{other.port}"
    assert request.header("Accept") == "text/x"
    assert not [value for _, value in request.headers if value == "s"]


async def test_no_cookie_is_kept(serve, poll):
    routes = {"/a": redirect(302, "/b", "Set-Cookie: session=1; Path=/"), "/b": answer(200, b"", "Set-Cookie: x=1")}
    server = await serve(routed(routes))
    await poll(server.url("/a"))
    await poll(server.url("/b"))
    assert [request.header("Cookie") for request in server.requests] == [None, None, None]


async def test_a_redirect_with_an_unfinished_body_is_not_waited_for(serve, poll):
    async def script(peer: Peer) -> None:
        request = await peer.request()
        if request.target == "/a":
            peer.send(b"HTTP/1.1 302 F\r\nLocation: /b\r\nContent-Length: 100\r\n\r\nnot all")
            await peer.gone()
        else:
            peer.send(answer())
            await peer.gone()

    server = await serve(script)
    assert (await poll(server.url("/a"))).status == "success"
    assert server.connections == 2


async def test_phases_add_up_over_hops(serve, poll, server_tls):
    secure = await serve(answer(200, b"there"), server_tls)
    server = await serve(redirect(302, secure.url("/", "good.test")))
    outcome = await poll(server.url("/", "other.test"))
    assert outcome.status == "success"
    assert outcome.dns_ms > 0
    assert outcome.connect_ms > 0
    assert outcome.tls_ms > 0
    assert outcome.size_bytes == 5


# ---- a project that is removed meanwhile ----------------------------------------------------------------------------


async def held(serve):
    """A server that waits before it redirects to /b, and how to let it go on."""
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        while request := await peer.request():
            if request.target == "/a":
                await go_on.wait()
                peer.send(redirect(302, "/b"))
            else:
                peer.send(answer())

    return await serve(script), go_on


async def test_after_cancel_redirects_none_is_followed(serve, prober):
    server, go_on = await held(serve)
    polls = {number: asyncio.ensure_future(probe(prober, spec(server.url("/a"), number=number))) for number in (1, 2)}
    await until(lambda: len(server.requests) == 2)
    prober.cancel_redirects({1, 99})
    go_on.set()
    stayed = await polls[1]
    check(stayed)
    assert (stayed.status, stayed.error_code, stayed.status_code) == ("unknown", "local", None)
    assert stayed.error_message.startswith("the project was removed before its redirect to 127.0.0.1:")
    assert (await polls[2]).status == "success"
    assert [request.target for request in server.requests] == ["/a", "/a", "/b"]
    after = await probe(prober, spec(server.url("/a"), number=1))  # it is back
    assert after.status == "success"


async def test_cancel_redirects_leaves_the_answer_of_the_first_request_alone(serve, prober):
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        peer.send(answer())

    server = await serve(script)
    polled = asyncio.ensure_future(probe(prober, spec(server.url("/a"))))
    prober.cancel_redirects([1])
    await until(lambda: server.requests)
    go_on.set()
    assert (await polled).status == "success"


async def test_cancel_redirects_while_the_next_hop_is_looked_up(serve, make_prober):
    release, asked = threading.Event(), threading.Event()

    def slow(host, port):
        asked.set()
        release.wait(10)
        return [address_info("127.0.0.1", port)]

    prober = make_prober(lookup=slow)
    target = await serve(answer())
    server = await serve(redirect(302, target.url("/b", "other.test")))
    polled = asyncio.ensure_future(probe(prober, spec(server.url("/a"))))
    await until(asked.is_set)
    prober.cancel_redirects([1])
    release.set()
    outcome = await polled
    check(outcome)
    assert outcome.error_code == "local"
    assert target.requests == []
