"""The rules of a project's fields, and that the table's CHECKs hold the same."""

import ipaddress
from datetime import UTC, datetime

import asyncpg
import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import database
from cluster.errors import InvalidInputError
from cluster.http_options import OPTION_NAMES, OPTIONS_SQL, HttpOptions, options_from_json
from cluster.project import (
    FIELD_NAMES,
    ProjectFields,
    ProjectSpec,
    _is_ipv6,
    compact,
    decode_spec,
    encode_spec,
    parse_header,
    parse_interval,
    project_from_map,
    spec_from_row,
    validate,
)

URL = "http://a.example/"
SECURE = "https://a.example/"
GOOD = [
    {"url": "http://a"},
    {"url": "https://user:pa%20ss@a.example:8443/x/../y?b=2&a=%2F#frag"},
    {"url": "HTTP://A.example"},
    {"url": "http://[::1]:80/"},
    {"url": "http://[fe80::1%25eth0]/"},
    {"url": "http://under_score.example./"},
    {"url": "http://" + "a" * 63 + "." + "b" * 63 + "/"},
    {"url": "http://127.0.0.1:8700/"},
    {"url": "http://127.1/"},
    {"url": "http://a.b2/"},
    {"url": "http://2130706433/"},
    {"url": "http://db.1/"},
    {"url": "http://a-.-b.example/"},
    {"url": URL, "method": "TRACE"},
    {"url": URL, "headers": {"Content-Length": "2"}, "body": "ü"},
    {"url": URL, "headers": {"content-length": "0", "Connection": "Upgrade, Keep-Alive", "Upgrade": "websocket"}},
    {"url": URL, "headers": {"Connection": "close"}},
    {"url": "http://\uff11\uff12\uff17.1/"},
    {"url": URL, "expected_status": "101"},
    {"url": "http://a/" + "x" * 4087},
    {"url": URL, "method": "PROPFIND"},
    {"url": URL, "method": "x-odd!"},
    {"url": URL, "headers": {"Accept": "a/b", "X-Empty": "", "X-Tab": "a\tb", "X-Ü".replace("Ü", "U"): "ü"}},
    {"url": URL, "headers": None, "body": None},
    {"url": URL, "body": "x" * 65_536},
    {"url": URL, "expected_status": "2xx"},
    {"url": URL, "expected_status": " 200 - 299 , 301,4xx "},
    {"url": URL, "interval": 1},
    {"url": URL, "interval": 8760, "unit": "hours"},
    {"url": URL, "interval": 525_600, "unit": "minutes"},
    {"url": URL, "timeout_ms": 1},
    {"url": URL, "down_after": 1_000, "up_after": 1_000},
    {"url": URL, "timeout_ms": 600_000},
    {"url": URL, "name": "x" * 200, "follow_redirects": False, "enabled": False},
    {"url": URL, "verify_tls": False, "ip_version": 4, "connection_reuse": "never", "body_limit_bytes": 1},
    {"url": URL, "retries": 10, "retry_delay_ms": 60_000, "basic_auth": "me:${file:me}"},
    {"url": URL, "ca_file": "/etc/ssl/own ca.pem", "ip_version": 6, "body_limit_bytes": 1 << 30},
    {"url": SECURE, "client_cert_file": "/c.pem", "server_name": "api_1.example", "connect_timeout_ms": 1},
    {"url": "HTTPS://a/", "client_cert_file": "/c.pem", "client_key_file": "/ü.pem", "connect_timeout_ms": 600_000},
    {"url": SECURE, "verify_tls": False, "server_name": "a" * 63 + ".b"},
    {"url": URL, "user_agent": "Mozilla/5.0 (ü)", "basic_auth": ":", "headers": {"X-Authorization": "x"}},
    {"url": "http://a/@", "basic_auth": "us er:pä:ss", "headers": None},
    {"url": URL, "bearer_token": "abc.DEF-_~+/==", "headers": {"Accept": "*/*", "X-User-Agent": "x"}},
    {"url": URL, "proxy": "http://proxy.example"},
    {"url": SECURE, "proxy": "http://us%40er:p%2Fw@proxy.example:3128/"},
    {"url": SECURE, "proxy": "http://[::1]:3128"},
    {"url": "http://127.0.0.1/", "proxy": "http://[::1]:3128", "ip_version": 6},
    {"url": "http://[::1]/", "ip_version": 6},
    {
        "url": URL,
        **dict.fromkeys(sorted(set(OPTION_NAMES) - {"verify_tls", "connection_reuse", "retries", "retry_delay_ms"})),
    },
]
BAD = [  # field named by the error, the map, and whether the table's CHECKs see it as well
    ("url", {"url": ""}, True),
    ("url", {"url": "ftp://a/"}, True),
    ("url", {"url": "a.example"}, True),
    ("url", {"url": "http:/a"}, True),
    ("url", {"url": "http://"}, True),
    ("url", {"url": "http:///path"}, True),
    ("url", {"url": "http://a b/"}, True),
    ("url", {"url": "http://a/\n"}, True),
    ("url", {"url": "http://a/" + "x" * 4088}, True),
    ("url", {"url": "http://a:0/"}, False),
    ("url", {"url": "http://a*b\ufeff/"}, False),
    ("url", {"url": "http://a%é/"}, False),
    ("url", {"url": "http://\uff12\uff15\uff16.1.1.1/"}, False),
    ("url", {"url": "http://[::1]x/"}, False),
    ("url", {"url": "http://[::1]http://"}, False),
    ("url", {"url": "http://[::1]@c[e/"}, False),
    ("url", {"url": "http://a:99999/"}, False),
    ("url", {"url": "http://a:b/"}, False),
    ("url", {"url": "http://[::1/"}, False),
    ("url", {"url": "http://[zz]/"}, False),
    ("url", {"url": "http://a\\b/"}, False),
    ("url", {"url": "http://@/"}, False),
    ("url", {"url": "http://-a/"}, False),
    ("url", {"url": "http://a..b/"}, False),
    ("url", {"url": "http://.a/"}, False),
    ("url", {"url": "http://a../"}, False),
    ("url", {"url": "http://./"}, False),
    ("url", {"url": "http://a-/"}, False),
    ("url", {"url": "http://" + "a" * 64 + ".example/"}, False),
    ("url", {"url": "http://" + "a." * 127 + "b/"}, False),
    ("url", {"url": "http://256.1.1.1/"}, False),
    ("url", {"url": "http://1.2.3.4.5/"}, False),
    ("url", {"url": "http://1.2.3.4./"}, False),
    ("url", {"url": "http://1.2.70000/"}, False),
    ("url", {"url": "http://[::::]/"}, False),
    ("url", {"url": "http://[1:2]/"}, False),
    ("url", {"url": "http://bücher..example/"}, False),
    ("url", {"url": "http://a/\x01"}, False),
    ("url", {"url": "http://a/" + "ü" * 1000}, False),
    ("url", {"url": "http://a/\ud800"}, False),
    ("method", {"url": URL, "method": ""}, True),
    ("method", {"url": URL, "method": "GET IT"}, True),
    ("method", {"url": URL, "method": "GET\r\n"}, True),
    ("method", {"url": URL, "method": "G" * 33}, True),
    ("method", {"url": URL, "method": "CONNECT"}, False),
    ("method", {"url": URL, "method": "connect"}, False),
    ("headers", {"url": URL, "headers": {"Transfer-Encoding": "chunked"}, "body": "x"}, False),
    ("headers", {"url": URL, "headers": {"transfer-encoding": "identity"}}, False),
    ("headers", {"url": URL, "headers": {"Content-Length": "5"}}, False),
    ("headers", {"url": URL, "headers": {"Content-Length": "1"}, "body": "ü"}, False),
    ("headers", {"url": URL, "headers": {"Content-Length": "2, 2"}, "body": "ü"}, False),
    ("headers", {"url": URL, "headers": {"Connection": "Content-Length"}}, False),
    ("headers", {"url": URL, "headers": {"Connection": "close, host"}}, False),
    ("headers", {"url": URL, "headers": {"a b": "c"}}, False),
    ("headers", {"url": URL, "headers": {"": "c"}}, False),
    ("headers", {"url": URL, "headers": {"a": "b\r\nc: d"}}, False),
    ("headers", {"url": URL, "headers": {"a": 1}}, False),
    ("headers", {"url": URL, "headers": {"a": "1", "A": "2"}}, False),
    ("headers", {"url": URL, "headers": {f"a{n}": "" for n in range(101)}}, False),
    ("headers", {"url": URL, "headers": {"a": "x" * 65_536}}, False),
    ("headers", {"url": URL, "headers": ["a: b"]}, True),
    ("body", {"url": URL, "body": "x" * 65_537}, True),
    ("body", {"url": URL, "body": "\x00"}, True),
    ("body", {"url": URL, "body": {}}, True),
    ("expected_status", {"url": URL, "expected_status": ""}, True),
    ("expected_status", {"url": URL, "expected_status": "600"}, True),
    ("expected_status", {"url": URL, "expected_status": "20"}, True),
    ("expected_status", {"url": URL, "expected_status": "200,"}, True),
    ("expected_status", {"url": URL, "expected_status": "2xx-3xx"}, True),
    ("expected_status", {"url": URL, "expected_status": "ok"}, True),
    ("expected_status", {"url": URL, "expected_status": "1xx"}, False),
    ("expected_status", {"url": URL, "expected_status": "200,100"}, False),
    ("expected_status", {"url": URL, "expected_status": "100-299"}, False),
    ("expected_status", {"url": URL, "expected_status": "299-200"}, False),
    ("expected_status", {"url": URL, "expected_status": 200}, False),
    ("interval", {"url": URL, "interval": 0}, True),
    ("interval", {"url": URL, "interval": -5}, True),
    ("interval", {"url": URL, "interval": 8761, "unit": "hours"}, True),
    ("interval", {"url": URL, "interval": 1.5}, False),
    ("interval", {"url": URL, "interval": True}, False),
    ("interval", {"url": URL, "interval": "soon"}, True),
    ("interval", {"url": URL, "interval": "5m", "unit": "hours"}, True),
    ("unit", {"url": URL, "unit": "days"}, True),
    ("unit", {"url": URL, "unit": None}, True),
    ("timeout_ms", {"url": URL, "timeout_ms": 0}, True),
    ("timeout_ms", {"url": URL, "timeout_ms": 600_001}, True),
    ("down_after", {"url": URL, "down_after": 0}, True),
    ("down_after", {"url": URL, "down_after": 1_001}, True),
    ("up_after", {"url": URL, "up_after": 0}, True),
    ("name", {"url": URL, "name": "x" * 201}, True),
    ("name", {"url": URL, "name": "a\nb"}, False),
    ("enabled", {"url": URL, "enabled": "yes"}, False),
    ("follow_redirects", {"url": URL, "follow_redirects": 1}, False),
    ("verify_tls", {"url": URL, "verify_tls": 1}, False),
    ("verify_tls", {"url": URL, "verify_tls": None}, False),
    ("ca_file", {"url": URL, "ca_file": ""}, True),
    ("ca_file", {"url": URL, "ca_file": "ca.pem"}, True),
    ("ca_file", {"url": URL, "ca_file": "/a\nb"}, True),
    ("ca_file", {"url": URL, "ca_file": "/" + "x" * 4_096}, True),
    ("ca_file", {"url": URL, "ca_file": "/\ud800"}, False),
    ("ca_file", {"url": URL, "ca_file": "/ca.pem", "verify_tls": False}, True),
    ("ca_file", {"url": URL, "ca_file": 1}, False),
    ("client_cert_file", {"url": SECURE, "client_cert_file": "c.pem"}, True),
    ("client_cert_file", {"url": URL, "client_cert_file": "/c.pem"}, True),
    ("client_key_file", {"url": SECURE, "client_key_file": "/k.pem"}, True),
    ("client_key_file", {"url": SECURE, "client_cert_file": "/c.pem", "client_key_file": "k"}, True),
    ("server_name", {"url": URL, "server_name": "a.example"}, True),
    ("server_name", {"url": SECURE, "server_name": ""}, True),
    ("server_name", {"url": SECURE, "server_name": "a..b"}, True),
    ("server_name", {"url": SECURE, "server_name": "-a"}, True),
    ("server_name", {"url": SECURE, "server_name": "a.example."}, True),
    ("server_name", {"url": SECURE, "server_name": "a" * 64}, True),
    ("server_name", {"url": SECURE, "server_name": "a." * 127}, True),
    ("server_name", {"url": SECURE, "server_name": "bücher.example"}, True),
    ("ip_version", {"url": URL, "ip_version": 5}, True),
    ("ip_version", {"url": URL, "ip_version": "4"}, False),
    ("ip_version", {"url": "http://127.0.0.1/", "ip_version": 6}, False),
    ("ip_version", {"url": "http://[::1]/", "ip_version": 4}, False),
    ("ip_version", {"url": URL, "ip_version": 4, "proxy": "http://[::1]:1"}, False),
    ("ip_version", {"url": URL, "ip_version": True}, False),
    ("connection_reuse", {"url": URL, "connection_reuse": "always"}, True),
    ("retries", {"url": URL, "retries": -1}, True),
    ("retries", {"url": URL, "retries": 11}, True),
    ("retries", {"url": URL, "retries": None}, False),
    ("retry_delay_ms", {"url": URL, "retry_delay_ms": 0}, True),
    ("retry_delay_ms", {"url": URL, "retry_delay_ms": 60_001}, True),
    ("basic_auth", {"url": URL, "basic_auth": "u:${"}, False),
    ("bearer_token", {"url": URL, "bearer_token": "${a-b}"}, False),
    ("connection_reuse", {"url": URL, "connection_reuse": None}, False),
    ("body_limit_bytes", {"url": URL, "body_limit_bytes": 0}, True),
    ("body_limit_bytes", {"url": URL, "body_limit_bytes": (1 << 30) + 1}, True),
    ("body_limit_bytes", {"url": URL, "body_limit_bytes": 1.0}, False),
    ("connect_timeout_ms", {"url": URL, "connect_timeout_ms": 0}, True),
    ("connect_timeout_ms", {"url": URL, "connect_timeout_ms": 600_001}, True),
    ("user_agent", {"url": URL, "user_agent": ""}, True),
    ("user_agent", {"url": URL, "user_agent": "a\r\nb: c"}, True),
    ("user_agent", {"url": URL, "user_agent": "x" * 1_001}, True),
    ("user_agent", {"url": URL, "user_agent": "x", "headers": {"USER-agent": "y"}}, True),
    ("basic_auth", {"url": URL, "basic_auth": "user"}, True),
    ("basic_auth", {"url": URL, "basic_auth": "user:pass\n"}, True),
    ("basic_auth", {"url": URL, "basic_auth": ":" + "x" * 4_096}, True),
    ("basic_auth", {"url": URL, "basic_auth": "u:p", "headers": {"authorization": "x"}}, True),
    ("basic_auth", {"url": "http://u:p@a/", "basic_auth": "u:p"}, True),
    ("bearer_token", {"url": URL, "bearer_token": ""}, True),
    ("bearer_token", {"url": URL, "bearer_token": "a b"}, True),
    ("bearer_token", {"url": URL, "bearer_token": "ü"}, True),
    ("bearer_token", {"url": URL, "bearer_token": "x" * 8_193}, True),
    ("bearer_token", {"url": URL, "bearer_token": "x", "headers": {"A": "b", "Authorization": "x"}}, True),
    ("bearer_token", {"url": "http://u@a/", "bearer_token": "x"}, True),
    ("bearer_token", {"url": URL, "bearer_token": "x", "basic_auth": "u:p"}, True),
    ("proxy", {"url": URL, "proxy": ""}, True),
    ("proxy", {"url": URL, "proxy": "https://proxy:3128"}, True),
    ("proxy", {"url": URL, "proxy": "socks5://proxy:1080"}, True),
    ("proxy", {"url": URL, "proxy": "proxy:3128"}, True),
    ("proxy", {"url": URL, "proxy": "http://proxy/path"}, True),
    ("proxy", {"url": URL, "proxy": "http://u:a/b@proxy:1"}, True),
    ("proxy", {"url": URL, "proxy": "http://proxy:0"}, False),
    ("proxy", {"url": URL, "proxy": "http://proxy:99999"}, False),
    ("proxy", {"url": URL, "proxy": "http://[::::]:1"}, False),
    ("proxy", {"url": URL, "proxy": "http://proxy/" + "x" * 4_096}, True),
    ("project", {}, True),
    ("project", {"url": URL, "id": 3}, False),
    ("project", {"url": URL, "Method": "GET"}, False),
]


