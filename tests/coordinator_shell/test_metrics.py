"""Metrics against the status document, against the formats, and against their bounds."""

import shutil
import subprocess
from collections import Counter

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from cluster.histogram import BUCKETS
from cluster.messages.control import WorkerStats, WriterHeartbeat
from coordinator.events import Totals
from coordinator.metrics import LABELS_MAX, OTHER, WORKERS_MAX, ClusterCollector
from coordinator.status import ShellCounts, document
from tests.coordinator_shell.test_status_document import view, worker

PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


def registry_of(seen, counts=None):
    registry = CollectorRegistry()
    registry.register(ClusterCollector(lambda: seen, lambda: counts or ShellCounts()))
    return registry


def families(seen, counts=None):
    text = generate_latest(registry_of(seen, counts)).decode()
    return {each.name: each for each in text_string_to_metric_families(text)}


class Samples:
    """What a scrape has, as a query would ask for it."""

    def __init__(self, text):
        self.samples = [each for family in text_string_to_metric_families(text) for each in family.samples]

    def total(self, name, **labels):
        found = [each.value for each in self.samples if each.name == name and labels.items() <= each.labels.items()]
        assert found, f"no sample {name} {labels}"
        return sum(found)

    def counts(self, name, **labels):
        """Of a histogram, by bucket."""
        buckets = [
            each.value
            for each in self.samples
            if each.name == f"{name}_bucket" and labels.items() <= each.labels.items()
        ]
        return [int(upper - lower) for lower, upper in zip([0, *buckets], buckets, strict=False)]


def number_leaves(value, path=()):
    """(path, number) of every number in a document; items of lists of objects by their name."""
    match value:
        case bool() | str() | None:
            return
        case int() | float():
            yield path, value
        case dict():
            for key, each in value.items():
                yield from number_leaves(each, (*path, key))
        case list() if value and isinstance(value[0], dict):
            for each in value:
                yield from number_leaves(each, (*path, each["name"]))
        case list():
            yield path, value


