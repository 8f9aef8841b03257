"""``cluster token`` and ``cluster user``."""

import io
import json
import sys

import pytest

from cluster.access.scopes import parse_token
from tests.cli.test_cli_data import db, sql  # noqa: F401 - a fixture

PASSWORD = b"correct horse battery\n"


@pytest.fixture
def typed(monkeypatch):
    """What comes from standard input."""

    def give(raw):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))

    return give


def test_a_token_is_printed_once_and_alone(db):  # noqa: F811
    ran = db("token", "create", "--name", "ci", "--scope", "write", "--expires", "30d")
    assert ran.status == 0
    parts = parse_token(ran.out.removesuffix("\n"))
    assert parts is not None
    assert "token ci may write until" in ran.err
    assert parts.secret not in ran.err
    listed = db("token", "list")
    as_json = db("token", "list", "--json")
    for shown in (listed, as_json):
        assert parts.secret not in shown.out
    row = json.loads(as_json.out)
    assert (row["name"], row["id"], row["scope"], row["state"], row["last_used_at"]) == (
        "ci", parts.id, "write", "active", None,
    )  # fmt: skip
    assert "secret_sha256" not in row
    assert "ci" in listed.out
    assert "never" in listed.out
    assert db("token", "revoke", "ci").out == f"revoked ci ({parts.id})\n"
    assert json.loads(db("token", "list", "--json").out)["state"] == "revoked"
    assert db("token", "revoke", "ci").error.startswith("there is no token ci that is not revoked")


def test_a_token_for_ever(db):  # noqa: F811
    assert "for ever" in db("token", "create", "--name", "ci", "--expires", "never").err
    assert json.loads(db("token", "list", "--json").out)["expires_at"] is None


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--name", "ci", "--expires", "soon"), 2, "--expires must be `never` or a duration such as 12h or 90d"),
        (("--name", "ci", "--expires", "0"), 2, "--expires must be"),
        (("--name", "ci", "--expires", "3651d"), 2, "up to 3650d"),
        (("--name", "ci", "--scope", "root"), 2, "'root' is not one of"),
        (("--name", "a b"), 2, "the name of a token must be 1 to 63"),
        ((), 2, "Missing option '--name'"),
    ],
)
def test_bad_tokens_are_one_line(db, arguments, status, said):  # noqa: F811
    ran = db("token", "create", *arguments)
    assert ran.status == status
    assert said in ran.error
    assert db("token", "list").out == "no tokens yet; `cluster token create` makes one\n"


def test_users_from_first_to_last(db, typed):  # noqa: F811
    assert db("user", "list").out == "no users yet; `cluster user add NAME` adds one\n"
    typed(PASSWORD)
    assert db("user", "add", "ann", "--scope", "admin").out == "added ann\n"
    before = sql(db.url, "SELECT password_hash, generation FROM users")[0][0]
    assert before["password_hash"].startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    row = json.loads(db("user", "list", "--json").out)
    assert (row["name"], row["scope"], row["last_login_at"]) == ("ann", "admin", None)
    assert "password_hash" not in row
    typed(PASSWORD)
    assert db("user", "add", "ann").error.startswith("there is a user ann already")
    typed(b"another good password")
    assert db("user", "password", "ann").out == "changed the password of ann\n"
    after = sql(db.url, "SELECT password_hash, generation FROM users")[0][0]
    assert after["password_hash"] != before["password_hash"]
    assert after["generation"] != before["generation"]
    assert db("user", "remove", "ann").out == "removed ann\n"
    assert db("user", "remove", "ann").error.startswith("there is no user ann")
    actors = {row["actor"] for row in sql(db.url, "SELECT actor FROM audit_log")[0]}
    assert len(actors) == 1
    assert actors.pop().startswith("cli")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "at least 12 characters"),
        (b"short\n", "at least 12 characters"),
        (b"x" * 1_025, "at most 1024 bytes"),
        (b"\xff" * 20, "is not UTF-8 text"),
    ],
)
def test_bad_passwords_are_one_line_and_not_shown(db, typed, raw, said):  # noqa: F811
    typed(raw)
    ran = db("user", "add", "ann")
    assert ran.status == 2
    assert said in ran.error
    assert raw[:5].decode(errors="replace").strip() == "" or raw[:5].decode(errors="replace") not in ran.err
    assert sql(db.url, "SELECT * FROM users")[0] == []


@pytest.mark.parametrize("arguments", [("token", "create", "--name", "ci"), ("user", "add", "ann")])
def test_an_empty_database_gets_the_tables_first(cluster, empty_database_url, monkeypatch, typed, arguments):
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    typed(PASSWORD)
    ran = cluster(*arguments)
    assert ran.status == 0, ran
    assert cluster("migrate").out.startswith("nothing to apply")


@pytest.mark.parametrize(
    "arguments", [("token", "list"), ("token", "revoke", "a"), ("user", "list"), ("user", "remove", "a")]
)
def test_without_tables_there_is_nothing_to_show(cluster, empty_database_url, monkeypatch, arguments):
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert "run `cluster migrate`" in cluster(*arguments).error


@pytest.mark.parametrize("arguments", [("token", "create", "--name", "ci"), ("user", "list")])
def test_older_tables_are_not_changed_in_passing(db, arguments):  # noqa: F811
    sql(db.url, "DELETE FROM schema_migrations WHERE version = (SELECT max(version) FROM schema_migrations)")
    assert "the tables are those of an older version; run `cluster migrate`" in db(*arguments).error


@pytest.mark.parametrize("arguments", [("token", "list"), ("user", "list")])
def test_without_a_database_it_is_said_and_none_is_made(cluster, data_dir, arguments):
    assert "no database: set DATABASE_URL" in cluster(*arguments).error
    assert list(data_dir.iterdir()) == []
