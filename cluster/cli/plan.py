"""``cluster plan``: what so many projects need, and whether this machine has it.  Starts and changes nothing."""

import os
import resource
import shutil
from pathlib import Path
from typing import Any

import click
import msgspec
import orjson
import psutil

from cluster import config
from cluster.capacity import CapacityPlan, MachineFacts, ProjectGroup, make_plan
from cluster.cli.admin import parse_timeout_ms
from cluster.cli.options import with_settings
from cluster.errors import InvalidInputError
from cluster.project import INTERVAL_S_MAX, TIMEOUT_MS_MAX
from cluster.settings import Settings

PROJECTS_MAX = 10_000_000
GROUPS_MAX = 100


@click.command()
@with_settings("data_dir", "retention_days")
@click.option("--projects", type=click.IntRange(1, PROJECTS_MAX), metavar="N", help="How many.")
@click.option("--interval", default="30s", show_default=True, metavar="DURATION", help="Of every project.")
@click.option("--latency", default="200ms", show_default=True, metavar="DURATION", help="Their mean response time.")
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="N:INTERVAL:LATENCY",
    help="More projects of another kind, such as 5000:5m:3s; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(
    settings: Settings, projects: int | None, interval: str, latency: str, groups: tuple[str, ...], as_json: bool
) -> None:
    """Work out what projects need: slots, workers, CPU time, memory, connections, disk.

    Warns of what this machine does not have. The figures were measured elsewhere; `cluster bench` measures here.
    """
    if projects is None and not groups:
        raise click.UsageError("Give --projects or --group.")
    if len(groups) > GROUPS_MAX:
        raise click.UsageError(f"--group may be given {GROUPS_MAX} times.")
    found = [parse_group(text) for text in groups]
    if projects is not None:
        found.insert(0, make_group(projects, interval, latency, "--interval", "--latency"))
    made = make_plan(found, facts_of_this_machine(settings), retention_days=settings.retention_days)
    if as_json:
        click.echo(orjson.dumps(plan_document(made), option=orjson.OPT_INDENT_2))
    else:
        from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

        render.show(render.plan_view(made))


def plan_document(made: CapacityPlan) -> dict[str, Any]:
    """For programs: the plan, and the options it comes to."""
    options = {name: getattr(made, name) for name in ("workers", "max_concurrent_http", "retention_days")}
    document: dict[str, Any] = msgspec.to_builtins(made)
    return document | {"options": options}


def parse_group(text: str) -> ProjectGroup:
    words = text.split(":")
    if len(words) != 3:
        raise InvalidInputError(f"--group must be N:INTERVAL:LATENCY such as 5000:5m:3s, not {text[:200]!r}")
    count = int(words[0]) if words[0].isascii() and words[0].isdigit() and len(words[0]) < 10 else 0
    if not 1 <= count <= PROJECTS_MAX:
        raise InvalidInputError(f"--group must begin with a number from 1 to {PROJECTS_MAX}, not {words[0][:200]!r}")
    return make_group(count, words[1], words[2], "--group: its interval", "--group: its latency")


def make_group(projects: int, interval: str, latency: str, of_interval: str, of_latency: str) -> ProjectGroup:
    interval_s = config.parse_duration_s(interval)
    if interval_s is None or not 1 <= interval_s <= INTERVAL_S_MAX:
        raise InvalidInputError(
            f"{of_interval} must be a duration from 1s to {INTERVAL_S_MAX}s, such as 30s or 5m, not {interval[:200]!r}"
        )
    latency_ms = parse_timeout_ms(latency, of_latency)
    if not 1 <= latency_ms <= TIMEOUT_MS_MAX:
        raise InvalidInputError(f"{of_latency} must be from 1ms to {TIMEOUT_MS_MAX}ms, not {latency[:200]!r}")
    return ProjectGroup(projects, interval_s, latency_ms / 1_000)


def facts_of_this_machine(settings: Settings) -> MachineFacts:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # roles raise the soft one
    return MachineFacts(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        descriptors=None if hard == resource.RLIM_INFINITY else hard,
        disk_free_bytes=None if settings.database_url is not None else _free_bytes(settings.data_dir),
    )


def _free_bytes(directory: Path) -> int:
    """Of the disk that the embedded database is, or would be, on."""
    there = next(each for each in (directory, *directory.parents) if each.exists())
    return shutil.disk_usage(there).free


COMMANDS: list[Any] = [plan]
