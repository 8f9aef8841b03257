import pytest
from probe_scripts import spec

from worker.probe.errors import ERROR_CODES, MEANINGS, MESSAGE_MAX, printable
from worker.probe.request import Origin, first_request, parse_target, redirected_request, resolve_location


@pytest.mark.parametrize(
    ("url", "origin", "authority", "target"),
    [
        ("http://h", ("http", "h", 80), "h", "/"),
        ("http://h?", ("http", "h", 80), "h", "/?"),
        ("HTTP://H:80/", ("http", "h", 80), "H", "/"),
        ("https://h:443/a", ("https", "h", 443), "h", "/a"),
        ("https://h:80/a", ("https", "h", 80), "h:80", "/a"),
        ("http://h:8080?q=1", ("http", "h", 8080), "h:8080", "/?q=1"),
        ("http://h/a%2Fb/../c?z=1&a=%7E+&b", ("http", "h", 80), "h", "/a%2Fb/../c?z=1&a=%7E+&b"),
        ("http://h/p#frag?no", ("http", "h", 80), "h", "/p"),
        ("http://h/'\"<>|{}[]^`\\", ("http", "h", 80), "h", "/'\"<>|{}[]^`\\"),
        ("http://h/é?ü=1", ("http", "h", 80), "h", "/%C3%A9?%C3%BC=1"),
        ("http://bücher.test/", ("http", "xn--bcher-kva.test", 80), "xn--bcher-kva.test", "/"),
        ("http://[::1]:81/", ("http", "::1", 81), "[::1]:81", "/"),
        ("http://[fe80::1%25lo]/", ("http", "fe80::1%lo", 80), "[fe80::1]", "/"),
        ("http://u:p@h/", ("http", "h", 80), "h", "/"),
    ],
)
def test_a_url_is_taken_as_written(url, origin, authority, target):
    parsed = parse_target(url)
    assert parsed.origin == Origin(*origin)
    assert parsed.authority == authority
    assert parsed.request_target == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h/p",
        "ftp://h/",
        "http:///p",
        "http://:80/",
        "http://h:x/",
        "http://h:0/",
        "http://h:65536/",
        "http://[::1/",
        "http://[zz]/",
        "http://[::1]x/",
        "http://a b/",
        "http://h/a b",
        "http://h/\r\nX: 1",
        "http://a..b/",
        "http://.a/",
        "http://a%41/",
    ],
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError):
        parse_target(url)


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("http://other/x?s=%2F&a", "http://other/x?s=%2F&a"),
        ("//other/x", "http://other/x"),
        ("/x#f", "http://h:81/x"),
        ("y?q", "http://h:81/a/y?q"),
        ("../y", "http://h:81/y"),
        ("./y/./../z/..", "http://h:81/a/"),
        ("/../../y", "http://h:81/y"),
        ("?n=1", "http://h:81/a/b?n=1"),
        ("#f", "http://h:81/a/b?old"),
        (" /with space ", "http://h:81/with%20space"),
        ("/\udcc3\udca9", "http://h:81/%C3%A9"),
    ],
)
def test_a_location_is_resolved(location, leads_to):
    resolved = resolve_location(parse_target("http://h:81/a/b?old"), location)
    expected = parse_target(leads_to)
    assert (resolved.origin, resolved.request_target) == (expected.origin, expected.request_target)


@pytest.mark.parametrize(
    "location", ["ftp://h/", "javascript:alert(1)", "http://", "http:/x", "//", "/a\x01b", "//h:99999/"]
)
def test_a_location_that_leads_nowhere_is_refused(location):
    with pytest.raises(ValueError):
        resolve_location(parse_target("http://h/"), location)


def test_the_head_has_one_host_the_given_headers_and_the_defaults():
    request = first_request(spec("http://h:81/p", headers=(("X-b", "2"), ("x-A", "1"), ("X-b", "3"))))
    lines = request.wire.decode().split("\r\n")
    assert lines[:5] == ["GET /p HTTP/1.1", "Host: h:81", "X-b: 2", "x-A: 1", "X-b: 3"]
    assert lines[5].startswith("User-Agent: ringpoll/")
    assert lines[6:] == ["Accept: */*", "", ""]


