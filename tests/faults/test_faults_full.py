"""The fault suite at full size: ``pytest -m faults tests/faults``, about an hour on two cores.

    FAULTS_SEED      the random faults, and where damage is done (printed; a new one when not given)
    FAULTS_COUNT     random faults in one run (100)
    FAULTS_RATE      polls per second in every test (1000)
    FAULTS_OUTAGE_S  how long the database is away (600)
    FAULTS_KINDS     names of classes in faults.py, with commas: only these kinds among the random ones
    FAULTS_REPORT    a file to which figures are appended as JSON

What the machine stalls is measured beside each fault and forgiven; memory, visibility and the rate of catching up are
judged as they are.
"""

import contextlib
import os
import random
import time

import pytest

from tests.faults import books, campaign, damage, faults, ramdisk
from tests.faults.gaps import is_allowed, widest_gap
from tests.faults.memory import MemoryWatch
from tests.faults.report import campaign_tables, report, table_of
from tests.faults.stage import Stage
from tests.faults.visibility import VisibilityWatch, percentile
from tests.integration.harness import wait_until

pytestmark = pytest.mark.faults

COUNT = 100
RATE = 1000
WORKERS = 4
OUTAGE_S = 600
WAL_DISK_BYTES = 2 << 30
VISIBLE_S = 60
VISIBLE_P99_MS = 300
VISIBILITY_SAMPLE = 60  # projects
MEMORY_GROWTH = 0.10
CATCH_UP_FACTOR = 5  # in proportion to the live rate
CATCH_UP_S = 600
DOWN_S = 5.0
WARM_UP_S = 30
# Of the ticks since an instant; without those that came after another one while the late first poll of a project ran.
MISSED_SINCE = """
    SELECT reason, sum(ticks)::int FROM missed_polls
    WHERE last_tick >= to_timestamp($1::float8) AND NOT (reason = 'overrun' AND first_tick > to_timestamp($2::float8))
    GROUP BY reason
"""
NO_FLOOR = ("--wal-free-floor", "0")


@pytest.fixture
def rate(size):
    return size("RATE", RATE)


def finish(stage, seed, deaths=(), destroyed=books.NOTHING):
    """Stop, compare the books; the campaign without faults that holds the verdict."""
    done = campaign.Campaign(seed, stage.projects, len(stage.worker_names))
    runner = campaign.Runner(stage, done, print)
    runner.deaths += deaths
    runner.finish(destroyed)
    return done


def test_a_hundred_random_faults(seed, size, rate, say):
    why_no_disk = ramdisk.why_not()
    disk_bytes = 0 if why_no_disk else WAL_DISK_BYTES
    if why_no_disk:
        say(f"without a full disk: {why_no_disk}")
    with Stage(projects=rate, workers=WORKERS, options=NO_FLOOR, wal_disk_bytes=disk_bytes) as stage:
        stage.add_projects()
        chosen = faults.plan(
            random.Random(seed),
            size("COUNT", COUNT),
            stage.worker_names,
            with_disk=bool(disk_bytes),
            kinds=[getattr(faults, name) for name in os.environ.get("FAULTS_KINDS", "").split(",") if name],
        )
        done = campaign.run(stage, chosen, seed, say)
    report(
        f"{len(chosen)} random faults: FAULTS_SEED={seed}, {rate} polls/s, {done.seconds} s",
        done,
        *campaign_tables(done),
    )
    assert not done.wrong(), f"FAULTS_SEED={seed}"


def test_a_result_is_visible_at_once(rate, say):
    with Stage(projects=rate, workers=WORKERS) as stage:
        stage.add_projects()
        sample = list(stage.ids.values())[:VISIBILITY_SAMPLE]
        with VisibilityWatch(stage.postgres.url, sample) as visible:
            since = time.time()
            stage.let_pass(VISIBLE_S)
            until = time.time()
        delays = visible.delays_ms(since, until - 1)
        figures = visibility_figures(delays) | {
            "machine stalled, ms": round(1000 * stage.log.refresh().stall_s(since), 1)
        }
        done = finish(stage, 0)
    report(f"visibility at {rate} polls/s", figures, table_of("", ("visible after", ""), figures.items()))
    assert not done.wrong()
    assert len(delays) > VISIBLE_S * len(sample) * 0.9
    assert percentile(delays, 0.99) <= VISIBLE_P99_MS


