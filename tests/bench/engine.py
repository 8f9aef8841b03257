"""What one poll costs: CPU time of the lean engine, of the aiohttp engine, and of a bare loop, side by side.

    python -m tests.bench.engine --seconds 1 --rounds 9 --json engine.json

The target runs in another process and its CPU is not counted; it answers ``200`` with two bytes, over HTTP and over
HTTPS with a certificate of an authority made for the run.  ``--in-flight`` polls are in flight at any time.

    kept            every poll on a kept connection
    new             every poll on a new connection
    lean, aiohttp   ``worker.probe.lean_engine`` and ``worker.probe.aiohttp_engine``, called as the worker does
    bare            asyncio.Protocol and httptools on uvloop, which count answers and do nothing else: no deadlines,
                    no outcome, no phases; what no engine can go below

Each figure is the least of ``--rounds`` turns of ``--seconds``, user and system time of this process by the number of
polls: what else the machine does meanwhile takes caches away and so only ever adds.  The three take turns.
"""

import argparse
import asyncio
import json
import os
import resource
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import httptools
import msgspec
import trustme
import uvloop
from rich.console import Console
from rich.table import Table

from cluster.bench.rig import BenchError, machine
from cluster.bench.target import Requests, TargetProtocol
from cluster.project import ProjectSpec
from worker.probe.aiohttp_engine import AiohttpProber
from worker.probe.interface import ProbeOutcome, Prober
from worker.probe.lean_engine import LeanProber
from worker.probe.pool import IdlePool

HOST = "127.0.0.1"
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bare\r\nAccept: */*\r\n\r\n"
WARM_UP_POLLS = 3
ENGINES = ("lean", "aiohttp", "bare")
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

    async def measure(self, in_flight: int) -> tuple[int, float]:
        while self.polls < WARM_UP_POLLS * in_flight:  # each has its connection, if they are kept
            await asyncio.sleep(0.01)
        polls, cpu_s = self.polls, cpu_time_s()
        await asyncio.sleep(self._seconds)
        polls, cpu_s = self.polls - polls, cpu_time_s() - cpu_s
        self.over = True
        return polls, cpu_s


def cpu_time_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# ---- the bare loop --------------------------------------------------------------------------------------------------


class Bare(asyncio.Protocol):
    def __init__(self, done: Callable[["Bare"], None]) -> None:
        self._done = done
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 200:
            raise BenchError("the target did not answer 200")
        self._done(self)


async def bare_kept(turn: Turn, port: int, tls: ssl.SSLContext | None, in_flight: int) -> tuple[int, float]:
    def again(connection: Bare) -> None:
        turn.polls += 1
        if not turn.over and connection.transport is not None:
            connection.transport.write(REQUEST)

    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(partial(Bare, again), HOST, port, ssl=tls) for _ in range(in_flight)]
    found = await turn.measure(in_flight)
    for transport, _ in opened:
        transport.abort()
    return found


async def bare_new(turn: Turn, port: int, tls: ssl.SSLContext | None, in_flight: int) -> tuple[int, float]:
    loop = asyncio.get_running_loop()

    async def one_after_another() -> None:
        while not turn.over:
            answered = loop.create_future()
            transport, _ = await loop.create_connection(partial(Bare, answered.set_result), HOST, port, ssl=tls)
            await answered
            transport.abort()
            turn.polls += 1

    tasks = [asyncio.ensure_future(one_after_another()) for _ in range(in_flight)]
    found = await turn.measure(in_flight)
    await asyncio.gather(*tasks)
    return found


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
    failed: list[ProbeOutcome] = []

    def again(spec: ProjectSpec, outcome: ProbeOutcome) -> None:
        turn.polls += 1
        if outcome.status != "success":
            failed.append(outcome)
        elif not turn.over:
            prober.start(spec, partial(again, spec))

    for number in range(in_flight):
        spec = ProjectSpec(number, url, 1_000, 0)
        prober.start(spec, partial(again, spec))
    found = await turn.measure(in_flight)
    await prober.close(5.0)
    if failed:
        raise BenchError(f"{len(failed)} polls failed, the first: {failed[0].error_message}")
    return found


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
                return await polled(counted, make_prober(engine, tls, kept=kept), port, tls, in_flight)

            polls, cpu_s = uvloop.run(turn())
            if not polls:
                raise BenchError(f"{case}: no poll of {engine} ended within {seconds:g} s")
            costs[engine].append(cpu_s * 1e6 / polls)
            counts[engine] += polls
    return CaseFigures(case, {engine: round(min(each), 1) for engine, each in costs.items()}, counts)


def show(found: EngineFigures, console: Console) -> None:
    table = Table(title=f"CPU µs per poll, {found.in_flight} in flight")
    table.add_column("polls")
    for name in (*ENGINES, "lean : bare", "aiohttp : lean", "lean at most"):
        table.add_column(name, justify="right")
    for each in found.cases:
        cost = each.cpu_us_per_poll
        against, share = GOALS[each.case]
        table.add_row(
            each.case,
            *(f"{cost[engine]:.1f}" for engine in ENGINES),
            f"{cost['lean'] / cost['bare']:.2f}",
            f"{cost['aiohttp'] / cost['lean']:.1f}",
            f"{share:.2f} {against}{'' if each.holds else ', missed'}",
        )
    console.print(table)


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
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
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(msgspec.to_builtins(result), indent=2) + "\n")