SECRET = "canary"
MISTAKEN = [
    {"url": f"http://user:{SECRET}@a b/"},
    {"url": f"http://user:{SECRET}@h:0/"},
    {"url": f"http://user:{SECRET}@a\u2100b/"},
    {"url": f"http:/user:{SECRET}@h/"},
    {"url": f"ftp://{SECRET}@h/"},
    {"url": f"user:{SECRET}@h/"},
    {"url": [f"http://user:{SECRET}@h/"]},
    {"url": URL, "headers": {"Authorization": [SECRET]}},
    {"url": URL, "headers": {"Authorization": {"Bearer": SECRET}}},
    {"url": URL, "headers": {"Authorization": f"{SECRET}\n"}},
    {"url": URL, "headers": f"Authorization: {SECRET}"},
    {"url": URL, "body": {"password": SECRET}},
    {"url": URL, "body": f"{SECRET}\x00"},
]


def short(value):
    return repr(value)[:70]


@pytest.mark.parametrize("written", GOOD, ids=short)
def test_good_fields_are_accepted_and_canonical_fields_stay_as_they_are(written):
    fields = project_from_map(written)
    assert validate(fields) == fields


@pytest.mark.parametrize(("field", "written", "_in_table"), BAD, ids=short)
def test_bad_fields_are_refused_by_name_on_one_line(field, written, _in_table):
    with pytest.raises(InvalidInputError) as caught:
        project_from_map(written)
    message = str(caught.value)
    assert message.startswith(f"{field}: ")
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("written", MISTAKEN, ids=short)
def test_what_may_be_a_secret_is_not_repeated(written):
    with pytest.raises(InvalidInputError) as caught:
        project_from_map(written)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ({"method": "post"}, {"method": "POST"}),
        ({"method": "purge"}, {"method": "purge"}),
        ({"expected_status": " 2XX , 301 - 302"}, {"expected_status": "2xx,301-302"}),
        ({"interval": "90s"}, {"interval": 90, "unit": "seconds"}),
        ({"interval": "2d"}, {"interval": 48, "unit": "hours"}),
        ({"interval": "5 minutes"}, {"interval": 5, "unit": "minutes"}),
        ({"headers": {}}, {"headers": None}),
        ({"url": "http://bücher.example/ä%2f?q=ü"}, {"url": "http://xn--bcher-kva.example/%C3%A4%2f?q=%C3%BC"}),
        ({"url": "http://u:p@ä:80/"}, {"url": "http://u:p@xn--4ca:80/"}),
    ],
)
def test_the_canonical_form(written, canonical):
    fields = project_from_map({"url": URL} | written)
    assert {name: getattr(fields, name) for name in canonical} == canonical