def test_given_headers_replace_the_defaults():
    headers = (("accept", "text/x"), ("USER-AGENT", "mine"), ("hOST", "virtual"))
    request = first_request(spec("http://h/", headers=headers))
    assert request.wire == b"GET / HTTP/1.1\r\nhOST: virtual\r\naccept: text/x\r\nUSER-AGENT: mine\r\n\r\n"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"method": "GET /"}, "method"),
        ({"method": ""}, "method"),
        ({"headers": (("X", "a\r\nY: b"),)}, "header X"),
        ({"headers": (("X", "a\x00"),)}, "header X"),
        ({"headers": (("X Y", "a"),)}, "header name"),
        ({"headers": (("", "a"),)}, "header name"),
        ({"headers": (("Host", "a"), ("host", "b"))}, "more than one Host"),
        ({"headers": (("Transfer-Encoding", "chunked"),)}, "Transfer-Encoding"),
        ({"headers": (("Content-Length", "3"),), "body": "four"}, "Content-Length"),
    ],
)
def test_fields_that_make_no_request_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        first_request(spec("http://h/", **fields))


@pytest.mark.parametrize("value", ["4", " 4", "4 ", "\t4"])
def test_a_given_length_may_have_spaces_around_it(value):
    request = first_request(spec("http://h/", headers=(("Content-Length", value),), body="four"))
    assert f"\r\nContent-Length: {value}\r\n".encode() in request.wire


@pytest.mark.parametrize("rest", ["a..b/", "[zz]/", "[::1]x/", "h:99999/", "h/ x", "/"])
def test_words_about_a_url_do_not_repeat_its_password(rest):
    for read in (parse_target, lambda url: resolve_location(parse_target("http://h/"), url)):
        with pytest.raises(ValueError) as caught:
            read(f"http://user:canary@{rest}".replace("h/ x", "h/\x01"))
        assert "canary" not in str(caught.value)


def follow(fields, status, location):
    project = spec("http://h/p", **fields)
    own = first_request(project)
    return redirected_request(project, own.target, own, status, location)


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
        (301, "PUT", "PUT"),
        (302, "DELETE", "DELETE"),
        (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"),
        (302, "HEAD", "HEAD"),
        (301, "GET", "GET"),
    ],
)
def test_what_a_redirect_makes_of_the_method(status, method, becomes):
    body = None if method == "HEAD" else "data"
    request = follow({"method": method, "body": body, "headers": (("Content-Type", "text/x"),)}, status, "/q")
    assert request.method == becomes
    kept = method == becomes
    assert (b"Content-Type: text/x" in request.wire) == kept
    assert request.wire.endswith(b"\r\n\r\ndata") == (kept and body is not None)


def test_a_dropped_body_stays_dropped():
    project = spec("http://h/p", method="POST", body="data", headers=(("Content-Type", "text/x"),))
    own = first_request(project)
    second = redirected_request(project, own.target, own, 303, "/q")
    third = redirected_request(project, own.target, second, 307, "/r")
    assert third.method == "GET"
    assert b"data" not in third.wire
    assert b"Content-" not in third.wire


SECRETS = (
    ("Authorization", "s"),
    ("Cookie", "s"),
    ("Proxy-Authorization", "s"),
    ("X-Api-Key", "s"),
    ("Host", "virtual"),
    ("Accept-Language", "de"),
)


@pytest.mark.parametrize("location", ["https://h/p", "http://h:81/p", "http://other/p", "//other/"])
def test_secrets_stay_with_the_origin(location):
    wire = follow({"headers": SECRETS}, 302, location).wire
    assert b": s\r\n" not in wire
    assert b"virtual" not in wire
    assert b"Accept-Language: de\r\n" in wire


def test_secrets_come_along_within_the_origin_and_back_to_it():
    project = spec("http://u:p@h/p", headers=SECRETS[1:])
    own = first_request(project)
    away = redirected_request(project, own.target, own, 302, "http://other/")
    assert b"Authorization" not in away.wire
    home = redirected_request(project, own.target, away, 302, "http://H:80/back")
    for request in (own, redirected_request(project, own.target, own, 302, "/x"), home):
        assert b"Cookie: s\r\n" in request.wire
        assert b"Host: virtual\r\n" in request.wire
        assert b"\r\nAuthorization: Basic dTpw\r\n" in request.wire


def test_every_code_has_a_meaning():
    assert set(MEANINGS) == set(ERROR_CODES)


@pytest.mark.parametrize("text", ["a\x00b\nc\x1b[31m", "é" * 5_000, "\udcff", "x" * 501])
def test_messages_are_printable_lines_of_bounded_length(text):
    line = printable(text)
    assert line.isprintable()
    assert 0 < len(line) <= MESSAGE_MAX
