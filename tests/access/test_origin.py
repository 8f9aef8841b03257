"""Which requests may come from a page of another site."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.access.origin import is_cross_site, is_loopback_host, is_own_host


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8700", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8700", "127.9.9.9:80", "[::1]",
        "[::1]:8700", "[::ffff:127.0.0.1]:8700",
    ],
)  # fmt: skip
def test_hosts_of_this_machine(host):
    assert is_own_host(host)


@pytest.mark.parametrize(
    "host",
    [
        None, "", "evil.example", "evil.example:8700", "localhost.evil.example", "127.0.0.1.evil.example:8700",
        "10.0.0.1",
        "[fe80::1]:8700", "localhost:8700@evil.example", "evil.example/localhost", "localhost:", "localhost:x",
        "localhost localhost", "0.0.0.0:8700", "127.1", "2130706433", "::1", "[::1", "localhost.",
    ],
)  # fmt: skip
def test_hosts_of_others(host):
    assert not is_own_host(host)


@given(st.text())
def test_any_text_may_be_a_host_or_an_origin(text):
    is_loopback_host(text)
    is_own_host(text)
    is_cross_site("POST", scheme="http", host_header=text, origin=text, sec_fetch_site=None)


def cross(method="POST", *, scheme="http", host="localhost:8700", origin=None, site=None):
    return is_cross_site(method, scheme=scheme, host_header=host, origin=origin, sec_fetch_site=site)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_what_changes_nothing_may_come_from_anywhere(method):
    assert not cross(method, origin="https://evil.example", site="cross-site")


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE", "PROPFIND", "post"])
@pytest.mark.parametrize(
    ("origin", "site", "refused"),
    [
        (None, None, False), ("http://localhost:8700", None, False), ("http://localhost:8700", "same-origin", False),
        (None, "none", False), (None, "same-origin", False), ("http://LOCALHOST:8700", None, False),
        (None, "cross-site", True), (None, "same-site", True), ("http://localhost:8700", "same-site", True),
        (None, "", True), (None, "Same-Origin", True),
        ("null", None, True), ("https://localhost:8700", None, True), ("http://localhost:3000", None, True),
        ("http://localhost", None, True), ("http://evil.example", None, True),
        ("", None, True), ("http://[", None, True),
        ("http://127.0.0.1:8700", None, True), ("http://x@localhost:8700", None, True),
    ],
)  # fmt: skip
def test_what_changes_something(method, origin, site, refused):
    assert cross(method, origin=origin, site=site) == refused


def test_behind_tls_the_browser_sees_https():
    assert not cross(scheme="https", host="status.example", origin="https://status.example")
    assert cross(scheme="https", host="status.example", origin="http://status.example")
