"""What waits in the WAL of a data directory on which no role runs any more.

A worker that was killed in its last moments leaves results that nobody took over, and no role is left to say so.  What
a stream has noted of its acknowledgements lags behind by up to a second, so the ledger has the last word where the
database answers; where it does not, some of what is said to wait may be there already.  What a newer version
of this program wrote can't be counted, only said to be there.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path

from cluster import database
from cluster.errors import ClusterError
from cluster.wal.listing import StreamInfo, list_streams

LEDGER_TIMEOUT_S = 2.0


async def left_over(wal_dir: Path, database_url: str | None) -> str:
    """What is to be said of results that no writer has committed; empty when there are none.

    Raises WalError when the WAL can't be read.
    """
    streams = await asyncio.to_thread(list_streams, wal_dir)
    waiting = [stream.stream_id for stream in streams if stream.records_unacked]
    if waiting and database_url is not None:
        committed = await _committed(database_url, waiting)
        streams = await asyncio.to_thread(list_streams, wal_dir, committed=committed)
    waiting_results = sum(stream.records_unacked for stream in streams)
    said = []
    if waiting_results:
        delivers = "the next `cluster up` or `cluster wal replay` delivers them"
        said.append(f"{waiting_results} results wait in {wal_dir}; {delivers}")
    if newer := newer_streams(streams):
        said.append(of_a_newer_version(newer, wal_dir))
    return "; ".join(said)


def newer_streams(streams: Sequence[StreamInfo]) -> int:
    return sum(stream.state == "newer version" for stream in streams)


def of_a_newer_version(count: int, wal_dir: Path) -> str:
    return (
        f"{count} streams in {wal_dir} were written by a newer version of this program, so what waits in them "
        "is not known; use that version to see and to deliver it"
    )


async def _committed(url: str, stream_ids: Sequence[str]) -> dict[str, int]:
    """The last seq of each stream in the ledger; empty when the database can't be asked."""
    with contextlib.suppress(ClusterError, *database.DATABASE_ERRORS):
        async with asyncio.timeout(LEDGER_TIMEOUT_S):
            conn = await database.connect(url, timeout_s=LEDGER_TIMEOUT_S)
            try:
                rows = await conn.fetch(
                    "SELECT stream_id, last_seq FROM ingest_stream WHERE stream_id = ANY($1::uuid[])", list(stream_ids)
                )
            finally:
                conn.terminate()
        positions = {row["stream_id"]: int(row["last_seq"]) for row in rows}
        return {stream_id: positions.get(uuid.UUID(stream_id), 0) for stream_id in stream_ids}
    return {}
