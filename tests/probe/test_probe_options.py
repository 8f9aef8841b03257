"""HTTP options of a project: what each changes, and that no connection is shared between different ones.

Holds for every engine.
"""

import asyncio
import base64
import contextlib
import os
import ssl
import time
from pathlib import Path

import msgspec
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from probe_scripts import Peer, answer, check, free_port, lookup_of, mute_port, redirect, spec, until

from cluster.http_options import OPTION_NAMES, HttpOptions
from worker.probe import tls_contexts
from worker.probe.connection_settings import TlsSettings
from worker.probe.interface import probe
from worker.probe.request import first_request, redirected_request

NEVER = HttpOptions(connection_reuse="never")


@pytest.fixture
def ca_file(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def client_files(authority, tmp_path):
    """Paths of a certificate and of its key."""
    issued = authority.issue_cert("client.test")
    certificate, key = tmp_path / "client.pem", tmp_path / "client.key"
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return str(certificate), str(key)


@pytest.fixture
def asking_tls(authority, server_tls):
    """Of a server that wants a certificate of its client."""
    server_tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server_tls)
    return server_tls


def routed(routes):
    async def script(peer: Peer) -> None:
        while request := await peer.request():
            peer.send(routes[request.target])

    return script


# ---- the key under which connections are kept ---------------------------------------------------------------------

CHANGES_THE_CONNECTION = {
    "verify_tls": False,
    "ca_file": "/ca.pem",
    "client_cert_file": "/c.pem",
    "client_key_file": "/k.pem",
    "server_name": "a.test",
    "ip_version": 4,
    "connection_reuse": "never",
    "proxy": "http://p:1",
}
CHANGES_THE_POLL_ONLY = {
    "body_limit_bytes": 1,
    "connect_timeout_ms": 1,
    "user_agent": "x",
    "basic_auth": "u:p",
    "bearer_token": "t",
    "retries": 1,
    "retry_delay_ms": 1,
}
STAYS_AT_HOME = {"client_cert_file", "client_key_file", "server_name"}
PLAYS_A_PART_WITHOUT_TLS = {"ip_version", "connection_reuse", "proxy"}


def test_each_option_is_part_of_the_key_or_is_none_of_the_connections_business():
    assert {*CHANGES_THE_CONNECTION, *CHANGES_THE_POLL_ONLY} == set(OPTION_NAMES)


@pytest.mark.parametrize(("name", "value"), (CHANGES_THE_CONNECTION | CHANGES_THE_POLL_ONLY).items())
def test_connections_are_shared_only_where_nothing_about_them_differs(name, value):
    options = HttpOptions(**{name: value})
    ordinary = spec("https://a.test/")
    own = spec("https://a.test/", options=options)
    first, key = first_request(own), first_request(own).origin
    assert (key == first_request(ordinary).origin) is (name in CHANGES_THE_POLL_ONLY)
    assert first_request(own).origin is key
    plain = first_request(spec("http://a.test/", options=options)).origin
    assert (plain == first_request(spec("http://a.test/")).origin) is (name not in PLAYS_A_PART_WITHOUT_TLS)
    away = redirected_request(own, first.target, first, 302, "https://b.test/").origin
    shared_away = name in CHANGES_THE_POLL_ONLY or name in STAYS_AT_HOME
    assert (away == first_request(spec("https://b.test/")).origin) is shared_away
    assert redirected_request(own, first.target, first, 302, "/b").origin is key


# ---- the connection's use -----------------------------------------------------------------------------------------


async def test_a_connection_that_is_not_to_be_used_again_is_not(serve, poll):
    server = await serve(answer())
    for number in range(1, 4):
        outcome = await poll(server.url(), options=NEVER)
        assert (outcome.status, outcome.connection_reused) == ("success", False)
        assert server.connections == number
        assert server.requests[-1].header("Connection") == "close"
        await until(lambda: server.open == 0)


async def test_a_connection_that_waits_is_none_for_who_wants_new_ones(serve, poll):
    server = await serve(answer())
    assert (await poll(server.url())).status == "success"
    assert (await poll(server.url(), options=NEVER, number=2)).connection_reused is False
    assert (await poll(server.url())).connection_reused is True
    assert server.connections == 2
    assert server.requests[0].header("Connection") is None


async def test_a_redirect_takes_a_new_connection_too(serve, poll):
    server = await serve(routed({"/a": redirect(302, "/b"), "/b": answer()}))
    assert (await poll(server.url("/a"), options=NEVER)).status == "success"
    assert server.connections == 2


