"""Where the CPU time of a poll goes: each stage on its way from tick to row, measured alone.

    python -m tests.bench.stages --json stages.json

The product's own parts do the work, each in this process, at a steady ``--polls-per-worker`` polls/s of as many
projects with an interval of 1 s, in steps as the worker takes them (a step is a millisecond of the schedule; results
are sealed every 40 ms):

    tick       worker.ticker: a tick comes due, its poll is started, later it is finished
    decide     the rest of worker.core: effects, timers, counts
    glue       worker.service between the two: a poll is handed to the engine, its lateness counted; an outcome becomes
               a result, results become an event
    start      the engine's start, as far as the request's write() to a kept connection; the kernel's work included,
               which on loopback delivers the packet, too
    finish     from the answer in the socket to the outcome: epoll, read(), parsing, deadline
    encode     a batch of results to msgpack
    WAL        a batch appended, fsync policy `interval`
    send       the batch to ZeroMQ, its I/O thread included
    receive    the writer's side of the same
    decode     a batch in the writer
    COPY       Store.commit in the writer, without waiting
    backend    PostgreSQL's work for it, all its processes

What is missing to the whole, which ``cluster bench`` measures, is the loop: a wake-up costs the same for one poll as
for many, so its share falls as the rate rises.  Figures are CPU time (user and system) in microseconds per poll, the
least of ``--rounds`` but for the last two, which are of one run.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import uvloop
import zmq
from rich.console import Console
from rich.table import Table

from cluster.bench.rig import BenchError, BenchTarget, Database, machine
from cluster.messages.control import Grant, Limits, PartitionGrant, Reset, SnapshotEnd
from cluster.messages.results import Batch, PollResult, StreamWelcome, decode_to_writer, encode
from cluster.project import ProjectSpec
from cluster.runtime import RoleContext
from cluster.settings import Settings
from cluster.sockets import bind_router, connect_dealer
from cluster.ticks import partition_of
from cluster.wal.directory import WalDirectory
from cluster.wal.format import Entry
from tests.bench import replay
from tests.bench.figures import bench_parser, write_figures
from worker.core import WorkerCore
from worker.events import CoordinatorSaid, PollsFinished, PollStart, StartPolls, WalWritten, WriterSaid, WriteWal
from worker.missed import MissedLog
from worker.outgoing import OutgoingStream
from worker.probe.choose import ChoosingProber
from worker.probe.interface import OnOutcome, ProbeOutcome
from worker.service import WorkerService
from worker.ticker import Ticker

STAGES = ("tick", "decide", "glue", "start", "finish", "encode", "WAL", "send", "receive", "decode", "COPY", "backend")
SEAL_MS = 40
IN_FLIGHT = 8  # polls of a step that are under way together
BATCHES = 400
FLUSHES_PER_S = 10
SLOTS = 250


class StageFigures(msgspec.Struct):
    polls_per_worker: int
    batch_results: int
    batch_bytes: int
    cpu_us_per_poll: dict[str, float]
    total_us: float
    machine: dict[str, object] = {}


def measured(work: Callable[[], int]) -> float:
    """CPU µs of this process per thing done."""
    began_s = time.process_time()
    count = work()
    return (time.process_time() - began_s) * 1e6 / count


# ---- the worker's core ----------------------------------------------------------------------------------------------


def projects(count: int, url: str) -> list[ProjectSpec]:
    return [ProjectSpec(number, f"{url}/check/{number}", 1_000, 0) for number in range(1, count + 1)]


def grants(specs: list[ProjectSpec], now_ms: int) -> list[PartitionGrant]:
    by_partition: dict[int, list[ProjectSpec]] = {}
    for spec in specs:
        by_partition.setdefault(partition_of(spec.id), []).append(spec)
    return [PartitionGrant(index, now_ms, "handover", held) for index, held in by_partition.items()]


def a_result(project_id: int, scheduled_at_ms: int) -> PollResult:
    """As of an ordinary poll on a kept connection."""
    return PollResult(
        project_id, scheduled_at_ms, scheduled_at_ms * 1_000 + 700, "tick", "success", 200, 0.5312, None, None,
        None, None, None, 0.3125, 0.0121, 2, True, "127.0.0.1", 7,
    )  # fmt: skip


def results_of(started: StartPolls) -> list[PollResult]:
    return [a_result(poll.spec.id, poll.scheduled_at_ms) for poll in started.polls]


def tick(specs: list[ProjectSpec], seconds: int) -> float:
    """The ticker alone, in virtual time."""
    now_ms = 1_000_000
    ticker = Ticker(MissedLog())
    ticker.limit(SLOTS, 0, now_ms)
    for grant in grants(specs, now_ms):
        ticker.grant(grant.partition, 1, now_ms, "handover", grant.projects, [], [], [], [], now_ms)
    until_ms = now_ms + seconds * 1_000

    def work() -> int:
        nonlocal now_ms
        polls = 0
        while now_ms < until_ms:
            now_ms = ticker.next_due() or until_ms
            ticker.advance(now_ms)
            started, ticker.starts = ticker.starts, []
            polls += len(started)
            ticker.finished([poll.spec.id for poll in started], now_ms)
        return polls

    return measured(work)


def core(specs: list[ProjectSpec], seconds: int) -> float:
    """All of the core, its WAL and its writer being quick; ticker and encoding included, the making of results not."""
    now_ms = 1_000_000
    made = WorkerCore(name="worker-1", incarnation="i", pid=1, stream_id="s", grace_ms=1_000, now_ms=now_ms)
    found = deque(made.handle(CoordinatorSaid(Reset(1, 1, 1)), now_ms))
    messages = [Limits(1, 2, SLOTS, 0), Grant(1, 3, 1, grants(specs, now_ms)), SnapshotEnd(1, 4)]
    for message in messages:
        found += made.handle(CoordinatorSaid(message), now_ms)
    found += made.handle(WriterSaid(StreamWelcome("s", 0, 1 << 30)), now_ms)
    until_ms = now_ms + seconds * 1_000

    def work() -> int:
        nonlocal now_ms
        polls = 0
        while now_ms < until_ms:
            now_ms = made.next_timer() or until_ms
            found.extend(made.handle_timer(now_ms))
            while found:
                effect = found.popleft()
                if isinstance(effect, StartPolls):
                    polls += len(effect.polls)
                    found.extend(made.handle(PollsFinished(results_of(effect)), now_ms))
                elif isinstance(effect, WriteWal):
                    found.extend(made.handle(WalWritten(effect.stream_id, effect.entries[-1].seq), now_ms))
        return polls

    started = StartPolls([PollStart(spec, now_ms, "tick", 1) for spec in specs[:IN_FLIGHT]])
    return measured(work) - measured(lambda: sum(len(results_of(started)) for _ in specs))


# ---- the engine -----------------------------------------------------------------------------------------------------


async def probe(specs: list[ProjectSpec], seconds: int) -> tuple[float, float]:
    """CPU µs per poll of starting, and of all the rest until the outcome is there."""
    prober = ChoosingProber(body_limit_bytes=1 << 20)
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = polls = 0
    starting_s = 0.0

    def ended(outcome: ProbeOutcome) -> None:
        nonlocal waiting
        if outcome.status != "success":
            raise BenchError(f"a poll failed: {outcome.error_message}")
        waiting -= 1
        if not waiting:
            over.set_result(None)

    until = time.monotonic() + seconds
    began_s = time.process_time()
    for at in range(0, len(specs) << 20, IN_FLIGHT):
        if time.monotonic() >= until:
            break
        step = [specs[(at + number) % len(specs)] for number in range(IN_FLIGHT)]
        over = asyncio.get_running_loop().create_future()
        waiting = IN_FLIGHT
        step_s = time.process_time()
        for spec in step:
            prober.start(spec, ended)
        starting_s += time.process_time() - step_s
        await over
        polls += IN_FLIGHT
    whole_s = time.process_time() - began_s
    await prober.close(1.0)
    return starting_s * 1e6 / polls, (whole_s - starting_s) * 1e6 / polls


# ---- the service between core and engine ----------------------------------------------------------------------------


class QuietProber:
    """Keeps what would be called with an outcome."""

    def __init__(self) -> None:
        self.waiting: list[OnOutcome] = []

    @property
    def in_flight(self) -> int:
        return len(self.waiting)

    def start(self, spec: ProjectSpec, done: OnOutcome) -> None:
        self.waiting.append(done)

    def cancel_redirects(self, project_ids: Collection[int]) -> None:
        raise BenchError("there are no redirects here")

    def cancel_all(self) -> None:
        self.waiting.clear()

    async def close(self, grace_s: float) -> None:
        self.cancel_all()


async def glue(specs: list[ProjectSpec], seconds: int) -> float:
    """A worker's service which nobody answers, between a list of polls and an engine that knows all outcomes."""
    now_ms = time.time_ns() // 1_000_000
    outcome = ProbeOutcome("success", 200, 0.5312, first_byte_ms=0.3125, transfer_ms=0.0121, size_bytes=2)
    steps = [
        [PollStart(spec, now_ms, "tick", 1) for spec in specs[at : at + IN_FLIGHT]]
        for at in range(0, len(specs), IN_FLIGHT)
    ]
    directory = Path(tempfile.mkdtemp(prefix="stages-"))
    service = WorkerService(RoleContext(Settings(data_dir=directory, name="worker-1", incarnation="i")))
    try:
        await service._prober.close(0.0)
        service._prober = quiet = QuietProber()

        def work() -> int:
            polls = 0
            for _ in range(seconds):
                for step in steps:
                    service._perform(StartPolls(step))
                    ended, quiet.waiting = quiet.waiting, []
                    for done in ended:
                        done(outcome)
                    finished = service._take_finished()
                    assert isinstance(finished, PollsFinished)
                    polls += len(finished.results)
            return polls

        return measured(work)
    finally:
        await service.close()
        shutil.rmtree(directory)


