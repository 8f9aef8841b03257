"""Commands that start and stop processes: up, down, coordinator, writer, worker; and version."""

import contextlib
import os
import platform
import signal
import sys
import time
from importlib.metadata import version as installed_version
from typing import Any

import click
import msgspec

from cluster import config, sockets
from cluster.cli.options import ALL, EVERYWHERE, with_settings
from cluster.errors import ClusterError, InvalidInputError, NotRunningError
from cluster.settings import Settings
from cluster.supervisor.lock import LockHolder, find_holder, held_role_locks, last_words, open_lock_file

DOWN_POLL_S = 0.05
DOWN_SAY_S = 5.0  # how often it says what it waits for
ASKING_S = 1.0  # at least, for a holder of the lock that has not yet said who it is


@click.command()
@with_settings(*ALL)
@click.option("--demo", is_flag=True, help="Also run a local target and poll it with 100 projects.")
def up(settings: Settings, demo: bool) -> int:
    """Run a cluster in the foreground until it is stopped.

    Ctrl-C or `cluster down` lets requests in flight finish and commits every result; a second Ctrl-C ends it at once.
    """
    from cluster.supervisor.service import supervise  # noqa: PLC0415 - other commands shouldn't wait for its imports

    if demo and not config.allows_private(settings):
        raise InvalidInputError(
            "--demo polls a target on loopback, and private addresses are not polled, as --http listens beyond "
            "loopback or --no-allow-private is given; add --allow-private"
        )
    return supervise(settings, demo=demo, announce=click.echo)


@click.command()
@with_settings(*EVERYWHERE)
@click.option("--timeout", default="90s", show_default=True, metavar="DURATION", help="How long to wait for the end.")
def down(settings: Settings, timeout: str) -> None:
    """Stop the cluster: requests in flight finish, everything is committed.

    With --timeout 0 it only asks for the stop, and exits with 1 unless nothing had to be waited for.
    """
    timeout_s = config.parse_duration_s(timeout)
    if timeout_s is None:
        raise InvalidInputError(f"--timeout must be a duration such as 90s or 2m, not {timeout!r}")
    began_at = time.monotonic()
    deadline = began_at + timeout_s
    say_at = began_at + DOWN_SAY_S
    told = 0
    with contextlib.ExitStack() as stack:
        file = None
        while (holder := find_holder(settings.run_dir)) is not None:
            if holder.pid and holder.pid != told:
                if told:
                    break  # ours has ended, this is another one
                told = holder.pid
                file = open_lock_file(settings.run_dir)
                if file is not None:
                    stack.enter_context(file)
                if not holder.stopping:
                    _terminate(holder.pid)
            now = time.monotonic()
            if now >= (deadline if told else max(deadline, began_at + ASKING_S)):
                raise ClusterError(_still_there(settings, holder.pid or told, timeout_s))
            if now >= say_at:
                say_at = now + DOWN_SAY_S
                click.echo(f"stopping for {now - began_at:.0f} s: {_awaited(settings, holder)}", err=True)
            time.sleep(DOWN_POLL_S)
        words = last_words(file) if file is not None else None
    if not told:
        if settings.admin.startswith("ipc://") and sockets.is_served(settings.admin):
            raise ClusterError(
                f"the roles on {settings.data_dir} run without a supervisor: end each of them where it was started, "
                "workers first, the writer and the coordinator after them",
                code="no_supervisor",
            )
        raise NotRunningError(f"no cluster is running on {settings.data_dir}")
    if words is not None and words.pid in {told, 0}:  # 0: nothing could be written; another: these are not its words
        if words.problem:
            raise ClusterError(f"the cluster on {settings.data_dir} has stopped, but: {words.problem}")
        if not words.ended:
            raise ClusterError(
                f"the supervisor on {settings.data_dir} (pid {told}) was killed before all had stopped; its roles end "
                "by themselves, and the next `cluster up` delivers what waits (`cluster wal list` shows it)"
            )
    click.echo("stopped")


def _awaited(settings: Settings, holder: LockHolder) -> str:
    """What a stop takes its time for: its roles, then the database that belongs to it."""
    roles = held_role_locks(settings.run_dir)
    if roles:
        return f"{', '.join(roles)} still run"
    if holder.embedded:
        return f"the embedded PostgreSQL in {settings.data_dir / 'postgres'} is being stopped"
    return f"pid {holder.pid} is finishing"


def _still_there(settings: Settings, pid: int, timeout_s: int) -> str:
    where = f"the cluster on {settings.data_dir} (pid {pid})"
    if not pid:
        return f"whoever has taken the lock of {settings.data_dir} does not say who it is; try again"
    if timeout_s == 0:
        return f"{where} was asked to stop and is stopping; its log says what it waits for"
    return f"{where} has not stopped within {timeout_s} s; its log says what it waits for"


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise ClusterError(f"not allowed to stop pid {pid}; run this as the user that started the cluster") from error


@click.command()
def version() -> None:
    """Show the versions of the program and of what it runs on."""
    click.echo(f"ringpoll {installed_version('ringpoll')} (Python {platform.python_version()}, {platform.platform()})")


def _run_role(role: str, settings: Settings, name: str | None) -> None:
    """Become the role's process, configured by the environment like one that a supervisor starts."""
    if role != "worker" and settings.database_url is None:
        raise InvalidInputError(f"the {role} alone needs a database: give --database-url or set DATABASE_URL")
    named = name or os.environ.get("CLUSTER_NAME") or config.default_name(role)
    environ = config.role_environ(msgspec.structs.replace(settings, name=named), os.environ)
    config.from_environ(environ, role=role)  # says what is wrong before the process is replaced
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", role, named], environ)  # noqa: S606 - this is what it is for


def _role_command(role: str, text: str) -> click.Command:
    @click.command(name=role, help=text)
    @with_settings(*ALL)
    @click.option("--name", metavar="NAME", help="The process' name in the cluster.  [CLUSTER_NAME]")
    def run_role(settings: Settings, name: str | None) -> None:
        _run_role(role, settings, name)

    command: click.Command = run_role
    return command


COMMANDS: list[Any] = [
    up,
    down,
    version,
    _role_command("coordinator", "Run only the coordinator, in the foreground."),
    _role_command("writer", "Run only the writer, in the foreground."),
    _role_command("worker", "Run only one worker, in the foreground."),
]
