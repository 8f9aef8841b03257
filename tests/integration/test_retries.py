"""A failure that is confirmed before it counts, and a state that needs several: from the table to the table."""

from tests.integration.harness import wait_until


def test_a_failure_counts_once_it_is_confirmed(make_cluster, sql, target):
    cluster = make_cluster(workers=1)
    flaky = sql.value(
        "INSERT INTO projects (url, interval, unit, retries, retry_delay_ms)"
        " VALUES ($1, 1, 'hours', 2, 50) RETURNING id",
        target.url("/fail/1/flaky"),
    )
    newest = "SELECT status::text, attempts FROM poll_results WHERE project_id = $1 ORDER BY scheduled_at DESC LIMIT 1"

    def result(project):
        return tuple(next(iter(sql.fetch(newest, project)), ()))

    wait_until(lambda: result(flaky) == ("success", 2), "the second answer counts", 20)
    dead = sql.value(
        "INSERT INTO projects (url, interval, retries, retry_delay_ms, down_after, expected_status)"
        " VALUES ($1, 1, 1, 50, 2, '204') RETURNING id",
        target.url("/ok/dead"),
    )
    changes = "SELECT state, polls, error_code FROM state_changes WHERE project_id = $1 ORDER BY changed_at"
    wait_until(lambda: sql.fetch(changes, dead), "two failures in a row", 20)
    assert tuple(sql.fetch(changes, dead)[0]) == ("down", 2, "status_mismatch")
    assert result(dead) == ("failure", 2)
    sql.execute("UPDATE projects SET expected_status = '200' WHERE id = $1", dead)
    wait_until(lambda: len(sql.fetch(changes, dead)) == 2, "it is up again", 20)
    assert sql.value("SELECT state FROM project_states WHERE project_id = $1", dead) == "up"
    assert not sql.fetch(changes, flaky)
    cluster.stop_cleanly()
