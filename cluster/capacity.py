"""What so many projects need: slots, processes, CPU time, connections, memory, disk; and whether a machine has it.

Pure: the load and the machine go in, a :class:`CapacityPlan` comes out.  Slots follow from Little's law (requests in
flight = polls per second times response time), everything else from what was measured on this program.  The measured
figures are the constants below, each with the command that gives it; a program that became cheaper or dearer is a new
figure there.

Everything needed grows with the load or stays: more projects, shorter intervals and slower answers never need less.

It is a plan, not a promise: ``cluster bench`` measures what a machine does.
"""

import math
from collections.abc import Sequence

import msgspec

# ---- measured -------------------------------------------------------------------------------------------------------

# CPU time of a poll falls with the rate of the process: (polls per second of the process, µs per poll), on one of two
# cores.  `cluster bench --projects 3000,10000,15000 --workers 2`, and `--projects 2000 --workers 8` for the first.
WORKER_COSTS = ((250, 295.0), (1_500, 90.0), (5_000, 50.0), (7_500, 45.0))
WRITER_COSTS = ((2_000, 14.0), (3_000, 12.0), (10_000, 6.0), (15_000, 4.0))
POSTGRESQL_COSTS = ((2_000, 9.0), (3_000, 9.0), (10_000, 7.0), (15_000, 5.0))
OTHERS_CORES = 0.02  # coordinator and supervisor, whatever the rate; also the first of these

# `python -m tests.bench.million`: growth of PSS by the number of projects, and PostgreSQL's; RSS of a process without
# projects by `cluster bench --projects 1`.
WORKER_BYTES_PER_PROJECT = 580
COORDINATOR_BYTES_PER_PROJECT = 230
PROCESS_BYTES = 45 << 20
POSTGRESQL_BYTES = 160 << 20

# A row of poll_results with its share of the index.  `cluster bench` says 158 to 167 (polls of a literal address on
# kept connections); 200 ticks of 2,000 projects inserted in their order came to 164.  12 more where the phases dns,
# connect and tls are there, and some for longer addresses, worker names and errors.
ROW_BYTES = 190
# `python -m tests.bench.wal` writes results of this size; an acknowledged one stays for 10 minutes.
WAL_RESULT_BYTES = 150
WAL_KEPT_S = 600

# `python -m tests.bench.replay`: what a writer process takes on one core; COPY alone is faster.
WRITER_ROWS_PER_S_MAX = 148_000

# ---- as the program is made -----------------------------------------------------------------------------------------

KEPT_S = 65  # an idle connection, for the next request (worker/probe/pool.py)
KEPT_PER_WORKER_MAX = 2_000
SLOTS_LIMIT = 100_000  # what the options allow
WORKERS_LIMIT = 256
MAX_PER_HOST = 100  # the default
DESCRIPTORS_OF_A_WORKER = 64  # beside its connections; 24 were counted
TIMEOUT_S = 30.0  # of a project that doesn't say another one

# ---- margins --------------------------------------------------------------------------------------------------------

HEADROOM = 5  # slots for each request that is in flight on average: for targets that hang
SLOTS_MIN = 50
WORKERS_MIN = 2  # one goes on when the other dies
WORKER_CORES_MAX = 0.5  # of a worker, so that it can take over from another
MACHINE_SHARE_MAX = 0.8  # of its cores and its memory
WRITER_SHARE_MAX = 0.5  # beyond it, catching up after an outage takes longer than the outage
DAY_S = 86_400
ROUNDING = 1e-9  # of floating point: it is not to make 501 out of 500


class ProjectGroup(msgspec.Struct, frozen=True):
    """Projects of one kind."""

    projects: int
    interval_s: float
    latency_s: float  # mean response time


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """None: not known, not judged."""

    cores: int
    memory_bytes: int
    descriptors: int | None  # a process may have; None also for no limit
    disk_free_bytes: int | None  # where the results go


class CapacityPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed.  ``warnings``: what the machine does not have, or what the program can't do."""

    projects: int
    polls_per_s: float
    in_flight_mean: float
    headroom: int
    max_concurrent_http: int
    projects_at_most: int  # that these slots carry, were nothing else in the way
    hanging_share: float  # of all polls, that may take TIMEOUT_S before the slots are used up
    workers: int
    cpu_cores: dict[str, float]  # by role
    cpu_cores_total: float
    connections: int
    descriptors_per_worker: int
    memory_bytes: dict[str, int]  # by role
    memory_bytes_total: int
    rows_per_day: int
    table_bytes_per_day: int
    retention_days: int
    table_bytes: int  # after these days
    wal_bytes: int
    machine: MachineFacts
    warnings: list[str]


def make_plan(groups: Sequence[ProjectGroup], machine: MachineFacts, *, retention_days: int) -> CapacityPlan:
    """``groups`` is not empty, and every number in it above 0."""
    projects = sum(group.projects for group in groups)
    rate = sum(group.projects / group.interval_s for group in groups)
    in_flight = sum(group.projects / group.interval_s * group.latency_s for group in groups)
    latency_s = in_flight / rate
    wanted_slots = max(SLOTS_MIN, math.ceil(in_flight * HEADROOM * (1 - ROUNDING)))
    slots = min(SLOTS_LIMIT, wanted_slots)
    wanted_workers = workers_for(rate)
    workers = min(WORKERS_LIMIT, wanted_workers)
    cpu = {
        "workers": workers * cores_used(WORKER_COSTS, rate / workers),
        "writer": cores_used(WRITER_COSTS, rate),
        "postgresql": cores_used(POSTGRESQL_COSTS, rate),
        "others": OTHERS_CORES,
    }
    memory = {
        "workers": workers * PROCESS_BYTES + projects * WORKER_BYTES_PER_PROJECT,
        "coordinator": PROCESS_BYTES + projects * COORDINATOR_BYTES_PER_PROJECT,
        "writer": PROCESS_BYTES,
        "supervisor": PROCESS_BYTES,
        "postgresql": POSTGRESQL_BYTES,
    }
    # At worst, every project is on a host of its own; a connection waits for its next poll, or for KEPT_S.
    idle = sum(group.projects * min(1.0, KEPT_S / group.interval_s) for group in groups)
    kept = math.ceil(min(idle, KEPT_PER_WORKER_MAX * workers))
    rows_per_day = math.ceil(rate * DAY_S * (1 - ROUNDING))
    table_bytes = rows_per_day * ROW_BYTES * retention_days
    plan = CapacityPlan(
        projects=projects,
        polls_per_s=rate,
        in_flight_mean=in_flight,
        headroom=HEADROOM,
        max_concurrent_http=slots,
        projects_at_most=math.floor(projects * slots / in_flight * (1 + ROUNDING)),
        hanging_share=hanging_share(slots / rate, latency_s),
        workers=workers,
        cpu_cores=cpu,
        cpu_cores_total=sum(cpu.values()),
        connections=slots + kept,
        # Alone, when all others are dead, a worker has every slot.
        descriptors_per_worker=DESCRIPTORS_OF_A_WORKER + slots + min(kept, KEPT_PER_WORKER_MAX),
        memory_bytes=memory,
        memory_bytes_total=sum(memory.values()),
        rows_per_day=rows_per_day,
        table_bytes_per_day=rows_per_day * ROW_BYTES,
        retention_days=retention_days,
        table_bytes=table_bytes,
        wal_bytes=math.ceil(rate * WAL_RESULT_BYTES * WAL_KEPT_S),
        machine=machine,
        warnings=[],
    )
    plan.warnings.extend(_of_the_program(plan, wanted_slots, wanted_workers))
    plan.warnings.extend(_of_the_machine(plan))
    return plan


def cores_used(costs: Sequence[tuple[int, float]], rate: float) -> float:
    """CPU time per second of a process at this rate: a straight line from one measurement to the next.

    From nothing to the first one; beyond the last a poll costs what it cost there.
    """
    before_rate, before_us = 0.0, 0.0
    for at_rate, cost_us in costs:
        at_us = at_rate * cost_us
        if rate <= at_rate:
            return (before_us + (at_us - before_us) * (rate - before_rate) / (at_rate - before_rate)) / 1e6
        before_rate, before_us = at_rate, at_us
    return rate * costs[-1][1] / 1e6