# ---- from the worker to the writer ----------------------------------------------------------------------------------


def entries(size: int, number: int) -> tuple[list[list[PollResult]], list[Entry]]:
    made = [[a_result(n, 1_764_000_000_000 + batch * SEAL_MS) for n in range(size)] for batch in range(number)]
    stream_id = str(uuid.uuid4())
    bodies = [encode(Batch(stream_id, seq, results, [])) for seq, results in enumerate(made, 1)]
    placed = [Entry(seq, body, size, (seq - 1) * size, 0) for seq, body in enumerate(bodies, 1)]
    return made, placed


def encoded(batches: list[list[PollResult]]) -> float:
    stream = OutgoingStream(replay.StreamHello("s", "worker-1", "i", 1), 0)

    def work() -> int:
        for results in batches:
            stream.written(stream.seal(results, []).seq, 0)
            stream.acknowledge(stream.appended_seq, 0)
        return sum(map(len, batches))

    return measured(work)


def appended(placed: list[Entry]) -> float:
    root = Path(tempfile.mkdtemp(prefix="stages-"))
    try:
        directory = WalDirectory(root, worker="worker-1", limit_bytes=1 << 30, free_floor_bytes=0)
        log = directory.create(str(uuid.uuid4()))

        def work() -> int:
            for entry in placed:
                log.append([entry])
            log.sync()
            return sum(entry.records for entry in placed)

        try:
            return measured(work)
        finally:
            directory.close()
    finally:
        shutil.rmtree(root)


