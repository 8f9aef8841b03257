"""What commands show to people: tables made with rich out of plain documents.  No command and no query is in here."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cluster.amounts import duration, size
from cluster.audit import Account, AuditReport, OnProgress
from cluster.bench.rig import ROLES, total
from cluster.bench.throughput import OnPhase, ThroughputFigures
from cluster.capacity import TIMEOUT_S, CapacityPlan
from cluster.wal.listing import StreamInfo

PIPE_COLUMNS = 180
AUDIT_PROJECTS_SHOWN = 20
_HEALTH_STYLES = {"healthy": "bold green", "warning": "bold yellow", "critical": "bold red"}
_STATE_STYLES = {
    "running": "green",
    "up": "green",
    "starting": "cyan",
    "draining": "cyan",
    "restarting": "yellow",
    "waiting_for_database": "yellow",
    "hung": "red",
    "down": "red",
}
_RESULT_STYLES = {"success": "green", "failure": "red", "unknown": "yellow"}


def show(view: RenderableType) -> None:
    _console().print(view)


def live(view: RenderableType) -> Live:
    return Live(view, console=_console(), screen=False, auto_refresh=False)


def _console() -> Console:
    """Into a pipe nothing is folded to a terminal's width."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def status_view(status: dict[str, Any]) -> RenderableType:
    """The status document as a page."""
    health = str(status.get("health", "unknown"))
    missed = int(status.get("missed") or 0)
    head = Table.grid(padding=(0, 3))
    head.add_row(
        _pair("health", Text(health, _HEALTH_STYLES.get(health, "bold"))),
        _pair("projects", _count(status.get("active_projects"))),
        _pair("up", duration(status.get("uptime_s"))),
        _pair("epoch", str(status.get("epoch", "-"))),
    )
    head.add_row(
        _pair("polled", _count(status.get("total_requests"))),
        _pair("ok", Text(_count(status.get("success_requests")), "green")),
        _pair("failed", Text(_count(status.get("failed_requests")), "red" if status.get("failed_requests") else "")),
        _pair("unknown", _unknown(status)),
    )
    head.add_row(
        _pair("in flight", f"{_count(status.get('active_http'))} of {_count(status.get('max_concurrent_http'))}"),
        _pair("queue", _count(status.get("queue_depth"))),
        _pair("missed", Text(_count(missed), "bold red" if missed else "green")),
        Text(""),
    )
    return Group(head, _workers_table(status.get("workers") or []), _database_line(status))


def _unknown(status: dict[str, Any]) -> Text:
    """How many, and what of our own machines they came to grief on, the most frequent first."""
    causes = sorted((status.get("local_causes") or {}).items(), key=lambda each: (-each[1], each[0]))
    count = Text(_count(status.get("unknown_requests")), "yellow" if status.get("unknown_requests") else "")
    return count.append(f" ({', '.join(f'{cause} {_count(polls)}' for cause, polls in causes)})") if causes else count


