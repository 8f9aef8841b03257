"""How changes in the database reach the core: loads, notifications, reloads, outages, the project file."""

import asyncio
import contextlib
import json
import logging
import time

import asyncpg
import pytest

from cluster.assertions import encode_assertions, validate_assertions
from cluster.errors import ClusterError, InvalidInputError
from cluster.http_options import HttpOptions
from cluster.project import FIELD_NAMES, JSON_FIELDS, ProjectFields, decode_spec
from coordinator import projects as projects_module
from coordinator.journal import ProjectJournal
from coordinator.project_requests import ProjectRequests
from coordinator.project_rows import Applied
from coordinator.projects import ProjectSource
from tests.coordinator_shell.waiting import until


class SinkDouble:
    """Keeps projects the way the core does, and everything it was told."""

    def __init__(self, journal):
        self.journal = journal
        self.blobs = {}
        self.initial = set()
        self.immediate = set()
        self.removed = []
        self.ended = []
        self.progressed = []
        self.finished = 0
        self.up = []
        self.tokens = []
        self.horizon_ms = None
        self.epoch = 1

    def apply(self, records, removed, *, initial=False, ended=None, token=None):
        applied = Applied()
        changed = []
        for record in records:
            if self.blobs.get(record.id) == record.blob:
                continue
            (applied.changed if record.id in self.blobs else applied.added).append(record.id)
            if record.id not in self.blobs:
                (self.initial if initial else self.immediate).add(record.id)
            self.blobs[record.id] = record.blob
            changed.append(record)
        for gone in removed:
            if self.blobs.pop(gone.project_id, None) is not None:
                applied.removed.append(gone.project_id)
                self.removed.append(gone)
        self.ended += ended or []
        if token is not None:
            self.tokens.append(token)
        if changed or applied.removed:
            self.journal.append(changed, applied.removed)
        return applied

    def load_progressed(self, loaded, total):
        self.progressed.append((loaded, total))

    def load_finished(self):
        self.finished += 1

    def database_changed(self, up):
        if not self.up or self.up[-1] != up:
            self.up.append(up)

    def has_project(self, project_id):
        return project_id in self.blobs

    def project_ids(self):
        return set(self.blobs)

    def project_count(self):
        return len(self.blobs)

    def progress(self):
        return self.horizon_ms, self.epoch

    def spec(self, project_id):
        return decode_spec(self.blobs[project_id]) if project_id in self.blobs else None


class Running:
    """A source at work on a database, and a connection of the test's own."""

    def __init__(self, url, directory, reload_interval_s=300):
        self.url = url
        self.journal = ProjectJournal(directory)
        self.sink = SinkDouble(self.journal)
        self.source = ProjectSource(
            url, self.sink, self.journal, lambda: time.time_ns() // 1_000_000, reload_interval_s
        )
        self.requests = ProjectRequests(self.source)
        self.task = None

    def start(self):
        self.task = asyncio.create_task(self.source.run())
        return self

    async def loaded(self):
        await until(lambda: self.source.loaded or self.task.done())
        return self

    async def stop(self):
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
        await self.journal.close()


@pytest.fixture
async def sql(database_url):
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def running(database_url, tmp_path):
    """Makes sources; all are stopped at the end."""
    made = []

    def make(url=database_url, directory=tmp_path, **options):
        made.append(Running(url, directory, **options))
        return made[-1]

    yield make
    for each in made:
        await each.stop()


async def add(sql, count=1, **columns):
    names = ", ".join(["url", *columns])
    values = ", ".join([f"'http://127.0.0.1/' || n{''}", *(f"${i}" for i in range(1, len(columns) + 1))])
    rows = await sql.fetch(
        f"INSERT INTO projects ({names}) SELECT {values} FROM generate_series(1, {count}) n RETURNING id",
        *columns.values(),
    )
    return [row["id"] for row in rows]


