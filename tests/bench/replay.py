"""How fast the writer takes what waited: rows per second, and what a row costs the writer and PostgreSQL.

    python -m tests.bench.replay --rows 2000000 --streams 4 --json replay.json

Ticks of ``--projects`` projects, one a second, by ``--streams`` streams, in flushes as the writer makes them (20,000
rows, batches of 400), made as they are needed.  The database is embedded, or a new one on the server of DATABASE_URL;
the primary keys are in place, and each scenario begins with empty tables:

    fresh        Store.commit in this process; nothing else in the tables
    late         the same, with a missed range of each project before these ticks, and 50 after them
    late, 1 %    the same, and each hundredth result is there already
    late, 50 %   the same, and each second result is there already
    freed        results whose ticks had all been counted missed, one range per project
    missed       missed ranges of a tick each in place of results
    claims       missed ranges of a thousand ticks each, one per project and reason `down`
    process      a writer process (`python -m writer`) on a core of its own, fed over ZeroMQ with adopted streams

CPU of the writer is that of Store.commit, or of the whole process; of PostgreSQL, that of all its processes, read from
/proc (resolution 10 ms).  Everything but the writer process is kept off its core, if there is more than one.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import uvloop
import zmq
from rich.console import Console
from rich.table import Table

from cluster import config
from cluster.bench.rig import BenchError, Database, machine, spread
from cluster.channel import Channel
from cluster.messages import control, results
from cluster.messages.results import (
    Batch,
    Committed,
    MissedRange,
    PollResult,
    Rewind,
    StreamEnd,
    StreamHello,
    StreamWelcome,
    WhichStream,
)
from cluster.settings import Settings
from cluster.sockets import bind_router, connect_dealer
from tests.bench.figures import bench_parser, write_figures
from writer.core import FLUSH_ROWS
from writer.events import Flush, FlushCommitted, StreamPart
from writer.partitions import Maintenance
from writer.store import Store

BATCH_ROWS = 400
DAY_MS = 86_400_000
INTERVAL_MS = 1_000
RETENTION_DAYS = 90
RANGES_AFTER = 50  # of each project
CLAIM_TICKS = 1_000
FAILURES_EVERY = 50
DEADLINE_S = 120.0  # without any progress


class ReplayFigures(msgspec.Struct):
    scenario: str
    rows: int
    seconds: float
    rows_per_s: float
    writer_us_per_row: float
    postgresql_us_per_row: float | None  # None: the server is not on this machine
    replayer_us_per_row: float | None  # of the process that feeds a writer process
    duplicates: int
    flush_ms: dict[str, float]
    writer_rss_mib: float


class Ground(msgspec.Struct):
    """What a scenario stands on."""

    db: Database
    directory: Path
    rows: int
    streams: int
    projects: int
    writer_core: int | None
    begin_ms: int  # the first tick: last midnight

    def tick_ms(self, number: int) -> int:
        """The instant of the number-th record; records go round the projects."""
        round_, project = divmod(number, self.projects)
        return self.begin_ms + round_ * INTERVAL_MS + project % INTERVAL_MS

    def end_ms(self) -> int:
        return self.tick_ms(self.rows) + INTERVAL_MS


# ---- records --------------------------------------------------------------------------------------------------------


def result(ground: Ground, number: int) -> PollResult:
    at_ms = ground.tick_ms(number)
    failed = number % FAILURES_EVERY == 0
    return PollResult(
        project_id=number % ground.projects + 1,
        scheduled_at_ms=at_ms,
        polled_at_us=at_ms * 1_000 + number % 5_000,
        trigger="tick",
        status="failure" if failed else "success",
        status_code=None if failed else 200,
        response_time_ms=None if failed else 12.5 + number % 7,
        error_code="connect_refused" if failed else None,
        error_message="connection to 127.0.0.1:8080 was refused" if failed else None,
        dns_ms=None,
        connect_ms=None,
        tls_ms=None,
        first_byte_ms=None if failed else 9.25,
        transfer_ms=None if failed else 0.5,
        size_bytes=None if failed else 1_234,
        connection_reused=None if failed else True,
        remote_address="127.0.0.1",
        epoch=7,
    )


def missed_tick(ground: Ground, number: int) -> MissedRange:
    at_ms = ground.tick_ms(number)
    return MissedRange(number % ground.projects + 1, at_ms, at_ms, INTERVAL_MS, "overload", 7)


def claim(ground: Ground, number: int) -> MissedRange:
    """Claims of a project follow each other."""
    round_, project = divmod(number, ground.projects)
    first_ms = ground.begin_ms - DAY_MS * 60 + round_ * CLAIM_TICKS * INTERVAL_MS + project % INTERVAL_MS
    return MissedRange(project + 1, first_ms, first_ms + (CLAIM_TICKS - 1) * INTERVAL_MS, INTERVAL_MS, "down", 7)


def batches(
    ground: Ground,
    stream: int,
    stream_id: str,
    make: Callable[[Ground, int], PollResult | MissedRange],
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Batch]:
    """All batches of one of the streams; it has every n-th record."""
    numbers = iter(range(stream, ground.rows, ground.streams))
    for seq in itertools.count(1):
        made = [make(ground, number) for number in itertools.islice(numbers, batch_rows)]
        if not made:
            return
        polled = [each for each in made if isinstance(each, PollResult)]
        yield Batch(stream_id, seq, polled, [each for each in made if isinstance(each, MissedRange)])


def flushes(
    ground: Ground,
    make: Callable[[Ground, int], PollResult | MissedRange],
    flush_rows: int = FLUSH_ROWS,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Flush]:
    stream_ids = [str(uuid.uuid4()) for _ in range(ground.streams)]
    sources = [batches(ground, n, stream_id, make, batch_rows) for n, stream_id in enumerate(stream_ids)]
    per_stream = max(1, flush_rows // batch_rows // ground.streams)
    for flush_id in itertools.count(1):
        parts = []
        for number, source in enumerate(sources):
            if some := list(itertools.islice(source, per_stream)):
                base_seq = some[0].seq - 1
                parts.append(StreamPart(stream_ids[number], f"worker-{number + 1}", base_seq, some))
        if not parts:
            return
        rows = sum(len(batch.results) + len(batch.missed) for part in parts for batch in part.batches)
        yield Flush(flush_id, parts, rows, 0)


# ---- what is in the tables before -----------------------------------------------------------------------------------


async def clear(ground: Ground) -> None:
    async with ground.db.connection() as conn:
        await conn.execute("TRUNCATE poll_results, missed_polls, ingest_stream")


async def put_ranges_around(ground: Ground) -> None:
    """A missed range of each project before the replayed ticks, and many after them."""
    end_ms = ground.end_ms()
    await copy_ranges(ground, [(ground.begin_ms - 60_000, ground.begin_ms - 50_000)])
    after = [(end_ms + n * 10_000, end_ms + n * 10_000 + 2_000) for n in range(RANGES_AFTER)]
    await copy_ranges(ground, after)


async def put_ranges_over(ground: Ground) -> None:
    await copy_ranges(ground, [(ground.begin_ms, ground.end_ms())])


async def copy_ranges(ground: Ground, ranges: list[tuple[int, int]]) -> None:
    async with ground.db.connection() as conn:
        for first_ms, last_ms in ranges:
            await conn.execute(
                """
                INSERT INTO missed_polls
                SELECT p, to_timestamp(($2::bigint + (p - 1) % $4) / 1000.0),
                       to_timestamp(($3::bigint + (p - 1) % $4) / 1000.0), ($3::bigint - $2) / $4 + 1,
                       'handover', 'worker-9', 6
                FROM generate_series(1, $1::bigint) p
                """,
                ground.projects,
                first_ms,
                last_ms,
                INTERVAL_MS,
            )


async def put_each(ground: Ground, every: int) -> None:
    """Each so many results by another worker."""
    other = msgspec.structs.replace(ground, streams=1)
    numbers = iter(range(every - 1, ground.rows, every))
    stream_id = str(uuid.uuid4())
    store = store_of(ground)
    for seq in itertools.count(1):
        made = [result(other, number) for number in itertools.islice(numbers, FLUSH_ROWS)]
        if not made:
            break
        await store.commit(Flush(seq, [StreamPart(stream_id, "worker-9", seq - 1, [Batch(stream_id, seq, made, [])])],
                                 len(made), 0))  # fmt: skip
    await store.close()


# ---- the store in this process --------------------------------------------------------------------------------------


def store_of(ground: Ground) -> Store:
    return Store(ground.db.url, retention_days=RETENTION_DAYS, wall_ms=lambda: ground.begin_ms + DAY_MS // 2)


async def through_the_store(
    ground: Ground,
    scenario: str,
    make: Callable[[Ground, int], PollResult | MissedRange] = result,
    flush_rows: int = FLUSH_ROWS,
    batch_rows: int = BATCH_ROWS,
) -> ReplayFigures:
    store = store_of(ground)
    meter = Meter(ground)
    commit_s = cpu_s = 0.0
    took_ms: list[float] = []
    rows = duplicates = 0
    for flush in flushes(ground, make, flush_rows, batch_rows):
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        outcome = await store.commit(flush)
        cpu_s += time.process_time() - began_cpu_s
        took_ms.append((time.perf_counter() - began_s) * 1_000)
        commit_s += took_ms[-1] / 1_000
        if not isinstance(outcome, FlushCommitted) or outcome.rejects:
            raise BenchError(f"{scenario}: a flush was answered by {outcome}")
        rows += flush.rows
        duplicates += outcome.duplicates
    figures = meter.read(scenario, rows, commit_s, cpu_s, duplicates, took_ms, psutil.Process())
    await store.close()
    return figures


class Meter:
    """What PostgreSQL has used since; its processes that end meanwhile included."""

    def __init__(self, ground: Ground) -> None:
        self._postmaster = ground.db.postmaster
        self._began_s = self._used_s()

    def read(
        self,
        scenario: str,
        rows: int,
        seconds: float,
        writer_cpu_s: float,
        duplicates: int,
        took_ms: list[float],
        writer: psutil.Process,
    ) -> ReplayFigures:
        used_s = self._used_s() - self._began_s
        return ReplayFigures(
            scenario=scenario,
            rows=rows,
            seconds=round(seconds, 2),
            rows_per_s=round(rows / seconds),
            writer_us_per_row=round(writer_cpu_s / rows * 1e6, 2),
            postgresql_us_per_row=None if self._postmaster is None else round(used_s / rows * 1e6, 2),
            replayer_us_per_row=None,
            duplicates=duplicates,
            flush_ms=spread(took_ms),
            writer_rss_mib=round(writer.memory_info().rss / (1 << 20), 1),
        )

    def _used_s(self) -> float:
        if self._postmaster is None:
            return 0.0
        own = self._postmaster.cpu_times()
        return sum(
            (cpu_s(process) for process in self._postmaster.children()),
            own.user + own.system + own.children_user + own.children_system,
        )


def cpu_s(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


# ---- a writer process, fed over ZeroMQ ------------------------------------------------------------------------------


class Replayer:
    """A worker that delivers an adopted stream: batches within the credit, kept until they are acknowledged."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, number: int, ground: Ground) -> None:
        self.stream_id = str(uuid.uuid4())
        self.committed_seq = 0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hello = StreamHello(
            self.stream_id, f"worker-{number + 1}", uuid.uuid4().hex, 1, adopted_by=f"worker-{number + 101}"
        )
        self._batches = batches(ground, number, self.stream_id, result)
        self._window: deque[bytes] = deque()  # sent and not acknowledged, the first is committed_seq + 1
        self._window_bytes = 0
        self._held: bytes | None = None  # made, and beyond the credit
        self._credit_bytes = 0
        self._channel = Channel(connect_dealer(context, endpoint), self._on_frames)
        self._channel.send(results.encode(self._hello))

    def close(self) -> None:
        self._channel.close()

    def _on_frames(self, frames: list[bytes]) -> None:
        match results.decode_from_writer(frames[-1]):
            case WhichStream():
                self._channel.send(results.encode(self._hello))
            case StreamWelcome(_, committed_seq, credit_bytes):
                self._credit_bytes = credit_bytes
                self._on_committed(committed_seq)
                self._send_again(self.committed_seq + 1)
                self._send_more()
            case Committed(_, seq):
                self._on_committed(seq)
                self._send_more()
            case Rewind(_, seq):
                self._send_again(seq)

    def _on_committed(self, seq: int) -> None:
        while self.committed_seq < seq:
            self._window_bytes -= len(self._window.popleft())
            self.committed_seq += 1

    def _send_again(self, from_seq: int) -> None:
        for body in itertools.islice(self._window, max(0, from_seq - 1 - self.committed_seq), None):
            self._channel.send(body)

    def _send_more(self) -> None:
        while True:
            if self._held is None:
                batch = next(self._batches, None)
                if batch is None:
                    break
                self._held = results.encode(batch)
            if self._window and self._window_bytes + len(self._held) > self._credit_bytes:
                return
            if not self._channel.send(self._held):
                return  # the next acknowledgement brings us here again
            self._window.append(self._held)
            self._window_bytes += len(self._held)
            self._held = None
        if not self._window and not self.finished.done():
            self._channel.send(results.encode(StreamEnd(self.stream_id)))
            self.finished.set_result(None)


