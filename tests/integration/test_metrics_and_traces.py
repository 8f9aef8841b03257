"""/metrics and traces of a real cluster: what dashboard and alerts ask for is there, and each part is in the traces."""

import asyncio
import contextlib
import shutil
import subprocess
import sys
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.core.test_tracing import Receiver, attributes_of
from tests.docs.test_monitoring import ALERTS, METRIC, queries
from tests.integration.harness import check_books, wait_until

# The first load is over, of this cluster's polls none came to grief on this machine, and single projects are the matter
# of tests/coordinator_shell/test_project_metrics.py.
NOT_HERE = {
    "ringpoll_projects_to_load",
    "ringpoll_local_causes_total",
    "ringpoll_project_up",
    "ringpoll_project_last_response_seconds",
    "ringpoll_project_certificate_expiry_timestamp_seconds",
}


@contextlib.contextmanager
def running_receiver():
    """In a loop and a thread of its own: these tests block theirs."""
    receiver = Receiver()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(receiver.start(), loop).result(10)
        yield receiver
    finally:
        asyncio.run_coroutine_threadsafe(receiver.runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def samples(cluster):
    text = cluster.get("/metrics")[1].decode()
    return [each for family in text_string_to_metric_families(text) for each in family.samples]


def total(cluster, name, **labels):
    return sum(each.value for each in samples(cluster) if each.name == name and labels.items() <= each.labels.items())


def test_what_dashboard_and_alerts_ask_for_is_in_the_metrics_of_a_running_cluster(make_cluster, sql, target):
    cluster = make_cluster(workers=2, options=("--project-metrics", "3"))
    tags = sql.insert_projects(target, 10)
    wait_until(lambda: total(cluster, "ringpoll_polls_total", status="success") >= 20, "polls")
    wait_until(lambda: total(cluster, "ringpoll_writer_rows_total") >= 20, "rows")
    wait_until(lambda: total(cluster, "ringpoll_project_metrics_read_seconds") > 0, "a reading of single projects")
    there = {each.name for each in samples(cluster)}
    asked = {name for _, expr in queries() for name in METRIC.findall(expr)}
    asked |= {name for rule in ALERTS.values() for name in METRIC.findall(rule["expr"])}
    assert asked - there - NOT_HERE == set()
    assert total(cluster, "ringpoll_ready") == 1
    assert total(cluster, "ringpoll_http_requests_total", route="/metrics", status="2xx") >= 3
    assert total(cluster, "ringpoll_worker_polls_total") >= 20
    if shutil.which("promtool") is not None:
        text = cluster.get("/metrics")[1]
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
    cluster.stop_cleanly()
    check_books(cluster, sql, target, tags)


def test_every_part_of_a_cluster_is_in_its_traces(make_cluster, sql, target):
    with running_receiver() as receiver:
        tags = sql.insert_projects(target, 10)
        cluster = make_cluster(workers=2, options=("--traces", receiver.url, "--trace-every", "1"))
        wait_until(
            lambda: len(receiver.named("poll")) >= 20 and receiver.named("writer.flush"), "spans of polls, flushes"
        )
        assert cluster.get("/api/v1/workers")[0] == 200
        cluster.cli("reload")
        cluster.stop_cleanly()
        assert {resource["ringpoll.role"] for resource, _ in receiver.spans} == {"coordinator", "worker", "writer"}
        assert len({resource["service.instance.id"] for resource, _ in receiver.spans}) == 4
        poll = attributes_of(receiver.named("poll")[0])
        assert poll["ringpoll.project.id"] in tags.values()
        assert (poll["ringpoll.status"], poll["http.response.status_code"]) == ("success", 200)
        assert {event.name for event in receiver.named("poll")[0].events} >= {"first_byte", "transfer"}
        assert sum(attributes_of(span)["ringpoll.flush.rows"] for span in receiver.named("writer.flush")) >= 20
        (load,) = receiver.named("projects.load")
        assert attributes_of(load)["ringpoll.projects.added"] == 10
        assert attributes_of(receiver.named("projects.reload")[0])["ringpoll.projects.added"] == 0
        assert receiver.named("GET /api/v1/workers")
        assert not [span for _, span in receiver.spans if span.name.endswith(("/status", "/readyz"))]
        assert target.url("/").split("/")[2] not in str(receiver.spans), "URLs may hold secrets"
    check_books(cluster, sql, target, tags)


@pytest.mark.parametrize("how", ["no receiver", "no library"])
def test_nothing_minds_that_traces_go_nowhere(make_cluster, sql, target, data_dir, how):
    environ = {}
    if how == "no library":
        hidden = data_dir.parent / "hidden" / "opentelemetry"
        hidden.mkdir(parents=True)
        (hidden / "__init__.py").write_text("raise ImportError('not here', name='opentelemetry')\n")
        environ["PYTHONPATH"] = f"{hidden.parent}:{':'.join(sys.path)}"
    tags = sql.insert_projects(target, 10)
    cluster = make_cluster(workers=2, options=("--traces", "http://127.0.0.1:9", "--trace-every", "1"), environ=environ)
    wait_until(lambda: total(cluster, "ringpoll_polls_total", status="success") >= 30, "polls")
    if how == "no library":
        said = [line for line in cluster.log_lines() if "no traces are sent to --traces" in str(line)]
        assert len(said) == 1
        assert total(cluster, "ringpoll_worker_spans_dropped_total") == 0
    else:
        wait_until(lambda: total(cluster, "ringpoll_worker_spans_dropped_total") > 0, "dropped spans to be counted")
        wait_until(lambda: total(cluster, "ringpoll_writer_spans_dropped_total") > 0, "those of the writer")
    cluster.stop_cleanly()
    check_books(cluster, sql, target, tags)
