"""Connecting, migrating, classification: what goes wrong, and what is said about it."""

import asyncio
import itertools
import socket
import threading
from urllib.parse import urlsplit

import asyncpg
import pytest

from cluster import database
from cluster.database import Failure
from cluster.errors import ClusterError, InvalidInputError
from cluster.http_options import OPTIONS_SQL
from tests.conftest import execute_once, with_database


async def test_connect_through_the_url_of_the_server(postgres_url):
    conn = await database.connect(postgres_url)
    try:
        assert await conn.fetchval("SELECT 1") == 1
        assert await conn.fetchval("SHOW application_name") == "ringpoll"
    finally:
        await conn.close()


async def test_days_are_utc_days_wherever_the_server_is(database_url):
    await execute_once(
        database_url, f"ALTER DATABASE {urlsplit(database_url).path[1:]} SET timezone TO 'Europe/Berlin'"
    )
    conn = await database.connect(database_url)
    try:
        day = "timestamptz '2027-03-28 00:00:00+00'"  # when summer time begins
        assert await conn.fetchval(f"SELECT {day} + interval '1 day' - {day} = interval '24 hours'")
    finally:
        await conn.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "must begin with postgresql://"),
        ("mysql://root@localhost/x", "must begin with postgresql://"),
        ("postgresql://u:secret@localhost:notaport/x", "not a URL"),
        ("postgresql://u:secret@localhost:5432/x?sslmode=banana", "not usable"),
    ],
)
async def test_a_url_that_is_none_is_a_usage_error(url, says):
    with pytest.raises(InvalidInputError, match=says) as caught:
        await database.connect(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_nobody_listens():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: refused
        port = held.getsockname()[1]
        with pytest.raises(ClusterError, match="cannot reach the database") as caught:
            await database.connect(f"postgresql://joe:secret@127.0.0.1:{port}/shop")
    assert caught.value.code == "database_unavailable"
    assert f'"shop" at 127.0.0.1:{port}' in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_socket_directory_without_a_server(tmp_path):
    with pytest.raises(ClusterError, match="cannot reach the database") as caught:
        await database.connect(f"postgresql://postgres@/postgres?host={tmp_path}&port=5432")
    assert caught.value.code == "database_unavailable"
    assert str(tmp_path) in str(caught.value)


async def test_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ClusterError, match=r"did not answer within 0\.2 s") as caught:
            await database.connect(f"postgresql://joe:secret@127.0.0.1:{port}/shop", timeout_s=0.2)
    assert caught.value.code == "database_unavailable"


async def test_a_server_that_is_no_database():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            peer, _ = server.accept()
            with peer:
                peer.recv(1024)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(ClusterError) as caught:
                await database.connect(f"postgresql://joe@127.0.0.1:{server.getsockname()[1]}/x", timeout_s=2)
        finally:
            thread.join()
    assert caught.value.code == "database_unavailable"


async def test_no_such_database(postgres_url):
    with pytest.raises(ClusterError, match=r'"nowhere" at .* does not exist') as caught:
        await database.connect(with_database(postgres_url, "nowhere"))
    assert caught.value.code == "database_missing"


async def test_a_role_the_server_refuses(postgres_url):
    parts = urlsplit(postgres_url)
    stranger = postgres_url.replace(parts.netloc.rpartition("@")[0] + "@", "nobody_such:secret@", 1)
    with pytest.raises(ClusterError, match="refused the login") as caught:
        await database.connect(stranger)
    assert caught.value.code == "database_refused"
    assert "secret" not in str(caught.value)


# ---- migrating ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def empty(empty_database_url):
    conn = await database.connect(empty_database_url)
    yield conn
    await conn.close()


async def test_migrate_applies_everything_once(empty):
    names = [migration.name for migration in database.migrations()]
    assert await database.schema_version(empty) == 0
    assert await database.migrate(empty) == names
    assert await database.migrate(empty) == []
    rows = await empty.fetch(
        "SELECT version, name, applied_at IS NOT NULL AS stamped FROM schema_migrations ORDER BY 1"
    )
    assert [(row["version"], row["name"], row["stamped"]) for row in rows] == [
        (number, name, True) for number, name in enumerate(names, start=1)
    ]
    assert await database.schema_version(empty) == len(names)


