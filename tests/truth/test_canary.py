"""A project's secrets are in the table and in the coordinator's own files, and nowhere else that anybody reads."""

import json
import stat

import asyncpg
import pytest

from cluster.embedded import EmbeddedPostgres
from tests.integration.harness import Sql, free_port, run_cli, wait_until
from tests.truth.hostile import served
from tests.truth.hostile_target import BEHAVIOURS, NOT_ACCEPTING, SOCKETS

CANARY = "7c1f3e"
HEADERS = {
    "Authorization": f"Bearer header-{CANARY}",
    "Cookie": f"session=cookie-{CANARY}",
    "X-Api-Key": f"key-{CANARY}",
    "X-Auth-Token": f"token-{CANARY}",
    "My-Secret": f"secret-{CANARY}",
}
USERINFO = f"user:password-{CANARY}@"
BODY = f"body-{CANARY}"
# Rows that only SQL can write: each of their polls says why it can't be made.
UNUSABLE = [
    (f"http://{USERINFO}[zz]/", None),
    (f"http://{USERINFO}a..b/", None),
    (f"http://{USERINFO}h:99999/", None),
    ("http://127.0.0.1/", {"X-Token": f"broken\r\n{CANARY}"}),
]
# What is refused when it is asked for.
REFUSED = [
    {"url": f"http://{USERINFO}a b/"},
    {"url": f"http://{USERINFO}[zz]/"},
    {"url": f"http://{USERINFO}h:99999/"},
    {"url": f"http:/{USERINFO}h/"},
    {"url": f"ftp://{USERINFO}h/"},
    {"url": f"{USERINFO}h/"},
    {"url": f"http://{USERINFO}a\u2100b.test/"},
    {"url": "http://h/", "headers": {"Authorization": [f"Bearer {CANARY}"]}},
    {"url": "http://h/", "headers": {"Authorization": f"Bearer\r\n{CANARY}"}},
    {"url": "http://h/", "body": {"a": CANARY}},
    {"url": "http://h/", "body": f"\x00{CANARY}"},
]


def urls_of(target):
    urls = {each.__name__: f"http://{USERINFO}127.0.0.1:{target['port']}/{each.__name__}/x" for each in BEHAVIOURS}
    for behaviour, (scheme, _) in SOCKETS.items():
        name = behaviour.__name__
        urls[name] = f"{scheme}://{USERINFO}127.0.0.1:{target['sockets'][name]}/"
    urls[NOT_ACCEPTING] = f"http://{USERINFO}127.0.0.1:{target['sockets'][NOT_ACCEPTING]}/"
    urls["nothing_listens"] = f"http://token-{CANARY}@127.0.0.1:{free_port()}/"
    urls["unknown_name"] = f"http://{USERINFO}nowhere.invalid/"
    return urls


def fields_of(name, url, **more):
    headers = HEADERS | ({"Upgrade": "x"} if more.pop("upgrade", False) else {})
    fields = {"name": name, "url": url, "method": "POST", "headers": headers, "body": BODY, "interval": 2}
    return fields | {"unit": "seconds", "timeout_ms": 1_000} | more


def add_by_every_way(cluster, sql, target, tmp_path):
    """As admin requests, on the command line, from a file, in SQL; either engine."""
    lines = []
    for number, (name, url) in enumerate(urls_of(target).items()):
        fields = fields_of(name, url, upgrade=bool(number % 2))
        match number % 3:
            case 0:
                reply = cluster.ask({"type": "add", "project": fields})
                assert reply["type"] == "ok", reply
            case 1:
                lines.append(json.dumps(fields))
            case _:
                sql.execute(
                    "INSERT INTO projects (name, url, method, headers, body, interval, timeout_ms)"
                    " VALUES ($1, $2, 'POST', $3::jsonb, $4, 2, 1000)",
                    name,
                    url,
                    json.dumps(fields["headers"]),
                    BODY,
                )
    file = tmp_path / "projects.jsonl"
    file.write_text("\n".join(lines))
    done = cluster.cli("projects", "import", str(file), "--database-url", cluster.database_url)
    assert done.returncode == 0, done.stderr
    header = f"Authorization: {HEADERS['Authorization']}"
    where = f"http://{USERINFO}127.0.0.1:{target['port']}/redirect_loop/x"
    done = cluster.cli("add", where, "--name", "by_hand", "--interval", "2s", "--header", header, "--body", BODY)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    for url, headers in UNUSABLE:
        sql.execute(
            "INSERT INTO projects (name, url, headers, interval) VALUES ('unusable', $1, $2::jsonb, 2)",
            url,
            None if headers is None else json.dumps(headers),
        )


def said(cluster, project_ids):
    """Everything the cluster says when it is asked, by the question."""
    words = {path: cluster.get(path)[1].decode() for path in ("/status", "/metrics", "/healthz", "/readyz")}
    questions = [["status"], ["status", "--json"], ["audit", "--json"], ["projects", "list"]]
    questions += [["projects", "list", "--json", "--limit", "0"], ["wal", "list"]]
    for project_id in project_ids:
        questions.append(["results", project_id, "--json"])
    questions += [["results", project_ids[0]], ["projects", "show", project_ids[0]]]
    questions += [["projects", "show", project_ids[0], "--json"]]
    for words_of in questions:
        done = cluster.cli(*map(str, words_of), *database_of(cluster, words_of))
        assert done.returncode == 0, (words_of, done.stderr)
        words[" ".join(map(str, words_of))] = done.stdout + done.stderr
    return words


