"""Fixtures every suite may use: a PostgreSQL server for the session, and a fresh, migrated database per test.

The server is TEST_DATABASE_URL if set, else a container if Docker answers, else the embedded server.  A database is
copied from a migrated template (tens of milliseconds) and dropped afterwards.

Property tests are not timed: the machine that runs them may be busy, and in a fresh checkout the first one that draws
text waits a second for hypothesis' tables of Unicode.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from cluster import database
from cluster.embedded import EmbeddedPostgres

T = TypeVar("T")

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def run_apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end in a loop and thread of its own, whatever loop the test runs in."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()


def with_database(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def execute_once(url: str, *statements: str) -> None:
    conn = await asyncpg.connect(url, timeout=30)
    try:
        for statement in statements:
            await conn.execute(statement)
    finally:
        await conn.close()


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["docker", "info"], capture_output=True, timeout=10, check=False).returncode == 0
    return False


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a server's database ``postgres``, with the right to create databases."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    if _docker_answers():
        from testcontainers.postgres import PostgresContainer  # noqa: PLC0415 - slow to import, rarely needed

        with PostgresContainer("postgres:18-alpine", driver=None) as container:
            yield container.get_connection_url()
        return
    base = Path(tempfile.mkdtemp(prefix="ringpoll-pg-"))
    base.chmod(0o755)  # as root the server runs under another account, which must reach it
    # Durability is off: nothing here outlives the session, and tests of crashes start servers of their own.
    settings = {"fsync": "off", "full_page_writes": "off", "max_connections": 60, "shared_buffers": "64MB"}
    server = EmbeddedPostgres(base, settings=settings)
    try:
        server.start()
        yield server.dsn()
    finally:
        server.stop()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database to copy; nobody connects to it."""
    name = f"ringpoll_template_{uuid.uuid4().hex[:12]}"

    async def create() -> None:
        await execute_once(postgres_url, f"CREATE DATABASE {name}")
        conn = await database.connect(with_database(postgres_url, name))
        try:
            await database.migrate(conn)
        finally:
            await conn.close()

    run_apart(create)
    yield name
    run_apart(lambda: execute_once(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A fresh database without any table."""
    yield from _fresh_database(postgres_url, "template0")


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A fresh, migrated database."""
    yield from _fresh_database(postgres_url, template_database)


def _fresh_database(server: str, template: str) -> Iterator[str]:
    name = f"ringpoll_{uuid.uuid4().hex[:12]}"
    run_apart(lambda: execute_once(server, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield with_database(server, name)
    run_apart(lambda: execute_once(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
