"""The ledger, table ingest_stream: how far each stream is committed.

Its rows move in the transaction that writes the stream's records, by compare-and-set, so a batch can't be in twice.
A row that stands before what was committed once means that the database is an older one; so rows are deleted only when
nothing can follow in their stream (see writer.partitions).  Nothing here begins or ends a transaction.
"""

import uuid
from collections.abc import Mapping, Sequence

import msgspec

from cluster.database import Connection
from writer.events import StreamPart

STREAMS_NAMED_MAX = 3  # in a line of the log


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
    """Move each stream from base_seq to last_seq.  Raises LedgerMovedError when one is elsewhere.

    Flushes come one after the other until the transaction ends, those of another writer included (an old one's last, a
    new one's first): at the same time, neither would see what the other polled or missed.
    """
    await conn.execute("SELECT pg_advisory_xact_lock(hashtext('ringpoll flush'))")
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


def leave_out(parts: list[StreamPart], found: Mapping[str, int]) -> list[StreamPart]:
    """The parts as they have to be written when the ledger stands at ``found``: without what is in already."""
    return [
        msgspec.structs.replace(
            part,
            base_seq=found[part.stream_id],
            batches=[batch for batch in part.batches if batch.seq > found[part.stream_id]],
        )
        for part in parts
        if found[part.stream_id] < part.last_seq
    ]


def describe_set_back(parts: Sequence[StreamPart], known: Mapping[str, int], found: Mapping[str, int]) -> str | None:
    """Which streams stand before what is known of them, in words; None: none does."""
    back = [part for part in parts if found[part.stream_id] < known[part.stream_id]]
    if not back:
        return None
    some = ", ".join(
        f"{part.stream_id} of {part.worker} went back from {known[part.stream_id]} to {found[part.stream_id]}"
        for part in back[:STREAMS_NAMED_MAX]
    )
    more = f" and {len(back) - STREAMS_NAMED_MAX} more" if len(back) > STREAMS_NAMED_MAX else ""
    return f"{some}{more}"
