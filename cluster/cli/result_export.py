"""Rows of ``poll_results`` as JSON Lines, CSV (RFC 4180) or Parquet, streamed: memory does not grow with their number.

One query at one instant, through a cursor.  CSV has the names of the columns in its first row, nothing for NULL,
``true`` and ``false``, and instants in ISO 8601; a text that a spreadsheet would calculate gets an apostrophe in front
(``cluster.interchange.csv_file``), because a target chooses what some messages quote.  Parquet has the table's types,
timestamps in UTC, and a row group each ``ROW_GROUP_ROWS``; it is written beside the file and takes its name at the end.
"""

import csv
import io
import os
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import msgspec
import orjson

from cluster import database
from cluster.errors import InvalidInputError
from cluster.interchange.csv_file import guarded

CHUNK_ROWS = 5_000
ROW_GROUP_ROWS = 100_000

OnRows = Callable[[int, int | None], None]


class ResultQuery(msgspec.Struct, frozen=True):
    """``project_ids``: empty for all projects.  ``last``: at most so many, the newest first; None: no order."""

    project_ids: tuple[int, ...]
    since: datetime | None = None
    until: datetime | None = None
    last: int | None = None
    newest_first: bool = True

    def sql(self) -> tuple[str, list[Any]]:
        conditions = ["true"]
        values: list[Any] = []
        for condition, value in (
            ("project_id = ANY(${}::bigint[])", list(self.project_ids) or None),
            ("scheduled_at >= ${}", self.since),
            ("scheduled_at < ${}", self.until),
        ):
            if value is not None:
                values.append(value)
                conditions.append(condition.format(len(values)))
        order = " ORDER BY scheduled_at DESC" if self.newest_first else ""
        limit = ""
        if self.last is not None:
            values.append(self.last)
            limit = f" LIMIT ${len(values)}"
        return f"SELECT * FROM poll_results WHERE {' AND '.join(conditions)}{order}{limit}", values  # noqa: S608


async def result_chunks(conn: database.Connection, query: ResultQuery) -> AsyncIterator[list[Any]]:
    """Records in lists of at most ``CHUNK_ROWS``; within a transaction."""
    sql, values = query.sql()
    cursor = await conn.cursor(sql, *values)
    while rows := await cursor.fetch(CHUNK_ROWS):
        yield rows


async def write_json_lines(conn: database.Connection, query: ResultQuery, out: IO[bytes]) -> int:
    count = 0
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        async for rows in result_chunks(conn, query):
            out.write(b"".join(orjson.dumps(dict(row), default=str, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
            count += len(rows)
    out.flush()
    return count


async def write_csv_rows(conn: database.Connection, query: ResultQuery, out: IO[bytes]) -> int:
    count = 0
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        out.write(_csv([[name for name, _ in await _columns(conn, query)]]))
        async for rows in result_chunks(conn, query):
            out.write(_csv([[_cell(value) for value in row.values()] for row in rows]))
            count += len(rows)
    out.flush()
    return count


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    match value:
        case None | "":
            return ""
        case bool():
            return "true" if value else "false"
        case datetime():
            return value.isoformat()
        case float():
            return f"{value:.7g}"  # as many digits as `real` has
        case int():
            return value
    return guarded(str(value))


async def _columns(conn: database.Connection, query: ResultQuery) -> list[tuple[str, str]]:
    """Names and types of the result."""
    statement = await conn.prepare(query.sql()[0])
    return [(each.name, each.type.name) for each in statement.get_attributes()]


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def expect_pyarrow() -> None:
    """Raises InvalidInputError with what to install, before anything is read."""
    try:
        import pyarrow.parquet as pq  # type: ignore[import-untyped]  # noqa: F401, PLC0415 - an optional extra
    except ImportError as error:
        raise InvalidInputError("--parquet: needs pyarrow; install it with pip install 'ringpoll[parquet]'") from error


async def write_parquet(conn: database.Connection, query: ResultQuery, file: Path, on_rows: OnRows) -> int:
    """How many rows were written."""
    import pyarrow as pa  # noqa: PLC0415 - an optional extra
    import pyarrow.parquet as pq  # noqa: PLC0415

    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    count = 0
    try:
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            schema = _schema(await _columns(conn, query))
            with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
                batches: list[Any] = []
                async for rows in result_chunks(conn, query):
                    batches.append(_batch(rows, schema))
                    count += len(rows)
                    on_rows(len(rows), None)
                    if count % ROW_GROUP_ROWS < len(rows):
                        writer.write_table(pa.Table.from_batches(batches, schema), ROW_GROUP_ROWS)
                        batches = []
                if batches:
                    writer.write_table(pa.Table.from_batches(batches, schema), ROW_GROUP_ROWS)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _schema(columns: Sequence[tuple[str, str]]) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an optional extra

    types = {
        "int2": pa.int16(),
        "int4": pa.int32(),
        "int8": pa.int64(),
        "float4": pa.float32(),
        "float8": pa.float64(),
        "bool": pa.bool_(),
        "timestamptz": pa.timestamp("us", tz="UTC"),
    }
    return pa.schema([(name, types.get(kind, pa.string())) for name, kind in columns])


def _batch(rows: Sequence[Any], schema: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an optional extra

    arrays = []
    for at, field in enumerate(schema):
        values = [row[at] for row in rows]
        if field.type == pa.string():
            values = [None if value is None else str(value) for value in values]
        arrays.append(pa.array(values, field.type))
    return pa.record_batch(arrays, schema=schema)
