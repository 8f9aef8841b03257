"""A coordinator with its HTTP server, in this loop, on a database with tokens and users of every kind."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta

import aiohttp
import jwt

from cluster import database
from cluster.access import tokens, users
from cluster.access.rate_limit import RateLimit
from cluster.access.scopes import SCOPES, parse_token
from cluster.runtime import RoleContext
from cluster.settings import Settings
from coordinator.core import CoordinatorCore
from coordinator.service import CoordinatorService
from tests.coordinator_shell.test_http_server import free_port
from tests.coordinator_shell.waiting import until

PASSWORD = "correct horse battery"
PATH_VALUES = {"id": "1", "name": "worker-1"}


class ServedCluster:
    """``behind_tls``: with authentication, though it is on loopback."""

    def __init__(self, data_dir, url, *, behind_tls=True, **changes):
        self.settings = Settings(
            data_dir=data_dir,
            database_url=url,
            workers=1,
            http=f"127.0.0.1:{free_port()}",
            http_behind_tls=behind_tls,
            name="coordinator",
            run_id="run",
            run_started_at_ms=time.time_ns() // 1_000_000,
            **changes,
        )
        self.scheme = "http" if self.settings.http_cert is None else "https"
        self.url = f"{self.scheme}://{self.settings.http}"
        self.service = None
        self._context = None
        self._task = None

    async def start(self):
        self.settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._context = RoleContext(self.settings)
        self.service = CoordinatorService(self._context, CoordinatorCore)
        self._task = asyncio.create_task(self.service.run())
        await until(lambda: self.service.server.addresses or self._task.done(), what="a server")
        if self._task.done():
            self._task.result()
        return self

    async def loaded(self):
        """With projects, so that no request is told to wait."""
        await until(lambda: self.service._source.loaded or self._task.done(), what="projects")
        return self

    @property
    def access(self):
        return self.service._access

    def without_limits(self):
        """For tests that send more wrong credentials than anyone may."""
        for name in ("_wrong_tokens", "_logins_by_address", "_logins_by_user"):
            setattr(self.access, name, RateLimit(burst=1e9, per_s=1e9))
        return self

    async def stop(self):
        if self._context is not None:
            self._context.stop("test over")
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(self._task, 20)


@contextlib.asynccontextmanager
async def client(**options):
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), **options) as session:
        yield session


async def fill(url):
    """Tokens by what they are: of each scope, ``expired``, ``revoked``; users of each scope, with PASSWORD."""
    conn = await database.connect(url)
    made = {}
    passwords = users.Passwords(time_cost=1, memory_kib=64)
    try:
        for scope in SCOPES:
            made[scope] = await tokens.create(conn, f"t-{scope}", scope, None, actor="cli:test")
            await users.add(conn, f"u-{scope}", passwords.hash_password(PASSWORD), scope, actor="cli:test")
        an_hour = timedelta(hours=1)
        made["expired"] = await tokens.create(conn, "t-expired", "admin", datetime.now(UTC) - an_hour, actor="cli:test")
        made["revoked"] = await tokens.create(conn, "t-revoked", "admin", None, actor="cli:test")
        await tokens.revoke(conn, "t-revoked", actor="cli:test")
    finally:
        passwords.close()
        await conn.close()
    return made


def forged_tokens(made):
    """Tokens that are almost right, by what is wrong with them."""
    parts = parse_token(made["admin"])
    other = parse_token(made["read"])
    last = "0" if parts.secret[-1] != "0" else "1"
    return {
        "secret off by one": f"rp_{parts.id}_{parts.secret[:-1]}{last}",
        "secret of another": f"rp_{parts.id}_{other.secret}",
        "id of nobody": f"rp_{'0' * 12}_{parts.secret}",
        "no secret": f"rp_{parts.id}_",
        "upper case": made["admin"].upper(),
        "nothing": "",
        "nonsense": "nonsense",
        "sql": "' OR 1=1 --",
    }


def forged_cookies(served, generation):
    """Sessions that are almost right, by what is wrong with them; ``generation``: of u-admin."""
    sessions = served.access._sessions
    _, good = sessions.begin("u-admin", generation)
    key = sessions._key
    now = int(time.time())
    claims = {"sub": "u-admin", "gen": generation, "jti": "x" * 32, "iat": now, "exp": now + 3_600}
    head, body, signature = good.split(".")
    ended, cookie_of_ended = sessions.begin("u-admin", generation)
    sessions.end(ended)
    return {
        "alg none": jwt.encode(claims, None, algorithm="none"),
        "alg none, good signature": ".".join(
            [jwt.encode(claims, None, algorithm="none").split(".")[0], body, signature]
        ),
        "no signature": f"{head}.{body}.",
        "HS512": jwt.encode(claims, key * 2, algorithm="HS512"),
        "HS512, our key": jwt.encode(claims, key + bytes(32), algorithm="HS512"),
        "another key": jwt.encode(claims, b"k" * 32, algorithm="HS256"),
        "empty key": jwt.encode(claims, b"\0" * 32, algorithm="HS256"),
        "expired": jwt.encode(claims | {"iat": now - 7_200, "exp": now - 1}, key, algorithm="HS256"),
        "not yet": jwt.encode(claims | {"iat": now + 3_600, "exp": now + 7_200}, key, algorithm="HS256"),
        "no expiry": jwt.encode({k: v for k, v in claims.items() if k != "exp"}, key, algorithm="HS256"),
        "no generation": jwt.encode({k: v for k, v in claims.items() if k != "gen"}, key, algorithm="HS256"),
        "old generation": sessions.begin("u-admin", generation - 1)[1],
        "nobody's": sessions.begin("nobody", generation)[1],
        "another's generation": sessions.begin("u-read", generation)[1],
        "logged out": cookie_of_ended,
        "payload of another": f"{head}.{sessions.begin('u-read', 1)[1].split('.')[1]}.{signature}",
        "nonsense": "nonsense",
        "long": "x" * 4_000,
    }


async def generations(url):
    conn = await database.connect(url)
    try:
        return dict(await conn.fetch("SELECT name, generation FROM users"))
    finally:
        await conn.close()
