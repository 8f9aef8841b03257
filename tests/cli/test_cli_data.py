"""Commands that need only the database."""

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from cluster.cli import data
from cluster.cli.data import parse_instant
from cluster.errors import InvalidInputError
from cluster.project import ID_MAX
from cluster.ticks import first_tick_from, phase_ms


def sql(url, *statements):
    async def run():
        conn = await asyncpg.connect(url)
        try:
            return [await conn.fetch(*(each if isinstance(each, tuple) else (each,))) for each in statements]
        finally:
            await conn.close()

    return asyncio.run(run())


@pytest.fixture
def db(cluster, database_url, monkeypatch):
    """The command line with a fresh database."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    cluster.url = database_url
    return cluster


def fill(url, count=3):
    insert = """
        INSERT INTO projects (name, url, headers)
        SELECT 'p ' || n, 'http://a.example/' || n, '{"X-N": "1"}' FROM generate_series(1, $1::int) n
    """
    sql(url, (insert, count))


INSERT_RESULTS = """
    INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, status_code, response_time_ms,
                              error_code, error_message, worker, epoch)
    SELECT 1, $1::timestamptz + n * interval '1 second', $1::timestamptz + n * interval '1 second' + interval '3 ms',
           'tick', 'failure', 503, 12.5, 'status_mismatch', 'expected 200, got 503', 'worker-1', 1
    FROM generate_series(1, 30) n