async def test_the_projects_own_connection_header_stays(serve, poll):
    server = await serve(answer())
    outcome = await poll(server.url(), options=NEVER, headers=(("Connection", "keep-alive"),))
    assert outcome.status == "success"
    assert server.requests[0].header("Connection") == "keep-alive"
    await until(lambda: server.open == 0)


@pytest.mark.parametrize(("limit", "read"), [(10, 10), (5_000, 3_000)])
async def test_a_body_limit_of_its_own(serve, make_prober, limit, read):
    prober = make_prober(body_limit_bytes=1_000)
    server = await serve(answer(200, b"x" * 3_000))
    own = await probe(prober, spec(server.url(), options=HttpOptions(body_limit_bytes=limit)))
    check(own)
    assert (own.status, own.size_bytes) == ("success", read)
    assert (await probe(prober, spec(server.url(), number=2))).size_bytes == 1_000
    only_other = spec(server.url(), number=3, options=HttpOptions(user_agent="x"))
    assert (await probe(prober, only_other)).size_bytes == 1_000


# ---- what goes out ------------------------------------------------------------------------------------------------

BASIC = base64.b64encode("us er:pä:ss".encode()).decode()


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (HttpOptions(basic_auth="us er:pä:ss"), f"Basic {BASIC}"),
        (HttpOptions(bearer_token="abc.DEF=="), "Bearer abc.DEF=="),
        (HttpOptions(), None),
    ],
)
async def test_authorization_goes_to_the_own_origin_only(serve, poll, options, sent):
    other = await serve(answer())
    own = await serve(routed({"/a": redirect(302, "/b"), "/b": redirect(307, other.url("/c"))}))
    assert (await poll(own.url("/a"), options=options)).status == "success"
    assert [request.header("Authorization") for request in own.requests] == [sent, sent]
    assert other.requests[0].header("Authorization") is None


async def test_authorization_is_there_again_on_the_way_back(serve, poll):
    own = await serve(answer(200, b"to be replaced"))
    other = await serve(redirect(302, own.url("/home")))
    own.script = routed({"/a": redirect(302, other.url("/b")), "/home": answer()})
    assert (await poll(own.url("/a"), options=HttpOptions(bearer_token="t"))).status == "success"
    assert [request.header("Authorization") for request in own.requests] == ["Bearer t", "Bearer t"]
    assert other.requests[0].header("Authorization") is None


async def test_a_user_agent_of_its_own_goes_everywhere(serve, poll):
    other = await serve(answer())
    own = await serve(redirect(302, other.url()))
    assert (await poll(own.url(), options=HttpOptions(user_agent="Probe/1 (ü)"))).status == "success"
    for server in (own, other):
        assert "User-Agent: Probe/1 (ü)" in server.requests[0].head.decode().split("\r\n")
        assert server.requests[0].head.count(b"User-Agent") == 1


# ---- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign():
    """An authority the prober does not know."""
    return trustme.CA()


@pytest.fixture
def foreign_tls(foreign):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    foreign.issue_cert("127.0.0.1", "good.test").configure_cert(context)
    return context


async def test_any_certificate_will_do_where_none_is_verified(serve, poll, foreign_tls):
    server = await serve(answer(), foreign_tls)
    assert (await poll(server.url())).error_code == "tls_verify"
    lax = HttpOptions(verify_tls=False)
    outcome = await poll(server.url("/", "other.test"), options=lax)
    assert outcome.status == "success"
    assert outcome.tls_ms > 0
    assert (await poll(server.url("/", "other.test"), options=lax)).connection_reused
    # The connection made without looking is none for who looks.
    assert (await poll(server.url("/", "other.test"), number=2)).error_code == "tls_verify"


async def test_an_authority_of_its_own_is_the_only_one(serve, poll, foreign, foreign_tls, server_tls, tmp_path):
    theirs, ours = await serve(answer(), foreign_tls), await serve(answer(), server_tls)
    path = tmp_path / "foreign.pem"
    foreign.cert_pem.write_to_path(str(path))
    trusting = HttpOptions(ca_file=str(path))
    assert (await poll(theirs.url(), options=trusting)).status == "success"
    assert (await poll(theirs.url("/", "other.test"), options=trusting)).error_code == "tls_verify"
    assert (await poll(ours.url(), options=trusting)).error_code == "tls_verify"
    assert (await poll(ours.url(), number=2)).status == "success"
    assert (await poll(theirs.url(), number=2)).error_code == "tls_verify"


