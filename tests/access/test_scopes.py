"""Scopes, and how tokens and names are written."""

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.access.scopes import SCOPES, TokenParts, bearer_of, covered_by, covers, is_name, parse_token, write_token

PARTS = TokenParts("0123456789ab", "f" * 64)


@pytest.mark.parametrize(
    ("held", "covered"), [("read", ["read"]), ("write", ["read", "write"]), ("admin", ["read", "write", "admin"])]
)
def test_a_scope_covers_those_before_it(held, covered):
    assert covered_by(held) == covered
    assert [each for each in SCOPES if covers(held, each)] == covered
    assert covers(held, "none")


def test_a_token_is_read_as_it_is_written():
    parts = TokenParts(secrets.token_hex(6), secrets.token_hex(32))
    assert parse_token(write_token(parts)) == parts


@pytest.mark.parametrize(
    "text",
    [
        "", "rp", "rp__", "rp_0123456789ab_", "rp_0123456789ab_" + "f" * 63, "rp_0123456789ab_" + "f" * 65,
        "rp_0123456789AB_" + "f" * 64, "xx_0123456789ab_" + "f" * 64, "rp_0123456789a\u0663_" + "f" * 64,
        write_token(PARTS) + "\n", " " + write_token(PARTS), write_token(PARTS) + " ", write_token(PARTS).upper(),
    ],
)  # fmt: skip
def test_what_is_no_token(text):
    assert parse_token(text) is None


@given(st.text())
def test_any_text_is_a_token_or_is_not(text):
    parse_token(text)
    is_name(text)
    bearer_of(text)


@pytest.mark.parametrize(
    ("authorization", "given"),
    [("Bearer a", "a"), ("bearer  a ", "a"), ("Basic a", None), ("", None), ("Bearer", ""), ("a", None)],
)
def test_bearer(authorization, given):
    assert bearer_of(authorization) == given


@pytest.mark.parametrize("name", ["a", "ann", "ann@example.org", "ci-2.x_y", "9" * 63])
def test_names(name):
    assert is_name(name)


@pytest.mark.parametrize("name", ["", "-a", ".", "a b", "a" * 64, "a\n", "\u00e4", "a/b", "a:b"])
def test_what_is_no_name(name):
    assert not is_name(name)
