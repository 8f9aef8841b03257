"""The coordinator's decisions: who is a member, who owns what, who has how many slots.

Pure (see cluster/core.py); composed of ``catalog`` (projects), ``ring`` (placement), ``ownership`` (partitions),
``member`` and ``link`` (what each worker is told), ``slots`` (MAX_CONCURRENT_HTTP) and ``census`` (totals).

    loading    projects are being read; workers that say hello keep polling what they hold
    gathering  waiting for every live worker's hello, to learn what is held already
    running    wanted is compared with actual; the difference is revoked and granted
    stopping   nothing is reassigned any more

It does not decide that a process is dead: it hears so (``ProcessExited``, a successor's hello), and asks for a process
that hangs to be killed.  Without a supervisor a silent worker keeps its partitions until its successor says hello.
"""

from collections import defaultdict

import msgspec

from cluster.messages.control import (
    Ack,
    BusyProject,
    CoordinatorHeartbeat,
    EndedSpan,
    Grant,
    Heartbeat,
    Hello,
    KillProcess,
    Leaving,
    Limits,
    PartitionGrant,
    ProcessExited,
    ProcessStarted,
    Released,
    Remove,
    Reset,
    ResumeReason,
    Resync,
    Retire,
    Revoke,
    Settle,
    Settled,
    SetWorkers,
    SliceReached,
    SnapshotEnd,
    SupervisorHello,
    SupervisorStopping,
    ToCoordinator,
    Upsert,
    WaitingPoll,
    WhoAreYou,
    WriterHeartbeat,
)
from cluster.project import decode_spec
from cluster.ticks import partition_of
from coordinator.catalog import Catalog
from coordinator.census import Census
from coordinator.events import (
    ConfirmChange,
    DatabaseStateChanged,
    DrainRequested,
    DurableState,
    Effect,
    Event,
    JournalProjects,
    LoadFinished,
    LoadProgressed,
    MessageReceived,
    PeerUnreachable,
    Phase,
    ProjectsChanged,
    SaveEpoch,
    ScaleRequested,
    Send,
    View,
    WorkerView,
    WriteLog,
)
from coordinator.link import WorkerLink
from coordinator.member import BYTES_PER_MESSAGE, Member, Note
from coordinator.ownership import Ownership, Partition, Resume
from coordinator.ring import assign, overloaded
from coordinator.slots import SliceBook, split_slots

TURN_MS = 250  # how often time-outs are looked at
STALL_MS = 1_500  # a longer silence between two turns is our own, not the workers'
HEARTBEAT_MS = 1_000
HANG_MS = 3_500  # three missed heartbeats of 1 s
START_MAX_MS = 30_000  # from the start of a process to its hello
WRITER_HANG_MS = 10_000
KILL_AGAIN_MS = 2_000
GATHER_MAX_MS = 5_000  # then missing processes are no longer waited for, unless they live
JOIN_SETTLE_MS = 300  # several newcomers make one plan
REVOKE_AGAIN_MS = 2_000
REBALANCE_MS = 5_000
SLICES_MS = 1_000
PARTITIONS_PER_GRANT = 512
SESSIONS_PER_EPOCH = 1_000_000
NEVER_MS = 1 << 62


class WireGrant(msgspec.Struct, frozen=True):
    """PartitionGrant with projects as they are stored: encoded once, when they were loaded."""

    partition: int
    resume_after_ms: int | None
    reason: ResumeReason
    projects: list[msgspec.Raw]
    waiting: list[WaitingPoll] = []
    busy: list[BusyProject] = []
    immediate: list[int] = []
    ended: list[EndedSpan] = []
    last: bool = True


class WireUpsert(msgspec.Struct, tag="upsert", frozen=True):
    session: int
    seq: int
    epoch: int
    projects: list[msgspec.Raw]
    immediate: list[int] = []


class WireGrants(msgspec.Struct, tag="grant", frozen=True):
    session: int
    seq: int
    epoch: int
    partitions: list[WireGrant]


def worker_number(name: str) -> tuple[int, str]:
    """Sort key: worker-2 before worker-10."""
    tail = name.rpartition("-")[2]
    return (int(tail) if tail.isdecimal() else 1 << 30, name)


