"""What projects need: the original's example, properties that hold for every load, and the warnings."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import capacity, config
from cluster.capacity import MachineFacts, ProjectGroup, cores_used, hanging_share, make_plan, workers_for
from cluster.settings import Settings
from tests.docs.documents import row_of
from tests.docs.repository_facts import read
from worker.probe import pool

HUGE = MachineFacts(cores=100_000, memory_bytes=1 << 60, descriptors=None, disk_free_bytes=None)
GROUPS = st.lists(
    st.builds(
        ProjectGroup, st.integers(1, 10_000_000), st.integers(1, 31_536_000), st.floats(0.001, 600.0, allow_nan=False)
    ),
    min_size=1,
    max_size=4,
)


def planned(projects, interval_s, latency_s, machine=HUGE, retention_days=90):
    return make_plan([ProjectGroup(projects, interval_s, latency_s)], machine, retention_days=retention_days)


def needs(plan):
    """Everything of which more is worse."""
    return {
        "polls": plan.polls_per_s,
        "in flight": plan.in_flight_mean,
        "slots": plan.max_concurrent_http,
        "workers": plan.workers,
        "cores": plan.cpu_cores_total,
        "connections": plan.connections,
        "descriptors": plan.descriptors_per_worker,
        "memory": plan.memory_bytes_total,
        "rows": plan.rows_per_day,
        "table": plan.table_bytes,
        "WAL": plan.wal_bytes,
    }


def test_the_example_of_the_original():
    """500 slots, 5 minutes, 3 s: 50,000 projects at most, about 10,000 with margin."""
    plan = planned(10_000, 300, 3.0)
    assert plan.in_flight_mean == pytest.approx(100)
    assert (plan.max_concurrent_http, plan.projects_at_most, plan.workers) == (500, 50_000, 2)
    assert plan.warnings == []


@given(GROUPS)
def test_slots_and_processes_suffice(groups):
    plan = make_plan(groups, HUGE, retention_days=90)
    in_flight = sum(group.projects / group.interval_s * group.latency_s for group in groups)
    limited = plan.max_concurrent_http == capacity.SLOTS_LIMIT
    assert limited or plan.max_concurrent_http >= in_flight * capacity.HEADROOM * (1 - 1e-6)
    assert not limited or in_flight * capacity.HEADROOM <= capacity.SLOTS_LIMIT or plan.warnings
    assert plan.workers == capacity.WORKERS_LIMIT or plan.cpu_cores["workers"] <= plan.workers / 2 * (1 + 1e-9)
    assert 0 <= plan.hanging_share <= 1
    assert 2 <= plan.workers <= 256
    assert all(math.isfinite(value) and value > 0 for value in needs(plan).values())


@given(GROUPS, st.integers(0, 3), st.integers(0, 1_000_000), st.integers(1, 1_000), st.floats(1.0, 100.0))
def test_more_projects_shorter_intervals_and_slower_answers_never_need_less(groups, which, more, shorter, slower):
    which %= len(groups)
    before = needs(make_plan(groups, HUGE, retention_days=30))
    group = groups[which]
    for harder in (
        msgspec.structs.replace(group, projects=group.projects + more),
        msgspec.structs.replace(group, interval_s=max(1, group.interval_s // shorter)),
        msgspec.structs.replace(group, latency_s=group.latency_s * slower),
    ):
        after = needs(make_plan([*groups[:which], harder, *groups[which + 1 :]], HUGE, retention_days=30))
        less = {name for name, value in after.items() if value < before[name] * (1 - 1e-9)}
        assert not less, harder


@given(st.floats(0.001, 1_000_000.0), st.floats(1.0, 100.0))
def test_a_faster_process_uses_more_and_a_poll_costs_less(rate, factor):
    for costs in (capacity.WORKER_COSTS, capacity.WRITER_COSTS, capacity.POSTGRESQL_COSTS):
        slow, fast = cores_used(costs, rate), cores_used(costs, rate * factor)
        assert fast >= slow * (1 - 1e-9)
        assert fast / (rate * factor) <= slow / rate * (1 + 1e-9)


def test_costs_are_those_measured():
    for costs in (capacity.WORKER_COSTS, capacity.WRITER_COSTS, capacity.POSTGRESQL_COSTS):
        for rate, cost_us in costs:
            assert cores_used(costs, rate) == pytest.approx(rate * cost_us / 1e6)
        rate, cost_us = costs[-1]
        assert cores_used(costs, 3 * rate) == pytest.approx(3 * rate * cost_us / 1e6)


@given(st.floats(0.001, 100_000.0))
def test_there_are_no_more_workers_than_needed(rate):
    workers = workers_for(rate)
    assert cores_used(capacity.WORKER_COSTS, rate / workers) <= 0.5
    assert workers == 2 or cores_used(capacity.WORKER_COSTS, rate / (workers - 1)) > 0.5


def test_how_many_may_hang():
    assert hanging_share(15.0, 3.0) == pytest.approx(12 / 27)
    assert hanging_share(100.0, 3.0) == 1.0
    assert hanging_share(2.0, 3.0) == 0.0
    assert hanging_share(300.0, 60.0) == 1.0
    assert hanging_share(59.0, 60.0) == 0.0


def test_groups_add_up():
    both = make_plan([ProjectGroup(5_000, 30, 0.2), ProjectGroup(10_000, 300, 3.0)], HUGE, retention_days=90)
    assert both.projects == 15_000
    assert both.polls_per_s == pytest.approx(5_000 / 30 + 10_000 / 300)
    assert both.in_flight_mean == pytest.approx(133.33, abs=0.01)


@pytest.mark.parametrize(
    ("projects", "machine", "said"),
    [
        (15_000, {"cores": 1}, "0.8 cores' worth of CPU time is more than 80% of the 1 here"),
        (10_000, {"memory_bytes": 400 << 20}, "392 MiB of memory are more than 80% of the 400 here"),
        (10_000, {"descriptors": 1_024}, "a worker may need 4,564 file descriptors, the hard limit here is 1,024"),
        (10_000, {"disk_free_bytes": 1 << 30}, "GiB of results in 90 days are more than the 1.0 GiB free here"),
    ],
)
def test_what_a_machine_does_not_have_is_said(projects, machine, said):
    (of_the_host,) = planned(projects, 1, 0.05).warnings
    assert "raise --max-per-host" in of_the_host
    _, found = planned(projects, 1, 0.05, msgspec.structs.replace(HUGE, **machine)).warnings
    assert said in found


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ((100_000, 1, 0.0005), "more than half of what the writer and its COPY took"),
        ((150_000, 1, 0.0005), "150,000 rows/s: the one writer and its COPY took 148,000"),
        ((9_000, 1, 3.0), "135,000 slots were better, 100,000 is the most"),
        ((60_000, 1, 2.0), "120,000 requests would be in flight on average, 100,000 may"),
        ((5_000_000, 1, 0.001), "workers were needed, 256 is the most"),
    ],
)
def test_what_the_program_cannot_do_is_said(load, said):
    assert any(said in each for each in planned(*load).warnings), planned(*load).warnings


def test_what_is_assumed_of_the_program_is_so():
    assert (pool.IDLE_S, pool.IDLE_MAX) == (capacity.KEPT_S, capacity.KEPT_PER_WORKER_MAX)
    limits = {option.name: option.high for option in config.OPTIONS}
    assert limits["max_concurrent_http"] == capacity.SLOTS_LIMIT
    assert limits["workers"] == capacity.WORKERS_LIMIT
    assert next(each.default for each in msgspec.structs.fields(Settings) if each.name == "max_per_host") == 100


@pytest.mark.parametrize(
    ("first", "load"),
    [
        ("10,000 projects at 5 minutes, 3 s", (10_000, 300, 3.0)),
        ("5,000 at 30 s, 200 ms", (5_000, 30, 0.2)),
        ("10,000 at 1 s, 50 ms", (10_000, 1, 0.05)),
        ("1,000,000 at 5 minutes, 200 ms", (1_000_000, 300, 0.2)),
    ],
)
def test_the_rows_of_the_readme_are_what_is_worked_out(first, load):
    plan = planned(*load)
    row = row_of(read("README.md"), first)
    assert row[1:5] == [
        f"{plan.polls_per_s:,.0f}",
        f"{plan.in_flight_mean:,.0f}",
        f"{plan.max_concurrent_http:,}",
        f"{plan.projects_at_most:,}" + (" projects" if "projects" in first else ""),
    ]
    assert float(row[5].split()[0]) == pytest.approx(plan.hanging_share * 100, rel=0.05)
    assert row[6] == str(plan.workers)
    assert row[7] == f"{plan.cpu_cores_total:.2f}"
    number, unit = row[8].split()
    assert float(number) == pytest.approx(plan.memory_bytes_total / {"MiB": 1 << 20, "GiB": 1 << 30}[unit], rel=0.05)
    rows, table = row[9].split(", ")
    assert float(rows.split()[0]) == pytest.approx(plan.rows_per_day / 1e6, rel=0.05)
    number, unit = table.split()
    assert float(number) == pytest.approx(plan.table_bytes_per_day / {"MiB": 1 << 20, "GiB": 1 << 30}[unit], rel=0.05)
