"""When each project is polled: one heap of ticks, one line of waiting polls, no task or timer per project.

Pure; every public method takes the time.  Polls to start collect in ``starts`` until the core takes them.

- One poll in flight per project.  A tick that comes while it runs is missed(overrun).
- Without a free slot a due tick waits.  When the project's following tick comes first, the older one is
  missed(overload) and the newer takes over its place in the line, so a short interval does not starve.
- A host at its limit holds back only its own polls (``HostGate``); a poll that was held back goes to the front of the
  line when its host has room.
- Ticks that passed while the loop stood still are missed(overload), but for the newest.
- An immediate poll waits like a tick; a tick that comes while it waits or runs is missed(overrun).
- The tick with which a new owner resumes may have been polled by an owner that died: if it is missed in the end, then
  as missed(handover), a claim that the writer checks.

It does not know of sockets, results or the writer.  Heap entries are integers, ``tick << SLOT_BITS | slot``; a project
keeps the very one that is its next, and an entry that isn't its slot's is stale and skipped.  A worker may hold a
million projects: what can be computed is not kept for each of them (``tests/worker/test_memory.py``).
"""

import re
from collections import deque
from collections.abc import Collection
from functools import lru_cache
from heapq import heapify, heappop, heappush, heapreplace
from urllib.parse import urlsplit

import msgspec

from cluster.messages.control import BusyProject, Cut, EndedSpan, ResumeReason, TriggerName, WaitingPoll
from cluster.messages.results import MissedReason
from cluster.project import ProjectSpec, compact, longest_poll_ms
from cluster.ticks import first_tick_from, last_tick_before, partition_of, phase_ms
from worker.events import PollStart
from worker.missed import MissedLog

SLOT_BITS = 24
_SLOT_MASK = (1 << SLOT_BITS) - 1
STALE_SHARE_MAX = 0.5  # of the heap, before it is rebuilt
BUSY_GRACE_MS = 1_000  # beyond its time-out, for a poll in flight at the former owner
INTERVAL_CHANGE_TICKS_MAX = 10_000
NEVER_MS = 1 << 62
HOSTS_REMEMBERED = 4_096
HOST_CHARS_MAX = 300  # of a URL's beginning that is remembered


class HostGate:
    """How many polls are in flight to one host:port, and who waits for room there."""

    __slots__ = ("active", "host", "line", "projects")

    def __init__(self, host: str) -> None:
        self.host = host
        self.active = 0
        self.projects = 0
        self.line: deque[Scheduled] = deque()


class Scheduled:
    """One project's place in the schedule.  ``entry``: its next tick's in the heap; until there is one, tick 0."""

    __slots__ = ("busy", "entry", "gate", "held", "spec", "taken_over_ms", "trigger", "waiting_ms")

    def __init__(self, spec: ProjectSpec, held: "HeldPartition", gate: HostGate, slot: int) -> None:
        self.spec = spec
        self.held = held
        self.gate = gate
        self.entry = slot
        self.taken_over_ms = -1  # the tick that was due when the project was taken over
        self.waiting_ms = -1  # the instant of the poll that waits in a line; -1: none
        self.trigger: TriggerName = "tick"
        self.busy = False  # a poll is in flight, here or at the former owner

    @property
    def slot(self) -> int:
        return self.entry & _SLOT_MASK

    @property
    def next_ms(self) -> int:
        return self.entry >> SLOT_BITS

    @property
    def phase(self) -> int:
        return phase_ms(self.spec.id, self.spec.interval_ms)


class HeldPartition:
    __slots__ = ("epoch", "index", "projects", "reason", "resume_after_ms")

    def __init__(self, index: int, epoch: int, resume_after_ms: int | None, reason: ResumeReason) -> None:
        self.index = index
        self.epoch = epoch
        self.resume_after_ms = resume_after_ms
        self.reason = reason  # what ticks of before the takeover are missed for
        self.projects: dict[int, Scheduled] = {}


