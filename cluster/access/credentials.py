"""The tokens and users that are valid, as a running server knows them.

All of them are in memory, read again when a request comes and they are older than FRESH_S: so a revocation takes effect
within that time, requests cost no query each, and a made-up token costs none at all.  What isn't known makes it look
again, at most once in AGAIN_S, so a new token works at once.

While the database does not answer, what was known is good for STALE_S more: that is when people want to see what is
going on.  Then, and when nothing was ever read, it raises CredentialsUnavailableError.  It has a connection of its own,
made when it is needed, so that a busy API can't keep a revocation from being seen.
"""

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime

import asyncpg
import msgspec

from cluster import database
from cluster.access.scopes import Scope, TokenParts
from cluster.access.tokens import TOKENS_MAX, hash_secret
from cluster.access.users import USERS_MAX
from cluster.database import Connection
from cluster.errors import ClusterError

FRESH_S = 5.0
AGAIN_S = 1.0
STALE_S = 900.0
PATIENCE_S = 1.0  # of requests for a reading, when something is known
CONNECT_S = 3.0
STATEMENTS_S = 3.0  # what is done on the connection at a time
TOUCH_S = 60.0  # how exact last_used_at is

_TOKENS = """
    SELECT id, name, secret_sha256, scope, expires_at FROM api_tokens
    WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) ORDER BY created_at LIMIT $1"""
_USERS = "SELECT name, scope, generation FROM users ORDER BY name LIMIT $1"

logger = logging.getLogger("cluster.access")


class CredentialsUnavailableError(ClusterError):
    def __init__(self, why: str) -> None:
        super().__init__(f"who may use this can't be read from the database: {why}", code="database_unavailable")


class KnownToken(msgspec.Struct, frozen=True):
    id: str
    name: str
    secret_sha256: bytes
    scope: Scope
    expires_at: datetime | None


class KnownUser(msgspec.Struct, frozen=True):
    name: str
    scope: Scope
    generation: int


class Snapshot(msgspec.Struct, frozen=True):
    read_at_s: float  # monotonic: when the reading began
    tokens: dict[str, KnownToken]
    users: dict[str, KnownUser]


async def expect_somebody(conn: Connection, address: str) -> None:
    """Raises ClusterError when there is neither a token nor a user, so that nobody could use what listens there.

    A token that has expired counts, with a warning: a cluster that polled yesterday starts again today.
    """
    try:
        row = await conn.fetchrow(
            "SELECT EXISTS (SELECT 1 FROM users) AS users, count(*) AS tokens, "
            "count(*) FILTER (WHERE expires_at IS NULL OR expires_at > now()) AS usable "
            "FROM api_tokens WHERE revoked_at IS NULL"
        )
    except asyncpg.UndefinedTableError as error:
        raise ClusterError("the database lacks a table; run `cluster migrate`", code="database_older") from error
    assert row is not None
    if not row["users"] and not row["tokens"]:
        raise ClusterError(
            f"--http {address} lets others in, and there is neither a token nor a user yet: make one with "
            "`cluster token create --name NAME --scope admin` or `cluster user add NAME --scope admin`, then try again",
            code="no_credentials",
        )
    if not row["users"] and not row["usable"]:
        logger.warning("every API token has expired and there is no user: nobody can use the HTTP API")


