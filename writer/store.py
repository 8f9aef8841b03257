"""Flushes into PostgreSQL: one transaction each, with the ledger, so that each is in exactly once.

A flush is committed on the *fast path*: the ledger rows move from ``base_seq`` to ``last_seq``, results go by COPY
straight into their day's result partition, missed ranges follow.  When the server objects:

- the ledger is ahead of ``base_seq``: what is already in is left out, and the rest is tried again.  This is also how
  an unknown outcome of a COMMIT is resolved, after a new connection.  The ledger is before ``base_seq``: the database
  is an older one; nothing is committed, and ``LedgerWentBack`` returned;
- a unique violation, or data the server refuses: the same transaction again on the *careful path*, which asks first
  what is there already, and halves what the server refuses down to single records, which go to ingest_reject.  A flush
  that follows one with duplicates takes it at once;
- more of it is refused than REFUSED_MAX: it is committed batch by batch, in a transaction and an operation each, so
  that neither locks nor time run out however much of it is refused;
- no partition for a day: it is created, in a transaction of its own, and the flush tried again.

A result takes its tick out of a missed range that has it, and of a missed range only what is in neither table is
stored: whatever the order in which streams speak of a tick, it is counted once (see writer.taken).  What results say
of their project's state is stored with them (see writer.state_tables), and which of them the rollups have to go back
for (see writer.rollup_late).

Errors of the connection or the set-up are the caller's: ``commit`` raises StoreError and may be called again with the
same flush.  The store keeps one connection, and replaces it after an error.  It decides no retries, and runs one
operation at a time.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import asyncpg
import msgspec

from cluster import database
from cluster.database import Connection, Failure
from cluster.errors import ClusterError
from writer import ledger, partitions, rollup_late, state_tables
from writer.events import FailureKind, Flush, FlushCommitted, LedgerWentBack, StreamPart
from writer.records import (
    FUTURE_MS,
    RESULT_COLUMNS,
    MissedRecord,
    RecordOrigin,
    Rejected,
    ResultRecord,
    TickSpread,
    day_of,
    fault_of_missed,
    fault_of_result,
    reject_row,
    result_rows,
)
from writer.sightings import Sighting, Sightings
from writer.taken import absent, free, store_ranges, unclaimed

OPERATION_TIMEOUT_S = 30.0  # a flush of 20,000 rows takes a tenth of a second; an idle network may swallow a reset
REFUSED_MAX = 100  # of one transaction: each costs a score of savepoints, whose locks the server holds to its end
ATTEMPTS_MAX = 4  # of one flush per call: ledger, partition, careful path
# The store looks rows up by key and never joins or scans whole tables, so plans that would are out of the question,
# however small a table was when the plan was made.  A server must not wait for ever for a writer that has vanished.
SESSION = """
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off;
    SET idle_in_transaction_session_timeout = '60s';
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
"""

logger = logging.getLogger("writer.store")
Item = TypeVar("Item")


class StoreError(Exception):
    """The database could not be used; the same may be tried again later."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _TooManyRefusedError(Exception):
    """The flush is to be committed in smaller transactions; nothing of it was."""


class _Plan(msgspec.Struct):
    """A flush sorted by where its records go."""

    results: dict[int, list[ResultRecord]]  # by UTC day
    spreads: dict[str, TickSpread]  # of these results, by stream
    missed: list[MissedRecord]
    rejected: list[Rejected]
    batches: int
    standings: state_tables.Standings  # as far as they are known before it
    sightings: Sightings


class _Written(msgspec.Struct):
    results: int
    duplicates: int
    rejected: list[Rejected]
    standings: state_tables.Standings = {}  # that it changed
    sightings: set[Sighting] = set()  # that were new


async def open_connection(url: str) -> Connection:
    """A connection whose timestamps are ints: microseconds since 2000-01-01 UTC (see writer.records)."""
    conn = await database.connect(url)
    try:
        await conn.set_type_codec(
            "timestamptz",
            schema="pg_catalog",
            encoder=lambda instant_us: (instant_us,),
            decoder=lambda instant: instant[0],
            format="tuple",
        )
        await conn.execute(SESSION)
    except BaseException:
        conn.terminate()
        raise
    return conn


