"""``cluster projects``: look at, switch, import and export rows of the table.

These commands need only the database; a running cluster hears of every change through the table's trigger.
"""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

import click
import orjson

from cluster import database
from cluster.audit import invalid_rows
from cluster.cli.data import open_database, with_database
from cluster.cli.importing import EntryReport, OnEntries, check, opened, opened_directory, say, shows_progress, store
from cluster.cli.options import DATABASE, PROJECT_ID, with_settings
from cluster.cli.project_table import COLUMNS, ImportOutcome, readable_row, stored_projects
from cluster.errors import ClusterError, InvalidInputError
from cluster.http_options import OPTION_NAMES
from cluster.interchange.formats import FORMATS, JSONL
from cluster.interchange.jsonl_file import write_jsonl
from cluster.masking import masked_project
from cluster.settings import Settings

_REVEAL = click.option("--reveal", is_flag=True, help="Also passwords in URLs, headers with secrets, and bodies.")


@click.group()
def projects() -> None:
    """Look at the table of projects, change and move it."""


@projects.command("list")
@with_settings(*DATABASE)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(0), help="At most so many, 0 for all.")
@click.option("--search", metavar="TEXT", help="Only those with this text in name or URL.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@_REVEAL
def list_projects(settings: Settings, limit: int, search: str | None, as_json: bool, reveal: bool) -> None:
    """List projects by id."""

    async def read(conn: database.Connection) -> tuple[list[dict[str, Any]], int]:
        where = "WHERE $1::text IS NULL OR strpos(lower(name || ' ' || url), lower($1)) > 0"
        rows = await conn.fetch(
            f"SELECT {COLUMNS} FROM projects {where} ORDER BY id LIMIT $2",  # noqa: S608 - constants
            search,
            limit or None,
        )
        total = await conn.fetchval(f"SELECT count(*) FROM projects {where}", search)  # noqa: S608 - a constant
        return [_shown_row(row, reveal) for row in rows], total

    found, total = with_database(settings, read)
    if as_json:
        for row in found:
            click.echo(orjson.dumps(row))
        return
    from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

    render.show(render.projects_table(found))
    if total > len(found):
        click.echo(f"{len(found)} of {total}; --limit 0 shows all")


@projects.command("show")
@with_settings(*DATABASE)
@click.argument("project_id", metavar="ID", type=PROJECT_ID)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_REVEAL
def show_project(settings: Settings, project_id: int, as_json: bool, reveal: bool) -> None:
    """Show one project and its newest result."""

    async def read(conn: database.Connection) -> dict[str, Any]:
        row = await conn.fetchrow(
            f"SELECT {COLUMNS}, created_at, updated_at FROM projects WHERE id = $1",  # noqa: S608 - constants
            project_id,
        )
        if row is None:
            raise _unknown([project_id])
        last = await conn.fetchrow(
            "SELECT polled_at, status, status_code, response_time_ms, error_code, error_message "
            "FROM poll_results WHERE project_id = $1 ORDER BY scheduled_at DESC LIMIT 1",
            project_id,
        )
        state = await conn.fetchrow("SELECT state, since FROM project_states WHERE project_id = $1", project_id)
        return (
            _shown_row(row, reveal)
            | {
                "state": _state(state, polled=last is not None),
                "state_since": None if state is None else state["since"],
                "last_result": None if last is None else dict(last),
            }
            | await _why_not_polled(conn, project_id)
        )

    found = with_database(settings, read)
    if as_json:
        click.echo(orjson.dumps(found, default=str, option=orjson.OPT_INDENT_2))
        return
    for name, value in found.items():
        if name == "last_result":
            shown = "none" if value is None else "  ".join(_words(each) for each in value.values() if each is not None)
        elif value is None and name in OPTION_NAMES:
            continue
        else:
            shown = _words(value)
        click.echo(f"{name.replace('_', ' '):<18} {shown}")


@projects.command("enable")
@with_settings(*DATABASE)
@click.argument("ids", metavar="ID...", type=PROJECT_ID, nargs=-1, required=True)
def enable_projects(settings: Settings, ids: tuple[int, ...]) -> None:
    """Begin to poll projects; all of them, or none when an id is unknown."""
    _switch(settings, ids, enabled=True)


@projects.command("disable")
@with_settings(*DATABASE)
@click.argument("ids", metavar="ID...", type=PROJECT_ID, nargs=-1, required=True)
def disable_projects(settings: Settings, ids: tuple[int, ...]) -> None:
    """Stop polling projects; all of them, or none when an id is unknown."""
    _switch(settings, ids, enabled=False)


def _switch(settings: Settings, ids: tuple[int, ...], *, enabled: bool) -> None:
    async def write(conn: database.Connection) -> int:
        async with conn.transaction():
            known = await conn.fetch("SELECT id FROM projects WHERE id = ANY($1::bigint[]) FOR UPDATE", list(ids))
            if unknown := sorted(set(ids) - {row["id"] for row in known}):
                raise _unknown(unknown)
            done = await conn.execute(
                "UPDATE projects SET enabled = $2 WHERE id = ANY($1::bigint[]) AND enabled <> $2", list(ids), enabled
            )
            return int(done.rpartition(" ")[2])

    changed = with_database(settings, write)
    click.echo(f"{'enabled' if enabled else 'disabled'} {changed}")


@projects.command("export")
@with_settings(*DATABASE)
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--format", "chosen", type=click.Choice(list(FORMATS)), default=JSONL, show_default=True, help="Which.")
def export_projects(settings: Settings, file: Path | None, chosen: str) -> None:
    """Write all projects, secrets included, to FILE or standard output; `import` reads them.

    The default is JSON Lines. What the format can't hold is said on standard error.
    """

    async def write(out: IO[bytes]) -> int:
        async with open_database(settings) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            if chosen == JSONL:
                return await _stream_jsonl(conn, out)
            exported = FORMATS[chosen].write([row async for row in stored_projects(conn)])
        out.write(exported.data)
        out.flush()
        for note in exported.notes:
            field = f"{note.field}: " if note.field is not None else ""
            click.echo(f"project {note.project_id}: {field}{note.text}", err=True)
        return exported.count

    with ExitStack() as stack:
        out = sys.stdout.buffer if _is_dash(file) else stack.enter_context(_open(Path(str(file)), "wb"))
        count = asyncio.run(write(out))
    click.echo(f"exported {count} projects", err=True)


async def _stream_jsonl(conn: database.Connection, out: IO[bytes]) -> int:
    count = 0
    async for row in stored_projects(conn):
        out.write(write_jsonl([row]).data)
        count += 1
    out.flush()
    return count


@projects.command("import")
@with_settings(*DATABASE)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--format",
    "chosen",
    type=click.Choice(["auto", *FORMATS]),
    default="auto",
    show_default=True,
    help="What FILE is; auto goes by its name and content.",
)
@click.option("--dry-run", is_flag=True, help="Check every entry and say what would happen; change nothing.")
@click.option(
    "--blackbox",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="blackbox.yml with the modules that the targets of Prometheus are probed by.",
)
@click.option("--skip-invalid", is_flag=True, help="Leave out entries that are wrong, and import the others.")
def import_projects(
    settings: Settings, file: Path, chosen: str, dry_run: bool, blackbox: Path | None, skip_invalid: bool
) -> None:
    """Add or update projects from a file of ours or of another tool; all, or none when one is wrong.

    An entry with an id adds or replaces that project. Without one, a project of the same name is updated, or left as
    it is when nothing differs; in JSON Lines it is added. What another tool does and ringpoll can't is skipped or left
    out, with a line for each.
    """
    with ExitStack() as stack:
        name = None if chosen == "auto" else chosen
        if file.is_dir():
            source = opened_directory(file, name)
        else:
            raw = sys.stdin.buffer if _is_dash(file) else stack.enter_context(_open(file, "rb"))
            source = opened(file, name, raw, blackbox)
        report = EntryReport(source.format, dry_run=dry_run, skip_invalid=skip_invalid)
        with import_progress("checking", shows_progress()) as on_entries:
            check(source, report, on_entries)

    async def write(conn: database.Connection) -> ImportOutcome:
        with import_progress("writing", shows_progress()) as on_entries:
            return await store(conn, report, on_entries)

    say(report, source.imported.notes, with_database(settings, write))