# Numbers of the document that are no metric, and why.
EXCEPTIONS = {
    "lateness_ms.p50": "histogram_quantile(0.5, ...) of ringpoll_poll_lateness_seconds",
    "lateness_ms.p99": "histogram_quantile(0.99, ...) of ringpoll_poll_lateness_seconds",
    "workers.*.pid": "an identity, no quantity",
    "writer.pid": "an identity, no quantity",
    "writer.rows_per_s": "rate() of ringpoll_writer_rows_total",
}
CLUSTER_LEAVES = {
    "uptime_s": "ringpoll_uptime_seconds",
    "epoch": "ringpoll_epoch",
    "active_projects": "ringpoll_projects",
    "projects_loaded": "ringpoll_projects_loaded",
    "projects_total": "ringpoll_projects_to_load",
    "invalid_projects": "ringpoll_invalid_projects",
    "total_requests": "ringpoll_polls_total",
    "missed": "ringpoll_missed_ticks_total",
    "active_http": "ringpoll_worker_active_http",
    "max_concurrent_http": "ringpoll_max_concurrent_http",
    "queue_depth": "ringpoll_worker_queue_depth",
    "accounted_to_ms": "ringpoll_accounted_to_timestamp_seconds",
    "partitions": "ringpoll_partitions",
    "partitions_assigned": "ringpoll_partitions_assigned",
    "workers_wanted": "ringpoll_workers_wanted",
    "coordinator.spans_dropped": "ringpoll_coordinator_spans_dropped_total",
    "coordinator.loop_lag_ms": "ringpoll_coordinator_loop_lag_seconds",
}
STATUS_LEAVES = {"success_requests": "success", "failed_requests": "failure", "unknown_requests": "unknown"}
LABELLED_LEAVES = {
    "local_causes": ("ringpoll_local_causes_total", "cause"),
    "missed_by_reason": ("ringpoll_missed_ticks_total", "reason"),
    "refused": ("ringpoll_refused_total", "reason"),
}
WORKER_LEAVES = {
    "projects": "ringpoll_worker_projects",
    "partitions": "ringpoll_worker_partitions",
    "polls_per_s": "ringpoll_worker_assigned_polls_per_second",
    "slice": "ringpoll_worker_slice",
    "active_http": "ringpoll_worker_active_http",
    "queue_depth": "ringpoll_worker_queue_depth",
    "executed": "ringpoll_worker_polls_total",
    "missed": "ringpoll_worker_missed_ticks_total",
    "lateness_ms.p50": "ringpoll_worker_lateness_p50_seconds",
    "lateness_ms.p99": "ringpoll_worker_lateness_p99_seconds",
    "lateness_ms.max": "ringpoll_worker_lateness_max_seconds",
    "loop_lag_ms": "ringpoll_worker_loop_lag_seconds",
    "unacked_results": "ringpoll_worker_unacked_results",
    "wal_bytes": "ringpoll_worker_wal_bytes",
    "wal_damaged": "ringpoll_worker_wal_damaged_total",
    "wal_dropped": "ringpoll_worker_wal_dropped_results_total",
    "wal_sync_failures": "ringpoll_worker_wal_sync_failures_total",
    "spans_dropped": "ringpoll_worker_spans_dropped_total",
    "rss_bytes": "ringpoll_worker_resident_memory_bytes",
}
WRITER_LEAVES = {
    "rows_written": "ringpoll_writer_rows_total",
    "lag_ms": "ringpoll_writer_lag_seconds",
    "duplicates": "ringpoll_writer_duplicates_total",
    "rejects": "ringpoll_writer_rejects_total",
    "streams": "ringpoll_writer_streams",
    "pending_rows": "ringpoll_writer_pending_rows",
    "rollup_lag_ms": "ringpoll_rollup_lag_seconds",
    "spans_dropped": "ringpoll_writer_spans_dropped_total",
    "rss_bytes": "ringpoll_writer_resident_memory_bytes",
}


def expected_of(path, samples):
    """What the metrics say a number of the document should be; None: nothing covers it."""
    dotted = ".".join(path)
    match path:
        case ("workers", name, "loop_lag_counts"):
            return samples.counts("ringpoll_worker_timer_delay_seconds", worker=name)
        case ("coordinator", "loop_lag_counts"):
            return samples.counts("ringpoll_coordinator_timer_delay_seconds")
        case ("workers", name, "local_causes", cause):
            return samples.total("ringpoll_worker_local_causes_total", worker=name, cause=cause)
        case ("workers", name, *rest) if ".".join(rest) in WORKER_LEAVES:
            value = samples.total(WORKER_LEAVES[".".join(rest)], worker=name)
        case ("writer", leaf) if leaf in WRITER_LEAVES:
            value = samples.total(WRITER_LEAVES[leaf])
        case (group, label) if group in LABELLED_LEAVES:
            metric, name = LABELLED_LEAVES[group]
            return samples.total(metric, **{name: label})
        case (leaf,) if leaf in STATUS_LEAVES:
            return samples.total("ringpoll_polls_total", status=STATUS_LEAVES[leaf])
        case _ if dotted in CLUSTER_LEAVES:
            value = samples.total(CLUSTER_LEAVES[dotted])
        case _:
            return None
    return value * 1000 if "_ms" in dotted else value