def sent(placed: list[Entry]) -> tuple[float, float]:
    """Through an ipc socket to another process, one batch after another; CPU µs per poll of either side."""
    directory = tempfile.mkdtemp(prefix="stages-")
    endpoint = f"ipc://{directory}/results.sock"
    command = [sys.executable, "-m", "tests.bench.stages", "--receive", endpoint, str(len(placed))]
    records = sum(entry.records for entry in placed)
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as receiver, zmq.Context() as context:
            with connect_dealer(context, endpoint) as dealer:
                dealer.send(b"hello")
                if not dealer.poll(10_000):
                    raise BenchError("the receiver did not start")
                dealer.recv()
                began_s = time.process_time()
                for entry in placed:
                    dealer.send(entry.body)
                    dealer.recv()
                sending_s = time.process_time() - began_s
            receiving_s = float(receiver.communicate(timeout=30)[0])
        return sending_s * 1e6 / records, receiving_s * 1e6 / records
    finally:
        shutil.rmtree(directory)


def receive(endpoint: str, count: int) -> None:
    """The writer's side: a word for each batch; prints the CPU seconds it took."""
    with zmq.Context() as context, bind_router(context, endpoint) as router:
        peer, _ = router.recv_multipart()
        began_s = time.process_time()
        router.send_multipart([peer, b""])
        for _ in range(count):
            peer, _ = router.recv_multipart()
            router.send_multipart([peer, b""])
        print(time.process_time() - began_s)
        router.close(linger=1_000)


