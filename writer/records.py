"""Results and missed ranges as rows: the columns, their values, and which records can't be stored at all.

Instants are bound as microseconds since 2000-01-01, PostgreSQL's own count, because building a datetime per value
costs three times as much as the rest of a row; see ``writer.store.open_connection`` for the codec.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec

from cluster.messages.results import MissedRange, PollResult

PG_EPOCH_MS = 946_684_800_000
DAY_MS = 86_400_000
FUTURE_MS = DAY_MS  # a result scheduled further ahead than this is a clock gone wrong
INT8_MAX = 2**63 - 1

RESULT_COLUMNS = (
    "project_id", "scheduled_at", "polled_at", "trigger", "status", "status_code", "response_time_ms", "error_code",
    "error_message", "dns_ms", "connect_ms", "tls_ms", "first_byte_ms", "transfer_ms", "size_bytes",
    "connection_reused", "remote_address", "worker", "epoch", "attempts",
)  # fmt: skip
MISSED_COLUMNS = ("project_id", "first_tick", "last_tick", "ticks", "reason", "worker", "epoch")

Row: TypeAlias = tuple[Any, ...]


class RecordOrigin(msgspec.Struct, frozen=True, gc=False):
    """Which stream a record came in."""

    stream_id: str
    worker: str


class ResultRecord(msgspec.Struct, frozen=True, gc=False):
    result: PollResult
    origin: RecordOrigin


class MissedRecord(msgspec.Struct, frozen=True, gc=False):
    missed: MissedRange
    origin: RecordOrigin


class TickSpread(msgspec.Struct):
    """Which time the results of a stream in a flush spread over."""

    first_ms: int
    last_ms: int


class Rejected(msgspec.Struct, frozen=True):
    """A record for ingest_reject."""

    record: ResultRecord | MissedRecord
    error: str


def pg_us(instant_ms: int) -> int:
    """An instant in ms since 1970 as PostgreSQL counts it."""
    return (instant_ms - PG_EPOCH_MS) * 1_000


def ms_of_pg(instant_us: int) -> int:
    return instant_us // 1_000 + PG_EPOCH_MS


def day_of(instant_ms: int) -> int:
    """The UTC day, counted from 1970-01-01."""
    return instant_ms // DAY_MS


def result_rows(records: Iterable[ResultRecord]) -> Iterable[Row]:
    """The values of RESULT_COLUMNS, one record at a time (COPY consumes them as it goes)."""
    epoch_ms, epoch_us = PG_EPOCH_MS, PG_EPOCH_MS * 1_000
    for record in records:
        r = record.result
        yield (
            r.project_id, (r.scheduled_at_ms - epoch_ms) * 1_000, r.polled_at_us - epoch_us, r.trigger, r.status,
            r.status_code, r.response_time_ms, r.error_code, r.error_message, r.dns_ms, r.connect_ms, r.tls_ms,
            r.first_byte_ms, r.transfer_ms, r.size_bytes, r.connection_reused, r.remote_address, record.origin.worker,
            r.epoch, r.attempts,
        )  # fmt: skip


def missed_rows(records: Iterable[MissedRecord]) -> Iterable[Row]:
    for record in records:
        m = record.missed
        yield (
            m.project_id, pg_us(m.first_tick_ms), pg_us(m.last_tick_ms), m.ticks, m.reason, record.origin.worker,
            m.epoch,
        )  # fmt: skip


def fault_of_result(result: PollResult, oldest_ms: int) -> str:
    """Why a result outside the instants that are stored has no place in the table."""
    if result.scheduled_at_ms < oldest_ms:
        return "scheduled_at is older than the retention"
    return "scheduled_at is more than a day in the future"


def fault_of_missed(missed: MissedRange, newest_ms: int) -> str | None:
    """Why a missed range is none; None: it is one."""
    if missed.interval_ms < 1:
        return "interval_ms is not positive"
    if missed.last_tick_ms < missed.first_tick_ms:
        return "the range ends before it begins"
    if (missed.last_tick_ms - missed.first_tick_ms) % missed.interval_ms:
        return "the last tick is not on the grid of the first"
    if missed.first_tick_ms < 0 or missed.last_tick_ms > newest_ms:
        return "the range is outside of time"
    return None


def reject_row(rejected: Rejected) -> Row:
    """The values of ingest_reject(stream_id, worker, project_id, error, record); the record as JSON text."""
    record = rejected.record
    content = record.result if isinstance(record, ResultRecord) else record.missed
    text = msgspec.json.encode(msgspec.structs.asdict(content)).decode()
    text = text.replace("\\u0000", "\\ufffd")  # jsonb takes every character but NUL
    project_id = content.project_id if -INT8_MAX - 1 <= content.project_id <= INT8_MAX else None
    return (record.origin.stream_id, record.origin.worker, project_id, rejected.error, text)
