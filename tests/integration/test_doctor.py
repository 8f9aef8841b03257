"""``cluster doctor`` beside a cluster that polls: what is its own is no complaint, what is wrong with it is one."""

import json

from tests.integration.harness import wait_until


def test_a_cluster_that_runs_is_recognised_and_its_invalid_projects_are_named(make_cluster, target, sql, database_url):
    sql.insert_projects(target, 3)
    cluster = make_cluster(workers=2)

    def found():
        done = cluster.cli("doctor", "--json", "--database-url", database_url, "--http", cluster.http)
        assert done.stderr == ""
        document = json.loads(done.stdout)
        assert done.returncode == bool(document["problems"])
        return {each["code"]: each for each in document["findings"]}

    codes = found()
    assert {
        "http_port.ours", "cluster.ready", "projects.ok", "results.ok", "schema.ok", "privileges.ok", "connections.ok",
        "tables.ok", "data_directory.ok", "socket_paths.ok", "capacity.ok",
    } <= set(codes)  # fmt: skip
    assert "clock.stepped" not in codes
    assert "3 projects" in codes["capacity.ok"]["what"]

    wrong = sql.value("INSERT INTO projects (url, assertions) VALUES ('http://a.example/', '[7]') RETURNING id")
    wait_until(lambda: cluster.status()["invalid_projects"] == 1, "the row to be refused")
    invalid = found()["projects.invalid"]
    assert f"{wrong}: " in invalid["what"]
    assert invalid["level"] == "problem"
