"""Each important kind of fault once, under a small load: the fault suite of everyday.  See test_faults_full.py."""

import random

import pytest

from tests.faults import campaign, faults, ramdisk
from tests.faults.report import campaign_tables, report
from tests.faults.stage import Stage

RATE = 200
WORKERS = 3
WAL_DISK_BYTES = 64 << 20
LASTS_MAX_S = 1.5
KINDS = (
    faults.KilledWorker,
    faults.HungWorker,
    faults.KilledCoordinatorAndWriter,
    faults.DatabaseAwayAndKilledWorkers,
    faults.LockedTables,
    faults.SetBackDatabase,
    faults.FullDisk,
    faults.ClockForward,
    faults.KilledEverything,
)


def test_nothing_is_lost_or_doubled_whatever_dies(seed, size, say):
    rate = size("RATE", RATE)
    disk_bytes = 0 if ramdisk.why_not() else WAL_DISK_BYTES
    with Stage(projects=rate, workers=WORKERS, options=("--wal-free-floor", "0"), wal_disk_bytes=disk_bytes) as stage:
        stage.add_projects()
        kinds = [kind for kind in KINDS if disk_bytes or not kind.needs_disk]
        chosen = faults.plan(random.Random(seed), size("COUNT", len(kinds)), stage.worker_names, kinds=kinds)
        for each in chosen:
            each.hurry(LASTS_MAX_S)
        done = campaign.run(stage, chosen, seed, say)
    report(f"short fault suite: FAULTS_SEED={seed}, {rate} polls/s, {done.seconds} s", done, *campaign_tables(done))
    assert not done.wrong(), f"FAULTS_SEED={seed}"
    assert done.verdict.requests > rate * done.seconds / 2
    assert done.verdict.in_wal >= done.verdict.rows


def test_a_full_disk_is_among_the_faults():
    if why := ramdisk.why_not():
        pytest.skip(why)
    assert any(kind.needs_disk for kind in KINDS)