@pytest.mark.parametrize(
    "written",
    [
        {"basic_auth": "hunter2"},
        {"basic_auth": "hunter2:\n"},
        {"basic_auth": ["hunter2"]},
        {"bearer_token": "hunter2 x"},
        {"bearer_token": "hunter2", "basic_auth": "a:hunter2"},
        {"proxy": "https://u:hunter2@proxy"},
        {"proxy": "http://u:hunter2@proxy:99999"},
        {"proxy": "http://u:hunter2@[::::]"},
    ],
)
def test_a_refusal_shows_no_secret(written):
    with pytest.raises(InvalidInputError) as caught:
        project_from_map({"url": URL} | written)
    assert "hunter2" not in str(caught.value)


def test_options_that_make_no_sense_name_themselves():
    assert options_from_json("[true]") == HttpOptions()
    with pytest.raises(InvalidInputError, match="options of its row"):
        options_from_json('[true, null, null, null, null, "x"]')


def test_a_spec_of_an_older_version_has_no_options():
    old = msgspec.msgpack.encode([7, URL, 1_000, 0, "GET", [], None, "200", 30_000, True])
    assert decode_spec(old) == ProjectSpec(7, URL, 1_000, 0)


def test_equal_options_are_kept_once():
    made = [
        compact(decode_spec(encode_spec(ProjectSpec(n, URL, 1_000, 0, options=HttpOptions(verify_tls=False)))))
        for n in range(2)
    ]
    assert made[0].options is made[1].options
    assert compact(ProjectSpec(7, URL, 1_000, 0)).options is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(FIELD_NAMES), JSON))
