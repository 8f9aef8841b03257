"""What a running server knows of tokens and users: how fresh it is, what it costs, and without the database."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from cluster import database
from cluster.access import credentials as credentials_module
from cluster.access import tokens, users
from cluster.access.credentials import AGAIN_S, FRESH_S, STALE_S, Credentials, CredentialsUnavailableError
from cluster.access.scopes import TokenParts, parse_token
from tests.coordinator_shell.waiting import until

AWAY = "postgresql://postgres@127.0.0.1:1/nothing"


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
async def clock():
    return Clock()


@pytest.fixture
async def known(database_url, clock):
    made = Credentials(database_url, now_s=clock)
    yield made
    await made.close()


async def new_token(conn, name="ci", scope="read", expires_at=None):
    return parse_token(await tokens.create(conn, name, scope, expires_at, actor="cli"))


async def test_a_token_is_known_by_its_secret(known, conn):
    parts = await new_token(conn, scope="write")
    found = await known.token(parts)
    assert (found.name, found.scope) == ("ci", "write")
    assert await known.token(TokenParts(parts.id, "0" * 64)) is None
    assert await known.token(TokenParts("0" * 12, parts.secret)) is None


async def test_it_is_read_once_while_it_is_fresh(known, conn, clock):
    parts = await new_token(conn)
    for _ in range(50):
        assert await known.token(parts)
    assert known.reads == 1
    clock.now += FRESH_S + 0.1
    await asyncio.gather(*(known.token(parts) for _ in range(50)))
    assert known.reads == 2


async def test_a_revocation_takes_effect_when_it_is_no_longer_fresh(known, conn, clock):
    parts = await new_token(conn)
    assert await known.token(parts)
    await tokens.revoke(conn, "ci", actor="cli")
    assert await known.token(parts)
    clock.now += FRESH_S + 0.1
    assert await known.token(parts) is None
    assert not await known.has_token(parts.id)


async def test_a_new_token_works_at_once(known, conn, clock):
    assert await known.token(TokenParts("0" * 12, "0" * 64)) is None
    clock.now += AGAIN_S + 0.1
    assert await known.token(await new_token(conn))


async def test_unknown_tokens_make_it_look_once_a_second(known, clock):
    for _ in range(30):
        clock.now += 0.1
        assert await known.token(TokenParts("0" * 12, "0" * 64)) is None
    assert known.reads <= 4
    reads = known.reads
    clock.now += AGAIN_S + 0.1
    assert await known.token(TokenParts("0" * 12, "0" * 64), may_look_again=False) is None
    assert known.reads == reads


async def test_a_token_expires_by_the_clock_also_when_nothing_is_read(database_url, conn):
    now = [datetime.now(UTC).timestamp()]
    known = Credentials(database_url, wall_s=lambda: now[0])
    parts = await new_token(conn, expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert await known.token(parts)
    now[0] += 3_601
    assert await known.token(parts) is None
    assert not await known.has_token(parts.id)
    await known.close()


async def test_a_user_is_known_by_generation(known, conn, clock):
    await users.add(conn, "ann", "x", "admin", actor="cli")
    generation = (await users.find_password(conn, "ann")).generation
    assert (await known.user("ann", generation)).scope == "admin"
    assert await known.user("ann", generation + 1) is None
    assert await known.user("bob", generation) is None
    await users.set_password(conn, "ann", "y", actor="cli")
    clock.now += FRESH_S + 0.1
    assert await known.user("ann", generation) is None


async def test_when_a_token_was_used_last_is_noted_once_a_minute(known, conn, clock):
    parts = await new_token(conn)

    async def last_used():
        return await conn.fetchval("SELECT last_used_at FROM api_tokens")

    await known.token(parts)
    first = await until(last_used, what="last_used_at")
    await known.token(parts)
    clock.now += credentials_module.TOUCH_S + 1

    async def used_again():
        await known.token(parts)
        return await last_used() != first

    await until(used_again, what="another last_used_at")
    assert await known.token(TokenParts(parts.id, "0" * 64)) is None


async def test_what_was_known_is_good_for_a_while_without_the_database(known, conn, clock):
    parts = await new_token(conn)
    assert await known.token(parts)
    await until(lambda: not known._touching)
    known._url = AWAY
    known._conn.terminate()
    clock.now += STALE_S - 10
    assert await known.token(parts)
    assert await known.token(TokenParts("0" * 12, "0" * 64)) is None
    clock.now += 20
    with pytest.raises(CredentialsUnavailableError, match="can't be read from the database") as caught:
        await known.token(parts)
    assert caught.value.code == "database_unavailable"


async def test_without_ever_an_answer_it_is_unavailable_and_recovers(database_url, conn, clock):
    parts = await new_token(conn)
    known = Credentials(AWAY, now_s=clock)
    for _ in range(3):
        with pytest.raises(CredentialsUnavailableError):
            await known.token(parts)
    known._url = database_url
    clock.now += AGAIN_S + 0.1
    assert await known.token(parts)
    await known.close()


async def test_a_database_that_hangs_is_not_waited_for_by_each_request(known, conn, clock, monkeypatch):
    monkeypatch.setattr(credentials_module, "PATIENCE_S", 0.05)
    parts = await new_token(conn)
    assert await known.token(parts)
    await until(lambda: not known._touching)
    released = asyncio.Event()

    async def hang(*_args, **_kwargs):
        await released.wait()
        raise OSError("gone")

    monkeypatch.setattr(database, "connect", hang)
    known._conn.terminate()
    clock.now += FRESH_S + 0.1
    async with asyncio.timeout(5):
        assert await known.token(parts)
        clock.now += 0.1
        assert all(await asyncio.gather(*(known.token(parts) for _ in range(100))))
    released.set()


async def test_a_connection_that_broke_is_made_again(known, conn, clock):
    parts = await new_token(conn)
    assert await known.token(parts)
    await conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )

    async def reads_again():
        clock.now += FRESH_S + 0.1
        before = known.reads
        assert await known.token(parts)
        return known._snapshot.read_at_s == clock.now and known.reads > before

    await until(reads_again, what="a new connection")
