"""``cluster doctor`` on this machine, against real files, ports, databases and sockets."""

import asyncio
import contextlib
import json
import os
import socket
import threading
import time

import asyncpg
import pytest
import trustme

from cluster import config, database
from cluster.bounded import Question, resolve_host
from cluster.doctor import gathering as doctor_gathering
from cluster.doctor.facts import PackageFacts
from cluster.doctor.gathering import (
    asked_database,
    clock_facts,
    directory_facts,
    file_system_in,
    http_port_facts,
    http_tls_facts,
    limit_facts,
    package_facts,
    plan_facts,
    running_cluster,
    secret_facts,
    version_facts,
)
from cluster.embedded import running_dsn
from cluster.supervisor.lock import LockHolder, supervisor_lock
from tests.cli.test_cli_admin import STATUS
from tests.conftest import run_apart


def settings_of(data_dir, **flags):
    return config.load({"data_dir": data_dir, **flags}, {})


def codes(ran):
    return {each["code"] for each in json.loads(ran.out)["findings"]}


def test_a_machine_that_is_well(cluster, database_url):
    ran = cluster("doctor", "--json", "--database-url", database_url)
    document = json.loads(ran.out)
    assert ran.err == ""
    assert document["problems"] == sum(each["level"] == "problem" for each in document["findings"])
    assert ran.status == (1 if document["problems"] else 0)
    assert {"check", "code", "level", "what", "where", "remedy"} == set(document["findings"][0])
    found = codes(ran)
    assert {
        "python.ok", "packages.ok", "uvloop.ok", "http_port.ok", "data_directory.ok", "database.ok", "schema.ok",
        "privileges.ok", "tables.ok", "database_clock.ok", "cluster.none",
    } <= found  # fmt: skip
    assert not {each for each in found if each.startswith("unanswered")}


def test_it_reads_like_prose_and_ends_with_a_count(cluster, database_url, tmp_path):
    ran = cluster("doctor", "--database-url", database_url, "--secrets-dir", tmp_path / "none")
    assert ran.status == 1
    line = next(line for line in ran.out.splitlines() if line.startswith("problem  secrets"))
    assert "does not exist" in line
    assert f"do: mkdir -m 700 {tmp_path}/none" in " ".join(ran.out.split())
    assert "1 problem, " in ran.out.splitlines()[-1]


def test_nothing_is_made_or_changed(cluster, data_dir, database_url):
    cluster("doctor", "--database-url", database_url)
    cluster("doctor", "--data-dir", data_dir / "not" / "yet")
    assert list(data_dir.iterdir()) == []


# ---- the machine ----------------------------------------------------------------------------------------------------


def test_limits_are_those_of_this_process():
    found = limit_facts()
    assert found.files_soft is None or found.files_soft > 0
    assert found.files_hard is None or found.files_soft is None or found.files_hard >= found.files_soft


@pytest.mark.skipif(os.geteuid() == 0, reason="the kernel counts no processes of root")
def test_threads_of_this_user_are_counted():
    with contextlib.ExitStack() as stack:
        gate = threading.Event()
        stack.callback(gate.set)
        before = limit_facts().processes_used
        threads = [threading.Thread(target=gate.wait) for _ in range(20)]
        for each in threads:
            each.start()
        assert before is None or limit_facts().processes_used >= before + 10


@contextlib.contextmanager
def listening():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_port_is_free_taken_or_not_to_be_had(data_dir):
    with listening() as port:
        taken = http_port_facts(settings_of(data_dir, http=f"127.0.0.1:{port}"))
        assert taken.state == "taken"
        assert f"pid {os.getpid()}" in taken.holder
    assert http_port_facts(settings_of(data_dir, http=f"127.0.0.1:{port}")).state == "free"
    far = http_port_facts(settings_of(data_dir, http="192.0.2.1:8700"))
    assert (far.state, far.why) == ("refused", "Cannot assign requested address")


def test_the_port_of_the_cluster_that_runs_is_its_own_wherever_it_is(data_dir):
    with listening() as port, supervisor_lock(data_dir / "run") as lock:
        lock.write(LockHolder(pid=os.getpid(), http=f"127.0.0.1:{port}"))
        found = http_port_facts(settings_of(data_dir))
        assert (found.state, found.address) == ("ours", f"127.0.0.1:{port}")


def test_a_directory_that_is_there_and_one_that_is_not(data_dir):
    there = directory_facts(settings_of(data_dir))
    assert (there.state, there.nearest, there.writable, there.is_ours) == ("there", str(data_dir), True, True)
    assert there.mode == 0o755
    assert there.free_bytes > 0
    assert there.socket_bytes == len(f"{data_dir}/run/control.sock")
    missing = directory_facts(settings_of(data_dir / "a" / "b"))
    assert (missing.state, missing.nearest, missing.writable) == ("missing", str(data_dir), True)
    (data_dir / "file").write_text("")
    assert directory_facts(settings_of(data_dir / "file")).state == "not_a_directory"
    assert directory_facts(settings_of(data_dir / "file" / "below")).writable is False
    assert directory_facts(settings_of(data_dir / ("x" * 200))).socket_bytes > there.socket_bytes_max


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_of_somebody_else():
    found = directory_facts(settings_of("/etc/ringpoll"))
    assert (found.writable, found.is_ours) == (False, False)


