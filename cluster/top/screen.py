"""Draws ``cluster top``: a view and what is known as exactly as many lines as the terminal has, none wider than it.

Decides nothing: what is listed, in which order, and which columns a width has room for, is ``cluster.top.state``'s
part.  Colours and their absence (NO_COLOR) are rich's.
"""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from cluster.amounts import duration, size
from cluster.masking import masked_url
from cluster.top.feed import Detail, TopFacts
from cluster.top.state import (
    GAP,
    PANES,
    Column,
    Drill,
    Row,
    Value,
    ViewState,
    arranged,
    change_rows,
    columns_for,
    of_worker,
    printable,
    project_rows,
    result_rows,
    selected_index,
    window,
    worker_rows,
)

WIDTH_MIN = 20
HEIGHT_MIN = 6
_LOOKS = {"failure": "red", "warning": "yellow", "success": "green", "": ""}
_HEALTH = {"healthy": "bold green", "warning": "bold yellow", "critical": "bold red"}

HELP = (
    ("1 2 3  Tab  left right", "workers, projects, changes of state"),
    ("up down  j k  PgUp PgDn  Home End", "move"),
    ("Enter", "look into a worker or a project"),
    ("Esc  Backspace", "back; on a list: without the filter"),
    ("/", "filter: all words typed, in any case; Enter to take it, Esc to leave it"),
    ("f", "projects: only failing ones, or all"),
    ("s  S", "sort by the next, the previous column"),
    ("r", "turn the order round"),
    ("p  Space", "hold what is shown, go on"),
    ("?", "this help"),
    ("q  Ctrl-C", "leave"),
)


def rows_in_view(view: ViewState, known: TopFacts) -> list[Row]:
    """Of the list that keys move in: sorted and filtered."""
    drill = view.drills[-1] if view.drills else None
    if drill is None:
        if view.pane == "workers":
            return arranged(worker_rows(known.status or {}), view.list)
        if view.pane == "projects":
            return arranged(project_rows(known.projects), view.list, failing_only=view.failing_only)
        return arranged(change_rows(known.changes), view.list)
    if drill.kind == "worker":
        return arranged(of_worker(project_rows(known.projects), drill.key), view.list, failing_only=view.failing_only)
    detail = _detail_of(view, known)
    return arranged(result_rows(detail.results), view.list) if detail is not None else []


def page_rows(view: ViewState, known: TopFacts, width: int, height: int) -> int:
    """How many rows the list has room for."""
    return max(0, height - len(_above(view, known, width, 0.0)) - 2)


def draw(view: ViewState, known: TopFacts, *, width: int, height: int, now: float) -> list[Text]:
    """``now``: monotonic, for how long nothing was heard."""
    if width < WIDTH_MIN or height < HEIGHT_MIN:
        return _fitted([Text("too small: make it larger, or q")], width, height)
    if view.is_help:
        return _fitted(_help(width), width, height)
    lines = _above(view, known, width, now)
    rows = rows_in_view(view, known)
    space = max(0, height - len(lines) - 2)
    name = view.list_name
    columns = columns_for(name, width)
    lines.append(_titles(columns, view))
    at = selected_index(view.list, rows)
    for number in window(len(rows), at, space):
        lines.append(_line(columns, rows[number], is_selected=number == at))
    if not rows:
        lines.append(Text(_nothing(view, known), "dim"))
    lines = _fitted(lines, width, height - 1)
    return [*lines, _foot(view, len(rows), at, width)]


def ansi_of(console: Console, lines: Sequence[Text]) -> list[str]:
    """As the terminal is sent them."""
    with console.capture() as capture:
        for line in lines:
            console.print(line, no_wrap=True, crop=True, overflow="crop")
    return capture.get().split("\n")[: len(lines)]


# ---- what stands above the list -------------------------------------------------------------------------------------


def _above(view: ViewState, known: TopFacts, width: int, now: float) -> list[Text]:
    lines = [*_head(known, width, now), _tabs(view, known)]
    if view.drills:
        lines += _drilled(view.drills[-1], view, known, width)
    return lines


