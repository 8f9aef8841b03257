"""What hypothesis makes answers and projects of: near to what is right, where mistakes are read differently."""

import itertools

from hypothesis import strategies as st

from cluster.project import FIELD_NAMES, ProjectSpec
from tests.fuzz.answers import ENDS, METHODS, Script

LINE_ENDS = (b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\n\r", b"")
STATUS_LINES = (
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 302 Found",
    b"HTTP/1.1 307 Temporary Redirect",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 103 Early Hints",
    b"HTTP/1.1 101 Switching Protocols",
    b"HTTP/1.1 500 No",
    b"HTTP/2 200",
    b"HTTP/1.1 99999 X",
    b"HTTP/1.1  200 OK",
    b"http/1.1 200 OK",
    b"ICY 200 OK",
    b"HTTP/9.9 200 OK",
    b"HTTP/1.1 2x0 OK",
)
HEADERS = (
    b"Content-Length: 2",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: -1",
    b"Content-Length: +2",
    b"Content-Length: 2, 2",
    b"Content-Length: 0x2",
    b"Content-Length:",
    b"Content-Length: 99999999999999999999",
    b"Content-Length : 2",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: chunked ",
    b"transfer-encoding:\tchunked",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: upgrade",
    b"Upgrade: websocket",
    b"Location: /again",
    b"Location: http://b.test/",
    b"Location: http://[::1/",
    b"Location: //",
    b"Location: \xff\xfe",
    b"Content-Encoding: gzip",
    b"Trailer: X",
    b"X: \x00",
    b"X: a\x01b",
    b" folded: more",
    b"\tfolded",
    b": nameless",
    b"no colon",
    b"X\xe9: \xe9",
)
BODIES = (
    b"",
    b"ok",
    b"o",
    b"hello",
    b"2\r\nok\r\n0\r\n\r\n",
    b"2\nok\n0\n\n",
    b"2;ext=1\r\nok\r\n0\r\nX: y\r\n\r\n",
    b"2 \r\nok\r\n0\r\n\r\n",
    b"02\r\nok\r\n000\r\n\r\n",
    b"3\r\nok\r\n0\r\n\r\n",
    b"-1\r\n",
    b"ffffffffffffffffff\r\n",
    b"7fffffffffffffff\r\nok",
    b"g\r\nok\r\n",
    b"0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"okHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
    b"\r\n\r\n",
)


@st.composite
def answer_bytes(draw):
    """An answer, then perhaps spoiled in a few places."""
    out = b""
    for _ in range(draw(st.integers(1, 3))):
        end = draw(st.sampled_from(LINE_ENDS))
        out += draw(st.sampled_from(STATUS_LINES)) + end
        for header in draw(st.lists(st.sampled_from(HEADERS), max_size=5)):
            out += header + end
        out += end + draw(st.sampled_from(BODIES) | st.binary(max_size=40))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(out)))
        match draw(st.integers(0, 3)):
            case 0:
                out = out[:at]
            case 1:
                out = out[:at] + draw(st.binary(min_size=1, max_size=3)) + out[at:]
            case 2:
                out = out[:at] + out[at + draw(st.integers(1, 4)) :]
            case _:
                out = out[:at] + out[at : at + 40] * draw(st.integers(2, 40)) + out[at:]
    return out


@st.composite
def scripts(draw):
    answer = draw(answer_bytes() | st.binary(max_size=200))
    cuts = draw(st.lists(st.integers(0, len(answer)), max_size=4))
    if draw(st.integers(0, 9)) == 0:
        cuts += range(min(len(answer), 200))
    edges = sorted({0, len(answer), *cuts})
    parts = tuple(answer[start:end] for start, end in itertools.pairwise(edges))
    return Script(draw(st.sampled_from(METHODS)), draw(st.sampled_from(ENDS)), parts)


