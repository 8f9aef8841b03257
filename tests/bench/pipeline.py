"""The cluster beside a bare pipeline of the same shape, in turns: what everything that is not the main job costs.

    python -m tests.bench.pipeline --projects 15000 --workers 2 --seconds 30 --rounds 3 --json pipeline.json

The bare pipeline polls as many projects once a second with as many worker processes, on kept connections, encodes the
results, writes them to a file, sends them over ZeroMQ to one writer and saves each by COPY into a table with a primary
key.  It has no time-outs, errors, TLS, names, redirects, acknowledgements, ownership, missed ticks or status: what no
cluster can go below.  Both poll the same target and use the same PostgreSQL, one after the other, ``--rounds`` times.

Figures are CPU time per poll (user and system, without starting Python) of all processes but the target, PostgreSQL's
included; the least of the rounds.  The cluster is measured as `cluster bench` does it.
"""

import argparse
import asyncio
import heapq
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.queues import Queue
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import uvloop
import zmq
from rich.console import Console
from rich.table import Table

from cluster.bench.rig import BenchError, Rig, machine, rig
from cluster.bench.throughput import Load, measure_throughput
from cluster.ticks import phase_ms
from tests.bench.exchange import Exchange
from tests.bench.figures import bench_parser, write_figures

SLOTS = 500
INTERVAL_S = 1.0
FLUSH_S = 0.05
COMMIT_S = 0.1
LOOK_S = 0.005
DEADLINE_S = 60.0
GOAL = 1.4
END = b"end"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Row(msgspec.Struct, array_like=True, gc=False):
    project_id: int
    scheduled_at_us: int
    polled_at_us: int
    success: bool
    status_code: int
    response_time_us: int
    size_bytes: int
    error: str | None


class BareFigures(msgspec.Struct):
    polls: int
    saved: int
    cpu_us_per_poll: dict[str, float]  # workers, writer, postgresql
    lateness_p99_ms: float

    @property
    def total_us(self) -> float:
        return sum(self.cpu_us_per_poll.values())


class PipelineFigures(msgspec.Struct):
    projects: int
    workers: int
    seconds: float
    bare_us: list[float]
    cluster_us: list[float]
    bare: BareFigures  # of the cheapest round
    cluster_us_by_role: dict[str, float]
    cluster_lateness_p99_ms: float
    holds: bool  # the cluster saved all that was due, each time
    machine: dict[str, object] = {}

    @property
    def ratio(self) -> float:
        return min(self.cluster_us) / min(self.bare_us)


# ---- the bare worker ------------------------------------------------------------------------------------------------


class PollExchange(Exchange):
    """A connection, and the poll that is on it."""

    def __init__(self, answered: Callable[["PollExchange", int], None]) -> None:
        super().__init__(answered)
        self.project = self.size_bytes = 0
        self.due = self.started = 0.0

    def on_body(self, body: bytes) -> None:
        self.size_bytes += len(body)