class CoordinatorCore:
    def __init__(
        self,
        *,
        max_concurrent_http: int,
        max_per_host: int,
        workers_wanted: int,
        run_id: str,
        restored: DurableState,
        now_ms: int,
    ) -> None:
        same_run = bool(run_id) and restored.run_id == run_id
        self.phase: Phase = "loading"
        self.epoch = restored.epoch
        self.catalog = Catalog()
        self.ownership = Ownership(restored.marks, cold_reason="handover" if same_run else "down")
        self.slices = SliceBook(
            restored.max_concurrent_http if same_run and restored.max_concurrent_http else max_concurrent_http
        )
        self.names: list[str] = (
            list(restored.worker_names)
            if same_run and restored.worker_names
            else [f"worker-{number}" for number in range(1, workers_wanted + 1)]
        )
        self.census = Census(restored if same_run else DurableState(), now_ms)
        self.members: dict[str, Member] = {}
        self._run_id = run_id
        self._max_per_host = max_per_host
        self._peers: dict[bytes, str] = {}  # routing id -> worker name
        self._supervisor: bytes | None = None
        self._alive: dict[str, str] = {}  # incarnation -> name, as the supervisor last said
        self._writer_alive: str | None = None
        self._writer_kill_sent_ms = 0
        self._ring: tuple[str, ...] = ()
        self._ring_dirty = False  # membership or the total changed: slices are to be split again
        self._immediate: defaultdict[int, set[int]] = defaultdict(set)  # partition -> ids whose first poll is unacked
        self._ended: defaultdict[int, list[EndedSpan]] = defaultdict(list)  # partition -> not yet accounted for
        self._tokens: dict[int, int] = {}  # token -> acknowledgements outstanding
        self._revoking: set[int] = set()
        self._sessions = 0
        self._loaded = 0
        self._total: int | None = None
        self._database_up = False
        self._gather_until_ms = NEVER_MS
        self._plan_at_ms: int | None = None
        self._last_turn_ms = now_ms
        self._turn_at_ms = now_ms + TURN_MS
        self._heartbeat_at_ms = now_ms
        self._rebalance_at_ms = now_ms + REBALANCE_MS
        self._slices_at_ms = now_ms
        self._started_ms = now_ms

    # ---- the core's interface -------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        effects: list[Effect] = self._notice_own_stall(now_ms)
        match event:
            case MessageReceived(peer, message):
                effects += self._on_message(peer, message, now_ms)
            case ProjectsChanged():
                effects += self._on_projects(event, now_ms)
            case ScaleRequested(workers, max_concurrent_http):
                effects += self._on_scale(workers, max_concurrent_http, now_ms)
            case DrainRequested(worker):
                effects += self._on_drain(worker, now_ms)
            case LoadProgressed(loaded, total):
                self._loaded, self._total = loaded, total
            case LoadFinished():
                effects += self._on_load_finished(now_ms)
            case DatabaseStateChanged(up):
                if up != self._database_up:
                    self._database_up = up
                    text = "the database answers" if up else "the database is away; polling goes on"
                    effects.append(WriteLog("info" if up else "warning", text))
            case PeerUnreachable(peer):
                pass  # the link resends, the worker says hello again, or its process is reported dead
        return effects

    def next_timer(self) -> int | None:
        return self._turn_at_ms if self._plan_at_ms is None else min(self._turn_at_ms, self._plan_at_ms)

    def handle_timer(self, now_ms: int) -> list[Effect]:
        effects = self._notice_own_stall(now_ms)
        if self._plan_at_ms is not None and now_ms >= self._plan_at_ms:
            effects += self._plan(now_ms)
        if now_ms < self._turn_at_ms:
            return effects
        self._turn_at_ms = now_ms + TURN_MS
        if self.phase == "gathering":
            effects += self._try_run(now_ms)
        effects += self._look_for_hangs(now_ms)
        for member in list(self.members.values()):
            if member.link is not None:
                effects += [Send(member.link.peer, message) for message in member.link.resend(now_ms)]
        if self.phase == "running":
            effects += self._revoke_again(now_ms)
            if now_ms >= self._rebalance_at_ms:
                self._rebalance_at_ms = now_ms + REBALANCE_MS
                if overloaded(self.catalog.weights, self.ownership.wanted(), self._ring):
                    effects += self._plan(now_ms)
            if now_ms >= self._slices_at_ms:
                effects += self._share_slots(now_ms)
        if now_ms >= self._heartbeat_at_ms:
            self._heartbeat_at_ms = now_ms + HEARTBEAT_MS
            self._forget_accounted()
            effects += self._heartbeat()
        return effects

    # ---- what others may look at ----------------------------------------------------------------------------------

    def view(self, now_ms: int) -> View:
        sizes: defaultdict[str, int] = defaultdict(int)
        counts: defaultdict[str, int] = defaultdict(int)
        weights: defaultdict[str, float] = defaultdict(float)
        for index, partition in enumerate(self.ownership.partitions):
            if partition.owner is not None:
                sizes[partition.owner] += self.catalog.size(index)
                counts[partition.owner] += 1
                weights[partition.owner] += self.catalog.weights[index]
        workers = [
            WorkerView(
                name=member.name,
                pid=member.pid,
                incarnation=member.incarnation,
                state=member.state,
                projects=sizes[member.name],
                partitions=counts[member.name],
                weight=weights[member.name],
                slice=self.slices.slice_of(member.name),
                stats=member.stats,
            )
            for member in sorted(self.members.values(), key=lambda member: worker_number(member.name))
        ]
        return View(
            phase=self.phase,
            epoch=self.epoch,
            projects=self.catalog.count,
            projects_loaded=self._loaded,
            projects_total=self._total,
            partitions_assigned=self.ownership.assigned(),
            max_concurrent_http=self.slices.total,
            workers_wanted=len(self.names),
            workers=workers,
            totals=self.census.totals(),
            writer=self.census.writer(),
            writer_state=self.census.writer_state(now_ms),
            database_up=self._database_up,
            horizon_ms=self.horizon_ms(),
        )

    def durable(self, now_ms: int) -> DurableState:  # noqa: ARG002 - one signature for all that look
        state = self.census.durable()
        state.run_id = self._run_id
        state.epoch = self.epoch
        state.marks = self.ownership.marks()
        state.worker_names = list(self.names)
        state.max_concurrent_http = self.slices.total
        return state

    def project_ids(self) -> set[int]:
        return self.catalog.ids()

    def has_project(self, project_id: int) -> bool:
        return project_id in self.catalog

    def horizon_ms(self) -> int | None:
        """Every tick before it is in the database.  None while a partition with projects was never polled."""
        lowest = NEVER_MS
        for index, partition in enumerate(self.ownership.partitions):
            if partition.mark_ms is not None:
                lowest = min(lowest, partition.mark_ms + 1)
            elif self.catalog.size(index):
                return None
        for member in self.members.values():
            if member.oldest_ms is not None:
                lowest = min(lowest, member.oldest_ms)
        return None if lowest == NEVER_MS else lowest

    # ---- messages -------------------------------------------------------------------------------------------------

    def _on_message(self, peer: bytes, message: ToCoordinator, now_ms: int) -> list[Effect]:
        match message:
            case Hello():
                return self._on_hello(peer, message, now_ms)
            case WriterHeartbeat():
                self.census.writer_heard(message, now_ms)
                return []
            case SupervisorHello():
                return self._on_supervisor(peer, message, now_ms)
            case ProcessStarted(name, incarnation, pid):
                self._supervised_process(name, incarnation, pid, now_ms)
                return []
            case ProcessExited(name, incarnation, exit_status, restarting):
                return self._on_exit(name, incarnation, exit_status, restarting, now_ms)
            case SupervisorStopping():
                return self._stop()
            case Heartbeat() | Ack() | Resync() | Released() | Settled() | SliceReached() | Leaving():
                member = self.members.get(self._peers.get(peer, ""))
                if member is None or member.peer != peer:
                    return [Send(peer, WhoAreYou())]
                return self._on_worker(member, message, now_ms)

    def _on_worker(
        self,
        member: Member,
        message: Heartbeat | Ack | Resync | Released | Settled | SliceReached | Leaving,
        now_ms: int,
    ) -> list[Effect]:
        match message:
            case Heartbeat():
                return self._on_heartbeat(member, message, now_ms)
            case Ack(session, seq):
                return self._on_ack(member, session, seq, now_ms)
            case Released(_, cuts):
                effects: list[Effect] = []
                for cut in cuts:
                    if self.ownership.released(cut, member.name):
                        self._revoking.discard(cut.partition)
                        self._offer(cut.partition)
                return effects + self._pump_all(now_ms) + self._retire_if_empty(member)
            case Settled(finished):
                for entry in finished:
                    index = self.ownership.settled(entry)
                    owner = None if index is None else self._told_owner(self.ownership.partitions[index])
                    if owner is not None:
                        owner.settles[entry] = None
                return self._pump_all(now_ms)
            case SliceReached(session, seq):
                if member.link is not None and session == member.link.session and seq == member.limits_seq:
                    self.slices.reached(member.name)
                    return self._send_slices(now_ms)
                return []
            case Resync(session):
                if member.link is not None and session == member.link.session and self.phase in ("running", "stopping"):
                    return self._open_session(member, now_ms)
                return []
            case Leaving(_, stats, committed_at_ms):
                member.heard(stats, now_ms)
                self.census.heard(member.incarnation, stats)
                member.oldest_ms = None
                if member.link is not None:
                    self.ownership.committed(member.name, member.link.acked_seq, committed_at_ms, {})
                return []

    def _on_heartbeat(self, member: Member, beat: Heartbeat, now_ms: int) -> list[Effect]:
        if beat.incarnation != member.incarnation:
            return []
        member.heard(beat.stats, now_ms)
        member.oldest_ms = beat.oldest_ms
        self.census.heard(member.incarnation, beat.stats)
        if member.state == "hung" and member.kill_sent_ms is None:
            member.state = "running"
        if member.link is not None and beat.session == member.link.session:
            self.ownership.committed(member.name, beat.seq, beat.committed_at_ms, beat.lagging)
        return self._retire_if_empty(member)

    def _on_ack(self, member: Member, session: int, seq: int, now_ms: int) -> list[Effect]:
        member.last_heard_ms = now_ms
        effects: list[Effect] = []
        if member.link is not None:
            for entry in member.link.ack(session, seq, now_ms):
                note: Note = entry.note
                for index in note.granted:
                    self.ownership.grant_acked(index, member.name, entry.seq)
                for index, project_id in note.immediate:
                    self._immediate[index].discard(project_id)
                effects += self._confirm(note.tokens)
        return effects + self._pump(member, now_ms)

    # ---- membership -----------------------------------------------------------------------------------------------

    def _on_hello(self, peer: bytes, hello: Hello, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        member = self.members.get(hello.worker)
        if member is not None and member.incarnation != hello.incarnation:
            if member.peer is not None:  # one process per name: the older one is dead
                effects += self._lose(member, now_ms)
            member = None
        if member is None:
            member = self._process_alive(hello.worker, hello.incarnation, hello.pid, now_ms, supervised=False)
        if member.state == "hung":
            return effects  # its kill is under way
        if member.peer is None:
            self.slices.joined(member.name, hello.slice)
        if member.peer is not None:
            self._peers.pop(member.peer, None)
        self._peers[peer] = member.name
        member.peer = peer
        member.pid = hello.pid
        member.last_heard_ms = now_ms
        leaves = hello.draining or (self._supervisor is not None and member.name not in self.names)
        if member.state in ("starting", "restarting"):
            effects.append(WriteLog("info", f"{member.name} (pid {member.pid}) joined"))
        member.state = "draining" if leaves else "running"
        for held in hello.held:
            owner = self.ownership.partitions[held.partition].owner
            if owner in (None, member.name) or self.phase in ("loading", "gathering"):
                self.ownership.adopt(held.partition, member.name, held.epoch)
        if self.phase == "gathering":
            effects += self._try_run(now_ms)
        elif self.phase in ("running", "stopping"):
            effects += self._open_session(member, now_ms)
            if self.phase == "running":
                self._plan_soon(now_ms)
        return effects

    def _process_alive(
        self, name: str, incarnation: str, pid: int, now_ms: int, *, supervised: bool = True
    ) -> Member:
        """Make sure that a live process has its place; an older incarnation that is still listed stays until it exits."""
        member = self.members.get(name)
        if member is None or (member.incarnation != incarnation and member.peer is None):
            member = self.members[name] = Member(name, incarnation, pid, now_ms)
        if member.incarnation == incarnation:
            member.supervised = member.supervised or supervised
        return member

    def _supervised_process(self, name: str, incarnation: str, pid: int, now_ms: int) -> None:
        if name == "writer":
            self._writer_alive = incarnation
        elif name.startswith("worker-"):
            self._process_alive(name, incarnation, pid, now_ms)

    def _on_supervisor(self, peer: bytes, hello: SupervisorHello, now_ms: int) -> list[Effect]:
        self._supervisor = peer
        effects: list[Effect] = []
        self._alive = {process.incarnation: process.name for process in hello.alive}
        for process in hello.alive:
            self._supervised_process(process.name, process.incarnation, process.pid, now_ms)
        for member in list(self.members.values()):
            unlisted = member.incarnation not in self._alive
            if member.supervised and unlisted and now_ms - member.since_ms > 2 * HEARTBEAT_MS:
                effects += self._on_exit(member.name, member.incarnation, None, member.name in self.names, now_ms)
        if hello.stopping:
            effects += self._stop()
        if self.phase == "gathering":
            effects += self._try_run(now_ms)
        return [*effects, Send(peer, SetWorkers(list(self.names))), *self._heartbeat()]

    def _on_exit(
        self, name: str, incarnation: str, exit_status: int | None, restarting: bool, now_ms: int
    ) -> list[Effect]:
        self._alive.pop(incarnation, None)
        if name == "writer":
            self.census.writer_gone(incarnation)
            return []
        member = self.members.get(name)
        if member is None or member.incarnation != incarnation:
            self.census.gone(incarnation)
            return []
        effects = self._lose(member, now_ms)
        if restarting and name in self.names and self.phase != "stopping":
            how = "" if exit_status is None else f" (exit status {exit_status})"
            effects.insert(0, WriteLog("warning", f"{name} died{how}; its partitions move to the others"))
            gone = Member(name, "", 0, now_ms)
            gone.state = "restarting"
            self.members[name] = gone
        else:
            del self.members[name]
        if self.phase == "gathering":
            effects += self._try_run(now_ms)
        return effects

    def _lose(self, member: Member, now_ms: int) -> list[Effect]:
        """The fence has fallen: this incarnation polls no more."""
        if member.peer is not None:
            self._peers.pop(member.peer, None)
        tokens = member.close()
        self.census.gone(member.incarnation)
        self.slices.gone(member.name)
        member.oldest_ms = None
        lost = [] if self.phase == "stopping" else self.ownership.lost(member.name)
        self._revoking.difference_update(lost)
        self._ring_dirty = True
        effects = self._confirm(tokens)
        if self.phase == "running":
            effects += self._plan(now_ms)
        return effects

    def _stop(self) -> list[Effect]:
        if self.phase == "stopping":
            return []
        self.phase = "stopping"
        self._plan_at_ms = None
        return [WriteLog("info", "stopping: nothing is reassigned any more")]

    def _look_for_hangs(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for member in self.members.values():
            silence_ms = now_ms - member.last_heard_ms
            patience_ms = START_MAX_MS if member.state == "starting" else HANG_MS
            if member.state == "restarting" or silence_ms <= patience_ms or self.phase == "stopping":
                continue
            if member.kill_sent_ms is not None and now_ms - member.kill_sent_ms < KILL_AGAIN_MS:
                continue
            if self._supervisor is not None and member.supervised:
                if member.kill_sent_ms is None:
                    text = f"{member.name} (pid {member.pid}) has been silent for {silence_ms / 1000:.1f} s; killing it"
                    effects.append(WriteLog("warning", text))
                member.kill_sent_ms = now_ms
                kill = KillProcess(member.name, member.incarnation, f"silent for {silence_ms} ms")
                effects.append(Send(self._supervisor, kill))
            if member.state != "starting":
                member.state = "hung"
        writer = self.census.writer_silent_ms(now_ms)
        if (
            writer is not None
            and writer > WRITER_HANG_MS
            and self._supervisor is not None
            and self._writer_alive == self.census.writer_incarnation
            and now_ms - self._writer_kill_sent_ms > WRITER_HANG_MS
            and self.phase != "stopping"
        ):
            self._writer_kill_sent_ms = now_ms
            effects.append(WriteLog("warning", f"the writer has been silent for {writer / 1000:.1f} s; killing it"))
            kill = KillProcess("writer", self.census.writer_incarnation, f"silent for {writer} ms")
            effects.append(Send(self._supervisor, kill))
        return effects

    def _notice_own_stall(self, now_ms: int) -> list[Effect]:
        gap_ms = now_ms - self._last_turn_ms
        self._last_turn_ms = now_ms
        if gap_ms <= STALL_MS:
            return []
        for member in self.members.values():
            member.last_heard_ms += gap_ms
        self.census.forgive(gap_ms)
        return [WriteLog("warning", f"the coordinator itself stood still for {gap_ms / 1000:.1f} s")]

    # ---- from loading to running ----------------------------------------------------------------------------------

    def _on_load_finished(self, now_ms: int) -> list[Effect]:
        if self.phase != "loading":
            return []
        self.phase = "gathering"
        self._gather_until_ms = now_ms + GATHER_MAX_MS
        self._loaded = self.catalog.count
        text = f"started with {self.catalog.count} monitors; gathering workers"
        return [WriteLog("info", text), *self._try_run(now_ms)]

    def _try_run(self, now_ms: int) -> list[Effect]:
        """Begin when everybody is there; after a while, when everybody who lives has spoken."""
        present = {member.name for member in self.members.values() if member.speaks}
        starting = [member for member in self.members.values() if member.state == "starting"]
        complete = not starting and set(self.names) <= present
        overdue = now_ms >= self._gather_until_ms and not starting and present
        if not (complete or overdue):
            return []
        self.phase = "running"
        self.census.keep_only({member.incarnation for member in self.members.values()})
        for partition in self.ownership.partitions:
            partition.wanted = partition.owner
        effects = self._next_epoch()
        for member in self.members.values():
            if member.speaks:
                effects += self._open_session(member, now_ms)
        return effects + self._plan(now_ms)

    def _next_epoch(self) -> list[Effect]:
        self.epoch += 1
        return [SaveEpoch(self.epoch)]

    # ---- planning -------------------------------------------------------------------------------------------------

    def _plan_soon(self, now_ms: int) -> None:
        present = {member.name for member in self.members.values() if member.speaks}
        self._plan_at_ms = now_ms if set(self.names) <= present else now_ms + JOIN_SETTLE_MS

    def _eligible(self) -> list[str]:
        """Who may own partitions: running, and with a slot each when there are fewer slots than workers."""
        running = [member.name for member in self.members.values() if member.state == "running" and member.link]
        return sorted(running, key=worker_number)[: self.slices.total]

    def _plan(self, now_ms: int) -> list[Effect]:
        """Decide who is to own what, and set the differences going."""
        self._plan_at_ms = None
        members = self._eligible()
        if self.phase != "running" or not members:
            return []
        if tuple(members) != self._ring:
            self._ring = tuple(members)
            self._ring_dirty = True
        wanted = assign(self.catalog.weights, members, self.ownership.wanted())
        effects: list[Effect] = []
        moved = 0
        for index, (partition, target) in enumerate(zip(self.ownership.partitions, wanted, strict=True)):
            if partition.wanted != target:
                moved += 1
                previous = self.members.get(partition.wanted or "")
                if previous is not None and partition.owner is None:
                    previous.grants.pop(index, None)
                partition.wanted = target
            if partition.owner is None:
                self._offer(index)
            elif partition.owner != target:
                self._withdraw(index, partition, now_ms)
            elif (owner := self.members.get(partition.owner)) is not None:
                owner.revokes.discard(index)
        if moved:
            effects += self._next_epoch()
        effects += self._share_slots(now_ms)
        return effects + self._pump_all(now_ms)

    def _offer(self, index: int) -> None:
        """An unowned partition goes to who is to own it, when that worker can be told."""
        partition = self.ownership.partitions[index]
        target = self.members.get(partition.wanted or "")
        if target is not None and target.link is not None and partition.owner is None:
            target.grants[index] = None

    def _withdraw(self, index: int, partition: Partition, now_ms: int) -> None:
        owner = self.members.get(partition.owner or "")
        if owner is None or owner.link is None:
            return
        if partition.granted_seq:
            if partition.revoked_at_ms is None:
                owner.revokes.add(index)
        else:
            owner.grants.pop(index, None)  # left out of the snapshot, it is given up at its end
        if partition.revoked_at_ms is None:
            partition.revoked_at_ms = now_ms
        self._revoking.add(index)

    def _revoke_again(self, now_ms: int) -> list[Effect]:
        touched: set[str] = set()
        for index in list(self._revoking):
            partition = self.ownership.partitions[index]
            if partition.revoked_at_ms is None or partition.owner is None:
                self._revoking.discard(index)
                continue
            owner = self.members.get(partition.owner)
            waited_ms = now_ms - partition.revoked_at_ms
            if owner is not None and owner.link is not None and not owner.snapshot and waited_ms >= REVOKE_AGAIN_MS:
                partition.revoked_at_ms = now_ms
                owner.revokes.add(index)
                touched.add(owner.name)
        return [effect for name in sorted(touched) for effect in self._pump(self.members[name], now_ms)]

    def _retire_if_empty(self, member: Member) -> list[Effect]:
        """A draining worker that owns nothing any more may end."""
        if (
            member.state == "draining"
            and member.link is not None
            and self.phase == "running"
            and not member.snapshot
            and not self.ownership.owned_by(member.name)
        ):
            first = not member.retired
            member.retired = True
            log: list[Effect] = [WriteLog("info", f"{member.name} has handed everything over and may end")]
            return [*(log if first else []), Send(member.link.peer, Retire())]
        return []

    # ---- slots ----------------------------------------------------------------------------------------------------

    def _share_slots(self, now_ms: int) -> list[Effect]:
        self._slices_at_ms = now_ms + SLICES_MS
        if not self._ring:
            return []
        if self._ring_dirty or self._starved():
            self._ring_dirty = False
            self.slices.want(self._targets())
        return self._send_slices(now_ms)

    def _starved(self) -> bool:
        """Does a member queue at its limit while another leaves a good part of its slice unused?"""
        members = [self.members[name] for name in self._ring if name in self.members]
        pressed = any(
            member.stats.queue_depth > 0 and member.stats.active_http >= 0.9 * self.slices.slice_of(member.name)
            for member in members
        )
        return pressed and any(member.demand < 0.8 * self.slices.wanted_of(member.name) for member in members)

    def _targets(self) -> dict[str, int]:
        weights: defaultdict[str, float] = defaultdict(float)
        for index, partition in enumerate(self.ownership.partitions):
            if partition.wanted is not None:
                weights[partition.wanted] += self.catalog.weights[index]
        ring = [name for name in self._ring if name in self.members]
        whole = sum(weights[name] for name in ring)
        leaving = {
            member.name: self.slices.slice_of(member.name)
            for member in self.members.values()
            if member.state == "draining" and member.link is not None and not member.retired
        }
        total = self.slices.total - sum(leaving.values())
        if total < len(ring):
            leaving = {}
            total = self.slices.total
        ring = ring[:total]
        demands = {
            name: self.members[name].demand
            + 0.25 * self.slices.total * (weights[name] / whole if whole > 0 else 1 / len(ring))
            for name in ring
        }
        return split_slots(total, demands) | leaving

    def _send_slices(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for name, slice_ in self.slices.next_changes().items():
            member = self.members.get(name)
            if member is not None and member.link is not None:
                member.limits = slice_
                effects += self._pump(member, now_ms)
        return effects

    def _per_host(self) -> int:
        return -(-self._max_per_host // max(1, len(self._ring)))

    # ---- requests -------------------------------------------------------------------------------------------------

    def _on_scale(self, workers: int | None, max_concurrent_http: int | None, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        if max_concurrent_http is not None and max_concurrent_http != self.slices.total:
            effects.append(WriteLog("info", f"MAX_CONCURRENT_HTTP {self.slices.total} -> {max_concurrent_http}"))
            self.slices.total = max_concurrent_http
            self._ring_dirty = True
        if workers is not None and workers != len(self.names):
            effects.append(WriteLog("info", f"workers {len(self.names)} -> {workers}"))
            names = sorted(self.names, key=worker_number)[:workers]
            number = 0
            while len(names) < workers:
                number += 1
                if f"worker-{number}" not in names:
                    names.append(f"worker-{number}")
            effects += self._set_names(names)
        if self.phase == "running":
            effects += self._plan(now_ms)
        return effects

    def _on_drain(self, worker: str, now_ms: int) -> list[Effect]:
        effects: list[Effect] = [WriteLog("info", f"draining {worker}")]
        effects += self._set_names([name for name in self.names if name != worker])
        return effects + (self._plan(now_ms) if self.phase == "running" else [])

    def _set_names(self, names: list[str]) -> list[Effect]:
        self.names = sorted(names, key=worker_number)
        self._ring_dirty = True
        for member in list(self.members.values()):
            if member.name in self.names:
                if member.state == "draining" and not member.retired:
                    member.state = "running"
            elif member.state == "running":
                member.state = "draining"
            elif member.state == "restarting":
                del self.members[member.name]
        return [] if self._supervisor is None else [Send(self._supervisor, SetWorkers(list(self.names)))]

    # ---- projects -------------------------------------------------------------------------------------------------

    def _on_projects(self, event: ProjectsChanged, now_ms: int) -> list[Effect]:
        stored = []
        dropped = []
        touched: set[str] = set()
        waits: set[str] = set()
        for span in event.ended:
            self._ended[partition_of(span.project_id)].append(span)
        for record in event.records:
            before = self.catalog.blob(record.id)
            change = self.catalog.put(record)
            if change is None:
                continue
            stored.append(record)
            index, is_new = change
            if before is not None:
                self._end_span(index, before, decode_spec(record.blob).since_ms)
            partition = self.ownership.partitions[index]
            immediate = is_new and not event.initial
            if immediate:
                self._immediate[index].add(record.id)
            owner = self._told_owner(partition)
            if owner is not None:
                owner.upserts[record.id] = immediate or owner.upserts.get(record.id, False)
                touched.add(owner.name)
                waits.add(owner.name)
        for removed in event.removed:
            blob = self.catalog.blob(removed.project_id)
            dropped_from = self.catalog.remove(removed)
            if dropped_from is None:
                continue
            dropped.append(removed.project_id)
            partition = self.ownership.partitions[dropped_from]
            self._immediate[dropped_from].discard(removed.project_id)
            owner = self._told_owner(partition)
            if owner is not None:
                owner.upserts.pop(removed.project_id, None)
                owner.removes[removed.project_id] = removed.until_ms
                touched.add(owner.name)
                waits.add(owner.name)
            elif partition.owner is not None:
                waits.add(partition.owner)  # the snapshot it is about to get is without the project
            assert blob is not None
            self._end_span(dropped_from, blob, removed.until_ms)
        effects: list[Effect] = []
        if stored or dropped:
            effects.append(JournalProjects(stored, dropped))
        if event.token is not None:
            effects += self._await(event.token, [self.members[name] for name in waits if name in self.members])
        for name in sorted(touched):
            effects += self._pump(self.members[name], now_ms)
        return effects

    def _end_span(self, index: int, blob: bytes, until_ms: int) -> None:
        """A project ended, or its interval changed: kept until it is accounted for, should its owner die before."""
        old = decode_spec(blob)
        if until_ms > old.since_ms:
            self._ended[index].append(EndedSpan(old.id, old.since_ms, until_ms, old.interval_ms))

    def _forget_accounted(self) -> None:
        for index in list(self._ended):
            mark_ms = self.ownership.partitions[index].mark_ms
            if mark_ms is not None:
                self._ended[index] = [span for span in self._ended[index] if span.until_ms > mark_ms]
            if not self._ended[index]:
                del self._ended[index]

    def _told_owner(self, partition: Partition) -> Member | None:
        """The owner, if its grant was sent in the session that is open."""
        owner = self.members.get(partition.owner or "")
        return owner if owner is not None and owner.link is not None and partition.granted_seq else None

    def _await(self, token: int, members: list[Member]) -> list[Effect]:
        waiting = 0
        for member in members:
            if member.removes:
                member.remove_tokens.append(token)
                waiting += 1
            elif member.link is None or member.snapshot:
                member.snapshot_tokens.append(token)
                waiting += 1
        if waiting == 0:
            return [ConfirmChange(token)]
        self._tokens[token] = waiting
        return []

    def _confirm(self, tokens: list[int]) -> list[Effect]:
        effects: list[Effect] = []
        for token in tokens:
            self._tokens[token] -= 1
            if self._tokens[token] == 0:
                del self._tokens[token]
                effects.append(ConfirmChange(token))
        return effects

    # ---- telling workers ------------------------------------------------------------------------------------------

    def _open_session(self, member: Member, now_ms: int) -> list[Effect]:
        assert member.peer is not None
        self._sessions += 1
        session = self.epoch * SESSIONS_PER_EPOCH + self._sessions
        self.ownership.session_opened(member.name)
        grants = []
        for index in self.ownership.owned_by(member.name):
            partition = self.ownership.partitions[index]
            if partition.wanted in (None, member.name) or partition.wanted not in self.members:
                grants.append(index)
                partition.revoked_at_ms = None
            else:
                partition.revoked_at_ms = now_ms
                self._revoking.add(index)
        unowned = [i for i, p in enumerate(self.ownership.partitions) if p.owner is None and p.wanted == member.name]
        member.open(WorkerLink(member.peer, session), grants + unowned)
        self.slices.resend(member.name)
        link = member.link
        assert link is not None
        reset = link.push(Reset(session, link.number(), self.epoch), Note(), now_ms)
        return [Send(link.peer, reset), *self._send_slices(now_ms), *self._pump(member, now_ms)]

    def _pump_all(self, now_ms: int) -> list[Effect]:
        return [effect for member in list(self.members.values()) for effect in self._pump(member, now_ms)]

    def _pump(self, member: Member, now_ms: int) -> list[Effect]:
        """Say as much of what is to be said as the window takes."""
        effects: list[Effect] = []
        link = member.link
        while link is not None and link.has_room:
            seq = link.number()
            note = Note()
            message: msgspec.Struct
            if member.limits is not None:
                message = Limits(link.session, seq, member.limits, self._per_host())
                member.limits, member.limits_seq = None, seq
            elif member.revokes:
                message = Revoke(link.session, seq, self.epoch, sorted(member.revokes))
                member.revokes.clear()
            elif member.removes:
                removed, tokens = member.take_removes()
                message = Remove(link.session, seq, self.epoch, removed)
                note = Note(tokens=tokens)
            elif member.settles:
                message = Settle(link.session, seq, list(member.settles))
                member.settles.clear()
            elif member.upserts:
                blobs, immediate = member.take_upserts(self.catalog.blob)
                message = WireUpsert(link.session, seq, self.epoch, blobs, immediate)
                note = Note(immediate=[(partition_of(project_id), project_id) for project_id in immediate])
            elif member.grants:
                effects += self._grant(member, link, now_ms)
                continue
            elif member.snapshot:
                member.snapshot = False
                note = member.snapshot_note()
                message = SnapshotEnd(link.session, seq)
            else:
                break
            effects.append(Send(link.peer, link.push(message, note, now_ms)))
        return effects

    def _grant(self, member: Member, link: WorkerLink, now_ms: int) -> list[Effect]:
        """One message of grants; a partition larger than a message goes out in parts, one after the other."""
        effects: list[Effect] = []
        parts: list[WireGrant] = []
        immediate: list[tuple[int, int]] = []
        granted: list[int] = []
        size = 0

        def flush() -> None:
            nonlocal size, parts, immediate, granted
            message = WireGrants(link.session, link.number(), self.epoch, parts)
            note = Note(immediate=immediate, granted=granted)
            effects.append(Send(link.peer, link.push(message, note, now_ms)))
            parts, immediate, granted, size = [], [], [], 0

        for index in list(member.grants):
            del member.grants[index]
            partition = self.ownership.partitions[index]
            if partition.owner not in (None, member.name) or partition.wanted not in (None, member.name):
                continue
            resume = partition.resume or Resume(partition.mark_ms, "handover")
            ended = self._ended.get(index, [])
            first_polls = sorted(self._immediate[index])
            chunk: list[msgspec.Raw] = []
            for blob in self.catalog.blobs(index):
                chunk.append(msgspec.Raw(blob))
                size += len(blob)
                if size >= BYTES_PER_MESSAGE:
                    parts.append(WireGrant(index, resume.after_ms, resume.reason, chunk, last=False))
                    chunk = []
                    flush()
            parts.append(
                WireGrant(
                    index,
                    resume.after_ms,
                    resume.reason,
                    chunk,
                    resume.waiting,
                    self.ownership.still_busy(index, now_ms),
                    first_polls,
                    ended,
                )
            )
            immediate += [(index, project_id) for project_id in first_polls]
            granted.append(index)
            self.ownership.granted(index, member.name, self.epoch, link.number())
            self._revoking.discard(index)
            if len(parts) >= PARTITIONS_PER_GRANT or size >= BYTES_PER_MESSAGE:
                break
        if parts:
            flush()
        return effects

    def _heartbeat(self) -> list[Effect]:
        if self._supervisor is None:
            return []
        beat = CoordinatorHeartbeat(
            projects_loaded=self._loaded if self.phase == "loading" else self.catalog.count,
            projects_total=self._total,
            partitions_assigned=self.ownership.assigned(),
            phase=self.phase,
            database_up=self._database_up,
        )
        return [Send(self._supervisor, beat)]

    # ---- invariants, checked in tests and simulation ----------------------------------------------------------------

    def check(self) -> None:
        self.slices.check()
        for index, partition in enumerate(self.ownership.partitions):
            assert partition.owner is not None or partition.resume is not None, (index, partition)
            if partition.owner is not None and self.phase == "running":
                assert partition.owner in self.members, (index, partition)
        for member in self.members.values():
            for index in member.grants:
                assert self.ownership.partitions[index].owner in (None, member.name), (index, member)


__all__ = ["CoordinatorCore", "Grant", "PartitionGrant", "Upsert"]
