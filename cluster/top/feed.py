"""Where ``cluster top`` gets what it shows: the admin socket each second, the database each two, in a thread each.

The view never waits for either: it draws the newest :class:`TopFacts`.  What is away is said, asked again, and shown as
it was; a connection that failed is made anew.  Nothing is changed and no server is started.

A database of many projects is not read whole: those that are down or have failed last, and of the others
``PROJECTS_PER_LOOK`` in each round, one after the other by id; of what was seen the slowest ``PROJECTS_KEPT`` are kept.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import zmq

from cluster import database
from cluster.admin_client import AdminClient
from cluster.bounded import resolve_host
from cluster.embedded import running_dsn
from cluster.errors import ClusterError
from cluster.settings import Settings
from cluster.supervisor.lock import find_holder
from cluster.top.state import polls_per_s

STATUS_EVERY_S = 1.0
STATUS_ANSWER_S = 5.0
LOOK_EVERY_S = 2.0
LOOK_S = 10.0
STATEMENT_MS = 5_000
CONNECT_S = 5.0
JOIN_S = 1.0
PROJECTS_PER_LOOK = 1_000
PROJECTS_KEPT = 1_000
DOWN_SHOWN = 500
CHANGES_SHOWN = 200
RESULTS_SHOWN = 100
MISSED_SHOWN = 20


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """A project that is looked into; ``project`` None: there is none of that id any more."""

    project_id: int
    project: Mapping[str, Any] | None
    results: Sequence[Mapping[str, Any]] = ()
    changes: Sequence[Mapping[str, Any]] = ()
    missed: Sequence[Mapping[str, Any]] = ()


class TopFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``*_why``: what is in the way, "" while it answers; what was known before is kept."""

    status: Mapping[str, Any] | None = None
    status_at: float = 0.0  # monotonic
    status_why: str = ""
    polls_per_s: float | None = None
    projects: Sequence[Mapping[str, Any]] = ()
    projects_seen: int = 0  # how many were looked at since the round began, of how many
    projects_enabled: int = 0
    changes: Sequence[Mapping[str, Any]] = ()
    detail: Detail | None = None
    database_why: str = "not asked yet"


class Feed:
    """``changed`` is called, in a thread of the feed, when there is a new snapshot."""

    def __init__(self, settings: Settings, changed: Callable[[], None]) -> None:
        self._settings = settings
        self._changed = changed
        self._lock = threading.Lock()
        self._snapshot = TopFacts()
        self._stop = threading.Event()
        self._look_now = threading.Event()
        self._wanted: int | None = None
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._follow_status, self._follow_database)
        ]

    def start(self, first: Mapping[str, Any]) -> None:
        """``first``: the status document that was got already."""
        self._update(status=first, status_at=time.monotonic())
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        """A thread that hangs in a system call is left behind; it holds nothing."""
        self._stop.set()
        self._look_now.set()
        for each in self._threads:
            if each.is_alive():
                each.join(JOIN_S)

    @property
    def snapshot(self) -> TopFacts:
        with self._lock:
            return self._snapshot

    def want(self, project_id: int | None) -> None:
        """Which project is looked into."""
        if project_id != self._wanted:
            self._wanted = project_id
            self._look_now.set()

    def _update(self, **changes: Any) -> None:
        with self._lock:
            self._snapshot = msgspec.structs.replace(self._snapshot, **changes)
        self._changed()

    # ---- the admin socket -----------------------------------------------------------------------------------------

    def _follow_status(self) -> None:
        while not self._stop.is_set():
            try:
                with AdminClient(self._settings) as client:
                    while not self._stop.wait(STATUS_EVERY_S):
                        self._take(client.request({"type": "status"}, STATUS_ANSWER_S)["status"])
            except (ClusterError, KeyError, zmq.ZMQError) as error:
                why = str(error) if isinstance(error, ClusterError) else f"it can't be asked ({error!r})"
                self._update(status_why=why, polls_per_s=None)
                self._stop.wait(STATUS_EVERY_S)

    def _take(self, status: Mapping[str, Any]) -> None:
        now, before = time.monotonic(), self.snapshot
        rate = None
        if before.status is not None and not before.status_why:
            rate = polls_per_s(before.status, status, now - before.status_at)
        self._update(status=status, status_at=now, status_why="", polls_per_s=rate)

    # ---- the database ---------------------------------------------------------------------------------------------

    def _follow_database(self) -> None:
        while not self._stop.is_set():
            try:
                url = _url(self._settings)
                resolve_host(url)
                asyncio.run(self._look_again_and_again(url))
            except TimeoutError:
                self._update(database_why=f"it did not answer within {LOOK_S:g} s")
                self._stop.wait(LOOK_EVERY_S)
            except (ClusterError, *database.DATABASE_ERRORS) as error:
                why = str(error) if isinstance(error, ClusterError) else database.describe(error)
                self._update(database_why=why)
                self._stop.wait(LOOK_EVERY_S)

    async def _look_again_and_again(self, url: str) -> None:
        conn = await database.connect(url, timeout_s=CONNECT_S)
        try:
            await conn.execute(f"SET statement_timeout = {STATEMENT_MS}; SET lock_timeout = 1000")
            if not await database.schema_version(conn):
                raise ClusterError("the database has no tables of ours; run `cluster migrate`")
            look = ProjectLook(conn)
            while not self._stop.is_set():
                self._look_now.clear()
                await asyncio.wait_for(self._look(conn, look), LOOK_S)
                await asyncio.to_thread(self._look_now.wait, LOOK_EVERY_S)
        finally:
            conn.terminate()

    async def _look(self, conn: database.Connection, look: "ProjectLook") -> None:
        wanted = self._wanted
        if wanted is not None:
            self._update(detail=await read_detail(conn, wanted), database_why="")
        await look.go_on()
        changes = [_readable(row) for row in await conn.fetch(_CHANGES, CHANGES_SHOWN)]
        self._update(
            projects=look.projects,
            projects_seen=look.seen,
            projects_enabled=look.enabled,
            changes=changes,
            database_why="",
        )