@contextlib.contextmanager
def import_progress(what: str, wanted: bool) -> Iterator[OnEntries]:
    """A progress bar on standard error when that is a terminal."""
    if not wanted:
        yield lambda _count, _total: None
        return
    from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

    with render.entries_progress(what) as on_entries:
        yield on_entries


def _words(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool() | dict() | list():  # as they are written
            return orjson.dumps(value).decode()
        case float():
            return f"{value:.1f} ms"
        case _:
            return str(value)


async def _why_not_polled(conn: database.Connection, project_id: int) -> dict[str, str]:
    why = (await invalid_rows(conn, [project_id])).get(project_id)
    return {} if why is None else {"can't be polled": why}


def _state(row: Any, *, polled: bool) -> str | None:
    """None: nothing is known of it yet.  A project that never failed has no row."""
    if row is None:
        return "up" if polled else None
    return str(row["state"])


def _shown_row(row: Any, reveal: bool) -> dict[str, Any]:
    readable = readable_row(row)
    return readable if reveal else masked_project(readable)


def _unknown(ids: list[int]) -> ClusterError:
    shown = ", ".join(str(each) for each in ids[:10]) + (", ..." if len(ids) > 10 else "")
    return ClusterError(f"there is no project {shown}; nothing was changed", code="unknown_project")


def _is_dash(file: Path | None) -> bool:
    return file is None or str(file) == "-"


def _open(file: Path, mode: Literal["rb", "wb"]) -> IO[bytes]:
    try:
        return file.open(mode)
    except OSError as error:
        raise InvalidInputError(f"cannot open {file}: {error.strerror}") from error
