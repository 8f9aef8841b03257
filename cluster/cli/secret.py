"""``cluster secret``: values that only the workers can read (``cluster.secret_values``)."""

import sys
from pathlib import Path

import click

from cluster.cli.options import EVERYWHERE, with_settings
from cluster.errors import InvalidInputError
from cluster.secret_values import SECRET_BYTES_MAX, VARIABLE_PREFIX, new_key, seal
from cluster.settings import Settings

HELP = f"""Secrets for projects.

Header values, basic_auth and bearer_token may hold ${{NAME}} (a worker's environment variable {VARIABLE_PREFIX}NAME),
${{file:NAME}} (a file in --secrets-dir), or what `cluster secret seal` prints.
"""


@click.group(help=HELP)
def secret() -> None:
    pass


@secret.command("new-key")
@with_settings(*EVERYWHERE, "secrets_dir")
def make_key(settings: Settings) -> None:
    """Make the key for sealed values in --secrets-dir; every worker needs it."""
    click.echo(new_key(_directory(settings)))


@secret.command("seal")
@with_settings(*EVERYWHERE, "secrets_dir")
def seal_value(settings: Settings) -> None:
    """Read a value from the terminal or standard input and print the reference to write in its place."""
    directory = _directory(settings)
    if sys.stdin.isatty():
        value = click.prompt("value", hide_input=True, err=True)
    else:
        raw = sys.stdin.buffer.read(SECRET_BYTES_MAX + 1)
        if len(raw) > SECRET_BYTES_MAX:
            raise InvalidInputError(f"the value is larger than {SECRET_BYTES_MAX} bytes")
        try:
            value = raw.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InvalidInputError("the value is not UTF-8 text") from error
    if not value or not value.isprintable():
        raise InvalidInputError("the value must be one line of printable characters")
    click.echo(seal(value, directory))


def _directory(settings: Settings) -> Path:
    if settings.secrets_dir is None:
        raise InvalidInputError("no directory for secrets: give --secrets-dir or set CLUSTER_SECRETS_DIR")
    return settings.secrets_dir
