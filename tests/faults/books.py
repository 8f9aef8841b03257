"""Three books and their comparison: the target's request log, the WAL, the tables.

A request is named by project and number (the body's size carries it), so the books are compared poll by poll, without
trust in any clock but the target's.  Definitions:

- ``lost``: a result in the WAL book (its write returned, or it was found whole in a file afterwards) whose tick is in
  the end neither in ``poll_results`` nor in ``ingest_reject``; and a request that was answered, whose result is in no
  book, though no worker died within UNSAVED_S of the answer (plus what the machine stalled then): it had time enough
  to be in the WAL.  Never allowed.
- ``unsaved``: a request whose result is in no book because its worker died before it could be written.  Allowed; how
  long before the death (or before the disk was full, if it was when the worker died) the oldest was answered is told.
- ``polled_twice``: a request whose result is in the WAL and whose tick has the row of another request.  Allowed once
  per project and death of a worker, within ``Death.since`` .. ``Death.until``: a new owner polls the newest tick again;
  and once more for each interval that its clock may be behind.  The others are ``unasked``.
- ``invented``: a row without a request.  ``rows_doubled``: two rows of one request; two rows of one tick cannot be, and
  a tick that is both a row and missed is the audit's ``doubled``.  Never allowed.
- ``damaged``: results in batches that a test made unreadable; they are excused, in every way.
- ``unexplained``, ``doubled``: from ``cluster audit --json``.  ``uncommitted``: streams of which the WAL has more than
  the ledger.  ``conflicts``: two batches of one stream and seq.  ``not_success``: rows of polls that failed; the target
  answers everything, so there are none.

Everything is in memory: some ten million polls are the most.
"""

import math
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from datetime import datetime
from typing import NamedTuple

import msgspec

from tests.faults.target import BODIES, body_bytes
from tests.integration.harness import INTERVAL_S

UNSAVED_S = 0.25  # a result is in the WAL 50 ms after it was found; the rest is a loop that has more to do
EXAMPLES_MAX = 10
PROJECTS_PER_READ = 100


class RowEntry(NamedTuple):
    scheduled_ms: int
    polled_ms: int  # by the worker's clock
    size_bytes: int | None
    status: str
    worker: str


class Death(NamedTuple):
    """Of one worker.  It recorded nothing after ``at``; ticks may be polled again from ``since`` until ``until``.

    ``unwritten_since``: when that is earlier than ``at``, it could not write what it found from then on.
    ``apart_s``: so far the clock of who came after it may have been behind its own.
    """

    name: str
    at: float
    since: float
    until: float
    unwritten_since: float
    apart_s: float = 0.0


class TableBook(NamedTuple):
    rows: dict[int, list[RowEntry]]  # by project id
    rejected: set[tuple[int, int]]  # project id, scheduled_ms
    ledger: dict[str, int]  # stream id -> last_seq
    audit: dict


class Destroyed(NamedTuple):
    """What a test made unreadable in the WAL."""

    batches: frozenset = frozenset()  # (stream id, seq)
    results: frozenset = frozenset()  # (project id, scheduled_ms, size_bytes)


NOTHING = Destroyed()


class Verdict(msgspec.Struct):
    requests: int = 0
    rows: int = 0
    in_wal: int = 0
    missed: dict[str, int] = {}
    lost: int = 0
    unsaved: int = 0
    unsaved_oldest_ms: float = 0.0
    polled_twice: int = 0
    unasked: int = 0
    invented: int = 0
    rows_doubled: int = 0
    doubled: int = 0
    unexplained: int = 0
    uncommitted: int = 0
    conflicts: int = 0
    not_success: int = 0
    rejected: int = 0
    damaged: int = 0
    examples: list[str] = []

    def wrong(self):
        """What must not be, {} when the books agree."""
        fields = ("lost", "unasked", "invented", "rows_doubled", "doubled", "unexplained", "uncommitted",
                  "conflicts", "not_success", "rejected")  # fmt: skip
        return {name: getattr(self, name) for name in fields if getattr(self, name)}

    def example(self, text):
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(text)


def read_tables(sql, ids, audit):
    """The tables' book of these projects; ``audit`` as from ``Cluster.audit``."""
    rows = {}
    ids = sorted(ids)
    for first in range(0, len(ids), PROJECTS_PER_READ):
        some = ids[first : first + PROJECTS_PER_READ]
        rows |= {project_id: [] for project_id in some}
        for row in sql.fetch(
            """SELECT project_id, (extract(epoch FROM scheduled_at) * 1000)::bigint AS scheduled_ms,
                      (extract(epoch FROM polled_at) * 1000)::bigint AS polled_ms, size_bytes, status::text, worker
               FROM poll_results WHERE project_id = ANY($1::bigint[]) ORDER BY project_id, polled_at""",
            some,
        ):
            rows[row["project_id"]].append(RowEntry(*list(row.values())[1:]))
    rejected = sql.fetch(
        "SELECT project_id, (record->>'scheduled_at_ms')::bigint AS scheduled_ms FROM ingest_reject"
        " WHERE record ? 'scheduled_at_ms'"
    )
    ledger = sql.fetch("SELECT stream_id::text, last_seq FROM ingest_stream")
    return TableBook(rows, {tuple(row) for row in rejected}, dict(map(tuple, ledger)), audit)


