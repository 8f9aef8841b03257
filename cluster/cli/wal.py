"""Commands that look after the WAL of a data directory: what waits there, and delivering it without a cluster."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import msgspec
import orjson

from cluster import config, sockets
from cluster.cli.options import ALL, EVERYWHERE, with_settings
from cluster.embedded import cluster_database
from cluster.errors import ClusterError, ExitCode
from cluster.settings import Settings
from cluster.supervisor.lock import held_role_locks, supervisor_lock
from cluster.wal.listing import StreamInfo, list_streams

WRITER_END_S = 60.0


@click.group()
def wal() -> None:
    """What workers have polled and the database does not have yet."""


@wal.command(name="list")
@with_settings(*EVERYWHERE)
@click.option("--verify", is_flag=True, help="Read every batch and check it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_command(settings: Settings, verify: bool, as_json: bool) -> None:
    """List the streams on disk.

    A stream in use belongs to a running worker; an orphan is delivered by the next worker that runs here. What is
    acknowledged is kept for 10 minutes.
    """
    streams = list_streams(settings.wal_dir, verify=verify)
    if as_json:
        click.echo(orjson.dumps(wal_document(streams), option=orjson.OPT_INDENT_2))
    elif not streams:
        click.echo(f"nothing is in {settings.wal_dir}")
    else:
        from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

        render.show(render.wal_table(streams))


@wal.command()
@with_settings(*ALL)
def replay(settings: Settings) -> int:
    """Deliver what orphans hold to the database, and end.

    For a data directory on which no cluster runs; a running one does this by itself.
    """
    with supervisor_lock(settings.run_dir):
        held = held_role_locks(settings.run_dir)
        if held:
            raise ClusterError(
                f"{', '.join(held)} still run on {settings.data_dir} and deliver it themselves", code="already_running"
            )
        before = _waiting(settings)
        if not before:
            click.echo(f"nothing waits in {settings.wal_dir}")
            return int(ExitCode.DONE)
        click.echo(f"{before} results wait in {settings.wal_dir}")
        sockets.remove_ipc_path(settings.results)
        with _database(settings) as ready, _role("writer", ready) as writer, _role("worker", ready) as worker:
            status = worker.wait()
            writer.send_signal(signal.SIGTERM)
            writer.wait(WRITER_END_S)
        after = _waiting(settings)
        click.echo(f"{before - after} results delivered, {after} wait")
        return int(ExitCode.FAILED if status or after else ExitCode.DONE)


def wal_document(streams: list[StreamInfo]) -> dict[str, Any]:
    """What ``wal list --json`` prints."""
    return {
        "streams": [msgspec.structs.asdict(stream) for stream in streams],
        "records_unacked": sum(stream.records_unacked for stream in streams),
        "bytes": sum(stream.bytes for stream in streams),
        "damaged": sum(stream.damaged for stream in streams),
    }


def _waiting(settings: Settings) -> int:
    return sum(stream.records_unacked for stream in list_streams(settings.wal_dir))


@contextlib.contextmanager
def _database(settings: Settings) -> Iterator[Settings]:
    """The settings with the URL of a database that runs."""
    if settings.database_url is not None:
        yield settings
        return
    with cluster_database(settings.data_dir) as server:
        yield msgspec.structs.replace(settings, database_url=server.dsn())


@contextlib.contextmanager
def _role(role: str, settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """A role's process; killed if it is still there in the end, which only happens after an error."""
    name = "replay" if role == "worker" else role
    environ = config.role_environ(msgspec.structs.replace(settings, name=name, replay=role == "worker"), os.environ)
    process = subprocess.Popen([sys.executable, "-m", role, name], env=environ)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
