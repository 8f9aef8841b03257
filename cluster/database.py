"""PostgreSQL at the edge: connecting, migrating, and saying what a failure means.

- ``connect`` turns everything that can go wrong into one line for a person, without the password.
- ``migrate`` brings a database to this program's schema: ``migrations/NNNN_name.sql`` in order, each in a transaction
  of its own under an advisory lock, recorded in ``schema_migrations``.  Running it twice, or in two processes at once,
  is harmless.  A database newer than the program is refused.
- ``classify`` says of a library's or the system's error what to do about it, by class and SQLSTATE, never by text.

It keeps no connection and retries nothing: who needs a connection for long owns it, and its retries.
"""

import enum
import importlib.resources
import os
import re
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import msgspec

from cluster.errors import ClusterError, InvalidInputError

CONNECT_TIMEOUT_S = 10.0
USUAL_PORT = 5432
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]*))?")
MIGRATION_LOCK = 0x72_69_6E_67  # "ring": the key of the advisory lock under which migrations run
MIGRATION_LOCK_WAIT_S = 60
ERROR_TEXT_MAX = 500

Connection: TypeAlias = "asyncpg.Connection[Any]"


class Failure(enum.Enum):
    """What a failed statement calls for."""

    RETRY = "retry"  # the server or the way to it: the same again, later, on a new connection
    REJECT = "reject"  # the data: the same again fails again
    FATAL = "fatal"  # the set-up (schema, rights, configuration): a person has to act


# By SQLSTATE class (its first two characters), PostgreSQL manual appendix A.  Classes not listed are RETRY.
_FAILURE_OF_SQLSTATE_CLASS = {
    "0A": Failure.FATAL,  # feature not supported
    "21": Failure.REJECT,  # cardinality violation
    "22": Failure.REJECT,  # data exception
    "23": Failure.REJECT,  # integrity constraint violation
    "26": Failure.RETRY,  # prepared statement that no longer exists (a pooler in between)
    "28": Failure.FATAL,  # authorisation
    "3D": Failure.FATAL,  # no such database
    "3F": Failure.FATAL,  # no such schema
    "42": Failure.FATAL,  # no such table, no privilege, syntax
    "44": Failure.REJECT,  # WITH CHECK OPTION violation
}


def classify(error: BaseException) -> Failure:
    """Source of the classes: the PostgreSQL manual, appendix A, and asyncpg's own exceptions."""
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = str(getattr(error, "sqlstate", "") or "")
        return _FAILURE_OF_SQLSTATE_CLASS.get(sqlstate[:2], Failure.RETRY)
    if isinstance(error, asyncpg.ClientConfigurationError | asyncpg.UnsupportedClientFeatureError):
        return Failure.FATAL
    if isinstance(error, ValueError | OverflowError):  # a value that has no binary form: asyncpg.DataError is one, too
        return Failure.REJECT
    return Failure.RETRY


# What a database operation may raise; anything else is a bug of ours.
DATABASE_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # TimeoutError is one, too
    EOFError,
    ValueError,
    OverflowError,
)


def describe(error: BaseException) -> str:
    """One line about a database error: its kind and its text, printable and bounded."""
    text = str(error)
    if isinstance(error, asyncpg.CheckViolationError | asyncpg.NotNullViolationError) and error.args:
        text = str(error.args[0])  # the detail is the whole row, with the secrets of a project
    text = " ".join(text.split()) or type(error).__name__
    sqlstate = getattr(error, "sqlstate", None)
    text = f"{text} (SQLSTATE {sqlstate})" if isinstance(sqlstate, str) else text
    return "".join(c if c.isprintable() else "?" for c in text)[:ERROR_TEXT_MAX]


# ---- connecting -----------------------------------------------------------------------------------------------------


# Days are UTC days everywhere: ``+ interval '1 day'`` is one only in a session whose time zone has no summer time.
SESSION_SETTINGS = {"TimeZone": "UTC"}


async def connect(url: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Connection:
    """A new connection.  Raises ClusterError (code ``database_...``), InvalidInputError for a URL that is none."""
    check_url(url)
    where = place(url)
    try:
        return await asyncpg.connect(
            url, timeout=timeout_s, server_settings={"application_name": "ringpoll", **SESSION_SETTINGS}
        )
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError) as error:
        raise ClusterError(
            f"the database {where} refused the login ({_first_line(error)}); check user and password in DATABASE_URL",
            code="database_refused",
        ) from error
    except asyncpg.InvalidCatalogNameError as error:
        raise ClusterError(
            f"the database {where} does not exist; create it, or correct DATABASE_URL", code="database_missing"
        ) from error
    except asyncpg.ClientConfigurationError as error:
        raise InvalidInputError(f"DATABASE_URL is not usable: {_first_line(error)}") from error
    except TimeoutError as error:
        raise ClusterError(
            f"the database {where} did not answer within {timeout_s:g} s; is the address right, is it running?",
            code="database_unavailable",
        ) from error
    except DATABASE_ERRORS as error:
        raise ClusterError(
            f"cannot reach the database {where} ({_first_line(error)}); is it running and reachable from here?",
            code="database_unavailable",
        ) from error


