"""API tokens in the database: made, listed, revoked.

Only the SHA-256 of a secret is stored.  A slow hash protects what people choose, which can be guessed; 256 random bits
can't, whatever the hash, and a slow one would cost each request.  The audit log has each change, in its transaction.
"""

import hashlib
import secrets
from datetime import UTC, datetime

import asyncpg
import msgspec

from cluster.access import audit_log
from cluster.access.audit_log import AuditEntry
from cluster.access.scopes import (
    NAME_RULE,
    TOKEN_ID_BYTES,
    TOKEN_SECRET_BYTES,
    Scope,
    TokenParts,
    is_name,
    write_token,
)
from cluster.database import Connection
from cluster.errors import ClusterError, InvalidInputError

TOKENS_MAX = 10_000  # not revoked; the coordinator has all of them in memory


class TokenRow(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None

    def state(self, now: datetime | None = None) -> str:
        if self.revoked_at is not None:
            return "revoked"
        expired = self.expires_at is not None and self.expires_at <= (now or datetime.now(UTC))
        return "expired" if expired else "active"


def hash_secret(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


async def create(conn: Connection, name: str, scope: Scope, expires_at: datetime | None, *, actor: str) -> str:
    """A new token, which can't be read again."""
    if not is_name(name):
        raise InvalidInputError(f"the name of a token must be {NAME_RULE}")
    parts = TokenParts(secrets.token_hex(TOKEN_ID_BYTES), secrets.token_hex(TOKEN_SECRET_BYTES))
    try:
        async with conn.transaction():
            if await conn.fetchval("SELECT count(*) FROM api_tokens WHERE revoked_at IS NULL") >= TOKENS_MAX:
                raise ClusterError(f"there are {TOKENS_MAX} tokens; revoke some first", code="too_many")
            await conn.execute(
                "INSERT INTO api_tokens (id, name, secret_sha256, scope, expires_at) VALUES ($1, $2, $3, $4, $5)",
                parts.id,
                name,
                hash_secret(parts.secret),
                scope,
                expires_at,
            )
            details = {"id": parts.id, "scope": scope, "expires_at": expires_at}
            await audit_log.record(
                conn, AuditEntry(actor=actor, action="token.create", subject=f"token:{name}", details=details)
            )
    except asyncpg.UniqueViolationError as error:
        raise ClusterError(
            f"there is a token {name} already; `cluster token revoke {name}` first, or choose another name",
            code="conflict",
        ) from error
    return write_token(parts)


async def list_tokens(conn: Connection) -> list[TokenRow]:
    """All of them, revoked ones too, the newest last."""
    rows = await conn.fetch(
        "SELECT id, name, scope, created_at, expires_at, last_used_at, revoked_at FROM api_tokens "
        "ORDER BY created_at, id"
    )
    return [TokenRow(**dict(row)) for row in rows]


async def revoke(conn: Connection, name_or_id: str, *, actor: str) -> TokenRow:
    """End a token that is not revoked yet."""
    async with conn.transaction():
        rows = await conn.fetch(
            "UPDATE api_tokens SET revoked_at = now() WHERE revoked_at IS NULL AND (id = $1 OR name = $1) "
            "RETURNING id, name, scope, created_at, expires_at, last_used_at, revoked_at",
            name_or_id,
        )
        if not rows:
            raise ClusterError(
                f"there is no token {name_or_id[:80]} that is not revoked; `cluster token list` shows them",
                code="unknown_token",
            )
        if len(rows) > 1:  # one's name is another's id
            raise ClusterError(f"{name_or_id[:80]} is the name of one token and the id of another; nothing was changed")
        row = TokenRow(**dict(rows[0]))
        await audit_log.record(
            conn, AuditEntry(actor=actor, action="token.revoke", subject=f"token:{row.name}", details={"id": row.id})
        )
    return row