def visibility_figures(delays):
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {"results": len(delays)} | {
        f"{name}, ms": round(percentile(delays, share), 1) for name, share in shares.items()
    }


def test_the_database_is_away_for_minutes(seed, size, rate, say):
    outage_s = size("OUTAGE_S", OUTAGE_S)
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(Stage(projects=rate, workers=WORKERS))
        stage.add_projects()
        memory = stack.enter_context(MemoryWatch(stage.cluster))
        sample = list(stage.ids.values())[:VISIBILITY_SAMPLE]
        visible = stack.enter_context(VisibilityWatch(stage.postgres.url, sample))
        began = time.time()
        stage.let_pass(WARM_UP_S)

        with contextlib.closing(stage.postgres.sql()) as sql:
            rows_before = sql.value("SELECT count(*) FROM poll_results")
        away_at = time.time()
        stage.postgres.stop()
        stage.let_pass(outage_s)
        back_at = time.time()
        gap = widest_gap(stage.log.refresh(), stage.numbers, away_at, back_at - 1.5)
        growth = memory.growth(began, away_at, back_at)
        say(f"away for {back_at - away_at:.0f} s: widest gap {gap}, memory {growth}")

        stage.postgres.start()
        answers_at = time.time()
        caught_up_at = stage.wait_recovered(answers_at, CATCH_UP_S)
        with contextlib.closing(stage.postgres.sql()) as sql:
            rows_after = sql.value("SELECT count(*) FROM poll_results")
        per_s = (rows_after - rows_before) / (caught_up_at - answers_at)
        live = visible.delays_ms(answers_at, caught_up_at)
        gap_after = widest_gap(stage.log.refresh(), stage.numbers, answers_at, time.time())
        growth_after = memory.growth(began, away_at, time.time())
        stage.let_pass(5.0)
        done = finish(stage, seed)

    figures = {
        "away, s": round(back_at - away_at),
        "widest gap meanwhile, s": gap.seconds,
        "rows to catch up": rows_after - rows_before,
        "caught up after, s": round(caught_up_at - answers_at, 1),
        "rows/s while catching up": round(per_s),
        "of the live rate": round(per_s / rate, 1),
        "widest gap while catching up, s": gap_after.seconds,
    } | {f"live results meanwhile: {name}": value for name, value in visibility_figures(live).items()}
    memory_rows = [
        (each.name, each.before_mib, each.least, each.most, after.most, each.course_mib)
        for each, after in zip(growth, growth_after, strict=True)
    ]
    report(
        f"database away for {outage_s} s at {rate} polls/s: FAULTS_SEED={seed}",
        figures | {"memory": memory_rows},
        table_of("", ("", ""), figures.items()),
        table_of(
            "resident memory",
            ("role", "before, MiB", "least", "most", "most while catching up", "course, MiB"),
            memory_rows,
        ),
        *campaign_tables(done)[1:],
    )
    assert not done.wrong()
    assert is_allowed(gap, 0.0)
    assert not [each for each in growth if not 1 - MEMORY_GROWTH <= each.least <= each.most <= 1 + MEMORY_GROWTH]
    assert per_s >= CATCH_UP_FACTOR * rate
    assert live, "live results landed while catching up"


def waiting_in_wal(stage, streams):
    """Records of these streams that nobody has acknowledged."""
    return sum(each.records_unacked for each in stage.wal.streams() if each.stream_id in streams)