class Store:
    """``wall_ms`` gives the time that decides which days are within retention."""

    def __init__(self, url: str, *, retention_days: int, wall_ms: Callable[[], int]) -> None:
        self._url = url
        self._retention_days = retention_days
        self._wall_ms = wall_ms
        self._conn: Connection | None = None
        self._in_doubt: int | None = None  # the flush whose COMMIT may or may not have happened
        self._expect_duplicates = False  # the last flush had some
        self._standings: state_tables.Standings | None = None  # as of the last commit; None: to be read
        self._sightings = Sightings()

    # ---- operations -------------------------------------------------------------------------------------------------

    async def load_ledger(self, stream_ids: Sequence[str]) -> dict[str, int]:
        """The ledger's last_seq of each stream, 0 for one without a row.  Raises StoreError."""
        return await self.run(lambda conn: ledger.positions(conn, stream_ids))

    async def mark_ended(self, stream_ids: Sequence[str]) -> None:
        """Note that nothing follows in these streams.  Raises StoreError."""
        await self.run(lambda conn: ledger.mark_ended(conn, stream_ids))

    async def commit(self, flush: Flush) -> FlushCommitted | LedgerWentBack:
        """Commit a flush; what of it was in already is left out.  Raises StoreError.

        After an error in a flush that is committed batch by batch, what went before is in, and not counted.
        """
        try:
            return await self.run(lambda conn: self._commit(conn, flush))
        except _TooManyRefusedError:
            logger.warning("flush %d is committed batch by batch: much of it is refused", flush.flush_id)
            return await self._commit_by_batch(flush)

    async def run(self, work: Callable[[Connection], Awaitable[Item]]) -> Item:
        """Do something on the store's connection within OPERATION_TIMEOUT_S.  Raises StoreError."""
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_S):
                if self._conn is None or self._conn.is_closed():
                    self._conn = await open_connection(self._url)
                return await work(self._conn)
        except ClusterError as error:
            self.drop_connection()
            raise StoreError("retry" if error.code == "database_unavailable" else "fatal", str(error)) from error
        except database.DATABASE_ERRORS as error:
            self.drop_connection()
            if isinstance(error, asyncpg.UndefinedTableError):
                where = database.place(self._url)
                raise StoreError("fatal", f"the database {where} lacks a table; run `cluster migrate`") from error
            kind: FailureKind = "fatal" if database.classify(error) is Failure.FATAL else "retry"
            where = database.place(self._url)
            raise StoreError(kind, f"the database {where} failed: {database.describe(error)}") from error

    def drop_connection(self) -> None:
        """Abandon the connection; whatever it was doing, the server rolls it back or has committed it."""
        if self._conn is not None:
            self._conn.terminate()
            self._conn = None
        self._standings = None
        self._sightings.forget()

    async def close(self) -> None:
        if self._conn is not None:
            with contextlib.suppress(*database.DATABASE_ERRORS):  # closing: there is nothing left to lose
                await self._conn.close(timeout=2.0)
            self._conn = None

    async def _commit_by_batch(self, flush: Flush) -> FlushCommitted | LedgerWentBack:
        total = FlushCommitted(flush.flush_id, {}, 0)
        for part in flush.parts:
            position = part.base_seq
            for batch in part.batches:
                if batch.seq <= position:
                    continue  # an earlier attempt, or another writer, had it and more
                one = msgspec.structs.replace(part, base_seq=position, batches=[batch])
                single = msgspec.structs.replace(flush, parts=[one], rows=len(batch.results) + len(batch.missed))
                outcome = await self.run(functools.partial(self._commit, flush=single))
                if isinstance(outcome, LedgerWentBack):
                    return outcome
                position = outcome.positions[part.stream_id]
                total = _sum(total, outcome)
        return total

    # ---- one flush --------------------------------------------------------------------------------------------------

    async def _commit(self, conn: Connection, flush: Flush) -> FlushCommitted | LedgerWentBack:
        parts = flush.parts
        known = {part.stream_id: part.base_seq for part in parts}
        in_doubt = self._in_doubt == flush.flush_id
        self._in_doubt = None
        write = _write_careful if self._expect_duplicates else _write_fast
        for _ in range(ATTEMPTS_MAX):
            if not parts:
                break
            plan = self._plan(parts)
            try:
                written = await self._transact(conn, flush.flush_id, parts, plan, write)
            except ledger.LedgerMovedError:
                self._standings = None  # another writer, or an older database
                self._sightings.forget()
                found = await ledger.positions(conn, list(known))
                if _is_set_back(flush.parts, known, found):
                    return LedgerWentBack(flush.flush_id)
                known = found
                parts = ledger.leave_out(parts, found)
            except partitions.MissingPartitionError:
                for day in plan.results:
                    await partitions.create(conn, day)
            except database.DATABASE_ERRORS as error:
                if conn.is_closed() or database.classify(error) is not Failure.REJECT or write is _write_careful:
                    raise
                logger.info("flush %d is written carefully: %s", flush.flush_id, database.describe(error))
                write = _write_careful
            else:
                self._expect_duplicates = written.duplicates > 0
                positions = known | {part.stream_id: part.last_seq for part in parts}
                return FlushCommitted(
                    flush.flush_id, positions, written.results, written.duplicates, len(written.rejected)
                )
        else:
            raise StoreError("retry", f"a flush of {flush.rows} rows found no rest in {ATTEMPTS_MAX} attempts")
        # Everything is in already: an earlier attempt of this flush succeeded after all.
        rows = sum(len(batch.results) for part in flush.parts for batch in part.batches) if in_doubt else 0
        return FlushCommitted(flush.flush_id, known, rows)

    async def _transact(
        self, conn: Connection, flush_id: int, parts: list[StreamPart], plan: _Plan, write: "_Write"
    ) -> _Written:
        transaction = conn.transaction()
        await transaction.start()
        try:
            await ledger.advance(conn, parts)
            if self._standings is None:
                self._standings = await state_tables.load(conn)
            plan.standings = self._standings
            written = await write(conn, plan)
            await rollup_late.keep(conn, plan.spreads, plan.results.values())
            if written.rejected:
                await _set_aside(conn, written.rejected)
        except Exception:  # not when cancelled: the operation's time is over, and the connection is abandoned
            if not conn.is_closed():
                await transaction.rollback()
            raise
        self._in_doubt = flush_id
        await transaction.commit()
        self._in_doubt = None
        state_tables.remember(plan.standings, written.standings)
        self._sightings.remember(written.sightings)
        return written

    def _plan(self, parts: list[StreamPart]) -> _Plan:
        wall_ms = self._wall_ms()
        oldest_ms = partitions.oldest_day(wall_ms, self._retention_days) * partitions.DAY_MS
        newest_ms = wall_ms + FUTURE_MS
        plan = _Plan(defaultdict(list), {}, [], [], sum(len(part.batches) for part in parts), {}, self._sightings)
        for part in parts:
            origin = RecordOrigin(part.stream_id, part.worker)
            for batch in part.batches:
                _plan_results([ResultRecord(r, origin) for r in batch.results], oldest_ms, newest_ms, plan)
                for missed in batch.missed:
                    fault = fault_of_missed(missed, newest_ms)
                    if fault is None:
                        plan.missed.append(MissedRecord(missed, origin))
                    else:
                        plan.rejected.append(Rejected(MissedRecord(missed, origin), fault))
        return plan


