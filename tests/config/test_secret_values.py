"""Secrets that texts refer to: what a reference may name, where it is found, and that errors don't tell."""

import contextlib
import os
import stat
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import secret_values
from cluster.errors import InvalidInputError
from cluster.secret_references import KEY_FILE, expect_references, has_reference
from cluster.secret_values import (
    LOOK_AGAIN_S,
    SECRET_BYTES_MAX,
    SecretError,
    SecretFileError,
    SecretSource,
    new_key,
    seal,
)

CANARY = "c4nary-of-the-mine"
ENVIRON = {"RINGPOLL_SECRET_TOKEN": CANARY, "DATABASE_URL": "postgresql://u:pw@h/d", "TOKEN": "not this one"}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "token").write_text(f"{CANARY}\n")
    return tmp_path


@pytest.fixture
def source(directory):
    return SecretSource(ENVIRON, directory)


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("plain", "plain"),
        ("", ""),
        ("$5 {or} so", "$5 {or} so"),
        ("Bearer ${TOKEN}", f"Bearer {CANARY}"),
        ("${TOKEN}${file:token}", CANARY * 2),
        ("$${TOKEN}", "${TOKEN}"),
        ("$$${TOKEN}", "$${TOKEN}"),
        ("a$${b}${TOKEN}", "a${b}" + CANARY),
    ],
)
def test_what_a_text_becomes(source, written, sent):
    expect_references("headers", written)
    assert source.expand(written) == sent
    assert has_reference(written) == ("${" in written)


@pytest.mark.parametrize(
    "written",
    [
        "${", "${}", "${TOKEN", "${a b}", "${1A}", "${file:}", "${file:../etc/passwd}", "${file:/etc/passwd}",
        "${file:.hidden}", "${file:a/b}", f"${{file:{KEY_FILE}}}", "${sealed:}", "${sealed:short}", "${env:HOME}",
        "x ${ü}",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused_when_it_is_saved_and_when_it_is_used(source, written):
    with pytest.raises(InvalidInputError, match=r"headers: a \$\{...\} must be"):
        expect_references("headers", written)
    with pytest.raises(SecretError, match="no reference"):
        source.expand(written)


def test_only_variables_that_are_meant_for_it(source):
    for name in ("DATABASE_URL", "HOME", "RINGPOLL_SECRET_TOKEN"):
        with pytest.raises(SecretError, match=f"no variable RINGPOLL_SECRET_{name} on this worker"):
            source.expand(f"${{{name}}}")


def test_files_that_are_not_there_or_no_text(source, directory):
    (directory / "large").write_bytes(b"x" * (SECRET_BYTES_MAX + 1))
    (directory / "binary").write_bytes(b"\xff\xfe")
    (directory / "below").mkdir()
    os.mkfifo(directory / "fifo")
    (directory / "device").symlink_to("/dev/zero")
    for name, why in (
        ("gone", "No such file"), ("large", "larger than"), ("binary", "not UTF-8"), ("below", "is not a file"),
        ("fifo", "is not a file"), ("device", "is not a file"),
    ):  # fmt: skip
        with pytest.raises(SecretFileError, match=why) as raised:
            source.expand(f"${{file:{name}}}")
        assert str(directory) not in str(raised.value)
    with pytest.raises(SecretError, match="no secrets_dir"):
        SecretSource({}, None).expand("${file:token}")


def test_a_file_is_looked_at_again_after_a_second(source, directory, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(secret_values.time, "monotonic", lambda: now)
    assert source.expand("${file:token}") == CANARY
    (directory / "next").write_text("another")
    (directory / "next").replace(directory / "token")
    assert source.expand("${file:token}") == CANARY
    now += LOOK_AGAIN_S
    assert source.expand("${file:token}") == "another"
    (directory / "token").unlink()
    assert source.expand("${file:token}") == "another"
    now += LOOK_AGAIN_S
    for _ in range(2):
        with pytest.raises(SecretFileError, match="No such file"):
            source.expand("${file:token}")
    (directory / "token").write_text("back")
    now += LOOK_AGAIN_S
    found = []
    assert source.expand("${file:token} $${ ${TOKEN}", found) == f"back ${{ {CANARY}"
    assert found == ["back", CANARY]


def test_sealed_values(directory):
    path = new_key(directory)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    sealed = seal(CANARY, directory)
    assert CANARY not in sealed
    expect_references("headers", sealed)
    assert SecretSource({}, directory).expand(f"Bearer {sealed}") == f"Bearer {CANARY}"

    with pytest.raises(InvalidInputError, match="there is a key already"):
        new_key(directory)
    path.unlink()
    new_key(directory)
    with pytest.raises(SecretError, match="not sealed with this worker's key") as raised:
        SecretSource({}, directory).expand(sealed)
    assert sealed[10:30] not in str(raised.value)


def test_a_key_that_others_can_read_or_that_is_none(directory):
    with pytest.raises(InvalidInputError, match=r"No such file or directory; `cluster secret new-key` makes one"):
        seal("x", directory)
    path = new_key(directory)
    path.chmod(0o644)
    with pytest.raises(InvalidInputError, match="can be read by others: chmod 600"):
        seal("x", directory)
    path.write_text("no key")
    path.chmod(0o600)
    with pytest.raises(InvalidInputError, match="holds no key"):
        seal("x", directory)


@given(st.text(alphabet="${}:aF/file.sealed \n", max_size=40))
def test_a_text_that_is_saved_expands_or_says_why(text):
    try:
        expect_references("headers", text)
    except InvalidInputError:
        return
    with contextlib.suppress(SecretError):
        assert len(SecretSource({}, None).expand(text)) <= len(text)
