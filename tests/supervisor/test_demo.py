"""The demo: its projects stay 100, its target behaves as it says."""

import asyncio
import contextlib
import socket

import aiohttp
import asyncpg
import pytest
from aiohttp import web

from cluster import demo
from cluster.errors import ClusterError


async def test_a_hundred_projects_however_often_and_wherever_it_starts(database_url):
    conn = await asyncpg.connect(database_url)
    try:
        await conn.execute("INSERT INTO projects (name, url) VALUES ('mine', 'http://mine.example/')")
        assert await demo.upsert_projects(conn, 8701) == (100, 0)
        before = await conn.fetch("SELECT id, name FROM projects ORDER BY id")
        assert await demo.upsert_projects(conn, 8701) == (0, 0)
        await conn.execute("UPDATE projects SET interval = 77, enabled = false WHERE name = 'demo slow 03'")
        assert await demo.upsert_projects(conn, 8705) == (0, 100)
        assert await conn.fetch("SELECT id, name FROM projects ORDER BY id") == before
        row = await conn.fetchrow("SELECT * FROM projects WHERE name = 'demo slow 03'")
        assert (row["url"], row["interval"], row["enabled"]) == ("http://127.0.0.1:8705/slow/3", 77, False)
        await conn.execute("DELETE FROM projects WHERE name = 'demo ok 01'")
        assert await demo.upsert_projects(conn, 8705) == (1, 0)
        assert await conn.fetchval("SELECT count(*) FROM projects") == 101
        assert await conn.fetchval("SELECT url FROM projects WHERE name = 'mine'") == "http://mine.example/"
    finally:
        await conn.close()


async def test_two_demos_at_once_make_a_hundred(database_url):
    connections = [await asyncpg.connect(database_url) for _ in range(2)]
    try:
        counts = await asyncio.gather(*(demo.upsert_projects(conn, 8701) for conn in connections))
        assert sorted(counts) == [(0, 0), (100, 0)]
    finally:
        for conn in connections:
            await conn.close()


def test_the_next_free_port_is_taken():
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(demo.listen(28_700))
        port = first.getsockname()[1]
        second = stack.enter_context(demo.listen(port))
        assert second.getsockname()[1] > port


def test_an_address_that_cannot_be_had_is_one_line(monkeypatch):
    monkeypatch.setattr(demo, "PORTS_TRIED", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"no free port from {port}"):
            demo.listen(port)


async def test_the_target_behaves_as_it_says():
    runner = web.AppRunner(demo.DemoTarget().application(), access_log=None)
    await runner.setup()
    listener = demo.listen(28_800)
    port = listener.getsockname()[1]
    try:
        await web.SockSite(runner, listener).start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def status(path):
                async with session.get(path) as response:
                    return response.status

            assert await status("/ok/1") == 200
            assert await status("/slow/1") == 200
            assert await status("/failing/1") == 500
            assert sorted([await status("/flaky/1") for _ in range(10)]) == [200] * 8 + [503] * 2
            paths = {each.path for each in demo.DEMO_PROJECTS if not each.path.startswith("/slow")}
            assert {await status(path) for path in paths for _ in range(5)} == {200, 500, 503}
    finally:
        await runner.cleanup()
    assert len(demo.DEMO_PROJECTS) == len({each.name for each in demo.DEMO_PROJECTS}) == 100
