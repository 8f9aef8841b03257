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
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import asyncpg
import msgspec

from cluster.database import Connection, Failure, classify, connect, describe
from cluster.errors import ClusterError, InvalidInputError
from cluster.messages.admin import ProjectId
from cluster.messages.control import EndedSpan, RemovedProject
from cluster.tracing import Tracing
from coordinator.events import ProjectRecord
from coordinator.journal import ProjectJournal
from coordinator.project_rows import (
    DATABASE_AWAY,
    FIRST_ID,
    QUERY_TIMEOUT_S,
    Applied,
    ClusterMemory,
    RowReader,
    fetch_chunk,
    fetch_ended,
    fetch_ended_of,
    fetch_ends,
    fetch_memory,
    fetch_projects,
    monitoring_line,
    write_progress,
)
from coordinator.throttle import ThrottledLog

CHANNEL = "ringpoll_projects"
CHUNK_ROWS = 1_000  # what one answer of the database has: about 5 ms of the loop
SLICE_ROWS = 500  # rows made into records, or records handed over, between two turns of the loop
REFRESH_IDS = 1_000
SEEN_IDS = 50_000  # compared between two turns of the loop
GATHER_S = 0.05  # notifications that arrive together are fetched together
NOTIFIED_IDS_MAX = 100_000  # beyond it everything is read again
CONNECT_TIMEOUT_S = 5.0
TURN_TIMEOUT_S = 20.0  # requests of people end within 10 s
PULSE_S = 1.0
PULSE_TIMEOUT_S = 5.0
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 5.0
PACE = 1.0  # a periodic reload rests as long as a chunk took
LINES_MAX = 20  # changes that are logged one by one

logger = logging.getLogger("coordinator.projects")

T = TypeVar("T")

_decode_ids = msgspec.json.Decoder(list[ProjectId]).decode


