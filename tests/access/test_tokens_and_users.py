"""Tokens and users in the database."""

import asyncio
import hashlib
import threading
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from cluster.access import audit_log, tokens, users
from cluster.access.scopes import parse_token
from cluster.errors import ClusterError, InvalidInputError

FAST = {"time_cost": 1, "memory_kib": 64}
PASSWORD = "correct horse battery"


@pytest.fixture
def passwords():
    made = users.Passwords(**FAST)
    yield made
    made.close()


# ---- tokens ---------------------------------------------------------------------------------------------------------


async def test_only_the_hash_of_a_token_is_stored(conn):
    written = await tokens.create(conn, "ci", "write", None, actor="cli:me")
    parts = parse_token(written)
    row = dict(await conn.fetchrow("SELECT * FROM api_tokens"))
    assert row["id"] == parts.id
    assert row["secret_sha256"] == hashlib.sha256(parts.secret.encode()).digest()
    kept = str([row, *map(dict, await conn.fetch("SELECT * FROM audit_log"))])
    assert parts.secret not in kept
    assert parts.secret not in str(await tokens.list_tokens(conn))


async def test_no_two_tokens_are_alike(conn):
    made = {await tokens.create(conn, f"t{number}", "read", None, actor="cli") for number in range(20)}
    assert len({parse_token(each).secret for each in made}) == 20


async def test_a_name_is_taken_until_its_token_is_revoked(conn):
    await tokens.create(conn, "ci", "read", None, actor="cli")
    with pytest.raises(ClusterError, match=r"there is a token ci already; `cluster token revoke ci` first") as caught:
        await tokens.create(conn, "ci", "admin", None, actor="cli")
    assert caught.value.code == "conflict"
    revoked = await tokens.revoke(conn, "ci", actor="cli")
    assert revoked.state() == "revoked"
    await tokens.create(conn, "ci", "admin", None, actor="cli")
    assert [(row.name, row.scope, row.state()) for row in await tokens.list_tokens(conn)] == [
        ("ci", "read", "revoked"), ("ci", "admin", "active"),
    ]  # fmt: skip


async def test_a_token_is_revoked_by_name_or_id_and_once(conn):
    written = await tokens.create(conn, "ci", "read", None, actor="cli")
    assert (await tokens.revoke(conn, parse_token(written).id, actor="cli")).name == "ci"
    for which in ("ci", parse_token(written).id, "nobody"):
        with pytest.raises(ClusterError, match=f"there is no token {which} that is not revoked") as caught:
            await tokens.revoke(conn, which, actor="cli")
        assert caught.value.code == "unknown_token"


async def test_a_token_whose_name_is_anothers_id(conn):
    first = parse_token(await tokens.create(conn, "ci", "read", None, actor="cli")).id
    await tokens.create(conn, first, "read", None, actor="cli")
    with pytest.raises(ClusterError, match="is the name of one token and the id of another; nothing was changed"):
        await tokens.revoke(conn, first, actor="cli")
    assert [row.state() for row in await tokens.list_tokens(conn)] == ["active", "active"]


async def test_states_of_a_token(conn):
    now = datetime.now(UTC)
    await tokens.create(conn, "old", "read", now - timedelta(seconds=1), actor="cli")
    await tokens.create(conn, "new", "read", now + timedelta(hours=1), actor="cli")
    assert {row.name: row.state() for row in await tokens.list_tokens(conn)} == {"old": "expired", "new": "active"}


@pytest.mark.parametrize("name", ["", "a b", "x" * 64, "a\n"])
async def test_bad_names(conn, name):
    with pytest.raises(InvalidInputError, match="the name of a token must be 1 to 63"):
        await tokens.create(conn, name, "read", None, actor="cli")
    with pytest.raises(InvalidInputError, match="the name of a user must be 1 to 63"):
        await users.add(conn, name, "x", "read", actor="cli")


async def test_there_is_a_limit(conn, monkeypatch):
    monkeypatch.setattr(tokens, "TOKENS_MAX", 1)
    monkeypatch.setattr(users, "USERS_MAX", 1)
    await tokens.create(conn, "a", "read", None, actor="cli")
    await users.add(conn, "a", "x", "read", actor="cli")
    with pytest.raises(ClusterError, match="revoke some first"):
        await tokens.create(conn, "b", "read", None, actor="cli")
    with pytest.raises(ClusterError, match="remove some first"):
        await users.add(conn, "b", "x", "read", actor="cli")


async def test_the_table_takes_no_other_scope(conn):
    with pytest.raises(asyncpg.CheckViolationError):
        await tokens.create(conn, "a", "root", None, actor="cli")


# ---- users ----------------------------------------------------------------------------------------------------------


async def check(conn, passwords, name, password):
    """The user whose password this is, or None."""
    user = await users.find_password(conn, name)
    renewed = await passwords.verify(password, None if user is None else user.password_hash)
    return None if renewed is None else user


async def test_a_user_and_their_password(conn, passwords):
    await users.add(conn, "ann", passwords.hash_password(PASSWORD), "write", actor="cli:me")
    user = await check(conn, passwords, "ann", PASSWORD)
    assert (user.name, user.scope) == ("ann", "write")
    for name, wrong in (("ann", PASSWORD + " "), ("ann", ""), ("bob", PASSWORD), ("ann", "nobody's")):
        assert await check(conn, passwords, name, wrong) is None
    assert "$argon2id$" in user.password_hash
    with pytest.raises(ClusterError, match="there is a user ann already"):
        await users.add(conn, "ann", "x", "read", actor="cli")


