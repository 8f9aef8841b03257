"""A machine whose network is gone: its polls are unknown and counted as such, and nobody's failures."""

from tests.integration.harness import wait_until

# TCP has no multicast: refused by the kernel as unreachable, and no packet leaves.
HOSTS = [f"{first}.0.0.1" for first in range(225, 237)]


def test_what_cannot_be_reached_all_at_once_is_nobodys_failure(make_cluster, sql, target):
    cluster = make_cluster(workers=1)
    tags = sql.insert_projects(target, 3)  # on this machine: they go on, and prove nothing of the network
    sql.execute(
        "INSERT INTO projects (name, url, interval, unit) SELECT host, 'http://' || host || '/', 1, 'seconds' "
        "FROM unnest($1::text[]) AS host",
        HOSTS,
    )
    wait_until(lambda: cluster.status()["local_causes"].get("network", 0) >= 4 * len(HOSTS), cluster.status)
    status = cluster.status()
    assert status["unknown_requests"] == sum(status["local_causes"].values())
    assert status["failed_requests"] == 0
    assert status["workers"][0]["local_causes"] == status["local_causes"]
    assert "(network " in cluster.cli("status").stdout
    cluster.stop_cleanly()

    cluster.check_audit()
    rows = sql.fetch(
        "SELECT p.name, r.status::text, r.error_code, r.error_message FROM poll_results r "
        "JOIN projects p ON p.id = r.project_id"
    )
    polled = [row for row in rows if row["name"] in HOSTS]
    assert {(row["status"], row["error_code"]) for row in polled} == {("unknown", "local")}
    assert all(f"connecting to {row['name']}:80" in row["error_message"] for row in polled)
    assert all("5 unrelated hosts could not be reached" in row["error_message"] for row in polled)
    others = [row["status"] for row in rows if row["name"] not in HOSTS]
    assert len(others) >= 4 * len(tags)
    assert set(others) == {"success"}
