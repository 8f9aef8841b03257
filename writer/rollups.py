"""The writer's second connection: history kept up to date beside the flushes, and never in their way.

What is next is decided by RollupPlan, and done by rollup_steps, one transaction at a time, with a rest after each that
is as long as it took.  An error costs the connection and a while; nothing is lost, since each step begins with where
the tables stand.  Nothing depends on it: polling and flushes go on without.
"""

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime
from typing import assert_never

from cluster import database
from cluster.database import Connection
from cluster.errors import ClusterError
from writer import rollup_steps
from writer.rollup_plan import (
    Action,
    Claim,
    Expire,
    Position,
    RemakeChunk,
    Rest,
    Retention,
    RollChunk,
    RollupPlan,
    Skip,
    SumChunk,
)
from writer.rollup_steps import Done, LateJob

STEP_TIMEOUT_S = 60.0
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0

logger = logging.getLogger("writer.rollups")


class Rollups:
    """``run`` it as a task, until it is cancelled."""

    def __init__(self, url: str, retention: Retention) -> None:
        self._url = url
        self._plan = RollupPlan(retention)
        self._conn: Connection | None = None
        self._waited_for: datetime | None = None  # on this connection, flushes that may not know of this claim
        self._job: LateJob | None = None
        self._began_at = datetime.now(UTC)
        self._rolled_to: datetime | None = None
        self._error = ""

    def lag_ms(self) -> float:
        """How long ago it was up to when everything is rolled up, as far as it was heard."""
        since = self._rolled_to or self._began_at
        return max(0.0, (datetime.now(UTC) - since).total_seconds() * 1_000)

    async def run(self) -> None:
        retry_s = RETRY_FIRST_S
        try:
            while True:
                try:
                    async with asyncio.timeout(STEP_TIMEOUT_S):
                        rest_s = await self.step()
                    retry_s = RETRY_FIRST_S
                except (ClusterError, *database.DATABASE_ERRORS) as error:
                    self._failed(error)
                    rest_s, retry_s = retry_s, min(RETRY_MAX_S, retry_s * 2)
                await asyncio.sleep(rest_s)
        finally:
            self._drop_connection()

    async def step(self) -> float:
        """Do what is next; returns for how many seconds to rest.  Raises database errors and ClusterError."""
        conn = self._conn
        if conn is None or conn.is_closed():
            conn = self._conn = await database.connect(self._url)
            self._waited_for = self._job = None
            await conn.execute(rollup_steps.SESSION)
        began = time.monotonic()
        position = await rollup_steps.look(conn)
        action = self._plan.next(position)
        await self._perform(conn, position, action)
        if self._error:
            logger.info("the rollups go on")
            self._error = ""
        # While a pass is under way, it is not known of all projects.
        self._rolled_to = position.rolled_to
        return action.seconds if isinstance(action, Rest) else time.monotonic() - began

    async def _perform(self, conn: Connection, position: Position, action: Action) -> None:
        began = time.monotonic()
        match action:
            case Claim(to):
                await rollup_steps.claim(conn, to)
            case Skip(to):
                logger.info("rolling up goes on from %s: results of before are no longer kept", to.isoformat())
                await rollup_steps.skip(conn, to)
            case RollChunk(projects):
                if self._waited_for != position.claimed_to:
                    await rollup_steps.pass_flushes(conn)
                    self._waited_for = position.claimed_to
                    began = time.monotonic()
                done = await rollup_steps.roll_chunk(conn, projects)
                self._plan.chunk_done(action, time.monotonic() - began, done.projects, done.polls)
                if done.finished:
                    self._plan.pass_done()
            case RemakeChunk(projects):
                done = await self._remake(conn, projects)
                self._plan.chunk_done(action, time.monotonic() - began, done.projects, 0)
            case SumChunk(table, projects):
                done = await rollup_steps.sum_chunk(conn, table, projects)
                self._plan.chunk_done(action, time.monotonic() - began, done.projects, 0)
            case Expire(table, before):
                self._plan.expired(more=await rollup_steps.expire(conn, table, before))
            case Rest():
                pass
            case _:
                assert_never(action)

    async def _remake(self, conn: Connection, projects: int) -> Done:
        """What is late of single projects goes before what is late of many."""
        done = await rollup_steps.remake_singles(conn)
        if not done.finished:
            return Done(0, 0, finished=False)  # it says nothing of how many projects a chunk may have
        if self._job is None:
            self._job = await rollup_steps.pick_job(conn)
        if self._job is None:
            return done
        job = self._job
        done = await rollup_steps.remake_chunk(conn, job, projects)
        if done.finished:
            logger.info("%s to %s is rolled up anew", job.since.isoformat(), job.until.isoformat())
            self._job = None
        return done

    def _failed(self, error: Exception) -> None:
        self._drop_connection()
        text = str(error) if isinstance(error, ClusterError) else database.describe(error)
        if text != self._error:
            logger.warning("rollups stand still, trying again: %s", text)
        self._error = text

    def _drop_connection(self) -> None:
        if self._conn is not None:
            with contextlib.suppress(*database.DATABASE_ERRORS):
                self._conn.terminate()
            self._conn = None
