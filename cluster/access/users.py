"""People who log in on the page: added, listed, given a new password, removed; and how a password is checked.

A password is stored as argon2id (library argon2-cffi): about 100 ms and 64 MiB on one core.  ``Passwords`` computes
them in a thread of its own, one at a time, with a bounded number that wait, so that logins can take neither the cores
nor the memory of who polls.  One for an unknown user takes as long as any other.

A change of password, and a removal, end the sessions of before (``generation``).
"""

import asyncio
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import argon2
import asyncpg
import msgspec

from cluster.access import audit_log
from cluster.access.audit_log import AuditEntry
from cluster.access.scopes import NAME_RULE, Scope, is_name
from cluster.database import Connection
from cluster.errors import ClusterError, InvalidInputError

USERS_MAX = 10_000
PASSWORD_CHARS_MIN = 12
PASSWORD_BYTES_MAX = 1_024
WAITING_MAX = 16  # verifications; further ones are told to come again

TIME_COST = 3
MEMORY_KIB = 64 << 10
PARALLELISM = 1  # one login takes one core


class UserRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    scope: Scope
    created_at: datetime
    password_changed_at: datetime
    last_login_at: datetime | None


class StoredPassword(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    password_hash: str
    scope: Scope
    generation: int


class PasswordsBusyError(ClusterError):
    def __init__(self) -> None:
        super().__init__("too many logins at once; try again in a second", code="busy")


class Passwords:
    """``close`` it.  ``hash_password`` is for what sets one and needs no instance."""

    def __init__(self, *, time_cost: int = TIME_COST, memory_kib: int = MEMORY_KIB) -> None:
        self._hasher = argon2.PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=PARALLELISM)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="passwords")
        self._waiting = 0
        self._dummy: str | None = None

    def hash_password(self, password: str) -> str:
        return self._hasher.hash(_normal(password))

    async def verify(self, password: str, stored: str | None) -> str | None:
        """None: it is wrong, or there is no such user (``stored`` None).  Else the hash to be stored from now on."""
        if self._waiting >= WAITING_MAX:
            raise PasswordsBusyError
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._verify, password, stored)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _verify(self, password: str, stored: str | None) -> str | None:
        if self._dummy is None:
            self._dummy = self._hasher.hash("nobody's")
        try:
            self._hasher.verify(self._dummy if stored is None else stored, _normal(password))
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return None
        if stored is None:
            return None
        return self._hasher.hash(_normal(password)) if self._hasher.check_needs_rehash(stored) else stored


def check_password(password: str) -> None:
    """Raises InvalidInputError unless it may become someone's password."""
    if len(password) < PASSWORD_CHARS_MIN:
        raise InvalidInputError(f"the password must have at least {PASSWORD_CHARS_MIN} characters")
    if len(password.encode("utf-8", "replace")) > PASSWORD_BYTES_MAX:
        raise InvalidInputError(f"the password must have at most {PASSWORD_BYTES_MAX} bytes")


async def add(conn: Connection, name: str, password_hash: str, scope: Scope, *, actor: str) -> None:
    if not is_name(name):
        raise InvalidInputError(f"the name of a user must be {NAME_RULE}")
    try:
        async with conn.transaction():
            if await conn.fetchval("SELECT count(*) FROM users") >= USERS_MAX:
                raise ClusterError(f"there are {USERS_MAX} users; remove some first", code="too_many")
            await conn.execute(
                "INSERT INTO users (name, password_hash, scope) VALUES ($1, $2, $3)", name, password_hash, scope
            )
            await _record(conn, actor, "user.add", name, scope=scope)
    except asyncpg.UniqueViolationError as error:
        raise ClusterError(
            f"there is a user {name} already; `cluster user password {name}` sets a new password", code="conflict"
        ) from error


async def list_users(conn: Connection) -> list[UserRow]:
    rows = await conn.fetch(
        "SELECT name, scope, created_at, password_changed_at, last_login_at FROM users ORDER BY name"
    )
    return [UserRow(**dict(row)) for row in rows]


async def set_password(conn: Connection, name: str, password_hash: str, *, actor: str) -> None:
    async with conn.transaction():
        done = await conn.execute(
            "UPDATE users SET password_hash = $2, password_changed_at = now(), "
            "generation = nextval('user_generations') WHERE name = $1",
            name,
            password_hash,
        )
        if done != "UPDATE 1":
            raise _unknown(name)
        await _record(conn, actor, "user.password", name)


async def remove(conn: Connection, name: str, *, actor: str) -> None:
    async with conn.transaction():
        if await conn.execute("DELETE FROM users WHERE name = $1", name) != "DELETE 1":
            raise _unknown(name)
        await _record(conn, actor, "user.remove", name)


async def find_password(conn: Connection, name: str) -> StoredPassword | None:
    row = await conn.fetchrow("SELECT name, password_hash, scope, generation FROM users WHERE name = $1", name)
    return None if row is None else StoredPassword(**dict(row))


async def note_login(conn: Connection, user: StoredPassword, password_hash: str) -> None:
    """``password_hash`` as ``Passwords.verify`` gave it.  Whoever has changed the password meanwhile wins."""
    await conn.execute(
        "UPDATE users SET last_login_at = now(), password_hash = $3 WHERE name = $1 AND generation = $2",
        user.name,
        user.generation,
        password_hash,
    )


async def _record(conn: Connection, actor: str, action: str, name: str, **details: str) -> None:
    await audit_log.record(conn, AuditEntry(actor=actor, action=action, subject=f"user:{name}", details=details))


def _unknown(name: str) -> ClusterError:
    return ClusterError(f"there is no user {name[:80]}; `cluster user list` shows them", code="unknown_user")


def _normal(password: str) -> bytes:
    """The same text, however the keyboard composed it."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