async def without_header_check(sql):
    """A table older than the rule."""
    await sql.execute("ALTER TABLE projects DROP CONSTRAINT projects_headers_check")


async def next_ms(sql):
    """The database's clock, once it shows another millisecond than now."""
    read = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"  # as spans are cut
    shown = [await sql.fetchval(read)]

    async def has_moved():
        shown.append(await sql.fetchval(read))
        return shown[-1] > shown[0]

    await until(has_moved)
    return shown[-1]


async def kick(sql):
    """Cut every other connection to this database."""
    return await sql.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'ringpoll'"
    )


# ---- the first load ---------------------------------------------------------------------------------------------


async def test_the_first_load_reads_enabled_projects_in_chunks(sql, running, monkeypatch):
    monkeypatch.setattr(projects_module, "CHUNK_ROWS", 10)
    ids = await add(sql, 35, name="site", interval=5, unit="minutes")
    await sql.execute("UPDATE projects SET enabled = false WHERE id = $1", ids[3])
    it = await running().start().loaded()
    assert set(it.sink.blobs) == set(ids) - {ids[3]}
    assert it.sink.initial == set(it.sink.blobs)
    assert it.sink.finished == 1
    assert it.sink.progressed == [(10, 34), (20, 34), (30, 34), (34, 34)]
    assert it.sink.up == [True]
    spec = it.sink.spec(ids[0])
    since = await sql.fetchval("SELECT since FROM project_spans WHERE project_id = $1", ids[0])
    assert (spec.interval_ms, spec.since_ms) == (300_000, round(since.timestamp() * 1000))


async def test_an_empty_table_is_loaded_too(running):
    it = await running().start().loaded()
    assert (it.sink.blobs, it.sink.finished) == ({}, 1)


async def test_ids_may_be_negative(sql, running):
    await sql.execute("INSERT INTO projects (id, url) VALUES (-5, 'http://a/'), (0, 'http://a/')")
    it = await running().start().loaded()
    assert set(it.sink.blobs) == {-5, 0}


async def test_spans_that_ended_while_the_cluster_was_down(sql, running):
    """After the horizon only; those of projects that live on, too."""
    gone, changed, before = await add(sql, 3)
    await sql.execute("DELETE FROM projects WHERE id = $1", before)
    it = running()
    it.sink.horizon_ms = await next_ms(sql)
    await next_ms(sql)
    await sql.execute("DELETE FROM projects WHERE id = $1", gone)
    await sql.execute("UPDATE projects SET interval = 7 WHERE id = $1", changed)
    await it.start().loaded()
    assert [span.project_id for span in it.sink.ended] == [gone, changed]
    assert all(span.interval_ms == 60_000 and span.until_ms > it.sink.horizon_ms for span in it.sink.ended)
    assert set(it.sink.blobs) == {changed}


async def test_a_project_that_ends_before_it_is_read_during_the_load(sql, running, monkeypatch):
    monkeypatch.setattr(projects_module, "CHUNK_ROWS", 1)
    first, second = await add(sql, 2)
    it = running()
    it.sink.horizon_ms = 1
    progressed = it.sink.load_progressed
    attend = it.source._attend

    async def attend_once():
        if it.sink.progressed and second in await enabled(sql):
            await sql.execute("DELETE FROM projects WHERE id = ANY($1)", [first, second])
            await until(lambda: it.source._notified)
        await attend()

    monkeypatch.setattr(it.source, "_attend", attend_once)
    it.sink.load_progressed = progressed
    await it.start().loaded()
    assert it.sink.blobs == {}
    assert [each.project_id for each in it.sink.removed] == [first]  # the core ends this one's span itself
    assert [span.project_id for span in it.sink.ended] == [second]


async def enabled(sql):
    return {row["id"] for row in await sql.fetch("SELECT id FROM projects WHERE enabled")}


# ---- changes made in SQL ----------------------------------------------------------------------------------------