def test_whatever_is_written_is_accepted_or_refused(written):
    try:
        fields = project_from_map(written)
    except InvalidInputError:
        return
    assert validate(fields) == fields


_HEXTET = st.sampled_from(["", "0", "1", "ffff", "FfF", "12345", "g", "1.2.3.4", "1.2.3.256", "1.2.3", "01.2.3.4"])


@given(st.lists(_HEXTET, min_size=1, max_size=10))
def test_addresses_in_brackets_are_those_of_the_standard_library(groups):
    address = ":".join(groups)
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        with pytest.raises(InvalidInputError, match=r"^url: "):
            project_from_map({"url": f"http://[{address}]/"})
        assert not _is_ipv6(address) or "01." in address
    else:
        assert project_from_map({"url": f"http://[{address}]/"}).url == f"http://[{address}]/"


def test_interval_and_header_as_written_on_a_command_line():
    assert parse_interval("30") == (30, "seconds")
    assert parse_header("X-A:  b: c ") == ("X-A", "b: c")
    for wrong in ("novalue", ": x"):
        with pytest.raises(InvalidInputError, match="header: must be written"):
            parse_header(wrong)


SINCE = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
ROW = {
    "id": 7,
    "url": URL,
    "method": "GET",
    "headers": None,
    "body": None,
    "expected_status": "200",
    "interval": 5,
    "unit": "minutes",
    "timeout_ms": 1_000,
    "follow_redirects": True,
    "assertions": None,
    "options": None,
    "since": SINCE,
}


