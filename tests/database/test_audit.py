"""The audit on hand-made tables: the law as it should be, and every violation it must find."""

import json
import random
from datetime import UTC, datetime, timedelta

import pytest

from cluster import audit as audit_module
from cluster import database
from cluster.audit import audit
from cluster.errors import ClusterError, InvalidInputError
from cluster.ticks import first_tick_from, phase_ms

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = 1_767_225_600_000  # 2026-01-01
HORIZON = START + 100_000


def at(ms):
    return EPOCH + timedelta(milliseconds=ms)


def ticks(project_id, since, until, interval_ms):
    first = first_tick_from(since, phase_ms(project_id, interval_ms), interval_ms)
    return list(range(first, until, interval_ms))


class Books:
    """Writes spans, rows and ranges as they are given; nothing is checked or completed."""

    def __init__(self, conn):
        self.conn = conn

    async def span(self, project_id, since, until, interval_ms=1000):
        await self.conn.execute(
            "INSERT INTO project_spans VALUES ($1, $2, $3, $4)",
            project_id, at(since), None if until is None else at(until), interval_ms,
        )  # fmt: skip

    async def rows(self, project_id, instants, *, trigger="tick", late_ms=2):
        await self.conn.executemany(
            "INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, worker, epoch) "
            "VALUES ($1, $2, $3, $4, 'success', 'w', 1)",
            [(project_id, at(ms), at(ms + late_ms), trigger) for ms in instants],
        )

    async def missed(self, project_id, first, last, interval_ms=1000, *, reason="overload", ticks=None):
        count = (last - first) // interval_ms + 1 if ticks is None else ticks
        await self.conn.execute(
            "INSERT INTO missed_polls VALUES ($1, $2, $3, $4, $5, 'w', 1)",
            project_id, at(first), at(last), count, reason,
        )  # fmt: skip

    async def rejected(self, project_id, instants, *, trigger="tick", **fields):
        await self.conn.executemany(
            "INSERT INTO ingest_reject (stream_id, worker, project_id, error, record) "
            "VALUES (gen_random_uuid(), 'w', $1, 'refused', $2)",
            [
                (project_id, json.dumps({"project_id": project_id, "scheduled_at_ms": ms, "trigger": trigger} | fields))
                for ms in instants
            ],
        )

    async def accounted_to(self, ms):
        await self.conn.execute("UPDATE cluster_state SET accounted_to = $1", None if ms is None else at(ms))

    async def audit(self, **options):
        return await audit(self.conn, **options)

    async def account(self, project_id=1, **options):
        report = await self.audit(**options)
        [found] = [p.account for p in report.projects if p.project_id == project_id]
        return found


@pytest.fixture
async def books(database_url):
    conn = await database.connect(database_url)
    await conn.execute(
        "CREATE TABLE poll_results_20260101 PARTITION OF poll_results "
        "FOR VALUES FROM ('2026-01-01Z') TO ('2026-01-02Z')"
    )
    books = Books(conn)
    await books.accounted_to(HORIZON)
    yield books
    await conn.close()


async def test_the_law_holds(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due[:40])
    await books.missed(1, due[40], due[49])
    await books.missed(1, due[50], due[50], reason="overrun")
    await books.missed(1, due[51], due[59])
    await books.rows(1, due[60:], late_ms=40)
    await books.conn.execute("INSERT INTO projects (id, name, url, enabled) VALUES (1, 'one', 'http://h/', false)")
    await books.rows(1, [due[3] + 1], trigger="immediate")
    report = await books.audit()
    assert report.holds
    assert (report.horizon_ms, report.since_ms, report.projects_audited, report.projects_violating) == (
        HORIZON, None, 1, 0,
    )  # fmt: skip
    [project] = report.projects
    assert (project.project_id, project.name) == (1, "one")
    account = project.account
    assert (account.due, account.polled, account.missed) == (100, 80, {"overload": 19, "overrun": 1})
    assert (account.doubled, account.unexplained, account.stray, account.holds) == (0, 0, 0, True)
    assert report.total == account
    assert report.lateness.max_ms == 40
    assert 1 <= report.lateness.p50_ms <= 50
    assert 30 <= report.lateness.p99_ms <= 40


async def test_a_tick_of_which_nothing_is_known(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due[:50] + due[51:])
    report = await books.audit()
    assert not report.holds
    assert (report.projects_violating, report.total.unexplained, report.total.doubled) == (1, 1, 0)