@pytest.mark.parametrize("files", ["two", "one"])
async def test_a_client_certificate(serve, poll, asking_tls, ca_file, client_files, tmp_path, files):
    certificate, key = client_files
    if files == "one":
        both = tmp_path / "both.pem"
        both.write_bytes(b"".join(Path(path).read_bytes() for path in (key, certificate)))
        options = HttpOptions(ca_file=ca_file, client_cert_file=str(both))
    else:
        options = HttpOptions(ca_file=ca_file, client_cert_file=certificate, client_key_file=key)
    subjects = []

    async def script(peer: Peer) -> None:
        subjects.append(peer.writer.get_extra_info("peercert")["subjectAltName"])
        while await peer.request():
            peer.send(answer())

    server = await serve(script, asking_tls)
    assert (await poll(server.url(), options=options)).status == "success"
    assert subjects == [(("DNS", "client.test"),)]
    # Who has no certificate does not get the connection of one who has.
    without = await poll(server.url(), options=HttpOptions(ca_file=ca_file), number=2)
    assert without.status == "failure"
    assert without.error_code in {"tls_other", "reset", "closed"}  # not every server says why
    assert len(server.requests) == 1


async def test_a_redirect_elsewhere_keeps_whom_to_trust_and_not_who_we_are(
    serve, poll, foreign, foreign_tls, client_files, tmp_path
):
    path = tmp_path / "foreign.pem"
    foreign.cert_pem.write_to_path(str(path))
    foreign_tls.verify_mode = ssl.CERT_OPTIONAL
    foreign_tls.load_verify_locations(cadata=foreign.cert_pem.bytes().decode())
    issued = foreign.issue_cert("client.test")
    certificate = tmp_path / "c.pem"
    certificate.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    seen = []
    foreign_tls.sni_callback = lambda _tls, name, _context: seen.append(name)
    certificates = []

    def script(reply):
        async def run(peer: Peer) -> None:
            certificates.append(bool(peer.writer.get_extra_info("peercert")))
            await peer.request()
            peer.send(reply)
            await peer.gone()

        return run

    other = await serve(script(answer()), foreign_tls)
    own = await serve(script(redirect(302, other.url("/", "good.test"))), foreign_tls)
    options = HttpOptions(ca_file=str(path), client_cert_file=str(certificate), server_name="good.test")
    options = msgspec.structs.replace(options, connection_reuse="never")
    outcome = await poll(own.url("/", "other.test"), options=options)
    assert outcome.status == "success"
    assert certificates == [True, False]
    assert seen == ["good.test", "good.test"]
    own.script = script(redirect(302, other.url("/", "other.test")))
    assert (await poll(own.url("/", "other.test"), options=options)).error_code == "tls_verify"
    assert seen[2:] == ["good.test", "other.test"]


async def test_another_server_name_is_asked_for_and_verified(serve, poll, server_tls):
    asked = []
    server_tls.sni_callback = lambda _tls, name, _context: asked.append(name)
    server = await serve(answer(), server_tls)
    named = HttpOptions(server_name="good.test")
    outcome = await poll(server.url("/", "other.test"), options=named)
    assert outcome.status == "success"
    assert server.requests[0].header("Host") == f"other.test:{server.port}"
    assert (await poll(server.url("/", "other.test"), number=2)).error_code == "tls_verify"
    wrong = HttpOptions(server_name="wrong.test")
    assert (await poll(server.url("/", "good.test"), number=3, options=wrong)).error_code == "tls_verify"
    assert asked == ["good.test", "other.test", "wrong.test"]


async def test_a_file_that_is_not_there_says_nothing_of_the_target(serve, poll, server_tls, tmp_path):
    server = await serve(answer(), server_tls)
    for options in (
        HttpOptions(ca_file=str(tmp_path / "none.pem")),
        HttpOptions(ca_file=str(tmp_path)),
        HttpOptions(verify_tls=False, client_cert_file=str(tmp_path / "none.pem")),
    ):
        outcome = await poll(server.url(), options=options)
        assert (outcome.status, outcome.error_code) == ("unknown", "local")
        assert str(tmp_path) in outcome.error_message
    assert server.connections == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_that_may_not_be_read(serve, poll, server_tls, ca_file):
    os.chmod(ca_file, 0)  # noqa: PTH101
    server = await serve(answer(), server_tls)
    outcome = await poll(server.url(), options=HttpOptions(ca_file=ca_file))
    assert (outcome.status, outcome.error_code) == ("unknown", "local")


