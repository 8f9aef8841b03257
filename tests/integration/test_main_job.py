"""The main job: eight workers poll everything on time, and what they found is in the database."""

import os
import time

from tests.integration.harness import check_books, wait_until

# The whole of it, in about 90 s: MAIN_JOB_PROJECTS=2000 MAIN_JOB_POLLS=60
PROJECTS = int(os.environ.get("MAIN_JOB_PROJECTS", "400"))
POLLS_EACH = int(os.environ.get("MAIN_JOB_POLLS", "12"))
FIRST_INSTANTS_S = 2 + PROJECTS / 500  # until each has had its immediate poll
STOP_INSTANT_S = 0.1


def test_every_project_is_polled_every_second_and_every_request_is_a_row(make_cluster, sql, target):
    cluster = make_cluster(workers=8)
    tags = sql.insert_projects(target, PROJECTS)
    wait_until(lambda: min(target.counts(tags).values()) >= POLLS_EACH, lambda: target.counts(tags), 60 + POLLS_EACH)
    stopped_at = time.time()
    cluster.stop_cleanly()

    report = check_books(cluster, sql, target, tags)
    assert report["projects_audited"] == PROJECTS
    assert report["total"]["due"] >= PROJECTS * (POLLS_EACH - 2)
    # Every tick was polled, but for those of a project's first instants: before the cluster knew of it (down), and
    # while its immediate poll waited or ran (overrun); and for one that was due at the very moment of the stop (down).
    late = sql.fetch(
        """SELECT m.*, s.began FROM missed_polls m
           JOIN (SELECT project_id, min(since) AS began FROM project_spans GROUP BY 1) s USING (project_id)
           WHERE m.reason NOT IN ('overrun', 'down')
              OR m.last_tick > s.began + make_interval(secs => $2)
                 AND (m.reason <> 'down' OR m.first_tick < to_timestamp($1))""",
        stopped_at - STOP_INSTANT_S,
        FIRST_INSTANTS_S,
    )
    assert not late, [dict(row) for row in late]
    off_grid = sql.value(
        """SELECT count(*) FROM (SELECT scheduled_at - lag(scheduled_at) OVER (PARTITION BY project_id
             ORDER BY scheduled_at) AS step FROM poll_results WHERE trigger = 'tick') t WHERE step <> '1 second'"""
    )
    assert off_grid == 0
    assert sql.value("SELECT count(*) FROM poll_results WHERE trigger = 'immediate'") == PROJECTS
    assert sql.value("SELECT count(DISTINCT worker) FROM poll_results") == 8
    assert sql.value("SELECT count(*) FROM poll_results WHERE status <> 'success' OR status_code <> 200") == 0
    assert not cluster.complaints()
