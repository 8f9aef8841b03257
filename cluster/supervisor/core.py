"""Decides which processes run.  Covers: starting, restarting within a budget, the coordinator's liveness, the number of
workers, and the ordered stop.  Does not cover: how a process is started or watched, logs, the database.

Rules:

- Coordinator, writer and workers are started all at once; they find each other.
- One that ends is started again at once; the next times, while it lives less than ``STABLE_MS``, after 0.5 s doubling
  to 10 s.  More than ``RESTARTS_MAX`` restarts in ``BUDGET_MS`` is FATAL, and so is a coordinator or writer whose first
  start ends with exit status 1 or 2 before it ran.  A FATAL coordinator or writer stops the cluster with status 1; a
  FATAL worker stays down and the others go on.
- The coordinator hears of every start and end at once, and once a second of everything that is alive, so a lost message
  heals itself.  No heartbeat of it for ``SILENCE_MS``: SIGKILL.
- ``StopRequested``: workers, then the writer, then the coordinator (and the demo), each with its time; who takes longer
  is killed, and the status is 1.  A second ``StopRequested`` kills everything at once.
- Writer and coordinator are still started again while those that need them are stopping.
"""

from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

from cluster.messages.admin import WORKERS_MAX
from cluster.messages.control import (
    CoordinatorHeartbeat,
    KillProcess,
    ProcessAlive,
    ProcessExited,
    ProcessStarted,
    SetWorkers,
    SupervisorHello,
    SupervisorStopping,
    ToSupervisor,
    WhoAreYou,
)
from cluster.supervisor.states import ProcessChange, ProcessState, next_state

PROVED_MS = 5_000  # a process that lives so long runs; the coordinator runs when it is heard of
STABLE_MS = 5_000  # ... and one that lived so long is started again without delay
BACKOFF_MS = 500
BACKOFF_MAX_MS = 10_000
BUDGET_MS = 60_000
RESTARTS_MAX = 10
HELLO_MS = 1_000
SILENCE_MS = 10_000
SILENCE_AT_START_MS = 60_000  # it may wait for a predecessor's lock
SLEPT_MS = 3_000  # turned later than this: the supervisor itself was suspended, which proves nothing about others
STOP_WORKERS_MS = 20_000  # on top of the grace period
STOP_WRITER_MS = 35_000  # it has a grace of its own, and says what it could not commit
STOP_LAST_MS = 10_000
STATUS_CONFIGURATION = (1, 2)  # of a role that said what is wrong and gave up
# SIGTERM before a role has set its handler, which it does before anything else: there was nothing to finish yet.
ENDED_BEFORE_ITS_START = -15

Role = Literal["coordinator", "writer", "worker", "demo"]
SignalName = Literal["term", "kill"]
Phase = Literal["up", "stopping_workers", "stopping_writer", "stopping_last", "ended"]

# ---- events -------------------------------------------------------------------------------------------------------


class SupervisionBegan(msgspec.Struct, frozen=True):
    pass


class ProcessSpawned(msgspec.Struct, frozen=True):
    name: str
    incarnation: str
    pid: int


class SpawnFailed(msgspec.Struct, frozen=True):
    name: str
    incarnation: str
    why: str


class ProcessEnded(msgspec.Struct, frozen=True):
    name: str
    incarnation: str
    exit_status: int  # negative: ended by that signal
    last_error: str = ""  # the last error it logged


class CoordinatorSpoke(msgspec.Struct, frozen=True):
    message: ToSupervisor


class StopRequested(msgspec.Struct, frozen=True):
    why: str


SupervisorEvent = SupervisionBegan | ProcessSpawned | SpawnFailed | ProcessEnded | CoordinatorSpoke | StopRequested

# ---- effects ------------------------------------------------------------------------------------------------------


class SpawnProcess(msgspec.Struct, frozen=True):
    name: str
    role: Role
    incarnation: str


class SignalProcess(msgspec.Struct, frozen=True):
    name: str
    incarnation: str
    signal: SignalName