@contextlib.asynccontextmanager
async def writer_process(ground: Ground) -> AsyncIterator[psutil.Process]:
    """A writer on its core; stopped in the end."""
    settings = Settings(
        data_dir=ground.directory,
        database_url=ground.db.url,
        retention_days=RETENTION_DAYS,
        name="writer",
        incarnation=uuid.uuid4().hex,
        log_format="human",
    )
    settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (ground.directory / "writer.log").open("ab") as log, on_core(ground.writer_core):
        child = subprocess.Popen(
            [sys.executable, "-m", "writer"],
            env=config.role_environ(settings, dict(os.environ)),
            stdin=subprocess.PIPE,
            stderr=log,
            cwd=Path(__file__).parents[2],
        )
    try:
        yield psutil.Process(child.pid)
        child.terminate()
        status = await asyncio.to_thread(child.wait, DEADLINE_S)
        if status:
            log_text = (ground.directory / "writer.log").read_text(errors="replace")[-2_000:]
            raise BenchError(f"the writer ended with {status}: {log_text}")
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        if child.stdin is not None:
            child.stdin.close()


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What is started meanwhile runs on this core only."""
    if core is None:
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


async def through_a_process(ground: Ground) -> ReplayFigures:
    endpoint = Settings(data_dir=ground.directory).results
    control_endpoint = Settings(data_dir=ground.directory).control
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(context.term)
        beats: list[control.WriterHeartbeat] = []

        def on_beat(frames: list[bytes]) -> None:
            message = control.decode_to_coordinator(frames[-1])
            if isinstance(message, control.WriterHeartbeat):
                beats[:] = [message]

        (ground.directory / "run").mkdir(mode=0o700, exist_ok=True)
        heard = Channel(bind_router(context, control_endpoint), on_beat)
        stack.callback(heard.close)
        writer = await stack.enter_async_context(writer_process(ground))
        await until(lambda: bool(beats), "the writer to run")
        meter = Meter(ground)
        began_s, began_cpu_s, own_cpu_s = time.perf_counter(), cpu_s(writer), time.process_time()
        replayers = [Replayer(context, endpoint, number, ground) for number in range(ground.streams)]
        for each in replayers:
            stack.callback(each.close)
        await until(
            lambda: all(each.finished.done() for each in replayers),
            "everything to be committed",
            progress=lambda: sum(each.committed_seq for each in replayers),
        )
        took_s = time.perf_counter() - began_s
        own_cpu_s = time.process_time() - own_cpu_s
        figures = meter.read("process", ground.rows, took_s, cpu_s(writer) - began_cpu_s, 0, [], writer)
        figures.replayer_us_per_row = round(own_cpu_s / ground.rows * 1e6, 2)
        await until(lambda: beats[0].rows_written == ground.rows, "the writer to have counted every row")
        figures.duplicates = beats[0].duplicates
        return figures


async def until(
    condition: Callable[[], bool], what: str, *, progress: Callable[[], int] = lambda: 0, every_s: float = 0.01
) -> None:
    """Raises BenchError when nothing has moved for DEADLINE_S."""
    seen, at_s = progress(), time.monotonic()
    while not condition():
        if (now := progress()) != seen:
            seen, at_s = now, time.monotonic()
        if time.monotonic() - at_s > DEADLINE_S:
            raise BenchError(f"waited {DEADLINE_S:g} s for {what}")
        await asyncio.sleep(every_s)


# ---- all of it ------------------------------------------------------------------------------------------------------


async def run(ground: Ground, scenario: str) -> ReplayFigures:
    await clear(ground)
    match scenario:
        case "fresh":
            return await through_the_store(ground, scenario)
        case "late":
            await put_ranges_around(ground)
            return await through_the_store(ground, scenario)
        case "late, 1 %" | "late, 50 %":
            await put_ranges_around(ground)
            await put_each(ground, 100 if "1 %" in scenario else 2)
            return await through_the_store(ground, scenario)
        case "freed":
            await put_ranges_over(ground)
            return await through_the_store(ground, scenario)
        case "missed":
            return await through_the_store(ground, scenario, missed_tick)
        case "claims":
            return await through_the_store(ground, scenario, claim)
        case "process":
            return await through_a_process(ground)
        case _:
            raise BenchError(f"there is no scenario {scenario!r}; there are {', '.join(SCENARIOS)}")


SCENARIOS = ("fresh", "late", "late, 1 %", "late, 50 %", "freed", "missed", "claims", "process")


async def main(arguments: argparse.Namespace) -> list[ReplayFigures]:
    directory = Path(tempfile.mkdtemp(prefix="ringpoll-replay-"))
    directory.chmod(0o755)  # as root the embedded server runs under another account, which must reach it
    cores = sorted(os.sched_getaffinity(0))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        if len(cores) > 1:
            stack.callback(os.sched_setaffinity, 0, set(cores))
            os.sched_setaffinity(0, set(cores[1:]))  # an embedded server inherits it
        db = Database(directory, os.environ.get("DATABASE_URL"))
        stack.push_async_callback(db.close)
        await db.start()
        ground = Ground(
            db=db,
            directory=directory,
            rows=arguments.rows,
            streams=arguments.streams,
            projects=arguments.projects,
            writer_core=cores[0] if len(cores) > 1 else None,
            begin_ms=time.time_ns() // 1_000_000 // DAY_MS * DAY_MS,
        )
        if len(cores) > 1:
            os.sched_setaffinity(0, set(cores[:1]))  # the store in this process, too, has a core of its own
        found = []
        store = store_of(ground)
        await maintain(store, ground)
        for scenario in arguments.scenarios:
            if scenario == "process" and len(cores) > 1:
                os.sched_setaffinity(0, set(cores[1:]))
            found.append(await run(ground, scenario))
        return found


async def maintain(store: Store, ground: Ground) -> None:
    """As many result partitions as a cluster has that has run for its retention."""
    upkeep = Maintenance.plan(ground.begin_ms, RETENTION_DAYS)
    while await store.run(upkeep.run_step):
        pass
    await store.close()


def show(found: list[ReplayFigures], console: Console) -> None:
    table = Table(title=f"{found[0].rows} rows into the writer")
    table.add_column("", no_wrap=True)
    for name in ("rows/s", "writer µs/row", "PostgreSQL µs/row", "duplicates", "flush p50 ms", "flush max ms"):
        table.add_column(name, justify="right")
    for each in found:
        table.add_row(
            each.scenario,
            f"{each.rows_per_s:,.0f}",
            f"{each.writer_us_per_row:g}",
            "-" if each.postgresql_us_per_row is None else f"{each.postgresql_us_per_row:g}",
            str(each.duplicates),
            *(f"{each.flush_ms[name]:g}" if each.flush_ms["max"] else "-" for name in ("p50", "max")),
        )
    console.print(table)


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = bench_parser("replay", __doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of each scenario")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--projects", type=int, default=2_000)
    parser.add_argument(
        "--scenarios",
        type=lambda text: [each.strip() for each in text.split(";")],
        default=list(SCENARIOS),
        help=f"separated by semicolons: {'; '.join(SCENARIOS)}".replace("%", "%%"),
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    chosen = arguments_of()
    try:
        measured = uvloop.run(main(chosen))
    except BenchError as failure:
        sys.exit(f"replay: {failure}")
    show(measured, Console())
    write_figures(chosen.json, {"machine": machine(), "figures": measured})
