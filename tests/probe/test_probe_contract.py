"""What goes out and what an answer becomes: holds for every engine."""

import asyncio
import gzip

import aiohttp.web
import pytest
from probe_scripts import Peer, answer, check, free_port, spec, until

from worker.probe.interface import probe


async def test_an_expected_answer_is_a_success(serve, poll):
    server = await serve(answer(200, b"hello"))
    outcome = await poll(server.url("/x"))
    assert outcome.status == "success"
    assert outcome.status_code == 200
    assert outcome.error_code is None
    assert outcome.size_bytes == 5
    assert outcome.remote_address == "127.0.0.1"
    assert outcome.connection_reused is False
    assert outcome.dns_ms is None
    assert outcome.connect_ms > 0
    assert outcome.tls_ms is None
    assert outcome.first_byte_ms > 0
    assert outcome.transfer_ms >= 0
    assert outcome.response_time_ms < 5_000


@pytest.mark.parametrize(
    ("status", "expected", "success"),
    [(200, "200", True), (404, "404", True), (503, "200", False), (204, "2xx", True), (200, "200-299,301", True)],
)
async def test_the_expected_set_decides(serve, poll, status, expected, success):
    server = await serve(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
    outcome = await poll(server.url(), expected_status=expected)
    assert outcome.status_code == status
    assert outcome.response_time_ms is not None
    if success:
        assert outcome.status == "success"
    else:
        assert outcome.status == "failure"
        assert outcome.error_code == "status_mismatch"
        assert outcome.error_message == f"127.0.0.1:{server.port} answered {status}, expected {expected}"


async def test_a_long_expected_set_makes_no_long_message(serve, poll):
    server = await serve(answer(404))
    outcome = await poll(server.url(), expected_status=",\n".join(["200"] * 250))  # as a row written in SQL may have it
    assert outcome.error_message.startswith(f"127.0.0.1:{server.port} answered 404, expected 200, 200")
    assert outcome.error_message.endswith("...")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "x-Odd~1"])
async def test_any_method_goes_out(serve, poll, method):
    server = await serve(answer())
    assert (await poll(server.url(), method=method)).status == "success"
    assert server.requests[0].method == method


async def test_a_well_known_method_goes_out_in_capitals(serve, poll):
    server = await serve(answer())
    await poll(server.url(), method="post")
    assert server.requests[0].method == "POST"


@pytest.mark.parametrize(
    "target",
    [
        "/a%2Fb%2f/../c//d?z=1&a=%7E+%20&b&sig=a/b+c==",
        "/?",
        "/?#",
        "/;p=1?x=[1]|{2}",
        "/" + "x" * 4_000,
        "/?" + "&".join(f"k{n}=%41" for n in range(500)),
    ],
)
async def test_the_target_goes_out_as_written(serve, poll, target):
    server = await serve(answer())
    outcome = await poll(server.url(target))
    assert outcome.status == "success"
    assert server.requests[0].target == target.partition("#")[0]


async def test_headers_and_body_go_out_as_given(serve, poll):
    server = await serve(answer())
    headers = (("X-One", "1"), ("x-TWO", "é"), ("X-One", "3"), ("Cookie", "a=b; c=d"))
    await poll(server.url(), method="POST", headers=headers, body="größe")
    request = server.requests[0]
    raw = request.head.decode().split("\r\n")
    assert raw[1] == f"Host: 127.0.0.1:{server.port}"
    assert raw[2:6] == ["X-One: 1", "x-TWO: é", "X-One: 3", "Cookie: a=b; c=d"]
    assert request.body == "größe".encode()
    assert request.header("Content-Length") == "7"
    assert request.header("Accept") == "*/*"
    assert request.header("User-Agent").startswith("ringpoll/")
    assert request.header("Accept-Encoding") is None
    assert request.header("Content-Type") is None


async def test_a_post_without_a_body_says_so(serve, poll):
    server = await serve(answer())
    await poll(server.url(), method="POST")
    assert server.requests[0].header("Content-Length") == "0"
    await poll(server.url(), method="GET", number=2)
    assert server.requests[1].header("Content-Length") is None


async def test_the_projects_host_header_wins(serve, poll):
    server = await serve(answer())
    await poll(server.url(), headers=(("Host", "virtual.test"),))
    assert server.requests[0].header("Host") == "virtual.test"


