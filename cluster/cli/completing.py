"""What the shell is offered for a value that is being typed: workers, projects, words of a fixed list, directories.

Whatever is in the way (no cluster, no database, a wrong option) means nothing to offer, in silence and within
``WAIT_S``: a shell that waits for its Tab key or shows an error in the middle of a line is worse than no offer.
Nothing is started for it.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cluster import config
from cluster.bounded import Question, resolve_host
from cluster.errors import ClusterError
from cluster.settings import Settings

WAIT_S = 1.0
IDS_OFFERED = 50
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NAME_CHARS = 60

Offers = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def words(*choices: str) -> Offers:
    """A fixed list."""

    def offer(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(each) for each in choices if each.lower().startswith(incomplete.lower())]

    return offer


def directories(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


def worker_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Of the cluster that runs."""
    settings = _settings(ctx)
    workers = [] if settings is None else _workers(settings)
    return [
        CompletionItem(str(each["name"]), help=f"{each.get('state')}, {each.get('projects')} projects")
        for each in workers
        if str(each["name"]).startswith(incomplete)
    ]


def project_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The lowest ids that begin as typed, with the names of their projects; none that is on the line already."""
    settings = _settings(ctx)
    given = ctx.params.get(param.name or "") or ()
    if settings is None or (incomplete and not incomplete.isdecimal()):
        return []
    taken = {str(each) for each in given} if isinstance(given, Sequence) and not isinstance(given, str) else set()
    found = _projects(settings, incomplete)
    return [CompletionItem(str(each), help=shown) for each, shown in found if str(each) not in taken]


def _settings(ctx: click.Context) -> Settings | None:
    """Of what stands on the line so far."""
    flags = {name.removeprefix("option_"): value for name, value in ctx.params.items() if name.startswith("option_")}
    try:
        return config.load(flags, os.environ, _path(ctx.params.get("config_file")))
    except ClusterError:
        return None


def _path(value: object) -> Path | None:
    return None if value is None else Path(str(value))


def _workers(settings: Settings) -> list[dict[str, Any]]:
    from cluster.admin_client import AdminClient  # noqa: PLC0415 - most completions need no socket

    try:
        with AdminClient(settings) as client:
            document = client.request({"type": "status"}, WAIT_S)["status"]
    except (ClusterError, KeyError):
        return []
    return [each for each in document.get("workers") or [] if "name" in each]


def _projects(settings: Settings, incomplete: str) -> list[tuple[int, str]]:
    from cluster.database import DATABASE_ERRORS  # noqa: PLC0415 - most completions need no database
    from cluster.embedded import running_dsn  # noqa: PLC0415

    try:
        url = settings.database_url or running_dsn(settings.data_dir)
        return [] if url is None else Question(lambda: _ask_projects(url, incomplete)).answer(WAIT_S)
    except (ClusterError, *DATABASE_ERRORS):
        return []


def _ask_projects(url: str, incomplete: str) -> list[tuple[int, str]]:
    resolve_host(url)
    return asyncio.run(asyncio.wait_for(_read_projects(url, incomplete), WAIT_S))


async def _read_projects(url: str, incomplete: str) -> list[tuple[int, str]]:
    from cluster import database  # noqa: PLC0415
    from cluster.masking import masked_url  # noqa: PLC0415

    conn = await database.connect(url, timeout_s=WAIT_S)
    try:
        where = f"WHERE {ranges_of_prefix(int(incomplete))}" if incomplete else ""
        rows = await conn.fetch(
            f"SELECT id, name, url FROM projects {where} ORDER BY id LIMIT {IDS_OFFERED}",  # noqa: S608 - digits only
        )
    finally:
        conn.terminate()
    return [(row["id"], (row["name"] or masked_url(row["url"]))[:NAME_CHARS]) for row in rows]


def ranges_of_prefix(prefix: int) -> str:
    """A condition on ids that begin with these digits, which the primary key answers: 12, 120-129, 1200-1299, ..."""
    parts, width = [], 1
    while prefix * width < 1 << 63:
        parts.append(f"id BETWEEN {prefix * width} AND {min(prefix * width + width - 1, (1 << 63) - 1)}")
        width *= 10
        if prefix == 0:
            break
    return "(" + " OR ".join(parts) + ")" if parts else "false"
