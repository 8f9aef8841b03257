"""What is hidden of a project, and what is not."""

import pytest

from cluster.masking import is_secret_header, masked_project, masked_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://a.example/x?y=1#z", "http://a.example/x?y=1#z"),
        ("http://user:pass@a.example/", "http://user:***@a.example/"),
        ("https://user:p:a@ss@a.example:8443/", "https://user:***@a.example:8443/"),
        ("http://user:@a.example/", "http://user:***@a.example/"),
        ("http://:pass@a.example/", "http://:***@a.example/"),
        ("http://token@a.example/", "http://***@a.example/"),
        ("HTTPS://user:pass@[::1]:80", "HTTPS://user:***@[::1]:80"),
        ("http://a.example/@someone", "http://a.example/@someone"),
        ("http://a.example/?mail=a@b", "http://a.example/?mail=a@b"),
        ("//user:pass@a.example/", "//user:***@a.example/"),
        ("http:/user:pass@a.example/", "http:/user:***@a.example/"),
        ("user:pass@a.example/", "user:***@a.example/"),
        (" http://user:pass@a.example/", " http://user:***@a.example/"),
        ("h ttp://user:pass@a.example/", "h ttp://user:***@a.example/"),
        ("", ""),
    ],
)
def test_a_url_without_its_password(url, shown):
    assert masked_url(url) == shown
    assert masked_url(shown) == shown


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("Authorization", True),
        ("proxy-authorization", True),
        ("Cookie", True),
        ("X-Api-Key", True),
        ("apikey", True),
        ("X-Auth-Token", True),
        ("Client-Secret", True),
        ("X-Password", True),
        ("X-Amz-Signature", True),
        ("Accept", False),
        ("Host", False),
        ("User-Agent", False),
        ("Content-Type", False),
        ("X-Request-Id", False),
    ],
)
def test_headers_that_carry_secrets_are_known_by_their_names(name, is_secret):
    assert is_secret_header(name) is is_secret


NO_SECRETS = {"bearer_token": None, "basic_auth": None, "proxy": None}


def test_a_row_for_people():
    row = {"id": 1, "url": "http://u:p@h/", "headers": {"Cookie": "a", "Accept": "b"}, "body": "c", **NO_SECRETS}
    shown = {
        "id": 1,
        "url": "http://u:***@h/",
        "headers": {"Cookie": "***", "Accept": "b"},
        "body": "***",
        **NO_SECRETS,
    }
    assert masked_project(row) == shown
    nothing = {"id": 1, "url": "http://h/", "headers": None, "body": None, **NO_SECRETS}
    assert masked_project(nothing) == nothing
    options = {"bearer_token": "t", "basic_auth": "me:secret", "proxy": "http://me:secret@p:1"}
    shown = {"bearer_token": "***", "basic_auth": "me:***", "proxy": "http://me:***@p:1"}
    assert masked_project(nothing | options) == nothing | shown