@pytest.mark.parametrize("wrong", ["no authority", "no certificate", "no key", "another key", "encrypted key"])
async def test_a_file_that_is_not_what_it_should_be(
    serve, poll, server_tls, authority, client_files, tmp_path, wrong, ca_file
):
    certificate, key = client_files
    bad = tmp_path / "bad.pem"
    bad.write_text("no PEM\n")
    if wrong == "encrypted key":
        private = serialization.load_pem_private_key(Path(key).read_bytes(), None)
        secret = serialization.BestAvailableEncryption(b"secret")
        traditional = serialization.PrivateFormat.TraditionalOpenSSL
        bad.write_bytes(private.private_bytes(serialization.Encoding.PEM, traditional, secret))
    if wrong == "another key":
        authority.issue_cert("x.test").private_key_pem.write_to_path(str(bad))
    options = {
        "no authority": HttpOptions(ca_file=str(bad)),
        "no certificate": HttpOptions(ca_file=ca_file, client_cert_file=str(bad), client_key_file=key),
        "no key": HttpOptions(ca_file=ca_file, client_cert_file=certificate),
    }.get(wrong, HttpOptions(ca_file=ca_file, client_cert_file=certificate, client_key_file=str(bad)))
    server = await serve(answer(), server_tls)
    outcome = await poll(server.url(), options=options)
    assert (outcome.status, outcome.error_code) == ("failure", "invalid_request")
    assert str(certificate if wrong == "no key" else bad) in outcome.error_message
    assert server.connections == 0


async def test_a_file_that_changes_is_read_again(serve, poll, server_tls, foreign, authority, tmp_path, monkeypatch):
    monkeypatch.setattr(tls_contexts, "CHECK_S", 0.0)
    path = tmp_path / "ca.pem"
    options = HttpOptions(ca_file=str(path), connection_reuse="never")
    server = await serve(answer(), server_tls)
    assert (await poll(server.url(), options=options)).error_code == "local"
    foreign.cert_pem.write_to_path(str(path))
    assert (await poll(server.url(), options=options)).error_code == "tls_verify"
    authority.cert_pem.write_to_path(str(path))
    assert (await poll(server.url(), options=options)).status == "success"


async def test_a_context_is_shared_and_its_files_are_looked_at_once_in_a_while(
    serve, prober, server_tls, ca_file, monkeypatch
):
    monkeypatch.setattr(tls_contexts, "CHECK_S", 3_600.0)
    loads = []
    real = tls_contexts.load
    monkeypatch.setattr(tls_contexts, "load", lambda *given: loads.append(given) or real(*given))
    server = await serve(answer(), server_tls)
    options = [HttpOptions(ca_file=ca_file, connection_reuse="never", user_agent=f"n{n}") for n in range(20)]
    outcomes = await asyncio.gather(
        *(probe(prober, spec(server.url(), number=n, options=each)) for n, each in enumerate(options))
    )
    assert {outcome.status for outcome in outcomes} == {"success"}
    assert len(loads) == 1


@pytest.mark.parametrize("files", [(), ("ca_file",), ("client_cert_file",), ("ca_file", "client_cert_file")])
def test_all_contexts_verify_but_those_that_must_not(authority, tmp_path, files):
    both = tmp_path / "both.pem"
    both.write_bytes(authority.issue_cert("client.test").private_key_and_cert_chain_pem.bytes())
    given = dict.fromkeys(files, str(both))
    careful = tls_contexts.load(TlsSettings(**given), None).context
    assert (careful.verify_mode, careful.check_hostname) == (ssl.CERT_REQUIRED, True)
    careless = tls_contexts.load(TlsSettings(verify=False, **given), None).context
    assert (careless.verify_mode, careless.check_hostname) == (ssl.CERT_NONE, False)


async def test_contexts_are_bounded(monkeypatch):
    monkeypatch.setattr(tls_contexts, "CONTEXTS_MAX", 2)
    contexts = tls_contexts.TlsContexts()
    for number in range(5):
        with contextlib.suppress(tls_contexts.ProbeError):
            await contexts.get(TlsSettings(ca_file=f"/none/{number}"))
    assert len(contexts._loaded) == 2
    contexts.close()


