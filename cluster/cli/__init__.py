"""The command line ``cluster``.  Commands live in the modules beside this one; here they are put together, and every
error becomes one line on standard error and an exit status (``cluster.errors.ExitCode``).
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from cluster.cli.examples import EXAMPLES, examples_text
from cluster.cli.lazy import LazyGroup, LazyModule
from cluster.errors import ClusterError, ExitCode

EXIT_INTERRUPTED = 130

# ruff: noqa: PLC0415 - each command pays for its own imports only


def _run() -> list[click.Command]:
    from cluster.cli import run

    return run.COMMANDS


def _admin() -> list[click.Command]:
    from cluster.cli import admin

    return admin.COMMANDS


def _data() -> list[click.Command]:
    from cluster.cli import data

    return data.COMMANDS


def _bench() -> list[click.Command]:
    from cluster.cli import bench

    return bench.COMMANDS


def _plan() -> list[click.Command]:
    from cluster.cli import plan

    return plan.COMMANDS


def _projects() -> list[click.Command]:
    from cluster.cli import projects

    return [projects.projects]


def _secret() -> list[click.Command]:
    from cluster.cli import secret

    return [secret.secret]


def _access() -> list[click.Command]:
    from cluster.cli import access

    return [access.token, access.user]


def _wal() -> list[click.Command]:
    from cluster.cli import wal

    return [wal.wal]


def _completion() -> list[click.Command]:
    from cluster.cli import completion

    return [completion.completion]


def _doctor() -> list[click.Command]:
    from cluster.cli import doctor

    return doctor.COMMANDS


def _top() -> list[click.Command]:
    from cluster.cli import top

    return top.COMMANDS


# The helps are those of the commands; a test compares them.
_MODULES = (
    LazyModule(
        _run,
        {
            "up": "Run a cluster in the foreground until it is stopped.",
            "down": "Stop the cluster: requests in flight finish, everything is committed.",
            "version": "Show the versions of the program and of what it runs on.",
            "coordinator": "Run only the coordinator, in the foreground.",
            "writer": "Run only the writer, in the foreground.",
            "worker": "Run only one worker, in the foreground.",
        },
    ),
    LazyModule(
        _admin,
        {
            "status": "Show what the cluster does.",
            "add": "Add a project, or begin to monitor a row of the table (--id); prints its id.",
            "remove": "Stop polling projects at once; all of them, or none when an id is unknown.",
            "reload": "Read all projects from the database again; unchanged ones keep their ticks.",
            "scale": "Change the number of workers or of HTTP requests in flight while the cluster...",
            "drain": "Move everything off a worker and let it end; the cluster has one worker less.",
        },
    ),
    LazyModule(
        _data,
        {
            "migrate": "Bring the database's tables to this version of the program.",
            "audit": "Check that every tick that was due was polled or counted missed; exit status...",
            "results": "Show the newest results of a project, or write them to standard output or a...",
            "changes": "Show when projects went down or came up, the newest first; of all projects,...",
        },
    ),
    LazyModule(
        _bench,
        {
            "bench": "Measure how many polls per second this machine saves, how late they are and...",
        },
    ),
    LazyModule(
        _plan,
        {
            "plan": "Work out what projects need: slots, workers, CPU time, memory, connections,...",
        },
    ),
    LazyModule(
        _projects,
        {
            "projects": "Look at the table of projects, change and move it.",
        },
    ),
    LazyModule(
        _secret,
        {
            "secret": "Secrets for projects.",
        },
    ),
    LazyModule(
        _access,
        {
            "token": "Tokens for the HTTP API: needed where --http listens beyond loopback.",
            "user": "People who log in on the page: needed where --http listens beyond loopback.",
        },
    ),
    LazyModule(
        _wal,
        {
            "wal": "What workers have polled and the database does not have yet.",
        },
    ),
    LazyModule(
        _top,
        {
            "top": "Watch the cluster: workers, slow and failing projects, changes.",
        },
    ),
    LazyModule(
        _doctor,
        {
            "doctor": "Check limits, port, disk, clock, database and versions; say what to do.",
        },
    ),
    LazyModule(
        _completion,
        {
            "completion": "Print the script with which a shell completes this command line.",
        },
    ),
)


@click.group(
    cls=LazyGroup,
    modules=_MODULES,
    epilog=examples_text(EXAMPLES["cluster"]),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
def cluster() -> None:
    """Poll thousands to a million HTTP endpoints on time, with every result in PostgreSQL."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    sys.exit(run_command(arguments))


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    try:
        result = cluster.main(args=arguments, prog_name="cluster", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return int(ExitCode.USAGE)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "cluster"
        return _complain(f"{error.format_message()}  See `{command} --help`.", ExitCode.USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), ExitCode.FAILED)
    except click.Abort:
        return EXIT_INTERRUPTED
    except ClusterError as error:
        return _complain(str(error), error.exit_code)
    except BrokenPipeError:  # whoever read our output has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.FAILED)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}", ExitCode.FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else int(ExitCode.DONE)


def _complain(message: str, status: ExitCode) -> int:
    click.echo("Error: " + " ".join(message.split()), err=True)
    return int(status)