class TellCoordinator(msgspec.Struct, frozen=True):
    message: SupervisorHello | ProcessStarted | ProcessExited | SupervisorStopping


class Report(msgspec.Struct, frozen=True):
    level: Literal["debug", "info", "warning", "error"]
    text: str


class EndSupervision(msgspec.Struct, frozen=True):
    """Nothing runs any more.  ``why``: one line when ``exit_status`` isn't 0."""

    exit_status: int
    why: str


SupervisorEffect = SpawnProcess | SignalProcess | TellCoordinator | Report | EndSupervision


class SupervisedProcess:
    """What is known of one name."""

    __slots__ = ("incarnation", "name", "pid", "quick_ends", "ran", "restart_at_ms", "restarts", "role",
                 "started_at_ms", "state")  # fmt: skip

    def __init__(self, name: str, role: Role) -> None:
        self.name = name
        self.role: Role = role
        self.state = ProcessState.EXITED
        self.incarnation = ""
        self.pid = 0
        self.started_at_ms = 0
        self.restart_at_ms = 0
        self.quick_ends = 0  # in a row
        self.restarts: deque[int] = deque(maxlen=RESTARTS_MAX)
        self.ran = False  # in any incarnation

    def __repr__(self) -> str:
        return f"<{self.name} {self.state.value} pid={self.pid}>"

    def change(self, change: ProcessChange) -> None:
        self.state = next_state(self.state, change)


