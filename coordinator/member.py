"""One worker as the coordinator sees it: its process, its link, and what it is still to be told.

What is to be told is kept as ids and partitions, never as messages, so that a slow worker costs no memory and always
hears the newest state.  ``take_*`` build the next message from it.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from cluster.messages.control import BusyProject, Cut, EndedSpan, RemovedProject, WorkerStats
from coordinator.events import WorkerState
from coordinator.link import WorkerLink
from coordinator.uncovered import Owed

REMOVES_PER_MESSAGE = 4_096
ENDED_PER_MESSAGE = 20_000
BYTES_PER_MESSAGE = 16 << 10  # a millisecond of a worker's loop, and its wait for a core before the next one
DEMAND_SMOOTHING = 0.5


class Note(msgspec.Struct, frozen=True):
    """What is settled when a message is acknowledged."""

    tokens: list[int] = []
    seen: list[tuple[int, Owed, int]] = []  # (partition, what no mark speaks for, since when)
    granted: list[int] = []  # partitions


class Debt(msgspec.Struct, frozen=True):
    """What a worker that gave a partition up has still to commit: the ticks in (after_ms, cut_ms]."""

    after_ms: int | None
    cut_ms: int


class Member:
    def __init__(self, name: str, incarnation: str, pid: int, now_ms: int) -> None:
        self.name = name
        self.incarnation = incarnation
        self.pid = pid
        self.state: WorkerState = "starting"
        self.since_ms = now_ms
        self.last_heard_ms = now_ms
        self.supervised = False  # its supervisor has listed this incarnation
        self.link: WorkerLink | None = None
        self.peer: bytes | None = None
        self.stats = WorkerStats()
        self.demand = 0.0
        self.oldest_ms: int | None = None
        self.debts: dict[int, Debt] = {}  # by partition
        self.handed_busy: list[BusyProject] = []  # polls in flight here whose projects others own
        self.limits_seq = 0
        self.kill_sent_ms: int | None = None
        self.retired = False
        self.snapshot = False  # SnapshotEnd is still to be said
        self.snapshot_tokens: list[int] = []
        self.limits: int | None = None
        self.grants: dict[int, None] = {}
        self.revokes: set[int] = set()
        self.upserts: dict[int, bool] = {}  # id -> its immediate poll is wanted
        self.removes: dict[int, int] = {}  # id -> until_ms
        self.remove_tokens: list[int] = []
        self.ended: list[EndedSpan] = []
        self.settles: dict[BusyProject, None] = {}

    def __repr__(self) -> str:
        session = self.link.session if self.link else None
        return f"<Member {self.name} {self.state} session={session} grants={len(self.grants)}>"

    @property
    def speaks(self) -> bool:
        """It has introduced itself and is not known to be gone."""
        return self.peer is not None and self.state in ("running", "draining")

    def open(self, link: WorkerLink, grants: list[int]) -> None:
        """A new session: everything unsaid is part of its snapshot."""
        tokens = list(self.snapshot_tokens) + self.remove_tokens
        if self.link is not None:
            tokens += [token for entry in self.link.unacked() for token in entry.note.tokens]
        self.link = link
        self.snapshot = True
        self.snapshot_tokens = tokens
        self.limits_seq = 0
        self.limits = None
        self.grants = dict.fromkeys(grants)
        self.revokes.clear()
        self.upserts.clear()
        self.removes.clear()
        self.remove_tokens = []
        self.ended = []
        self.settles.clear()

    def close(self) -> list[int]:
        """The worker is dead.  Returns the tokens that wait for it."""
        tokens = list(self.snapshot_tokens) + self.remove_tokens
        if self.link is not None:
            tokens += [token for entry in self.link.unacked() for token in entry.note.tokens]
        self.link = None
        self.peer = None
        self.snapshot = False
        self.snapshot_tokens = []
        self.remove_tokens = []
        self.ended = []
        self.limits = None
        for pending in (self.grants, self.revokes, self.upserts, self.removes, self.settles):
            pending.clear()
        return tokens

    def heard(self, stats: WorkerStats, now_ms: int) -> None:
        self.stats = stats
        self.last_heard_ms = now_ms
        wanted = stats.active_http + stats.queue_depth
        self.demand += DEMAND_SMOOTHING * (wanted - self.demand)

    def released(self, cut: Cut, mark_ms: int | None, now_ms: int) -> None:
        """It gave a partition up, and answers for what it did before the cut until that is committed."""
        if cut.cut_ms is not None:
            earlier = self.debts.get(cut.partition)  # it had the partition before, and still owes for that, too
            if earlier is not None:
                mark_ms = None if mark_ms is None or earlier.after_ms is None else min(mark_ms, earlier.after_ms)
            self.debts[cut.partition] = Debt(mark_ms, cut.cut_ms)
            self.handed_busy = [entry for entry in self.handed_busy if entry.until_ms > now_ms] + cut.busy

    def committed(self, oldest_ms: int) -> None:
        """Everything of this worker before ``oldest_ms`` is in the database."""
        self.oldest_ms = oldest_ms
        if self.debts:
            self.debts = {index: debt for index, debt in self.debts.items() if debt.cut_ms >= oldest_ms}

    def take_removes(self) -> tuple[list[RemovedProject], list[int]]:
        ids = list(self.removes)[:REMOVES_PER_MESSAGE]
        removed = [RemovedProject(project_id, self.removes.pop(project_id)) for project_id in ids]
        tokens: list[int] = []
        if not self.removes:
            tokens, self.remove_tokens = self.remove_tokens, []
        return removed, tokens

    def take_upserts(self, blob_of: Callable[[int], bytes | None]) -> tuple[list[msgspec.Raw], dict[int, bool]]:
        """Changed projects for one message, and for each whether its immediate poll is wanted."""
        blobs: list[msgspec.Raw] = []
        taken: dict[int, bool] = {}
        size = 0
        for project_id in list(self.upserts):
            blob = blob_of(project_id)
            wants_poll = self.upserts.pop(project_id)
            if blob is None:
                continue
            blobs.append(msgspec.Raw(blob))
            taken[project_id] = wants_poll
            size += len(blob)
            if size >= BYTES_PER_MESSAGE:
                break
        return blobs, taken

    def snapshot_note(self) -> Any:
        tokens, self.snapshot_tokens = self.snapshot_tokens, []
        return Note(tokens=tokens)