async def test_a_row_that_cannot_be_polled_is_told_apart(books):
    add = "INSERT INTO projects (id, name, url, assertions, enabled) VALUES ($1, 'p', 'http://h/', $2, $3)"
    await books.conn.execute("ALTER TABLE projects DISABLE TRIGGER USER")
    for project_id, assertions, enabled in (
        (1, '[{"type": "x"}]', True),
        (2, "[]", True),
        (3, '[{"type": "x"}]', False),
    ):
        await books.conn.execute(add, project_id, assertions, enabled)
        await books.span(project_id, START, None)
    report = await books.audit()
    assert (report.holds, report.projects_violating, report.projects_invalid) == (False, 2, 1)
    assert [each.invalid is not None for each in report.projects] == [True, False, False]
    assert "assertions" in report.projects[0].invalid
    for project_id in (2, 3):
        await books.rows(project_id, ticks(project_id, START, HORIZON, 1000))
    report = await books.audit()
    assert (report.holds, report.projects_violating, report.projects_invalid) == (True, 0, 1)
    await books.missed(1, *[ticks(1, START, HORIZON, 1000)[n] for n in (3, 5)])
    await books.rows(1, [ticks(1, START, HORIZON, 1000)[4]])
    assert (await books.audit()).projects_violating == 1, "a tick that is counted twice is a violation whatever the row"


async def test_a_tick_that_is_polled_and_missed(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due)
    await books.missed(1, due[7], due[9])
    account = await books.account()
    assert (account.doubled, account.unexplained, account.holds) == (3, 0, False)


async def test_a_double_does_not_hide_a_hole(books):
    """Rows and ranges sum up to what is due, and still the law is broken twice."""
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due[1:])
    await books.missed(1, due[5], due[5])
    account = await books.account()
    assert (account.due, account.polled + sum(account.missed.values())) == (100, 100)
    assert (account.doubled, account.unexplained, account.holds) == (1, 1, False)


@pytest.mark.parametrize(("first", "last", "doubled"), [(5, 12, 5), (2, 4, 3), (1, 20, 9), (9, 9, 1), (10, 12, 0)])
async def test_ranges_that_overlap(books, first, last, doubled):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.missed(1, due[0], due[9], reason="down")
    await books.missed(1, due[first], due[last])
    covered = {*range(10), *range(first, last + 1)}
    await books.rows(1, [tick for n, tick in enumerate(due) if n not in covered])
    account = await books.account()
    assert (account.doubled, account.unexplained) == (doubled, 0)


async def test_a_row_in_two_ranges_is_charged_twice_not_thrice(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.missed(1, due[0], due[9])
    await books.missed(1, due[5], due[14])
    await books.rows(1, [due[7], *due[15:]])
    account = await books.account()
    assert (account.doubled, account.unexplained) == (5 + 1, 0)


async def test_off_the_grid(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, [*due[1:], due[0] + 1])
    account = await books.account()
    assert (account.polled, account.stray, account.unexplained) == (99, 1, 1)


async def test_ranges_off_the_grid_explain_nothing(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due[10:])
    await books.missed(1, due[0] + 1, due[4] + 1)
    await books.missed(1, due[5], due[9], ticks=2)  # every fourth second: not this project's interval
    account = await books.account()
    assert (account.missed, account.unexplained) == ({}, 10)


async def test_outside_of_every_span(books):
    await books.span(1, START + 20_000, START + 40_000)
    inside = ticks(1, START + 20_000, START + 40_000, 1000)
    await books.rows(1, [*inside, inside[-1] + 1000, inside[0] - 1000])
    await books.rows(77, [START + 5])
    report = await books.audit()
    assert report.holds
    assert (report.total.due, report.total.polled, report.total.stray) == (20, 20, 3)


async def test_bounds_of_a_span_and_the_horizon(books):
    """since <= tick < until, and tick < horizon."""
    one = ticks(1, START, HORIZON, 1000)
    await books.span(1, one[10], one[20])
    await books.rows(1, one[10:20])
    two = ticks(2, START, HORIZON, 1000)
    await books.accounted_to(two[50])
    await books.span(2, two[0] + 1, None)
    await books.rows(2, two[1:])
    report = await books.audit()
    assert report.holds
    assert [p.account.due for p in report.projects] == [10, 49]


async def test_a_range_over_a_pause_and_a_change_of_the_interval(books):
    """One claim over a gap between spans counts only where ticks were due."""
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, due[30])
    await books.span(1, due[60], due[80])
    await books.span(1, due[80], None, 4000)
    await books.missed(1, due[0], due[79], reason="down")
    await books.rows(1, ticks(1, due[80], HORIZON, 4000))
    account = await books.account()
    assert (account.missed, account.unexplained, account.doubled) == ({"down": 50}, 0, 0)
    assert account.due == 50 + account.polled