class Flight(msgspec.Struct, gc=False):
    """A poll in flight; it outlives its project's place in the schedule."""

    gate: HostGate
    partition: int
    tick_ms: int
    trigger: TriggerName
    interval_ms: int
    until_ms: int
    released: bool = False  # the new owner is to be told when it has finished


# What nearly every URL is; a fifth of the cost of urlsplit, which a million projects notice.
_ORDINARY_URL = re.compile(r"(https?)://([a-z0-9._-]+)(?::([0-9]{1,5}))?(?=[/?#]|$)", re.IGNORECASE | re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PORT_MAX = 65_535


def host_of(url: str) -> str:
    """host:port in lower case; the whole URL where it can't be taken apart (its polls then fail one by one)."""
    path = url.find("/", len("https://"))  # no part of host and port comes after it
    return (_host_in(url[:path]) if 0 < path < HOST_CHARS_MAX else _parsed_host(url)) or url


def _parsed_host(url: str) -> str:
    ordinary = _ORDINARY_URL.match(url)
    if ordinary is not None:
        scheme, host, digits = ordinary.groups()
        port = int(digits or 0)
        if port <= _PORT_MAX:
            return f"{host.lower()}:{port or _DEFAULT_PORTS[scheme.lower()]}"
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port or (443 if parts.scheme.lower() == 'https' else 80)}"
    except ValueError:
        return ""


_host_in = lru_cache(maxsize=HOSTS_REMEMBERED)(_parsed_host)  # of the beginnings of URLs, which many have in common


