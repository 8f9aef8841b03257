"""Flushes into PostgreSQL: one transaction each, with the ledger, so that each is in exactly once.

A flush is committed on the *fast path*: the ledger rows move from ``base_seq`` to ``last_seq``, results go by COPY
straight into their day's result partition, missed ranges follow.  When the server objects:

- the ledger is not at ``base_seq``: it is read, what is already in is left out, and the rest is tried again.  This is
  also how an unknown outcome of a COMMIT is resolved, after a new connection;
- a unique violation, or data the server refuses: the same transaction again on the *careful path*, through a
  staging table with ON CONFLICT DO NOTHING, refused parts halved down to single records, which go to ingest_reject;
- no partition for a day: it is created, in a transaction of its own, and the flush tried again.

Missed ranges for ``handover`` and ``down`` are claims: ticks that are in the tables already are taken out of them.  In
turn a doubtful result takes its tick out of a range that has it.

Errors of the connection or the set-up are the caller's: ``commit`` raises StoreError and may be called again with the
same flush.  The store keeps one connection, and replaces it after an error.  It decides no retries, and runs one
operation at a time.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg
import msgspec

from cluster import database
from cluster.database import Connection, Failure
from cluster.errors import ClusterError
from writer import ledger, partitions
from writer.events import FailureKind, Flush, FlushCommitted, StreamPart
from writer.records import (
    FUTURE_MS,
    MISSED_COLUMNS,
    RESULT_COLUMNS,
    MissedRecord,
    RecordOrigin,
    Rejected,
    ResultRecord,
    day_of,
    fault_of_missed,
    fault_of_result,
    missed_rows,
    reject_row,
    result_rows,
)
from writer.taken import free, unclaimed

OPERATION_TIMEOUT_S = 30.0  # a flush of 20,000 rows takes a tenth of a second; an idle network may swallow a reset
ATTEMPTS_MAX = 4  # of one flush per call: ledger, partition, careful path
CLAIM_REASONS = frozenset({"handover", "down"})

logger = logging.getLogger("writer.store")
Item = TypeVar("Item")


class StoreError(Exception):
    """The database could not be used; the same may be tried again later."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Plan(msgspec.Struct):
    """A flush sorted by where its records go."""

    results: dict[int, list[ResultRecord]]  # by UTC day
    missed: list[MissedRecord]
    claims: list[MissedRecord]
    doubtful: list[ResultRecord]
    rejected: list[Rejected]


class _Written(msgspec.Struct):
    results: int = 0
    duplicates: int = 0
    rejected: list[Rejected] = []


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

    # ---- operations -------------------------------------------------------------------------------------------------

    async def load_ledger(self, stream_ids: Sequence[str]) -> dict[str, int]:
        """The ledger's last_seq of each stream, 0 for one without a row.  Raises StoreError."""
        return await self.run(lambda conn: ledger.positions(conn, stream_ids))

    async def mark_ended(self, stream_ids: Sequence[str]) -> None:
        """Note that nothing follows in these streams.  Raises StoreError."""
        await self.run(lambda conn: ledger.mark_ended(conn, stream_ids))

    async def commit(self, flush: Flush) -> FlushCommitted:
        """Commit a flush; what of it was in already is left out.  Raises StoreError."""
        return await self.run(lambda conn: self._commit(conn, flush))

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

    async def close(self) -> None:
        if self._conn is not None:
            with contextlib.suppress(*database.DATABASE_ERRORS):  # closing: there is nothing left to lose
                await self._conn.close(timeout=2.0)
            self._conn = None

    # ---- one flush --------------------------------------------------------------------------------------------------

    async def _commit(self, conn: Connection, flush: Flush) -> FlushCommitted:
        parts = flush.parts
        positions = {part.stream_id: part.last_seq for part in parts}
        in_doubt = self._in_doubt == flush.flush_id
        self._in_doubt = None
        write = _write_fast
        for _ in range(ATTEMPTS_MAX):
            if not parts:
                break
            plan = self._plan(parts)
            try:
                written = await self._transact(conn, flush.flush_id, parts, plan, write)
            except ledger.LedgerMovedError:
                parts, moved = await ledger.leave_out(conn, parts)
                positions.update(moved)
            except partitions.MissingPartitionError:
                for day in plan.results:
                    await partitions.create(conn, day)
            except database.DATABASE_ERRORS as error:
                if conn.is_closed() or database.classify(error) is not Failure.REJECT or write is _write_careful:
                    raise
                logger.info("flush %d is written carefully: %s", flush.flush_id, database.describe(error))
                write = _write_careful
            else:
                return FlushCommitted(
                    flush.flush_id, positions, written.results, written.duplicates, len(written.rejected)
                )
        else:
            raise StoreError("retry", f"a flush of {flush.rows} rows found no rest in {ATTEMPTS_MAX} attempts")
        # Everything is in already: an earlier attempt of this flush succeeded after all.
        rows = sum(len(batch.results) for part in flush.parts for batch in part.batches) if in_doubt else 0
        return FlushCommitted(flush.flush_id, positions, rows)

    async def _transact(
        self, conn: Connection, flush_id: int, parts: list[StreamPart], plan: _Plan, write: "_Write"
    ) -> _Written:
        transaction = conn.transaction()
        await transaction.start()
        try:
            await ledger.advance(conn, parts)
            written = await write(conn, plan)
            if plan.doubtful:
                await free(conn, plan.doubtful)
            if written.rejected:
                await _set_aside(conn, written.rejected)
        except Exception:  # not when cancelled: the operation's time is over, and the connection is abandoned
            if not conn.is_closed():
                await transaction.rollback()
            raise
        self._in_doubt = flush_id
        await transaction.commit()
        self._in_doubt = None
        return written

    def _plan(self, parts: list[StreamPart]) -> _Plan:
        wall_ms = self._wall_ms()
        oldest_ms = partitions.oldest_day(wall_ms, self._retention_days) * partitions.DAY_MS
        newest_ms = wall_ms + FUTURE_MS
        plan = _Plan(defaultdict(list), [], [], [], [])
        for part in parts:
            origin = RecordOrigin(part.stream_id, part.worker)
            for batch in part.batches:
                for result in batch.results:
                    record = ResultRecord(result, origin)
                    if oldest_ms <= result.scheduled_at_ms <= newest_ms:
                        plan.results[day_of(result.scheduled_at_ms)].append(record)
                        if result.doubtful and result.trigger == "tick":
                            plan.doubtful.append(record)
                    else:
                        plan.rejected.append(Rejected(record, fault_of_result(result, oldest_ms)))
                for missed in batch.missed:
                    entry = MissedRecord(missed, origin)
                    fault = fault_of_missed(missed, newest_ms)
                    if fault is not None:
                        plan.rejected.append(Rejected(entry, fault))
                    elif missed.reason in CLAIM_REASONS:
                        plan.claims.append(entry)
                    else:
                        plan.missed.append(entry)
        return plan