def _sum(one: FlushCommitted, other: FlushCommitted) -> FlushCommitted:
    return FlushCommitted(
        one.flush_id,
        one.positions | other.positions,
        one.written + other.written,
        one.duplicates + other.duplicates,
        one.rejects + other.rejects,
    )


def _is_set_back(parts: list[StreamPart], known: dict[str, int], found: dict[str, int]) -> bool:
    back = ledger.describe_set_back(parts, known, found)
    if back is not None:
        logger.error("the database lost committed results; asking the workers for them again: %s", back)
    return back is not None


def _plan_results(records: list[ResultRecord], oldest_ms: int, newest_ms: int, plan: _Plan) -> None:
    """Sort the results of one batch into the plan."""
    instants = [record.result.scheduled_at_ms for record in records]
    if instants and (min(instants) < oldest_ms or max(instants) > newest_ms):
        inside = [oldest_ms <= instant <= newest_ms for instant in instants]
        outside = [record for record, kept in zip(records, inside, strict=True) if not kept]
        plan.rejected += [Rejected(record, fault_of_result(record.result, oldest_ms)) for record in outside]
        records = list(itertools.compress(records, inside))
        instants = list(itertools.compress(instants, inside))
    if not instants:
        return
    first_ms, last_ms = min(instants), max(instants)
    spread = plan.spreads.setdefault(records[0].origin.stream_id, TickSpread(first_ms, last_ms))
    spread.first_ms = min(spread.first_ms, first_ms)
    spread.last_ms = max(spread.last_ms, last_ms)
    if day_of(first_ms) == day_of(last_ms):
        plan.results[day_of(first_ms)] += records
    else:
        for record in records:
            plan.results[day_of(record.result.scheduled_at_ms)].append(record)