async def test_changes_made_directly_arrive_at_once(sql, running):
    it = await running().start().loaded()
    began = time.monotonic()
    (project_id,) = await add(sql)
    await until(lambda: project_id in it.sink.immediate)
    await sql.execute("UPDATE projects SET timeout_ms = 77 WHERE id = $1", project_id)
    await until(lambda: it.sink.spec(project_id).timeout_ms == 77)
    await sql.execute("UPDATE projects SET enabled = false WHERE id = $1", project_id)
    await until(lambda: not it.sink.has_project(project_id))
    until_at = await sql.fetchval("SELECT until FROM project_spans WHERE project_id = $1", project_id)
    assert it.sink.removed[-1].until_ms == round(until_at.timestamp() * 1000)
    await sql.execute("UPDATE projects SET enabled = true WHERE id = $1", project_id)
    await until(lambda: it.sink.has_project(project_id))
    await sql.execute("DELETE FROM projects WHERE id = $1", project_id)
    await until(lambda: not it.sink.has_project(project_id))
    assert time.monotonic() - began < 5


async def test_a_bulk_change_and_a_truncate_cause_a_reload(sql, running):
    it = await running().start().loaded()
    ids = await add(sql, 8_000)  # its notification is '*'
    await until(lambda: len(it.sink.blobs) == len(ids), timeout_s=30)
    await sql.execute("TRUNCATE projects")
    await until(lambda: not it.sink.blobs, timeout_s=30)


@pytest.mark.parametrize("payload", ["", "x", "{}", '["a"]', "[1.5]", "[1", "\\x00", "[99999999999999999999999]"])
async def test_a_malformed_notification_is_counted_and_disturbs_nothing(sql, running, payload):
    it = await running().start().loaded()
    await sql.execute("SELECT pg_notify('ringpoll_projects', $1)", payload)
    await until(lambda: it.source.notifications_malformed == 1 or it.sink.up[-1] is False)
    (project_id,) = await add(sql)
    await until(lambda: it.sink.has_project(project_id))
    assert it.source.notifications_malformed == 1


async def test_too_many_notified_ids_become_one_reload(sql, running, monkeypatch):
    monkeypatch.setattr(projects_module, "NOTIFIED_IDS_MAX", 5)
    it = await running().start().loaded()
    ids = await add(sql, 20)
    await until(lambda: set(ids) <= set(it.sink.blobs))


async def test_a_row_that_cannot_be_polled_is_shown_and_logged_once(sql, running, caplog):
    await without_header_check(sql)
    it = await running().start().loaded()
    (project_id,) = await add(sql)
    await until(lambda: it.sink.has_project(project_id))
    await sql.execute("""UPDATE projects SET headers = '{"a": 1}' WHERE id = $1""", project_id)
    await until(lambda: not it.sink.has_project(project_id))
    assert "headers" in it.source.invalid[project_id]
    await it.requests.reload()
    await it.requests.reload()
    assert caplog.text.count(f"project {project_id} can't be polled") == 1
    await sql.execute("UPDATE projects SET headers = NULL WHERE id = $1", project_id)
    await until(lambda: it.sink.has_project(project_id))
    assert it.source.invalid == {}
    await sql.execute("""UPDATE projects SET headers = '{"a": []}' WHERE id = $1""", project_id)
    await until(lambda: project_id in it.source.invalid)
    await sql.execute("DELETE FROM projects WHERE id = $1", project_id)
    await until(lambda: not it.source.invalid)


