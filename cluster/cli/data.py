"""Commands that need only the database: migrate, audit, results, changes; and the way to that database."""

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import click
import msgspec
import orjson

from cluster import database
from cluster.audit import AuditReport
from cluster.audit import audit as run_audit
from cluster.cli.options import DATABASE, PROJECT_ID, with_settings
from cluster.cli.result_export import (
    OnRows,
    ResultQuery,
    expect_pyarrow,
    write_csv_rows,
    write_json_lines,
    write_parquet,
)
from cluster.embedded import cluster_database
from cluster.errors import ClusterError, ExitCode, InvalidInputError
from cluster.masking import masked_url
from cluster.settings import Settings
from cluster.supervisor.lock import find_holder

T = TypeVar("T")

RESULTS_MAX = 100_000
RESULTS_SHOWN = 20
LOCK_TIMEOUT_S = 10
_AGO = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_AGO_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def with_database(
    settings: Settings, work: Callable[[database.Connection], Awaitable[T]], *, create: bool = False
) -> T:
    """Run ``work`` on a connection to the cluster's database, embedded or not; its errors become one line."""

    async def run() -> T:
        async with open_database(settings, create=create) as conn:
            return await work(conn)

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def open_database(settings: Settings, *, create: bool = False) -> AsyncIterator[database.Connection]:
    """``create``: set up an embedded server that isn't there, and accept a database without our tables."""
    async with contextlib.AsyncExitStack() as stack:
        url = settings.database_url
        if url is None:
            server = cluster_database(settings.data_dir)
            holder = find_holder(settings.run_dir)
            if holder is not None and not holder.embedded:
                raise InvalidInputError(
                    f"the cluster on {settings.data_dir} uses a database of its own: "
                    "give --database-url or set DATABASE_URL"
                )
            if not create and not (server.data / "PG_VERSION").exists():
                raise InvalidInputError(
                    f"no database: set DATABASE_URL, or give the --data-dir of a cluster that has run "
                    f"(there is none in {settings.data_dir})"
                )
            await asyncio.to_thread(server.start)
            stack.push_async_callback(asyncio.to_thread, server.stop)
            url = server.dsn()
        conn = await database.connect(url)
        stack.push_async_callback(_close, conn)
        try:
            if not create:
                await conn.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
            if not create and await database.schema_version(conn) == 0:
                raise ClusterError(f"the database {database.place(url)} has no tables of ours; run `cluster migrate`")
            yield conn
        except BrokenPipeError:
            raise  # our output, not the database
        except asyncpg.LockNotAvailableError as error:
            raise ClusterError(
                f"gave up after {LOCK_TIMEOUT_S} s: somebody else's transaction on {database.place(url)} has locked "
                "what this reads or changes; end it (pg_stat_activity shows who) and try again",
                code="locked",
            ) from error
        except database.DATABASE_ERRORS as error:
            raise ClusterError(f"the database refused: {database.describe(error)}") from error


async def _close(conn: database.Connection) -> None:
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        await conn.close(timeout=5)


@click.command()
@with_settings(*DATABASE)
def migrate(settings: Settings) -> None:
    """Bring the database's tables to this version of the program."""
    applied = with_database(settings, database.migrate, create=True)
    click.echo("\n".join(f"applied {name}" for name in applied) or "nothing to apply: the database is up to date")