def different_everywhere():
    """A view and counts in which each number differs from every other, so that no metric is taken for another."""
    number = iter(range(101, 10_000))

    def filled(struct, **fields):
        values = {
            field.name: next(number) if field.type is int else next(number) / 8
            for field in msgspec.structs.fields(struct)
            if field.type in {int, float}
        }
        return struct(**{"state": "running", **values, **fields} if struct is WriterHeartbeat else values | fields)

    def lag_counts():
        return [next(number) for _ in range(BUCKETS)]

    stats = [
        filled(
            WorkerStats,
            missed={"down": next(number), "overrun": next(number)},
            local_causes={"stall": next(number), "network": next(number)},
            loop_lag_counts=lag_counts(),
        )
        for _ in range(2)
    ]
    workers = [
        msgspec.structs.replace(
            worker(f"worker-{at}"),
            pid=next(number),
            projects=next(number),
            partitions=next(number),
            weight=next(number) / 8,
            slice=next(number),
            stats=each,
        )
        for at, each in enumerate(stats, 1)
    ]
    totals = filled(Totals, missed={"overload": next(number)}, local_causes={"resolver": next(number)})
    seen = view(
        workers=workers,
        totals=msgspec.structs.replace(totals, executed=totals.success + totals.failure + totals.unknown),
        writer=filled(WriterHeartbeat, incarnation="w"),
        epoch=next(number),
        projects=next(number),
        projects_loaded=next(number),
        projects_total=next(number),
        partitions_assigned=next(number),
        max_concurrent_http=next(number),
        workers_wanted=next(number),
        horizon_ms=next(number) * 1000,
    )
    counts = ShellCounts(
        uptime_s=next(number),
        refused={"control_malformed": next(number)},
        invalid_projects={7: "no URL", 8: "no URL"},
        loop_lag_ms=next(number) / 8,
        loop_lag_counts=lag_counts(),
        spans_dropped=next(number),
    )
    return seen, counts


def test_each_number_of_the_status_document_is_a_metric_or_a_named_exception():
    seen, counts = different_everywhere()
    samples = Samples(generate_latest(registry_of(seen, counts)).decode())
    excepted = set()
    checked = Counter()
    for path, number in number_leaves(document(seen, counts)):
        dotted = ".".join(("workers", "*", *path[2:]) if path[0] == "workers" else path)
        if dotted in EXCEPTIONS:
            excepted.add(dotted)
            continue
        expected = expected_of(path, samples)
        assert expected is not None, f"no metric has {dotted}; name it in EXCEPTIONS with the reason if none should"
        # The document is rounded: milliseconds to 3 digits (lag to 1, of rollups to 0), seconds to 1.
        assert number == (
            expected if isinstance(expected, list) else pytest.approx(expected, abs=0.5 if "rollup" in dotted else 0.06)
        ), dotted
        checked[dotted] += 1
    assert excepted == set(EXCEPTIONS), "an exception that is not in the document any more"
    assert checked["workers.*.slice"] == 2
    assert len(checked) > 45


def test_each_state_of_the_document_is_a_metric():
    seen = view(
        phase="stopping",
        writer_state="restarting",
        database_up=False,
        workers=[worker("worker-1", "hung", wal_state="full", queue_depth=501)],
    )
    samples = Samples(generate_latest(registry_of(seen)).decode())
    for name, labels in {
        "ringpoll_phase": {"phase": "stopping"},
        "ringpoll_health": {"state": "critical"},
        "ringpoll_writer_state": {"state": "restarting"},
        "ringpoll_worker_state": {"worker": "worker-1", "state": "hung"},
        "ringpoll_worker_wal_state": {"worker": "worker-1", "state": "full"},
    }.items():
        assert samples.total(name) == samples.total(name, **labels) == 1, name
    assert samples.total("ringpoll_database_up") == samples.total("ringpoll_ready") == 0