async def test_a_row_with_a_wrong_list_of_assertions_stops_no_other(sql, running, caplog):
    good, bad, other = await add(sql, 3)
    await sql.execute("""UPDATE projects SET assertions = '[{"type": "status", "set": "2xx"}]' WHERE id = $1""", good)
    await sql.execute(
        """UPDATE projects SET assertions = '[{"type": "body_matches", "pattern": "("}]' WHERE id = $1""", bad
    )
    it = await running().start().loaded()
    assert set(it.sink.blobs) == {good, other}
    assert it.sink.spec(good).assertions == b'[{"type":"status","set":"2xx"}]'
    assert it.sink.spec(other).assertions is None
    assert it.source.invalid[bad].startswith("assertions: number 1 (body_matches): pattern: '(' is not a regular")
    assert caplog.text.count(f"project {bad} can't be polled: assertions: number 1") == 1
    await sql.execute("""UPDATE projects SET assertions = '[]' WHERE id = $1""", bad)
    await until(lambda: it.sink.has_project(bad))
    assert it.source.invalid == {}


# ---- reloads ----------------------------------------------------------------------------------------------------


async def silently(sql, statement, *arguments):
    """A change without its notification, as if it had been lost."""
    await sql.execute("ALTER TABLE projects DISABLE TRIGGER USER")
    await sql.execute(statement, *arguments)
    await sql.execute("ALTER TABLE projects ENABLE TRIGGER USER")


async def test_a_reload_is_a_diff(sql, running, caplog):
    caplog.set_level(logging.INFO)
    ids = await add(sql, 5)
    it = await running().start().loaded()
    await silently(sql, "UPDATE projects SET timeout_ms = 5 WHERE id = $1", ids[0])
    await silently(sql, "DELETE FROM projects WHERE id = $1", ids[1])
    await silently(sql, "INSERT INTO projects (id, url, name) VALUES (500, 'http://a/', 'five hundred')")
    applied = await it.requests.reload()
    assert applied == Applied(added=[500], changed=[ids[0]], removed=[ids[1]])
    assert it.sink.immediate == {500}
    assert "reloading 5 enabled projects" in caplog.text
    assert "monitoring project 500 (five hundred) every 60 seconds" in caplog.text
    assert await it.requests.reload() == Applied()


async def test_the_periodic_reload_finds_what_no_notification_told(sql, running):
    it = await running(reload_interval_s=0.3).start().loaded()
    await silently(sql, "INSERT INTO projects (id, url) VALUES (7, 'http://a/')")
    await until(lambda: it.sink.has_project(7))


async def test_notifications_are_served_in_the_middle_of_a_reload(sql, running, monkeypatch):
    monkeypatch.setattr(projects_module, "CHUNK_ROWS", 1)
    ids = await add(sql, 600)
    it = await running().start().loaded()
    reload = asyncio.create_task(it.requests.reload())
    await sql.execute("UPDATE projects SET timeout_ms = 9 WHERE id = $1", ids[0])
    await until(lambda: it.sink.spec(ids[0]).timeout_ms == 9)
    assert not reload.done()
    await reload


async def test_a_reload_compacts_the_project_file(sql, running, tmp_path, monkeypatch):
    monkeypatch.setattr("coordinator.journal.DEAD_RECORDS_MIN", 3)
    ids = await add(sql, 2)
    it = await running().start().loaded()
    for timeout_ms in range(10, 20):
        await sql.execute("UPDATE projects SET timeout_ms = $1 WHERE id = $2", timeout_ms, ids[0])
        await until(lambda: it.sink.spec(ids[0]).timeout_ms == timeout_ms)  # noqa: B023 - awaited at once
    await until(lambda: it.journal.records_written == 12)
    await it.requests.reload()
    await until(lambda: it.journal.records_written == 2)


# ---- outages ----------------------------------------------------------------------------------------------------


async def test_a_lost_connection_is_made_again_and_nothing_is_missed(sql, running):
    it = await running().start().loaded()
    await sql.execute("ALTER TABLE projects DISABLE TRIGGER USER")
    assert await kick(sql) == 1
    await sql.execute("INSERT INTO projects (id, url) VALUES (7, 'http://a/')")
    await until(lambda: it.sink.has_project(7))
    assert it.sink.up == [True, False, True]
    assert it.sink.finished == 1