class BareWorker:
    def __init__(self, projects: list[int], url: str, slots: int, file: IO[bytes], socket: zmq.Socket[bytes]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._address = (parts.hostname, parts.port or 80)
        self._request = f"GET /check HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: */*\r\n\r\n".encode()
        self._slots = slots
        self._file = file
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._encode = msgspec.msgpack.Encoder().encode
        self._wall_s = time.time() - time.monotonic()
        self._began = time.monotonic() + FLUSH_S
        phases = ((phase_ms(each, round(INTERVAL_S * 1_000)) / 1_000, each) for each in projects)
        self._heap = [(self._began + phase, project) for phase, project in phases]
        heapq.heapify(self._heap)
        self._idle: list[PollExchange] = []
        self._waiting: list[tuple[int, float]] = []
        self._rows: list[Row] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._active = 0
        self.polls = 0
        self.lateness: list[float] = []

    async def run(self, seconds: float) -> None:
        until = self._began + seconds
        ended: asyncio.Future[None] = self._loop.create_future()

        def tick() -> None:
            now = time.monotonic()
            while (due := self._heap[0][0]) <= now:
                project = self._heap[0][1]
                heapq.heapreplace(self._heap, (due + INTERVAL_S, project))
                self._start(project, due)
            if now < until:
                self._loop.call_later(max(0.001, self._heap[0][0] - now), tick)
            else:
                ended.set_result(None)

        def flush() -> None:
            self._send()
            self._loop.call_later(FLUSH_S, flush)

        tick()
        flush()
        await ended
        while self._active and time.monotonic() < until + DEADLINE_S:
            await asyncio.sleep(LOOK_S)
        self._send()
        self._socket.send(END)

    def _start(self, project: int, due: float) -> None:
        if self._active >= self._slots:
            self._waiting.append((project, due))
            return
        self._active += 1
        if self._idle:
            self._ask(self._idle.pop(), project, due)
        else:
            opening = self._loop.create_task(self._open(project, due))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self, project: int, due: float) -> None:
        _, exchange = await self._loop.create_connection(lambda: PollExchange(self._finish), *self._address)
        self._ask(exchange, project, due)

    def _ask(self, exchange: PollExchange, project: int, due: float) -> None:
        exchange.project, exchange.due, exchange.size_bytes = project, due, 0
        exchange.started = time.monotonic()
        self.lateness.append(exchange.started - due)
        exchange.ask(self._request)

    def _finish(self, exchange: PollExchange, status: int) -> None:
        self._active -= 1
        self.polls += 1
        took_s = time.monotonic() - exchange.started
        self._rows.append(
            Row(exchange.project, self._us(exchange.due), self._us(exchange.started), status == 200, status,
                int(took_s * 1e6), exchange.size_bytes, None)
        )  # fmt: skip
        self._idle.append(exchange)
        if self._waiting:
            self._start(*self._waiting.pop(0))

    def _us(self, at: float) -> int:
        return int((at + self._wall_s) * 1e6)

    def _send(self) -> None:
        if self._rows:
            body = self._encode(self._rows)
            self._file.write(body)
            self._socket.send(body)
            self._rows.clear()


def work(number: int, projects: list[int], slots: int, url: str, directory: str, seconds: float, out: Any) -> None:
    began_s = time.process_time()

    async def main() -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(f"ipc://{directory}/results.sock")
        with Path(directory, f"wal-{number}").open("wb", buffering=0) as file:
            worker = BareWorker(projects, url, slots, file, socket)
            await worker.run(seconds)
        late = sorted(worker.lateness)
        out.put((worker.polls, time.process_time() - began_s, late[round((len(late) - 1) * 0.99)] * 1_000))
        socket.close(linger=5_000)
        context.term()

    uvloop.run(main())


# ---- the bare writer ------------------------------------------------------------------------------------------------


def write(workers: int, dsn: str, directory: str, out: Any) -> None:
    began_s = time.process_time()

    async def main() -> None:
        conn = await asyncpg.connect(dsn)
        await conn.execute(
            """
            DROP TABLE IF EXISTS bare_results;
            CREATE TABLE bare_results (project_id bigint, scheduled_at timestamptz, polled_at timestamptz,
                success boolean, status_code int, response_time_us int, size_bytes int, error text,
                PRIMARY KEY (project_id, scheduled_at))
            """
        )
        context = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        socket.bind(f"ipc://{directory}/results.sock")
        out.put("ready")
        decode = msgspec.msgpack.Decoder(list[Row]).decode
        saved = ended = 0
        while ended < workers:
            rows: list[Row] = []
            until = time.monotonic() + COMMIT_S
            while time.monotonic() < until and ended < workers:
                try:
                    _, body = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    await asyncio.sleep(LOOK_S)
                    continue
                if body == END:
                    ended += 1
                else:
                    rows += decode(body)
            if rows:
                await conn.copy_records_to_table("bare_results", records=map(_record, rows))
                saved += len(rows)
        out.put((saved, time.process_time() - began_s))
        await conn.close()
        socket.close()
        context.term()

    uvloop.run(main())


def _record(row: Row) -> tuple[object, ...]:
    return (
        row.project_id,
        EPOCH + timedelta(microseconds=row.scheduled_at_us),
        EPOCH + timedelta(microseconds=row.polled_at_us),
        row.success,
        row.status_code,
        row.response_time_us,
        row.size_bytes,
        row.error,
    )


# ---- a run ----------------------------------------------------------------------------------------------------------