async def test_ticks_whose_result_was_set_aside_are_explained(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due[:50])
    await books.missed(1, due[50], due[89])
    await books.rejected(1, due[85:])  # five of them were counted missed all the same
    await books.rejected(1, due[:3])  # and three polled again
    await books.rejected(1, due[95:])  # refused twice
    account = await books.account()
    assert (account.due, account.polled, account.missed, account.rejected) == (100, 50, {"overload": 40}, 10)
    assert (account.unexplained, account.doubled, account.holds) == (0, 0, True)
    report = await books.audit()
    assert (report.total.rejected, report.holds) == (10, True)
    window = await books.account(since=at(due[88]), until=at(due[92]))
    assert (window.due, window.rejected, window.holds) == (4, 2, True)


@pytest.mark.parametrize(
    ("instants", "fields"),
    [
        ([START + 1], {"trigger": "immediate"}),
        ([HORIZON + 5_000], {}),
        ([1 << 63], {}),
        ([None], {}),
        ([None], {"trigger": None, "first_tick_ms": START, "last_tick_ms": START + 5_000}),
        (["nonsense"], {}),
    ],
)
async def test_other_records_that_were_set_aside_explain_nothing(books, instants, fields):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due[1:])
    await books.rejected(1, [due[0] + 1])  # off the grid
    await books.rejected(2, [due[0]])
    await books.rejected(1, [due[0]], trigger="immediate")
    await books.rejected(1, instants, **fields)
    account = await books.account()
    assert (account.rejected, account.unexplained) == (0, 1)


async def test_a_range_off_the_grid_does_not_hide_a_rejected_tick(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due[10:])
    await books.missed(1, due[0] + 1, due[9] + 1)
    await books.rejected(1, due[:10])
    account = await books.account()
    assert (account.missed, account.rejected, account.unexplained) == ({}, 10, 0)


async def test_empty_spans(books):
    await books.span(1, START + 5, START + 5)
    report = await books.audit()
    assert report.holds
    assert report.total.due == 0


async def test_nothing_accounted_yet(books):
    await books.accounted_to(None)
    await books.span(1, START, None)
    report = await books.audit()
    assert (report.horizon_ms, report.holds, report.projects_audited, report.lateness) == (None, True, 0, None)
    assert report.note == "nothing is accounted for yet, so there is nothing to audit"


async def test_a_window(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due[:10] + due[20:50])
    await books.missed(1, due[55], due[70])
    whole = await books.account()
    assert whole.unexplained == 10 + 5 + 29
    window = await books.account(since=at(due[20]), until=at(due[50]))
    assert (window.due, window.polled, window.holds) == (30, 30, True)
    window = await books.account(since=at(due[55]), until=at(due[60]))
    assert (window.due, window.missed, window.holds) == (5, {"overload": 5}, True)
    report = await books.audit(until=at(HORIZON + 10**9))
    assert report.horizon_ms == HORIZON, "never beyond what is accounted for"
    assert (await books.audit(since=at(HORIZON + 1))).total.due == 0


async def test_what_retention_dropped_is_not_audited(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due[40:])
    assert not (await books.audit()).holds
    await books.conn.execute("UPDATE result_retention SET kept_from = $1", at(due[40]))
    report = await books.audit()
    assert (report.holds, report.since_ms, report.total.due) == (True, due[40], 60)


async def test_deleted_projects_are_audited(books):
    await books.conn.execute("INSERT INTO projects (id, url, interval) VALUES (5, 'http://h/', 1)")
    await books.conn.execute("UPDATE project_spans SET since = $1", at(START))
    await books.conn.execute("DELETE FROM projects")
    await books.conn.execute("UPDATE project_spans SET until = $1", at(HORIZON))
    report = await books.audit()
    [project] = report.projects
    assert (project.name, project.account.unexplained) == (None, 100)


async def test_one_project(books):
    for project_id in (1, 2):
        await books.span(project_id, START, None)
    await books.rows(2, ticks(2, START, HORIZON, 1000))
    assert not (await books.audit()).holds
    report = await books.audit(project=2)
    assert (report.holds, report.projects_audited) == (True, 1)
    assert not (await books.audit(project=1)).holds
    with pytest.raises(ClusterError, match="project 3 was never enabled"):
        await books.audit(project=3)


async def test_a_window_of_which_nothing_can_be_audited_says_so(books):
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, due)
    assert (await books.audit()).note is None
    report = await books.audit(since=at(HORIZON), until=at(HORIZON + 60_000))
    assert (report.holds, report.projects_audited) == (True, 0)
    assert report.note.startswith("nothing to audit: ticks are accounted for up to 2026-01-0")
    report = await books.audit(until=at(START))
    assert (report.holds, report.total.due, report.note) == (True, 0, "no tick was due in this window")
    await books.conn.execute("UPDATE result_retention SET kept_from = $1", at(due[40]))
    report = await books.audit(since=at(due[10]), until=at(due[40]))
    assert (report.holds, report.projects_audited) == (True, 0)
    assert report.note.startswith("nothing to audit: results are kept from 2026-01-0")
    assert (await books.audit(until=at(due[41]))).note is None


