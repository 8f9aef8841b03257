"""What goes in and out of the API, as types: the OpenAPI document is made of them, queries and bodies decoded by them.

Answers are written as maps, for speed; the tests hold every answer against its type.  Instants are ISO 8601 in UTC with
milliseconds and Z, durations are in ``_ms``.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from cluster.history import ListSummary, Resolution
from cluster.http_options import (
    BASIC_AUTH_CHARS_MAX,
    BEARER_TOKEN_CHARS_MAX,
    BODY_LIMIT_BYTES_MAX,
    CONNECT_TIMEOUT_MS_MAX,
    PATH_CHARS_MAX,
    PROXY_CHARS_MAX,
    RETRIES_MAX,
    RETRY_DELAY_MS_MAX,
    SERVER_NAME_CHARS_MAX,
    USER_AGENT_CHARS_MAX,
)
from cluster.messages.admin import REMOVED_IDS_MAX, SLOTS_MAX, WORKERS_MAX
from cluster.project import (
    BODY_CHARS_MAX,
    FIELD_NAMES,
    HEADERS_MAX,
    INTERVAL_S_MAX,
    NAME_CHARS_MAX,
    RUN_MAX,
    TIMEOUT_MS_MAX,
    URL_CHARS_MAX,
    ProjectFields,
)

LIMIT_USUAL = 50
LIMIT_MAX = 500
OVERVIEW_LIMIT_MAX = 10_000
BULK_CREATE_MAX = 1_000
CURSOR_CHARS_MAX = 1_000
SEARCH_CHARS_MAX = 200

ProjectNumber: TypeAlias = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1, description="The id of a project.")]
WorkerName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=63, description="The name of a worker.")]
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=LIMIT_MAX, description="At most so many items.")]
Cursor: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=CURSOR_CHARS_MAX,
        pattern="^[A-Za-z0-9_-]+$",
        description="`next_cursor` of the page before, asked for with the same other parameters.",
    ),
]
Instant: TypeAlias = Annotated[datetime, Meta(tz=True, description="ISO 8601 with a time zone.")]
ProjectState: TypeAlias = Literal["up", "down", "pending", "paused"]
PollStatus: TypeAlias = Literal["success", "failure", "unknown"]
Period: TypeAlias = Literal["1h", "24h", "7d", "30d", "90d"]
ListPeriod: TypeAlias = Literal["24h", "7d", "30d", "90d"]

PATH_TYPES: dict[str, Any] = {"id": ProjectNumber, "name": WorkerName}


# ---- queries --------------------------------------------------------------------------------------------------------


class NoQuery(msgspec.Struct, frozen=True):
    """Of what takes no parameters."""


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    limit: Limit = LIMIT_USUAL
    cursor: Cursor | None = None


class ProjectsQuery(PageQuery, frozen=True, kw_only=True):
    search: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=SEARCH_CHARS_MAX,
                pattern=r"^[^\x00]*$",
                description="Only projects with this text in their name or URL, upper or lower case.",
            ),
        ]
        | None
    ) = None
    state: Annotated[ProjectState, Meta(description="Only projects in this state.")] | None = None
    enabled: Annotated[bool, Meta(description="Only projects that are, or are not, enabled.")] | None = None
    sort: Annotated[
        Literal["id", "-id", "name", "-name", "created_at", "-created_at", "updated_at", "-updated_at"],
        Meta(description="By what they are sorted, with - in reverse."),
    ] = "id"
    summary: Annotated[ListPeriod, Meta(description="Add `summary` of this period to each project.")] | None = None
    total: Annotated[bool, Meta(description="Also count all projects that are meant, as `total`.")] = False


class ProjectQuery(msgspec.Struct, frozen=True, kw_only=True):
    reveal: Annotated[bool, Meta(description="Show the secrets, too; needs the scope admin.")] = False


class DeleteQuery(msgspec.Struct, frozen=True, kw_only=True):
    purge: Annotated[bool, Meta(description="Delete its results, too.")] = False


class RangeQuery(PageQuery, frozen=True, kw_only=True):
    since: Annotated[Instant, Meta(description="From this instant on.")] | None = None
    until: Annotated[Instant, Meta(description="Before this instant.")] | None = None


class ResultsQuery(RangeQuery, frozen=True, kw_only=True):
    status: Annotated[PollStatus, Meta(description="Only results with this status.")] | None = None


class ChangesQuery(RangeQuery, frozen=True, kw_only=True):
    project_id: ProjectNumber | None = None
    state: Annotated[Literal["up", "down"], Meta(description="Only changes to this state.")] | None = None


class SummaryQuery(msgspec.Struct, frozen=True, kw_only=True):
    """``period`` ends now; ``since`` and ``until`` are in its place."""

    period: Annotated[Period, Meta(description="The time up to now; 24h when nothing is given.")] | None = None
    since: Instant | None = None
    until: Instant | None = None
    resolution: Annotated[Resolution | Literal["auto"], Meta(description="How long the buckets are.")] = "auto"


class OverviewQuery(msgspec.Struct, frozen=True, kw_only=True):
    period: Period = "24h"
    limit: Annotated[int, Meta(ge=1, le=OVERVIEW_LIMIT_MAX)] = 1_000
    cursor: Cursor | None = None


# ---- bodies --------------------------------------------------------------------------------------------------------


def _text(most: int, description: str) -> Any:
    return Annotated[str, Meta(max_length=most, description=description)]


def _count(least: int, most: int, description: str) -> Any:
    return Annotated[int, Meta(ge=least, le=most, description=description)]


# Fields of a project as people write them.  The whole of the rules is in cluster/project.py.
FIELD_TYPES: dict[str, Any] = {
    "url": Annotated[str, Meta(min_length=8, max_length=URL_CHARS_MAX, description="http:// or https://")],
    "name": _text(NAME_CHARS_MAX, "What people call it."),
    "method": Annotated[str, Meta(min_length=1, max_length=32, description="GET, POST, ...")],
    "headers": Annotated[dict[str, str], Meta(max_length=HEADERS_MAX, description="Names and values.")] | None,
    "body": _text(BODY_CHARS_MAX, "What is sent.") | None,
    "expected_status": Annotated[str, Meta(min_length=1, max_length=1_000, description="200, 2xx or 200-299,301")],
    "interval": _count(1, INTERVAL_S_MAX, "How often it is polled, in units.")
    | Annotated[str, Meta(min_length=1, max_length=30, description="30s, 5m, 1h: with a unit of its own.")],
    "unit": Literal["seconds", "minutes", "hours"],
    "timeout_ms": _count(1, TIMEOUT_MS_MAX, "How long a poll may take."),
    "follow_redirects": bool,
    "enabled": Annotated[bool, Meta(description="Whether it is polled.")],
    "down_after": _count(1, RUN_MAX, "Failures in a row that make it down."),
    "up_after": _count(1, RUN_MAX, "Successes in a row that make it up again."),
    "assertions": Annotated[list[dict[str, Any]], Meta(description="What an answer must be like; see the README.")]
    | None,
    "verify_tls": bool,
    "ca_file": _text(PATH_CHARS_MAX, "Who may sign certificates: a file of the worker's host.") | None,
    "client_cert_file": _text(PATH_CHARS_MAX, "A file of the worker's host.") | None,
    "client_key_file": _text(PATH_CHARS_MAX, "A file of the worker's host.") | None,
    "server_name": _text(SERVER_NAME_CHARS_MAX, "Asked for and verified in place of the URL's host.") | None,
    "ip_version": Literal[4, 6] | None,
    "connection_reuse": Literal["auto", "never"],
    "body_limit_bytes": _count(1, BODY_LIMIT_BYTES_MAX, "How much of a body is read.") | None,
    "connect_timeout_ms": _count(1, CONNECT_TIMEOUT_MS_MAX, "Of each connection.") | None,
    "user_agent": _text(USER_AGENT_CHARS_MAX, "In place of ours.") | None,
    "basic_auth": _text(BASIC_AUTH_CHARS_MAX, "user:password") | None,
    "bearer_token": _text(BEARER_TOKEN_CHARS_MAX, "Sent as Authorization: Bearer.") | None,
    "proxy": _text(PROXY_CHARS_MAX, "http://[user:password@]host[:port]") | None,
    "retries": _count(0, RETRIES_MAX, "How often a failed poll is made again before it counts."),
    "retry_delay_ms": _count(1, RETRY_DELAY_MS_MAX, "Between them."),
}
_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(ProjectFields) if not field.required}

NewProject = msgspec.defstruct(
    "NewProject",
    [
        (name, FIELD_TYPES[name], _DEFAULTS[name]) if name in _DEFAULTS else (name, FIELD_TYPES[name])
        for name in FIELD_NAMES
    ],
    kw_only=True,
    forbid_unknown_fields=True,
)
_PATCH_TYPES = FIELD_TYPES | {
    "headers": Annotated[dict[str, str | None], Meta(description="Those that are given; null takes one away.")]
}
ProjectPatch = msgspec.defstruct(
    "ProjectPatch",
    [(name, _PATCH_TYPES[name] if name == "url" else _PATCH_TYPES[name] | None, msgspec.UNSET) for name in FIELD_NAMES],
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
)


class ScaleBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of both at least."""

    workers: Annotated[int, Meta(ge=1, le=WORKERS_MAX)] | None = None
    max_concurrent_http: Annotated[int, Meta(ge=1, le=SLOTS_MAX)] | None = None

    def __post_init__(self) -> None:
        if self.workers is None and self.max_concurrent_http is None:
            raise ValueError("workers: give workers, max_concurrent_http or both")