async def test_a_large_body_goes_out_whole(serve, poll):
    server = await serve(answer())
    body = "x" * 65_536
    outcome = await poll(server.url(), method="PUT", body=body)
    assert outcome.status == "success"
    assert server.requests[0].body == body.encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "G T"},
        {"headers": (("X", "a\r\nb: c"),)},
        {"expected_status": "nonsense"},
    ],
)
async def test_an_impossible_request_is_said_so_and_not_sent(serve, poll, fields):
    server = await serve(answer())
    outcome = await poll(server.url(), **fields)
    assert outcome.status == "failure"
    assert outcome.error_code == "invalid_request"
    assert outcome.connection_reused is None
    assert server.connections == 0


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://h/", "http://h:0/", "http://a b/", "http://[::1/"])
async def test_an_impossible_url_is_said_so(poll, url):
    outcome = await poll(url)
    assert outcome.error_code == "invalid_request"


# ---- answers ------------------------------------------------------------------------------------------------------


async def test_head_has_no_body_and_keeps_the_connection(serve, poll):
    server = await serve(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    first = await poll(server.url(), method="HEAD")
    second = await poll(server.url(), method="HEAD")
    assert (first.status, first.size_bytes) == ("success", 0)
    assert second.connection_reused


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body(serve, poll, status):
    head = "Content-Length: 10\r\n" if status == 304 else ""
    server = await serve(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode())
    first = await poll(server.url(), expected_status=str(status))
    second = await poll(server.url(), expected_status=str(status))
    assert (first.status, first.size_bytes) == ("success", 0)
    assert second.connection_reused


@pytest.mark.parametrize("informational", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nLink: </x>\r\n\r\n"])
async def test_informational_answers_are_passed_over(serve, poll, informational):
    server = await serve(informational * 3 + answer(200, b"ok"))
    outcome = await poll(server.url())
    assert (outcome.status, outcome.status_code, outcome.size_bytes) == ("success", 200, 2)
    assert (await poll(server.url())).connection_reused


async def test_endless_informational_answers_are_none(serve, poll):
    server = await serve(b"HTTP/1.1 102 P\r\n\r\n" * 40)
    outcome = await poll(server.url())
    assert outcome.error_code == "protocol"


async def test_switching_protocols_is_final(serve, poll):
    server = await serve(b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nraw")
    outcome = await poll(server.url())
    assert (outcome.status_code, outcome.error_code) == (101, "status_mismatch")
    await until(lambda: server.open == 0)


async def test_chunks_count_without_their_framing(serve, poll):
    chunks = b"3;ext=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    server = await serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert (await poll(server.url())).size_bytes == 13
    assert (await poll(server.url())).connection_reused


async def test_an_encoded_body_counts_as_received(serve, poll):
    packed = gzip.compress(b"x" * 10_000)
    server = await serve(answer(200, packed, "Content-Encoding: gzip"))
    outcome = await poll(server.url())
    assert outcome.status == "success"
    assert outcome.size_bytes == len(packed)


@pytest.mark.parametrize(
    ("method", "sent", "found"),
    [
        ("HEAD", answer(200, b"a body all the same"), (200, 0)),
        ("GET", b"HTTP/1.1 204 N\r\n\r\nbody", (204, 0)),
        ("GET", b"HTTP/1.1 304 N\r\nContent-Length: 4\r\n\r\nbody", (304, 0)),
        ("GET", answer(200, b"ok") + b"junk", (200, 2)),
        ("GET", answer(200, b"ok", "Connection: close") + b"junk", (200, 2)),
        ("GET", answer(200, b"") + b"junk", (200, 0)),
        ("GET", b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\njunk", (200, 2)),
    ],
)
async def test_more_than_was_announced_is_left_over(serve, poll, method, sent, found):
    server = await serve(sent)
    for _ in range(2):
        outcome = await poll(server.url(), method=method, expected_status=str(found[0]))
        assert (outcome.status, outcome.status_code, outcome.size_bytes) == ("success", *found)
        assert outcome.connection_reused is False


async def test_a_line_break_behind_the_body_is_nothing(serve, poll):
    server = await serve(answer(200, b"ok") + b"\r\n")
    assert (await poll(server.url())).status == "success"
    assert (await poll(server.url())).connection_reused


async def test_junk_in_a_later_packet_is_left_over(serve, poll):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        await peer.writer.drain()
        await asyncio.sleep(0.02)  # a packet of its own
        peer.send(b"defjunk")
        await peer.gone()

    server = await serve(script)
    outcome = await poll(server.url())
    assert (outcome.status, outcome.size_bytes) == ("success", 6)


async def test_a_body_that_is_no_gzip_is_no_failure(serve, poll):
    server = await serve(answer(200, b"plain", "Content-Encoding: gzip"))
    outcome = await poll(server.url())
    assert (outcome.status, outcome.size_bytes) == ("success", 5)


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_a_body_may_end_with_the_connection(serve, poll, head):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(head + b"until the end")

    server = await serve(script)
    outcome = await poll(server.url())
    assert (outcome.status, outcome.size_bytes) == ("success", 13)


async def test_a_large_head_is_normal(serve, poll):
    headers = [f"X-Header-{n:03}: {'v' * 290}" for n in range(200)]
    server = await serve(answer(200, b"ok", *headers))
    assert (await poll(server.url())).status == "success"


async def test_one_large_header_is_normal(serve, poll):
    server = await serve(answer(200, b"ok", "X-Large: " + "v" * 60_000))
    assert (await poll(server.url())).status == "success"


async def test_a_head_byte_by_byte(serve, poll):
    async def script(peer: Peer) -> None:
        await peer.request()
        for byte in answer(200, b"slowly"):
            peer.send(bytes([byte]))
            await peer.writer.drain()
            await asyncio.sleep(0)

    server = await serve(script)
    outcome = await poll(server.url())
    assert (outcome.status, outcome.size_bytes) == ("success", 6)


async def test_an_answer_before_the_request_is_through(serve, poll):
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.send(answer(413, b"too large", "Connection: close"))
        await peer.gone()

    server = await serve(script)
    outcome = await poll(server.url(), method="POST", body="x" * 65_536, expected_status="413")
    assert (outcome.status, outcome.status_code) == ("success", 413)


async def test_a_connection_whose_request_is_not_through_is_not_used_again(serve, poll):
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.transport.pause_reading()
        peer.send(answer(413, b"too large"))
        await over.wait()
        peer.writer.transport.resume_reading()
        await peer.gone()

    over = asyncio.Event()
    server = await serve(script)
    outcome = await poll(server.url(), method="POST", body="x" * 20_000_000, expected_status="413")
    over.set()
    assert (outcome.status, outcome.status_code) == ("success", 413)
    await until(lambda: server.open == 0)


# ---- the body limit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [99, 100])
async def test_a_body_up_to_the_limit_is_read_whole(serve, make_prober, size):
    prober = make_prober(body_limit_bytes=100)
    server = await serve(answer(200, b"x" * size))
    assert (await probe(prober, spec(server.url()))).size_bytes == size
    assert (await probe(prober, spec(server.url()))).connection_reused


async def test_reading_ends_at_the_limit(serve, make_prober):
    async def endless(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            peer.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            await peer.writer.drain()

    prober = make_prober(body_limit_bytes=10_000)
    server = await serve(endless)
    outcome = await probe(prober, spec(server.url()))
    check(outcome)
    assert (outcome.status, outcome.size_bytes, outcome.error_code) == ("success", 10_000, None)
    await until(lambda: server.open == 0)
    assert not (await probe(prober, spec(server.url()))).connection_reused


# ---- the ordinary world -------------------------------------------------------------------------------------------


async def test_an_ordinary_server(poll):
    async def echo(request: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.json_response({"method": request.method, "got": await request.text()})

    app = aiohttp.web.Application()
    app.router.add_route("*", "/{tail:.*}", echo)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        for method in ("GET", "POST", "HEAD", "PATCH"):
            outcome = await poll(f"http://127.0.0.1:{port}/x", method=method, body=None if method == "HEAD" else "b")
            assert outcome.status == "success"
        assert outcome.connection_reused
    finally:
        await runner.cleanup()


async def test_many_at_once_each_have_their_own_outcome(serve, prober):
    async def script(peer: Peer) -> None:
        while request := await peer.request():
            peer.send(answer(200, b"x" * int(request.target[1:])))

    server = await serve(script)
    outcomes = await asyncio.gather(*(probe(prober, spec(server.url(f"/{n}"), number=n)) for n in range(200)))
    assert [outcome.size_bytes for outcome in outcomes] == list(range(200))
    await until(lambda: prober.in_flight == 0)