class ProjectSink(Protocol):
    """The core, as seen from here."""

    def apply(
        self,
        records: list[ProjectRecord],
        removed: list[RemovedProject],
        *,
        initial: bool = False,
        ended: list[EndedSpan] | None = None,
        token: int | None = None,
    ) -> Applied: ...

    def load_progressed(self, loaded: int, total: int | None) -> None: ...

    def load_finished(self) -> None: ...

    def database_changed(self, up: bool) -> None: ...

    def has_project(self, project_id: int) -> bool: ...

    def project_ids(self) -> set[int]:
        """A set of its own for the caller."""
        ...

    def project_count(self) -> int: ...

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
        tracing: Tracing | None = None,
    ) -> None:
        self._url = url
        self._sink = sink
        self._journal = journal
        self.now_ms = now_ms
        self._reload_interval_s = reload_interval_s
        self._tracing = tracing
        self.loaded = False
        self._connection: Connection | None = None
        self._first: Connection | None = None  # made by ``remember`` and not used yet
        self._step_lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._notified: set[int] = set()
        self._notified_at = 0.0
        self._reload_at = 0.0
        self._reload_paced = True
        self._reload_initial = False  # the first load had gaps: what they hid isn't new
        self._pulse_at = 0.0
        self._waiters: list[asyncio.Future[Applied]] = []
        self._away_because: str | None = None
        self._reader = RowReader()
        self._read_up_to = FIRST_ID  # by a first load that is not complete
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
                    memory = await fetch_memory(connection)
                except DATABASE_AWAY as error:
                    self._note_away(_why(error))
                    connection.terminate()
                else:
                    self._first = connection
                    return memory
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
                    worked = await self._try_once()
                    if not self.loaded:
                        await self._load_from_journal()
                    await asyncio.sleep(BACKOFF_MIN_S if worked else pause_s)
                    if worked:
                        break
        finally:
            self._drop_connection()

    async def close(self) -> None:
        """The last word to the database, after ``run`` was cancelled and the last message was heard."""
        if self._away_because is not None:
            return
        try:
            connection = await connect(self._url, timeout_s=PULSE_TIMEOUT_S)
        except ClusterError as error:
            logger.warning("%s", error)
            return
        try:
            await self._write_progress(connection)
        except DATABASE_AWAY as error:
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
        except (ClusterError, *DATABASE_AWAY) as error:
            self._note_away(_why(error))
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
            async with self._turn():
                await self._write_progress(connection)
        if self.loaded and self._notified and self._notified_at + GATHER_S <= now:
            ids, self._notified = sorted(self._notified), set()
            applied = Applied()
            names: dict[int, str] = {}
            for part in _parts(ids, REFRESH_IDS):
                applied += await self._refresh(part, names)
            self._tell(applied, names)

    def _usable(self) -> Connection:
        connection = self._connection
        if connection is None or connection.is_closed():
            raise ConnectionResetError("the connection was closed")
        return connection

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Our own task's step.  A request that never ends its step is on a dead connection."""
        async with asyncio.timeout(TURN_TIMEOUT_S):
            await self._step_lock.acquire()
        try:
            yield
        finally:
            self._step_lock.release()

    async def _write_progress(self, connection: Connection) -> None:
        await write_progress(connection, *self._sink.progress(), PULSE_TIMEOUT_S)

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
        async with self._turn():
            rows = await fetch_projects(connection, ids)
            self._reader.forget(ids)
            records, _ = self._reader.records(rows)
            found = {record.id for record in records}
            gone = [project_id for project_id in ids if project_id not in found and self._sink.has_project(project_id)]
            removed = await fetch_ends(connection, gone, self.now_ms())
            names.update((row["id"], monitoring_line(row)) for row in rows[: LINES_MAX + 1])
            ended = await fetch_ended_of(connection, self._horizon_ms(), ids) if self.loaded else []
            return self._sink.apply(records, removed, ended=ended)

    # ---- reading everything ---------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """The first load, or what happened while the database was away."""
        if self.loaded:
            await self._reload()
            return
        horizon_ms = self._horizon_ms()
        self._reload_at = time.monotonic() + self._reload_interval_s  # sooner, if a notification says so meanwhile
        ended = await self._read_ended(horizon_ms, initial=True)
        await self._read_all(initial=True, paced=False)
        await self._settle_load(horizon_ms, ended)
        self._finish_load()

    def _horizon_ms(self) -> int:
        """Every tick before it is accounted for; 0 before anything is."""
        return self._sink.progress()[0] or 0

    async def _read_ended(self, horizon_ms: int, *, initial: bool) -> set[tuple[int, int]]:
        """Spans that ended since everything was last accounted for; returns which."""
        connection = self._usable()
        known: set[tuple[int, int]] = set()
        last: EndedSpan | None = None
        while True:
            async with self._turn():
                spans = await fetch_ended(connection, horizon_ms, last, CHUNK_ROWS)
                if not spans:
                    return known
                self._sink.apply([], [], initial=initial, ended=spans)
            last = spans[-1]
            known.update((span.project_id, span.since_ms) for span in spans)
            await self._attend()

    async def _settle_load(self, horizon_ms: int, known: set[tuple[int, int]]) -> None:
        """Changes made while the load went on.

        A project that was read before it ended is ended by the core, as any other.  One that ended before it was read
        is known to nobody yet.
        """
        connection = self._usable()
        ids, self._notified = sorted(self._notified), set()
        for part in _parts(ids, REFRESH_IDS):
            applied = await self._refresh(part, {})
            quiet = sorted(set(part).difference(applied.removed, applied.changed))
            async with self._turn():
                spans = await fetch_ended_of(connection, horizon_ms, quiet)
                missing = [span for span in spans if (span.project_id, span.since_ms) not in known]
                self._sink.apply([], [], initial=True, ended=missing)

    def _finish_load(self) -> None:
        self.loaded = True
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
            # Of ids up to here the database had the last word before it went away.
            records = [record for record in frame.records if record.id > self._read_up_to]
            now_ms = self.now_ms()
            removed = [RemovedProject(each, now_ms) for each in frame.removed if each > self._read_up_to]
            self._sink.apply(records, removed, initial=True)
            loaded += len(records) - len(removed)
            self._sink.load_progressed(loaded, None)
            await self._journal.room()
        self._reload_initial = self._journal.damaged or self._read_up_to > FIRST_ID
        self._finish_load()

    async def _reload(self) -> None:
        waiters, self._waiters = self._waiters, []
        paced, self._reload_paced = self._reload_paced and not waiters, True
        initial, self._reload_initial = self._reload_initial, False
        self._reload_at = time.monotonic() + self._reload_interval_s
        try:
            applied = await self._read_all(initial=initial, paced=paced)
            await self._read_ended(self._horizon_ms(), initial=False)
        except BaseException:
            self._waiters += waiters  # told when the connection is dropped
            raise
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(applied)

    async def _read_all(self, *, initial: bool, paced: bool) -> Applied:
        if self._tracing is None:
            return await self._read_everything(initial=initial, paced=paced)
        name, began_ns = "projects.reload" if self.loaded else "projects.load", time.time_ns()
        try:
            applied = await self._read_everything(initial=initial, paced=paced)
        except (ClusterError, *DATABASE_AWAY) as error:
            self._tracing.record(name, began_ns, time.time_ns(), {}, error=_why(error))
            raise
        counts = {f"ringpoll.projects.{each}": len(getattr(applied, each)) for each in ("added", "changed", "removed")}
        self._tracing.record(name, began_ns, time.time_ns(), counts)
        return applied

    async def _read_everything(self, *, initial: bool, paced: bool) -> Applied:
        connection = self._usable()
        async with self._turn():
            total = await connection.fetchval("SELECT count(*) FROM projects WHERE enabled", timeout=QUERY_TIMEOUT_S)
        logger.info("%s %d enabled projects", "reloading" if self.loaded else "loading", total)
        rebuild = self.loaded and self._journal.wants_rebuild(self._sink.project_count())
        if rebuild:
            self._journal.begin_rebuild()
        try:
            applied = await self._read_chunks(connection, total, initial=initial, paced=paced, rebuild=rebuild)
        except BaseException:
            if rebuild:
                self._journal.abandon_rebuild()
            raise
        if rebuild:
            self._journal.finish_rebuild()
        return applied

    async def _read_chunks(
        self, connection: Connection, total: int, *, initial: bool, paced: bool, rebuild: bool
    ) -> Applied:
        self._reader.read_everything()
        applied = Applied()
        names: dict[int, str] = {}
        read = 0
        seen = array("q")  # what the core has to hold now
        after = FIRST_ID
        while True:
            began = time.monotonic()
            async with self._turn():
                rows = await fetch_chunk(connection, after, CHUNK_ROWS)
                if not rows:
                    break
                some = Applied()
                for part in _parts(rows, SLICE_ROWS):
                    records, unusable = self._reader.records(part)
                    await asyncio.sleep(0)
                    some += self._sink.apply(records, self._unusable(unusable), initial=initial)
                    if rebuild:
                        self._journal.rebuild(records)
                    seen.extend(record.id for record in records)
                    await asyncio.sleep(0)
            if len(applied) <= LINES_MAX:
                wanted = {*some.added, *some.changed}
                names.update((row["id"], monitoring_line(row)) for row in rows if row["id"] in wanted)
            applied += some
            after = rows[-1]["id"]
            read += len(rows)
            if not self.loaded:
                self._read_up_to = after
                self._sink.load_progressed(read, max(total, read))
            await self._attend()
            await self._journal.room()
            await asyncio.sleep(PACE * (time.monotonic() - began) if paced else 0)
        for part in _parts(await self._not_shown(seen), REFRESH_IDS):
            applied += await self._refresh(part, names)
        self._tell(applied, names)
        return applied

    async def _not_shown(self, seen: "array[int]") -> list[int]:
        """What the core holds and the table did not show.  As a rule nothing: then a million ids aren't compared."""
        if self._sink.project_count() == len(seen):
            return []
        held = self._sink.project_ids()
        for start in range(0, len(seen), SEEN_IDS):
            await asyncio.sleep(0)
            held.difference_update(seen[start : start + SEEN_IDS])
        return sorted(held)

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

    @contextlib.asynccontextmanager
    async def step(self) -> AsyncIterator[Connection]:
        """The connection for one request, whose errors become ClusterErrors."""
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
            except (*DATABASE_AWAY, ValueError, OverflowError) as error:
                raise _in_words(error) from error

    def apply_rows(self, rows: Sequence[Any]) -> list[ProjectRecord]:
        """Within a step: projects as they were just read.  Returns those that can be polled."""
        self._reader.forget(row["id"] for row in rows)
        records, unusable = self._reader.records(rows)
        applied = self._sink.apply(records, self._unusable(unusable))
        self._tell(applied, {row["id"]: monitoring_line(row) for row in rows})
        return records

    def apply_removed(self, removed: list[RemovedProject], token: int) -> None:
        """Within a step: projects that are no more."""
        self._tell(self._sink.apply([], removed, token=token), {})

    def _unusable(self, ids: list[int]) -> list[RemovedProject]:
        now_ms = self.now_ms()
        return [RemovedProject(project_id, now_ms) for project_id in ids if self._sink.has_project(project_id)]

    @property
    def invalid(self) -> dict[int, str]:
        """Rows that can't be polled, by id, and why; at most a thousand of them."""
        return self._reader.invalid


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


def _why(error: BaseException) -> str:
    if isinstance(error, asyncpg.UndefinedTableError):
        return f"{describe(error)}; run `cluster migrate`"
    return str(error) if isinstance(error, ClusterError) else describe(error)


def _unavailable() -> ClusterError:
    return ClusterError(
        "the database is not available, so nothing was changed; try again when `cluster status` shows it up",
        code="database_unavailable",
    )


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _backoff() -> Iterator[float]:
    pause_s = BACKOFF_MIN_S
    while True:
        yield pause_s
        pause_s = min(BACKOFF_MAX_S, pause_s * 2)
