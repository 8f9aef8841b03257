"""PostgreSQL goes away and comes back: polling goes on meanwhile, and what was found arrives."""

import shutil
import tempfile
import time
from pathlib import Path

import pytest

from cluster.embedded import EmbeddedPostgres
from tests.integration.harness import INTERVAL_S, JITTER_S, Sql, check_books, polled_again, wait_until, widest

PROJECTS = 90


@pytest.fixture
def postgres():
    """A server of this test's own, to be stopped and started."""
    base = Path(tempfile.mkdtemp(prefix="rp-pg-"))
    base.chmod(0o755)  # as root the server runs under another account, which must reach it
    server = EmbeddedPostgres(base, settings={"fsync": "off", "full_page_writes": "off"})
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(base, ignore_errors=True)


def test_polling_goes_on_without_a_database(make_cluster, postgres, target):
    cluster = make_cluster(workers=2, database_url=postgres.dsn())
    sql = Sql(postgres.dsn())
    tags = sql.insert_projects(target, PROJECTS)
    polled_again(target, tags, 0, 3)
    sql.close()
    pids = {each["pid"] for each in cluster.status()["workers"]}

    stopped_at = time.time()
    postgres.stop()
    wait_until(lambda: cluster.get("/readyz")[0] == 503, "readyz to say so", 15)
    polled_again(target, tags, time.time(), 5)
    status, reasons = cluster.get("/readyz")
    assert status == 503
    assert b"database" in reasons
    assert cluster.get("/healthz")[0] == 200
    assert cluster.status()["database"]["state"] == "down"
    refused = cluster.ask({"type": "add", "project": {"url": target.url("/ok/refused")}})
    assert (refused["type"], refused.get("code")) == ("error", "database_unavailable")
    until = time.time()
    assert widest(target, tags, stopped_at - 1, until)[0] <= INTERVAL_S + JITTER_S + target.stall_s(stopped_at, until)

    postgres.start()
    cluster.wait_ready()
    polled_again(target, tags, time.time(), 2)
    assert {each["pid"] for each in cluster.status()["workers"]} == pids
    cluster.stop_cleanly()
    sql = Sql(postgres.dsn())
    try:
        report = check_books(cluster, sql, target, tags)
        assert report["total"]["missed"].get("handover", 0) == 0
    finally:
        sql.close()
    assert target.count("refused") == 0
