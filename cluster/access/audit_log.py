"""The audit log: who changed what, one row per change, in the transaction of the change.

``record`` writes an entry on the caller's connection: if the change is rolled back, so is its entry, and a change whose
entry can't be written is not made.  ``read`` gives the newest first, a page at a time.

Details hold no secrets: names of the fields that were changed, ids, scopes; not the values of a project's fields.  What
is larger than DETAILS_BYTES_MAX is replaced by a word on its size.  Rows are kept for ``writer.partitions``'
AUDIT_DAYS, or as long as results if that is longer.
"""

from datetime import datetime
from typing import Any

import msgspec
import orjson

from cluster.database import Connection

DETAILS_BYTES_MAX = 256 << 10
PAGE_ROWS_MAX = 500


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    actor: str  # token:NAME, user:NAME, local, cli:NAME
    action: str  # noun.verb: project.create, project.update, token.revoke, cluster.scale
    subject: str  # project:12, token:ci, cluster
    address: str | None = None  # of the client
    details: dict[str, Any] = {}


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    address: str | None
    details: dict[str, Any]


async def record(conn: Connection, *entries: AuditEntry) -> None:
    """Call it inside the transaction of the change."""
    await conn.executemany(
        "INSERT INTO audit_log (actor, action, subject, address, details) VALUES ($1, $2, $3, $4, $5::text::jsonb)",
        [(each.actor, each.action, each.subject, each.address, _details(each)) for each in entries],
    )


async def read(
    conn: Connection, *, actor: str | None = None, before_id: int | None = None, limit: int = 50
) -> list[AuditRecord]:
    """The newest first: at most ``limit``, with ids below ``before_id``, of one actor or of all."""
    assert 1 <= limit <= PAGE_ROWS_MAX + 1, limit  # one more tells whether there is another page
    rows = await conn.fetch(
        "SELECT id, at, actor, action, subject, address, details::text AS details FROM audit_log "
        "WHERE ($1::text IS NULL OR actor = $1) AND ($2::bigint IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        actor,
        before_id,
        limit,
    )
    return [AuditRecord(**{**dict(row), "details": orjson.loads(row["details"])}) for row in rows]


def _details(entry: AuditEntry) -> str:
    encoded = orjson.dumps(entry.details, option=orjson.OPT_NON_STR_KEYS)
    if len(encoded) > DETAILS_BYTES_MAX:
        encoded = orjson.dumps({"left_out_bytes": len(encoded)})
    return encoded.decode().replace("\\u0000", "\\ufffd")  # which jsonb can't hold