async def test_projects_of_before_set_no_http_options_and_stay_as_they_are(empty, monkeypatch):
    every = database.migrations()
    monkeypatch.setattr(database, "migrations", lambda: every[:3])
    await database.migrate(empty)
    await empty.execute(
        "INSERT INTO projects (url, headers) VALUES ('http://u:p@h/', $1), ('https://h/', 'null'), ('http://h/', NULL)",
        '{"Authorization": "x", "User-Agent": "y"}',
    )
    before = [dict(row) for row in await empty.fetch("SELECT * FROM projects ORDER BY id")]
    spans = await empty.fetch("SELECT * FROM project_spans ORDER BY project_id")
    monkeypatch.setattr(database, "migrations", lambda: every)
    assert "0006_http_options" in await database.migrate(empty)
    rows = await empty.fetch(f"SELECT p.*, {OPTIONS_SQL} AS options FROM projects p ORDER BY id")
    assert [{name: row[name] for name in before[0]} for row in rows] == before
    assert [row["options"] for row in rows] == [None] * 3
    assert await empty.fetch("SELECT * FROM project_spans ORDER BY project_id") == spans


async def test_a_sequence_of_ids_that_was_exhausted_has_room_again(empty, monkeypatch):
    every = database.migrations()
    monkeypatch.setattr(database, "migrations", lambda: every[:1])
    await database.migrate(empty)
    last = (1 << 63) - 1
    await empty.execute("INSERT INTO projects (id, url) VALUES (41, 'http://h/'), ($1, 'http://h/')", last)
    await empty.execute("SELECT setval(pg_get_serial_sequence('projects', 'id'), $1)", last)
    with pytest.raises(asyncpg.SequenceGeneratorLimitExceededError):
        await empty.execute("INSERT INTO projects (url) VALUES ('http://h/')")
    monkeypatch.setattr(database, "migrations", lambda: every)
    assert await database.migrate(empty) == [migration.name for migration in every[1:]]
    assert await empty.fetchval("INSERT INTO projects (url) VALUES ('http://h/') RETURNING id") == 42
    await empty.execute("DELETE FROM projects WHERE id = $1", last)


async def test_a_sequence_of_ids_that_is_well_stays_where_it_is(empty, monkeypatch):
    every = database.migrations()
    monkeypatch.setattr(database, "migrations", lambda: every[:1])
    await database.migrate(empty)
    await empty.execute("SELECT setval(pg_get_serial_sequence('projects', 'id'), 99)")
    monkeypatch.setattr(database, "migrations", lambda: every)
    await database.migrate(empty)
    assert await empty.fetchval("INSERT INTO projects (url) VALUES ('http://h/') RETURNING id") == 100


async def test_several_migrate_at_once(empty_database_url):
    async def one():
        conn = await database.connect(empty_database_url)
        try:
            return await database.migrate(conn)
        finally:
            await conn.close()

    applied = await asyncio.gather(*(one() for _ in range(4)))
    # Each migration is a transaction of its own, so who waits for one may apply the next.
    assert sorted(itertools.chain(*applied)) == [migration.name for migration in database.migrations()]


async def test_a_newer_database_is_refused(empty):
    await database.migrate(empty)
    await empty.execute("INSERT INTO schema_migrations (version, name) VALUES (999, '0999_of_tomorrow')")
    with pytest.raises(ClusterError, match="the database has schema 999, this program knows") as caught:
        await database.migrate(empty)
    assert caught.value.code == "database_newer"
    assert "\n" not in str(caught.value)


async def test_a_failing_migration_leaves_nothing_behind(empty, monkeypatch):
    broken = [
        database.Migration(1, "0001_good", "CREATE TABLE good (x int)"),
        database.Migration(2, "0002_bad", "CREATE TABLE half (x int); SELECT 1 / 0"),
    ]
    monkeypatch.setattr(database, "migrations", lambda: broken)
    with pytest.raises(ClusterError, match="migration 0002_bad failed: division by zero") as caught:
        await database.migrate(empty)
    assert caught.value.code == "migration_failed"
    assert await empty.fetchval("SELECT to_regclass('good')") == "good"
    assert await empty.fetchval("SELECT to_regclass('half')") is None
    assert await database.schema_version(empty) == 1


async def test_a_migration_that_waits_too_long_says_so(empty, empty_database_url, monkeypatch):
    monkeypatch.setattr(database, "MIGRATION_LOCK_WAIT_S", 1)
    other = await database.connect(empty_database_url)
    try:
        await other.execute("SELECT pg_advisory_lock($1)", database.MIGRATION_LOCK)
        with pytest.raises(ClusterError, match="another migration has been running") as caught:
            await database.migrate(empty)
        assert caught.value.code == "migration_locked"
    finally:
        await other.close()