# ---- IP version ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "address"), [(4, "127.0.0.1"), (6, "::1")])
@pytest.mark.parametrize("secure", [False, True])
async def test_an_ip_version(serve, make_prober, server_tls, version, address, secure):
    try:
        server = await serve(answer(), server_tls if secure else None, address)
    except OSError:
        pytest.skip("no IPv6 on this machine")
    prober = make_prober(lookup=lookup_of("::1", "127.0.0.1"))
    url = f"http{'s' if secure else ''}://good.test:{server.port}/"
    outcome = await probe(prober, spec(url, options=HttpOptions(ip_version=version)))
    check(outcome)
    assert (outcome.status, outcome.remote_address) == ("success", address)
    # The one that is not served is not fallen back from, and the other's connection is not taken.
    outcome = await probe(prober, spec(url, number=2, options=HttpOptions(ip_version=10 - version)))
    check(outcome)
    assert (outcome.status, outcome.error_code) == ("failure", "connect_refused")


@pytest.mark.parametrize(("host", "version"), [("good.test", 6), ("127.0.0.1", 6), ("[::1]", 4)])
async def test_no_address_of_that_version(serve, poll, host, version):
    outcome = await poll(f"http://{host}:{free_port()}/", options=HttpOptions(ip_version=version))
    assert (outcome.status, outcome.error_code) == ("failure", "dns")
    assert f"IPv{version}" in outcome.error_message


# ---- time-out of a connect ----------------------------------------------------------------------------------------


@pytest.fixture
def full_port():
    """Of a listener that takes no connection any more: a connect to it hangs."""
    with mute_port() as port:
        yield port


async def test_a_connect_that_takes_too_long(poll, full_port):
    began_at = time.monotonic()
    outcome = await poll(
        f"http://127.0.0.1:{full_port}/", options=HttpOptions(connect_timeout_ms=100), timeout_ms=60_000
    )
    assert (outcome.status, outcome.error_code) == ("failure", "connect_timeout")
    assert "connect time-out of 0.1 s" in outcome.error_message
    assert 0.098 <= time.monotonic() - began_at < 5.0  # a loop's timers may be early by a millisecond


async def test_a_handshake_that_takes_too_long(serve, poll):
    async def mute(peer: Peer) -> None:
        await peer.gone()

    server = await serve(mute)
    options = HttpOptions(connect_timeout_ms=100)
    outcome = await poll(f"https://127.0.0.1:{server.port}/", options=options, timeout_ms=60_000)
    assert (outcome.status, outcome.error_code) == ("failure", "connect_timeout")
    assert "TLS handshake" in outcome.error_message
    assert outcome.connect_ms is not None
    await until(lambda: server.open == 0)


async def test_the_time_out_of_all_comes_first_when_it_is_shorter(poll, full_port):
    options = HttpOptions(connect_timeout_ms=60_000)
    outcome = await poll(f"http://127.0.0.1:{full_port}/", options=options, timeout_ms=100)
    assert outcome.error_code == "connect_timeout"
    assert "connect time-out" not in outcome.error_message


async def test_an_answer_may_take_longer_than_a_connect(serve, poll):
    async def slow(peer: Peer) -> None:
        await peer.request()
        answers_at = time.monotonic() + 0.3
        while time.monotonic() < answers_at:  # longer than the connect may take
            await asyncio.sleep(0.01)
        peer.send(answer())
        await peer.gone()

    server = await serve(slow)
    assert (await poll(server.url(), options=HttpOptions(connect_timeout_ms=200))).status == "success"


async def test_a_connect_time_out_noticed_too_late_is_ours(serve, poll):
    async def mute(peer: Peer) -> None:
        await peer.gone()

    server = await serve(mute)
    polling = asyncio.ensure_future(
        poll(f"https://127.0.0.1:{server.port}/", options=HttpOptions(connect_timeout_ms=100), timeout_ms=60_000)
    )
    await until(lambda: server.open)
    goes_on_at = time.monotonic() + 0.8
    while time.monotonic() < goes_on_at:
        time.sleep(0.01)  # the loop stands still
    outcome = await polling
    assert (outcome.status, outcome.error_code) == ("unknown", "local")


# ---- proxy --------------------------------------------------------------------------------------------------------


async def relay(peer: Peer, port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source, sink):
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                sink.write(data)
        sink.close()

    await asyncio.gather(copy(peer.reader, writer), copy(reader, peer.writer))