_Write = Callable[[Connection, _Plan], Awaitable[_Written]]


async def _set_aside(conn: Connection, rejected: list[Rejected]) -> None:
    await conn.executemany(
        "INSERT INTO ingest_reject (stream_id, worker, project_id, error, record) VALUES ($1, $2, $3, $4, $5)",
        [reject_row(one) for one in rejected],
    )


async def _copy_results(conn: Connection, day: int, records: Iterable[ResultRecord]) -> None:
    try:
        await conn.copy_records_to_table(partitions.name_of(day), records=result_rows(records), columns=RESULT_COLUMNS)
    except asyncpg.UndefinedTableError as error:
        raise partitions.MissingPartitionError(day) from error


# ---- the fast path --------------------------------------------------------------------------------------------------


async def _write_fast(conn: Connection, plan: _Plan) -> _Written:
    for day, records in plan.results.items():
        await _copy_results(conn, day, records)
    await free(conn, plan.spreads, plan.results.values())
    await store_ranges(conn, await unclaimed(conn, plan.missed))
    standings = await state_tables.keep(conn, plan.standings, plan.results.values())
    sightings = await plan.sightings.keep(conn, plan.results.values())
    written = sum(len(records) for records in plan.results.values())
    return _Written(written, 0, plan.rejected, standings, sightings)


# ---- the careful path -----------------------------------------------------------------------------------------------


async def _write_careful(conn: Connection, plan: _Plan) -> _Written:
    written = _Written(0, 0, list(plan.rejected))
    stored: list[list[ResultRecord]] = []

    def reject(one: ResultRecord | MissedRecord, error: Exception) -> None:
        if isinstance(one, ResultRecord) and isinstance(error, asyncpg.UniqueViolationError):
            # Somebody who does not take turns with us has added it since we looked.
            written.duplicates += 1
        else:
            written.rejected.append(Rejected(one, database.describe(error)))
            if plan.batches > 1 and len(written.rejected) - len(plan.rejected) > REFUSED_MAX:
                raise _TooManyRefusedError

    for day, records in plan.results.items():
        if await conn.fetchval("SELECT to_regclass($1)", partitions.name_of(day)) is None:
            raise partitions.MissingPartitionError(day)

        async def add_results(some: list[ResultRecord], day: int = day) -> None:
            new = await absent(conn, partitions.name_of(day), some)
            if new:
                await _copy_results(conn, day, new)
            written.results += len(new)
            written.duplicates += len(some) - len(new)
            stored.append(new)

        await _halve(conn, records, add_results, reject)
    await free(conn, plan.spreads, stored)
    written.standings = await state_tables.keep(conn, plan.standings, stored)
    written.sightings = await plan.sightings.keep(conn, stored)

    async def add_ranges(some: list[MissedRecord]) -> None:
        await store_ranges(conn, await unclaimed(conn, some))

    await _halve(conn, plan.missed, add_ranges, reject)
    return written


async def _halve(
    conn: Connection,
    records: list[Item],
    write: Callable[[list[Item]], Awaitable[None]],
    reject: Callable[[Item, Exception], None],
) -> None:
    """Write all records the server takes; those it refuses are found by halving, each half in a savepoint."""
    stack = [records] if records else []
    while stack:
        some = stack.pop()
        try:
            async with conn.transaction():
                await write(some)
        except database.DATABASE_ERRORS as error:
            if conn.is_closed() or database.classify(error) is not Failure.REJECT:
                raise
            if len(some) == 1:
                reject(some[0], error)
            else:
                middle = len(some) // 2
                stack += [some[middle:], some[:middle]]