MOUNTS = r"""
21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 21 0:30 / /srv rw - nfs4 host:/srv rw
41 21 0:31 / /srv/with\040space rw shared:5 - xfs /dev/sdb rw
42 21 0:32 / /srv rw - ext4 /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home", "ext4"), ("/srv", "ext4"), ("/srvx", "ext4"), ("/srv/with space/x", "xfs"), ("/srv/with", "ext4")],
)
def test_the_file_system_of_a_path(path, kind):
    assert file_system_in(MOUNTS, path) == kind
    assert file_system_in(MOUNTS.replace("- ext4 /dev/sdc", "- nfs4 x:/"), "/srv/x") == "nfs4"


def test_the_clock_says_whether_it_was_set(data_dir):
    assert clock_facts(settings_of(data_dir)).step_s is None
    assert clock_facts(settings_of(data_dir)).synchronised in (True, False, None)
    with supervisor_lock(data_dir / "run") as lock:
        lock.write(LockHolder(pid=os.getpid(), started_at="2020-01-01T00:00:00+00:00"))
        assert clock_facts(settings_of(data_dir)).step_s > 86_400


def test_packages_and_versions():
    found = version_facts()
    assert found.python >= (3, 11, 0)
    assert {"aiohttp", "rich", "uvloop"} <= {each.name for each in found.packages}
    assert "pytest" not in {each.name for each in found.packages}
    assert package_facts("no-such-thing[x]>=1,<2; python_version > '3'") == PackageFacts(
        name="no-such-thing", wanted=">=1,<2", found=None
    )


def test_secrets_that_others_can_read(tmp_path):
    path = tmp_path / "secrets"
    assert secret_facts(path).state == "missing"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    (path / "open").write_text("a")
    (path / "open").chmod(0o644)
    (path / "closed").write_text("a")
    (path / "closed").chmod(0o600)
    assert secret_facts(path).open_files == ["open"]
    path.chmod(0o700)
    assert secret_facts(path).open_files == []
    path.chmod(0o777)
    assert secret_facts(path).open_files == ["the directory, and write in it", "open"]
    assert secret_facts(path / "open").state == "not_a_directory"


def test_the_certificate_of_the_status_pages(data_dir, tmp_path):
    issued = trustme.CA().issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    key.chmod(0o640)
    found = http_tls_facts(settings_of(data_dir, http_cert=cert, http_key=key))
    assert (found.why, found.key_mode) == ("", 0o640)
    assert found.valid_s > 0
    assert "HTTPS needs both" in http_tls_facts(settings_of(data_dir, http_cert=cert)).why
    assert "both in PEM" in http_tls_facts(settings_of(data_dir, http_cert=key, http_key=cert)).why
    assert "cannot read" in http_tls_facts(settings_of(data_dir, http_cert=tmp_path / "no", http_key=key)).why


def test_who_may_log_in_is_counted_where_others_reach_us(cluster, database_url):
    beyond = ("doctor", "--json", "--database-url", database_url, "--http", "0.0.0.0:1")
    assert "http_access.nobody" in codes(cluster(*beyond))
    assert cluster("token", "create", "--name", "ci", "--database-url", database_url).status == 0
    assert "http_access.ok" in codes(cluster(*beyond))
    assert not {each for each in codes(cluster(*beyond[:-2])) if each.startswith("http_access")}


# ---- the database ---------------------------------------------------------------------------------------------------


def test_a_database_of_ours(data_dir, database_url):
    async def fill():
        conn = await asyncpg.connect(database_url)
        await conn.execute("INSERT INTO projects (url, interval) VALUES ('http://a.example/', 10), ('http://b/', 5)")
        await conn.close()

    run_apart(fill)
    settings = settings_of(data_dir, database_url=database_url)
    found, clock = asked_database(settings)
    assert found.state == "up"
    assert found.version >= 140_000
    assert found.version_text.startswith("PostgreSQL 1")
    assert found.schema == found.schema_known == len(database.migrations())
    assert found.missing_privileges == []
    assert (found.projects, round(found.polls_per_s, 3)) == (2, 0.3)
    assert found.response_s is None
    assert found.connections_max > found.connections_used
    assert found.database_bytes > 0
    assert 0 < found.latency_ms < 5_000
    assert abs(clock.database_ahead_s) <= clock.database_uncertainty_s + 0.5
    plan = plan_facts(found, settings)
    assert (plan.projects, round(plan.polls_per_s, 3)) == (2, 0.3)


def test_a_database_without_tables(data_dir, empty_database_url):
    found, _ = asked_database(settings_of(data_dir, database_url=empty_database_url))
    assert (found.state, found.schema, found.may_create) == ("up", 0, True)


def test_a_user_that_may_too_little(data_dir, database_url):
    role = f"reader_{time.monotonic_ns()}"

    async def prepare():
        conn = await asyncpg.connect(database_url)
        await conn.execute(f"CREATE ROLE {role}; GRANT SELECT ON projects, schema_migrations TO {role}")
        await conn.close()

    async def tidy():
        conn = await asyncpg.connect(database_url)
        await conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await conn.close()

    async def ask():
        conn = await asyncpg.connect(database_url)
        try:
            await conn.execute(f"SET ROLE {role}")
            server = dict(await conn.fetchrow(doctor_gathering._SERVER))
            return server, await doctor_gathering._ask_tables(conn)
        finally:
            await conn.close()

    run_apart(prepare)
    try:
        server, tables = run_apart(ask)
    finally:
        run_apart(tidy)
    assert server["may_create"] is False
    assert "INSERT on projects" in tables["missing_privileges"]
    assert "SELECT on poll_results" in tables["missing_privileges"]
    assert "ownership of poll_results" in tables["missing_privileges"]
    assert "SELECT on projects" not in tables["missing_privileges"]


def test_nobody_at_the_databases_address(cluster):
    ran = cluster("doctor", "--json", "--database-url", "postgresql://u:hush@127.0.0.1:1/x")
    assert ran.status == 1
    assert "database.away" in codes(ran)
    assert "hush" not in ran.out


def test_a_database_that_accepts_and_says_nothing_holds_nothing_up(cluster, monkeypatch):
    monkeypatch.setattr(doctor_gathering, "CONNECT_S", 1.0)
    with listening() as port:
        began = time.monotonic()
        ran = cluster("doctor", "--json", "--database-url", f"postgresql://u@127.0.0.1:{port}/x")
        assert time.monotonic() - began < 10
    away = next(each for each in json.loads(ran.out)["findings"] if each["code"] == "database.away")
    assert "did not answer within 1 s" in away["what"]
    assert "python.ok" in codes(ran)


def test_the_embedded_database_is_not_started_for_it(cluster, data_dir):
    ran = cluster("doctor", "--json")
    assert "database.not_started" in codes(ran)
    assert running_dsn(data_dir) is None
    assert list(data_dir.iterdir()) == []


def test_a_cluster_with_a_database_of_its_own_that_was_not_given(cluster, admin):
    admin.replies.append({"type": "ok", "status": STATUS})
    ran = cluster("doctor", "--json")
    away = next(each for each in json.loads(ran.out)["findings"] if each["code"] == "database.away")
    assert "a database of its own" in away["what"]


# ---- a cluster ------------------------------------------------------------------------------------------------------


def test_a_cluster_that_runs_none_and_a_silent_one(data_dir, admin, monkeypatch):
    monkeypatch.setattr(doctor_gathering, "ADMIN_S", 0.3)
    admin.replies += [{"type": "ok", "status": STATUS}, None]
    settings = settings_of(data_dir)
    assert running_cluster(settings).state == "running"
    silent = running_cluster(settings)
    assert silent.state == "silent"
    assert "did not answer" in silent.why
    assert running_cluster(settings_of(data_dir / "other")).state == "none"


# ---- what hangs -----------------------------------------------------------------------------------------------------


def test_a_check_that_hangs_or_fails_is_named_and_holds_nothing_up(data_dir, monkeypatch):
    gate = threading.Event()

    def fail():
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(doctor_gathering, "CHECK_S", 1.0)
    monkeypatch.setattr(doctor_gathering, "kernel_facts", gate.wait)
    monkeypatch.setattr(doctor_gathering, "limit_facts", fail)
    try:
        found = doctor_gathering.gather(settings_of(data_dir))
    finally:
        gate.set()
    assert found.kernel is None
    assert found.unanswered["kernel"] == "no answer within 1 s"
    assert found.unanswered["limits"] == "[Errno 5] Input/output error"
    assert found.directory is not None


def test_a_question_is_answered_left_or_refused():
    gate = threading.Event()
    assert Question(lambda: 7).answer(10) == 7
    with pytest.raises(TimeoutError):
        Question(gate.wait).answer(0.01)
    gate.set()
    with pytest.raises(ZeroDivisionError):
        Question(lambda: 1 // 0).answer(10)


@pytest.mark.parametrize(
    "url", ["postgresql://u@127.0.0.1:1/x", "postgresql:///x?host=/run/pg", "postgresql://u@[::1]/x", "postgresql:///x"]
)
def test_a_host_that_needs_no_lookup_is_found(url):
    resolve_host(url)


def test_a_host_that_is_none_is_said_of_the_database(data_dir):
    found, _ = asked_database(settings_of(data_dir, database_url="postgresql://u@no-such-host.invalid/x"))
    assert found.state == "down"
    assert found.why


async def test_it_may_be_asked_from_a_thread_of_a_running_loop(data_dir, database_url):
    found, _ = await asyncio.to_thread(asked_database, settings_of(data_dir, database_url=database_url))
    assert found.state == "up"
