"""The command line ``cluster``.  Commands live in the modules beside this one; here they are put together, and every
error becomes one line on standard error and an exit status (``cluster.errors.ExitCode``).
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from cluster.cli import access, admin, bench, data, plan, projects, run, secret, wal
from cluster.errors import ClusterError, ExitCode

EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cluster() -> None:
    """Poll thousands to a million HTTP endpoints on time, with every result in PostgreSQL."""


for _command in (
    *run.COMMANDS,
    *admin.COMMANDS,
    *data.COMMANDS,
    *bench.COMMANDS,
    *plan.COMMANDS,
    projects.projects,
    secret.secret,
    access.token,
    access.user,
    wal.wal,
):
    cluster.add_command(_command)


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
