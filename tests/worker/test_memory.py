"""What a project costs a worker that holds very many of them, where most have the same method, interval and so on.

A ratchet over real objects: messages as they come from the coordinator, decoded and applied.  What the allocator and
the process add is for ``tests.bench.million`` to see.  Time is counted in calls and in objects, not in seconds.
"""

import gc
import sys
import tracemalloc
from types import FrameType
from typing import Any

from cluster.messages import control
from cluster.messages.control import Grant, PartitionGrant, Reset
from cluster.project import ProjectSpec, compact, decode_spec, encode_spec
from cluster.runtime import GC_THRESHOLD
from cluster.ticks import partition_of
from worker.core import WorkerCore
from worker.events import CoordinatorSaid

NOW_MS = 1_790_000_000_000
PROJECTS = 20_000
PARTITIONS_HELD = 82  # with some 244 projects each, as of a million
BYTES_PER_PROJECT_MAX = 500
CALLS_PER_PROJECT_MAX = 21
COLLECTED_AT_ONCE_MAX = 5_000  # about a millisecond


def test_an_idle_project_costs_a_worker_little() -> None:
    bodies = list(_snapshot())
    core = WorkerCore(name="w", incarnation="a", pid=1, stream_id="0" * 32, grace_ms=30_000, now_ms=NOW_MS)
    gc.collect()
    tracemalloc.start()
    try:
        for body in bodies:
            core.handle(CoordinatorSaid(control.decode_to_worker(body)), NOW_MS)
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert core.ticker.count == PROJECTS
    assert size / PROJECTS <= BYTES_PER_PROJECT_MAX


def test_taking_an_idle_project_over_takes_few_calls() -> None:
    bodies = list(_snapshot(after_ms=NOW_MS - 1))
    core = WorkerCore(name="w", incarnation="a", pid=1, stream_id="0" * 32, grace_ms=30_000, now_ms=NOW_MS)
    calls = 0

    def count(_frame: FrameType, event: str, _arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    former = sys.getprofile()
    sys.setprofile(count)
    try:
        for body in bodies:
            core.handle(CoordinatorSaid(control.decode_to_worker(body)), NOW_MS)
    finally:
        sys.setprofile(former)
    assert core.ticker.count == PROJECTS
    assert calls / PROJECTS <= CALLS_PER_PROJECT_MAX


def test_no_collection_while_projects_arrive_walks_many_objects() -> None:
    """All that is new stays, so a young collection walks everything since the one before it."""
    bodies = list(_snapshot())
    core = WorkerCore(name="w", incarnation="a", pid=1, stream_id="0" * 32, grace_ms=30_000, now_ms=NOW_MS)
    walked: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 0:
            walked.append(gc.get_count()[0])

    threshold = gc.get_threshold()
    gc.collect()
    gc.set_threshold(*GC_THRESHOLD)
    gc.callbacks.append(note)
    try:
        for body in bodies:
            core.handle(CoordinatorSaid(control.decode_to_worker(body)), NOW_MS)
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*threshold)
    assert core.ticker.count == PROJECTS
    assert walked
    assert max(walked) <= COLLECTED_AT_ONCE_MAX


def _snapshot(after_ms: int | None = None) -> list[bytes]:
    """One partition per message, each project enabled at an instant of its own, and nothing due yet."""
    by_partition: dict[int, list[ProjectSpec]] = {}
    project_id = count = 0
    while count < PROJECTS:
        project_id += 1
        partition = partition_of(project_id)
        if partition < PARTITIONS_HELD:
            spec = ProjectSpec(project_id, f"http://127.0.0.1:43210/check/{project_id}", 300_000, NOW_MS + project_id)
            by_partition.setdefault(partition, []).append(spec)
            count += 1
    bodies = [control.encode(Reset(1, 1, 1))]
    for seq, (partition, specs) in enumerate(by_partition.items(), start=2):
        bodies.append(control.encode(Grant(1, seq, 1, [PartitionGrant(partition, after_ms, "down", specs)])))
    return bodies


def test_a_compact_spec_is_equal_and_shares_what_others_have_too() -> None:
    spec = ProjectSpec(
        7,
        "https://example.com/a",
        90_000,
        NOW_MS,
        "REPORT",
        (("Accept", "text/plain"), ("Authorization", "x" * 1_000)),
        "body",
        "200-299",
        12_345,
        False,
    )
    one, other = compact(decode_spec(encode_spec(spec))), compact(decode_spec(encode_spec(spec)))
    assert one == other == spec
    assert encode_spec(one) == encode_spec(spec)
    for name in ("method", "interval_ms", "timeout_ms", "expected_status"):
        assert getattr(one, name) is getattr(other, name), name
    assert one.headers[0] is other.headers[0]
    assert one.headers[1] is not other.headers[1]  # too long to be kept for those who may have the same
