"""What one poll costs: CPU time of both engines, of aiohttp's own client, and of a bare loop, side by side.

    python -m tests.bench.engine --seconds 1 --rounds 9 --json engine.json

The target runs in another process and its CPU is not counted; it answers ``200`` with two bytes, over HTTP and over
HTTPS with a certificate of an authority made for the run.  ``--in-flight`` polls are in flight at any time.

    kept            every poll on a kept connection
    new             every poll on a new connection
    lean, aiohttp   ``worker.probe.lean_engine`` and ``worker.probe.aiohttp_engine``, called as the worker does
    client          aiohttp.ClientSession as whoever polls with it would use it, at its cheapest: one session for all, a
                    task for each poll that may be in flight, a time-out, the body read; the status is all it finds out
    bare            ``tests.bench.exchange``: asyncio.Protocol and httptools on uvloop; what no engine can go below

Each figure is the least of ``--rounds`` turns of ``--seconds``, user and system time of this process by the number of
polls: what else the machine does meanwhile takes caches away and so only ever adds.  The four take turns.
"""

import argparse
import asyncio
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import aiohttp
import msgspec
import trustme
import uvloop
from rich.console import Console
from rich.table import Table

from cluster.bench.rig import BenchError, machine
from cluster.bench.target import Requests, TargetProtocol
from cluster.project import ProjectSpec
from tests.bench.exchange import Exchange
from tests.bench.figures import bench_parser, write_figures
from worker.probe.aiohttp_engine import AiohttpProber
from worker.probe.interface import ProbeOutcome, Prober
from worker.probe.lean_engine import LeanProber
from worker.probe.pool import IdlePool

