"""What ``cluster top`` shows: keys change a :class:`ViewState`, rows are sorted and filtered by it.  Pure.

- A list keeps its selection by the row's key, so a row that moves takes the selection with it; when it is gone, the
  one that stands in its place is selected.
- Values that are not known sort last, in either direction.
- A drill (into a worker or a project) lies on the one it was reached from; Escape takes the topmost away.
- Whatever came from others (names, URLs, messages of targets) is made printable here: it can't move a cursor.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from cluster.masking import masked_url

Pane = Literal["workers", "projects", "changes"]
ListName = Literal["workers", "projects", "changes", "worker", "project"]  # the last two: lists of a drill
Value = str | int | float | None

PANES: tuple[Pane, ...] = ("workers", "projects", "changes")
FILTER_CHARS_MAX = 200
GAP = 2  # between two columns
TEXT_WIDTH_MIN = 12


class Row(msgspec.Struct, frozen=True):
    """``look``: success | failure | warning | "", how it is to be coloured.  ``text``: what a filter looks in.

    Of rows with equal values, those with a higher ``weight`` come first.
    """

    key: str
    values: Mapping[str, Value]
    look: str = ""
    text: str = ""
    weight: float = 0.0


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """``width`` 0: takes what the others leave.  Where it is narrow, the column of the highest ``rank`` goes first."""

    key: str
    title: str
    width: int = 0
    rank: int = 0
    is_number: bool = False
    descending: bool = False  # how it is sorted at first
    kind: str = "text"  # text | count | ms | size | clock: the time of an instant


COLUMNS: dict[ListName, tuple[Column, ...]] = {
    "workers": (
        Column(key="name", title="worker"),
        Column(key="state", title="state", width=10),
        Column(key="projects", title="projects", width=9, rank=2, is_number=True, descending=True, kind="count"),
        Column(key="active_http", title="in flight", width=9, rank=1, is_number=True, descending=True, kind="count"),
        Column(key="queue_depth", title="queue", width=6, rank=3, is_number=True, descending=True, kind="count"),
        Column(key="polls_per_s", title="polls/s", width=9, rank=4, is_number=True, descending=True, kind="ms"),
        Column(key="late_p50", title="late p50", width=10, rank=6, is_number=True, descending=True, kind="ms"),
        Column(key="late_p99", title="late p99", width=10, rank=0, is_number=True, descending=True, kind="ms"),
        Column(key="late_max", title="late max", width=10, rank=8, is_number=True, descending=True, kind="ms"),
        Column(key="loop_lag_ms", title="loop lag", width=8, rank=7, is_number=True, descending=True, kind="ms"),
        Column(key="missed", title="missed", width=8, rank=5, is_number=True, descending=True, kind="count"),
        Column(key="unacked_results", title="unacked", width=8, rank=10, is_number=True, descending=True, kind="count"),
        Column(key="wal_bytes", title="WAL", width=10, rank=9, is_number=True, descending=True, kind="size"),
        Column(key="rss_bytes", title="memory", width=10, rank=11, is_number=True, descending=True, kind="size"),
        Column(key="pid", title="pid", width=8, rank=12, is_number=True, kind="text"),
    ),
    "projects": (
        Column(key="id", title="id", width=8, rank=3, is_number=True, kind="text"),
        Column(key="name", title="project"),
        Column(key="state", title="state", width=6),
        Column(key="since", title="since", width=16, rank=5, descending=True),
        Column(key="status_code", title="code", width=4, rank=4, is_number=True, descending=True, kind="text"),
        Column(key="response_ms", title="ms", width=9, rank=0, is_number=True, descending=True, kind="ms"),
        Column(key="late_ms", title="late", width=8, rank=7, is_number=True, descending=True, kind="ms"),
        Column(key="polled_at", title="polled", width=8, rank=6, descending=True, kind="clock"),
        Column(key="worker", title="worker", width=12, rank=8),
        Column(key="error", title="error", width=30, rank=2),
    ),
    "changes": (
        Column(key="changed_at", title="changed", width=19, descending=True),
        Column(key="project_id", title="id", width=8, rank=2, is_number=True, kind="text"),
        Column(key="name", title="project"),
        Column(key="state", title="state", width=5),
        Column(key="polls", title="polls", width=5, rank=3, is_number=True, descending=True, kind="count"),
        Column(key="error", title="error", width=40, rank=1),
    ),
    "project": (
        Column(key="scheduled_at", title="scheduled", width=19, descending=True),
        Column(key="status", title="status", width=8),
        Column(key="status_code", title="code", width=4, rank=1, is_number=True, kind="text"),
        Column(key="response_ms", title="ms", width=9, rank=0, is_number=True, descending=True, kind="ms"),
        Column(key="late_ms", title="late", width=8, rank=3, is_number=True, descending=True, kind="ms"),
        Column(key="dns_ms", title="dns", width=7, rank=4, is_number=True, descending=True, kind="ms"),
        Column(key="connect_ms", title="connect", width=7, rank=5, is_number=True, descending=True, kind="ms"),
        Column(key="tls_ms", title="tls", width=7, rank=6, is_number=True, descending=True, kind="ms"),
        Column(key="first_byte_ms", title="1st byte", width=8, rank=7, is_number=True, descending=True, kind="ms"),
        Column(key="transfer_ms", title="transfer", width=8, rank=8, is_number=True, descending=True, kind="ms"),
        Column(key="size_bytes", title="size", width=9, rank=9, is_number=True, descending=True, kind="size"),
        Column(key="worker", title="worker", width=12, rank=10),
        Column(key="error", title="error"),
    ),
}
COLUMNS["worker"] = tuple(each for each in COLUMNS["projects"] if each.key != "worker")


class ListState(msgspec.Struct, frozen=True, kw_only=True):
    sort: str
    descending: bool
    filter: str = ""
    selected: str | None = None  # the key of a row; None: the first
    index: int = 0  # where that row stood


class Drill(msgspec.Struct, frozen=True):
    kind: Literal["worker", "project"]
    key: str


def _lists() -> dict[ListName, ListState]:
    return {
        "workers": ListState(sort="late_p99", descending=True),
        "projects": ListState(sort="state", descending=False),
        "changes": ListState(sort="changed_at", descending=True),
        "worker": ListState(sort="response_ms", descending=True),
        "project": ListState(sort="scheduled_at", descending=True),
    }


class ViewState(msgspec.Struct, frozen=True, kw_only=True):
    pane: Pane = "workers"
    lists: dict[ListName, ListState] = msgspec.field(default_factory=_lists)
    drills: tuple[Drill, ...] = ()
    typing: str | None = None  # a filter that is not entered yet
    failing_only: bool = False
    is_help: bool = False
    is_paused: bool = False
    is_over: bool = False

    @property
    def list_name(self) -> ListName:
        """The list that keys move in."""
        return self.drills[-1].kind if self.drills else self.pane

    @property
    def list(self) -> ListState:
        return self.lists[self.list_name]

    @property
    def project_id(self) -> int | None:
        """The project that is looked into."""
        drill = self.drills[-1] if self.drills else None
        return int(drill.key) if drill is not None and drill.kind == "project" else None


# ---- keys -----------------------------------------------------------------------------------------------------------


def press(view: ViewState, key: str, rows: Sequence[Row], page_rows: int) -> ViewState:
    """The view after a key.  ``rows``: of the list in view, as ``arranged`` gave them."""
    if view.typing is not None:
        return _typed(view, key)
    if view.is_help:
        return msgspec.structs.replace(view, is_help=False, is_over=key in {"q", "ctrl-c"})
    match key:
        case "q" | "ctrl-c":
            return msgspec.structs.replace(view, is_over=True)
        case "?" | "h":
            return msgspec.structs.replace(view, is_help=True)
        case "p" | " ":
            return msgspec.structs.replace(view, is_paused=not view.is_paused)
        case "/":
            return msgspec.structs.replace(view, typing=view.list.filter)
        case "f":
            return msgspec.structs.replace(view, failing_only=not view.failing_only)
        case "1" | "2" | "3":
            return msgspec.structs.replace(view, pane=PANES[int(key) - 1], drills=())
        case "tab" | "right" | "backtab" | "left":
            step = 1 if key in {"tab", "right"} else -1
            pane = PANES[(PANES.index(view.pane) + step) % len(PANES)]
            return msgspec.structs.replace(view, pane=pane, drills=())
        case "s" | "S":
            return _sorted_by_next(view, 1 if key == "s" else -1)
        case "r":
            return _with_list(view, descending=not view.list.descending)
        case "enter":
            return _drilled(view, rows)
        case "escape" | "backspace":
            if view.drills:
                return msgspec.structs.replace(view, drills=view.drills[:-1])
            return _with_list(view, filter="")
        case _:
            return _moved(view, key, rows, page_rows)


def _typed(view: ViewState, key: str) -> ViewState:
    typing = view.typing or ""
    match key:
        case "enter":
            return msgspec.structs.replace(_with_list(view, filter=typing), typing=None)
        case "escape":
            return msgspec.structs.replace(view, typing=None)
        case "backspace":
            return msgspec.structs.replace(view, typing=typing[:-1])
        case "ctrl-c":
            return msgspec.structs.replace(view, is_over=True)
        case "ctrl-u":
            return msgspec.structs.replace(view, typing="")
        case _:
            more = key if len(key) == 1 and key.isprintable() and len(typing) < FILTER_CHARS_MAX else ""
            return msgspec.structs.replace(view, typing=typing + more)


def _with_list(view: ViewState, **changes: Any) -> ViewState:
    changed = msgspec.structs.replace(view.list, **changes)
    return msgspec.structs.replace(view, lists=view.lists | {view.list_name: changed})


def _sorted_by_next(view: ViewState, step: int) -> ViewState:
    columns = COLUMNS[view.list_name]
    at = next(number for number, each in enumerate(columns) if each.key == view.list.sort)
    column = columns[(at + step) % len(columns)]
    return _with_list(view, sort=column.key, descending=column.descending)


def _drilled(view: ViewState, rows: Sequence[Row]) -> ViewState:
    at = selected_index(view.list, rows)
    if at is None:
        return view
    name = view.list_name
    if name == "project":
        return view  # a result has nothing below it
    if name == "workers":
        drill = Drill("worker", rows[at].key)
    else:
        drill = Drill("project", str(rows[at].values["project_id" if name == "changes" else "id"]))
    # A list that is entered anew begins at its top.
    fresh = msgspec.structs.replace(view.lists[drill.kind], selected=None, index=0, filter="")
    return msgspec.structs.replace(view, drills=(*view.drills, drill), lists=view.lists | {drill.kind: fresh})


def _moved(view: ViewState, key: str, rows: Sequence[Row], page_rows: int) -> ViewState:
    at = selected_index(view.list, rows)
    if at is None:
        return view
    match key:
        case "up" | "k":
            at -= 1
        case "down" | "j":
            at += 1
        case "pageup":
            at -= max(1, page_rows)
        case "pagedown":
            at += max(1, page_rows)
        case "home" | "g":
            at = 0
        case "end" | "G":
            at = len(rows) - 1
        case _:
            return view
    at = min(max(at, 0), len(rows) - 1)
    return _with_list(view, selected=rows[at].key, index=at)


# ---- rows -----------------------------------------------------------------------------------------------------------


def arranged(rows: Sequence[Row], of: ListState, *, failing_only: bool = False) -> list[Row]:
    """Those that pass the filter (all its words, in any case), in order; equal ones by weight and key."""
    words = of.filter.lower().split()
    kept = [
        row for row in rows if all(word in row.text for word in words) and not (failing_only and row.look != "failure")
    ]
    known = [row for row in kept if row.values.get(of.sort) is not None]
    unknown = [row for row in kept if row.values.get(of.sort) is None]
    for each in (known, unknown):
        each.sort(key=lambda row: (-row.weight, natural(row.key)))
    known.sort(key=lambda row: _order(row.values[of.sort]), reverse=of.descending)
    return known + unknown


def _order(value: Value) -> tuple[int, Any]:
    return (1, natural(value)) if isinstance(value, str) else (0, value)


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """worker-2 before worker-10."""
    parts: list[tuple[int, int, str]] = []
    for character in text.lower():
        if character.isdecimal() and character.isascii():
            number = parts.pop()[1] * 10 if parts and parts[-1][0] == 0 else 0
            parts.append((0, number + int(character), ""))
        elif parts and parts[-1][0] == 1:
            parts[-1] = (1, 0, parts[-1][2] + character)
        else:
            parts.append((1, 0, character))
    return tuple(parts)


def selected_index(of: ListState, rows: Sequence[Row]) -> int | None:
    if not rows:
        return None
    if of.selected is not None:
        for at, row in enumerate(rows):
            if row.key == of.selected:
                return at
        return min(of.index, len(rows) - 1)
    return 0


def window(count: int, selected: int | None, height: int) -> range:
    """Which rows are in view: the selected one is, in the middle where there is room on both sides."""
    if count <= height or selected is None:
        return range(min(count, max(0, height)))
    first = min(max(0, selected - height // 2), count - height)
    return range(first, first + height)


def columns_for(name: ListName, width: int) -> list[tuple[Column, int]]:
    """The columns that a width has room for, with their widths; the first to go is that of the highest rank."""
    columns = list(COLUMNS[name])

    def used() -> int:
        return sum(each.width or TEXT_WIDTH_MIN for each in columns) + GAP * (len(columns) - 1)

    while used() > width and any(each.rank for each in columns):
        columns.remove(max(columns, key=lambda each: each.rank))
    rest = max(0, width - used())
    texts = [each for each in columns if not each.width]
    if not texts:
        return [(each, each.width) for each in columns]
    return [(each, each.width or TEXT_WIDTH_MIN + rest // len(texts)) for each in columns]


def printable(text: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(text))


def worker_rows(status: Mapping[str, Any]) -> list[Row]:
    rows = []
    for each in status.get("workers") or []:
        late = each.get("lateness_ms") or {}
        values = {
            name: each.get(name)
            for name in ("projects", "active_http", "queue_depth", "polls_per_s", "loop_lag_ms", "missed", "pid")
        }
        values |= {name: each.get(name) for name in ("unacked_results", "wal_bytes", "rss_bytes")}
        values |= {f"late_{name}": late.get(name) for name in ("p50", "p99", "max")}
        name, state = printable(each.get("name", "")), printable(each.get("state", ""))
        is_well = state == "running" and each.get("wal_state", "ok") == "ok"
        rows.append(
            Row(
                key=name,
                values=values | {"name": name, "state": state},
                look="" if is_well else "failure" if state == "hung" else "warning",
                text=f"{name} {state}".lower(),
            )
        )
    return rows


def project_rows(projects: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Of the database's words: id, name, url, state, since, and the newest result's."""
    rows = []
    for each in projects:
        shown = printable(each["name"] or masked_url(each["url"]))
        error = _error(each)
        is_down = each.get("state") == "down" or each.get("status") == "failure"
        state = each.get("state") or ("up" if each.get("status") else None)  # a project that never failed has no row
        late = each.get("late_ms")
        rows.append(
            Row(
                key=str(each["id"]),
                values={
                    "id": each["id"],
                    "name": shown,
                    "state": state,
                    "since": each.get("since"),
                    "status_code": each.get("status_code"),
                    "response_ms": each.get("response_time_ms"),
                    "late_ms": late,
                    "polled_at": each.get("polled_at"),
                    "worker": printable(each.get("worker") or ""),
                    "error": error,
                },
                look="failure" if is_down else "warning" if each.get("status") == "unknown" else "",
                text=f"{each['id']} {shown} {printable(masked_url(each['url']))} {state or ''} {error}".lower(),
                weight=each.get("response_time_ms") or 0.0,
            )
        )
    return rows