def compare(log, ids, tables, wal, deaths, destroyed=NOTHING):
    """``ids``: {project number: project id}; ``wal``: a WalBook."""
    verdict = Verdict(
        rejected=len(tables.rejected), conflicts=len(wal.conflicts), examples=wal.conflicts[:EXAMPLES_MAX]
    )
    total = tables.audit["total"]
    verdict.doubled, verdict.unexplained = total["doubled"], total["unexplained"]
    verdict.missed = dict(total["missed"])
    for each in tables.audit["projects"]:
        if each["unexplained"] or each["doubled"]:
            verdict.example(f"audit: {each}")
    for stream_id, last_seq in wal.last_seqs.items():
        known = tables.ledger.get(stream_id, 0)
        if not all((stream_id, seq) in destroyed.batches for seq in range(known + 1, last_seq + 1)):
            verdict.uncommitted += 1
            verdict.example(f"stream {stream_id}: {last_seq} in the WAL, {known} in the ledger")
    damaged = defaultdict(list)
    for project_id, *result in destroyed.results:
        damaged[project_id].append(tuple(result))
    repeats = Counter()
    for number, project_id in ids.items():
        project = _Project(
            number, project_id, log.arrivals.get(number, array("d")), log.delays_s.get(number, 0.0), damaged[project_id]
        )
        _compare_project(project, tables, wal.results(project_id), deaths, log.stall_s, verdict, repeats)
    return verdict


class _Project(NamedTuple):
    number: int
    project_id: int
    arrivals: array
    delay_s: float
    damaged: list  # (scheduled_ms, size_bytes)

    def request_of(self, instant_ms, size_bytes):
        return request_of(self.arrivals, instant_ms / 1000, size_bytes)


def _compare_project(project, tables, recorded, deaths, stall_s, verdict, repeats):
    rows = tables.rows.get(project.project_id, [])
    ticks = {row.scheduled_ms for row in rows}
    verdict.requests += len(project.arrivals)
    verdict.rows += len(rows)
    explained = _requests_of_rows(project, rows, verdict)

    excused = {project.request_of(*result) for result in project.damaged}
    verdict.damaged += len(excused - explained)

    repeated = set()
    verdict.in_wal += len(recorded)
    for scheduled_ms, size_bytes in recorded:
        request = project.request_of(scheduled_ms, size_bytes)
        if scheduled_ms in ticks:
            repeated.add(request)  # unless the row is its own
            continue
        if (scheduled_ms, size_bytes) in project.damaged:
            continue
        excused.add(request)
        if (project.project_id, scheduled_ms) not in tables.rejected:
            verdict.lost += 1
            verdict.example(f"project {project.number}: tick {scheduled_ms} is in the WAL only (request {request})")

    for request, at in enumerate(project.arrivals):
        if request in explained or request in excused:
            continue
        if request in repeated:
            _judge_repeat(project, request, at, deaths, verdict, repeats)
        else:
            _judge_unsaved(project, request, at + project.delay_s, deaths, stall_s, verdict)


def _requests_of_rows(project, rows, verdict):
    """The requests that have a row."""
    found = set()
    for row in rows:
        if row.status != "success":
            verdict.not_success += 1
            verdict.example(f"project {project.number}: {row}")
        request = project.request_of(row.polled_ms, row.size_bytes)
        if request is None:
            verdict.invented += 1
            verdict.example(f"project {project.number}: a row without a request: {row}")
        elif request in found:
            verdict.rows_doubled += 1
            verdict.example(f"project {project.number}: request {request} has two rows, one is {row}")
        found.add(request)
    return found


def _judge_repeat(project, request, at, deaths, verdict, repeats):
    """The tick has a row, of another request."""
    verdict.polled_twice += 1
    for index, death in enumerate(deaths):
        allowed = 1 + math.ceil(death.apart_s / INTERVAL_S)
        if death.since <= at <= death.until and repeats[project.number, index] < allowed:
            repeats[project.number, index] += 1
            return
    verdict.unasked += 1
    verdict.example(f"project {project.number}: request {request} at {at:.3f} was a second one, and nobody had died")


def _judge_unsaved(project, request, answered_at, deaths, stall_s, verdict):
    """No book has its result."""
    for death in deaths:
        from_s = death.unwritten_since
        if from_s - UNSAVED_S - stall_s(from_s - 1.0, from_s) <= answered_at <= death.at + death_reach_s(project):
            verdict.unsaved += 1
            verdict.unsaved_oldest_ms = max(verdict.unsaved_oldest_ms, round((from_s - answered_at) * 1000, 1))
            return
    verdict.lost += 1
    verdict.example(f"project {project.number}: request {request}, answered at {answered_at:.3f}, is in no book")


def death_reach_s(project):
    """So long after a worker's death an answer to it may be given: its request was on its way."""
    return project.delay_s + 0.1


def instant_s(text):
    """Of an instant as ``cluster audit --json`` writes it."""
    return datetime.fromisoformat(text).timestamp()


def request_of(arrivals, around, size_bytes):
    """The number of the request whose answer had this size, nearest to an instant; None when there is none."""
    if size_bytes is None:
        return None
    residue = size_bytes - body_bytes(0)
    if not 0 <= residue < BODIES:
        return None
    near = bisect_left(arrivals, around)
    base = near - near % BODIES + residue
    candidates = [n for n in (base - BODIES, base, base + BODIES) if 0 <= n < len(arrivals)]
    return min(candidates, key=lambda n: abs(arrivals[n] - around), default=None)