class BulkSwitch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: Literal["enable", "disable", "delete"]
    ids: Annotated[list[ProjectNumber], Meta(min_length=1, max_length=REMOVED_IDS_MAX)]


class BulkCreate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: Literal["create"]
    projects: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=BULK_CREATE_MAX)]


# ---- answers --------------------------------------------------------------------------------------------------------


class LastResult(msgspec.Struct, frozen=True):
    polled_at: datetime
    status: PollStatus
    status_code: int | None
    response_time_ms: float | None
    error_code: str | None
    error_message: str | None


class Project(ProjectFields, frozen=True, kw_only=True):
    """Its fields, and how it is.  Secrets are `***` unless they are asked for."""

    id: int
    created_at: datetime
    updated_at: datetime
    state: ProjectState
    state_since: datetime | None
    invalid_reason: str | None
    last_result: LastResult | None


class ListedProject(Project, frozen=True, kw_only=True):
    summary: ListSummary | None = None


class ProjectPage(msgspec.Struct, frozen=True):
    items: list[ListedProject]
    next_cursor: str | None
    total: int | None = None


class BulkAnswer(msgspec.Struct, frozen=True):
    action: Literal["enable", "disable", "delete", "create"]
    ids: list[int]


class PollResultRow(msgspec.Struct, frozen=True):
    project_id: int
    scheduled_at: datetime
    polled_at: datetime
    trigger: Literal["tick", "immediate", "manual"]
    status: PollStatus
    status_code: int | None
    response_time_ms: float | None
    error_code: str | None
    error_message: str | None
    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    first_byte_ms: float | None
    transfer_ms: float | None
    size_bytes: int | None
    connection_reused: bool | None
    remote_address: str | None
    worker: str
    epoch: int


