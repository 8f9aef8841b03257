"""``cluster bench``: what this machine can poll, measured with a cluster, a target and a database made for it.

SIGINT and SIGTERM take everything down, too; the exit status is then 130 or 143.
"""

import asyncio
import os
import signal
from typing import Any

import click
import msgspec
import orjson
import uvloop

from cluster import config
from cluster.bench.throughput import Load, OnPhase, ThroughputFigures, measure_throughput
from cluster.cli.admin import parse_timeout_ms
from cluster.cli.options import with_settings
from cluster.errors import ExitCode, InvalidInputError
from cluster.settings import Settings

PROJECTS_MAX = 1_000_000
RUNS_MAX = 20
SECONDS_MAX = 86_400
LATENCY_MS_MAX = 20_000  # what takes longer runs into the time-out of its project
SIGNALLED = 128  # and the number of the signal


class ProjectCounts(click.types.StringParamType):
    """'2000' or '2000,5000'."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        words = str(value).split(",")
        counts = [int(word) for word in words if word.strip().isascii() and word.strip().isdigit() and len(word) < 10]
        if len(counts) != len(words) or not all(1 <= each <= PROJECTS_MAX for each in counts) or len(words) > RUNS_MAX:
            raise click.BadParameter(
                f"{str(value)[:200]!r} must be at most {RUNS_MAX} numbers from 1 to {PROJECTS_MAX}, such as 5000 "
                "or 2000,5000.",
                ctx=ctx,
                param=param,
            )
        return counts


@click.command()
@with_settings("database_url")
@click.option(
    "--projects",
    type=ProjectCounts(),
    default="5000",
    show_default=True,
    metavar="N[,N...]",
    help="How many; each number is measured on its own.",
)
@click.option("--interval", default="1s", show_default=True, metavar="DURATION", help="Of every project.")
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="Worker processes; default: one a core.")
@click.option(
    "--seconds",
    type=click.IntRange(1, SECONDS_MAX),
    default=30,
    show_default=True,
    metavar="N",
    help="How long to measure.",
)
@click.option(
    "--warm-up",
    type=click.IntRange(0, SECONDS_MAX),
    default=5,
    show_default=True,
    metavar="N",
    help="Seconds of polling before that.",
)
@click.option(
    "--max-concurrent-http",
    type=click.IntRange(1, 100_000),
    default=500,
    show_default=True,
    metavar="N",
    help="HTTP requests in flight.",
)
@click.option(
    "--latency",
    default="0ms",
    show_default=True,
    metavar="DURATION",
    help="How long the target takes to answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(
    settings: Settings,
    projects: list[int],
    interval: str,
    workers: int | None,
    seconds: int,
    warm_up: int,
    max_concurrent_http: int,
    latency: str,
    as_json: bool,
) -> int:
    """Measure how many polls per second this machine saves, how late they are and what they cost.

    Starts a target, a cluster and a database of its own in a temporary directory, polls, and removes all of it. The
    database is embedded, or a new one on the server of DATABASE_URL. A cluster that runs here is not touched, but
    shares the machine. Exit status 1 when the books of the run do not agree (`cluster audit`).
    """
    from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

    interval_s = config.parse_duration_s(interval)
    if interval_s is None or not 1 <= interval_s <= SECONDS_MAX:
        raise InvalidInputError(f"--interval must be a duration from 1s to 1d, such as 30s or 5m, not {interval!r}")
    latency_ms = parse_timeout_ms(latency, "--latency")
    if not 0 <= latency_ms <= LATENCY_MS_MAX:
        raise InvalidInputError(f"--latency must be from 0ms to {LATENCY_MS_MAX}ms, not {latency[:200]!r}")
    loads = [
        Load(
            projects=count,
            interval_s=interval_s,
            workers=workers or min(256, os.cpu_count() or 1),
            seconds=seconds,
            warm_up_s=warm_up,
            max_concurrent_http=max_concurrent_http,
            latency_ms=latency_ms,
        )
        for count in projects
    ]
    with render.bench_progress() as on_phase:
        found = uvloop.run(_measure_all(settings.database_url, loads, on_phase))
    if isinstance(found, signal.Signals):
        return SIGNALLED + found
    if as_json:
        click.echo(orjson.dumps({"runs": msgspec.to_builtins(found)}, option=orjson.OPT_INDENT_2))
    else:
        render.show(render.bench_view(found))
    return int(ExitCode.DONE if all(each.audit_holds for each in found) else ExitCode.FAILED)


async def _measure_all(
    database_url: str | None, loads: list[Load], on_phase: OnPhase
) -> list[ThroughputFigures] | signal.Signals:
    """The figures, or the signal that ended it."""
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    async def measure_each() -> list[ThroughputFigures]:
        return [await measure_throughput(database_url, load, on_phase) for load in loads]

    measuring = asyncio.ensure_future(measure_each())

    def on_signal(number: signal.Signals) -> None:
        if not received:  # once: taking down is not to be interrupted
            received.append(number)
            on_phase("clean up", 0, 0)
            measuring.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    await asyncio.wait({measuring})
    if measuring.cancelled() and received:
        return received[0]
    return measuring.result()


COMMANDS: list[Any] = [bench]
