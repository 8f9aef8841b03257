"""How soon a result is visible in ``poll_results``: seen by a client that looks again and again.

A sample of projects is read by primary key every LOOK_S.  The delay of a row is from the poll's finish (``polled_at`` +
``response_time_ms``, by the worker's clock) to the end of the look that showed it first, so it is too long by up to a
look.  Rows of polls that finished before the connection was there are not counted: nobody could have seen them.
"""

import asyncio
import time
from typing import NamedTuple

import asyncpg
import uvloop

from cluster.database import DATABASE_ERRORS
from tests.faults.background import Watcher

LOOK_S = 0.01
RECONNECT_S = 0.1
ROWS_PER_LOOK = 4  # of each project
_LOOK = f"""
    SELECT r.* FROM unnest($1::bigint[]) AS p(id) CROSS JOIN LATERAL (
        SELECT project_id, (extract(epoch FROM scheduled_at) * 1000)::bigint AS scheduled_ms,
               extract(epoch FROM polled_at)::float8 + response_time_ms / 1000 AS finished_at
        FROM poll_results WHERE project_id = p.id ORDER BY scheduled_at DESC LIMIT {ROWS_PER_LOOK}
    ) r
"""


class Sighting(NamedTuple):
    finished_at: float
    seen_at: float

    @property
    def delay_ms(self):
        return (self.seen_at - self.finished_at) * 1000


class VisibilityWatch(Watcher):
    """A context manager: a thread looks inside it."""

    def __init__(self, url, project_ids):
        super().__init__()
        self._url = url
        self._project_ids = list(project_ids)
        self._sightings = []
        self._looks_s = []

    def watch(self):
        uvloop.run(self._watch())

    async def _watch(self):
        while not self.enough.is_set():
            conn = None
            try:
                conn = await asyncpg.connect(self._url, timeout=5)
                await self._look(conn)
            except DATABASE_ERRORS:  # the database is away, as it may be: look again when it is back
                await asyncio.sleep(RECONNECT_S)
            finally:
                if conn is not None:
                    conn.terminate()

    async def _look(self, conn):
        statement = await conn.prepare(_LOOK)
        connected_at = time.time()
        seen = set()
        while not self.enough.is_set():
            began = time.monotonic()
            rows = await statement.fetch(self._project_ids, timeout=5)
            now = time.time()
            self._looks_s.append(time.monotonic() - began)
            for project_id, scheduled_ms, finished_at in rows:
                if (project_id, scheduled_ms) not in seen:
                    seen.add((project_id, scheduled_ms))
                    if finished_at is not None and finished_at >= connected_at:
                        self._sightings.append(Sighting(finished_at, now))
            await asyncio.sleep(LOOK_S)

    def delays_ms(self, since=0.0, until=float("inf")):
        """Of results that were found in the window, sorted."""
        return sorted(each.delay_ms for each in list(self._sightings) if since <= each.finished_at <= until)


def percentile(values, share):
    """Of sorted values; 0 when there is none."""
    return values[min(len(values) - 1, round(share * (len(values) - 1)))] if values else 0.0