async def test_a_plain_request_by_a_proxy(serve, poll):
    proxy = await serve(answer(200, b"of the proxy"))
    options = HttpOptions(proxy=f"http://us%40er:pw@127.0.0.1:{proxy.port}", basic_auth="a:b")
    for reused in (False, True):
        outcome = await poll("http://nowhere.test:81/a%2Fb?c", options=options)
        assert (outcome.status, outcome.connection_reused) == ("success", reused)
        assert outcome.remote_address == "127.0.0.1"
        request = proxy.requests[-1]
        assert request.target == "http://nowhere.test:81/a%2Fb?c"
        assert request.header("Host") == "nowhere.test:81"
        assert request.header("Proxy-Authorization") == f"Basic {base64.b64encode(b'us@er:pw').decode()}"
        assert request.header("Authorization") == f"Basic {base64.b64encode(b'a:b').decode()}"
    assert (await poll("http://nowhere.test:81/", number=2)).error_code == "dns"


async def test_a_tls_request_by_a_proxy(serve, poll, server_tls):
    server = await serve(answer(), server_tls)

    async def script(peer: Peer) -> None:
        request = await peer.request()
        assert request.target == f"good.test:{server.port}"
        peer.send(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
        await relay(peer, server.port)

    proxy = await serve(script)
    options = HttpOptions(proxy=f"http://u:p@127.0.0.1:{proxy.port}/")
    for reused in (False, True):
        outcome = await poll(server.url("/x", "good.test"), options=options)
        assert (outcome.status, outcome.connection_reused) == ("success", reused)
        assert outcome.remote_address == "127.0.0.1"
    assert outcome.dns_ms is None
    (request,) = proxy.requests
    assert request.method == "CONNECT"
    assert request.header("Host") == f"good.test:{server.port}"
    assert request.header("Proxy-Authorization") == f"Basic {base64.b64encode(b'u:p').decode()}"
    assert [each.target for each in server.requests] == ["/x", "/x"]
    assert server.requests[0].header("Proxy-Authorization") is None
    # Nobody else gets the connection through the proxy, nor its words the wrong certificate.
    assert (await poll(server.url("/x", "good.test"), number=2)).connection_reused is False
    assert (await poll(server.url("/", "other.test"), number=3)).error_code == "tls_verify"


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "connect_unreachable", "407"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\nsorry", "connect_unreachable", "502"),
        (b"SSH-2.0-x\r\n\r\n", "protocol", "no valid HTTP answer"),
        (b"HTTP/1.1 200 OK\r\n\r\nmore", "protocol", "more than its answer"),
        (b"x" * 100_000, "protocol", "no end"),
        (b"HTTP/1.1 200 OK\r\n", "closed", "before the proxy had answered"),
    ],
)
async def test_a_proxy_that_does_not_lead_there(serve, poll, sent, code, words):
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(sent)
        await peer.writer.drain()

    proxy = await serve(script)
    outcome = await poll("https://good.test/", options=HttpOptions(proxy=f"http://127.0.0.1:{proxy.port}"))
    assert (outcome.status, outcome.error_code) == ("failure", code)
    assert words in outcome.error_message
    assert f"good.test:443 by proxy 127.0.0.1:{proxy.port}" in outcome.error_message
    await until(lambda: proxy.open == 0)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_not_there(poll, scheme):
    port = free_port()
    outcome = await poll(f"{scheme}://good.test/", options=HttpOptions(proxy=f"http://u:secret@127.0.0.1:{port}"))
    assert outcome.error_code == "connect_refused"
    assert f"by proxy 127.0.0.1:{port}" in outcome.error_message
    assert "secret" not in outcome.error_message


@pytest.mark.parametrize("limit", ["connect_timeout_ms", "timeout_ms"])
async def test_a_proxy_that_never_answers(serve, poll, limit):
    async def mute(peer: Peer) -> None:
        await peer.gone()

    proxy = await serve(mute)
    given = {"proxy": f"http://127.0.0.1:{proxy.port}"}
    if limit == "connect_timeout_ms":
        outcome = await poll("https://good.test/", options=HttpOptions(**given, connect_timeout_ms=100))
    else:
        outcome = await poll("https://good.test/", options=HttpOptions(**given), timeout_ms=100)
    assert (outcome.status, outcome.error_code) == ("failure", "connect_timeout")
    assert outcome.remote_address == "127.0.0.1"
    await until(lambda: proxy.open == 0)


async def test_a_redirect_goes_by_the_same_proxy(serve, poll):
    proxy = await serve(
        routed({"http://a.test/": redirect(302, "http://b.test/x"), "http://b.test/x": answer(200, b"there")})
    )
    outcome = await poll("http://a.test/", options=HttpOptions(proxy=f"http://127.0.0.1:{proxy.port}"))
    assert (outcome.status, outcome.size_bytes) == ("success", 5)