class SupervisorCore:
    def __init__(
        self,
        *,
        pid: int,
        run_id: str,
        workers: int,
        grace_ms: int,
        new_incarnation: Callable[[], str],
        demo: bool = False,
    ) -> None:
        self._pid = pid
        self._run_id = run_id
        self._workers_configured = workers
        self._grace_ms = grace_ms
        self._new_incarnation = new_incarnation
        self.processes: dict[str, SupervisedProcess] = {}
        self._wanted = {"coordinator", "writer", *(f"worker-{number}" for number in range(1, workers + 1))}
        if demo:
            self._wanted.add("demo")
        self.phase: Phase = "up"
        self._phase_until_ms = 0
        self._exit_status = 0
        self._why = ""
        self._heard_at_ms = 0  # from this incarnation of the coordinator
        self._heard = False
        self._hello_at_ms: int | None = None
        self._turned_at_ms = 0
        self._effects: list[SupervisorEffect] = []

    # ---- the core's interface ---------------------------------------------------------------------------------------

    def handle(self, event: SupervisorEvent, now_ms: int) -> list[SupervisorEffect]:
        self._turn(now_ms)
        match event:
            case SupervisionBegan():
                self._hello_at_ms = now_ms + HELLO_MS
                for name in sorted(self._wanted, key=_start_order):
                    self._start(self._known(name), now_ms)
            case ProcessSpawned():
                self._on_spawned(event, now_ms)
            case SpawnFailed():
                self._on_ended(event.name, event.incarnation, 127, event.why, now_ms)
            case ProcessEnded():
                self._on_ended(event.name, event.incarnation, event.exit_status, event.last_error, now_ms)
            case CoordinatorSpoke():
                self._on_message(event.message, now_ms)
            case StopRequested():
                self._on_stop_requested(event.why, now_ms)
        self._advance(now_ms)
        return self._take()

    def next_timer(self) -> int | None:
        if self.phase == "ended" or self._hello_at_ms is None:
            return None
        due = [self._hello_at_ms]
        due += [each.restart_at_ms for each in self.processes.values() if each.state is ProcessState.BACKOFF]
        if self.phase != "up":
            due.append(self._phase_until_ms)
        return min(due)

    def handle_timer(self, now_ms: int) -> list[SupervisorEffect]:
        if self.phase == "ended" or self._hello_at_ms is None:
            return []
        self._turn(now_ms)
        for each in list(self.processes.values()):
            if each.state is ProcessState.BACKOFF and each.restart_at_ms <= now_ms:
                self._start(each, now_ms)
            elif (
                each.state is ProcessState.STARTING
                and each.role != "coordinator"
                and now_ms - each.started_at_ms >= PROVED_MS
            ):
                self._prove(each)
        if now_ms >= self._hello_at_ms:
            self._hello_at_ms = now_ms + HELLO_MS
            self._say_hello()
            self._watch_coordinator(now_ms)
        if self.phase != "up" and now_ms >= self._phase_until_ms:
            self._overdue(now_ms)
        self._advance(now_ms)
        return self._take()

    # ---- events -----------------------------------------------------------------------------------------------------

    def _turn(self, now_ms: int) -> None:
        if self._turned_at_ms and now_ms - self._turned_at_ms > SLEPT_MS:
            self._heard_at_ms = now_ms
        self._turned_at_ms = now_ms

    def _on_spawned(self, event: ProcessSpawned, now_ms: int) -> None:
        each = self._current(event.name, event.incarnation)
        if each is None:
            return
        each.pid = event.pid
        self._effects.append(Report("debug", f"started {each.name}, pid {each.pid}"))
        if each.role == "coordinator":
            self._heard, self._heard_at_ms = False, now_ms
        elif each.role != "demo":
            self._tell(ProcessStarted(each.name, each.incarnation, each.pid))

    def _on_ended(self, name: str, incarnation: str, exit_status: int, last_error: str, now_ms: int) -> None:
        each = self._current(name, incarnation)
        if each is None:
            return
        lived_ms = now_ms - each.started_at_ms
        how = _how_it_ended(exit_status)
        if each.state is ProcessState.STOPPING or not self._is_wanted(each):
            each.change(ProcessChange.ENDED_DONE)
            if exit_status == ENDED_BEFORE_ITS_START:
                exit_status = 0
            if exit_status != 0 and self.phase != "up":
                self._fail(f"{name} {how} while stopping" + (f": {last_error}" if last_error else ""))
            level: Literal["info", "warning"] = "info" if exit_status == 0 else "warning"
            self._effects.append(Report(level, f"{name} {how}"))
        elif not each.ran and each.role in {"coordinator", "writer"} and exit_status in STATUS_CONFIGURATION:
            each.change(ProcessChange.ENDED_FATAL)
            self._give_up(each, last_error or f"{name} {how} at its start; its log says why", now_ms)
        elif self._budget_is_used_up(each, now_ms):
            each.change(ProcessChange.ENDED_FATAL)
            self._give_up(
                each,
                f"{name} ended {RESTARTS_MAX + 1} times in {BUDGET_MS // 1000} s, last it {how}"
                + (f": {last_error}" if last_error else ""),
                now_ms,
            )
        else:
            each.change(ProcessChange.ENDED_WANTED)
            each.quick_ends = each.quick_ends + 1 if lived_ms < STABLE_MS else 0
            delay_ms = _backoff_ms(each.quick_ends)
            each.restart_at_ms = now_ms + delay_ms
            after = f"in {delay_ms / 1000:g} s" if delay_ms else "at once"
            self._effects.append(Report("warning", f"{name} {how}; starting it again {after}"))
        if each.role in {"worker", "writer"}:
            restarting = each.state is ProcessState.BACKOFF
            self._tell(ProcessExited(name, incarnation, exit_status, restarting))
        each.pid = 0
        if each.state is ProcessState.BACKOFF and each.restart_at_ms <= now_ms:
            self._start(each, now_ms)
        elif each.state is ProcessState.EXITED and name not in self._wanted:
            del self.processes[name]

    def _on_message(self, message: ToSupervisor, now_ms: int) -> None:
        coordinator = self.processes.get("coordinator")
        self._heard, self._heard_at_ms = True, now_ms
        if coordinator is not None and coordinator.state is ProcessState.STARTING and coordinator.pid:
            self._prove(coordinator)
        match message:
            case WhoAreYou():
                self._say_hello()
            case CoordinatorHeartbeat():
                pass
            case KillProcess():
                each = self._current(message.name, message.incarnation)
                if each is not None and each.pid:
                    self._effects.append(Report("warning", f"killing {each.name}: {message.reason}"))
                    self._signal(each, "kill")
            case SetWorkers():
                self._set_workers(message.names, now_ms)

    def _set_workers(self, names: list[str], now_ms: int) -> None:
        if self.phase != "up":
            return
        if len(names) > WORKERS_MAX or not all(_is_worker_name(name) for name in names):
            self._effects.append(Report("error", f"refused a list of {len(names)} workers from the coordinator"))
            return
        self._wanted = {name for name in self._wanted if not _is_worker_name(name)} | set(names)
        for each in list(self.processes.values()):
            if each.name in self._wanted:
                continue
            if each.state is ProcessState.BACKOFF:
                each.change(ProcessChange.TOLD_TO_STOP)
            if not each.state.is_alive:
                del self.processes[each.name]
        for name in sorted(names, key=_start_order):
            each = self._known(name)
            if each.state is ProcessState.EXITED:
                self._start(each, now_ms)

    # ---- stopping ---------------------------------------------------------------------------------------------------

    def _on_stop_requested(self, why: str, now_ms: int) -> None:
        if self.phase == "up":
            self._effects.append(Report("info", f"stopping: {why}"))
            self._begin_stop(now_ms)
        elif self.phase != "ended":
            self._fail(f"stopped by force: {why}")
            self._effects.append(Report("warning", f"{why} again: killing what still runs"))
            self.phase, self._phase_until_ms = "stopping_last", now_ms + STOP_LAST_MS
            for each in self.processes.values():
                each.change(ProcessChange.TOLD_TO_STOP)
                self._signal(each, "kill")

    def _begin_stop(self, now_ms: int) -> None:
        self.phase = "stopping_workers"
        self._phase_until_ms = now_ms + self._grace_ms + STOP_WORKERS_MS
        self._tell(SupervisorStopping())
        self._terminate({"worker"})

    def _advance(self, now_ms: int) -> None:
        """Go to the next phase of a stop when nothing of this one is alive."""
        if self.phase == "stopping_workers" and not self._alive({"worker"}):
            self.phase, self._phase_until_ms = "stopping_writer", now_ms + STOP_WRITER_MS
            self._terminate({"writer"})
        if self.phase == "stopping_writer" and not self._alive({"writer"}):
            self.phase, self._phase_until_ms = "stopping_last", now_ms + STOP_LAST_MS
            self._terminate({"coordinator", "demo"})
        if self.phase == "stopping_last" and not any(each.state.is_alive for each in self.processes.values()):
            self.phase = "ended"
            self._effects.append(EndSupervision(self._exit_status, self._why))

    def _overdue(self, now_ms: int) -> None:
        late = [each for each in self.processes.values() if each.state is ProcessState.STOPPING]
        self._phase_until_ms = now_ms + STOP_LAST_MS
        for each in late:
            self._fail(f"{each.name} did not stop in time and was killed")
            self._effects.append(Report("error", f"{each.name} did not stop in time; killing it"))
            self._signal(each, "kill")

    def _terminate(self, roles: set[str]) -> None:
        for each in self.processes.values():
            if each.role in roles:
                was_alive = each.state.is_alive
                each.change(ProcessChange.TOLD_TO_STOP)
                if was_alive:
                    self._signal(each, "term")

    def _give_up(self, each: SupervisedProcess, why: str, now_ms: int) -> None:
        self._effects.append(Report("error", why))
        if each.role in {"coordinator", "writer"}:
            self._fail(why)
            if self.phase == "up":
                self._begin_stop(now_ms)

    def _fail(self, why: str) -> None:
        if not self._exit_status:
            self._exit_status, self._why = 1, why

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _known(self, name: str) -> SupervisedProcess:
        each = self.processes.get(name)
        if each is None:
            each = self.processes[name] = SupervisedProcess(name, _role_of(name))
        return each

    def _current(self, name: str, incarnation: str) -> SupervisedProcess | None:
        """The process meant, unless it is one that was replaced."""
        each = self.processes.get(name)
        return each if each is not None and each.incarnation == incarnation and each.state.is_alive else None

    def _start(self, each: SupervisedProcess, now_ms: int) -> None:
        if each.incarnation:
            each.restarts.append(now_ms)
        each.change(ProcessChange.STARTED)
        each.incarnation = self._new_incarnation()
        each.pid = 0
        each.started_at_ms = now_ms
        if each.role == "coordinator":
            self._heard, self._heard_at_ms = False, now_ms
        self._effects.append(SpawnProcess(each.name, each.role, each.incarnation))

    def _prove(self, each: SupervisedProcess) -> None:
        each.change(ProcessChange.PROVED)
        each.ran = True

    def _is_wanted(self, each: SupervisedProcess) -> bool:
        if each.name not in self._wanted:
            return False
        match self.phase:
            case "up":
                return True
            case "stopping_workers":
                return each.role in {"writer", "coordinator"}
            case "stopping_writer":
                return each.role == "coordinator"
            case "stopping_last" | "ended":
                return False

    def _budget_is_used_up(self, each: SupervisedProcess, now_ms: int) -> bool:
        return len(each.restarts) == RESTARTS_MAX and now_ms - each.restarts[0] < BUDGET_MS

    def _alive(self, roles: set[str]) -> bool:
        return any(each.role in roles and each.state.is_alive for each in self.processes.values())

    def _signal(self, each: SupervisedProcess, signal: SignalName) -> None:
        if each.state.is_alive:
            self._effects.append(SignalProcess(each.name, each.incarnation, signal))

    def _tell(self, message: SupervisorHello | ProcessStarted | ProcessExited | SupervisorStopping) -> None:
        self._effects.append(TellCoordinator(message))

    def _say_hello(self) -> None:
        alive = [
            ProcessAlive(each.name, each.incarnation, each.pid)
            for each in self.processes.values()
            if each.pid and each.state.is_alive and each.role in {"worker", "writer"}
        ]
        self._tell(
            SupervisorHello(
                pid=self._pid,
                run_id=self._run_id,
                workers_wanted=self._workers_configured,
                alive=alive,
                stopping=self.phase != "up",
            )
        )

    def _watch_coordinator(self, now_ms: int) -> None:
        coordinator = self.processes.get("coordinator")
        if coordinator is None or not coordinator.pid or not coordinator.state.is_alive:
            return
        patience_ms = SILENCE_MS if self._heard else SILENCE_AT_START_MS
        if now_ms - self._heard_at_ms >= patience_ms and coordinator.state is not ProcessState.STOPPING:
            self._effects.append(
                Report("error", f"no heartbeat of the coordinator for {patience_ms // 1000} s; killing it")
            )
            self._heard_at_ms = now_ms
            self._signal(coordinator, "kill")

    def _take(self) -> list[SupervisorEffect]:
        taken, self._effects = self._effects, []
        return taken


def _role_of(name: str) -> Role:
    match name:
        case "coordinator" | "writer" | "demo":
            return name
        case _:
            return "worker"


def _is_worker_name(name: str) -> bool:
    prefix, _, number = name.partition("-")
    return prefix == "worker" and number.isascii() and number.isdecimal() and len(number) <= 6


def _start_order(name: str) -> tuple[int, int, str]:
    number = name.rpartition("-")[2]
    return (["coordinator", "writer", "worker", "demo"].index(_role_of(name)), len(number), name)


def _backoff_ms(quick_ends: int) -> int:
    """No delay for the first, then 0.5 s doubling to 10 s."""
    return 0 if quick_ends <= 1 else min(BACKOFF_MAX_MS, BACKOFF_MS << (quick_ends - 2))


def _how_it_ended(exit_status: int) -> str:
    return f"was ended by signal {-exit_status}" if exit_status < 0 else f"ended with status {exit_status}"
