"""``cluster top`` on a cluster that polls: what the coordinator and the database say is what is on the screen."""

from tests.checkout_command import path_with_cluster
from tests.integration.harness import clean_environ
from tests.top.pseudo_terminal import PseudoTerminal


def test_a_cluster_that_polls_is_watched_down_to_a_result(make_cluster, target, sql, database_url, tmp_path):
    sql.insert_projects(target, 4)
    failing = sql.insert_projects(target, 1, path="/status/503", prefix="broken")["broken0"]
    cluster = make_cluster(workers=2)
    environ = clean_environ() | {
        "PATH": path_with_cluster(tmp_path),
        "CLUSTER_DATA_DIR": str(cluster.data_dir),
        "DATABASE_URL": database_url,
    }
    with PseudoTerminal(environ, width=160) as terminal:
        terminal.run("cluster top")
        terminal.wait_for("1 workers 2", "worker-1", "worker-2", "running", "projects 5", "database up")
        terminal.type("2")
        terminal.wait_for("2 projects 5", "broken0", "503", "down", "p0", "p3", gone=["the database is not there"])
        first = next(line for line in terminal.lines if "broken0" in line or " p0" in line)
        assert "broken0" in first  # what is down is above the rest
        terminal.type("f")
        terminal.wait_for("failing only", "broken0", gone=[" p0"])
        terminal.type("\r")
        terminal.wait_for(f"project {failing}", "down", "every 1 seconds", "GET http://", "failure", "changes down")
        terminal.type("f3")
        terminal.wait_for("3 changes 1", "broken0", "down")
        terminal.type("1\r")
        terminal.wait_for("worker worker-", "pid", "partitions", "its projects")
        cluster.stop_cleanly()
        terminal.wait_for("the cluster is away")
        cluster.start().wait_ready()
        terminal.wait_for("worker worker-", gone=["the cluster is away"])
        terminal.type("q")
        terminal.wait_until(lambda: terminal.children() == [], "the end of the process")
