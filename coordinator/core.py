"""The coordinator's decisions: who is a member, who owns what, who has how many slots.

Pure (see cluster/core.py).  This module hears the events and keeps membership; ``placement`` (with ``ring`` and
``slots``) decides who owns what, ``telling`` (with ``member`` and ``link``) says it to the workers, ``ownership``,
``catalog`` and ``census`` keep the books, ``state`` holds what they share.

    loading    projects are being read; workers that say hello keep polling what they hold
    gathering  waiting for every live worker's hello, to learn what is held already
    running    wanted is compared with actual; the difference is revoked and granted
    stopping   nothing is reassigned any more

It does not decide that a process is dead: it hears so (``ProcessExited``, a successor's hello), and asks for a process
that hangs to be killed.  Without a supervisor a silent worker keeps its partitions until its successor says hello.
"""

from collections import defaultdict

from cluster.messages.control import (
    Ack,
    CoordinatorHeartbeat,
    Cut,
    Heartbeat,
    Hello,
    KillProcess,
    Leaving,
    ProcessExited,
    ProcessStarted,
    Released,
    Resync,
    Settled,
    SetWorkers,
    SliceReached,
    SupervisorHello,
    SupervisorStopping,
    ToCoordinator,
    WhoAreYou,
    WriterHeartbeat,
)
from coordinator.census import Census
from coordinator.events import (
    DatabaseStateChanged,
    DrainRequested,
    DurableState,
    Effect,
    Event,
    LoadFinished,
    LoadProgressed,
    MessageReceived,
    PeerUnreachable,
    Phase,
    ProjectsChanged,
    ScaleRequested,
    Send,
    View,
    WorkerView,
    WriteLog,
)
from coordinator.member import Debt, Member
from coordinator.ownership import Ownership
from coordinator.placement import Placement
from coordinator.slots import SliceBook
from coordinator.state import ClusterState, worker_number
from coordinator.telling import GRANTED_BYTES_PER_ACK, Teller, is_fed