URL_PARTS = (
    "http://",
    "https://",
    "HTTP://",
    "//",
    "ftp://",
    "a.test",
    "A.Test.",
    "127.1",
    "[::1]",
    "[fe80::1%25eth0]",
    "[::ffff:1.2.3.4]",
    "[",
    "]",
    "user:pass@",
    "@",
    ":",
    ":80",
    ":0",
    ":65536",
    ":٣",
    "/",
    "/a/../b",
    "?q=1",
    "?",
    "#frag",
    "#",
    "%",
    "%0d%0a",
    "\\",
    "é",
    "ß.test",
    "xn--",
    "ÿ",
    "\u2100",
    "\ufeff",
    "\u3002",
    "..",
    "-",
    " ",
    "\t",
    "\r\n",
    "\x00",
    "\ud800",
    "a" * 64,
    "b." * 130,
)
NAMES = ("Host", "host", "Content-Length", "Transfer-Encoding", "Connection", "Authorization", "Upgrade", "Accept", "X")
VALUES = (
    "",
    " ",
    "a",
    "close",
    "keep-alive, Upgrade",
    "2",
    " 2",
    "2 ",
    "chunked",
    "a\tb",
    "a\r\nb",
    "\x00",
    "é",
    "\ud800",
)
texts = st.text(max_size=20)
urls = st.lists(st.sampled_from(URL_PARTS) | texts, max_size=8).map("".join) | st.lists(
    st.sampled_from(URL_PARTS), max_size=5
).map(lambda parts: "http://a.test" + "".join(parts))
headers_maps = st.dictionaries(st.sampled_from(NAMES) | texts, st.sampled_from(VALUES) | texts, max_size=4)
methods = st.sampled_from(["GET", "get", "Post", "HEAD", "CONNECT", "PURGE", "patch", "", "G T", "\u017fet"]) | texts
bodies = st.none() | st.sampled_from(["", "ok", "é", "\x00", "\ud800", "\r\n\r\nGET / HTTP/1.1\r\n\r\n"]) | texts
statuses = (
    st.lists(
        st.sampled_from(["200", "2xx", "2XX", "200-299", "299 - 200", "101", "1xx", " ", "", "600", "²00"]), max_size=3
    ).map(",".join)
    | texts
)
numbers = st.integers(-1, 120) | st.integers() | st.sampled_from([0, 1 << 31, 1 << 63, 10**30])
intervals = numbers | st.sampled_from(["30s", "5 m", "1h", "0", "1d", "٣s", "9999999999", "1 week", "", " 7 "]) | texts
anything = (
    st.none() | st.booleans() | numbers | st.floats() | texts | st.binary(max_size=4) | st.lists(st.none(), max_size=1)
)
paths = st.sampled_from(["/a.pem", "a.pem", "/", "/\x00", ""]) | texts
secrets = st.sampled_from(["u:p", "t", ":", "${A}", "u:${file:a}", "${", "$${", "${sealed:x}", "\r\n", "é:é"]) | texts
assertion_maps = st.sampled_from(
    [
        {"type": "status", "set": "2xx"},
        {"type": "body_contains", "text": "ok"},
        {"type": "body_matches", "pattern": "("},
        {"type": "body_matches", "pattern": "(a|b){1000}"},
        {"type": "json_path", "path": "$..a[?@.b == 1]", "op": "==", "value": {}},
        {"type": "json_path", "path": "$[", "op": "absent"},
        {"type": "header", "name": "X", "op": "matches", "value": "^a"},
        {"type": "response_time_below", "ms": -1},
        {"type": "certificate_days", "days": 10**30},
        {"type": "none"},
        {},
    ]
) | st.dictionaries(st.sampled_from(["type", "path", "op", "value", "text"]) | texts, anything, max_size=4)
fields_maps = st.fixed_dictionaries(
    {"url": urls},
    optional={
        "name": texts,
        "method": methods,
        "headers": st.none() | headers_maps,
        "body": bodies,
        "expected_status": statuses,
        "interval": intervals,
        "unit": st.sampled_from(["seconds", "minutes", "hours", "days", ""]),
        "timeout_ms": numbers,
        "follow_redirects": st.booleans(),
        "enabled": st.booleans(),
        "down_after": numbers,
        "up_after": numbers,
        "assertions": st.none() | st.lists(assertion_maps, max_size=3),
        "verify_tls": st.booleans(),
        "ca_file": st.none() | paths,
        "client_cert_file": st.none() | paths,
        "client_key_file": st.none() | paths,
        "server_name": st.none() | st.sampled_from(["a.test", "-", "a..b", "[::1]", "\u017f.test"]) | texts,
        "ip_version": st.none() | st.sampled_from([4, 6]) | numbers,
        "connection_reuse": st.sampled_from(["auto", "never", ""]),
        "body_limit_bytes": st.none() | numbers,
        "connect_timeout_ms": st.none() | numbers,
        "user_agent": st.none() | texts,
        "basic_auth": st.none() | secrets,
        "bearer_token": st.none() | secrets,
        "proxy": st.none()
        | st.sampled_from(["http://p:1", "http://u:p@[::1]:2/", "http://a@b@c", "http://p:0"])
        | urls,
        "retries": numbers,
        "retry_delay_ms": numbers,
    },
)
wild_keys = st.sampled_from(FIELD_NAMES) | texts | st.none() | st.integers() | st.binary(max_size=4)
wild_maps = st.dictionaries(wild_keys, anything, max_size=5)
written_maps = fields_maps | wild_maps
# No surrogates: PostgreSQL has none.
row_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
row_specs = st.builds(
    ProjectSpec,
    st.just(1),
    urls.filter(lambda url: url.isprintable()) | row_texts,
    st.just(1_000),
    st.just(0),
    st.sampled_from(["GET", "post", "PURGE"]) | row_texts,
    st.lists(st.tuples(st.sampled_from(NAMES) | row_texts, st.sampled_from(VALUES[:-1]) | row_texts), max_size=3).map(
        tuple
    ),
    st.none() | row_texts,
    statuses,
    st.just(1_000),
    st.booleans(),
)