class Credentials:
    """``close`` it in the end."""

    def __init__(
        self,
        database_url: str,
        *,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        fresh_s: float = FRESH_S,
    ) -> None:
        self._url = database_url
        self._now_s = now_s
        self._wall_s = wall_s
        self._fresh_s = fresh_s
        self._lock = asyncio.Lock()
        self._conn: Connection | None = None
        self._snapshot: Snapshot | None = None
        self._reading: asyncio.Task[None] | None = None
        self._tried_at_s = -AGAIN_S
        self._why = "not asked yet"
        self._touched: dict[str, float] = {}
        self._touching: set[asyncio.Task[None]] = set()
        self.reads = 0

    async def token(self, parts: TokenParts, *, may_look_again: bool = True) -> KnownToken | None:
        """The token that this is, if it is valid."""
        snapshot = await self._current(self._fresh_s)
        if parts.id not in snapshot.tokens and may_look_again:
            snapshot = await self._current(AGAIN_S)
        found = snapshot.tokens.get(parts.id)
        if found is None or not hmac.compare_digest(found.secret_sha256, hash_secret(parts.secret)):
            return None
        if self._has_expired(found):
            return None
        self._touch(found.id)
        return found

    async def has_token(self, token_id: str) -> bool:
        """Whether a token that was valid is so still."""
        found = (await self._current(self._fresh_s)).tokens.get(token_id)
        return found is not None and not self._has_expired(found)

    async def user(self, name: str, generation: int) -> KnownUser | None:
        """The user, if they are still of this generation."""
        for age_s in (self._fresh_s, AGAIN_S):
            found = (await self._current(age_s)).users.get(name)
            if found is not None and found.generation == generation:
                return found
        return None

    async def look_again(self) -> None:
        """After something was changed that the next request should see."""
        with contextlib.suppress(CredentialsUnavailableError):  # the next request says so
            await self._current(0.0)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """The connection, one user at a time.  Raises CredentialsUnavailableError when the database doesn't answer."""
        try:
            async with asyncio.timeout(CONNECT_S + STATEMENTS_S), self._lock:
                if self._conn is None or self._conn.is_closed():
                    self._conn = await database.connect(self._url, timeout_s=CONNECT_S)
                try:
                    yield self._conn
                except BaseException:  # in whatever state it is now
                    self._conn.terminate()
                    self._conn = None
                    raise
        except ClusterError as error:
            raise CredentialsUnavailableError(str(error)) from error
        except database.DATABASE_ERRORS as error:
            raise CredentialsUnavailableError(database.describe(error)) from error

    async def close(self) -> None:
        tasks = [*self._touching, *([] if self._reading is None else [self._reading])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._conn is not None and not self._conn.is_closed():
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                await self._conn.close(timeout=1)
        self._conn = None

    async def _current(self, age_s: float) -> Snapshot:
        """Not older than that; as it is known where the database can't say."""
        now_s = self._now_s()
        known = self._snapshot
        if known is not None and now_s - known.read_at_s <= age_s:
            return known
        if self._reading is None and (now_s - self._tried_at_s >= AGAIN_S or age_s == 0.0):
            self._tried_at_s = now_s
            self._reading = asyncio.get_running_loop().create_task(self._read())
        if (reading := self._reading) is not None:
            waited_s = self._now_s() - self._tried_at_s
            await asyncio.wait({reading}, timeout=None if known is None else max(0.0, PATIENCE_S - waited_s))
            if reading.done():
                reading.result()
        known = self._snapshot
        if known is None or self._now_s() - known.read_at_s > STALE_S:
            raise CredentialsUnavailableError(self._why)
        return known

    async def _read(self) -> None:
        try:
            async with self.connection() as conn:
                began_at_s = self._now_s()
                self.reads += 1
                tokens = await conn.fetch(_TOKENS, TOKENS_MAX)
                users = await conn.fetch(_USERS, USERS_MAX)
            self._snapshot = Snapshot(
                began_at_s,
                {row["id"]: KnownToken(**dict(row)) for row in tokens},
                {row["name"]: KnownUser(**dict(row)) for row in users},
            )
            self._touched = {id_: at for id_, at in self._touched.items() if id_ in self._snapshot.tokens}
        except CredentialsUnavailableError as error:
            self._why = str(error)
            logger.info("%s", error)
        finally:
            self._reading = None

    def _has_expired(self, token: KnownToken) -> bool:
        return token.expires_at is not None and token.expires_at.timestamp() <= self._wall_s()

    def _touch(self, token_id: str) -> None:
        now_s = self._now_s()
        if now_s - self._touched.get(token_id, -TOUCH_S) < TOUCH_S:
            return
        self._touched[token_id] = now_s
        task = asyncio.get_running_loop().create_task(self._write_touch(token_id))
        self._touching.add(task)
        task.add_done_callback(self._touching.discard)

    async def _write_touch(self, token_id: str) -> None:
        try:
            async with self.connection() as conn:
                await conn.execute("UPDATE api_tokens SET last_used_at = now() WHERE id = $1", token_id)
        except CredentialsUnavailableError as error:
            logger.info("when a token was used last was not noted: %s", error)
