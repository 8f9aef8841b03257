"""A whole cluster in virtual time: the product's own cores, a seeded network, database, supervisor and target.

Nothing sleeps and nothing is real but the decisions.  Messages are encoded and decoded as on the wire.  Faults come
from the seed: lost, delayed and repeated messages, killed and hung processes, a database that goes away or does not
tell whether it committed, projects that change meanwhile.

What it does not cover: the shells (sockets, subprocesses, SQL), which the integration tests run for real.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.messages import control, results
from cluster.messages.control import (
    CoordinatorHeartbeat,
    EndedSpan,
    KillProcess,
    ProcessAlive,
    ProcessExited,
    ProcessStarted,
    RemovedProject,
    SetWorkers,
    SupervisorHello,
    SupervisorStopping,
    WriterHeartbeat,
)
from cluster.messages.results import Batch, MissedRange, PollResult
from cluster.project import ProjectSpec, decode_spec, encode_spec
from cluster.ticks import first_tick_from, phase_ms
from cluster.wal.format import Entry
from coordinator import events as c
from coordinator.core import CoordinatorCore
from worker import events as w
from worker.core import WorkerCore
from writer import core as writer_core
from writer import events as wr
from writer.claims import TakenRange, subtract

EPOCH_MS = 1_700_000_000_000
TAKEOVER_MS = 3_000  # after a worker's death: partitions still move, and with the coordinator's a tick may go with both


@dataclass
class Faults:
    loss: float = 0.0
    repeat: float = 0.0
    delay_max_ms: int = 3
    database_up: bool = True
    commit_max_ms: int = 30
    disk_full: bool = False


@dataclass
class Disk:
    """One stream's WAL: what was written outlives its process."""

    stream_id: str
    worker: str
    owner: str  # the incarnation that delivers it
    entries: dict[int, Entry] = field(default_factory=dict)
    acked_seq: int = 0


@dataclass
class Snapshot:
    """A database as it was, to be set back to."""

    rows: dict[tuple[int, int], PollResult]
    missed: list[MissedRange]
    ledger: dict[str, int]


@dataclass
class Span:
    project_id: int
    since: int
    until: int | None
    interval_ms: int


@dataclass
class Poll:
    worker: str
    incarnation: str
    project_id: int
    at: int
    trigger: str
    started: int  # by the worker's clock
    real: int = 0  # when it started in the simulation's time
    ended: int | None = None


@dataclass
class Process:
    name: str
    incarnation: str
    core: Any = None
    alive: bool = True
    frozen: bool = False
    wake_at: int | None = None
    ahead_ms: int = 0  # of its clock before the time of the simulation
    peers: dict[str, bytes] = field(default_factory=dict)  # routing id at the server of that name
    stalled: list[Callable[[], None]] = field(default_factory=list)