async def test_requests_while_the_database_is_away_change_nothing(running, tmp_path):
    it = running(url="postgresql://postgres@127.0.0.1:1/nothing").start()
    await until(lambda: it.sink.up == [False])
    for request in (
        it.requests.insert(ProjectFields(url="http://a/")),
        it.requests.enable(1),
        it.requests.remove([1], delete=False, token=1),
        it.requests.reload(),
    ):
        with pytest.raises(ClusterError) as caught:
            await request
        assert caught.value.code == "database_unavailable"
    assert not it.source.loaded


async def test_a_reload_that_loses_its_connection_is_answered(sql, running, monkeypatch):
    monkeypatch.setattr(projects_module, "CHUNK_ROWS", 1)
    await add(sql, 200)
    it = await running().start().loaded()
    reload = asyncio.create_task(it.requests.reload())
    await until(lambda: it.source._reload_at > 0 and not it.source._waiters)
    await kick(sql)
    with pytest.raises(ClusterError) as caught:
        await reload
    assert caught.value.code == "database_unavailable"


async def test_without_its_database_a_cluster_starts_with_the_project_file(sql, running, tmp_path, database_url):
    ids = await add(sql, 3)
    it = await running().start().loaded()
    await sql.execute("DELETE FROM projects WHERE id = $1", ids[0])
    await until(lambda: not it.sink.has_project(ids[0]))
    await it.stop()
    it.task = None

    again = await running(url="postgresql://postgres@127.0.0.1:1/nothing").start().loaded()
    assert again.sink.blobs == it.sink.blobs
    assert set(again.sink.blobs) == set(ids[1:])
    assert again.sink.immediate == set()
    assert (again.sink.finished, again.sink.up) == (1, [False])


async def test_without_database_and_project_file_it_waits(running):
    it = running(url="postgresql://postgres@127.0.0.1:1/nothing").start()
    await until(lambda: it.sink.up == [False])
    assert not it.source.loaded
    assert it.sink.finished == 0


async def test_what_a_damaged_project_file_lacked_is_not_new(sql, running, tmp_path):
    ids = await add(sql, 3)
    it = await running().start().loaded()
    await it.stop()
    it.task = None
    it.journal.path.write_bytes(it.journal.path.read_bytes()[:-1])
    again = running(url="postgresql://postgres@127.0.0.1:1/nothing")
    again.start()
    await again.loaded()
    again.source._url = it.url  # the database is there again
    await until(lambda: set(again.sink.blobs) == set(ids))
    assert again.sink.immediate == set()


async def test_a_schema_that_is_missing_is_said(running, empty_database_url, caplog):
    it = running(url=empty_database_url).start()
    await until(lambda: "cluster migrate" in caplog.text)
    assert not it.source.loaded


async def test_a_server_that_no_longer_answers_is_noticed(sql, running, monkeypatch, database_url):
    """Its row is locked for good, which is the same to us as a silent peer: the pulse runs into its time-out."""
    monkeypatch.setattr(projects_module, "PULSE_TIMEOUT_S", 0.3)
    it = await running().start().loaded()
    blocker = sql.transaction()
    await blocker.start()
    await sql.execute("UPDATE cluster_state SET updated_at = now()")
    await until(lambda: it.sink.up[-1] is False)
    await blocker.rollback()
    await until(lambda: it.sink.up[-1] is True)


# ---- progress ---------------------------------------------------------------------------------------------------


async def test_the_database_hears_how_far_all_is_accounted_for_and_never_less(sql, running):
    it = await running().start().loaded()
    it.sink.horizon_ms, it.sink.epoch = 1_700_000_000_123, 5

    async def state():
        row = await sql.fetchrow(
            "SELECT epoch, (extract(epoch FROM accounted_to) * 1000)::bigint AS to_ms FROM cluster_state"
        )
        return tuple(row)

    async def is_written():
        return await state() == (5, 1_700_000_000_123)

    await until(is_written)
    it.sink.horizon_ms, it.sink.epoch = 1_600_000_000_000, 4
    written_at = await sql.fetchval("SELECT updated_at FROM cluster_state")

    async def is_written_again():
        return await sql.fetchval("SELECT updated_at FROM cluster_state") > written_at

    await until(is_written_again)
    assert await state() == (5, 1_700_000_000_123)
    it.sink.horizon_ms = None
    assert (await it.source.remember(wait=False)).accounted_to_ms == 1_700_000_000_123