HOST = "127.0.0.1"
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bare\r\nAccept: */*\r\n\r\n"
WARM_UP_POLLS = 3
ENGINES = ("lean", "aiohttp", "client", "bare")
TIMEOUT_S = 30.0
# The most the lean engine may cost in each case: of what a bare loop costs, or of what the aiohttp engine costs.
GOALS = {
    "HTTP, kept": ("aiohttp", 1 / 3),
    "HTTP, new": ("bare", 1.4),
    "HTTPS, kept": ("bare", 1.7),
    "HTTPS, new": ("bare", 1.1),
}


class CaseFigures(msgspec.Struct):
    case: str
    cpu_us_per_poll: dict[str, float]
    polls: dict[str, int]

    @property
    def holds(self) -> bool:
        against, share = GOALS[self.case]
        return self.cpu_us_per_poll["lean"] <= share * self.cpu_us_per_poll[against]


class EngineFigures(msgspec.Struct):
    in_flight: int
    seconds: float
    cases: list[CaseFigures]
    machine: dict[str, object] = {}


class Turn:
    """Counts polls, and takes CPU time of what lies between the warm-up and the end."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.polls = 0
        self.over = False
        self._failure = ""

    def fail(self, text: str) -> None:
        """No more polls; ``measure`` raises BenchError."""
        self._failure = self._failure or text
        self.over = True

    async def measure(self, in_flight: int) -> tuple[int, float]:
        while self.polls < WARM_UP_POLLS * in_flight and not self.over:  # each has its connection, if they are kept
            await asyncio.sleep(0.01)
        polls, cpu_s = self.polls, time.process_time()
        await asyncio.sleep(self._seconds)
        polls, cpu_s = self.polls - polls, time.process_time() - cpu_s
        self.over = True
        if self._failure:
            raise BenchError(self._failure)
        return polls, cpu_s


# ---- the bare loop --------------------------------------------------------------------------------------------------


async def bare_kept(turn: Turn, port: int, tls: ssl.SSLContext | None, in_flight: int) -> tuple[int, float]:
    def again(exchange: Exchange, status: int) -> None:
        turn.polls += 1
        if status != 200:
            turn.fail(f"the target answered {status}")
        elif not turn.over:
            exchange.ask(REQUEST)

    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(partial(Exchange, again), HOST, port, ssl=tls) for _ in range(in_flight)]
    for _, exchange in opened:
        exchange.ask(REQUEST)
    try:
        return await turn.measure(in_flight)
    finally:
        for _, exchange in opened:
            exchange.abort()


async def bare_new(turn: Turn, port: int, tls: ssl.SSLContext | None, in_flight: int) -> tuple[int, float]:
    loop = asyncio.get_running_loop()

    async def poll() -> int:
        answered: asyncio.Future[int] = loop.create_future()

        def on_answer(_exchange: Exchange, status: int) -> None:
            answered.set_result(status)

        _, exchange = await loop.create_connection(partial(Exchange, on_answer), HOST, port, ssl=tls)
        exchange.ask(REQUEST)
        status = await answered
        exchange.abort()
        return status

    return await _by_tasks(turn, in_flight, poll)


async def _by_tasks(turn: Turn, in_flight: int, poll: Callable[[], Awaitable[int]]) -> tuple[int, float]:
    """``poll`` again and again by each of so many tasks; it returns the status."""

    async def one_after_another() -> None:
        while not turn.over:
            try:
                status = await poll()
            except (OSError, aiohttp.ClientError) as error:
                turn.fail(f"a poll failed: {error!r}")
            else:
                turn.polls += 1
                if status != 200:
                    turn.fail(f"the target answered {status}")

    tasks = [asyncio.ensure_future(one_after_another()) for _ in range(in_flight)]
    try:
        return await turn.measure(in_flight)
    finally:
        await asyncio.gather(*tasks)


# ---- aiohttp's client -----------------------------------------------------------------------------------------------


async def client_polled(
    turn: Turn, port: int, tls: ssl.SSLContext | None, in_flight: int, *, kept: bool
) -> tuple[int, float]:
    url = f"http{'s' if tls else ''}://{HOST}:{port}/"
    connector = aiohttp.TCPConnector(limit=in_flight, ssl=tls or True, force_close=not kept)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def poll() -> int:
            async with session.get(url) as response:
                await response.read()
                return response.status

        return await _by_tasks(turn, in_flight, poll)


# ---- the engines ----------------------------------------------------------------------------------------------------


def make_prober(engine: str, tls: ssl.SSLContext | None, *, kept: bool) -> Prober:
    pool = IdlePool() if kept else IdlePool(idle_max=0)
    if engine == "lean":
        return LeanProber(body_limit_bytes=1 << 20, tls=tls, pool=pool)
    return AiohttpProber(body_limit_bytes=1 << 20, tls=tls, pool=pool)


async def polled(
    turn: Turn, prober: Prober, port: int, tls: ssl.SSLContext | None, in_flight: int
) -> tuple[int, float]:
    url = f"http{'s' if tls else ''}://{HOST}:{port}/"

    def again(spec: ProjectSpec, outcome: ProbeOutcome) -> None:
        turn.polls += 1
        if outcome.status != "success":
            turn.fail(f"a poll failed: {outcome.error_message}")
        elif not turn.over:
            prober.start(spec, partial(again, spec))

    for number in range(in_flight):
        spec = ProjectSpec(number, url, 1_000, 0)
        prober.start(spec, partial(again, spec))
    try:
        return await turn.measure(in_flight)
    finally:
        await prober.close(5.0)


# ---- the target -----------------------------------------------------------------------------------------------------


async def serve(certificate: str) -> None:
    """Prints the ports for HTTP and HTTPS; until its standard input ends."""
    loop = asyncio.get_running_loop()
    requests = Requests()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    servers = [
        await loop.create_server(lambda: TargetProtocol(requests), HOST, 0, backlog=4_096, ssl=context)
        for context in (None, tls)
    ]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    ended = asyncio.Event()
    loop.add_reader(0, lambda: os.read(0, 1_024) or ended.set())
    await ended.wait()
    loop.remove_reader(0)
    for server in servers:
        server.close()


# ---- a run ----------------------------------------------------------------------------------------------------------


def run(*, seconds: float, rounds: int, in_flight: int) -> EngineFigures:
    authority = trustme.CA()
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    with tempfile.TemporaryDirectory() as directory:
        certificate = Path(directory, "certificate.pem")
        issued = authority.issue_cert(HOST)
        certificate.write_bytes(
            issued.private_key_pem.bytes() + b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        )
        command = [sys.executable, "-m", "tests.bench.engine", "--serve", str(certificate)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:  # ends with its input
            assert target.stdout is not None
            ports = target.stdout.readline().split()
            if len(ports) != 2:
                raise BenchError("the target did not start")
            cases = [
                _measure(case, seconds, rounds, in_flight, int(port), context)
                for case, port, context in (
                    ("HTTP, kept", ports[0], None),
                    ("HTTP, new", ports[0], None),
                    ("HTTPS, kept", ports[1], tls),
                    ("HTTPS, new", ports[1], tls),
                )
            ]
    return EngineFigures(in_flight, seconds, cases, dict(machine()))


def _measure(
    case: str, seconds: float, rounds: int, in_flight: int, port: int, tls: ssl.SSLContext | None
) -> CaseFigures:
    kept = case.endswith("kept")
    costs: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    counts = dict.fromkeys(ENGINES, 0)
    for _ in range(rounds):
        for engine in ENGINES:

            async def turn(engine: str = engine) -> tuple[int, float]:
                counted = Turn(seconds)
                if engine == "bare":
                    return await (bare_kept if kept else bare_new)(counted, port, tls, in_flight)
                if engine == "client":
                    return await client_polled(counted, port, tls, in_flight, kept=kept)
                return await polled(counted, make_prober(engine, tls, kept=kept), port, tls, in_flight)

            polls, cpu_s = uvloop.run(turn())
            if not polls:
                raise BenchError(f"{case}: no poll of {engine} ended within {seconds:g} s")
            costs[engine].append(cpu_s * 1e6 / polls)
            counts[engine] += polls
    return CaseFigures(case, {engine: round(min(each), 1) for engine, each in costs.items()}, counts)


def show(found: EngineFigures, console: Console) -> None:
    table = Table(title=f"CPU µs per poll, {found.in_flight} in flight")
    table.add_column("", no_wrap=True)
    for each in found.cases:
        table.add_column(each.case, justify="right", no_wrap=True)
    costs = [each.cpu_us_per_poll for each in found.cases]
    for engine in ENGINES:
        table.add_row(engine, *(f"{cost[engine]:.1f}" for cost in costs))
    table.add_section()
    for engine, other in (("lean", "bare"), ("aiohttp", "lean"), ("client", "lean")):
        table.add_row(f"{engine} : {other}", *(f"{cost[engine] / cost[other]:.2f}" for cost in costs))
    goals = [GOALS[each.case] for each in found.cases]
    table.add_row("lean at most", *(f"{share:.2f} {against}" for against, share in goals))
    table.add_row("", *("" if each.holds else "missed" for each in found.cases))
    console.print(table)


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = bench_parser("engine", __doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(arguments: argparse.Namespace) -> EngineFigures:
    return run(seconds=arguments.seconds, rounds=arguments.rounds, in_flight=arguments.in_flight)


if __name__ == "__main__":
    chosen = arguments_of()
    if chosen.serve is not None:
        uvloop.run(serve(chosen.serve))
        sys.exit()
    try:
        result = main(chosen)
    except (BenchError, OSError) as failure:
        sys.exit(f"engine: {failure}")
    show(result, Console())
    write_figures(chosen.json, result)
