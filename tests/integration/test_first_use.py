"""The first command of someone without a database or a URL: ``cluster up --demo`` brings its own of both."""

import psutil

from tests.integration.harness import Sql, wait_until


def test_the_demo_runs_on_a_database_of_its_own_and_leaves_nothing(make_cluster, data_dir):
    data_dir.parent.chmod(0o755)  # as root PostgreSQL runs under another account, which must reach it
    cluster = make_cluster(workers=2, database_url=None, options=["--demo"], ready=False)
    cluster.wait_ready(60)
    assert any("postgres" in each.name() for each in psutil.Process(cluster.process.pid).children(recursive=True))
    status = wait_until(lambda: (got := cluster.status())["active_projects"] == 100 and got, "the demo's projects")
    assert status["database"]["state"] == "up"

    url = wait_until(lambda: psql_url(cluster), "the database's address")
    sql = Sql(url)
    try:
        names = "SELECT count(DISTINCT project_id) FROM poll_results"
        wait_until(lambda: sql.value(names) == 100, lambda: f"results of all, now of {sql.value(names)}")
        kinds = dict(
            sql.fetch(
                """SELECT split_part(name, ' ', 2), array_agg(DISTINCT status_code ORDER BY status_code)
                   FROM poll_results JOIN projects ON id = project_id GROUP BY 1"""
            )
        )
        assert (kinds["ok"], kinds["slow"], kinds["failing"]) == ([200], [200], [500])
        assert set(kinds["flaky"]) <= {200, 503}
    finally:
        sql.close()

    done = cluster.cli("audit")
    assert done.returncode == 0, done.stdout + done.stderr
    cluster.note_processes()
    stopped = cluster.cli("down")
    assert stopped.returncode == 0, stopped.stderr
    assert cluster.wait_exit(5) == 0
    assert not cluster.seen_alive()
    assert {path.name for path in (data_dir / "run").iterdir()} == set()
    assert not cluster.complaints()


def psql_url(cluster):
    """As ``up`` shows it: (psql 'URL')."""
    _, found, rest = cluster.out_file.read_text().partition("psql '")
    return rest.partition("'")[0] if found else None