def check_url(url: str) -> None:
    """Raises InvalidInputError unless it looks like a PostgreSQL URL."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InvalidInputError(
            f"DATABASE_URL is not a URL ({error}); it looks like postgresql://user:password@host:5432/database"
        ) from None
    if parts.scheme not in {"postgresql", "postgres"}:
        raise InvalidInputError(
            "DATABASE_URL must begin with postgresql://, for example postgresql://user:password@host:5432/database"
        )


def place(url: str) -> str:
    """Where a database URL leads, for messages: ``"name" at host:port``.  Never the password."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    host = parts.hostname or query.get("host", ["localhost"])[0]
    port = parts.port or query.get("port", ["5432"])[0]
    name = parts.path.removeprefix("/") or query.get("database", query.get("dbname", [parts.username or ""]))[0]
    return f'"{name}" at {host}:{port}'


def endpoints_of(url: str) -> list[tuple[str, int]]:
    """Each host and port to which a database URL may lead; the host is "" for this machine's own socket or default.

    As asyncpg reads it: there may be several hosts, with commas between them; of several ports that are said apart from
    them any may be meant; the query counts only where no host is before the path, PGHOST and PGPORT where nothing else.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    named = parts.netloc.rpartition("@")[2]
    hosts = named or query.get("host", [""])[0] or os.environ.get("PGHOST", "")
    ports = ("" if named else query.get("port", [""])[0]) or os.environ.get("PGPORT", "") or str(USUAL_PORT)
    found: dict[tuple[str, int], None] = {}
    for spec in hosts.split(","):
        match = _HOST_AND_PORT.fullmatch(spec)
        host = unquote(match[1].strip("[]")) if match is not None else ""
        said = [match[2]] if match is not None and match[2] else ports.split(",")
        for port in said:
            if port.isdecimal():
                found["" if host.startswith("/") else host, int(port)] = None
    return list(found)


def _first_line(error: BaseException) -> str:
    """The system's own words, which name addresses and users but never a password."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0].strip() if lines else type(error).__name__


# ---- migrating ------------------------------------------------------------------------------------------------------


class Migration(msgspec.Struct, frozen=True):
    version: int
    name: str  # 0001_initial
    sql: str


_MIGRATION_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_CREATE_SCHEMA_MIGRATIONS = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        version    int PRIMARY KEY,
        name       text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""


def migrations() -> list[Migration]:
    """The migrations of this program, in the order in which they apply."""
    found = []
    for entry in importlib.resources.files("cluster").joinpath("migrations").iterdir():
        match = _MIGRATION_FILE.fullmatch(entry.name)
        if match:
            name = entry.name.removesuffix(".sql")
            found.append(Migration(int(match[1]), name, entry.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    assert [m.version for m in found] == list(range(1, len(found) + 1)), "migrations are numbered from 0001, no gaps"
    return found


async def schema_version(conn: Connection) -> int:
    """The newest migration applied, 0 for an empty database."""
    if await conn.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return 0
    version = await conn.fetchval("SELECT max(version) FROM schema_migrations")
    return int(version or 0)


async def migrate(conn: Connection) -> list[str]:
    """Apply what is missing and return the names of what was applied.  Raises ClusterError."""
    known = migrations()
    if await schema_version(conn) == len(known):
        return []
    applied = []
    for migration in known:
        try:
            if await _apply(conn, migration, newest=len(known)):
                applied.append(migration.name)
        except asyncpg.LockNotAvailableError as error:
            raise ClusterError(
                f"another migration has been running for {MIGRATION_LOCK_WAIT_S} s; wait for it, then try again",
                code="migration_locked",
            ) from error
        except DATABASE_ERRORS as error:
            raise ClusterError(
                f"migration {migration.name} failed: {describe(error)}; nothing of it was applied",
                code="migration_failed",
            ) from error
    return applied


async def _apply(conn: Connection, migration: Migration, *, newest: int) -> bool:
    async with conn.transaction():
        await conn.execute(f"SET LOCAL lock_timeout = '{MIGRATION_LOCK_WAIT_S}s'")
        await conn.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
        await conn.execute(_CREATE_SCHEMA_MIGRATIONS)
        version = await conn.fetchval("SELECT coalesce(max(version), 0) FROM schema_migrations")
        if version > newest:
            raise ClusterError(
                f"the database has schema {version}, this program knows schema {newest}; install a newer ringpoll",
                code="database_newer",
            )
        if version >= migration.version:
            return False
        await conn.execute(migration.sql)
        await conn.execute(
            "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", migration.version, migration.name
        )
        return True