def test_metrics_can_be_read_by_prometheus():
    counts = [0] * BUCKETS
    counts[0], counts[12], counts[-1] = 5, 3, 2
    totals = Totals(
        executed=10,
        success=7,
        failure=2,
        unknown=1,
        missed={"down": 4},
        lateness_counts=counts,
        local_causes={"resolver": 1},
    )
    found = families(view(totals=totals), ShellCounts(refused={"control_malformed": 2}))
    assert all(name.startswith("ringpoll_") for name in found)
    polls = {sample.labels["status"]: sample.value for sample in found["ringpoll_polls"].samples}
    assert polls == {"success": 7, "failure": 2, "unknown": 1}
    (of_resolver,) = (each for each in found["ringpoll_local_causes"].samples if each.name.endswith("_total"))
    assert (of_resolver.labels, of_resolver.value) == ({"cause": "resolver"}, 1)
    samples = found["ringpoll_worker_local_causes"].samples
    of_workers = {(each.labels["worker"], each.labels["cause"]): each.value for each in samples}
    assert of_workers == {("worker-1", "network"): 2, ("worker-1", "stall"): 1}
    buckets = {sample.labels["le"]: sample.value for sample in found["ringpoll_poll_lateness_seconds"].samples}
    assert (buckets["0.0005"], buckets["0.1"], buckets["60.0"], buckets["+Inf"]) == (5, 8, 8, 10)
    slices = {sample.labels["worker"]: sample.value for sample in found["ringpoll_worker_slice"].samples}
    assert slices == {"worker-1": 250, "worker-2": 250}
    assert found["ringpoll_ready"].samples[0].value == 1
    assert found["ringpoll_accounted_to_timestamp_seconds"].samples[0].value == 1000
    assert all(each.documentation for each in found.values())


def test_every_missed_reason_is_there_before_the_first_tick_is_missed():
    """So that an alarm on its rate sees the first one."""
    found = families(view(totals=Totals(), workers=[worker()]))
    for name in ("ringpoll_missed_ticks", "ringpoll_worker_missed_ticks"):
        reasons = {each.labels["reason"]: each.value for each in found[name].samples}
        assert reasons == dict.fromkeys(("overload", "overrun", "handover", "down", "paused"), 0)


def test_metrics_of_a_cluster_that_has_just_begun():
    found = families(view(writer=None, workers=[], horizon_ms=None, totals=Totals(), phase="loading"))
    assert found["ringpoll_ready"].samples[0].value == 0
    assert "ringpoll_writer_rows" not in found


def test_prometheus_gets_openmetrics_and_others_the_plain_format():
    seen, counts = different_everywhere()
    registry = registry_of(seen, counts)
    encode, content_type = choose_encoder(PROMETHEUS_ACCEPT)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    strict = {each.name: each for each in openmetrics_families(encode(registry).decode())}
    encode, content_type = choose_encoder("*/*")
    assert content_type.startswith("text/plain")
    plain = {each.name for each in text_string_to_metric_families(encode(registry).decode())}
    assert set(strict) == plain


def worst_view():
    """More workers, reasons and causes than there can be."""
    many = {f"reason_{at:04}": 1 for at in range(LABELS_MAX * 3)}
    workers = [
        worker(f"worker-{at:04}", missed=many, local_causes=many, loop_lag_counts=[1] * BUCKETS)
        for at in range(WORKERS_MAX + 20)
    ]
    return view(workers=workers, totals=Totals(missed=many, local_causes=many)), ShellCounts(refused=many)


def test_the_number_of_series_is_bounded_and_what_is_left_out_is_counted():
    seen, counts = worst_view()
    samples = Samples(generate_latest(registry_of(seen, counts)).decode())
    of_workers = Counter(each.labels["worker"] for each in samples.samples if "worker" in each.labels)
    assert len(of_workers) == WORKERS_MAX
    assert set(of_workers.values()) == {max(of_workers.values())}
    assert max(of_workers.values()) <= 130
    assert len(samples.samples) - sum(of_workers.values()) <= 250
    assert samples.total("ringpoll_workers_unlisted") == 20
    assert samples.total("ringpoll_workers") == WORKERS_MAX + 20
    for name in ("ringpoll_refused_total", "ringpoll_local_causes_total"):
        assert samples.total(name) == LABELS_MAX * 3, "what is beyond the bound is counted, too"
        assert samples.total(name, **{"reason" if "refused" in name else "cause": OTHER}) == LABELS_MAX * 2


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (part of Prometheus)")
def test_promtool_finds_nothing_to_complain_of():
    seen, counts = different_everywhere()
    text = generate_latest(registry_of(seen, counts))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
