"""Workers come and go under load: only what must moves, and each tick of a moved project is polled exactly once."""

import time

from cluster.ticks import PARTITIONS
from tests.integration.harness import check_books, owners, polled_again, settled, wait_until

PROJECTS = 320
SPREAD_MAX = 1.15
MOVES_MAX = 1.1
STOP_INSTANT_S = 0.1  # a tick due at the very moment of the stop is missed(down)


def newest_owners(sql, target, tags):
    """Who polls each project now, from rows of ticks after this moment."""
    since = time.time()
    polled_again(target, tags, since, 2)
    wait_until(
        lambda: (
            sql.value(
                "SELECT count(DISTINCT project_id) FROM poll_results WHERE scheduled_at >= to_timestamp($1)", since
            )
            == len(tags)
        ),
        "a new row of every project",
    )
    return owners(sql)


def balanced(cluster, workers):
    """The status document once so many workers run and share the load evenly."""

    def found():
        status = settled(cluster, workers)
        loads = [each["polls_per_s"] for each in status["workers"]]
        # One project more, because a partition can't be split.
        return max(loads) <= SPREAD_MAX * sum(loads) / len(loads) + 1.0 and status

    return wait_until(found, lambda: f"an even load, now {cluster.status()['workers']}", 15)


def test_workers_are_added_and_removed_under_load(make_cluster, sql, target):
    cluster = make_cluster(workers=8)
    tags = sql.insert_projects(target, PROJECTS)
    polled_again(target, tags, 0, 3)
    before = balanced(cluster, 8)
    was = newest_owners(sql, target, tags)

    assert cluster.ask({"type": "scale", "workers": 9})["workers"] == 9
    after = balanced(cluster, 9)
    now = newest_owners(sql, target, tags)
    had = {each["name"]: each["partitions"] for each in before["workers"]}
    has = {each["name"]: each["partitions"] for each in after["workers"]}
    assert 0 < has["worker-9"] <= MOVES_MAX * PARTITIONS / 9
    assert sum(max(0, had[name] - has[name]) for name in had) <= MOVES_MAX * PARTITIONS / 9
    moved = {project: (was[project], now[project]) for project in was if was[project] != now[project]}
    elsewhere = {project: pair for project, pair in moved.items() if pair[1] != "worker-9"}
    assert moved
    assert len(elsewhere) <= (MOVES_MAX - 1) * PROJECTS / 9, elsewhere

    done = cluster.cli("scale", "--workers", "6")
    assert done.returncode == 0, done.stderr
    after = balanced(cluster, 6)
    assert [each["name"] for each in after["workers"]] == [f"worker-{number}" for number in range(1, 7)]
    now = newest_owners(sql, target, tags)
    assert set(now.values()) == {f"worker-{number}" for number in range(1, 7)}
    assert cluster.get("/readyz")[0] == 200

    assert cluster.status()["writer"]["duplicates"] == 0
    stopped_at = time.time()
    cluster.stop_cleanly()
    report = check_books(cluster, sql, target, tags)
    # Nobody died, so no tick was given up on the way; only first instants may be missed (see test_main_job).
    assert report["total"]["missed"].get("handover", 0) == 0
    assert (
        sql.value(
            """SELECT count(*) FROM missed_polls m
           JOIN (SELECT project_id, min(since) AS began FROM project_spans GROUP BY 1) s USING (project_id)
           WHERE m.last_tick > s.began + interval '2 seconds'
               AND (m.reason <> 'down' OR m.first_tick < to_timestamp($1))""",
            stopped_at - STOP_INSTANT_S,
        )
        == 0
    )
    assert not cluster.complaints()