TURN_MS = 250  # how often time-outs are looked at
STALL_MS = 1_500  # a longer silence between two turns is our own, not the workers'
HEARTBEAT_MS = 1_000
HANG_MS = 3_500  # three missed heartbeats of 1 s
START_MAX_MS = 30_000  # from the start of a process to its hello
WRITER_HANG_MS = 10_000
KILL_AGAIN_MS = 2_000
GATHER_MAX_MS = 5_000  # then missing processes are no longer waited for, unless they live
REBALANCE_MS = 5_000
NEVER_MS = 1 << 62


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
        total = restored.max_concurrent_http if same_run and restored.max_concurrent_http else max_concurrent_http
        names = [f"worker-{number}" for number in range(1, workers_wanted + 1)]
        self._restored_marks = list(restored.marks)
        self.ownership = Ownership(restored.marks, cold_reason="handover" if same_run else "down")
        self.slices = SliceBook(total)
        self.state = ClusterState(
            epoch=restored.epoch,
            ownership=self.ownership,
            slices=self.slices,
            names=list(restored.worker_names) if same_run and restored.worker_names else names,
            max_per_host=max_per_host,
        )
        self.catalog = self.state.catalog
        self.members = self.state.members
        self.census = Census(restored if same_run else DurableState(), now_ms)
        self._teller = Teller(self.state)
        self._placement = Placement(self.state, self._teller, now_ms)
        self._run_id = run_id
        self._cold = not same_run
        self._peers: dict[bytes, str] = {}  # routing id -> worker name
        self._supervisor: bytes | None = None
        self._alive: dict[str, str] = {}  # incarnation -> name, as the supervisor last said
        self._writer_alive: str | None = None
        self._writer_kill_sent_ms = 0
        self._cuts: list[Cut] = []  # of workers that said hello before everybody was there
        self._taken_over: dict[int, int] = {}  # partition -> where its owner took over, as it said after our restart
        self._loaded = 0
        self._total: int | None = None
        self._database_up = False
        self._gather_until_ms = NEVER_MS
        self._last_turn_ms = now_ms
        self._turn_at_ms = now_ms + TURN_MS
        self._heartbeat_at_ms = now_ms
        self._rebalance_at_ms = now_ms + REBALANCE_MS

    @property
    def phase(self) -> Phase:
        return self.state.phase

    # ---- the core's interface -------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        effects: list[Effect] = self._notice_own_stall(now_ms)
        match event:
            case MessageReceived(peer, message):
                effects += self._on_message(peer, message, now_ms)
            case ProjectsChanged():
                effects += self._teller.projects_changed(event, now_ms)
            case ScaleRequested(workers, max_concurrent_http):
                effects += self._on_scale(workers, max_concurrent_http, now_ms)
            case DrainRequested(worker):
                effects += self._on_drain(worker, now_ms)
            case LoadProgressed(loaded, total):
                self._loaded, self._total = loaded, total
            case LoadFinished():
                self._total = self._loaded if self._total is None else self._total  # an empty table, or a project file
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
        plan_at_ms = self._placement.plan_at_ms
        return self._turn_at_ms if plan_at_ms is None else min(self._turn_at_ms, plan_at_ms)

    def handle_timer(self, now_ms: int) -> list[Effect]:
        effects = self._notice_own_stall(now_ms)
        if self._placement.plan_at_ms is not None and now_ms >= self._placement.plan_at_ms:
            effects += self._placement.plan(now_ms)
        if now_ms < self._turn_at_ms:
            return effects
        self._turn_at_ms = now_ms + TURN_MS
        if self.state.phase == "gathering":
            effects += self._try_run(now_ms)
        effects += self._look_for_hangs(now_ms)
        for member in list(self.members.values()):
            if member.link is not None:
                effects += [Send(member.link.peer, message) for message in member.link.resend(now_ms)]
        if self.state.phase == "running":
            effects += self._placement.revoke_again(now_ms)
            if now_ms >= self._rebalance_at_ms:
                self._rebalance_at_ms = now_ms + REBALANCE_MS
                if self._placement.overloaded():
                    effects += self._placement.plan(now_ms)
            effects += self._placement.share_slots(now_ms, when_due=True)
        if now_ms >= self._heartbeat_at_ms:
            self._heartbeat_at_ms = now_ms + HEARTBEAT_MS
            self._teller.forget_accounted(self.horizon_ms())
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
            phase=self.state.phase,
            epoch=self.state.epoch,
            projects=self.catalog.count,
            projects_loaded=self._loaded,
            projects_total=self._total,
            partitions_assigned=self.ownership.assigned(),
            max_concurrent_http=self.slices.total,
            workers_wanted=len(self.state.names),
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
        state.epoch = self.state.epoch
        state.marks = self._durable_marks()
        state.worker_names = list(self.state.names)
        state.max_concurrent_http = self.slices.total
        return state

    def _durable_marks(self) -> list[int | None]:
        """Where owners would go on if everybody died now: before what is still owed for a partition, too."""
        marks = self.ownership.marks()
        owed = dict(self._teller.uncovered.since())  # partition -> the first instant that is
        for member in self.members.values():
            for index, debt in member.debts.items():
                begun_ms = 0 if debt.after_ms is None else debt.after_ms + 1
                owed[index] = min(owed.get(index, begun_ms), begun_ms)
        for index, begun_ms in owed.items():
            mark_ms = marks[index]
            if mark_ms is not None:
                marks[index] = min(mark_ms, begun_ms - 1)
        return marks

    def project_ids(self) -> set[int]:
        return self.catalog.ids()

    def has_project(self, project_id: int) -> bool:
        return project_id in self.catalog

    def horizon_ms(self) -> int | None:
        """Every tick before it is in the database.  None while a partition with projects was never polled."""
        lowest = NEVER_MS
        for index, mark_ms in enumerate(self._durable_marks()):
            if mark_ms is not None:
                lowest = min(lowest, mark_ms + 1)
            elif self.catalog.size(index):
                return None
        for member in self.members.values():
            if member.oldest_ms is not None:
                lowest = min(lowest, member.oldest_ms)
        return lowest if 0 < lowest < NEVER_MS else None

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
            case Released(session, cuts):
                same_session = member.link is not None and session == member.link.session
                effects: list[Effect] = []
                for cut in cuts:
                    mark_ms = self.ownership.partitions[cut.partition].mark_ms
                    if self.ownership.released(cut, member.name, same_session=same_session):
                        member.released(cut, self._teller.given_up(cut.partition, mark_ms), now_ms)
                        self._teller.revoking.discard(cut.partition)
                        self._placement.offer(cut.partition)
                return effects + self._teller.pump_all(now_ms) + self._placement.retire_if_empty(member)
            case Settled(finished):
                for entry in finished:
                    index = self.ownership.settled(entry)
                    owner = None if index is None else self.state.told_owner(self.ownership.partitions[index])
                    if owner is not None:
                        owner.settles[entry] = None
                return self._teller.pump_all(now_ms)
            case SliceReached(session, seq):
                newest = member.link is not None and session == member.link.session and seq == member.limits_seq
                if newest and member.limits is None:  # else a smaller one waits to be said
                    self.slices.reached(member.name)
                    return self._placement.send_slices(now_ms)
                return []
            case Resync(session):
                if (
                    member.link is not None
                    and session == member.link.session
                    and self.state.phase in ("running", "stopping")
                ):
                    return self._placement.open_session(member, now_ms)
                return []
            case Leaving(_, stats, committed_at_ms):
                member.heard(stats, now_ms)
                self.census.heard(member.incarnation, stats)
                member.oldest_ms = None
                member.debts.clear()
                if member.link is not None:
                    self._on_committed(member, member.link.session, member.link.acked_seq, committed_at_ms, {})
                if member.supervised:
                    return []  # its exit is reported
                del self.members[member.name]
                return self._lose(member, now_ms)

    def _on_heartbeat(self, member: Member, beat: Heartbeat, now_ms: int) -> list[Effect]:
        if beat.incarnation != member.incarnation:
            return []
        member.heard(beat.stats, now_ms)
        member.committed(beat.oldest_ms)
        self.census.heard(member.incarnation, beat.stats)
        if member.state == "hung" and member.kill_sent_ms is None:
            member.state = "running"
        if member.link is not None and beat.session == member.link.session:
            self._on_committed(member, beat.session, beat.seq, beat.committed_at_ms, beat.lagging)
        granting = self._teller.pump(member, now_ms) if member.grants else []  # the turn of a worker that died is free
        return granting + self._placement.retire_if_empty(member)

    def _on_committed(self, member: Member, session: int, seq: int, at_ms: int, lagging: dict[int, int]) -> None:
        spoken_for = self.ownership.committed(member.name, seq, at_ms, lagging)
        self._teller.uncovered.covered(member.incarnation, session, seq, spoken_for)

    def _on_ack(self, member: Member, session: int, seq: int, now_ms: int) -> list[Effect]:
        member.last_heard_ms = now_ms
        effects: list[Effect] = []
        was_fed = is_fed(member)
        if member.link is not None:
            effects += self._teller.acked(member, member.link.ack(session, seq, now_ms))
        effects += self._teller.pump(member, now_ms, granted_bytes=GRANTED_BYTES_PER_ACK)
        return effects + self._teller.pump_all(now_ms) if was_fed and not is_fed(member) else effects

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
        if member.state == "hung" and member.kill_sent_ms is not None:
            return effects  # its kill is under way
        if member.peer is None:
            self.slices.joined(member.name, hello.slice)
            for cut in hello.released:  # a former coordinator knew what it still owes for these
                mark_ms = self._restored_marks[cut.partition] if self._restored_marks else None
                member.released(cut, _later(mark_ms, cut.resume_after_ms), now_ms)
        if member.peer is not None:
            self._peers.pop(member.peer, None)
        self._peers[peer] = member.name
        member.peer = peer
        member.pid = hello.pid
        member.last_heard_ms = now_ms
        leaves = hello.draining or (member.supervised and member.name not in self.state.names)
        if member.state in ("starting", "restarting"):
            effects.append(WriteLog("info", f"{member.name} (pid {member.pid}) joined"))
        member.state = "draining" if leaves else "running"
        self.state.epoch = max([self.state.epoch, *(held.epoch for held in hello.held)])  # a lost state file
        gathering = self.state.phase in ("loading", "gathering")
        for held in hello.held:
            owner = self.ownership.partitions[held.partition].owner
            if owner in (None, member.name) or gathering:
                adopted = self.ownership.adopt(held.partition, member.name, held.epoch)
                if adopted and gathering and held.resume_after_ms is not None:
                    self._taken_over[held.partition] = held.resume_after_ms
        if gathering:
            self._cuts += hello.released
            for cut in hello.released:  # now: they may end, or die with their worker, while others are waited for
                self.ownership.in_flight(cut)
        if self.state.phase == "gathering":
            effects += self._try_run(now_ms)
        elif self.state.phase in ("running", "stopping"):
            effects += self._placement.open_session(member, now_ms)
            if self.state.phase == "running":
                self._placement.plan_soon(now_ms)
        return effects

    def _process_alive(self, name: str, incarnation: str, pid: int, now_ms: int, *, supervised: bool = True) -> Member:
        """Give a live process its place; an older incarnation that is still listed stays until it exits."""
        member = self.members.get(name)
        if member is None or (member.incarnation != incarnation and member.peer is None):
            member = self.members[name] = Member(name, incarnation, pid, now_ms)
        if member.incarnation == incarnation:
            member.supervised = member.supervised or supervised
        return member

    def _supervised_process(self, name: str, incarnation: str, pid: int, now_ms: int) -> None:
        if name == "writer":
            if incarnation != self._writer_alive:
                self.census.writer_started(now_ms)
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
            if member.supervised and member.state == "running" and member.name not in self.state.names:
                member.state = "draining"
                self._placement.plan_soon(now_ms)
            if member.supervised and unlisted and now_ms - member.since_ms > 2 * HEARTBEAT_MS:
                effects += self._on_exit(member.name, member.incarnation, None, member.name in self.state.names, now_ms)
        if hello.stopping:
            effects += self._stop()
        if self.state.phase == "gathering":
            effects += self._try_run(now_ms)
        return [*effects, Send(peer, SetWorkers(list(self.state.names))), *self._heartbeat()]

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
        if restarting and name in self.state.names and self.state.phase != "stopping":
            how = "" if exit_status is None else f" (exit status {exit_status})"
            effects.insert(0, WriteLog("warning", f"{name} died{how}; its partitions move to the others"))
            gone = Member(name, "", 0, now_ms)
            gone.state = "restarting"
            gone.supervised = True
            self.members[name] = gone
        else:
            del self.members[name]
        if self.state.phase == "gathering":
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
        lost = [] if self.state.phase == "stopping" else self.ownership.lost(member.name)
        self._teller.revoking.difference_update(lost)
        self._teller.lost(lost, member.incarnation)
        self._placement.dirty = True
        effects = self._teller.confirm(tokens)
        effects += self._teller.settle_debts(member.debts, member.handed_busy, now_ms)
        if self.state.phase == "running":
            effects += self._placement.plan(now_ms)
        return effects

    def _stop(self) -> list[Effect]:
        if self.state.phase == "stopping":
            return []
        self.state.phase = "stopping"
        self._placement.plan_at_ms = None
        return [WriteLog("info", "stopping: nothing is reassigned any more")]

    def _look_for_hangs(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for member in self.members.values():
            silence_ms = now_ms - member.last_heard_ms
            # One that a former coordinator counted has started long since: it hangs.
            starts = member.state == "starting" and not self.census.knows(member.incarnation)
            patience_ms = START_MAX_MS if starts else HANG_MS
            if starts and self.state.phase == "gathering" and not self._cold:
                patience_ms = GATHER_MAX_MS  # it may have joined just before our start, and all wait for it
            if member.state == "restarting" or silence_ms <= patience_ms or self.state.phase == "stopping":
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
            and writer > (WRITER_HANG_MS if self._writer_alive == self.census.writer_incarnation else START_MAX_MS)
            and self._supervisor is not None
            and self._writer_alive is not None
            and now_ms - self._writer_kill_sent_ms > WRITER_HANG_MS
            and self.state.phase != "stopping"
        ):
            self._writer_kill_sent_ms = now_ms
            effects.append(WriteLog("warning", f"the writer has been silent for {writer / 1000:.1f} s; killing it"))
            kill = KillProcess("writer", self._writer_alive, f"silent for {writer} ms")
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
        if self.state.phase != "loading":
            return []
        self.state.phase = "gathering"
        self._gather_until_ms = now_ms + GATHER_MAX_MS
        self._loaded = self.catalog.count
        text = f"started with {self.catalog.count} monitors; gathering workers"
        return [WriteLog("info", text), *self._try_run(now_ms)]

    def _try_run(self, now_ms: int) -> list[Effect]:
        """Begin when everybody is there; after a while, when everybody who lives has spoken."""
        present = self.state.present()
        starting = [member for member in self.members.values() if member.state == "starting"]
        complete = not starting and set(self.state.names) <= present
        # After a restart of the coordinator, who is silent may hold partitions; at a cold start nobody does.
        overdue = now_ms >= self._gather_until_ms and present and (self._cold or not starting)
        if not (complete or overdue):
            return []
        self.state.phase = "running"
        for cut in self._cuts:
            self.ownership.remembered(cut)
        self._cuts = []
        self._claim_what_nobody_owes(now_ms)
        self.census.keep_only({member.incarnation for member in self.members.values()})
        for partition in self.ownership.partitions:
            partition.wanted = partition.owner
        effects = self.state.next_epoch()
        for member in self.members.values():
            if member.speaks:
                effects += self._placement.open_session(member, now_ms)
        return effects + self._placement.plan(now_ms)

    def _claim_what_nobody_owes(self, now_ms: int) -> None:
        """Between the mark and where the owner took over, former owners answer; those that are dead no more.

        Each that lives answers from where it had taken over itself.
        """
        for index, resume_ms in self._taken_over.items():
            mark_ms = self.ownership.partitions[index].mark_ms
            debts = [member.debts[index] for member in self.members.values() if index in member.debts]
            until_ms = resume_ms  # nobody answers for the ticks up to it
            for debt in sorted(debts, key=lambda debt: debt.cut_ms, reverse=True):
                if debt.cut_ms >= until_ms:
                    until_ms = min(until_ms, debt.after_ms or 0)
            if until_ms > (mark_ms or 0):
                self._teller.settle_debts({index: Debt(mark_ms, until_ms)}, [], now_ms)
        self._taken_over.clear()

    # ---- requests -------------------------------------------------------------------------------------------------

    def _on_scale(self, workers: int | None, max_concurrent_http: int | None, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        if max_concurrent_http is not None and max_concurrent_http != self.slices.total:
            effects.append(WriteLog("info", f"MAX_CONCURRENT_HTTP {self.slices.total} -> {max_concurrent_http}"))
            self.slices.total = max_concurrent_http
            self._placement.dirty = True
        if workers is not None and workers != len(self.state.names):
            effects.append(WriteLog("info", f"workers {len(self.state.names)} -> {workers}"))
            names = sorted(self.state.names, key=worker_number)[:workers]
            number = 0
            while len(names) < workers:
                number += 1
                if f"worker-{number}" not in names:
                    names.append(f"worker-{number}")
            effects += self._set_names(names)
        if self.state.phase == "running":
            effects += self._placement.plan(now_ms)
        return effects

    def _on_drain(self, worker: str, now_ms: int) -> list[Effect]:
        effects: list[Effect] = [WriteLog("info", f"draining {worker}")]
        member = self.members.get(worker)
        if member is not None and not member.supervised and member.state == "running":
            member.state = "draining"
        effects += self._set_names([name for name in self.state.names if name != worker])
        return effects + (self._placement.plan(now_ms) if self.state.phase == "running" else [])

    def _set_names(self, names: list[str]) -> list[Effect]:
        self.state.names = sorted(names, key=worker_number)
        self._placement.dirty = True
        for member in list(self.members.values()):
            if not member.supervised:
                continue  # nobody but its own operator starts and ends it
            if member.name in self.state.names:
                if member.state == "draining" and not member.retired:
                    member.state = "running"
            elif member.state == "running":
                member.state = "draining"
            elif member.state == "restarting":
                del self.members[member.name]
        return [] if self._supervisor is None else [Send(self._supervisor, SetWorkers(list(self.state.names)))]

    def _heartbeat(self) -> list[Effect]:
        if self._supervisor is None:
            return []
        beat = CoordinatorHeartbeat(
            projects_loaded=self._loaded if self.state.phase == "loading" else self.catalog.count,
            projects_total=self._total,
            partitions_assigned=self.ownership.assigned(),
            phase=self.state.phase,
            database_up=self._database_up,
        )
        return [Send(self._supervisor, beat)]

    # ---- invariants, checked in tests and simulation ----------------------------------------------------------------

    def check(self) -> None:
        self.slices.check()
        for index, partition in enumerate(self.ownership.partitions):
            assert partition.owner is not None or partition.resume is not None, (index, partition)
            if partition.owner is not None and self.state.phase == "running":
                assert partition.owner in self.members, (index, partition)
        for member in self.members.values():
            for index in member.grants:
                assert self.ownership.partitions[index].owner in (None, member.name), (index, member)


def _later(mark_ms: int | None, resume_after_ms: int | None) -> int | None:
    """The later of two instants up to which somebody else has committed, or is to commit, every tick."""
    known = [each for each in (mark_ms, resume_after_ms) if each is not None]
    return max(known, default=None)