def _workers_table(workers: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("worker", "state"):
        table.add_column(name)
    for name in ("pid", "projects", "in flight", "queue", "polled", "late p50", "p99", "max ms", "loop lag", "WAL"):
        table.add_column(name, justify="right")
    for each in workers:
        lateness = each.get("lateness_ms") or {}
        table.add_row(
            str(each.get("name", "")),
            _state(each.get("state")),
            str(each.get("pid", "")),
            _count(each.get("projects")),
            f"{_count(each.get('active_http'))}/{_count(each.get('slice'))}",
            _count(each.get("queue_depth")),
            _count(each.get("executed")),
            *(_milliseconds(lateness.get(which)) for which in ("p50", "p99", "max")),
            _milliseconds(each.get("loop_lag_ms")),
            size(each.get("wal_bytes")),
        )
    if not workers:
        table.add_row(Text("none", "yellow"), *[""] * 11)
    return table


def _database_line(status: dict[str, Any]) -> Text:
    writer = status.get("writer") or {}
    database = status.get("database") or {}
    line = Text.assemble("writer ", _state(writer.get("state")), f"  {_count(writer.get('rows_written'))} rows")
    line.append(f", {_count(writer.get('rows_per_s'))}/s, lag {_milliseconds(writer.get('lag_ms'))} ms")
    for name in ("duplicates", "rejects"):
        if writer.get(name):
            line.append(f", {_count(writer[name])} {name}", "yellow")
    return line.append("   database ").append_text(_state(database.get("state")))


def results_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("scheduled")
    table.add_column("late ms", justify="right")
    table.add_column("trigger")
    table.add_column("status")
    table.add_column("code", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("attempts", justify="right")
    table.add_column("worker")
    table.add_column("error", overflow="fold")
    for row in rows:
        late_ms = (row["polled_at"] - row["scheduled_at"]).total_seconds() * 1_000
        error = ": ".join(str(row[name]) for name in ("error_code", "error_message") if row[name])
        table.add_row(
            row["scheduled_at"].astimezone().isoformat(sep=" ", timespec="milliseconds"),
            f"{late_ms:.1f}",
            str(row["trigger"]),
            Text(str(row["status"]), _RESULT_STYLES.get(str(row["status"]), "")),
            "" if row["status_code"] is None else str(row["status_code"]),
            "" if row["response_time_ms"] is None else f"{row['response_time_ms']:.1f}",
            str(row["attempts"] or ""),
            str(row["worker"]),
            Text(error),
        )
    return table


def changes_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("changed")
    table.add_column("project", justify="right")
    table.add_column("", overflow="fold")
    table.add_column("state")
    table.add_column("polls", justify="right")
    table.add_column("code", justify="right")
    table.add_column("error", overflow="fold")
    for row in rows:
        error = ": ".join(str(row[name]) for name in ("error_code", "error_message") if row[name])
        table.add_row(
            row["changed_at"].astimezone().isoformat(sep=" ", timespec="milliseconds"),
            str(row["project_id"]),
            Text(row["name"] or row["url"] or "deleted"),
            Text(row["state"], "green" if row["state"] == "up" else "red"),
            str(row["polls"]),
            "" if row["status_code"] is None else str(row["status_code"]),
            Text(error),
        )
    return table


def plain_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Table:
    """The named values of each row; instants as ISO 8601 text, in local time."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name.replace("_", " ").removesuffix(" at"), overflow="fold")
    for row in rows:
        table.add_row(*(_plain(name, row[name]) for name in columns))
    return table


def _plain(name: str, value: Any) -> Text:
    if value is None:
        return Text("never", "dim")
    if name.endswith("_at"):
        return Text(datetime.fromisoformat(value).astimezone().isoformat(sep=" ", timespec="minutes"))
    return Text(str(value))


def projects_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", justify="right")
    table.add_column("name", overflow="fold")
    table.add_column("url", overflow="fold")
    table.add_column("every")
    table.add_column("expects")
    table.add_column("enabled")
    for row in rows:
        table.add_row(
            str(row["id"]),
            Text(row["name"]),
            Text(f"{row['method']} {row['url']}" if row["method"] != "GET" else row["url"]),
            f"{row['interval']} {row['unit'] if row['interval'] != 1 else row['unit'].removesuffix('s')}",
            row["expected_status"],
            Text("yes", "green") if row["enabled"] else Text("no", "yellow"),
        )
    return table


def wal_table(streams: Sequence[StreamInfo]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("stream")
    table.add_column("worker")
    table.add_column("state")
    for name in ("batches", "records", "waiting", "on disk", "damaged"):
        table.add_column(name, justify="right")
    table.add_column("begun")
    for stream in streams:
        if stream.state == "newer version":
            state = _state(stream.state)
            table.add_row(stream.stream_id, Text(stream.worker), state, "?", "?", "?", size(stream.bytes), "?", "")
            continue
        table.add_row(
            stream.stream_id,
            Text(stream.worker),
            _state(stream.state),
            f"{stream.first_seq}-{stream.last_seq}" if stream.last_seq else "none",
            _count(stream.records),
            _count(stream.records_unacked),
            size(stream.bytes),
            Text(_count(stream.damaged), "red" if stream.damaged else ""),
            _instant(stream.oldest_at_ms) if stream.oldest_at_ms else "",
        )
    return table


@contextlib.contextmanager
def audit_progress() -> Iterator[OnProgress | None]:
    """A progress bar on standard error when that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("auditing projects", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def audit_view(report: AuditReport) -> RenderableType:
    if report.horizon_ms is None or (report.note is not None and not report.projects_audited):
        return Text(report.note or "", "yellow")
    head = Text.assemble(
        ("the accounting law holds", "bold green") if report.holds else ("the accounting law is broken", "bold red"),
        f": {report.projects_audited:,} projects",
        f", {report.projects_violating:,} of them with ticks unexplained or doubled" if not report.holds else "",
        f", up to {_instant(report.horizon_ms)}",
        "" if report.since_ms is None else f", from {_instant(report.since_ms)}",
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("project")
    for name in ("due", "polled", "missed", "rejected", "unexplained", "doubled", "stray"):
        table.add_column(name, justify="right")
    table.add_column("missed because of")
    violating = [each for each in report.projects if not each.account.holds and each.invalid is None]
    for each in violating[:AUDIT_PROJECTS_SHOWN]:
        _add_account(table, Text(f"{each.project_id} {each.name or ''}".strip()), each.account)
    if len(violating) + report.projects_left_out > AUDIT_PROJECTS_SHOWN:
        table.add_row(f"and {report.projects_violating - AUDIT_PROJECTS_SHOWN:,} more; --json lists them")
    _add_account(table, Text("all", "bold"), report.total)
    parts: list[RenderableType] = [head, table]
    if report.note is not None:
        parts.append(Text(report.note, "yellow"))
    invalid = [each for each in report.projects if each.invalid is not None]
    parts += [
        Text(
            f"project {each.project_id} can't be polled ({each.account.unexplained:,} ticks): {each.invalid}", "yellow"
        )
        for each in invalid[:AUDIT_PROJECTS_SHOWN]
    ]
    if report.projects_invalid > len(invalid[:AUDIT_PROJECTS_SHOWN]):
        parts.append(f"{report.projects_invalid:,} projects can't be polled in all")
    if report.total.rejected:
        parts.append("rejected: the database refused these results; table ingest_reject has them, and why")
    if report.lateness is not None:
        late = report.lateness
        parts.append(f"lateness p50 {late.p50_ms:.1f} ms, p99 {late.p99_ms:.1f} ms, max {late.max_ms:.1f} ms")
    return Group(*parts)


def _add_account(table: Table, name: Text, account: Account) -> None:
    wrong = "bold red"
    table.add_row(
        name,
        f"{account.due:,}",
        f"{account.polled:,}",
        f"{sum(account.missed.values()):,}",
        Text(f"{account.rejected:,}", "yellow" if account.rejected else ""),
        Text(f"{account.unexplained:,}", wrong if account.unexplained else ""),
        Text(f"{account.doubled:,}", wrong if account.doubled else ""),
        f"{account.stray:,}",
        ", ".join(f"{reason} {ticks:,}" for reason, ticks in sorted(account.missed.items())),
    )


@contextlib.contextmanager
def bench_progress() -> Iterator[OnPhase]:
    """The phases of a measurement on standard error, when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        yield lambda phase, done, of: progress.update(task, description=phase, completed=done, total=of or None)


def bench_view(runs: Sequence[ThroughputFigures]) -> RenderableType:
    first = runs[0]
    head = f"{first.workers} workers, interval {first.interval_s} s, measured over {first.seconds:.0f} s"
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("projects", no_wrap=True)
    for run in runs:
        table.add_column(f"{run.projects:,}", justify="right")

    def row(name: str, *values: str | Text) -> None:
        table.add_row(name, *values)

    row("polls/s due", *(f"{run.due_per_s:,.0f}" for run in runs))
    row("polls/s saved", *(f"{run.saved_per_s:,.0f}" for run in runs))
    row("holds", *(Text("yes", "green") if run.holds else Text("no", "bold red") for run in runs))
    row("missed", *(Text(f"{total(run.missed):,}", "bold red" if run.missed else "green") for run in runs))
    row("not success", *(f"{run.not_success:,}" for run in runs))
    row("duplicates", *(f"{run.duplicates:,}" for run in runs))
    row("rejects", *(f"{run.rejects:,}" for run in runs))
    row("audit", *(Text("clean", "green") if run.audit_holds else Text("VIOLATED", "bold red") for run in runs))
    table.add_section()
    for which in ("p50", "p99", "p99.9", "max"):
        row(f"lateness {which} ms", *(_milliseconds(run.lateness_ms[which]) for run in runs))
    row("response p50 ms", *(f"{run.response_p50_ms:,.2f}" for run in runs))
    row("queue max", *(_count(run.queue_depth["max"]) for run in runs))
    row("loop lag max ms", *(_milliseconds(run.loop_lag_ms["max"]) for run in runs))
    table.add_section()
    row("CPU µs per poll", *(f"{run.cpu_us_per_poll_total:,.1f}" for run in runs))
    for role in ROLES:
        row(f"  {role}", *(_milliseconds(run.cpu_us_per_poll.get(role)) for run in runs))
    row("  (the target)", *(_milliseconds(run.cpu_us_per_poll.get("target")) for run in runs))
    row("machine CPU %", *(_count(run.machine_cpu_percent) for run in runs))
    table.add_section()
    row("RSS MiB", *(_count(sum(run.rss_mib.get(role, 0.0) for role in ROLES)) for run in runs))
    for role in ROLES:
        row(f"  {role}", *(_count(run.rss_mib.get(role)) for run in runs))
    table.add_section()
    row("bytes per row", *(_count(run.row_bytes) for run in runs))
    parts: list[RenderableType] = [head, table]
    for run in runs:
        reasons = ", ".join(f"{reason} {ticks:,}" for reason, ticks in sorted(run.missed.items()))
        said = [(f"missed: {reasons}", "red")] if reasons else []
        said += [(line, "yellow") for line in (*run.warnings, *run.incidents)]
        parts += [Text(f"{run.projects:,} projects: {line}", style) for line, style in said]
    return Group(*parts)


def plan_view(plan: CapacityPlan) -> RenderableType:
    here = plan.machine
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("needed", justify="right", no_wrap=True)
    table.add_column("here", justify="right", no_wrap=True)
    table.add_column("because", overflow="fold")
    of_roles = {role: f"{cores:.2f}" for role, cores in plan.cpu_cores.items()}
    why_slots = (
        f"{plan.headroom} times that: {plan.hanging_share:.1%} of the polls may hang until a time-out of "
        f"{TIMEOUT_S:g} s; nothing else in the way, they carry {plan.projects_at_most:,} projects"
    )
    rows = (
        ("polls/s", f"{plan.polls_per_s:,.1f}", "", f"{plan.projects:,} projects, by their intervals"),
        ("in flight, mean", f"{plan.in_flight_mean:,.1f}", "", "polls/s by response time (Little's law)"),
        ("slots", f"{plan.max_concurrent_http:,}", "", why_slots),
        ("workers", f"{plan.workers}", "", "none above half of a core"),
        (
            "CPU, cores",
            f"{plan.cpu_cores_total:.2f}",
            f"{here.cores}",
            ", ".join(f"{role} {cores}" for role, cores in of_roles.items()),
        ),
        ("memory", size(plan.memory_bytes_total), size(here.memory_bytes), "per process and project, as measured"),
        ("connections", f"{plan.connections:,}", "", "all slots, and those kept for the next poll"),
        (
            "files per worker",
            f"{plan.descriptors_per_worker:,}",
            "" if here.descriptors is None else f"{here.descriptors:,}",
            "of one that has to take over from all others",
        ),
        ("rows per day", f"{plan.rows_per_day:,}", "", "one for each poll"),
        ("table per day", size(plan.table_bytes_per_day), "", "with its index"),
        (
            f"table, {plan.retention_days} days",
            size(plan.table_bytes),
            "" if here.disk_free_bytes is None else size(here.disk_free_bytes),
            "--retention-days",
        ),
        ("WAL", size(plan.wal_bytes), "", "10 minutes; more while the database is away"),
    )
    for row in rows:
        table.add_row(*row)
    return Group(
        table,
        Text(
            f"cluster up --workers {plan.workers} --max-concurrent-http {plan.max_concurrent_http} "
            f"--retention-days {plan.retention_days}",
            "bold",
        ),
        *(Text(f"Warning: {line}", "yellow") for line in plan.warnings),
    )


def _instant(instant_ms: int) -> str:
    return datetime.fromtimestamp(instant_ms / 1_000, UTC).astimezone().isoformat(sep=" ", timespec="seconds")


def _pair(name: str, value: str | Text) -> Text:
    return Text.assemble((name + " ", "dim"), value)


def _state(state: object) -> Text:
    text = str(state or "unknown")
    return Text(text, _STATE_STYLES.get(text, ""))


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "-"


def _milliseconds(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, int | float) else "-"
