"""The ledger, table ingest_stream: how far each stream is committed.

Its rows move in the transaction that writes the stream's records, by compare-and-set, so a batch can't be in twice.
Nothing here begins or ends a transaction.
"""

import logging
import uuid
from collections.abc import Sequence

from cluster.database import Connection
from writer.events import StreamPart

logger = logging.getLogger("writer.ledger")


class LedgerMovedError(Exception):
    """A ledger row was not at its base_seq; the transaction must be rolled back."""


async def positions(conn: Connection, stream_ids: Sequence[str]) -> dict[str, int]:
    """The last_seq of each stream, 0 for one without a row."""
    rows = await conn.fetch(
        "SELECT stream_id, last_seq FROM ingest_stream WHERE stream_id = ANY($1::uuid[])", list(stream_ids)
    )
    found = {row["stream_id"]: int(row["last_seq"]) for row in rows}
    return {stream_id: found.get(uuid.UUID(stream_id), 0) for stream_id in stream_ids}


async def mark_ended(conn: Connection, stream_ids: Sequence[str]) -> None:
    await conn.execute(
        "UPDATE ingest_stream SET ended_at = now() WHERE stream_id = ANY($1::uuid[]) AND ended_at IS NULL",
        list(stream_ids),
    )


async def advance(conn: Connection, parts: list[StreamPart]) -> None:
    """Move each stream from base_seq to last_seq.  Raises LedgerMovedError when one is elsewhere."""
    moved = 0
    known = [part for part in parts if part.base_seq > 0]
    new = [part for part in parts if part.base_seq == 0]
    if known:
        rows = await conn.fetch(
            """
            UPDATE ingest_stream s SET last_seq = w.last_seq, updated_at = now(), ended_at = NULL
            FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS w(stream_id, base_seq, last_seq)
            WHERE s.stream_id = w.stream_id AND s.last_seq = w.base_seq
            RETURNING s.stream_id
            """,
            [part.stream_id for part in known],
            [part.base_seq for part in known],
            [part.last_seq for part in known],
        )
        moved += len(rows)
    if new:
        rows = await conn.fetch(
            """
            INSERT INTO ingest_stream (stream_id, worker, last_seq)
            SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[])
            ON CONFLICT DO NOTHING
            RETURNING stream_id
            """,
            [part.stream_id for part in new],
            [part.worker for part in new],
            [part.last_seq for part in new],
        )
        moved += len(rows)
    if moved != len(parts):
        raise LedgerMovedError


async def leave_out(conn: Connection, parts: list[StreamPart]) -> tuple[list[StreamPart], dict[str, int]]:
    """The parts as they have to be written given the ledger as it stands, and the positions that are ahead of them."""
    ledger = await positions(conn, [part.stream_id for part in parts])
    rest: list[StreamPart] = []
    ahead: dict[str, int] = {}
    for part in parts:
        last_seq = ledger[part.stream_id]
        if last_seq >= part.last_seq:
            ahead[part.stream_id] = last_seq
            continue
        if last_seq < part.base_seq:
            logger.error(
                "the ledger of stream %s of %s went back from %d to %d: the database lost committed results",
                part.stream_id,
                part.worker,
                part.base_seq,
                last_seq,
            )
        batches = [batch for batch in part.batches if batch.seq > last_seq]
        rest.append(StreamPart(part.stream_id, part.worker, last_seq, batches))
    return rest, ahead