class Ticker:
    def __init__(self, missed: MissedLog) -> None:
        self.missed = missed
        self.slice = 0
        self.per_host = 0
        self.held_back = False  # nothing is started: results can't be kept
        self.stopped = False
        self.stopped_at_ms = 0
        self.partitions: dict[int, HeldPartition] = {}
        self.flights: dict[int, Flight] = {}
        self.starts: list[PollStart] = []
        self.waiting = 0
        self.count = 0
        self._heap: list[int] = []
        self._stale = 0
        self._slots: list[Scheduled | None] = []
        self._free: list[int] = []
        self._line: deque[Scheduled] = deque()
        self._gates: dict[str, HostGate] = {}
        self._busy: list[tuple[int, int]] = []  # heap of (until, project id), polls in flight at former owners
        self._foreign: dict[int, list[int]] = {}  # project id -> until of each of them
        # Project id -> ticks (first, last, interval) of former grids that were taken before their end was heard of.
        self._taken_late: dict[int, list[tuple[int, int, int]]] = {}

    # ---- time -----------------------------------------------------------------------------------------------------

    def next_due(self) -> int | None:
        if self.stopped:
            return None
        due = self._heap[0] >> SLOT_BITS if self._heap else None
        if self._busy and (due is None or self._busy[0][0] < due):
            due = self._busy[0][0]
        return due

    def advance(self, now_ms: int) -> None:
        """Take every tick <= now, then start what may start."""
        if self.stopped:
            return
        heap = self._heap
        limit = (now_ms + 1) << SLOT_BITS
        while heap and heap[0] < limit:
            entry = heap[0]
            scheduled = self._slots[entry & _SLOT_MASK]
            tick = entry >> SLOT_BITS
            if scheduled is None or scheduled.entry != entry:
                heappop(heap)
                self._stale -= 1
                continue
            interval_ms = scheduled.spec.interval_ms
            newest = tick if now_ms - tick < interval_ms else last_tick_before(now_ms + 1, scheduled.phase, interval_ms)
            following = scheduled.entry = (newest + interval_ms) << SLOT_BITS | (entry & _SLOT_MASK)
            heapreplace(heap, following)
            if newest != tick:
                self._miss(scheduled, tick, newest - interval_ms, "overload", now_ms)
            if scheduled.busy or scheduled.waiting_ms >= 0:
                self._due(scheduled, newest, now_ms)
            elif self._line or self.held_back or len(self.flights) >= self.slice or self._is_full(scheduled.gate):
                self._wait(scheduled, newest, "tick")
            else:  # nothing waits before it
                self._start(scheduled, newest, "tick", now_ms)
        while self._busy and self._busy[0][0] <= now_ms:
            until_ms, project_id = heappop(self._busy)
            self._foreign_ended(project_id, until_ms)
        self.start_waiting(now_ms)

    def start_waiting(self, now_ms: int) -> None:
        line = self._line
        while line and len(self.flights) < self.slice and not self.held_back and not self.stopped:
            scheduled = line.popleft()
            if scheduled.waiting_ms < 0:
                self._next_at(scheduled.gate)  # it was removed, or moved: the next of its host takes its place
                continue
            if self._is_full(scheduled.gate):
                scheduled.gate.line.append(scheduled)
            else:
                instant_ms = scheduled.waiting_ms
                self._leave_line(scheduled)
                self._start(scheduled, instant_ms, scheduled.trigger, now_ms)

    def _is_full(self, gate: HostGate) -> bool:
        return 0 < self.per_host <= gate.active

    def _next_at(self, gate: HostGate) -> None:
        """Room at a host: the first of those who wait there goes to the front of the line."""
        while gate.line and not self._is_full(gate):
            scheduled = gate.line.popleft()
            if scheduled.waiting_ms >= 0:
                self._line.appendleft(scheduled)
                return

    def finished(self, project_ids: list[int], now_ms: int) -> list[BusyProject]:
        """Polls have ended.  Returns those that the coordinator is to hear of: it told, or may tell, another owner."""
        moved: list[BusyProject] = []
        flights, partitions, foreign = self.flights, self.partitions, self._foreign
        for project_id in project_ids:
            flight = flights.pop(project_id)
            gate = flight.gate
            gate.active -= 1
            if gate.line:
                self._next_at(gate)
            elif not gate.projects:
                self._forget_unused(gate)
            if flight.released:
                moved.append(BusyProject(project_id, flight.until_ms))
            held = partitions.get(flight.partition)
            scheduled = held.projects.get(project_id) if held is not None else None
            if scheduled is not None and project_id not in foreign:
                scheduled.busy = False
        self.start_waiting(now_ms)
        return moved

    def aborted(self, project_ids: list[int], now_ms: int) -> None:
        """Polls were broken off without a result: their ticks are missed(down)."""
        for project_id in project_ids:
            flight = self.flights.pop(project_id)
            flight.gate.active -= 1
            self._forget_unused(flight.gate)
            if flight.trigger == "tick":
                tick = flight.tick_ms
                self.missed.add(
                    project_id,
                    flight.partition,
                    tick,
                    tick,
                    flight.interval_ms,
                    "down",
                    self._epoch(flight.partition),
                    now_ms,
                )

    def stop(self, now_ms: int) -> None:
        """Start nothing any more; what waits is missed(down)."""
        self.advance_without_starting(now_ms)
        for held in self.partitions.values():
            self._give_up_waiting(held, now_ms)
        self.stopped = True
        self.stopped_at_ms = now_ms

    def _give_up_waiting(self, held: HeldPartition, now_ms: int) -> None:
        for scheduled in held.projects.values():
            if scheduled.waiting_ms >= 0:
                if scheduled.trigger == "tick":
                    self._miss(scheduled, scheduled.waiting_ms, scheduled.waiting_ms, "down", now_ms)
                self._leave_line(scheduled)

    def advance_without_starting(self, now_ms: int) -> None:
        """Take every tick <= now; what may not start waits."""
        before, self.held_back = self.held_back, True
        self.advance(now_ms)
        self.held_back = before

    # ---- what is to be polled -------------------------------------------------------------------------------------

    def limit(self, slice_: int, per_host: int, now_ms: int) -> None:
        self.slice = slice_
        if per_host != self.per_host:
            self.per_host = per_host
            for gate in self._gates.values():
                self._line.extendleft(reversed(gate.line))
                gate.line.clear()
        self.start_waiting(now_ms)

    def grant(
        self,
        partition: int,
        epoch: int,
        resume_after_ms: int | None,
        reason: ResumeReason,
        specs: list[ProjectSpec],
        waiting: list[WaitingPoll],
        busy: list[BusyProject],
        immediate: list[int],
        ended: list[EndedSpan],
        now_ms: int,
        *,
        unseen: Collection[int] = (),
    ) -> None:
        """Take a partition over, or (one that is held already) take from the grant what changed."""
        first_polls = set(immediate)
        uncounted = set(unseen)
        held = self.partitions.get(partition)
        if held is not None:
            held.epoch = epoch
            known = {spec.id for spec in specs}
            for project_id in [project_id for project_id in held.projects if project_id not in known]:
                self.remove(project_id, now_ms, now_ms)
            for spec in specs:
                self.upsert(spec, spec.id not in held.projects, now_ms)
            for span in ended:
                self.account_ended(span, resume_after_ms, reason, now_ms)
            self._keep_foreign(held, busy)
            self.start_waiting(now_ms)
            return
        held = self.partitions[partition] = HeldPartition(partition, epoch, resume_after_ms, reason)
        inherited = {entry.project_id: entry for entry in waiting}
        ours = {entry.project_id for entry in busy if self._is_mine(entry)}
        for entry in busy:
            if entry.until_ms > now_ms and entry.project_id not in ours:
                self._foreign.setdefault(entry.project_id, []).append(entry.until_ms)
                heappush(self._busy, (entry.until_ms, entry.project_id))
        special = inherited.keys() | uncounted | first_polls
        for spec in specs:
            scheduled = self._add(spec, held)
            flight = self.flights.get(spec.id)
            if resume_after_ms is not None and flight is None and spec.id not in special:
                start = max(spec.since_ms, resume_after_ms + 1)
                first = first_tick_from(start, phase_ms(spec.id, spec.interval_ms), spec.interval_ms)
                if first > now_ms and spec.id not in self._foreign:  # as nearly all of a million are
                    self._schedule(scheduled, first)
                    continue
            scheduled.busy = flight is not None or spec.id in self._foreign
            if flight is not None:
                flight.released = spec.id in ours  # the coordinator has it on its list, and is to be told
            before = inherited.pop(spec.id, None)
            counted = spec.id not in uncounted
            if before is not None and not counted and before.trigger == "tick":
                # Of a span the former owner did not know?  Its ticks follow below.
                before = before if before.scheduled_at_ms < spec.since_ms else None
            if before is not None and scheduled.busy:
                if before.trigger == "tick":
                    self._miss(scheduled, before.scheduled_at_ms, before.scheduled_at_ms, "handover", now_ms)
            elif before is not None:
                self._wait(scheduled, before.scheduled_at_ms, before.trigger)
            after_ms = resume_after_ms if counted or resume_after_ms is None else spec.since_ms - 1
            self._resume(scheduled, after_ms, reason, spec.id in first_polls, now_ms, granted=True)
        for span in ended:
            self.account_ended(span, resume_after_ms, reason, now_ms)
        for poll in inherited.values():  # it waited when its project ended
            if poll.trigger == "tick":
                tick = poll.scheduled_at_ms
                self.missed.add(poll.project_id, partition, tick, tick, 1_000, "paused", epoch, now_ms)
        if self.stopped:
            self._give_up_waiting(held, now_ms)
        self.start_waiting(now_ms)

    def revoke(self, partition: int, now_ms: int) -> Cut | None:
        """Give a partition up.  None when it isn't held."""
        held = self.partitions.get(partition)
        if held is None:
            return None
        self.advance_without_starting(now_ms)
        waiting: list[WaitingPoll] = []
        busy: list[BusyProject] = []
        for project_id, scheduled in held.projects.items():
            if scheduled.waiting_ms >= 0:
                waiting.append(WaitingPoll(project_id, scheduled.waiting_ms, scheduled.trigger))
            flight = self.flights.get(project_id)
            if flight is not None:
                flight.released = True
                busy.append(BusyProject(project_id, flight.until_ms))
            self._drop(scheduled)
        del self.partitions[partition]
        self._tidy()
        self.start_waiting(now_ms)
        cut_ms = self.stopped_at_ms if self.stopped else now_ms
        return Cut(partition, held.epoch, cut_ms, waiting=waiting, busy=busy, resume_after_ms=held.resume_after_ms)

    def upsert(self, spec: ProjectSpec, immediate: bool, now_ms: int) -> None:
        """A project is new or has changed; ignored when its partition isn't held."""
        held = self.partitions.get(partition_of(spec.id))
        if held is None:
            return
        scheduled = held.projects.get(spec.id)
        if scheduled is None:
            scheduled = self._add(spec, held)
            scheduled.busy = spec.id in self.flights or spec.id in self._foreign  # removed and added while it runs
            self._resume(scheduled, spec.since_ms - 1, "handover", immediate, now_ms, granted=False)
        elif scheduled.spec != spec:
            old, scheduled.spec = scheduled.spec, compact(spec)
            self._change_gate(scheduled, old)
            if old.interval_ms != spec.interval_ms or old.since_ms != spec.since_ms:
                self._change_interval(scheduled, old, now_ms)
        self.start_waiting(now_ms)

    def remove(self, project_id: int, until_ms: int, now_ms: int) -> None:
        """A project ended at ``until_ms``: what was due before and waits, or was not yet taken, is missed(paused)."""
        held = self.partitions.get(partition_of(project_id))
        scheduled = held.projects.pop(project_id, None) if held is not None else None
        if scheduled is None:
            return
        first = scheduled.next_ms
        if scheduled.waiting_ms >= 0 and scheduled.trigger == "tick" and scheduled.waiting_ms < until_ms:
            self._miss(scheduled, scheduled.waiting_ms, scheduled.waiting_ms, "paused", now_ms)
        if first < until_ms:
            last = last_tick_before(until_ms, scheduled.phase, scheduled.spec.interval_ms)
            self._miss(scheduled, first, last, "paused", now_ms)
        self._drop(scheduled)
        self._tidy()

    def settle(self, finished: list[BusyProject], now_ms: int) -> None:
        """Polls that were in flight at a former owner have ended."""
        for entry in finished:
            self._foreign_ended(entry.project_id, entry.until_ms)
        self.start_waiting(now_ms)

    def outstanding(self) -> dict[int, int]:
        """Per partition, the oldest tick that was taken and has neither ended nor been counted missed."""
        oldest: dict[int, int] = {}
        for flight in self.flights.values():
            known = oldest.get(flight.partition)
            if known is None or flight.tick_ms < known:
                oldest[flight.partition] = flight.tick_ms
        for line in (self._line, *(gate.line for gate in self._gates.values() if gate.line)):
            for scheduled in line:
                if scheduled.waiting_ms >= 0:
                    index = scheduled.held.index
                    if scheduled.waiting_ms < oldest.get(index, NEVER_MS):
                        oldest[index] = scheduled.waiting_ms
        return oldest

    def interval_ms_of(self, project_id: int) -> int | None:
        """Of a project that is held here."""
        scheduled = self._find(project_id)
        return scheduled.spec.interval_ms if scheduled is not None else None

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _find(self, project_id: int) -> Scheduled | None:
        held = self.partitions.get(partition_of(project_id))
        return held.projects.get(project_id) if held is not None else None

    def _epoch(self, partition: int) -> int:
        held = self.partitions.get(partition)
        return held.epoch if held is not None else 0

    def _miss(
        self,
        scheduled: Scheduled,
        first_ms: int,
        last_ms: int,
        reason: MissedReason,
        now_ms: int,
    ) -> None:
        held = scheduled.held
        if first_ms == last_ms == scheduled.taken_over_ms and reason != "down":
            reason = held.reason
        self.missed.add(
            scheduled.spec.id, held.index, first_ms, last_ms, scheduled.spec.interval_ms, reason, held.epoch, now_ms
        )

    def _due(self, scheduled: Scheduled, tick_ms: int, now_ms: int) -> None:
        if scheduled.busy or (scheduled.waiting_ms >= 0 and scheduled.trigger != "tick"):
            self._miss(scheduled, tick_ms, tick_ms, "overrun", now_ms)
        elif scheduled.waiting_ms >= 0:
            self._miss(scheduled, scheduled.waiting_ms, scheduled.waiting_ms, "overload", now_ms)
            scheduled.waiting_ms = tick_ms
        else:
            self._wait(scheduled, tick_ms, "tick")

    def _wait(self, scheduled: Scheduled, instant_ms: int, trigger: TriggerName) -> None:
        assert scheduled.waiting_ms < 0
        assert not scheduled.busy
        scheduled.waiting_ms = instant_ms
        scheduled.trigger = trigger
        self.waiting += 1
        self._line.append(scheduled)

    def _leave_line(self, scheduled: Scheduled) -> None:
        scheduled.waiting_ms = -1
        self.waiting -= 1

    def _start(self, scheduled: Scheduled, instant_ms: int, trigger: TriggerName, now_ms: int) -> None:
        spec = scheduled.spec
        gate = scheduled.gate
        held = scheduled.held
        until_ms = now_ms + longest_poll_ms(spec) + BUSY_GRACE_MS
        self.flights[spec.id] = Flight(gate, held.index, instant_ms, trigger, spec.interval_ms, until_ms)
        self.starts.append(PollStart(spec, instant_ms, trigger, held.epoch))
        gate.active += 1
        scheduled.busy = True

    def _is_mine(self, entry: BusyProject) -> bool:
        flight = self.flights.get(entry.project_id)
        return flight is not None and flight.until_ms == entry.until_ms

    def _foreign_ended(self, project_id: int, until_ms: int) -> None:
        running = self._foreign.get(project_id)
        if running is not None and until_ms in running:
            running.remove(until_ms)
            if not running:
                del self._foreign[project_id]
                scheduled = self._find(project_id)
                if scheduled is not None and project_id not in self.flights:
                    scheduled.busy = False

    def _keep_foreign(self, held: HeldPartition, busy: list[BusyProject]) -> None:
        """Of the polls at former owners only these run on: a ``Settle`` is lost with a coordinator that dies."""
        if not self._foreign:
            return
        running = {(entry.project_id, entry.until_ms) for entry in busy}
        for project_id in held.projects.keys() & self._foreign.keys():
            for until_ms in list(self._foreign[project_id]):
                if (project_id, until_ms) not in running:
                    self._foreign_ended(project_id, until_ms)

    def _resume(
        self,
        scheduled: Scheduled,
        after_ms: int | None,
        reason: ResumeReason,
        immediate: bool,
        now_ms: int,
        *,
        granted: bool,
    ) -> None:
        """Where a project that is new to this worker goes on: every tick <= after_ms is accounted for.

        The newest tick that passed is due now; older ones are missed.  A project nobody ever polled (None) begins with
        its next tick; an immediate poll takes the place of the ticks that passed.  ``granted``: the project came with
        its partition, so an earlier owner may have begun.
        """
        spec = scheduled.spec
        interval_ms = spec.interval_ms
        known_before = after_ms is not None and not immediate  # else no cut or mark speaks for it
        start = max(spec.since_ms, after_ms + 1) if after_ms is not None and known_before else spec.since_ms
        phase = scheduled.phase
        first = first_tick_from(start, phase, interval_ms)
        if first > now_ms:
            self._schedule(scheduled, first)
            newest = None
        else:
            newest = last_tick_before(now_ms + 1, phase, interval_ms)
            self._schedule(scheduled, newest + interval_ms)
        if immediate and scheduled.waiting_ms < 0 and not scheduled.busy:
            if newest is not None:
                self._miss(scheduled, first, newest, "handover" if granted else "overrun", now_ms)
            on_a_tick = (now_ms - phase) % interval_ms == 0
            self._wait(scheduled, now_ms - 1 if on_a_tick else now_ms, "immediate")
        elif newest is not None:
            if after_ms is None:
                self._miss(scheduled, first, newest, reason, now_ms)
                return
            if newest > first:
                self._miss(scheduled, first, newest - interval_ms, reason, now_ms)
            if scheduled.busy:
                self._miss(scheduled, newest, newest, reason, now_ms)
                return
            self._due(scheduled, newest, now_ms)
            scheduled.taken_over_ms = newest

    def account_ended(self, span: EndedSpan, after_ms: int | None, reason: ResumeReason, now_ms: int) -> None:
        """Claim the ticks of a span that ended, but for those this worker is about to report itself."""
        partition = partition_of(span.project_id)
        held = self.partitions.get(partition)
        scheduled = held.projects.get(span.project_id) if held is not None else None
        flight = self.flights.get(span.project_id)
        ours = {flight.tick_ms if flight is not None else -1, scheduled.waiting_ms if scheduled is not None else -1}
        phase, interval_ms = phase_ms(span.project_id, span.interval_ms), span.interval_ms
        start = span.since_ms if after_ms is None or span.unheard else max(span.since_ms, after_ms + 1)
        epoch = self._epoch(partition)
        for end in sorted({*ours, span.until_ms}):
            first = first_tick_from(start, phase, interval_ms)
            if start <= end and first < min(end, span.until_ms):
                last = last_tick_before(min(end, span.until_ms), phase, interval_ms)
                self.missed.add(span.project_id, partition, first, last, interval_ms, reason, epoch, now_ms)
            start = max(start, end + 1)

    def _change_interval(self, scheduled: Scheduled, old: ProjectSpec, now_ms: int) -> None:
        """The span changed at ``since_ms``, a moment ago: the new grid may have ticks since that the old had not."""
        spec = scheduled.spec
        old_phase, old_next = phase_ms(old.id, old.interval_ms), scheduled.next_ms
        phase = scheduled.phase
        first = first_tick_from(spec.since_ms, phase, spec.interval_ms)
        if old_next < spec.since_ms:  # due by the old grid, not yet taken
            last = last_tick_before(spec.since_ms, old_phase, old.interval_ms)
            partition = partition_of(spec.id)
            self.missed.add(
                spec.id, partition, old_next, last, old.interval_ms, "paused", self._epoch(partition), now_ms
            )
        waits_off_grid = (
            scheduled.waiting_ms >= spec.since_ms
            and scheduled.trigger == "tick"
            and (scheduled.waiting_ms - phase) % spec.interval_ms != 0
        )
        given_back = scheduled.waiting_ms if waits_off_grid else -1  # neither polled nor counted
        if waits_off_grid:
            self._leave_line(scheduled)
        upper = min(now_ms, first + spec.interval_ms * INTERVAL_CHANGE_TICKS_MAX)
        pending = [
            tick
            for tick in range(first, upper + 1, spec.interval_ms)
            if tick < old.since_ms or (tick - old_phase) % old.interval_ms != 0 or tick >= old_next
        ]
        earlier = [each for each in self._taken_late.pop(spec.id, []) if each[1] >= spec.since_ms]
        pending = [
            tick
            for tick in pending
            if not any(begun <= tick <= last and (tick - begun) % step == 0 for begun, last, step in earlier)
        ]
        begun = first_tick_from(max(spec.since_ms, old.since_ms), old_phase, old.interval_ms)
        earlier.append((begun, old_next - old.interval_ms, old.interval_ms))
        earlier = [(begun, last - step if last == given_back else last, step) for begun, last, step in earlier]
        earlier = [each for each in earlier if each[0] <= each[1]]
        if earlier:
            self._taken_late[spec.id] = earlier
        following = first_tick_from(now_ms + 1, phase, spec.interval_ms)
        for tick in pending[:-1]:
            self._miss(scheduled, tick, tick, "handover", now_ms)
        if upper < now_ms:
            skipped = first_tick_from(upper + 1, phase, spec.interval_ms)
            if skipped < following:
                self._miss(scheduled, skipped, following - spec.interval_ms, "handover", now_ms)
        self._schedule(scheduled, following)
        if pending and scheduled.busy:
            self._miss(scheduled, pending[-1], pending[-1], "handover", now_ms)
        elif pending:
            self._due(scheduled, pending[-1], now_ms)
            scheduled.taken_over_ms = pending[-1]

    def _schedule(self, scheduled: Scheduled, next_ms: int) -> None:
        entry = scheduled.entry
        if entry >> SLOT_BITS:
            self._stale += 1
        scheduled.entry = entry = next_ms << SLOT_BITS | entry & _SLOT_MASK
        heappush(self._heap, entry)

    def _add(self, spec: ProjectSpec, held: HeldPartition) -> Scheduled:
        slot = self._free.pop() if self._free else len(self._slots)
        assert slot <= _SLOT_MASK, "more projects than a worker can hold"
        scheduled = Scheduled(compact(spec), held, self._gate(spec.url), slot)
        if slot == len(self._slots):
            self._slots.append(scheduled)
        else:
            self._slots[slot] = scheduled
        held.projects[spec.id] = scheduled
        self.count += 1
        return scheduled

    def _drop(self, scheduled: Scheduled) -> None:
        """Take a project out of every structure but its partition's dict."""
        if scheduled.waiting_ms >= 0:
            self._leave_line(scheduled)
        if scheduled.next_ms:
            self._stale += 1
        self._slots[scheduled.slot] = None
        self._free.append(scheduled.slot)
        self._leave_gate(scheduled.gate)
        self._taken_late.pop(scheduled.spec.id, None)
        self.count -= 1

    def _tidy(self) -> None:
        if self._stale > len(self._heap) * STALE_SHARE_MAX and self._stale > 1_000:
            self._heap = [s.entry for s in self._slots if s is not None and s.next_ms]
            heapify(self._heap)
            self._stale = 0

    def _gate(self, url: str) -> HostGate:
        host = host_of(url)
        gate = self._gates.get(host)
        if gate is None:
            gate = self._gates[host] = HostGate(host)
        gate.projects += 1
        return gate

    def _leave_gate(self, gate: HostGate) -> None:
        gate.projects -= 1
        self._forget_unused(gate)

    def _forget_unused(self, gate: HostGate) -> None:
        if gate.projects == 0 and gate.active == 0:
            self._gates.pop(gate.host, None)

    def _change_gate(self, scheduled: Scheduled, old: ProjectSpec) -> None:
        if scheduled.spec.url != old.url:
            former, scheduled.gate = scheduled.gate, self._gate(scheduled.spec.url)
            if scheduled.waiting_ms >= 0:
                if scheduled in former.line:
                    former.line.remove(scheduled)
                    self._line.append(scheduled)
                else:
                    self._next_at(former)
            self._leave_gate(former)

    def check(self) -> None:
        """Invariants, for tests and simulation."""
        everything = [s for held in self.partitions.values() for s in held.projects.values()]
        assert self.count == len(everything)
        assert self.waiting == sum(s.waiting_ms >= 0 for s in everything)
        assert all(not (s.busy and s.waiting_ms >= 0) for s in everything)
        assert self.stopped or len(self._heap) == len(everything) + self._stale, (len(self._heap), self._stale)
        assert all(self._slots[s.slot] is s for s in everything)
        active = sum(gate.active for gate in self._gates.values())
        assert active <= len(self.flights)