def run_bare(ground: Rig, projects: int, workers: int, seconds: float) -> BareFigures:
    spawn = multiprocessing.get_context("spawn")
    from_writer: Queue[Any] = spawn.Queue()
    from_workers: Queue[Any] = spawn.Queue()
    with tempfile.TemporaryDirectory(prefix="ringpoll-bare-") as directory:
        writer = spawn.Process(target=write, args=(workers, ground.db.url, directory, from_writer))
        processes = [writer]
        try:
            writer.start()
            from_writer.get(timeout=DEADLINE_S)  # it is ready
            before_s = _backend_s(ground)
            for number in range(workers):
                some = list(range(number + 1, projects + 1, workers))
                words = (number, some, SLOTS // workers, ground.target.url, directory, seconds, from_workers)
                processes.append(spawn.Process(target=work, args=words))
                processes[-1].start()
            found = [from_workers.get(timeout=seconds + DEADLINE_S) for _ in range(workers)]
            saved, writer_s = from_writer.get(timeout=DEADLINE_S)
        finally:
            for process in processes:
                process.join(timeout=DEADLINE_S)
                process.kill()
        backend_s = _backend_s(ground) - before_s
    polls = sum(each[0] for each in found)
    cpu_s = {"workers": sum(each[1] for each in found), "writer": writer_s, "postgresql": backend_s}
    costs = {role: round(used * 1e6 / max(1, polls), 1) for role, used in cpu_s.items()}
    return BareFigures(polls, saved, costs, round(max(each[2] for each in found), 1))


def _backend_s(ground: Rig) -> float:
    """Of PostgreSQL, all its processes."""
    postmaster = ground.db.postmaster
    if postmaster is None:
        raise BenchError("PostgreSQL does not run on this machine: its CPU time can't be read")
    own = postmaster.cpu_times()
    used = own.user + own.system + own.children_user + own.children_system
    for child in postmaster.children():
        times = child.cpu_times()
        used += times.user + times.system
    return used


async def main(arguments: argparse.Namespace) -> PipelineFigures:
    server = os.environ.get("DATABASE_URL")
    bare: list[BareFigures] = []
    clusters = []
    load = Load(
        projects=arguments.projects,
        interval_s=round(INTERVAL_S),
        workers=arguments.workers,
        seconds=arguments.seconds,
        warm_up_s=2.0,
        max_concurrent_http=SLOTS,
    )
    for _ in range(arguments.rounds):
        async with rig(server) as ground:
            words = (ground, arguments.projects, arguments.workers, arguments.seconds)
            bare.append(await asyncio.to_thread(run_bare, *words))
        clusters.append(await measure_throughput(server, load, lambda *_: None))
    cheapest = min(clusters, key=lambda each: each.cpu_us_per_poll_total)
    return PipelineFigures(
        arguments.projects,
        arguments.workers,
        arguments.seconds,
        [round(each.total_us, 1) for each in bare],
        [each.cpu_us_per_poll_total for each in clusters],
        min(bare, key=lambda each: each.total_us),
        {role: cost for role, cost in cheapest.cpu_us_per_poll.items() if role != "target"},
        max(each.lateness_ms["p99"] for each in clusters),
        all(each.holds and each.audit_holds for each in clusters),
        dict(machine()),
    )


def show(found: PipelineFigures, console: Console) -> None:
    table = Table(title=f"CPU µs per poll: {found.projects} polls/s, {found.workers} workers")
    table.add_column("", no_wrap=True)
    table.add_column("cluster", justify="right", no_wrap=True)
    table.add_column("bare pipeline", justify="right", no_wrap=True)
    bare = found.bare.cpu_us_per_poll
    for role, cost in found.cluster_us_by_role.items():
        table.add_row(role, f"{cost:.1f}", f"{bare[role]:.1f}" if role in bare else "-")
    table.add_section()
    table.add_row("all", f"{min(found.cluster_us):.1f}", f"{min(found.bare_us):.1f}")
    table.add_row("each round", *(" ".join(map(str, each)) for each in (found.cluster_us, found.bare_us)))
    table.add_row("lateness p99 ms", f"{found.cluster_lateness_p99_ms:.1f}", f"{found.bare.lateness_p99_ms:.1f}")
    console.print(table)
    verdict = "" if found.ratio <= GOAL else f"; more than {GOAL} times"
    console.print(f"the cluster costs {found.ratio:.2f} times as much{verdict}")
    if not found.holds:
        console.print("the cluster did not save all that was due in time")


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = bench_parser("pipeline", __doc__)
    parser.add_argument("--projects", type=int, default=15_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args(words)


if __name__ == "__main__":
    chosen = arguments_of()
    try:
        result = uvloop.run(main(chosen))
    except (BenchError, OSError) as failure:
        sys.exit(f"pipeline: {failure}")
    show(result, Console())
    write_figures(chosen.json, result)