async def test_a_window_that_ends_before_it_begins_is_refused(books):
    with pytest.raises(InvalidInputError, match=r"the window ends before it begins: from 202.* to 202"):
        await books.audit(since=at(START), until=at(START - 1))


async def test_an_instant_without_a_time_zone(books):
    with pytest.raises(InvalidInputError, match="since needs a time zone"):
        await books.audit(since=datetime(2026, 1, 1))  # noqa: DTZ001


async def test_many_projects(books, monkeypatch):
    """Chunks, progress, and which projects are listed."""
    monkeypatch.setattr(audit_module, "PROJECTS_PER_CHUNK", 7)
    monkeypatch.setattr(audit_module, "PROJECTS_LISTED_MAX", 20)
    for project_id in range(1, 31):
        await books.span(project_id, START, START + 10_000)
        if project_id > 25:
            await books.rows(project_id, ticks(project_id, START, START + 10_000, 1000))
    seen = []
    report = await books.audit(progress=lambda done, in_all: seen.append((done, in_all)))
    assert seen[1::2] == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]
    assert (report.projects_audited, report.projects_violating, report.projects_left_out) == (30, 25, 5)
    assert [p.project_id for p in report.projects] == list(range(1, 21))
    assert (report.total.due, report.total.polled, report.total.unexplained) == (300, 50, 250)


async def test_a_long_range_is_counted_in_steps(books, monkeypatch):
    """Progress within a project; the counts are those of the whole."""
    due = ticks(1, START, HORIZON, 1000)
    await books.span(1, START, None)
    await books.rows(1, [*due[:40], due[5] + 3], late_ms=7)
    await books.missed(1, due[35], due[70])
    await books.missed(1, due[60], due[80])
    await books.rejected(1, due[81:90])
    whole = await books.audit()
    monkeypatch.setattr(audit_module, "TICKS_PER_STEP", 17)
    seen = []
    report = await books.audit(progress=lambda done, in_all: seen.append((done, in_all)))
    assert report == whole
    assert len(seen) == 2 * 6
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (1, 1)


@pytest.mark.parametrize("seed", range(12))
async def test_against_enumeration(books, monkeypatch, seed):
    """Random spans, rows, ranges and records set aside, overlapping as they like, against sets of ticks."""
    rng = random.Random(seed)
    monkeypatch.setattr(audit_module, "TICKS_PER_STEP", [3, 50, 1_000_000][seed % 3])
    expected = {}
    for project_id in range(1, 9):
        cuts = sorted(rng.sample(range(START, HORIZON), 4))
        grid, due = {}, set()
        for since, until in ((cuts[0], cuts[1]), (cuts[2], cuts[3])):
            interval = rng.choice([700, 1000, 2500])
            await books.span(project_id, since, until, interval)
            for tick in ticks(project_id, since, until, interval):
                due.add(tick)
                grid[tick] = interval
        rows = {tick for tick in due if rng.random() < 0.6}
        stray = set(rng.sample(range(START, HORIZON), 3)) - due
        await books.rows(project_id, rows | stray)
        hits = dict.fromkeys(due, 0)
        starts = set()
        for _ in range(rng.randrange(8)):
            if not due:
                break
            first = rng.choice(sorted(due))
            span = [t for t in sorted(due) if t >= first and grid[t] == grid[first] and (t - first) % grid[first] == 0]
            last = rng.choice(span[:15])
            if first in starts or (last - first) // grid[first] != span.index(last):
                continue  # the same key again, or a range across the pause, which a worker would not make
            starts.add(first)
            await books.missed(project_id, first, last, grid[first])
            for tick in range(first, last + 1, grid[first]):
                hits[tick] += 1
        aside = {tick for tick in due if rng.random() < 0.2}
        await books.rejected(project_id, aside | set(rng.sample(range(START, HORIZON), 3)) - due)
        known = {t for t in due if t in rows or hits[t]}
        rejected = len(aside - known)
        doubled = sum(max(0, hits[t] + (t in rows) - 1) for t in due)
        expected[project_id] = (len(due), len(rows), sum(hits.values()), rejected, doubled,
                                len(due) - len(known) - rejected, len(stray))  # fmt: skip
    report = await books.audit()
    found = {
        p.project_id: (p.account.due, p.account.polled, sum(p.account.missed.values()), p.account.rejected,
                       p.account.doubled, p.account.unexplained, p.account.stray)
        for p in report.projects
    }  # fmt: skip
    assert found == expected
