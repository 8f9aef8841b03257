"""Results and flushes to write, and the tables to look at afterwards."""

import itertools
import time
import uuid

import msgspec
import pytest

from cluster import database
from cluster.messages.results import Batch, MissedRange, PollResult
from writer.events import Flush, StreamPart
from writer.store import Store

DAY_MS = 86_400_000
NOW_MS = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS + DAY_MS // 2  # noon, so that "a moment ago" is today
S1, S2 = (str(uuid.UUID(int=n)) for n in (1, 2))
PLAIN = PollResult(
    project_id=1, scheduled_at_ms=NOW_MS, polled_at_us=NOW_MS * 1000 + 1_234, trigger="tick", status="success",
    status_code=200, response_time_ms=12.5, error_code=None, error_message=None, dns_ms=None, connect_ms=None,
    tls_ms=None, first_byte_ms=9.25, transfer_ms=0.5, size_bytes=1234, connection_reused=True,
    remote_address="127.0.0.1", epoch=7,
)  # fmt: skip
_flush_ids = itertools.count(1)


def result(project_id=1, at_ms=NOW_MS, **changes):
    return msgspec.structs.replace(
        PLAIN, project_id=project_id, scheduled_at_ms=at_ms, polled_at_us=at_ms * 1000 + 1_234, **changes
    )


def missed(first_ms, last_ms, step_ms=1000, *, project_id=1, reason="overload"):
    return MissedRange(project_id, first_ms, last_ms, step_ms, reason, 7)


def part(first_seq, *batches, stream=S1, base_seq=None, worker="worker-1"):
    """A part of a flush; each batch is a list of results and missed ranges."""
    made = [
        Batch(stream, seq, [r for r in b if isinstance(r, PollResult)], [m for m in b if isinstance(m, MissedRange)])
        for seq, b in enumerate(batches, start=first_seq)
    ]
    return StreamPart(stream, worker, first_seq - 1 if base_seq is None else base_seq, made)


def flush(*parts):
    rows = sum(len(b.results) + len(b.missed) for p in parts for b in p.batches)
    return Flush(next(_flush_ids), list(parts), rows, 0)


class Tables:
    """What is in the database, read on a connection of its own."""

    def __init__(self, conn):
        self.conn = conn

    async def results(self):
        rows = await self.conn.fetch(
            "SELECT project_id, (extract(epoch FROM scheduled_at) * 1000)::bigint AS ms FROM poll_results ORDER BY 1, 2"
        )
        return [(row["project_id"], row["ms"] - NOW_MS) for row in rows]

    async def missed(self):
        rows = await self.conn.fetch(
            "SELECT project_id, (extract(epoch FROM first_tick) * 1000)::bigint AS first, "
            "(extract(epoch FROM last_tick) * 1000)::bigint AS last, ticks, reason FROM missed_polls ORDER BY 1, 2"
        )
        return [(r["project_id"], r["first"] - NOW_MS, r["last"] - NOW_MS, r["ticks"], r["reason"]) for r in rows]

    async def ledger(self):
        rows = await self.conn.fetch("SELECT stream_id, last_seq FROM ingest_stream")
        return {str(row["stream_id"]): row["last_seq"] for row in rows}

    async def rejects(self):
        rows = await self.conn.fetch("SELECT project_id, error, record FROM ingest_reject ORDER BY id")
        return [(row["project_id"], row["error"], msgspec.json.decode(row["record"])) for row in rows]


@pytest.fixture
async def tables(database_url):
    conn = await database.connect(database_url)
    yield Tables(conn)
    await conn.close()


@pytest.fixture
async def store(database_url):
    store = Store(database_url, retention_days=90, wall_ms=lambda: NOW_MS)
    yield store
    await store.close()
