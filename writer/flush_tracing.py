"""A span for each flush: what was committed, how long its transaction took, and why it failed if it did."""

import time

from cluster.tracing import Tracing
from writer.events import CommitFlush, DatabaseFailed, Event, FlushCommitted, LoadLedger


def trace_flush(tracing: Tracing, operation: CommitFlush | LoadLedger, outcome: Event, began_ns: int) -> None:
    if not isinstance(operation, CommitFlush):
        return
    flush = operation.flush
    committed = outcome if isinstance(outcome, FlushCommitted) else None
    error = None
    if committed is None:
        error = outcome.error if isinstance(outcome, DatabaseFailed) else "the ledger went back"
    tracing.record(
        "writer.flush",
        began_ns,
        time.time_ns(),
        {
            "ringpoll.flush.id": flush.flush_id,
            "ringpoll.flush.streams": len(flush.parts),
            "ringpoll.flush.batches": sum(len(part.batches) for part in flush.parts),
            "ringpoll.flush.rows": flush.rows,
            "ringpoll.flush.written": None if committed is None else committed.written,
            "ringpoll.flush.duplicates": None if committed is None else committed.duplicates,
            "ringpoll.flush.rejects": None if committed is None else committed.rejects,
        },
        error=error,
    )