class Database:
    """Tables as sets, a ledger, and transactions that may fail in either direction."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rows: dict[tuple[int, int], PollResult] = {}
        self.missed: list[MissedRange] = []
        self.ledger: dict[str, int] = {}
        self.duplicates = 0

    def snapshot(self) -> Snapshot:
        return Snapshot(dict(self.rows), list(self.missed), dict(self.ledger))

    def set_back(self, snapshot: Snapshot) -> None:
        self.rows, self.missed, self.ledger = dict(snapshot.rows), list(snapshot.missed), dict(snapshot.ledger)
        self.world.was_set_back = True

    def explains(self, project_id: int, tick_ms: int) -> bool:
        """Is there a row, or a missed range, for a tick?"""
        row = self.rows.get((project_id, tick_ms))
        return (row is not None and row.trigger == "tick") or any(
            entry.project_id == project_id
            and entry.first_tick_ms <= tick_ms <= entry.last_tick_ms
            and (tick_ms - entry.first_tick_ms) % entry.interval_ms == 0
            for entry in self.missed
        )

    def behind(self, flush: wr.Flush) -> bool:
        return any(self.ledger.get(part.stream_id, 0) < part.base_seq for part in flush.parts)

    def commit(self, flush: wr.Flush) -> tuple[int, int]:
        """As the store: of a range only what is in neither table, and a result takes its tick out of a range."""
        written = duplicates = 0
        claims: list[MissedRange] = []
        fresh: dict[int, list[int]] = defaultdict(list)
        for part in flush.parts:
            have = self.ledger.get(part.stream_id, 0)
            for batch in part.batches:
                if batch.seq <= have:
                    continue
                for row in batch.results:
                    key = (row.project_id, row.scheduled_at_ms)
                    if key in self.rows:
                        duplicates += 1
                    else:
                        self.rows[key] = row
                        written += 1
                        if row.trigger == "tick":
                            fresh[row.project_id].append(row.scheduled_at_ms)
                claims += batch.missed
            self.ledger[part.stream_id] = max(have, part.last_seq)
        if fresh:
            kept: list[MissedRange] = []
            for entry in self.missed:
                ticks = fresh.get(entry.project_id)
                kept += subtract(entry, ticks, []) if ticks else [entry]
            self.missed = kept
        for claim in claims:
            taken = [at for (pid, at), row in self.rows.items() if pid == claim.project_id and row.trigger == "tick"]
            ranges = [
                TakenRange.of(m.first_tick_ms, m.last_tick_ms, m.ticks)
                for m in self.missed
                if m.project_id == claim.project_id
            ]
            self.missed += subtract(claim, taken, ranges)
        self.duplicates += duplicates
        return written, duplicates


class World:
    def __init__(
        self,
        seed: int,
        *,
        workers: int,
        slots: int,
        projects: int,
        max_per_host: int = 0,
        credit_bytes: int = writer_core.CREDIT_BYTES,
    ) -> None:
        self.random = random.Random(seed)
        self.now = EPOCH_MS + self.random.randrange(10_000)
        self.faults = Faults()
        self.database = Database(self)
        self.slots = slots
        self.max_per_host = max_per_host
        self.credit_bytes = credit_bytes
        self.names = [f"worker-{n}" for n in range(1, workers + 1)]
        self.processes: dict[str, Process] = {}
        self.retired: list[Process] = []
        self.polls: list[Poll] = []
        self.in_flight: dict[tuple[str, int], Poll] = {}  # (incarnation, project)
        self.kills: list[int] = []  # when a worker was killed
        self.disks: dict[str, Disk] = {}
        self._streams = 0
        self.projects: dict[int, ProjectSpec] = {}
        self.spans: list[Span] = []
        self.durable = c.DurableState()
        self.saved_epoch = 0
        self.ahead_ms = 0  # of the system's clock, which was stepped
        self.calm = False  # no more faults
        self.stopping = False
        self.slow_ms = 200
        self.removal_tokens: dict[int, int] = {}
        self.removed_for_good: dict[int, int | None] = {}  # when the removal was confirmed
        self.log: list[str] = []
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._incarnations = 0
        self._arrival: dict[tuple[str, str], int] = {}
        self._routes: dict[bytes, Process] = {}
        self.max_in_flight_seen = 0
        self.limit_before = 0
        self.accounted_to = 0  # what the database was told; never goes back
        self.overstated: list[str] = []
        self.was_set_back = False  # since then the database lacks what it had, until it is sent again
        for n in range(projects):
            self.add_project(n + 1, interval_ms=self.random.choice([1_000, 1_000, 2_000, 5_000]))
        self.run_for(self.random.randrange(3_000))
        self.start("coordinator")
        self.start("writer")
        for name in self.names:
            self.start(name)
        self.after(500, self._supervise)

    # ---- virtual time -------------------------------------------------------------------------------------------

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now + max(0, delay_ms), self._order, action))

    def run_for(self, duration_ms: int) -> None:
        end = self.now + duration_ms
        while self._queue and self._queue[0][0] <= end:
            at, _, action = heapq.heappop(self._queue)
            self.now = max(self.now, at)
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit_ms: int, what: str) -> None:
        end = self.now + limit_ms
        while not condition():
            assert self.now < end, f"not within {limit_ms} ms of virtual time: {what}"
            self.run_for(50)

    # ---- clocks -------------------------------------------------------------------------------------------------

    @property
    def wall_ms(self) -> int:
        """The system's clock; the database's, too."""
        return self.now + self.ahead_ms

    def clock_of(self, process: Process) -> int:
        return self.now + process.ahead_ms

    def step_clock(self, by_ms: int) -> None:
        """Workers and the writer take a step forward at once; a step back is slewed, so only new processes see it."""
        self.log.append(f"{self.now - EPOCH_MS} clock {by_ms:+}")
        self.ahead_ms += by_ms
        for process in self.processes.values():
            if process.name != "coordinator" and process.alive and self.ahead_ms > process.ahead_ms:
                process.ahead_ms = self.ahead_ms
                self._arm(process)

    # ---- processes ----------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        self._incarnations += 1
        process = Process(name, f"{name}#{self._incarnations}", ahead_ms=self.ahead_ms)
        now_ms = self.wall_ms
        self.processes[name] = process
        if name == "coordinator":
            self.durable.epoch = max(self.durable.epoch, self.saved_epoch)
            process.core = CoordinatorCore(
                max_concurrent_http=self.slots,
                max_per_host=self.max_per_host,
                workers_wanted=len(self.names),
                run_id="run",
                restored=self.durable,
                now_ms=now_ms,
            )
            self.after(self.random.randrange(50), lambda: self._load(process))
            self._save_state(process)
        elif name == "writer":
            process.core = writer_core.WriterCore(now_ms=now_ms, credit_bytes=self.credit_bytes)
            self._writer_beat(process)
        else:
            process.core = WorkerCore(
                name=name,
                incarnation=process.incarnation,
                pid=self._incarnations,
                stream_id=self._new_stream(process),
                grace_ms=30_000,
                now_ms=now_ms,
            )
            self._beat(process)
            self.after(self.random.randrange(5, 300), lambda: self._adopt(process))
        self._tell_coordinator_as_supervisor(ProcessStarted(name, process.incarnation, self._incarnations))
        self._arm(process)

    def kill(self, name: str, *, restart_ms: int | None = None) -> None:
        """SIGKILL: at once, wherever it is.  The supervisor notices and starts it again."""
        process = self.processes.get(name)
        if process is None or not process.alive:
            return
        process.alive = False
        if isinstance(process.core, WorkerCore):
            self.kills.append(self.now)
        for key in [key for key in self.in_flight if key[0] == process.incarnation]:
            del self.in_flight[key]
        self.log.append(f"{self.now - EPOCH_MS} kill {process.incarnation}")
        restarting = not self.stopping and (name in self.names or name in ("coordinator", "writer"))
        self._tell_coordinator_as_supervisor(ProcessExited(name, process.incarnation, -9, restarting))
        delay = self.random.randrange(100, 800) if restart_ms is None else restart_ms
        self.after(delay, lambda: self._restart(name, process))

    def _restart(self, name: str, old: Process) -> None:
        wanted = not self.stopping and (name in self.names or name in ("coordinator", "writer"))
        if wanted and self.processes.get(name) is old:
            self.start(name)
        elif not wanted:
            self.retired.append(old)

    def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self.log.append(f"{self.now - EPOCH_MS} freeze {name}")
        self.processes[name].frozen = True

    def thaw(self, name: str) -> None:
        process = self.processes[name]
        if process.frozen:
            process.frozen = False
            stalled, process.stalled = process.stalled, []
            for action in stalled:
                action()
            self._arm(process)

    def step(self, process: Process, event: Any) -> None:
        if not process.alive:
            return
        if process.frozen:
            process.stalled.append(lambda: self.step(process, event))
            return
        self._perform(process, process.core.handle(event, self.clock_of(process)))

    def _arm(self, process: Process) -> None:
        due = process.core.next_timer()
        if due is not None:
            due -= process.ahead_ms
        if due is None or (process.wake_at is not None and process.wake_at <= max(due, self.now)):
            return
        wake_at = process.wake_at = max(due, self.now)

        def wake() -> None:
            if process.wake_at != wake_at:
                return
            process.wake_at = None
            if process.alive and not process.frozen:
                self._perform(process, process.core.handle_timer(self.clock_of(process)))

        self.after(wake_at - self.now, wake)

    def _perform(self, process: Process, effects: list[Any]) -> None:
        if hasattr(process.core, "check") and self.random.random() < 0.05:
            process.core.check()
        for effect in effects:
            if process.alive:
                self._effect(process, effect)
        if process.alive:
            self._arm(process)

    # ---- effects ------------------------------------------------------------------------------------------------

    def _effect(self, process: Process, effect: Any) -> None:
        match effect:
            case w.StartPolls(polls):
                for poll in polls:
                    self._start_poll(process, poll)
            case w.TellCoordinator(message):
                self._client_send(process, "coordinator", control.encode(message), control.decode_to_coordinator)
            case w.TellWriter(body):
                self._client_send(process, "writer", body, results.decode_to_writer)
            case w.StopRedirects():
                pass  # the target does not redirect
            case w.AbortPolls():
                mine = [key for key in self.in_flight if key[0] == process.incarnation]
                for key in mine:
                    del self.in_flight[key]
                self.after(0, lambda: self.step(process, w.PollsAborted([project_id for _, project_id in mine])))
            case w.Exit(status, _):
                process.alive = False
                self.retired.append(process)
                self._tell_coordinator_as_supervisor(ProcessExited(process.name, process.incarnation, status, False))
                if process.name in self.names and not self.stopping:
                    self.after(10, lambda: self._restart(process.name, process))
            case w.WriteWal(stream_id, entries):
                self._write_wal(process, self.disks[stream_id], entries)
            case w.ReadWal(stream_id, from_seq, bytes_max):
                delay = self.random.randrange(1, 20)
                self.after(delay, lambda: self._read_wal(process, self.disks[stream_id], from_seq, bytes_max))
            case w.AcknowledgeWal(stream_id, seq):
                self.disks[stream_id].acked_seq = seq
            case w.ForgetStream(stream_id):
                assert not self.disks[stream_id].entries, "disks are not trimmed here"
            case w.OpenStream():
                stream_id = self._new_stream(process)
                self.after(0, lambda: self.step(process, w.StreamOpened(stream_id)))
            case c.Send(peer, message):
                self._server_send(process, peer, control.encode(message))
            case c.SaveEpoch(epoch):
                assert epoch > self.saved_epoch, "epochs must rise"
                self.saved_epoch = epoch
            case c.ConfirmChange(token):
                self.removed_for_good[self.removal_tokens[token]] = self.now
            case c.JournalProjects() | c.WriteLog():
                pass
            case wr.Send(peer, message):
                self._server_send(process, peer, results.encode(message))
            case wr.LoadLedger(stream_ids):
                self.after(self.random.randrange(1, 5), lambda: self._load_ledger(process, stream_ids))
            case wr.CommitFlush(flush):
                self.after(self.random.randrange(1, self.faults.commit_max_ms), lambda: self._commit(process, flush))
            case wr.Finish(uncommitted):
                assert uncommitted == 0
                process.alive = False
            case wr.MarkEnded() | wr.WriteLog():
                pass
            case _:
                raise AssertionError(effect)

    # ---- network ------------------------------------------------------------------------------------------------

    def _client_send(self, process: Process, server: str, body: bytes, decode: Callable[[bytes], Any]) -> None:
        target = self.processes.get(server)
        if target is None or not target.alive:
            return  # it is queued for nobody: the peer's successor never sees it
        peer = process.peers.get(target.incarnation)
        if peer is None:
            peer = process.peers[target.incarnation] = f"{process.incarnation}>{target.incarnation}".encode()
            self._routes[peer] = process
        message = decode(body)
        event = (
            c.MessageReceived(peer, message)
            if server == "coordinator"
            else wr.MessageReceived(peer, message, len(body))
        )
        self._deliver(process.incarnation, target, event)

    def _server_send(self, process: Process, peer: bytes, body: bytes) -> None:
        target = self._routes.get(peer)
        if peer == b"supervisor":
            message = control.decode_to_supervisor(body)
            self.after(
                self._latency(process.incarnation, "supervisor"), lambda: self._supervisor_hears(process, message)
            )
        elif target is not None and target.alive:
            if process.name == "coordinator":
                event: Any = w.CoordinatorSaid(control.decode_to_worker(body))
            else:
                event = w.WriterSaid(results.decode_from_writer(body))
            self._deliver(process.incarnation, target, event)

    def _latency(self, sender: str, receiver: str) -> int:
        """Random, but in order: a ZeroMQ connection does not overtake itself."""
        at = self.now + self.random.randint(0, self.faults.delay_max_ms)
        at = max(at, self._arrival.get((sender, receiver), 0))
        self._arrival[sender, receiver] = at
        return at - self.now

    def _deliver(self, sender: str, target: Process, event: Any) -> None:
        if self.random.random() < self.faults.loss:
            return
        for _ in range(2 if self.random.random() < self.faults.repeat else 1):
            self.after(self._latency(sender, target.incarnation), lambda: self.step(target, event))

    # ---- the supervisor -----------------------------------------------------------------------------------------

    def _tell_coordinator_as_supervisor(self, message: Any) -> None:
        coordinator = self.processes.get("coordinator")
        if coordinator is not None and coordinator.alive:
            event = c.MessageReceived(b"supervisor", control.decode_to_coordinator(control.encode(message)))
            self.after(self._latency("supervisor", coordinator.incarnation), lambda: self.step(coordinator, event))

    def _supervise(self) -> None:
        alive = [
            ProcessAlive(process.name, process.incarnation, 1)
            for process in self.processes.values()
            if process.alive and process.name != "coordinator"
        ]
        self._tell_coordinator_as_supervisor(SupervisorHello(1, "run", len(self.names), alive, self.stopping))
        self.after(1_000, self._supervise)

    def _supervisor_hears(self, sender: Process, message: Any) -> None:
        if sender is not self.processes.get("coordinator"):
            return
        match message:
            case SetWorkers(names):
                self.names = list(names)
                for name in names:
                    process = self.processes.get(name)
                    if (process is None or (not process.alive and process in self.retired)) and not self.stopping:
                        self.start(name)
            case KillProcess(name, incarnation):
                process = self.processes.get(name)
                if process is not None and process.incarnation == incarnation:
                    self.kill(name)
            case CoordinatorHeartbeat():
                pass

    # ---- coordinator's shell ------------------------------------------------------------------------------------

    def record(self, spec: ProjectSpec) -> c.ProjectRecord:
        return c.ProjectRecord(spec.id, 1000 / spec.interval_ms, encode_spec(spec))

    def _load(self, process: Process) -> None:
        records = [self.record(spec) for spec in self.projects.values()]
        horizon = min((mark or 0 for mark in self.durable.marks), default=0)
        ended = [
            EndedSpan(span.project_id, span.since, span.until, span.interval_ms)
            for span in self.spans
            if span.until is not None and span.until > horizon
        ]
        self.step(process, c.ProjectsChanged(records, [], initial=True, ended=ended))
        self.step(process, c.LoadFinished())

    def _save_state(self, process: Process) -> None:
        if process.alive:
            if not process.frozen:
                self.durable = process.core.durable(self.clock_of(process))
                self._account(process.core)
            self.after(1_000, lambda: self._save_state(process))

    def _account(self, core: CoordinatorCore) -> None:
        """The pulse: what the database is told is accounted for, is accounted for then, and not only in the end."""
        horizon = core.horizon_ms()
        if horizon is None or horizon <= self.accounted_to:
            return
        begin, self.accounted_to = self.accounted_to, horizon
        if self.was_set_back:
            return
        for span in self.spans:
            blob = core.catalog.blob(span.project_id)
            if span.until is not None or blob is None or decode_spec(blob).since_ms != span.since:
                continue  # the coordinator may not have heard of it, or of its end
            for tick in due_ticks(span, horizon):
                if tick >= begin and not self.database.explains(span.project_id, tick):
                    story = _story(self, span.project_id, tick)
                    self.overstated.append(f"{horizon}: project {span.project_id}: tick {tick} is not: {story}")

    def reload(self) -> None:
        """A full reload, as after a notification that said so."""
        process = self.processes["coordinator"]
        if not process.alive or process.core.phase == "loading":
            return
        if process.frozen:
            process.stalled.append(self.reload)  # the notification waits in its socket
            return
        known = process.core.project_ids()
        removed = [
            RemovedProject(pid, max(span.until or self.wall_ms for span in self.spans if span.project_id == pid))
            for pid in known - set(self.projects)
        ]
        horizon = process.core.horizon_ms() or 0
        ended = [
            EndedSpan(span.project_id, span.since, span.until, span.interval_ms)
            for span in self.spans
            if span.until is not None and span.until > horizon
        ]
        self.step(process, c.ProjectsChanged([self.record(s) for s in self.projects.values()], removed, ended=ended))

    # ---- worker's and writer's shells ---------------------------------------------------------------------------

    def _beat(self, process: Process) -> None:
        if process.alive:
            if not process.frozen:
                self.step(process, w.HeartbeatDue(w.Vitals(wal_full=self.faults.disk_full)))
            self.after(1_000, lambda: self._beat(process))

    def _new_stream(self, process: Process) -> str:
        self._streams += 1
        stream_id = f"{self._streams:08x}-0000-7000-8000-000000000000"
        self.disks[stream_id] = Disk(stream_id, process.name, process.incarnation)
        return stream_id

    def _write_wal(self, process: Process, disk: Disk, entries: list[Entry]) -> None:
        """As the real one: what is there already is passed over, and nothing is written past a hole."""
        fresh = [entry for entry in entries if entry.seq not in disk.entries]
        if self.faults.disk_full or (fresh and fresh[0].seq != len(disk.entries) + 1):
            self.after(0, lambda: self.step(process, w.WalWriteFailed()))
            return
        disk.entries.update({entry.seq: entry for entry in fresh})
        self.after(0, lambda: self.step(process, w.WalWritten(disk.stream_id, entries[-1].seq)))

    def _read_wal(self, process: Process, disk: Disk, from_seq: int, bytes_max: int) -> None:
        entries: list[Entry] = []
        size = 0
        for seq in range(from_seq, len(disk.entries) + 1):
            entry = disk.entries[seq]
            if entries and size + len(entry.body) > bytes_max:
                break
            entries.append(entry)
            size += len(entry.body)
        self.step(process, w.WalRead(disk.stream_id, entries))

    def _adopt(self, process: Process) -> None:
        """Now and then a worker looks for streams whose owner is dead."""
        if not process.alive:
            return
        if not process.frozen:
            alive = {other.incarnation for other in self.processes.values() if other.alive}
            adopted = []
            for disk in self.disks.values():
                if disk.owner in alive or not disk.entries:
                    continue
                disk.owner = process.incarnation
                last = disk.entries[len(disk.entries)]
                acked = disk.entries.get(disk.acked_seq)
                adopted.append(
                    w.AdoptedStream(
                        disk.stream_id,
                        disk.worker,
                        1,
                        last.seq,
                        disk.acked_seq,
                        last.records_before + last.records,
                        last.bytes_before + len(last.body),
                        acked.records_before + acked.records if acked is not None else 0,
                        acked.bytes_before + len(acked.body) if acked is not None else 0,
                    )
                )
            if adopted:
                self.step(process, w.StreamsAdopted(adopted))
        self.after(5_000, lambda: self._adopt(process))

    def _writer_beat(self, process: Process) -> None:
        if not process.alive:
            return
        if not process.frozen:
            view = process.core.view(self.clock_of(process))
            beat = WriterHeartbeat(process.incarnation, 1, view.state, view.rows_written)
            self._client_send(process, "coordinator", control.encode(beat), control.decode_to_coordinator)
        self.after(1_000, lambda: self._writer_beat(process))

    def _load_ledger(self, process: Process, stream_ids: list[str]) -> None:
        if not self.faults.database_up:
            self.step(process, wr.DatabaseFailed("retry", "the database is away"))
        else:
            self.step(process, wr.LedgerLoaded({sid: self.database.ledger.get(sid, 0) for sid in stream_ids}))

    def _commit(self, process: Process, flush: wr.Flush) -> None:
        if not self.faults.database_up:
            self.step(process, wr.DatabaseFailed("retry", "the database is away"))
            return
        if self.database.behind(flush):
            self.step(process, wr.LedgerWentBack(flush.flush_id))
            return
        lost_answer = self.faults.loss > 0 and self.random.random() < 0.05
        written, duplicates = self.database.commit(flush)
        if lost_answer:  # committed, but nobody was told
            self.step(process, wr.DatabaseFailed("retry", "connection lost"))
            return
        positions = {part.stream_id: self.database.ledger[part.stream_id] for part in flush.parts}
        self.step(process, wr.FlushCommitted(flush.flush_id, positions, written, duplicates))

    # ---- the target ---------------------------------------------------------------------------------------------

    def _start_poll(self, process: Process, start: w.PollStart) -> None:
        now_ms = self.clock_of(process)
        poll = Poll(
            process.name, process.incarnation, start.spec.id, start.scheduled_at_ms, start.trigger, now_ms, self.now
        )
        assert (process.incarnation, start.spec.id) not in self.in_flight
        others = [p for (_, pid), p in self.in_flight.items() if pid == start.spec.id]
        assert not others, f"{start.spec.id} is in flight twice: {others[0]} and {poll}"
        assert len(self.in_flight) < self.limit_now(), (
            f"{len(self.in_flight)} in flight already, limit {self.limit_now()}"
        )
        if start.spec.id in self.removed_for_good:
            token_at = self.removed_for_good[start.spec.id]
            assert token_at is None or self.now < token_at, f"project {start.spec.id} polled after its removal"
        self.in_flight[process.incarnation, start.spec.id] = poll
        self.max_in_flight_seen = max(self.max_in_flight_seen, len(self.in_flight))
        self.polls.append(poll)
        slow = self.random.random() < 0.05
        duration = self.random.randint(1, self.slow_ms * (10 if slow else 1))
        duration = min(duration, start.spec.timeout_ms)
        self.after(duration, lambda: self._finish_poll(process, start, poll))

    def _finish_poll(self, process: Process, start: w.PollStart, poll: Poll) -> None:
        if not process.alive or self.in_flight.get((process.incarnation, start.spec.id)) is not poll:
            return
        del self.in_flight[process.incarnation, start.spec.id]
        poll.ended = self.clock_of(process)
        result = PollResult(
            start.spec.id, start.scheduled_at_ms, poll.started * 1000, start.trigger, "success", 200,
            float(poll.ended - poll.started), None, None, None, None, None, None, None, 0, None, None, start.epoch,
        )  # fmt: skip
        self.step(process, w.PollsFinished([result]))

    def limit_now(self) -> int:
        """The limit, or the former one while a lower limit has not been reached everywhere."""
        core = self.processes["coordinator"].core
        if core.slices.total == self.slots and core.phase == "running" and core.slices.in_force() <= self.slots:
            self.limit_before = 0
        return max(self.slots, self.limit_before)

    # ---- projects -----------------------------------------------------------------------------------------------

    def add_project(self, project_id: int, *, interval_ms: int) -> None:
        since = self.wall_ms
        self.projects[project_id] = ProjectSpec(
            project_id, f"http://host-{project_id % 3}/", interval_ms, since, timeout_ms=5_000
        )
        self.spans.append(Span(project_id, since, None, interval_ms))

    def remove_project(self, project_id: int) -> RemovedProject:
        del self.projects[project_id]
        for span in self.spans:
            if span.project_id == project_id and span.until is None:
                span.until = self.wall_ms
        self.removed_for_good[project_id] = None
        return RemovedProject(project_id, self.wall_ms)

    def change_interval(self, project_id: int, interval_ms: int) -> None:
        old = self.projects[project_id]
        if old.interval_ms == interval_ms:
            return
        for span in self.spans:
            if span.project_id == project_id and span.until is None:
                span.until = self.wall_ms
        self.projects[project_id] = ProjectSpec(project_id, old.url, interval_ms, self.wall_ms, timeout_ms=5_000)
        self.spans.append(Span(project_id, self.wall_ms, None, interval_ms))

    # ---- requests, as the admin socket makes them ---------------------------------------------------------------

    def request(self, event: Any) -> None:
        """Refused while no coordinator answers, like a client's request."""
        process = self.processes["coordinator"]
        if process.alive and not process.frozen and process.core.phase == "running":
            self.step(process, event)
            self.durable = process.core.durable(self.clock_of(process))

    def scale(self, *, workers: int | None = None, slots: int | None = None) -> None:
        process = self.processes["coordinator"]
        if process.alive and not process.frozen and process.core.phase == "running":
            if slots is not None:
                self.limit_before = max(self.limit_before, self.slots)
                self.slots = slots
            self.request(c.ScaleRequested(workers, slots))

    def add_by_request(self, project_id: int, interval_ms: int) -> None:
        self.add_project(project_id, interval_ms=interval_ms)
        self.request(c.ProjectsChanged([self.record(self.projects[project_id])], []))

    def remove_by_request(self, project_id: int) -> None:
        removed = self.remove_project(project_id)
        token = len(self.removal_tokens) + 1
        self.removal_tokens[token] = project_id
        self.request(c.ProjectsChanged([], [removed], token=token))

    # ---- the end ------------------------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """As `cluster down` does it."""
        self.stopping = True
        self._tell_coordinator_as_supervisor(SupervisorStopping())
        self.run_for(20)
        workers = [p for name, p in self.processes.items() if name.startswith("worker") and p.alive]
        for process in workers:
            self.thaw(process.name)
            self.step(process, w.StopRequested())
        self.run_until(lambda: not any(p.alive for p in workers), 70_000, "all workers end")
        self.run_for(100)
        self.step(self.processes["writer"], wr.StopRequested(10_000))
        self.run_until(lambda: not self.processes["writer"].alive, 15_000, "the writer ends")