def change_rows(changes: Sequence[Mapping[str, Any]]) -> list[Row]:
    rows = []
    for each in changes:
        url = each.get("url")
        shown = printable(each.get("name") or (masked_url(url) if url else "deleted"))
        error = _error(each)
        rows.append(
            Row(
                key=f"{each['project_id']} {each['changed_at']}",
                values={
                    "changed_at": each["changed_at"],
                    "project_id": each["project_id"],
                    "name": shown,
                    "state": each["state"],
                    "polls": each["polls"],
                    "error": error,
                },
                look="failure" if each["state"] == "down" else "success",
                text=f"{each['project_id']} {shown} {each['state']} {error}".lower(),
            )
        )
    return rows


def result_rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    phases = ("dns_ms", "connect_ms", "tls_ms", "first_byte_ms", "transfer_ms", "size_bytes")
    rows = []
    for each in results:
        error = _error(each)
        values = {name: each.get(name) for name in ("scheduled_at", "status", "status_code", "late_ms", *phases)}
        worker = printable(each.get("worker") or "")
        rows.append(
            Row(
                key=str(each["scheduled_at"]),
                values=values | {"response_ms": each.get("response_time_ms"), "worker": worker, "error": error},
                look={"failure": "failure", "unknown": "warning"}.get(str(each.get("status")), ""),
                text=f"{each.get('status')} {each.get('status_code')} {worker} {error}".lower(),
            )
        )
    return rows


