"""``cluster projects``: look at, switch, import and export rows of the table.

These commands need only the database; a running cluster hears of every change through the table's trigger.
"""

import asyncio
import codecs
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

import click
import msgspec
import orjson

from cluster import database
from cluster.audit import invalid_rows
from cluster.cli.data import open_database, with_database
from cluster.cli.options import DATABASE, PROJECT_ID, with_settings
from cluster.errors import ClusterError, InvalidInputError
from cluster.http_options import OPTION_NAMES
from cluster.masking import masked_project
from cluster.project import FIELD_NAMES, ID_MAX, JSON_FIELDS, ProjectFields, project_from_map
from cluster.settings import Settings

LINE_BYTES_MAX = 1 << 20
COMPLAINTS_MAX = 20
CHUNK_ROWS = 5_000
_COLUMNS = ", ".join(("id", *FIELD_NAMES))
_REVEAL = click.option("--reveal", is_flag=True, help="Also passwords in URLs, headers with secrets, and bodies.")


class ImportLine(msgspec.Struct, frozen=True):
    id: int | None
    fields: ProjectFields


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
            f"SELECT {_COLUMNS} FROM projects {where} ORDER BY id LIMIT $2",  # noqa: S608 - constants
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
            f"SELECT {_COLUMNS}, created_at, updated_at FROM projects WHERE id = $1",  # noqa: S608 - constants
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
def export_projects(settings: Settings, file: Path | None) -> None:
    """Write all projects as JSON Lines to FILE or standard output; `import` reads them."""

    async def write(out: IO[bytes]) -> int:
        count = 0
        async with open_database(settings) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            query = f"SELECT {_COLUMNS} FROM projects ORDER BY id"  # noqa: S608 - constants
            async for row in conn.cursor(query, prefetch=CHUNK_ROWS):
                out.write(orjson.dumps(_readable(row), option=orjson.OPT_APPEND_NEWLINE))
                count += 1
        out.flush()
        return count

    with ExitStack() as stack:
        out = sys.stdout.buffer if _is_dash(file) else stack.enter_context(_open(Path(str(file)), "wb"))
        count = asyncio.run(write(out))
    click.echo(f"exported {count} projects", err=True)


@projects.command("import")
@with_settings(*DATABASE)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--dry-run", is_flag=True, help="Check every line and say what would happen; change nothing.")
def import_projects(settings: Settings, file: Path, dry_run: bool) -> None:
    """Add or update projects from JSON Lines, as `export` writes them; all lines, or none when one is wrong.

    A line with an id adds or replaces that project, one without is added. Other fields are those of `cluster add` and
    of the table.
    """
    with ExitStack() as stack:
        source = sys.stdin.buffer if _is_dash(file) else stack.enter_context(_open(file, "rb"))
        lines = list(_checked_lines(source))

    async def write(conn: database.Connection) -> tuple[int, int]:
        transaction = conn.transaction()
        await transaction.start()
        try:
            counts = await _write_lines(conn, lines)
        except BaseException:
            await transaction.rollback()
            raise
        await (transaction.rollback() if dry_run else transaction.commit())
        return counts

    added, updated = with_database(settings, write)
    click.echo(f"{'would add' if dry_run else 'added'} {added}, {'update' if dry_run else 'updated'} {updated}")


def _checked_lines(source: Iterable[bytes]) -> Iterator[ImportLine]:
    """Every line as a valid project; complains about each one that isn't, then refuses all."""
    complaints = 0
    seen: dict[int, int] = {}
    for number, raw in enumerate(source, start=1):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw  # as some editors begin a file
        if not line.strip():
            continue
        try:
            checked = _checked_line(line, number, seen)
        except InvalidInputError as error:
            complaints += 1
            if complaints <= COMPLAINTS_MAX:
                click.echo(f"line {number}: {error}", err=True)
            continue
        yield checked
    if complaints:
        raise InvalidInputError(f"{complaints} lines are wrong, so nothing was imported; correct them and try again")


def _checked_line(line: bytes, number: int, seen: dict[int, int]) -> ImportLine:
    if len(line) > LINE_BYTES_MAX:
        raise InvalidInputError(f"longer than {LINE_BYTES_MAX} bytes")
    try:
        written = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"not JSON: {error}") from error
    if not isinstance(written, dict):
        raise InvalidInputError("must be a JSON object")
    project_id = written.pop("id", None)
    if project_id is not None and (type(project_id) is not int or not 1 <= project_id <= ID_MAX):
        raise InvalidInputError(f"id: must be an integer from 1 to {ID_MAX}")
    if project_id is not None and seen.setdefault(project_id, number) != number:
        raise InvalidInputError(f"id {project_id} is also in line {seen[project_id]}")
    return ImportLine(project_id, project_from_map(written))


async def _write_lines(conn: database.Connection, lines: list[ImportLine]) -> tuple[int, int]:
    """How many rows were added and updated."""
    names = ", ".join(FIELD_NAMES)
    await conn.execute(
        f"CREATE TEMP TABLE imported ON COMMIT DROP AS SELECT {_COLUMNS} FROM projects WHERE false"  # noqa: S608
    )
    await conn.copy_records_to_table(
        "imported", records=[_record(line) for line in lines], columns=["id", *FIELD_NAMES]
    )
    with_id = await conn.fetch(
        f"INSERT INTO projects ({_COLUMNS}) SELECT {_COLUMNS} FROM imported WHERE id IS NOT NULL "  # noqa: S608
        f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in FIELD_NAMES)} "
        "RETURNING (xmax = 0) AS added"
    )
    if with_id:  # ids given later must not collide with these
        await conn.execute(
            "SELECT setval(pg_get_serial_sequence('projects', 'id'), "
            "greatest((SELECT max(id) FROM projects), nextval(pg_get_serial_sequence('projects', 'id'))))"
        )
    without = await conn.execute(
        f"INSERT INTO projects ({names}) SELECT {names} FROM imported WHERE id IS NULL"  # noqa: S608 - constants
    )
    added = sum(row["added"] for row in with_id)
    return added + int(without.rpartition(" ")[2]), len(with_id) - added


def _record(line: ImportLine) -> tuple[Any, ...]:
    values = {name: getattr(line.fields, name) for name in FIELD_NAMES}
    for name in JSON_FIELDS:
        if values[name] is not None:
            values[name] = orjson.dumps(values[name]).decode()
    return (line.id, *values.values())


def _readable(row: Any) -> dict[str, Any]:
    values = dict(row)
    for name in JSON_FIELDS:
        if isinstance(values[name], str):
            values[name] = orjson.loads(values[name])
    return values


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
    readable = _readable(row)
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