def _url(settings: Settings) -> str:
    if settings.database_url is not None:
        return settings.database_url
    holder = find_holder(settings.run_dir)
    if holder is not None and not holder.embedded:
        raise ClusterError("the cluster uses a database of its own: give --database-url or set DATABASE_URL")
    url = running_dsn(settings.data_dir)
    if url is None:
        raise ClusterError(
            f"no embedded PostgreSQL runs in {settings.data_dir}; give --database-url if it is elsewhere"
        )
    return url


_NEWEST = """
    LEFT JOIN LATERAL (
        SELECT polled_at, extract(epoch FROM polled_at - scheduled_at)::float8 * 1000 AS late_ms, status::text,
               status_code, response_time_ms, error_code, error_message, worker
        FROM poll_results WHERE project_id = p.id AND scheduled_at > now() - interval '2 days'
        ORDER BY scheduled_at DESC LIMIT 1) r ON true
"""
_COLUMNS = "p.id, p.name, p.url, s.state, s.since, r.*"

_DOWN = f"""
    SELECT {_COLUMNS} FROM (
        SELECT project_id, state, since FROM project_states WHERE state = 'down' OR streak > 0
        ORDER BY state, project_id LIMIT $1) s JOIN projects p ON p.id = s.project_id AND p.enabled {_NEWEST}
"""  # noqa: S608 - constants

_SOME = f"""
    SELECT {_COLUMNS} FROM (SELECT id, name, url FROM projects WHERE enabled AND id > $1 ORDER BY id LIMIT $2) p
    LEFT JOIN project_states s ON s.project_id = p.id {_NEWEST} ORDER BY p.id
"""  # noqa: S608 - constants

_CHANGES = """
    SELECT c.project_id, c.changed_at, c.state, c.polls, c.status_code, c.error_code, c.error_message, p.name, p.url
    FROM state_changes c LEFT JOIN projects p ON p.id = c.project_id ORDER BY c.changed_at DESC, c.project_id LIMIT $1
"""


class ProjectLook:
    """Goes through the projects by id, a part at a time, and keeps the slowest and those that are down."""

    def __init__(self, conn: database.Connection) -> None:
        self._conn = conn
        self._after = -(1 << 63)
        self._found: dict[int, dict[str, Any]] = {}  # by id, of this round and the last
        self._round: set[int] = set()  # ids met in this round
        self.seen = 0
        self.enabled = 0
        self.projects: list[dict[str, Any]] = []

    async def go_on(self) -> None:
        self.enabled = await self._conn.fetchval("SELECT count(*) FROM projects WHERE enabled")
        down = [_readable(row) for row in await self._conn.fetch(_DOWN, DOWN_SHOWN)]
        some = [_readable(row) for row in await self._conn.fetch(_SOME, self._after, PROJECTS_PER_LOOK)]
        self._found |= {each["id"]: each for each in some}
        self._round |= {each["id"] for each in some}
        if len(some) < PROJECTS_PER_LOOK:  # all were met: what was not is no longer there
            self._found = {each: row for each, row in self._found.items() if each in self._round}
            self.seen, self._after, self._round = len(self._round), -(1 << 63), set()
        else:
            self.seen, self._after = max(self.seen, len(self._round)), some[-1]["id"]
        slowest = sorted(self._found.values(), key=lambda row: -(row["response_time_ms"] or 0.0))
        self._found = {row["id"]: row for row in slowest[:PROJECTS_KEPT]}
        self.projects = list((self._found | {row["id"]: row for row in down}).values())


async def read_detail(conn: database.Connection, project_id: int) -> Detail:
    project = await conn.fetchrow(
        "SELECT p.id, p.name, p.url, p.method, p.expected_status, p.interval, p.unit, p.timeout_ms, p.enabled, "
        "s.state, s.since FROM projects p LEFT JOIN project_states s ON s.project_id = p.id WHERE p.id = $1",
        project_id,
    )
    results = await conn.fetch(
        "SELECT scheduled_at, extract(epoch FROM polled_at - scheduled_at)::float8 * 1000 AS late_ms, "
        "status::text, status_code, response_time_ms, dns_ms, connect_ms, tls_ms, first_byte_ms, transfer_ms, "
        "size_bytes, worker, error_code, error_message FROM poll_results "
        "WHERE project_id = $1 ORDER BY scheduled_at DESC LIMIT $2",
        project_id,
        RESULTS_SHOWN,
    )
    changes = await conn.fetch(
        "SELECT changed_at, state, polls FROM state_changes WHERE project_id = $1 ORDER BY changed_at DESC LIMIT $2",
        project_id,
        MISSED_SHOWN,
    )
    missed = await conn.fetch(
        "SELECT first_tick, last_tick, ticks, reason FROM missed_polls WHERE project_id = $1 "
        "ORDER BY first_tick DESC LIMIT $2",
        project_id,
        MISSED_SHOWN,
    )
    return Detail(
        project_id=project_id,
        project=None if project is None else _readable(project),
        results=[_readable(row) for row in results],
        changes=[_readable(row) for row in changes],
        missed=[_readable(row) for row in missed],
    )


def _readable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Instants as people here read them, in an order that is theirs."""
    return {name: _local(value) if isinstance(value, datetime) else value for name, value in row.items()}


def _local(instant: datetime) -> str:
    return instant.astimezone().strftime("%Y-%m-%d %H:%M:%S.") + f"{instant.microsecond // 1_000:03}"