async def test_the_parameters_are_strong_unless_a_test_says_otherwise():
    made = users.Passwords()
    hashed = made.hash_password(PASSWORD)
    made.close()
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=1$")


async def test_a_password_is_the_same_however_it_was_composed(conn, passwords):
    await users.add(conn, "ann", passwords.hash_password("Zu\u0308rich am See"), "read", actor="cli")
    assert await check(conn, passwords, "ann", "Z\u00fcrich am See") is not None


async def test_each_change_ends_the_sessions_of_before(conn, passwords):
    generations = []

    async def note():
        generations.append((await users.find_password(conn, "ann")).generation)

    hashed = passwords.hash_password(PASSWORD)
    await users.add(conn, "ann", hashed, "read", actor="cli")
    await note()
    await users.set_password(conn, "ann", passwords.hash_password("another good one"), actor="cli")
    await note()
    await users.remove(conn, "ann", actor="cli")
    await users.add(conn, "ann", hashed, "read", actor="cli")
    await note()
    assert len(set(generations)) == 3
    for change in (users.set_password(conn, "bob", "x", actor="cli"), users.remove(conn, "bob", actor="cli")):
        with pytest.raises(ClusterError, match="there is no user bob"):
            await change


async def test_a_hash_of_other_parameters_is_made_anew(conn, passwords):
    await users.add(conn, "ann", passwords.hash_password(PASSWORD), "read", actor="cli")
    stronger = users.Passwords(time_cost=2, memory_kib=128)
    user = await users.find_password(conn, "ann")
    renewed = await stronger.verify(PASSWORD, user.password_hash)
    assert renewed != user.password_hash
    assert "m=128,t=2" in renewed
    await users.note_login(conn, user, renewed)
    again = await users.find_password(conn, "ann")
    assert (again.password_hash, again.generation) == (renewed, user.generation)
    assert await stronger.verify(PASSWORD, renewed) == renewed
    assert (await users.list_users(conn))[0].last_login_at is not None
    stronger.close()


async def test_a_password_that_was_changed_meanwhile_stays_so(conn, passwords):
    await users.add(conn, "ann", passwords.hash_password(PASSWORD), "read", actor="cli")
    before = await users.find_password(conn, "ann")
    await users.set_password(conn, "ann", "new hash", actor="cli")
    await users.note_login(conn, before, "old hash made anew")
    assert (await users.find_password(conn, "ann")).password_hash == "new hash"


async def test_an_unknown_user_costs_what_a_known_one_does(conn, passwords, monkeypatch):
    """The same work: one verification with the same parameters, in both cases."""
    await users.add(conn, "ann", passwords.hash_password(PASSWORD), "read", actor="cli")
    await passwords.verify("warm", None)
    verified = []
    real = passwords._hasher.verify
    monkeypatch.setattr(
        passwords._hasher.__class__,
        "verify",
        lambda _self, hashed, given: verified.append(hashed) or real(hashed, given),
    )
    for name in ("ann", "bob"):
        assert await check(conn, passwords, name, "wrong password") is None
    known, unknown = verified
    assert known.rpartition("$")[0].rpartition("$")[0] == unknown.rpartition("$")[0].rpartition("$")[0]


async def test_a_hash_that_is_none_is_a_wrong_password(passwords):
    assert await passwords.verify(PASSWORD, "plain text") is None


async def test_verifications_are_one_at_a_time_and_bounded(passwords, monkeypatch):
    entered, release = threading.Event(), threading.Event()
    running = []

    def slow(_password, _stored):
        running.append(threading.get_ident())
        entered.set()
        release.wait(10)

    monkeypatch.setattr(passwords, "_verify", slow)
    waiting = [asyncio.create_task(passwords.verify("x", None)) for _ in range(users.WAITING_MAX)]
    await asyncio.to_thread(entered.wait, 10)
    assert len(running) == 1
    with pytest.raises(users.PasswordsBusyError, match="too many logins at once"):
        await passwords.verify("x", None)
    release.set()
    await asyncio.gather(*waiting)
    assert len(set(running)) == 1
    await passwords.verify("x", None)


@pytest.mark.parametrize(("password", "said"), [("short", "at least 12"), ("x" * 1_025, "at most 1024 bytes")])
def test_what_may_be_a_password(password, said):
    with pytest.raises(InvalidInputError, match=said):
        users.check_password(password)
    users.check_password("x" * 12)
    users.check_password("x" * 1_024)


async def test_every_change_is_in_the_audit_log(conn, passwords):
    await tokens.create(conn, "ci", "write", datetime(2030, 1, 1, tzinfo=UTC), actor="cli:me")
    await tokens.revoke(conn, "ci", actor="cli:me")
    await users.add(conn, "ann", passwords.hash_password(PASSWORD), "admin", actor="cli:me")
    await users.set_password(conn, "ann", "x", actor="cli:me")
    await users.remove(conn, "ann", actor="cli:me")
    found = await audit_log.read(conn)
    assert [(each.action, each.subject) for each in reversed(found)] == [
        ("token.create", "token:ci"), ("token.revoke", "token:ci"), ("user.add", "user:ann"),
        ("user.password", "user:ann"), ("user.remove", "user:ann"),
    ]  # fmt: skip
    assert {each.actor for each in found} == {"cli:me"}
    assert found[-1].details["scope"] == "write"
    assert found[-1].details["expires_at"].startswith("2030-01-01")
