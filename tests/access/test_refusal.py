"""Nothing starts where others get in, before somebody may: the real commands, and the real coordinator.

Only loopback is listened on here: ``--http-behind-tls`` is what makes it a place where others get in.
"""

import json
import re

import pytest

from tests.integration.conftest import data_dir, make_cluster, sql  # noqa: F401 - fixtures
from tests.integration.harness import Cluster, clean_environ, free_port, one_line_error, run_cli, wait_until


def environ(database_url):
    return clean_environ() | {"DATABASE_URL": database_url}


def without_somebody(command, database_url, directory):
    where = ("--data-dir", str(directory), "--http", f"127.0.0.1:{free_port()}", "--http-behind-tls")
    return run_cli(command, *where, environ=environ(database_url))


@pytest.mark.parametrize("command", ["up", "coordinator"])
def test_without_a_token_or_a_user_it_does_not_start(command, database_url, data_dir):  # noqa: F811
    done = without_somebody(command, database_url, data_dir)
    if command == "up":
        said = one_line_error(done, 1)
    else:
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        said = done.stderr
    assert re.search(
        r"lets others in, and there is neither a token nor a user yet: make one with `cluster token create", said
    )
    assert "cannot serve" not in said


def test_beyond_loopback_it_is_the_same_without_listening_there(database_url, data_dir):  # noqa: F811
    """It ends before it serves anything."""
    done = run_cli("up", "--data-dir", str(data_dir), "--http", f"0.0.0.0:{free_port()}", environ=environ(database_url))
    assert "--http 0.0.0.0:" in one_line_error(done, 1)


def test_a_token_that_was_revoked_is_none(database_url, data_dir):  # noqa: F811
    run_cli("token", "create", "--name", "a", environ=environ(database_url))
    run_cli("token", "revoke", "a", environ=environ(database_url))
    assert without_somebody("up", database_url, data_dir).returncode == 1


def test_bad_certificate_files_are_one_line(database_url, data_dir, tmp_path):  # noqa: F811
    bad = tmp_path / "bad.pem"
    bad.write_text("nonsense")
    base = ("--data-dir", str(data_dir), "--http", f"127.0.0.1:{free_port()}")
    done = run_cli("up", *base, "--http-cert", str(bad), "--http-key", str(bad), environ=environ(database_url))
    assert "are not a certificate chain" in one_line_error(done, 2)
    done = run_cli("up", *base, "--http-cert", str(bad), environ=environ(database_url))
    assert "--http-cert is given without --http-key" in one_line_error(done, 2)


def test_with_a_token_it_starts_and_asks_for_it(make_cluster, database_url, sql):  # noqa: F811
    made = run_cli(
        "token", "create", "--name", "ci", "--scope", "read", "--expires", "1h", environ=environ(database_url)
    )
    assert made.returncode == 0
    token = made.stdout.strip()
    cluster = make_cluster(workers=1, options=("--http-behind-tls",))
    assert cluster.get("/status")[0] == 401
    assert cluster.get("/healthz")[0] == 200
    status, body = with_token(cluster, "/status", token)
    assert status == 200
    assert json.loads(body)["epoch"] >= 1
    assert with_token(cluster, "/api/v1/audit-log", token)[0] == 403
    # The command line and the admin socket need no token.
    done = cluster.cli("status", "--json")
    assert done.returncode == 0, done.stderr
    assert run_cli("token", "revoke", "ci", environ=environ(database_url)).returncode == 0
    wait_until(lambda: with_token(cluster, "/status", token)[0] == 401, "the revocation to be seen", 10)
    assert sql.value("SELECT last_used_at IS NOT NULL FROM api_tokens")
    cluster.stop_cleanly()
    logged = cluster.log_file.read_text() + cluster.out_file.read_text()
    assert token.rpartition("_")[2] not in logged
    assert "is neither encrypted" not in logged


def test_one_whose_tokens_have_all_expired_starts_again_and_says_so(make_cluster, database_url, sql):  # noqa: F811
    """Polling goes on; who lets others in must not stop it by a date."""
    run_cli("token", "create", "--name", "ci", environ=environ(database_url))
    sql.execute("UPDATE api_tokens SET expires_at = now() - interval '1 day'")
    cluster = make_cluster(workers=1, options=("--http-behind-tls",))
    assert cluster.get("/status")[0] == 401
    cluster.stop_cleanly()
    assert "every API token has expired and there is no user" in cluster.log_file.read_text()


def test_a_coordinator_whose_database_is_away_lets_nobody_in(data_dir):  # noqa: F811
    away = "postgresql://postgres@127.0.0.1:1/nothing"
    alone = CoordinatorAlone(data_dir, away, options=("--http-behind-tls",))
    try:
        alone.start()
        wait_until(lambda: alone.get("/healthz")[0] == 200, lambda: f"an answer: {alone.log_tail()}")
        status, body = with_token(alone, "/api/v1/workers", "rp_" + "0" * 12 + "_" + "0" * 64)
        assert (status, json.loads(body)["code"]) == (503, "database_unavailable")
        assert alone.get("/status")[0] == 401
    finally:
        alone.end()
    assert "who may use the HTTP API is not known yet, so nobody may" in alone.log_file.read_text()


class CoordinatorAlone(Cluster):
    """`cluster coordinator` instead of `cluster up`."""

    def start(self):
        import subprocess  # noqa: PLC0415
        import sys  # noqa: PLC0415

        command = [sys.executable, "-m", "cluster", "coordinator", "--data-dir", str(self.data_dir)]
        command += ["--http", self.http, "--database-url", self.database_url, *self.options]
        self.data_dir.mkdir(parents=True)
        with self.out_file.open("a") as out, self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=self.environ, start_new_session=True
            )
        return self


def with_token(cluster, path, token):
    import http.client  # noqa: PLC0415

    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