def test_a_spec_from_a_row():
    spec = spec_from_row(ROW)
    assert spec == ProjectSpec(id=7, url=URL, interval_ms=300_000, since_ms=1_767_323_045_678, timeout_ms=1_000)
    assert spec_from_row(ROW | {"since": None}).since_ms == 0
    for headers in ('{"A": "b", "C": "d"}', {"A": "b", "C": "d"}):
        assert spec_from_row(ROW | {"headers": headers}).headers == (("A", "b"), ("C", "d"))
    assert spec_from_row(ROW | {"headers": "null"}).headers == ()
    with pytest.raises(InvalidInputError, match="headers: the value of 'A' must be text"):
        spec_from_row(ROW | {"headers": '{"A": 1}'})


async def insert(conn, fields):
    columns = {name: value for name, value in fields.items() if value is not None or name == "unit"}
    if "headers" in columns:
        columns["headers"] = orjson.dumps(columns["headers"]).decode()
    places = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    await conn.execute(f"INSERT INTO projects ({', '.join(columns)}) VALUES ({places})", *columns.values())


async def test_the_table_takes_what_is_good_and_refuses_what_is_bad(database_url):
    conn = await database.connect(database_url)
    try:
        for written in GOOD:
            await insert(conn, msgspec.to_builtins(project_from_map(written)))
        assert await conn.fetchval("SELECT count(*) FROM projects") == len(GOOD)
        for _, written, in_table in BAD:
            if in_table:
                try:
                    await insert(conn, written)
                except (asyncpg.PostgresError, asyncpg.DataError):
                    continue
                pytest.fail(f"the table took {short(written)}")
        rows = await conn.fetch(
            f"SELECT p.*, {OPTIONS_SQL} AS options, s.since "
            "FROM projects p LEFT JOIN project_spans s ON s.project_id = p.id ORDER BY p.id"
        )
        for row, written in zip(rows, GOOD, strict=True):
            fields = project_from_map(written)
            spec = spec_from_row(row)
            assert (spec.url, spec.interval_ms, spec.method) == (fields.url, fields.interval_ms, fields.method)
            assert dict(spec.headers) == (fields.headers or {})
            options = HttpOptions(*(getattr(fields, name) for name in OPTION_NAMES))
            assert spec.options == (None if options == HttpOptions() else options)
    finally:
        await conn.close()


def test_every_column_that_people_write_is_a_field():
    assert set(FIELD_NAMES) | {"id", "since", "options"} == set(ROW) | {
        "name",
        "enabled",
        "down_after",
        "up_after",
        *OPTION_NAMES,
    }
    assert ProjectFields(url=URL) == validate(ProjectFields(url=URL))
