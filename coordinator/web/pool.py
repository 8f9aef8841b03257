"""The API's own connections to the database: few, made when they are needed, never waited for long.

- At most CONNECTIONS_MAX, apart from the coordinator's own connection: whatever the API is asked, projects are loaded
  and changes are heard of as before, and polling needs neither.
- A statement ends after STATEMENT_TIMEOUT_S; a request waits at most ACQUIRE_S for a connection, and at most
  WAITING_MAX of them wait: the next one is told ``busy``.
- What the database or the way to it does becomes a problem here: 503 with Retry-After while it is away.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import asyncpg

from cluster.database import SESSION_SETTINGS, Connection, Failure, classify, describe
from coordinator.project_rows import DATABASE_AWAY
from coordinator.throttle import ThrottledLog
from coordinator.web.problems import ProblemError

CONNECTIONS_MAX = 4
WAITING_MAX = 200
ACQUIRE_S = 5.0
CONNECT_S = 5.0
STATEMENT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = STATEMENT_TIMEOUT_S + 2.0  # when the server does not end it
IDLE_S = 60.0
CLOSE_S = 2.0

logger = logging.getLogger("coordinator.web.pool")

Pool: TypeAlias = "asyncpg.Pool[Any]"


class ApiConnection(asyncpg.Connection):
    """Nothing of a session is set outside of a transaction here, so there is nothing to set back after each request."""

    def get_reset_query(self) -> str:
        return ""


class ApiPool:
    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Pool | None = None
        self._making = asyncio.Lock()
        self._users = 0
        self._throttled = ThrottledLog(logger)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """For one request.  Raises ProblemError for everything that the database does."""
        if self._users >= CONNECTIONS_MAX + WAITING_MAX:
            raise ProblemError("busy", f"{WAITING_MAX} requests wait for the database; try again")
        self._users += 1
        try:
            pool = await self._made()
            async with pool.acquire(timeout=ACQUIRE_S) as connection:
                yield connection  # type: ignore[misc] # a proxy of one, which stands for it
        except DATABASE_AWAY as error:
            raise self._problem(error) from error
        finally:
            self._users -= 1

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await pool.close()
        except (TimeoutError, *DATABASE_AWAY):
            pool.terminate()

    async def _made(self) -> Pool:
        async with self._making:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=CONNECTIONS_MAX,
                    connection_class=ApiConnection,
                    max_inactive_connection_lifetime=IDLE_S,
                    timeout=CONNECT_S,
                    command_timeout=COMMAND_TIMEOUT_S,
                    server_settings={
                        "application_name": "ringpoll api",
                        **SESSION_SETTINGS,
                        "statement_timeout": str(int(STATEMENT_TIMEOUT_S * 1000)),
                    },
                )
            return self._pool

    def _problem(self, error: BaseException) -> ProblemError:
        if isinstance(error, asyncpg.QueryCanceledError):
            return ProblemError(
                "timeout", f"the database did not answer within {STATEMENT_TIMEOUT_S:g} s; ask for less"
            )
        match classify(error):
            case Failure.REJECT:
                return ProblemError("invalid_request", f"the database refused it: {describe(error)}")
            case Failure.FATAL:
                self._throttled.warning(f"the database refused what the API asked: {describe(error)}")
                return ProblemError("failed", f"the database refused it: {describe(error)}")
            case Failure.RETRY:
                self._throttled.warning(f"the database failed the API: {describe(error)}")
                return ProblemError("database_unavailable", f"the database does not answer: {describe(error)}")