def _head(known: TopFacts, width: int, now: float) -> list[Text]:
    status = known.status or {}
    health = str(status.get("health", "unknown"))
    late = status.get("lateness_ms") or {}
    writer, database = status.get("writer") or {}, status.get("database") or {}
    first = _parts(
        width,
        Text(health, _HEALTH.get(health, "bold")),
        _pair("projects", _count(status.get("active_projects"))),
        _pair("polls/s", _one(known.polls_per_s)),
        _pair("in flight", f"{_count(status.get('active_http'))}/{_count(status.get('max_concurrent_http'))}"),
        _pair("queue", _count(status.get("queue_depth"))),
        _pair("late p50", f"{_one(late.get('p50'))} p99 {_one(late.get('p99'))} ms"),
        _pair("up", duration(status.get("uptime_s"))),
        _pair("epoch", str(status.get("epoch", "-"))),
    )
    second = _parts(
        width,
        _pair("ok", _count(status.get("success_requests")), "green"),
        _pair("failed", _count(status.get("failed_requests")), "red" if status.get("failed_requests") else ""),
        _pair("missed", _count(status.get("missed")), "red" if status.get("missed") else ""),
        _pair("unknown", _count(status.get("unknown_requests")), "yellow" if status.get("unknown_requests") else ""),
        _pair("writer", f"{writer.get('state', '-')} {_count(writer.get('rows_per_s'))} rows/s"),
        _pair("lag", f"{_one(writer.get('lag_ms'))} ms"),
        _pair("database", str(database.get("state", "-")), "red" if database.get("state") == "down" else ""),
        _pair("invalid", _count(status.get("invalid_projects")), "red" if status.get("invalid_projects") else ""),
    )
    lines = [first, second]
    if known.status_why:
        heard = f"; heard of it {duration(now - known.status_at)} ago" if known.status_at else ""
        lines.append(Text(f"the cluster is away, asking again: {printable(known.status_why)}{heard}", "bold red"))
    if known.database_why:
        lines.append(Text(f"the database is not there, asking again: {printable(known.database_why)}", "yellow"))
    return lines


def _tabs(view: ViewState, known: TopFacts) -> Text:
    counts = {
        "workers": len((known.status or {}).get("workers") or []),
        "projects": len(known.projects),
        "changes": len(known.changes),
    }
    line = Text()
    for number, pane in enumerate(PANES, start=1):
        style = "reverse" if pane == view.pane else ""
        line.append(f" {number} {pane} {counts[pane]:,} ", style).append(" ")
    if known.projects_seen < known.projects_enabled and view.pane == "projects":
        line.append(f" slowest and failing; looked at {known.projects_seen:,} of {known.projects_enabled:,}", "dim")
    if view.is_paused:
        line.append(" held, p goes on ", "bold reverse")
    return line


def _drilled(drill: Drill, view: ViewState, known: TopFacts, width: int) -> list[Text]:
    if drill.kind == "worker":
        return _worker_lines(drill.key, known, width)
    return _project_lines(_detail_of(view, known), drill, width)


def _worker_lines(name: str, known: TopFacts, width: int) -> list[Text]:
    worker = next((each for each in (known.status or {}).get("workers") or [] if each.get("name") == name), None)
    if worker is None:
        return [Text(f"worker {printable(name)} is gone", "bold yellow")]
    late = worker.get("lateness_ms") or {}
    causes = ", ".join(f"{cause} {_count(polls)}" for cause, polls in (worker.get("local_causes") or {}).items())
    return [
        _parts(
            width,
            _pair("worker", name, "bold"),
            Text(str(worker.get("state", "-"))),
            _pair("pid", str(worker.get("pid", "-"))),
            _pair("projects", _count(worker.get("projects"))),
            _pair("partitions", _count(worker.get("partitions"))),
            _pair("polls/s", _one(worker.get("polls_per_s"))),
            _pair("polled", _count(worker.get("executed"))),
            _pair("missed", _count(worker.get("missed"))),
        ),
        _parts(
            width,
            _pair("in flight", f"{_count(worker.get('active_http'))}/{_count(worker.get('slice'))}"),
            _pair("queue", _count(worker.get("queue_depth"))),
            _pair("late", " ".join(f"{each} {_one(late.get(each))}" for each in ("p50", "p99", "max")) + " ms"),
            _pair("loop lag", f"{_one(worker.get('loop_lag_ms'))} ms"),
            _pair("memory", size(worker.get("rss_bytes"))),
            _pair("unknown", causes or "none"),
        ),
        _parts(
            width,
            _pair("WAL", f"{worker.get('wal_state', '-')} {size(worker.get('wal_bytes'))}"),
            _pair("unacked", _count(worker.get("unacked_results"))),
            _pair("damaged", _count(worker.get("wal_damaged"))),
            _pair("dropped", _count(worker.get("wal_dropped"))),
            _pair("failed fsyncs", _count(worker.get("wal_sync_failures"))),
        ),
        Text("its projects, among those looked at (whose newest result it has):", "dim"),
    ]