def decoded(placed: list[Entry]) -> float:
    def work() -> int:
        return sum(len(_batch(entry).results) for entry in placed)

    return measured(work)


def _batch(entry: Entry) -> Batch:
    found = decode_to_writer(entry.body)
    assert isinstance(found, Batch)
    return found


# ---- the writer's store ---------------------------------------------------------------------------------------------


async def stored(polls_per_s: int, seconds: int) -> tuple[float, float]:
    """In flushes of 100 ms, by two streams; CPU µs per row of this process and of PostgreSQL."""
    directory = Path(tempfile.mkdtemp(prefix="stages-"))
    directory.chmod(0o755)
    db = Database(directory, os.environ.get("DATABASE_URL"))
    try:
        await db.start()
        begin_ms = int(time.time() // 86_400) * 86_400_000
        rows = polls_per_s * seconds
        ground = replay.Ground(db, directory, rows, 2, polls_per_s, None, begin_ms)
        await replay.maintain(replay.store_of(ground), ground)
        figures = await replay.through_the_store(
            ground, "live", flush_rows=max(2, polls_per_s // FLUSHES_PER_S), batch_rows=polls_per_s // 2 // 25
        )
        return figures.writer_us_per_row, figures.postgresql_us_per_row or 0.0
    finally:
        await db.close()
        shutil.rmtree(directory, ignore_errors=True)


# ---- a run ----------------------------------------------------------------------------------------------------------


def run(*, polls_per_worker: int, seconds: int, rounds: int, store_seconds: int) -> StageFigures:
    target = BenchTarget()
    try:
        specs = projects(polls_per_worker, target.url)
        size = max(1, polls_per_worker * SEAL_MS // 1_000)
        made, placed = entries(size, BATCHES)
        found: dict[str, list[float]] = {stage: [] for stage in STAGES}
        for _ in range(rounds):
            found["tick"].append(tick(specs, seconds))
            found["encode"].append(encoded(made))
            found["decide"].append(core(specs, seconds) - found["tick"][-1] - found["encode"][-1])
            found["glue"].append(uvloop.run(glue(specs, seconds)))
            starting, finishing = uvloop.run(probe(specs, seconds))
            found["start"].append(starting)
            found["finish"].append(finishing)
            found["WAL"].append(appended(placed))
            sending, receiving = sent(placed)
            found["send"].append(sending)
            found["receive"].append(receiving)
            found["decode"].append(decoded(placed))
    finally:
        target.close()
    writer, backend = uvloop.run(stored(2 * polls_per_worker, store_seconds))
    found["COPY"], found["backend"] = [writer], [backend]
    least = {stage: round(max(0.0, min(each)), 2) for stage, each in found.items()}
    return StageFigures(
        polls_per_worker, size, len(placed[0].body), least, round(sum(least.values()), 1), dict(machine())
    )


def show(found: StageFigures, console: Console) -> None:
    table = Table(title=f"CPU µs per poll at {found.polls_per_worker} polls/s per worker")
    table.add_column("stage")
    table.add_column("µs", justify="right")
    for stage, cost in found.cpu_us_per_poll.items():
        table.add_row(stage, f"{cost:.2f}")
    table.add_section()
    table.add_row("all stages", f"{found.total_us:.1f}")
    console.print(table)


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = bench_parser("stages", __doc__)
    parser.add_argument("--polls-per-worker", type=int, default=7_500)
    parser.add_argument("--seconds", type=int, default=2, help="of the schedule, and of probing, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store-seconds", type=int, default=20, help="of results that are stored")
    parser.add_argument("--receive", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(arguments: argparse.Namespace) -> StageFigures:
    return run(
        polls_per_worker=arguments.polls_per_worker,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        store_seconds=arguments.store_seconds,
    )


if __name__ == "__main__":
    chosen = arguments_of()
    if chosen.receive is not None:
        receive(chosen.receive[0], int(chosen.receive[1]))
        sys.exit()
    try:
        result = main(chosen)
    except (BenchError, OSError) as failure:
        sys.exit(f"stages: {failure}")
    show(result, Console())
    write_figures(chosen.json, result)