def of_worker(rows: Sequence[Row], name: str) -> list[Row]:
    """The projects whose newest result is this worker's."""
    return [row for row in rows if row.values.get("worker") == name]


def _error(each: Mapping[str, Any]) -> str:
    return printable(": ".join(str(each[name]) for name in ("error_code", "error_message") if each.get(name)))


def polls_per_s(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> float | None:
    """Between two status documents; None across a restart, from which totals count anew."""
    polls = (after.get("total_requests") or 0) - (before.get("total_requests") or 0)
    return polls / seconds if seconds > 0 and polls >= 0 else None


# ---- keys as a terminal sends them ----------------------------------------------------------------------------------

_SEQUENCES = {
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[C": "right", b"\x1b[D": "left",
    b"\x1bOA": "up", b"\x1bOB": "down", b"\x1bOC": "right", b"\x1bOD": "left",
    b"\x1b[H": "home", b"\x1b[F": "end", b"\x1bOH": "home", b"\x1bOF": "end", b"\x1b[1~": "home", b"\x1b[4~": "end",
    b"\x1b[7~": "home", b"\x1b[8~": "end", b"\x1b[5~": "pageup", b"\x1b[6~": "pagedown", b"\x1b[Z": "backtab",
}  # fmt: skip
_CONTROLS = {
    "\t": "tab", "\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x03": "ctrl-c",
    "\x15": "ctrl-u",
}  # fmt: skip
ESCAPE = b"\x1b"
SEQUENCE_BYTES_MAX = 16  # a longer one is none


def read_keys(pending: bytes, *, is_complete: bool = False) -> tuple[list[str], bytes]:
    """Keys in what was read, and what may be the beginning of another one; ``is_complete``: nothing more came."""
    keys: list[str] = []
    while pending:
        if pending.startswith(ESCAPE):
            length = _sequence_length(pending)
            if length is None and not is_complete:
                break
            sequence = pending[: length or 1]
            pending = pending[len(sequence) :]
            key = "escape" if sequence == ESCAPE else _SEQUENCES.get(sequence, "")
        else:
            length = _character_length(pending)
            if length is None and not is_complete:
                break
            length = length or len(pending)
            character, pending = pending[:length].decode(errors="replace"), pending[length:]
            key = _CONTROLS.get(character, character if character.isprintable() else "")
        if key:
            keys.append(key)
    return keys, pending


def _sequence_length(pending: bytes) -> int | None:
    """Of the escape sequence at the beginning; None when more is to come.  One of an unknown kind is passed over."""
    if len(pending) == 1:
        return None
    if pending[1:2] == b"O":
        return 3 if len(pending) >= 3 else None
    if pending[1:2] != b"[":
        return 1
    for at in range(2, min(len(pending), SEQUENCE_BYTES_MAX)):
        if 0x40 <= pending[at] <= 0x7E:
            return at + 1
    return None if len(pending) < SEQUENCE_BYTES_MAX else SEQUENCE_BYTES_MAX


def _character_length(pending: bytes) -> int | None:
    """Of the character in UTF-8 at the beginning, or of what is there instead of one; None when more is to come."""
    first = pending[0]
    wanted = 1 if first < 0xC0 or first > 0xF7 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    for at in range(1, wanted):
        if at == len(pending):
            return None
        if not 0x80 <= pending[at] < 0xC0:
            return at
    return wanted