@click.command()
@with_settings(*DATABASE)
@click.argument("project_ids", metavar="ID...", type=PROJECT_ID, nargs=-1)
@click.option(
    "--last", type=click.IntRange(1, RESULTS_MAX), metavar="N", help="At most so many.  [20, or all of a time]"
)
@click.option("--since", metavar="TIME", help="Ticks from this instant on: 2026-01-31T12:00Z, or 2h for ago.")
@click.option("--until", metavar="TIME", help="Ticks before this instant.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.option("--csv", "as_csv", is_flag=True, help="A row each, under the names of the columns.")
@click.option(
    "--parquet",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a Parquet file; of several projects, or of all without an ID.",
)
def results(
    settings: Settings,
    project_ids: tuple[int, ...],
    last: int | None,
    since: str | None,
    until: str | None,
    as_json: bool,
    as_csv: bool,
    parquet: Path | None,
) -> None:
    """Show the newest results of a project, or write them to standard output or a file."""
    if as_json + as_csv + (parquet is not None) > 1:
        raise InvalidInputError("--json, --csv and --parquet: give one of them")
    if parquet is None and len(project_ids) != 1:
        raise InvalidInputError("ID: give one project; --parquet takes several, or all without an ID")
    since_at, until_at = parse_instant("--since", since), parse_instant("--until", until)
    in_time = since_at is not None or until_at is not None
    if parquet is not None:
        query = ResultQuery(project_ids, since_at, until_at, last, newest_first=last is not None)
        _write_parquet(settings, query, parquet)
        return
    everything = in_time and (as_json or as_csv)
    query = ResultQuery(project_ids, since_at, until_at, last or (None if everything else RESULTS_SHOWN))

    async def read(conn: database.Connection) -> None:
        if as_csv or as_json:
            write = write_csv_rows if as_csv else write_json_lines
            if not await write(conn, query, sys.stdout.buffer):
                await _expect_project(conn, project_ids[0])
            return
        sql, values = query.sql()
        rows = [dict(row) for row in await conn.fetch(sql, *values)]
        if not rows:
            await _expect_project(conn, project_ids[0])
        nothing = "no results in that time" if in_time else "no results yet"
        _show_rows(rows, "results_table", nothing, as_json=False)

    with_database(settings, read)


def _write_parquet(settings: Settings, query: ResultQuery, file: Path) -> None:
    expect_pyarrow()
    if not file.absolute().parent.is_dir():
        raise InvalidInputError(f"cannot open {file}: there is no directory {file.parent}")

    async def write(conn: database.Connection) -> int:
        from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

        known = await conn.fetch("SELECT id FROM projects WHERE id = ANY($1::bigint[])", list(query.project_ids))
        for project_id in sorted(set(query.project_ids) - {row["id"] for row in known}):
            kept = await conn.fetchval(
                "SELECT EXISTS (SELECT 1 FROM poll_results WHERE project_id = $1)",
                project_id,  # of one that was removed, results may be left
            )
            if not kept:
                raise ClusterError(f"there is no project {project_id}", code="unknown_project")
        with contextlib.ExitStack() as stack:
            on_rows: OnRows = lambda _count, _total: None  # noqa: E731
            if sys.stderr.isatty():
                on_rows = stack.enter_context(render.entries_progress("writing results"))
            return await write_parquet(conn, query, file, on_rows)

    click.echo(f"wrote {with_database(settings, write)} results to {file}", err=True)


@click.command()
@with_settings(*DATABASE)
@click.argument("project_id", metavar="[ID]", type=PROJECT_ID, required=False)
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, RESULTS_MAX), help="How many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def changes(settings: Settings, project_id: int | None, last: int, as_json: bool) -> None:
    """Show when projects went down or came up, the newest first; of all projects, or of one."""

    async def read(conn: database.Connection) -> list[dict[str, Any]]:
        rows = await conn.fetch(
            "SELECT c.*, p.name, p.url FROM state_changes c LEFT JOIN projects p ON p.id = c.project_id "
            "WHERE $1::bigint IS NULL OR c.project_id = $1 ORDER BY c.changed_at DESC, c.project_id LIMIT $2",
            project_id,
            last,
        )
        if not rows and project_id is not None:
            await _expect_project(conn, project_id)
        return [dict(row) | {"url": row["url"] and masked_url(row["url"])} for row in rows]

    _show_rows(with_database(settings, read), "changes_table", "no changes of state yet", as_json=as_json)


@click.command()
@with_settings(*DATABASE)
@click.option("--from", "since", metavar="TIME", help="Ticks from this instant on: 2026-01-31T12:00Z, or 2h for ago.")
@click.option("--to", "until", metavar="TIME", help="Ticks before this instant.")
@click.option("--project", type=PROJECT_ID, metavar="ID", help="Only this project.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def audit(settings: Settings, since: str | None, until: str | None, project: int | None, as_json: bool) -> int:
    """Check that every tick that was due was polled or counted missed; exit status 1 when one was not."""
    from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

    since_at, until_at = parse_instant("--from", since), parse_instant("--to", until)

    async def check(conn: database.Connection) -> AuditReport:
        with render.audit_progress() as progress:
            return await run_audit(conn, since=since_at, until=until_at, project=project, progress=progress)

    report = with_database(settings, check)
    if as_json:
        click.echo(orjson.dumps(audit_document(report), option=orjson.OPT_INDENT_2))
    else:
        render.show(render.audit_view(report))
    return int(ExitCode.DONE if report.holds else ExitCode.FAILED)


def _show_rows(rows: list[dict[str, Any]], table: str, nothing: str, *, as_json: bool) -> None:
    """As JSON Lines, or by that function of ``render``."""
    if as_json:
        for row in rows:
            click.echo(orjson.dumps(row, default=str))
    elif not rows:
        click.echo(nothing)
    else:
        from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

        render.show(getattr(render, table)(rows))


async def _expect_project(conn: database.Connection, project_id: int) -> None:
    if not await conn.fetchval("SELECT EXISTS (SELECT 1 FROM projects WHERE id = $1)", project_id):
        raise ClusterError(f"there is no project {project_id}", code="unknown_project")


def audit_document(report: AuditReport) -> dict[str, Any]:
    """The report for programs: with what it says by computing, and instants as people write them."""
    return {
        "holds": report.holds,
        "from": None if report.since_ms is None else iso_instant(report.since_ms),
        "horizon": None if report.horizon_ms is None else iso_instant(report.horizon_ms),
        "projects_audited": report.projects_audited,
        "projects_violating": report.projects_violating,
        "projects_invalid": report.projects_invalid,
        "total": msgspec.to_builtins(report.total),
        "lateness": None if report.lateness is None else msgspec.to_builtins(report.lateness),
        "projects": [
            {"project_id": each.project_id, "name": each.name, "invalid": each.invalid}
            | msgspec.to_builtins(each.account)
            for each in report.projects
        ],
        "projects_left_out": report.projects_left_out,
        "note": report.note,
    }


def iso_instant(instant_ms: int) -> str:
    return datetime.fromtimestamp(instant_ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_instant(option: str, text: str | None) -> datetime | None:
    """ISO 8601 (local time when it names no zone), or a duration before now."""
    if text is None:
        return None
    if ago := _AGO.fullmatch(text.strip()):
        return datetime.now(UTC) - timedelta(**{_AGO_UNITS[ago[2]]: int(ago[1])})
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"{option} must be an instant such as 2026-01-31T12:00:00Z, or 2h for two hours ago, not {text!r}"
        ) from error


COMMANDS: list[Any] = [migrate, audit, results, changes]