_Write = Callable[[Connection, _Plan], Awaitable[_Written]]


async def _set_aside(conn: Connection, rejected: list[Rejected]) -> None:
    await conn.executemany(
        "INSERT INTO ingest_reject (stream_id, worker, project_id, error, record) VALUES ($1, $2, $3, $4, $5)",
        [reject_row(one) for one in rejected],
    )


# ---- the fast path --------------------------------------------------------------------------------------------------


async def _write_fast(conn: Connection, plan: _Plan) -> _Written:
    for day, records in plan.results.items():
        await _copy_results(conn, partitions.name_of(day), day, records)
    missed = plan.missed
    if plan.claims:
        missed = missed + await unclaimed(conn, plan.claims, among=plan.missed)
    if missed:
        await conn.copy_records_to_table("missed_polls", records=missed_rows(missed), columns=MISSED_COLUMNS)
    return _Written(sum(len(records) for records in plan.results.values()), 0, plan.rejected)


async def _copy_results(conn: Connection, table: str, day: int, records: list[ResultRecord]) -> None:
    try:
        await conn.copy_records_to_table(table, records=result_rows(records), columns=RESULT_COLUMNS)
    except asyncpg.UndefinedTableError as error:
        raise partitions.MissingPartitionError(day) from error


# ---- the careful path -----------------------------------------------------------------------------------------------

_STAGING = "CREATE TEMP TABLE IF NOT EXISTS ringpoll_staging (LIKE poll_results) ON COMMIT DELETE ROWS"
_COLUMNS = ", ".join(RESULT_COLUMNS)


async def _write_careful(conn: Connection, plan: _Plan) -> _Written:
    await conn.execute(_STAGING)
    written = _Written(0, 0, list(plan.rejected))

    for day, records in plan.results.items():
        partition = partitions.name_of(day)
        if await conn.fetchval("SELECT to_regclass($1)", partition) is None:
            raise partitions.MissingPartitionError(day)

        async def merge(some: list[ResultRecord], into: str = partition) -> None:
            await conn.copy_records_to_table("ringpoll_staging", records=result_rows(some), columns=RESULT_COLUMNS)
            status = await conn.execute(
                f"INSERT INTO {into} ({_COLUMNS}) SELECT {_COLUMNS} FROM ringpoll_staging ON CONFLICT DO NOTHING"  # noqa: S608
            )
            await conn.execute("TRUNCATE ringpoll_staging")
            inserted = int(status.rpartition(" ")[2])
            written.results += inserted
            written.duplicates += len(some) - inserted

        await _halve(conn, records, merge, lambda one, error: written.rejected.append(Rejected(one, error)))

    async def insert(some: list[MissedRecord]) -> None:
        # Something is doubled or refused here, so every range is taken for a claim.
        rest = await unclaimed(conn, some)
        await conn.copy_records_to_table("missed_polls", records=missed_rows(rest), columns=MISSED_COLUMNS)

    missed = plan.missed + plan.claims
    await _halve(conn, missed, insert, lambda one, error: written.rejected.append(Rejected(one, error)))
    return written


async def _halve(
    conn: Connection,
    records: list[Item],
    write: Callable[[list[Item]], Awaitable[None]],
    reject: Callable[[Item, str], Any],
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
                reject(some[0], database.describe(error))
            else:
                middle = len(some) // 2
                stack += [some[middle:], some[:middle]]