def _project_lines(detail: Detail | None, drill: Drill, width: int) -> list[Text]:
    if detail is None:
        return [Text(f"project {drill.key}: asking the database", "dim")]
    project = detail.project
    if project is None:
        return [Text(f"there is no project {drill.key} any more", "bold yellow")]
    state = "paused" if not project["enabled"] else project["state"] or ("up" if detail.results else "pending")
    style = {"up": "green", "down": "bold red"}.get(state, "yellow")
    name = printable(project["name"] or "")
    times = [each["response_time_ms"] for each in detail.results if each["response_time_ms"] is not None]
    ok = sum(each["status"] == "success" for each in detail.results)
    lines = [
        _parts(
            width,
            _pair("project", drill.key, "bold"),
            Text(state, style),
            *([_pair("since", str(project["since"])[:19])] if project["since"] else []),
            *([Text(name, "bold")] if name else []),
            _pair("every", f"{project['interval']} {project['unit']}"),
            _pair("expects", printable(project["expected_status"])),
        ),
        Text(f"{printable(project['method'])} {printable(masked_url(project['url']))}"),
        _parts(
            width,
            _pair("last", f"{len(detail.results)} results: {ok} ok, mean {_one(_mean(times))} ms, max "
                          f"{_one(max(times, default=None))} ms"),
        ),
    ]  # fmt: skip
    if detail.changes:
        told = ", ".join(f"{each['state']} {str(each['changed_at'])[:19]}" for each in detail.changes)
        lines.append(_pair("changes", told))
    if detail.missed:
        told = ", ".join(
            f"{each['ticks']} {each['reason']} from {str(each['first_tick'])[:19]}" for each in detail.missed
        )
        lines.append(_pair("missed", told, "red"))
    return lines


def _detail_of(view: ViewState, known: TopFacts) -> Detail | None:
    detail = known.detail
    return detail if detail is not None and detail.project_id == view.project_id else None


# ---- the list -------------------------------------------------------------------------------------------------------


def _titles(columns: Sequence[tuple[Column, int]], view: ViewState) -> Text:
    line = Text(style="bold")
    for number, (column, width) in enumerate(columns):
        is_sorted = column.key == view.list.sort
        title = column.title + (" v" if view.list.descending else " ^") if is_sorted else column.title
        shown = title if cell_len(title) <= width else title[:width]
        line.append(" " * GAP if number else "")
        padded = shown.rjust(width) if column.is_number else set_cell_size(shown, width)
        line.append(padded, "underline" if is_sorted else "")
    return line


def _line(columns: Sequence[tuple[Column, int]], row: Row, *, is_selected: bool) -> Text:
    line = Text(style="reverse" if is_selected else "")
    for number, (column, width) in enumerate(columns):
        shown = _shown(column, row.values.get(column.key))
        line.append(" " * GAP if number else "")
        is_telling = column.key in {"state", "status", "status_code", "error"}
        line.append(_cell(shown, width, is_number=column.is_number), _LOOKS[row.look] if is_telling else "")
    return line


def _cell(shown: str, width: int, *, is_number: bool) -> str:
    if is_number and cell_len(shown) <= width:
        return shown.rjust(width)
    return set_cell_size(shown, width)


def _shown(column: Column, value: Value) -> str:
    if value is None:
        return "-"
    match column.kind:
        case "count":
            return _count(value)
        case "ms":
            return _one(value)
        case "size":
            return size(value)
        case "clock":
            return str(value)[11:19]
        case _:
            return str(value)


def _nothing(view: ViewState, known: TopFacts) -> str:
    if view.list.filter or (view.failing_only and view.list_name in {"projects", "worker"}):
        return "nothing passes the filter"
    if view.list_name == "workers":
        return "no workers" if known.status is not None else "not asked yet"
    return "the database was not reached yet" if known.database_why else "nothing yet"


def _foot(view: ViewState, count: int, at: int | None, width: int) -> Text:
    if view.typing is not None:
        tail = view.typing[-(width - 12) :] if width > 12 else ""
        return Text.assemble(("filter: ", "bold"), tail, ("_", "blink"))
    position = f"{0 if at is None else at + 1}/{count}"
    parts = [Text(position)]
    if view.list.filter:
        parts.append(_pair("filter", view.list.filter, "bold"))
    if view.failing_only and view.list_name in {"projects", "worker"}:
        parts.append(Text("failing only", "bold"))
    back = "Esc back  " if view.drills else ""
    parts.append(Text(f"{back}Enter look into  / filter  s sort  r reverse  p hold  ? help  q leave", "dim"))
    return _parts(width, *parts)


def _help(width: int) -> list[Text]:
    keys_width = min(max(len(keys) for keys, _ in HELP) + 2, width // 2)
    lines = [Text("cluster top: keys", "bold"), Text()]
    for keys, text in HELP:
        lines.append(Text.assemble((set_cell_size(keys, keys_width), "bold"), " ", text))
    return [*lines, Text(), Text("any key goes back", "dim")]


# ---- words ----------------------------------------------------------------------------------------------------------


def _parts(width: int, *parts: Text) -> Text:
    """As many of them as there is room for, the first in any case."""
    line = Text()
    for part in parts:
        if line and line.cell_len + GAP + part.cell_len > width:
            break
        line.append("  " if line else "").append_text(part)
    return line


def _fitted(lines: Sequence[Text], width: int, height: int) -> list[Text]:
    fitted = []
    for each in lines[:height]:
        line = each.copy()
        line.truncate(width, overflow="ellipsis")
        fitted.append(line)
    return fitted + [Text()] * (height - len(fitted))


def _pair(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((name + " ", "dim"), (value, style))


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "-"


def _one(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, int | float) else "-"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
