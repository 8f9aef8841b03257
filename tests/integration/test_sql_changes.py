"""Changes made directly in SQL take effect within a second."""

import time

from tests.integration.harness import check_books, wait_until

EFFECT_S = 1.0


def test_insert_update_and_delete_take_effect_within_a_second(make_cluster, sql, target):
    cluster = make_cluster(workers=2)
    background = sql.insert_projects(target, 40, prefix="other")
    wait_until(lambda: min(target.counts(background).values()) >= 2, "load")

    def allowed(since):
        return EFFECT_S + target.stall_s(since)

    # INSERT: polled at once.
    changed_at = time.time()
    project = sql.insert_projects(target, 1, path="/ok", interval_s=3600, prefix="first")["first0"]
    wait_until(lambda: target.count("first0"), "the immediate poll", 10)
    assert target.arrivals["first0"][0] - changed_at <= allowed(changed_at)

    # UPDATE of the interval: ticks of the new one.
    changed_at = time.time()
    sql.execute("UPDATE projects SET interval = 1 WHERE id = $1", project)
    wait_until(lambda: len(target.since("first0", changed_at)) >= 3, "ticks of the new interval", 10)
    assert target.since("first0", changed_at)[0] - changed_at <= 1.0 + allowed(changed_at)

    # UPDATE of the URL: the old one is not polled any more, the new one on every tick.
    changed_at = time.time()
    sql.execute("UPDATE projects SET url = $2 WHERE id = $1", project, target.url("/status/404/second"))
    wait_until(lambda: target.count("second") >= 2, "polls of the new URL", 10)
    assert target.arrivals["second"][0] - changed_at <= 1.0 + allowed(changed_at)
    old = target.since("first0", changed_at)
    assert not old or old[-1] - changed_at <= allowed(changed_at)
    sql.execute("UPDATE projects SET expected_status = '404' WHERE id = $1", project)

    # UPDATE of enabled: no poll while it is off, an immediate one when it is on again.
    changed_at = time.time()
    sql.execute("UPDATE projects SET enabled = false WHERE id = $1", project)
    wait_until(lambda: len(target.since("other0", changed_at)) >= 3, "some seconds of others", 10)
    late = [at for at in target.since("second", changed_at) if at - changed_at > allowed(changed_at)]
    assert not late
    assert cluster.status()["active_projects"] == len(background)
    changed_at = time.time()
    sql.execute("UPDATE projects SET enabled = true WHERE id = $1", project)
    wait_until(lambda: target.since("second", changed_at), "the immediate poll", 10)
    assert target.since("second", changed_at)[0] - changed_at <= allowed(changed_at)

    # DELETE.
    changed_at = time.time()
    sql.execute("DELETE FROM projects WHERE id = $1", project)
    wait_until(lambda: len(target.since("other0", changed_at)) >= 3, "some seconds of others", 10)
    late = [at for at in target.since("second", changed_at) if at - changed_at > allowed(changed_at)]
    assert not late

    cluster.stop_cleanly()
    check_books(cluster, sql, target, background)
    rows = dict(sql.fetch("SELECT status::text, count(*) FROM poll_results WHERE project_id = $1 GROUP BY 1", project))
    assert sum(rows.values()) == target.count("first0") + target.count("second")
    assert rows["failure"] >= 2, "404 while 200 was expected"
    assert rows["success"] > target.count("first0"), "404 once it was expected"


def test_assertions_made_in_sql_are_checked_and_judged(make_cluster, sql, target):
    cluster = make_cluster(workers=2)
    projects = sql.insert_projects(target, 2)
    held, failed = projects.values()
    update = "UPDATE projects SET assertions = $2 WHERE id = $1"
    sql.execute(update, held, '[{"type": "status", "set": "2xx"}, {"type": "response_time_below", "ms": 30000}]')
    sql.execute(update, failed, '[{"type": "body_contains", "text": "no such text"}, {"type": "status", "set": "2xx"}]')

    def codes(project):
        query = "SELECT error_code, count(*) FROM poll_results WHERE project_id = $1 GROUP BY 1"
        return dict(sql.fetch(query, project))

    wait_until(lambda: codes(failed).get("assertion_failed", 0) >= 2 and codes(held).get(None, 0) >= 2, "judged polls")
    (message,) = sql.fetch(
        "SELECT error_message FROM poll_results WHERE project_id = $1 AND error_code IS NOT NULL LIMIT 1", failed
    )
    assert message["error_message"].startswith("assertion failed: body contains no such text: not found in ")
    assert codes(held).keys() == {None}

    sql.execute(update, failed, '[{"type": "body_contains"}]')
    wait_until(lambda: cluster.status()["invalid_projects"] == 1, "the row to be refused")
    assert "assertions: number 1 (body_contains)" in cluster.status()["invalid_project_reasons"][str(failed)]
    wait_until(lambda: cluster.status()["active_projects"] == 1, "the project to be gone")
    cluster.stop_cleanly()
    check_books(cluster, sql, target, projects)