async def test_the_last_word_is_written_at_the_stop(sql, running):
    it = await running().start().loaded()
    it.task.cancel()
    it.sink.horizon_ms, it.sink.epoch = 1_700_000_000_999, 9
    await it.source.close()
    assert await sql.fetchval("SELECT epoch FROM cluster_state") == 9


async def test_nothing_to_remember_when_the_database_is_away(running):
    it = running(url="postgresql://postgres@127.0.0.1:1/nothing")
    assert await it.source.remember(wait=False) is None
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(it.source.remember(wait=True), 0.5)


# ---- requests ---------------------------------------------------------------------------------------------------


async def test_an_added_project_is_known_before_the_reply(sql, running):
    it = await running().start().loaded()
    asserted = [{"type": "json_path", "path": "$.a", "op": "==", "value": {"b": [1.5, None, "ü"]}}]
    fields = ProjectFields(
        url="http://a/", name="n", headers={"A": "b", "C": "ü"}, interval=2, unit="hours", assertions=asserted
    )
    project_id = await it.requests.insert(fields)
    spec = it.sink.spec(project_id)
    assert (spec.headers, spec.interval_ms) == ((("A", "b"), ("C", "ü")), 7_200_000)
    assert spec.assertions == encode_assertions(validate_assertions(asserted))
    assert project_id in it.sink.immediate
    before = dict(it.sink.blobs)
    other = await it.requests.insert(ProjectFields(url="http://b/", enabled=False))
    assert it.sink.blobs == before
    await it.requests.enable(other)
    assert it.sink.has_project(other)
    await it.requests.enable(other)
    assert await sql.fetchval("SELECT enabled FROM projects WHERE id = $1", other)


async def test_every_field_of_an_added_project_is_in_its_row(sql, running):
    it = await running().start().loaded()
    written = ProjectFields(
        url="http://a/", name="n", method="POST", headers={"A": "b"}, body="x", expected_status="2xx", interval=2,
        unit="hours", timeout_ms=7, follow_redirects=False, enabled=False, down_after=3, up_after=2,
        assertions=[{"type": "body_contains", "text": "ok"}],
    )  # fmt: skip
    project_id = await it.requests.insert(written)
    row = dict(await sql.fetchrow("SELECT * FROM projects WHERE id = $1", project_id))
    row |= {name: json.loads(row[name]) for name in JSON_FIELDS}
    assert {name: row[name] for name in FIELD_NAMES} == {name: getattr(written, name) for name in FIELD_NAMES}


OPTIONS = {
    "verify_tls": False,
    "client_cert_file": "/c.pem",
    "client_key_file": "/k.pem",
    "server_name": "a.example",
    "ip_version": 6,
    "connection_reuse": "never",
    "body_limit_bytes": 7,
    "connect_timeout_ms": 8,
    "user_agent": "ü",
    "bearer_token": "t",
    "proxy": "http://p:1",
}


