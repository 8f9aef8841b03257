"""The runbook has whatever a cluster can complain about: codes, reasons, metrics, log lines."""

import inspect
import re
from typing import get_args

import pytest

from cluster.messages.control import WorkerStats, WriterHeartbeat
from cluster.messages.results import MissedReason
from coordinator.events import WorkerView
from coordinator.status import ShellCounts, document, not_ready
from tests.docs.documents import metric_names, row_of, view
from tests.docs.repository_facts import error_codes, read, warnings_logged
from worker.probe.errors import ERROR_CODES, LOCAL_CAUSES, MEANINGS

RUNBOOK = read("deploy/RUNBOOK.md")
ONE_LINE = " ".join(RUNBOOK.split())
OPERATION, _, POLLS = RUNBOOK.partition("Of polls (`poll_results.error_code`):")


def test_the_codes_are_found_in_the_source():
    assert {"invalid_request", "not_running", "busy", "internal", "failed", "timeout"} <= error_codes()


@pytest.mark.parametrize("code", sorted(error_codes()))
def test_every_error_code_is_explained(code):
    assert row_of(OPERATION.partition("## Error codes")[2], f"`{code}`")


@pytest.mark.parametrize("code", ERROR_CODES)
def test_every_error_code_of_a_poll_is_explained(code):
    assert row_of(POLLS, f"`{code}`")[1].startswith(MEANINGS[code])


@pytest.mark.parametrize("reason", get_args(MissedReason))
def test_every_missed_reason_is_explained(reason):
    assert row_of(RUNBOOK.partition("## Missed reasons")[2].partition("## ")[0], f"`{reason}`")


@pytest.mark.parametrize("cause", LOCAL_CAUSES)
def test_every_local_cause_is_explained(cause):
    assert row_of(RUNBOOK.partition("Local causes (")[2].partition("## ")[0], f"`{cause}`")


NOT_READY = [
    view(phase="loading", projects_loaded=3, projects_total=9),
    view(phase="gathering"),
    view(phase="stopping"),
    view(database_up=False),
    view(writer_state="restarting"),
    view(writer_state="waiting_for_database"),
    view(writer=WriterHeartbeat("w", 1, "running", lag_ms=12_000.0)),
    view(workers_wanted=2),
    view(partitions_assigned=7),
    view(workers=[WorkerView("worker-1", 1, "i", "running", 1, 4096, 1.0, 500, WorkerStats(wal_state="full"))]),
]


def test_every_reason_of_readyz_is_explained():
    reasons = [reason for each in NOT_READY for reason in not_ready(each)]
    assert len(reasons) == len(NOT_READY)
    assert inspect.getsource(not_ready).count("reasons.append(") == len(NOT_READY), "a reason is not covered here"
    for reason in reasons:
        assert row_of(RUNBOOK.partition("## Reasons of /readyz")[2], f"`{re.sub('[0-9]+', 'N', reason)}`")


@pytest.mark.parametrize("name", sorted(metric_names()))
def test_every_metric_is_explained(name):
    assert row_of(RUNBOOK.partition("## Metrics")[2].partition("## ")[0], f"`{name}`")


def test_every_count_of_refusals_is_explained():
    source = read("coordinator/service.py")
    reasons = re.findall(r'^ +"([a-z_]+)": self\._', source.partition("refused={")[2].partition("}")[0], re.MULTILINE)
    assert len(reasons) > 3
    assert [each for each in reasons if f"`{each}`" not in RUNBOOK] == []


@pytest.mark.parametrize(("module", "fragment"), sorted(warnings_logged()))
def test_every_warning_and_error_that_is_logged_is_explained(module, fragment):
    assert fragment in ONE_LINE, f"{module} logs {fragment!r}"


def test_log_lines_are_found_in_every_package():
    assert {module.split("/")[0] for module, _ in warnings_logged()} == {"cluster", "coordinator", "worker", "writer"}


def test_what_the_runbook_reads_in_the_status_document_is_there():
    made = document(view(), ShellCounts())
    assert {"health", "active_http", "queue_depth", "lateness_ms", "invalid_project_reasons"} <= set(made)
    assert {"lag_ms", "pending_rows", "state"} <= set(made["writer"])
    assert {"loop_lag_ms", "unacked_results", "pid"} <= set(made["workers"][0])
