"""Series of single projects: what they say, how many there are, and that nothing else minds their trouble."""

import asyncio
import shutil
import subprocess
from collections import Counter

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from coordinator import project_metrics as module
from coordinator.project_metrics import ProjectMetrics
from tests.coordinator_shell.test_metrics import Samples
from tests.coordinator_shell.waiting import until

PROJECTS = """
    INSERT INTO projects (id, name, url, interval, enabled)
    SELECT at, 'project ' || at, 'https://example.org/' || at, 30, at <> 3 FROM generate_series(1, $1::int) at"""
RESULT = """
    INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, response_time_ms, worker, epoch)
    SELECT $1, at, at, 'tick', $3::poll_status, $4, 'worker', 1 FROM (SELECT now() - $2 * interval '1 second') a (at)"""
PARTITION = """
    DO $$ BEGIN EXECUTE format('CREATE TABLE IF NOT EXISTS poll_results_here PARTITION OF poll_results
        FOR VALUES FROM (%L) TO (%L)', now() - interval '5 days', now() + interval '1 day'); END $$"""


@pytest.fixture
async def conn(database_url):
    conn = await asyncpg.connect(database_url)
    yield conn
    await conn.close()


@pytest.fixture
async def projects(conn):
    """1 up, 2 down, 3 disabled, 4 without a result, 5 without one lately."""
    await conn.execute(PARTITION)
    await conn.execute(PROJECTS, 5)
    await conn.execute(RESULT, 1, 40, "failure", None)
    await conn.execute(RESULT, 1, 10, "success", 125.0)
    await conn.execute(RESULT, 2, 10, "failure", None)
    await conn.execute(RESULT, 5, 172_800, "success", 1.0)
    await conn.execute("INSERT INTO project_states VALUES (2, 'down', 'epoch'::timestamptz + interval '7 s', 0, NULL)")
    await conn.execute(
        "INSERT INTO project_certificates SELECT 1, to_timestamp(expires), to_timestamp(seen) "
        "FROM (VALUES (5000, 1), (9000, 2)) c (expires, seen)"
    )


def scrape(metrics):
    registry = CollectorRegistry()
    registry.register(metrics)
    return Samples(generate_latest(registry).decode())


def by_project(samples, name):
    return {int(each.labels["project"]): each.value for each in samples.samples if each.name == name}


async def test_what_each_series_says(conn, projects, database_url):
    metrics = ProjectMetrics(database_url, 100)
    await metrics.read(conn)
    samples = scrape(metrics)
    assert by_project(samples, "ringpoll_project_up") == {1: 1, 2: 0}
    assert by_project(samples, "ringpoll_project_last_response_seconds") == {1: 0.125}
    assert by_project(samples, "ringpoll_project_state_since_timestamp_seconds") == {2: 7}
    assert by_project(samples, "ringpoll_project_certificate_expiry_timestamp_seconds") == {1: 9000}
    polled = by_project(samples, "ringpoll_project_last_poll_timestamp_seconds")
    now = await conn.fetchval("SELECT extract(epoch FROM now())::float8")
    assert polled == {1: pytest.approx(now - 10, abs=60), 2: pytest.approx(now - 10, abs=60)}
    assert samples.total("ringpoll_project_metrics_projects") == 4
    names = {each.labels["name"] for each in samples.samples if each.name == "ringpoll_project_up"}
    assert names == {"project 1", "project 2"}


async def test_there_are_never_more_than_were_asked_for(conn, database_url):
    await conn.execute(PARTITION)
    await conn.execute(PROJECTS, 50)
    for project_id in range(1, 51):
        await conn.execute(RESULT, project_id, 5, "success", 1.0)
    metrics = ProjectMetrics(database_url, 7)
    await metrics.read(conn)
    samples = scrape(metrics)
    assert set(by_project(samples, "ringpoll_project_up")) == {1, 2, 4, 5, 6, 7, 8}
    of_one = Counter(each.labels["project"] for each in samples.samples if "project" in each.labels)
    assert len(of_one) == 7
    assert max(of_one.values()) <= 5


async def test_the_newest_result_is_looked_up_by_an_index(conn, projects):
    rows = await conn.fetch("EXPLAIN (ANALYZE, COSTS OFF) " + module._SELECT.replace("$1", "100"))
    text = "\n".join(row[0] for row in rows)
    assert "Index" in text.partition("poll_results")[0].splitlines()[-1], text


async def test_it_reads_again_and_drops_what_is_too_old(conn, projects, database_url, monkeypatch):
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "REST", 0.0)
    metrics = ProjectMetrics(database_url, 10)
    assert scrape(metrics).total("ringpoll_project_metrics_projects") == 0
    running = asyncio.ensure_future(metrics.run())
    try:
        await until(lambda: by_project(scrape(metrics), "ringpoll_project_up") == {1: 1, 2: 0})
        await conn.execute("UPDATE projects SET enabled = false WHERE id = 2")
        await until(lambda: by_project(scrape(metrics), "ringpoll_project_up") == {1: 1})
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert scrape(metrics).total("ringpoll_project_metrics_read_seconds") > 0
    monkeypatch.setattr(module, "STALE_S", 0.0)
    stale = scrape(metrics)
    assert by_project(stale, "ringpoll_project_up") == {}
    assert stale.total("ringpoll_project_metrics_age_seconds") > 0


async def test_without_a_database_it_says_so_and_tries_again(conn, projects, database_url, monkeypatch, caplog):
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "REST", 0.0)
    metrics = ProjectMetrics("postgresql://postgres@127.0.0.1:1/nothing", 10)
    running = asyncio.ensure_future(metrics.run())
    try:
        await until(lambda: "the metrics of single projects could not be read: cannot reach" in caplog.text)
        metrics._url = database_url
        await until(lambda: by_project(scrape(metrics), "ringpoll_project_up") == {1: 1, 2: 0})
        await conn.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'ringpoll' AND datname = current_database()"
        )
        read_s = metrics._read_s
        await until(lambda: metrics._read_s > read_s)
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert caplog.text.count("could not be read") == 1, "at most one line a minute"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (part of Prometheus)")
async def test_promtool_finds_nothing_to_complain_of(conn, projects, database_url):
    metrics = ProjectMetrics(database_url, 100)
    await metrics.read(conn)
    registry = CollectorRegistry()
    registry.register(metrics)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