def database_of(cluster, words):
    return ["--database-url", cluster.database_url] if words[0] in {"audit", "projects", "results"} else []


def tables_that_hold_it(sql):
    names = [
        row["name"]
        for row in sql.fetch(
            "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relkind = 'r' AND nspname = current_schema()"
        )
    ]
    assert {"projects", "missed_polls", "ingest_reject"} <= set(names)
    return {name for name in names if sql.value(f"SELECT count(*) FROM {name} t WHERE t::text LIKE $1", f"%{CANARY}%")}


def files_that_hold_it(*roots):
    files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*")) if file.is_file()]
    return {file for file in files if CANARY.encode() in file.read_bytes()}


def test_no_secret_of_a_project_is_written_or_said(make_cluster, sql, data_dir, tmp_path):
    with served("tests.truth.hostile_target") as target:
        cluster = make_cluster(workers=2, options=("--log-level", "debug"))
        add_by_every_way(cluster, sql, target, tmp_path)
        for fields in REFUSED:
            reply = cluster.ask({"type": "add", "project": fields})
            assert reply["type"] == "error", (fields, reply)
            assert CANARY not in json.dumps(reply, ensure_ascii=False), reply
        file = tmp_path / "refused.jsonl"
        file.write_text("\n".join(map(json.dumps, REFUSED)))
        done = cluster.cli("projects", "import", str(file), "--database-url", cluster.database_url)
        assert done.returncode == 2
        assert f"{len(REFUSED)} lines are wrong" in done.stderr
        assert CANARY not in done.stdout + done.stderr, done.stderr

        polled = "SELECT count(DISTINCT name) FROM projects JOIN poll_results ON id = project_id WHERE trigger = 'tick'"
        names = {*urls_of(target), "by_hand"}
        wait_until(
            lambda: sql.value(polled) >= len(names), lambda: f"{len(names)} projects, {sql.value(polled)} polled"
        )
        codes = {row[0] for row in sql.fetch("SELECT DISTINCT error_code FROM poll_results")}
        assert {None, "protocol", "closed", "reset", "read_timeout", "connect_timeout", "dns", "tls_other"} <= codes
        assert {"connect_refused", "too_many_redirects", "invalid_request"} <= codes

        ids = [sql.value("SELECT id FROM projects WHERE name = $1", name) for name in ("by_hand", "tiny_chunks")]
        ids += [row["id"] for row in sql.fetch("SELECT id FROM projects WHERE name = 'unusable'")]
        held = {question: words for question, words in said(cluster, ids).items() if CANARY in words}
        assert not held
        cluster.stop_cleanly()

    assert tables_that_hold_it(sql) == {"projects"}
    holders = files_that_hold_it(data_dir, cluster.log_file, cluster.out_file)
    assert {file.parent for file in holders} == {data_dir / "coordinator"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in holders} == {0o600}
    assert stat.S_IMODE((data_dir / "coordinator").stat().st_mode) == 0o700
    assert any(line["level"] == "debug" for line in cluster.log_lines())


def test_the_clusters_own_server_logs_no_refused_row(make_cluster, data_dir):
    data_dir.parent.chmod(0o755)  # as root the server runs under another account, which must reach it
    make_cluster(workers=1, database_url=None)
    own = Sql(EmbeddedPostgres(data_dir / "postgres").dsn())
    try:
        with pytest.raises(asyncpg.CheckViolationError, match=CANARY):
            own.execute(f"INSERT INTO projects (url, interval) VALUES ('http://{USERINFO}h/', 0)")
    finally:
        own.close()
    log = (data_dir / "postgres" / "server.log").read_text()
    assert "violates check constraint" in log
    assert CANARY not in log


def test_what_is_asked_for_is_revealed(make_cluster, sql, tmp_path):
    cluster = make_cluster(workers=1)
    fields = fields_of("open", f"http://{USERINFO}127.0.0.1:{free_port()}/", interval=3_600)
    assert cluster.ask({"type": "add", "project": fields})["type"] == "ok"
    project_id = str(sql.value("SELECT id FROM projects"))
    database = ["--database-url", cluster.database_url]
    hidden = json.loads(run_cli("projects", "show", project_id, "--json", *database).stdout)
    assert hidden["url"] == fields["url"].replace(USERINFO, "user:***@")
    assert hidden["headers"] == dict.fromkeys(HEADERS, "***")
    assert hidden["body"] == "***"
    for command in (["show", project_id, "--json"], ["list", "--json"]):
        shown = json.loads(run_cli("projects", *command, "--reveal", *database).stdout)
        assert (shown["url"], shown["headers"], shown["body"]) == (fields["url"], HEADERS, BODY)
    exported = json.loads(run_cli("projects", "export", *database).stdout)  # a copy of the table, for `import`
    assert (exported["url"], exported["headers"], exported["body"]) == (fields["url"], HEADERS, BODY)