def due_ticks(span: Span, horizon: int) -> list[int]:
    end = min(span.until if span.until is not None else horizon, horizon)
    phase = phase_ms(span.project_id, span.interval_ms)
    first = first_tick_from(span.since, phase, span.interval_ms)
    return list(range(first, end, span.interval_ms))


def check_law(world: World, horizon: int) -> dict[str, int]:
    """Ticks due = rows + missed, each once."""
    rows: defaultdict[int, set[int]] = defaultdict(set)
    for (pid, at), row in world.database.rows.items():
        if row.trigger == "tick":
            rows[pid].add(at)
    missed: defaultdict[int, list[int]] = defaultdict(list)
    for entry in world.database.missed:
        missed[entry.project_id] += range(entry.first_tick_ms, entry.last_tick_ms + 1, entry.interval_ms)
    for pid, ticks in missed.items():
        assert len(ticks) == len(set(ticks)), f"project {pid}: missed ranges overlap"
    due_total = 0
    for span in world.spans:
        for tick in due_ticks(span, horizon):
            due_total += 1
            in_rows = tick in rows[span.project_id]
            in_missed = tick in missed[span.project_id]
            assert not (in_rows and in_missed), (
                f"project {span.project_id}: tick {tick} is polled and missed: {_story(world, span.project_id, tick)}"
            )
            if not in_rows and not in_missed:
                raise AssertionError(
                    f"project {span.project_id}: tick {tick} unexplained; {span}: "
                    f"{_story(world, span.project_id, tick)}"
                )
    return {"due": due_total, "rows": len(world.database.rows), "missed": sum(map(len, missed.values()))}


