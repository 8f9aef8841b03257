"""The projects in the database, and how the core hears of them.

One connection, one task: it listens for changes first, then reads every enabled project, and from then on

- fetches what a notification names (gathered for 50 ms), so a change made directly in SQL arrives at once;
- reads everything again, as a diff, on request, every ``reload_interval_s`` and after every reconnection;
- once a second writes how far all ticks are accounted for, and so notices a dead server or way to it.

Reading goes by primary key in chunks, each with a snapshot of its own, and notifications are served between chunks;
a query and its handing over to the core are one step (``_step``), also for requests of people, so nothing older ever
overwrites something newer.  While the database is away, polling goes on; at the start the project file is read instead.

It decides nothing: what really changed is the core's to say, who polls what too.  Requests raise ClusterError.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import asyncpg
import msgspec

from cluster.database import Connection, Failure, classify, connect, describe
from cluster.errors import ClusterError, InvalidInputError
from cluster.messages.control import RemovedProject
from cluster.project import SPEC_COLUMNS, ProjectFields, encode_spec, spec_from_row
from coordinator.events import ProjectRecord
from coordinator.journal import ProjectJournal
from coordinator.throttle import ThrottledLog

CHANNEL = "ringpoll_projects"
CHUNK_ROWS = 2_000  # about 30 ms of the loop
SLICE_ROWS = 500  # rows made into records between two turns of the loop
REFRESH_IDS = 1_000
GATHER_S = 0.05  # notifications that arrive together are fetched together
NOTIFIED_IDS_MAX = 100_000  # beyond it everything is read again
CONNECT_TIMEOUT_S = 5.0
QUERY_TIMEOUT_S = 30.0
PULSE_S = 1.0
PULSE_TIMEOUT_S = 5.0
LOCK_TIMEOUT_MS = 3_000  # how long a person's request waits for a row that someone else holds
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 5.0
PACE = 1.0  # a periodic reload rests as long as a chunk took
LINES_MAX = 20  # changes that are logged one by one
INVALID_SHOWN_MAX = 1_000
FIRST_ID = -(1 << 63)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_COLUMNS = ", ".join(f"p.{column}" for column in SPEC_COLUMNS)
_SELECT = f"""
    SELECT {_COLUMNS}, p.name,
           (SELECT s.since FROM project_spans s WHERE s.project_id = p.id AND s.until IS NULL) AS since
    FROM projects p WHERE p.enabled"""  # noqa: S608 - our own column names
_CHUNK = f"{_SELECT} AND p.id > $1 ORDER BY p.id LIMIT $2"
_BY_ID = f"{_SELECT} AND p.id = ANY($1::bigint[])"
_ENDS = "SELECT project_id, max(until) AS until FROM project_spans WHERE project_id = ANY($1::bigint[]) GROUP BY 1"
_PULSE = """
    UPDATE cluster_state
    SET accounted_to = greatest(accounted_to, $1), epoch = greatest(epoch, $2), updated_at = now()"""
_INSERT = """
    INSERT INTO projects
        (url, name, method, headers, body, expected_status, interval, unit, timeout_ms, follow_redirects, enabled)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING id"""

# What the server, or the way to it, may do to us; anything else is a bug of ours and ends the process.
_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)

logger = logging.getLogger("coordinator.projects")

_decode_ids = msgspec.json.Decoder(list[int]).decode


class Applied(msgspec.Struct):
    """What the core found new, different, and gone in a change."""

    added: list[int] = []
    changed: list[int] = []
    removed: list[int] = []

    def __iadd__(self, other: "Applied") -> "Applied":
        self.added += other.added
        self.changed += other.changed
        self.removed += other.removed
        return self

    def __len__(self) -> int:
        return len(self.added) + len(self.changed) + len(self.removed)


class ClusterMemory(msgspec.Struct, frozen=True):
    """What the database remembers of a cluster (table cluster_state)."""

    epoch: int
    accounted_to_ms: int | None


class ProjectSink(Protocol):
    """The core, as seen from here."""

    def apply(
        self,
        records: list[ProjectRecord],
        removed: list[RemovedProject],
        *,
        initial: bool = False,
        token: int | None = None,
    ) -> Applied: ...

    def load_progressed(self, loaded: int, total: int | None) -> None: ...

    def load_finished(self) -> None: ...

    def database_changed(self, up: bool) -> None: ...

    def has_project(self, project_id: int) -> bool: ...

    def project_ids(self) -> set[int]: ...

    def progress(self) -> tuple[int | None, int]:
        """The horizon in ms, and the epoch."""
        ...


class ProjectSource:
    def __init__(
        self,
        url: str,
        sink: ProjectSink,
        journal: ProjectJournal,
        now_ms: Callable[[], int],
        reload_interval_s: float,
    ) -> None:
        self._url = url
        self._sink = sink
        self._journal = journal
        self._now_ms = now_ms
        self._reload_interval_s = reload_interval_s
        self.loaded = False
        self._connection: Connection | None = None
        self._first: Connection | None = None  # made by ``remember`` and not used yet
        self._step_lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._notified: set[int] = set()
        self._notified_at = 0.0
        self._reload_at = 0.0
        self._reload_paced = True
        self._reload_initial = False  # the project file was damaged: what it lacked isn't new
        self._pulse_at = 0.0
        self._waiters: list[asyncio.Future[Applied]] = []
        self._away_because: str | None = None
        self._invalid: dict[int, str] = {}  # id -> why a row can't be polled
        self.invalid_total = 0
        self._read_ids: set[int] = set()  # by a first load that is not complete
        self.notifications_malformed = 0
        self._throttled = ThrottledLog(logger)

    # ---- the task -------------------------------------------------------------------------------------------------

    async def remember(self, *, wait: bool) -> ClusterMemory | None:
        """What the database remembers; None when it is away.  ``wait``: try until it answers."""
        for pause_s in _backoff():
            try:
                connection = await connect(self._url, timeout_s=CONNECT_TIMEOUT_S)
            except ClusterError as error:
                self._note_away(str(error))
            else:
                try:
                    row = await connection.fetchrow("SELECT epoch, accounted_to FROM cluster_state", timeout=5)
                except _AWAY as error:
                    self._note_away(describe(error))
                    connection.terminate()
                else:
                    self._first = connection
                    return ClusterMemory(0, None) if row is None else _memory(row)
            if not wait:
                return None
            await asyncio.sleep(pause_s)
        raise AssertionError("the backoff never ends")

    async def run(self) -> None:
        """Until cancelled."""
        self._journal.begin_rebuild()
        try:
            while True:
                for pause_s in _backoff():
                    served = await self._try_once()
                    if served:
                        break
                    if not self.loaded:
                        await self._load_from_journal()
                    await asyncio.sleep(pause_s)
        finally:
            self._drop_connection()

    async def close(self) -> None:
        """The last word to the database, after ``run`` was cancelled and the last message was heard."""
        if self._away_because is not None:
            return
        try:
            connection = await connect(self._url, timeout_s=PULSE_TIMEOUT_S)
        except ClusterError as error:
            logger.warning("%s", error)  # noqa: TRY400 - a person's line
            return
        try:
            await self._write_progress(connection)
        except _AWAY as error:
            logger.warning("could not note in the database how far ticks are accounted for: %s", describe(error))
        finally:
            connection.terminate()

    async def _try_once(self) -> bool:
        """Connect, and serve until the connection is lost.  True when it had worked."""
        worked = False
        try:
            connection, self._first = self._first, None
            if connection is None or connection.is_closed():
                connection = await connect(self._url, timeout_s=CONNECT_TIMEOUT_S)
            self._connection = connection
            connection.add_termination_listener(self._on_terminated)
            await connection.add_listener(CHANNEL, self._on_notify)
            self._note_up()
            await self._load()
            worked = True
            await self._serve()
        except (ClusterError, *_AWAY) as error:
            self._note_away(str(error) if isinstance(error, ClusterError) else describe(error))
        finally:
            self._drop_connection()
        return worked

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.remove_termination_listener(self._on_terminated)
            connection.terminate()
        if self._first is not None:
            self._first.terminate()
            self._first = None
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(_unavailable())

    def _note_up(self) -> None:
        self._away_because = None
        self._sink.database_changed(True)

    def _note_away(self, why: str) -> None:
        if why != self._away_because:
            logger.warning("the database is not usable: %s", why)
        self._away_because = why
        self._sink.database_changed(False)

    def _on_terminated(self, _connection: object) -> None:
        self._wake.set()

    async def _serve(self) -> None:
        while True:
            await self._attend()
            now = time.monotonic()
            if self._reload_at <= now:
                await self._reload()
                continue
            due = min(self._reload_at, self._pulse_at)
            if self._notified:
                due = min(due, self._notified_at + GATHER_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - now)):
                    await self._wake.wait()
            self._wake.clear()

    async def _attend(self) -> None:
        """What is due now, besides a reload; also called between the chunks of one."""
        connection = self._usable()
        now = time.monotonic()
        if self._pulse_at <= now:
            self._pulse_at = now + PULSE_S
            async with self._step_lock:
                await self._write_progress(connection)
        if self.loaded and self._notified and self._notified_at + GATHER_S <= now:
            ids, self._notified = sorted(self._notified), set()
            applied = Applied()
            names: dict[int, str] = {}
            for part in _parts(ids):
                applied += await self._refresh(part, names)
            self._tell(applied, names)

    def _usable(self) -> Connection:
        connection = self._connection
        if connection is None or connection.is_closed():
            raise ConnectionResetError("the connection was closed")
        return connection

    async def _write_progress(self, connection: Connection) -> None:
        horizon_ms, epoch = self._sink.progress()
        accounted_to = None if horizon_ms is None else _EPOCH + horizon_ms * _MILLISECOND
        await connection.execute(_PULSE, accounted_to, epoch, timeout=PULSE_TIMEOUT_S)

    # ---- notifications --------------------------------------------------------------------------------------------

    def _on_notify(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == "*":
            self._reload_soon()
            return
        try:
            ids = _decode_ids(str(payload))
        except ValueError:
            self.notifications_malformed += 1
            self._throttled.warning(f"a notification on {CHANNEL} is not a list of ids: {str(payload)[:100]!r}")
            return
        if not self._notified:
            self._notified_at = time.monotonic()
        self._notified.update(ids)
        if len(self._notified) > NOTIFIED_IDS_MAX:
            self._notified.clear()
            self._reload_soon()
        self._wake.set()

    def _reload_soon(self) -> None:
        self._reload_at = 0.0
        self._reload_paced = False
        self._wake.set()

    async def _refresh(self, ids: Sequence[int], names: dict[int, str]) -> Applied:
        """Bring these projects to what the database says now."""
        connection = self._usable()
        async with self._step_lock:
            rows = await connection.fetch(_BY_ID, ids, timeout=QUERY_TIMEOUT_S)
            records, invalid = self._records(rows)
            found = {record.id for record in records}
            gone = [project_id for project_id in ids if project_id not in found and self._sink.has_project(project_id)]
            for project_id in ids:
                if project_id not in invalid:
                    self._invalid.pop(project_id, None)
            removed = await self._ends(connection, gone)
            names.update((row["id"], _line(row)) for row in rows[: LINES_MAX + 1])
            return self._sink.apply(records, removed)

    async def _ends(self, connection: Connection, ids: list[int]) -> list[RemovedProject]:
        """Until when projects that are disabled or deleted were due."""
        if not ids:
            return []
        ends = {
            row["project_id"]: _milliseconds(row["until"])
            for row in await connection.fetch(_ENDS, ids, timeout=QUERY_TIMEOUT_S)
            if row["until"] is not None
        }
        now_ms = self._now_ms()
        return [RemovedProject(project_id, ends.get(project_id, now_ms)) for project_id in ids]

    # ---- reading everything ---------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """The first load, or what happened while the database was away."""
        if self.loaded:
            await self._reload()
            return
        await self._read_all(initial=True, paced=False)
        self._finish_load()
        self._reload_at = time.monotonic() + self._reload_interval_s

    def _finish_load(self) -> None:
        self.loaded = True
        self._read_ids = set()
        self._sink.load_finished()
        self._journal.finish_rebuild()
        self._wake.set()

    async def _load_from_journal(self) -> None:
        """The projects as they were last known.  Without a file there is nothing to begin with."""
        if not self._journal.exists:
            return
        logger.warning("the database is away: starting with the projects of the project file")
        loaded = 0
        async for frame in self._journal.replay():
            # What was read from the database before it went away is newer.
            records = [record for record in frame.records if record.id not in self._read_ids]
            now_ms = self._now_ms()
            removed = [RemovedProject(each, now_ms) for each in frame.removed if each not in self._read_ids]
            self._sink.apply(records, removed, initial=True)
            loaded += len(records) - len(removed)
            self._sink.load_progressed(loaded, None)
            await self._journal.room()
        self._reload_initial = self._journal.damaged
        self._finish_load()

    async def _reload(self) -> None:
        waiters, self._waiters = self._waiters, []
        paced, self._reload_paced = self._reload_paced and not waiters, True
        initial, self._reload_initial = self._reload_initial, False
        self._reload_at = time.monotonic() + self._reload_interval_s
        try:
            applied = await self._read_all(initial=initial, paced=paced)
        except BaseException:
            self._waiters += waiters  # told when the connection is dropped
            raise
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(applied)

    async def _read_all(self, *, initial: bool, paced: bool) -> Applied:
        connection = self._usable()
        async with self._step_lock:
            total = await connection.fetchval("SELECT count(*) FROM projects WHERE enabled", timeout=QUERY_TIMEOUT_S)
        logger.info("%s %d enabled projects", "reloading" if self.loaded else "loading", total)
        unseen = self._sink.project_ids()
        rebuild = self.loaded and self._journal.wants_rebuild(len(unseen))
        if rebuild:
            self._journal.begin_rebuild()
        invalid_before, self._invalid = self._invalid, {}
        applied = Applied()
        names: dict[int, str] = {}
        read = 0
        after = FIRST_ID
        while True:
            began = time.monotonic()
            async with self._step_lock:
                rows = await connection.fetch(_CHUNK, after, CHUNK_ROWS, timeout=QUERY_TIMEOUT_S)
                if not rows:
                    break
                records: list[ProjectRecord] = []
                invalid: list[int] = []
                for part in _parts(rows, SLICE_ROWS):
                    good, bad = self._records(part, invalid_before)
                    records += good
                    invalid += bad
                    await asyncio.sleep(0)
                now_ms = self._now_ms()
                unusable = [RemovedProject(each, now_ms) for each in invalid if self._sink.has_project(each)]
                some = self._sink.apply(records, unusable, initial=initial)
                if rebuild:
                    self._journal.rebuild(records)
            if len(applied) <= LINES_MAX:
                wanted = {*some.added, *some.changed}
                names.update((row["id"], _line(row)) for row in rows if row["id"] in wanted)
            applied += some
            after = rows[-1]["id"]
            read += len(rows)
            unseen.difference_update(row["id"] for row in rows)
            if not self.loaded:
                self._read_ids.update(row["id"] for row in rows)
                self._sink.load_progressed(read, max(total, read))
            await self._attend()
            await self._journal.room()
            await asyncio.sleep(PACE * (time.monotonic() - began) if paced else 0)
        for part in _parts(sorted(unseen), REFRESH_IDS):
            applied += await self._refresh(part, names)
        if rebuild:
            self._journal.finish_rebuild()
        self._tell(applied, names)
        return applied

    def _records(
        self, rows: Iterable[Any], known: dict[int, str] | None = None
    ) -> tuple[list[ProjectRecord], list[int]]:
        """Rows as records, and the ids of those that can't be polled."""
        records = []
        invalid = []
        for row in rows:
            try:
                spec = spec_from_row(row)
            except (InvalidInputError, ValueError, TypeError, KeyError) as error:
                invalid.append(row["id"])
                self._note_invalid(row["id"], str(error), known)
            else:
                records.append(ProjectRecord(spec.id, 1000 / spec.interval_ms, encode_spec(spec)))
        return records, invalid

    def _note_invalid(self, project_id: int, why: str, known: dict[int, str] | None) -> None:
        before = self._invalid.get(project_id) or (known or {}).get(project_id)
        if len(self._invalid) < INVALID_SHOWN_MAX:
            self._invalid[project_id] = why
        if before != why:
            self.invalid_total += 1
            self._throttled.warning(f"project {project_id} can't be polled: {why}")

    @property
    def invalid(self) -> dict[int, str]:
        """Rows that can't be polled, by id, and why; at most a thousand of them."""
        return self._invalid

    def _tell(self, applied: Applied, names: dict[int, str]) -> None:
        if len(applied) > LINES_MAX:
            logger.info(
                "projects: %d added, %d changed, %d removed",
                len(applied.added),
                len(applied.changed),
                len(applied.removed),
            )
            return
        for project_id in (*applied.added, *applied.changed):
            logger.info("monitoring project %d %s", project_id, names.get(project_id, ""))
        for project_id in applied.removed:
            logger.info("no longer monitoring project %d", project_id)

    # ---- requests of people ---------------------------------------------------------------------------------------

    async def reload(self) -> Applied:
        """Read everything again; what changed."""
        if self._connection is None or not self.loaded:
            raise _unavailable()
        waiter: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._reload_soon()
        return await waiter

    async def insert(self, fields: ProjectFields) -> int:
        """Add a project; it is polled when this returns.  Returns its id."""
        headers = None if fields.headers is None else msgspec.json.encode(fields.headers).decode()
        async with self._step() as connection:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                project_id: int = await connection.fetchval(
                    _INSERT,
                    fields.url,
                    fields.name,
                    fields.method,
                    headers,
                    fields.body,
                    fields.expected_status,
                    fields.interval,
                    fields.unit,
                    fields.timeout_ms,
                    fields.follow_redirects,
                    fields.enabled,
                )
                rows = await connection.fetch(_BY_ID, [project_id])
            self._apply_rows(rows)
        return project_id

    async def enable(self, project_id: int) -> None:
        """Enable a row if it is disabled, and load it."""
        async with self._step() as connection:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                enabled = await connection.fetchval("SELECT enabled FROM projects WHERE id = $1", project_id)
                if enabled is None:
                    raise ClusterError(
                        f"there is no project {project_id} in table projects; `cluster projects list` shows them",
                        code="unknown_project",
                    )
                if not enabled:
                    await connection.execute(
                        "UPDATE projects SET enabled = true WHERE id = $1 AND NOT enabled", project_id
                    )
                rows = await connection.fetch(_BY_ID, [project_id])
            records, invalid = self._apply_rows(rows)
        if invalid:
            raise ClusterError(f"project {project_id} can't be polled: {self._invalid.get(project_id, 'see the log')}")
        if not records:
            raise ClusterError(f"project {project_id} was disabled or deleted again by somebody else", code="conflict")

    async def remove(self, ids: Sequence[int], *, delete: bool, token: int) -> None:
        """Disable or delete all of these, or none; the core confirms ``token`` when nobody polls them any more."""
        async with self._step() as connection:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                rows = await connection.fetch(
                    "SELECT id FROM projects WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE", ids
                )
                unknown = sorted(set(ids) - {row["id"] for row in rows})
                if unknown:
                    shown = ", ".join(map(str, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
                    raise ClusterError(
                        f"there is no project {shown} in table projects; nothing was changed", code="unknown_project"
                    )
                if delete:
                    await connection.execute("DELETE FROM projects WHERE id = ANY($1::bigint[])", ids)
                else:
                    await connection.execute(
                        "UPDATE projects SET enabled = false WHERE id = ANY($1::bigint[]) AND enabled", ids
                    )
                removed = await self._ends(connection, list(ids))
            applied = self._sink.apply([], removed, token=token)
        self._tell(applied, {})

    def _apply_rows(self, rows: Sequence[Any]) -> tuple[list[ProjectRecord], list[int]]:
        records, invalid = self._records(rows)
        now_ms = self._now_ms()
        unusable = [RemovedProject(each, now_ms) for each in invalid if self._sink.has_project(each)]
        applied = self._sink.apply(records, unusable)
        self._tell(applied, {row["id"]: _line(row) for row in rows})
        return records, invalid

    @contextlib.asynccontextmanager
    async def _step(self) -> AsyncIterator[Connection]:
        """The connection for one request, its errors in words."""
        async with self._step_lock:
            connection = self._connection
            if connection is None or connection.is_closed():
                raise _unavailable()
            try:
                yield connection
            except asyncpg.LockNotAvailableError as error:
                raise ClusterError(
                    "somebody else's transaction holds the project; nothing was changed, try again when it has ended",
                    code="locked",
                ) from error
            except (*_AWAY, ValueError, OverflowError) as error:
                raise _in_words(error) from error


def _in_words(error: BaseException) -> ClusterError:
    match classify(error):
        case Failure.REJECT:
            return InvalidInputError(f"the database refused it: {describe(error)}; nothing was changed")
        case Failure.FATAL:
            return ClusterError(f"the database refused it: {describe(error)}; nothing was changed", code="failed")
        case Failure.RETRY:
            return ClusterError(
                f"the database failed: {describe(error)}; nothing was changed, unless it failed on its last word, in "
                "which case the change takes effect by itself",
                code="database_unavailable",
            )


def _unavailable() -> ClusterError:
    return ClusterError(
        "the database is not available, so nothing was changed; try again when `cluster status` shows it up",
        code="database_unavailable",
    )


def _memory(row: Any) -> ClusterMemory:
    accounted_to = row["accounted_to"]
    return ClusterMemory(row["epoch"], None if accounted_to is None else _milliseconds(accounted_to))


def _milliseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // _MILLISECOND


def _line(row: Any) -> str:
    unit = row["unit"] if row["interval"] != 1 else row["unit"].removesuffix("s")
    return f"({row['name'] or row['url']}) every {row['interval']} {unit}"


def _parts(items: Sequence[Any], size: int = REFRESH_IDS) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _backoff() -> Iterator[float]:
    pause_s = BACKOFF_MIN_S
    while True:
        yield pause_s
        pause_s = min(BACKOFF_MAX_S, pause_s * 2)