def workers_for(rate: float) -> int:
    """The fewest of which none uses more of its core than WORKER_CORES_MAX."""
    workers = max(WORKERS_MIN, math.floor(cores_used(WORKER_COSTS, rate)))
    while cores_used(WORKER_COSTS, rate / workers) > WORKER_CORES_MAX:
        workers += 1
    return workers


def hanging_share(slot_s_per_poll: float, latency_s: float) -> float:
    """How many of all polls may hang until they time out, the others being as usual: 0 to 1."""
    if latency_s >= TIMEOUT_S:
        return 1.0 if slot_s_per_poll >= latency_s else 0.0
    return min(1.0, max(0.0, (slot_s_per_poll - latency_s) / (TIMEOUT_S - latency_s)))


def _of_the_program(plan: CapacityPlan, wanted_slots: int, wanted_workers: int) -> list[str]:
    found = []
    if plan.in_flight_mean > SLOTS_LIMIT:
        found.append(
            f"{plan.in_flight_mean:,.0f} requests would be in flight on average, {SLOTS_LIMIT:,} may: ticks will be "
            "missed (overload); longer intervals or fewer projects"
        )
    elif wanted_slots > SLOTS_LIMIT:
        found.append(
            f"{wanted_slots:,} slots were better, {SLOTS_LIMIT:,} is the most: less room for targets that hang"
        )
    if plan.in_flight_mean > MAX_PER_HOST:
        found.append(
            f"where one host and port gets more than {MAX_PER_HOST} requests at a time, raise --max-per-host; "
            "otherwise they wait"
        )
    if wanted_workers > WORKERS_LIMIT:
        found.append(f"{wanted_workers:,} workers were needed, {WORKERS_LIMIT} is the most")
    if plan.polls_per_s > WRITER_ROWS_PER_S_MAX:
        found.append(
            f"{plan.polls_per_s:,.0f} rows/s: the one writer and its COPY took {WRITER_ROWS_PER_S_MAX:,} when "
            "measured; results will pile up"
        )
    elif plan.polls_per_s > WRITER_ROWS_PER_S_MAX * WRITER_SHARE_MAX:
        found.append(
            f"{plan.polls_per_s:,.0f} rows/s are more than half of what the writer and its COPY took when measured "
            f"({WRITER_ROWS_PER_S_MAX:,}): after an outage of the database, catching up takes longer than the outage"
        )
    return found


def _of_the_machine(plan: CapacityPlan) -> list[str]:
    machine = plan.machine
    found = []
    if plan.cpu_cores_total > machine.cores * MACHINE_SHARE_MAX:
        found.append(
            f"{plan.cpu_cores_total:.1f} cores' worth of CPU time is more than {MACHINE_SHARE_MAX:.0%} of the "
            f"{machine.cores} here"
        )
    if plan.memory_bytes_total > machine.memory_bytes * MACHINE_SHARE_MAX:
        found.append(
            f"{plan.memory_bytes_total >> 20:,} MiB of memory are more than {MACHINE_SHARE_MAX:.0%} of the "
            f"{machine.memory_bytes >> 20:,} here"
        )
    if machine.descriptors is not None and plan.descriptors_per_worker > machine.descriptors:
        found.append(
            f"a worker may need {plan.descriptors_per_worker:,} file descriptors, the hard limit here is "
            f"{machine.descriptors:,}: raise it (ulimit -Hn, LimitNOFILE=)"
        )
    needed = plan.table_bytes + plan.wal_bytes
    if machine.disk_free_bytes is not None and needed > machine.disk_free_bytes:
        found.append(
            f"{needed / (1 << 30):,.1f} GiB of results in {plan.retention_days} days are more than the "
            f"{machine.disk_free_bytes / (1 << 30):,.1f} GiB free here: fewer --retention-days, or a larger disk"
        )
    return found