def check_nothing_is_lost(world: World) -> None:
    """A result whose WAL write returned is in the table."""
    for disk in world.disks.values():
        for entry in disk.entries.values():
            batch = results.decode_to_writer(entry.body)
            assert isinstance(batch, Batch)
            for row in batch.results:
                key = (row.project_id, row.scheduled_at_ms)
                assert key in world.database.rows, f"{key} of {disk.stream_id} ({disk.worker}) is lost: {row}"


def _story(world: World, project_id: int, tick: int) -> str:
    polls = [p for p in world.polls if p.project_id == project_id and abs(p.at - tick) < 3_000]
    missed = [
        m
        for m in world.database.missed
        if m.project_id == project_id and m.first_tick_ms - 3_000 < tick < m.last_tick_ms + 3_000
    ]
    return f"{polls} {missed}"


def check_polled_once(world: World) -> None:
    """A tick is polled twice only about the death of a worker: its own, or one that partitions moved to or from."""
    seen: dict[tuple[int, int, str], Poll] = {}
    for poll in world.polls:
        key = (poll.project_id, poll.at, poll.trigger)
        before = seen.get(key)
        between = before is not None and any(before.real - TAKEOVER_MS <= at <= poll.real for at in world.kills)
        assert before is None or between, f"polled twice: {before} and {poll}"
        seen[key] = poll


__all__ = ["World", "check_law", "check_nothing_is_lost", "check_polled_once"]