class ResultPage(msgspec.Struct, frozen=True):
    items: list[PollResultRow]
    next_cursor: str | None


class MissedRow(msgspec.Struct, frozen=True):
    """Ticks that were due and not polled, from the first to the last."""

    first_tick: datetime
    last_tick: datetime
    ticks: int
    reason: Literal["overload", "overrun", "handover", "down", "paused"]
    worker: str
    epoch: int


class MissedPage(msgspec.Struct, frozen=True):
    items: list[MissedRow]
    next_cursor: str | None


class ChangeRow(msgspec.Struct, frozen=True):
    """A project went down or came up.  ``name`` and ``url`` are null when it is no more."""

    project_id: int
    name: str | None
    url: str | None
    changed_at: datetime
    state: Literal["up", "down"]
    began_at: datetime
    polls: int
    status_code: int | None
    error_code: str | None
    error_message: str | None


class ChangePage(msgspec.Struct, frozen=True):
    items: list[ChangeRow]
    next_cursor: str | None


class OverviewItem(msgspec.Struct, frozen=True):
    id: int
    name: str
    state: ProjectState
    uptime: float | None
    polls: int
    failures: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class OverviewPage(msgspec.Struct, frozen=True):
    items: list[OverviewItem]
    next_cursor: str | None


class Percentiles(msgspec.Struct, frozen=True):
    p50: float
    p99: float
    max: float | None = None


class WorkerAnswer(msgspec.Struct, frozen=True):
    name: str
    pid: int
    state: Literal["starting", "running", "hung", "restarting", "draining"]
    projects: int
    partitions: int
    polls_per_s: float
    slice: int
    active_http: int
    queue_depth: int
    executed: int
    local_causes: dict[str, int]
    missed: int
    lateness_ms: Percentiles
    loop_lag_ms: float
    loop_lag_counts: list[int]
    unacked_results: int
    wal_bytes: int
    wal_state: str
    wal_damaged: int
    wal_dropped: int
    wal_sync_failures: int
    rss_bytes: int


class WorkerPage(msgspec.Struct, frozen=True):
    items: list[WorkerAnswer]
    next_cursor: str | None


class DrainAnswer(msgspec.Struct, frozen=True):
    worker: str


class ScaleAnswer(msgspec.Struct, frozen=True):
    workers: int
    max_concurrent_http: int


class ReloadAnswer(msgspec.Struct, frozen=True):
    """How many projects were found new, different and gone."""

    added: int
    changed: int
    removed: int


StatusAnswer: TypeAlias = dict[str, Any]