"""
DATABASE_COMMANDS = [
    ("projects", "list"),
    ("projects", "show", "1"),
    ("projects", "enable", "1"),
    ("projects", "export"),
    ("results", "1"),
    ("changes",),
    ("audit",),
]


@pytest.mark.parametrize("arguments", DATABASE_COMMANDS)
def test_without_a_database_it_is_said_and_none_is_made(cluster, data_dir, arguments):
    ran = cluster(*arguments)
    assert ran.status == 2
    assert "no database: set DATABASE_URL" in ran.error
    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize("arguments", [*DATABASE_COMMANDS, ("migrate",)])
def test_an_unreachable_database_is_one_line(cluster, monkeypatch, arguments):
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@127.0.0.1:1/x")
    ran = cluster(*arguments)
    assert ran.status == 1
    assert "cannot reach the database" in ran.error
    assert "secret" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "table"),
    [
        (("audit",), "schema_migrations"),
        (("audit",), "poll_results"),
        (("audit", "--json"), "missed_polls"),
        (("projects", "list"), "projects"),
        (("projects", "disable", "1"), "projects"),
        (("projects", "export"), "projects"),
        (("results", "1"), "poll_results"),
    ],
)
def test_locked_tables_are_not_waited_for_for_ever(db, monkeypatch, arguments, table):
    fill(db.url)
    sql(
        db.url,
        "UPDATE project_spans SET since = now() - interval '1 hour'",
        "UPDATE cluster_state SET accounted_to = now()",
    )
    monkeypatch.setattr(data, "LOCK_TIMEOUT_S", 1)
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        locker = loop.run_until_complete(asyncpg.connect(db.url))
        loop.run_until_complete(locker.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        try:
            ran = db(*arguments)
        finally:
            loop.run_until_complete(locker.close())
    assert (ran.status, ran.out) == (1, "")
    assert ran.error.startswith("gave up after 1 s: somebody else's transaction on ")
    assert ran.error.endswith("(pg_stat_activity shows who) and try again")


@pytest.mark.parametrize("arguments", DATABASE_COMMANDS)
def test_a_database_without_our_tables_is_one_line(cluster, monkeypatch, empty_database_url, arguments):
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    ran = cluster(*arguments)
    assert ran.status == 1
    assert "run `cluster migrate`" in ran.error


def test_the_database_of_a_running_cluster_must_be_named(cluster, admin):
    ran = cluster("projects", "list")
    assert ran.status == 2
    assert "uses a database of its own" in ran.error


def test_migrate(cluster, monkeypatch, empty_database_url):
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    ran = cluster("migrate")
    assert ran.status == 0
    assert ran.out.startswith("applied 0001_initial\n")
    assert cluster("migrate").out == "nothing to apply: the database is up to date\n"


def test_the_embedded_database_of_the_data_directory(cluster, data_dir):
    assert cluster("migrate").status == 0
    assert (data_dir / "postgres" / "data" / "PG_VERSION").exists()
    assert not (data_dir / "postgres" / "data" / "postmaster.pid").exists()
    ran = cluster("projects", "list")
    assert ran.status == 0
    assert cluster("audit", "--json").status == 0


def test_list_and_show(db):
    fill(db.url)
    out = db("projects", "list").out
    assert "http://a.example/1" in out
    assert "60 seconds" in out
    assert db("projects", "list", "--limit", "2").out.endswith("2 of 3; --limit 0 shows all\n")
    found = [json.loads(line) for line in db("projects", "list", "--json", "--search", "P 2").out.splitlines()]
    assert [(each["id"], each["headers"]) for each in found] == [(2, {"X-N": "1"})]
    shown = json.loads(db("projects", "show", "2", "--json").out)
    assert (shown["name"], shown["last_result"]) == ("p 2", None)
    assert "http://a.example/2" in db("projects", "show", "2").out


def test_enable_and_disable_are_all_or_nothing(db):
    fill(db.url)
    assert db("projects", "disable", 1, 2, 2).out == "disabled 2\n"
    assert db("projects", "disable", 1, 3).out == "disabled 1\n"
    ran = db("projects", "enable", 1, 9, 8)
    assert ran.status == 1
    assert ran.error == "there is no project 8, 9; nothing was changed"
    (rows,) = sql(db.url, "SELECT enabled FROM projects")
    assert [row["enabled"] for row in rows] == [False] * 3
    assert db("projects", "enable", 1).out == "enabled 1\n"
    assert db("projects", "show", "99").error == "there is no project 99; nothing was changed"


def test_export_and_import_bring_back_the_same_table(db, tmp_path):
    fill(db.url)
    sql(db.url, """UPDATE projects SET assertions = '[{"type": "certificate_days", "days": 5}]' WHERE id = 2""")
    options = {"ca_file": "/ca.pem", "ip_version": 4, "connection_reuse": "never", "basic_auth": "u:p"}
    written = "ca_file = '/ca.pem', ip_version = 4, connection_reuse = 'never', basic_auth = 'u:p'"
    sql(db.url, f"UPDATE projects SET {written} WHERE id = 2")
    assert db("projects", "export", tmp_path / "all.jsonl").err == "exported 3 projects\n"
    before = db("projects", "export").out
    (second,) = [each for each in map(json.loads, before.splitlines()) if each["id"] == 2]
    assert options.items() <= second.items()
    assert before == (tmp_path / "all.jsonl").read_text()
    assert '"assertions":[{"days":5,"type":"certificate_days"}]' in before
    sql(db.url, "DELETE FROM projects WHERE id = 2", "UPDATE projects SET enabled = false, name = 'other'")
    assert db("projects", "import", tmp_path / "all.jsonl", "--dry-run").out == "would add 1, update 2\n"
    assert '"other"' in db("projects", "export").out
    assert db("projects", "import", tmp_path / "all.jsonl").out == "added 1, updated 2\n"
    assert db("projects", "export").out == before


def test_import_adds_lines_without_an_id_after_those_with_one(db, tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_text('{"url": "http://a/", "id": 50}\n\n{"url": "http://b/", "interval": "5m"}\n')
    assert db("projects", "import", file).out == "added 2, updated 0\n"
    (rows,) = sql(db.url, "SELECT id, url, interval, unit FROM projects ORDER BY id")
    assert [tuple(row) for row in rows] == [(50, "http://a/", 60, "seconds"), (51, "http://b/", 5, "minutes")]


def test_import_refuses_all_when_a_line_is_wrong_and_names_each(db, tmp_path):
    file = tmp_path / "some.jsonl"
    lines = [
        "http://a", "x", '{"url": "http://a/"}', "nonsense", "[1]", '{"url": "http://a/", "unit": "days"}',
        '{"url": "http://a/", "id": 0}', '{"url": "http://a/", "id": 7}', '{"url": "http://a/", "id": 7}',
    ]  # fmt: skip
    file.write_text("\n".join(lines))
    ran = db("projects", "import", file)
    assert ran.status == 2
    complaints = ran.err.splitlines()
    assert [line.split(":")[0] for line in complaints] == [
        "line 1", "line 2", "line 4", "line 5", "line 6", "line 7", "line 9", "Error",
    ]  # fmt: skip
    assert complaints[4].startswith("line 6: unit: must be seconds, minutes or hours")
    assert complaints[-1].startswith("Error: 7 lines are wrong")
    assert sql(db.url, "SELECT count(*) FROM projects")[0][0][0] == 0


def test_import_complains_of_at_most_so_many_lines(db, tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_text("x\n" * 1_000)
    assert len(db("projects", "import", file).err.splitlines()) == 21
    assert db("projects", "import", tmp_path / "none").status == 2


def test_results(db):
    fill(db.url, 1)
    assert db("results", "1").out == "no results yet\n"
    assert db("results", "2").error == "there is no project 2"
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    sql(
        db.url,
        f"CREATE TABLE IF NOT EXISTS part_of_today PARTITION OF poll_results FOR VALUES FROM ('{today.isoformat()}') "
        f"TO ('{(today + timedelta(days=1)).isoformat()}')",
        (INSERT_RESULTS, today),
    )
    out = db("results", "1").out
    assert out.count("status_mismatch: expected 200, got 503") == 20
    assert "3.0" in out
    rows = [json.loads(line) for line in db("results", "1", "--last", "2", "--json").out.splitlines()]
    assert [row["status_code"] for row in rows] == [503, 503]
    assert rows[0]["scheduled_at"] == (today + timedelta(seconds=30)).isoformat()
    assert "503" in db("projects", "show", "1").out


def test_changes_of_all_projects_and_of_one(db):
    fill(db.url)
    assert db("changes").out == "no changes of state yet\n"
    insert = """
        INSERT INTO state_changes (project_id, changed_at, state, began_at, polls, error_code, error_message)
        VALUES (1, '2026-01-01Z', 'down', '2026-01-01Z', 1, 'reset', 'connection to a.example:80 lost'),
               (1, '2026-01-02Z', 'up', '2026-01-02Z', 1, NULL, NULL),
               (2, '2026-01-03Z', 'down', '2026-01-03Z', 1, 'dns', 'looking up b.example: no answer')
    """
    sql(db.url, insert, "INSERT INTO project_states VALUES (1, 'up', '2026-01-02Z', 0), (2, 'down', '2026-01-03Z', 0)")

    sql(db.url, "UPDATE projects SET url = 'http://me:c4nary@h/', name = '' WHERE id = 2")
    assert "c4nary" not in db("changes").out + db("changes", "--json").out
    lines = [json.loads(line) for line in db("changes", "--json").out.splitlines()]
    assert [(line["project_id"], line["state"]) for line in lines] == [(2, "down"), (1, "up"), (1, "down")]
    shown = db("changes", "1", "--last", "1").out
    assert "p 1" in shown
    assert "up" in shown
    assert "down" not in shown
    assert "no changes of state yet" in db("changes", "3").out
    ran = db("changes", "99")
    assert (ran.status, ran.error) == (1, "there is no project 99")

    assert json.loads(db("projects", "show", "2", "--json").out)["state"] == "down"
    assert json.loads(db("projects", "show", "1", "--json").out)["state"] == "up"
    assert json.loads(db("projects", "show", "3", "--json").out)["state"] is None


def test_audit_says_whether_the_law_holds(db):
    ran = db("audit")
    assert (ran.status, ran.out) == (0, "nothing is accounted for yet, so there is nothing to audit\n")
    fill(db.url, 2)
    sql(
        db.url,
        "UPDATE project_spans SET since = now() - interval '1 hour'",
        "UPDATE cluster_state SET accounted_to = now()",
    )
    ran = db("audit")
    assert ran.status == 1
    assert "the accounting law is broken: 2 projects, 2 of them" in ran.out
    report = json.loads(db("audit", "--json").out)
    assert report["holds"] is False
    assert report["total"]["due"] == report["total"]["unexplained"] == 120
    assert [each["project_id"] for each in report["projects"]] == [1, 2]
    one = json.loads(db("audit", "--json", "--project", "1", "--from", "30m").out)
    assert one["total"]["due"] == 30
    assert json.loads(db("audit", "--json", "--to", "2020-01-01").out)["holds"] is True


def test_audit_of_windows(db):
    """Each option on its own and all together, and plain words when there is nothing in the window."""
    fill(db.url, 2)
    sql(
        db.url,
        "UPDATE project_spans SET since = '2026-01-01T00:00Z'",
        "UPDATE cluster_state SET accounted_to = '2026-01-01T01:00Z'",
        "UPDATE result_retention SET kept_from = '2026-01-01T00:10Z'",
    )
    window = ("--from", "2026-01-01T00:20Z", "--to", "2026-01-01T00:30:00Z")
    report = json.loads(db("audit", "--json", *window, "--project", "2").out)
    assert (report["from"], report["horizon"]) == ("2026-01-01T00:20:00.000Z", "2026-01-01T00:30:00.000Z")
    assert (report["total"]["due"], report["total"]["unexplained"], report["note"]) == (10, 10, None)
    assert [each["project_id"] for each in report["projects"]] == [2]
    assert json.loads(db("audit", "--json", *window).out)["total"]["due"] == 20

    for arguments, said in [
        (("--from", "2026-01-01T01:00Z"), "nothing to audit: ticks are accounted for up to 202"),
        (("--from", "2099-01-01", "--to", "2099-01-02"), "nothing to audit: ticks are accounted for up to 202"),
        (("--to", "2026-01-01T00:05Z"), "nothing to audit: results are kept from 202"),
    ]:
        ran = db("audit", *arguments)
        assert ran.status == 0
        assert ran.out.startswith(said)
        assert len(ran.out.splitlines()) == 1
        report = json.loads(db("audit", "--json", *arguments).out)
        assert (report["holds"], report["projects_audited"]) == (True, 0)
        assert report["note"].startswith(said)

    ran = db("audit", "--from", "1h", "--to", "2h")
    assert ran.status == 2
    assert ran.error.startswith("the window ends before it begins: from 2")


def test_audit_shows_what_was_set_aside(db):
    fill(db.url, 1)
    sql(
        db.url,
        "UPDATE project_spans SET since = '2026-01-01T00:00Z', until = '2026-01-01T01:00Z'",
        "UPDATE cluster_state SET accounted_to = now()",
    )
    due = json.loads(db("audit", "--json").out)["total"]["due"]
    phase = phase_ms(1, 60_000)
    since = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
    insert = """
        INSERT INTO ingest_reject (stream_id, worker, project_id, error, record)
        SELECT gen_random_uuid(), 'w', 1, 'refused', jsonb_build_object('trigger', 'tick', 'scheduled_at_ms', ms)
        FROM unnest($1::bigint[]) ms
    """
    sql(db.url, (insert, [first_tick_from(since, phase, 60_000) + n * 60_000 for n in range(due)]))
    ran = db("audit")
    assert ran.status == 0
    assert "the accounting law holds" in ran.out
    assert "rejected" in ran.out
    assert "ingest_reject" in ran.out
    total = json.loads(db("audit", "--json").out)["total"]
    assert total["rejected"] == total["due"] == due
    assert total["due"] == total["polled"] + sum(total["missed"].values()) + total["rejected"]


HUGE = "1" * 20


@pytest.mark.parametrize(
    "arguments",
    [
        ("results", HUGE),
        ("projects", "show", HUGE),
        ("projects", "enable", "1", HUGE),
        ("projects", "disable", HUGE),
        ("audit", "--project", HUGE),
        ("add", "--id", HUGE),
        ("remove", "1", HUGE),
        ("results", "9" * 5_000),
        ("results", str(1 << 63)),
    ],
)
def test_an_id_that_is_none_is_one_line(db, arguments):
    fill(db.url, 1)
    ran = db(*arguments)
    assert ran.status == 2
    assert "beyond what an id can be" in ran.error or "is not a valid integer" in ran.error
    assert sql(db.url, "SELECT enabled FROM projects")[0][0][0] is True


def test_an_id_that_would_leave_no_room_is_refused(db, tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_text(json.dumps({"url": "http://a/", "id": ID_MAX + 1}))
    ran = db("projects", "import", file)
    assert ran.status == 2
    assert ran.err.splitlines()[0] == f"line 1: id: must be an integer from 1 to {ID_MAX}"
    file.write_text(json.dumps({"url": "http://a/", "id": ID_MAX}) + '\n{"url": "http://b/"}\n')
    assert db("projects", "import", file).out == "added 2, updated 0\n"
    assert sql(db.url, "SELECT max(id) FROM projects")[0][0][0] == ID_MAX + 1


def test_import_takes_a_file_that_begins_with_a_byte_order_mark(db, tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"url": "http://a/"}\r\n{"url": "http://b/"}\r\n')
    assert db("projects", "import", file).out == "added 2, updated 0\n"
    file.write_bytes(b'{"url": "http://a/"}\n\xef\xbb\xbf{"url": "http://b/"}\n')
    assert db("projects", "import", file).err.startswith("line 2: not JSON")


def test_instants_as_people_write_them():
    assert parse_instant("--to", None) is None
    assert parse_instant("--to", "2026-01-31T12:00:00Z") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert parse_instant("--to", "2026-01-31T12:00:00+02:00") == datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert parse_instant("--to", "2026-01-31").tzinfo is UTC
    assert abs(parse_instant("--to", "2h") - datetime.now(UTC) + timedelta(hours=2)) < timedelta(seconds=5)
    for wrong in ("yesterday", "2h ago", "", "2026-13-01"):
        with pytest.raises(InvalidInputError, match="--to must be an instant"):
            parse_instant("--to", wrong)