# ---- classification -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ConnectionResetError("reset"), Failure.RETRY),
        (TimeoutError(), Failure.RETRY),
        (asyncpg.ConnectionDoesNotExistError("connection was closed"), Failure.RETRY),
        (asyncpg.InterfaceError("connection is closed"), Failure.RETRY),
        (asyncpg.AdminShutdownError("terminating"), Failure.RETRY),
        (asyncpg.CannotConnectNowError("starting up"), Failure.RETRY),
        (asyncpg.TooManyConnectionsError("sorry"), Failure.RETRY),
        (asyncpg.DiskFullError("no space"), Failure.RETRY),
        (asyncpg.DeadlockDetectedError("deadlock"), Failure.RETRY),
        (asyncpg.SerializationError("again"), Failure.RETRY),
        (asyncpg.LockNotAvailableError("lock"), Failure.RETRY),
        (asyncpg.ReadOnlySQLTransactionError("a standby"), Failure.RETRY),
        (asyncpg.InternalServerError("internal"), Failure.RETRY),
        (asyncpg.UniqueViolationError("doubled"), Failure.REJECT),
        (asyncpg.CheckViolationError("no"), Failure.REJECT),
        (asyncpg.CharacterNotInRepertoireError("NUL"), Failure.REJECT),
        (asyncpg.DatetimeFieldOverflowError("when"), Failure.REJECT),
        (asyncpg.DataError("not an int"), Failure.REJECT),
        (OverflowError("int too big"), Failure.REJECT),
        (asyncpg.UndefinedTableError("no table"), Failure.FATAL),
        (asyncpg.InsufficientPrivilegeError("no right"), Failure.FATAL),
        (asyncpg.InvalidPasswordError("no"), Failure.FATAL),
        (asyncpg.InvalidCatalogNameError("no"), Failure.FATAL),
        (asyncpg.ClientConfigurationError("no"), Failure.FATAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_classify(error, failure):
    assert database.classify(error) is failure


def test_describe_is_one_bounded_printable_line():
    error = asyncpg.UniqueViolationError("doubled\nDETAIL: \x1b[31mKey\x00" + "x" * 1000)
    text = database.describe(error)
    assert text.isprintable()
    assert len(text) == database.ERROR_TEXT_MAX
    assert database.describe(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("postgresql://h/d", {}, [("h", 5432)]),
        ("postgres://u:p@h:5433/d", {}, [("h", 5433)]),
        ("postgresql://u@[::1]:5433/d", {}, [("::1", 5433)]),
        ("postgresql://[fd00::1]/d", {}, [("fd00::1", 5432)]),
        ("postgresql://h1,h2:5433/d", {}, [("h1", 5432), ("h2", 5433)]),
        ("postgresql:///d?host=h1,h2&port=1,2", {}, [("h1", 1), ("h1", 2), ("h2", 1), ("h2", 2)]),
        ("postgresql://h/d?port=1", {}, [("h", 5432)]),
        ("postgresql://%2Frun%2Fpg:5433/d", {}, [("", 5433)]),
        ("postgresql:///d?host=/run/pg&port=5433", {}, [("", 5433)]),
        ("postgresql://u@/d?host=h:5433", {}, [("h", 5433)]),
        ("postgresql:///d", {}, [("", 5432)]),
        ("postgresql:///d", {"PGHOST": "h1,/run/pg", "PGPORT": "5433"}, [("h1", 5433), ("", 5433)]),
        ("postgresql://h/d", {"PGHOST": "other", "PGPORT": "5433"}, [("h", 5433)]),
        ("postgresql://h:1/d?host=other&port=2", {"PGPORT": "3"}, [("h", 1)]),
        ("postgresql:///d?port=x", {}, []),  # asyncpg refuses it
    ],
)
def test_where_a_url_leads(url, variables, expected, monkeypatch):
    for name in ("PGHOST", "PGPORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert database.endpoints_of(url) == expected


async def test_describe_does_not_repeat_a_refused_row(database_url):
    conn = await database.connect(database_url)
    try:
        for column in ("'http://user:canary@h/', 0", "'http://user:canary@h/', NULL"):
            with pytest.raises(asyncpg.IntegrityConstraintViolationError) as caught:
                await conn.execute(f"INSERT INTO projects (url, interval) VALUES ({column})")
            assert "canary" in str(caught.value)
            text = database.describe(caught.value)
            assert "projects" in text
            assert "SQLSTATE 23" in text
            assert "canary" not in text
    finally:
        await conn.close()
