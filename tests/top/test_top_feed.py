"""What ``cluster top`` reads of a real database, and how it goes on when that or the cluster is away."""

import threading
import time

import asyncpg
import pytest

from cluster import config, database
from cluster.top import feed as feed_module
from cluster.top.feed import Feed, ProjectLook, read_detail
from tests.top.known import status

DEADLINE_S = 30.0


@pytest.fixture
async def conn(database_url):
    opened = await database.connect(database_url)
    await opened.execute(
        "CREATE TABLE poll_results_all PARTITION OF poll_results FOR VALUES FROM ('2000-01-01') TO ('2100-01-01')"
    )
    yield opened
    await opened.close()


async def add_projects(conn, count):
    """Each with two results; the higher the id the slower."""
    await conn.execute(
        "INSERT INTO projects (id, name, url, interval) "
        "SELECT g, 'p' || g, 'http://ann:hush@a.example/', 30 FROM generate_series(1, $1::int) g",
        count,
    )
    await conn.execute(
        "INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, status_code, "
        "response_time_ms, dns_ms, worker, epoch) SELECT g, at, at + interval '5 ms', 'tick', 'success', 200, "
        "g * k, 1.5, 'worker-1', 1 FROM generate_series(1, $1::int) g, generate_series(1, 2) k, "
        "LATERAL (SELECT date_trunc('second', now()) - k * interval '30 s' AS at) t",
        count,
    )


async def take_down(conn, project_id):
    await conn.execute(
        "INSERT INTO project_states (project_id, state, since, streak) VALUES ($1, 'down', now(), 0)", project_id
    )
    await conn.execute(
        "INSERT INTO state_changes (project_id, changed_at, state, began_at, polls) "
        "VALUES ($1, now(), 'down', now(), 1)",
        project_id,
    )


async def test_projects_with_their_newest_result(conn):
    await add_projects(conn, 3)
    await conn.execute("UPDATE projects SET enabled = false WHERE id = 2")
    await conn.execute("INSERT INTO projects (id, url) VALUES (9, 'http://new.example/')")
    look = ProjectLook(conn)
    await look.go_on()
    found = {each["id"]: each for each in look.projects}
    assert set(found) == {1, 3, 9}
    assert (look.seen, look.enabled) == (3, 3)
    assert found[3]["response_time_ms"] == 3.0  # of the newest of two
    assert found[3]["late_ms"] == pytest.approx(5.0)
    assert (found[3]["status"], found[3]["worker"], found[3]["state"]) == ("success", "worker-1", None)
    assert found[9]["status"] is None


async def test_a_large_table_is_gone_through_in_parts_and_the_slowest_are_kept(conn, monkeypatch):
    monkeypatch.setattr(feed_module, "PROJECTS_PER_LOOK", 4)
    monkeypatch.setattr(feed_module, "PROJECTS_KEPT", 3)
    await add_projects(conn, 10)
    await take_down(conn, 1)
    look = ProjectLook(conn)
    seen = []
    for _ in range(4):
        await look.go_on()
        seen.append((look.seen, sorted(each["id"] for each in look.projects)))
    assert seen == [
        (4, [1, 2, 3, 4]),
        (8, [1, 6, 7, 8]),
        (10, [1, 8, 9, 10]),
        (10, [1, 8, 9, 10]),
    ]
    await conn.execute("DELETE FROM projects WHERE id IN (9, 1)")
    for _ in range(4):  # to the end of this round, where they fall out, and through another part
        await look.go_on()
    assert sorted(each["id"] for each in look.projects) == [7, 8, 10]


async def test_a_project_in_detail(conn):
    await add_projects(conn, 2)
    await take_down(conn, 2)
    await conn.execute(
        "INSERT INTO missed_polls "
        "VALUES (2, now() - interval '1 hour', now() - interval '59 minutes', 3, 'down', 'w', 1)"
    )
    found = await read_detail(conn, 2)
    assert (found.project["state"], found.project["interval"], found.project["enabled"]) == ("down", 30, True)
    assert [each["response_time_ms"] for each in found.results] == [2.0, 4.0]
    assert found.results[0]["dns_ms"] == 1.5
    assert found.results[0]["connect_ms"] is None
    assert found.changes[0]["state"] == "down"
    assert (found.missed[0]["ticks"], found.missed[0]["reason"]) == (3, "down")
    assert (await read_detail(conn, 77)).project is None


class Following:
    """A feed on a data directory, and waiting for what it says."""

    def __init__(self, data_dir, **flags):
        self.changed = threading.Event()
        self.feed = Feed(config.load({"data_dir": data_dir, **flags}, {}), self.changed.set)
        self.feed.start(status())

    def wait_for(self, condition, what):
        until = time.monotonic() + DEADLINE_S
        while not condition(self.feed.snapshot):
            assert time.monotonic() < until, f"waited for {what}: {self.feed.snapshot}"
            self.changed.wait(0.1)
            self.changed.clear()


@pytest.fixture
def follow(data_dir):
    begun = []

    def make(**flags):
        begun.append(Following(data_dir, **flags))
        return begun[-1]

    yield make
    for each in begun:
        each.feed.stop()
        assert not any(thread.is_alive() for thread in each.feed._threads)


async def test_it_follows_the_cluster_and_the_database_and_looks_at_once_into_a_project(
    follow, server, conn, database_url, monkeypatch
):
    await add_projects(conn, 2)
    await take_down(conn, 2)
    monkeypatch.setattr(feed_module, "LOOK_EVERY_S", 60.0)
    following = follow(database_url=database_url)
    following.wait_for(lambda known: known.projects and known.changes and not known.database_why, "projects")
    server.document = status() | {"total_requests": 5_500}
    following.wait_for(lambda known: (known.polls_per_s or 0) > 0, "a rate")
    following.feed.want(2)
    following.wait_for(lambda known: known.detail is not None and known.detail.project_id == 2, "the project")


async def test_a_database_that_ends_the_connection_is_asked_again(follow, server, conn, database_url, monkeypatch):
    monkeypatch.setattr(feed_module, "LOOK_EVERY_S", 0.2)
    await add_projects(conn, 1)
    following = follow(database_url=database_url)
    following.wait_for(lambda known: len(known.projects) == 1, "the project")
    await conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    following.wait_for(lambda known: known.database_why, "the loss to be said")
    assert len(following.feed.snapshot.projects) == 1  # what was known stays
    await conn.execute("INSERT INTO projects (id, url) VALUES (50, 'http://b.example/')")
    following.wait_for(lambda known: len(known.projects) == 2 and not known.database_why, "the new project")


def test_a_database_without_tables_or_without_an_address_is_said(follow, server, empty_database_url):
    following = follow(database_url=empty_database_url)
    following.wait_for(lambda known: "no tables of ours; run `cluster migrate`" in known.database_why, "no tables")
    other = follow()
    other.wait_for(lambda known: "give --database-url" in known.database_why, "no address")


def test_no_embedded_server_is_started(follow, data_dir):
    following = follow()
    following.wait_for(lambda known: "no embedded PostgreSQL runs" in known.database_why, "none")
    following.wait_for(lambda known: "no cluster is running" in known.status_why, "none")
    assert list(data_dir.iterdir()) == []


async def test_a_locked_table_is_said_and_not_waited_for(follow, server, conn, database_url):
    await add_projects(conn, 1)
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE projects IN ACCESS EXCLUSIVE MODE")
            following = follow(database_url=database_url)
            following.wait_for(lambda known: "lock timeout" in known.database_why, "the lock to be said")
        following.wait_for(lambda known: len(known.projects) == 1, "the project")
    finally:
        await other.close()