@pytest.mark.parametrize("database", ["up", "away"])
def test_everything_is_killed_at_once(seed, rate, say, database):
    with Stage(projects=rate, workers=WORKERS) as stage:
        stage.add_projects()
        stage.let_pass(DOWN_S)  # the first polls of so many projects at once may run into the next tick
        if database == "away":
            stage.postgres.kill()
            stage.let_pass(2 * DOWN_S)
        killed_at = stage.cluster.kill_everything()
        streams = {each.stream_id for each in stage.wal.streams()}
        waited = waiting_in_wal(stage, streams)
        down_until = time.monotonic() + DOWN_S
        wait_until(lambda: time.monotonic() > down_until, "the downtime to be over")
        if database == "away":
            stage.postgres.start()
        up_at = time.time()
        stage.cluster.start().wait_ready()
        stage.wait_polled(up_at)
        polls_at = time.time()
        caught_up_at = stage.wait_recovered(polls_at)
        wait_until(lambda: not waiting_in_wal(stage, streams), lambda: f"the WAL to drain: {stage.wal.streams()}")
        deaths = [campaign.death_of(name, killed_at, killed_at, polls_at) for name in stage.worker_names]
        done = finish(stage, seed, deaths)
        with contextlib.closing(stage.postgres.sql()) as sql:
            missed = dict(map(tuple, sql.fetch(MISSED_SINCE, killed_at - 2.0, up_at)))
    figures = {
        "down, s": round(polls_at - killed_at, 1),
        "polls again after `up`, s": round(polls_at - up_at, 1),
        "caught up after `up`, s": round(caught_up_at - up_at, 1),
        "records that waited in the WAL": waited,
        "missed since": missed,
    }
    report(
        f"everything killed, database {database}, {rate} polls/s: FAULTS_SEED={seed}",
        figures,
        table_of("", ("", ""), figures.items()),
        *campaign_tables(done)[1:],
    )
    assert not done.wrong()
    assert waited >= (rate * DOWN_S if database == "away" else 0)
    assert set(missed) == {"down"}, "the downtime, and nothing else"
    assert missed["down"] <= rate * (polls_at - killed_at + 2)


def test_a_damaged_wal(seed, rate, say):
    rng = random.Random(seed)
    with Stage(projects=rate, workers=len(damage.SEGMENT_HARMS)) as stage:
        stage.add_projects()
        with contextlib.closing(stage.postgres.sql()) as sql:
            committed = {str(row["stream_id"]): row["last_seq"] for row in sql.fetch("SELECT * FROM ingest_stream")}
        stage.postgres.kill()
        stage.let_pass(2 * DOWN_S)
        killed_at = stage.cluster.kill_everything()

        newest = {path.parts[-3]: path for path in stage.wal.segments()}  # of each worker
        harms = [
            harm(rng, newest[name], committed.get(newest[name].parent.name, 0))
            for name, harm in zip(stage.worker_names, damage.SEGMENT_HARMS, strict=True)
        ]
        harms += damage.foreign_files(rng, stage.wal_dir, newest[stage.worker_names[0]].parent)

        stage.postgres.start()
        up_at = time.time()
        stage.cluster.start().wait_ready()
        stage.wait_polled(up_at)
        polls_at = time.time()
        stage.wait_recovered(polls_at)
        deaths = [campaign.death_of(name, killed_at, killed_at, polls_at) for name in stage.worker_names]
        destroyed = books.Destroyed(
            frozenset().union(*(harm.lost for harm in harms)), frozenset().union(*(harm.results for harm in harms))
        )
        done = finish(stage, seed, deaths, destroyed)
        said = [(harm, stage.watch.first(harm.says, up_at) is not None) for harm in harms]
        quarantined = sorted(path.name for path in (stage.wal_dir / "quarantine").glob("*"))
    rows = [(harm.what, len(harm.lost), len(harm.results), "yes" if told else "NO") for harm, told in said]
    report(
        f"a damaged WAL, {rate} polls/s: FAULTS_SEED={seed}",
        {"harms": rows, "quarantine": quarantined},
        table_of("", ("harm", "batches beyond saving", "results in them", "said in the log"), rows),
        *campaign_tables(done)[1:],
    )
    assert not done.wrong()
    assert all(told for _, told in said)
    assert len(quarantined) >= len(damage.SEGMENT_HARMS)
    assert 0 < done.verdict.damaged <= len(destroyed.results)