async def test_options_reach_the_core_however_they_are_written(sql, running):
    it = await running().start().loaded()
    added = await it.requests.insert(ProjectFields(url="https://a/", **OPTIONS))
    names = ", ".join(OPTIONS)
    places = ", ".join(f"${number}" for number in range(1, len(OPTIONS) + 1))
    written = await sql.fetchval(
        f"INSERT INTO projects (url, {names}) VALUES ('https://a/', {places}) RETURNING id", *OPTIONS.values()
    )
    plain = await it.requests.insert(ProjectFields(url="https://a/"))
    await until(lambda: it.sink.has_project(written))
    assert it.sink.spec(added).options == it.sink.spec(written).options == HttpOptions(**OPTIONS)
    assert it.sink.spec(plain).options is None
    await sql.execute("UPDATE projects SET basic_auth = 'u:p', bearer_token = NULL WHERE id = $1", written)
    await until(lambda: it.sink.spec(written).options.basic_auth == "u:p")
    await sql.execute("UPDATE projects SET ca_file = '/ca.pem' WHERE id = $1", plain)
    await until(lambda: it.sink.spec(plain).options == HttpOptions(ca_file="/ca.pem"))
    await sql.execute("UPDATE projects SET ca_file = NULL WHERE id = $1", plain)
    await until(lambda: it.sink.spec(plain).options is None)


async def test_rows_that_brought_their_own_ids_are_no_obstacle(sql, running):
    await sql.execute("INSERT INTO projects (id, url) SELECT n, 'http://a/' FROM generate_series(1, 20) n")
    it = await running().start().loaded()
    assert await it.requests.insert(ProjectFields(url="http://b/")) == 21
    assert await it.requests.insert(ProjectFields(url="http://b/")) == 22


async def test_what_the_table_refuses_is_an_invalid_request(sql, running):
    it = await running().start().loaded()
    for fields in (ProjectFields(url="no url"), ProjectFields(url="http://a/", body="\x00")):
        with pytest.raises(InvalidInputError, match="nothing was changed"):
            await it.requests.insert(fields)
    assert await sql.fetchval("SELECT count(*) FROM projects") == 0
    assert await it.requests.insert(ProjectFields(url="http://a/"))


async def test_enabling_an_unknown_or_unusable_row(sql, running):
    await without_header_check(sql)
    it = await running().start().loaded()
    with pytest.raises(ClusterError) as caught:
        await it.requests.enable(99)
    assert caught.value.code == "unknown_project"
    await sql.execute("""INSERT INTO projects (id, url, headers, enabled) VALUES (5, 'http://a/', '{"a": 1}', false)""")
    with pytest.raises(ClusterError, match="can't be polled") as caught:
        await it.requests.enable(5)
    assert caught.value.code == "invalid_project"


@pytest.mark.parametrize("delete", [False, True])
async def test_removing_is_all_or_nothing(sql, running, delete):
    ids = await add(sql, 3)
    it = await running().start().loaded()
    with pytest.raises(ClusterError) as caught:
        await it.requests.remove([ids[0], 12_345], delete=delete, token=1)
    assert caught.value.code == "unknown_project"
    assert await enabled(sql) == set(ids)
    assert it.sink.tokens == []
    await it.requests.remove(ids[:2], delete=delete, token=2)
    assert it.sink.tokens == [2]
    assert set(it.sink.blobs) == {ids[2]} == await enabled(sql)
    assert await sql.fetchval("SELECT count(*) FROM projects") == (1 if delete else 3)
    ends = {
        row["project_id"]: round(row["until"].timestamp() * 1000)
        for row in await sql.fetch("SELECT project_id, until FROM project_spans WHERE until IS NOT NULL")
    }
    assert {each.project_id: each.until_ms for each in it.sink.removed} == ends
    await it.requests.remove(ids[:1], delete=False, token=3) if not delete else None


async def test_a_row_that_someone_else_holds(sql, running, monkeypatch):
    monkeypatch.setattr("coordinator.project_requests.LOCK_TIMEOUT_MS", 100)
    ids = await add(sql, 1)
    it = await running().start().loaded()
    transaction = sql.transaction()
    await transaction.start()
    await sql.execute("UPDATE projects SET name = 'held'")
    with pytest.raises(ClusterError) as caught:
        await it.requests.remove(ids, delete=True, token=1)
    assert caught.value.code == "locked"
    await transaction.rollback()
    await it.requests.remove(ids, delete=True, token=1)
    assert it.sink.up == [True]
