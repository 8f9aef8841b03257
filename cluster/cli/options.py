"""Options that commands share, made from the table in ``cluster.config``."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from cluster import config
from cluster.cli import completing
from cluster.cli.variables import misspelt_variables


class ProjectIdType(click.types.IntParamType):
    """An id as the table may have it (bigint)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        project_id: int = super().convert(value, param, ctx)
        if not -(1 << 63) <= project_id < 1 << 63:
            raise click.BadParameter(f"{value!r} is beyond what an id can be.", ctx=ctx, param=param)
        return project_id

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return completing.project_ids(ctx, param, incomplete)


PROJECT_ID = ProjectIdType()
Command = TypeVar("Command", bound=Callable[..., Any])

EVERYWHERE = ("data_dir",)
ADMIN = (*EVERYWHERE, "admin_endpoint")
DATABASE = (*EVERYWHERE, "database_url")
ALL = tuple(option.name for option in config.OPTIONS)

_METAVARS = {
    "integer": "N",
    "duration": "DURATION",
    "size": "SIZE",
    "choice": "WORD",
    "path": "DIR",
    "file": "FILE",
    "database_url": "URL",
    "address": "HOST:PORT",
    "endpoint": "ENDPOINT",
}


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Give a command the named options and ``--config``; it receives the merged ``settings``."""
    chosen = [option for option in config.OPTIONS if option.name in names]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, config_file: Path | None, **kwargs: Any) -> Any:
            flags = {option.name: kwargs.pop(f"option_{option.name}") for option in chosen}
            for line in misspelt_variables(os.environ):
                click.echo(f"Warning: {line}", err=True)
            settings = config.load(flags, os.environ, config_file)
            return command(*args, settings=settings, **kwargs)

        wrapped: Any = run
        wrapped = click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file with options; also CLUSTER_CONFIG.",
        )(wrapped)
        for option in reversed(chosen):
            is_switch = option.kind == "switch"
            wrapped = click.option(
                f"{option.flag}/--no-{option.flag.removeprefix('--')}" if is_switch else option.flag,
                f"option_{option.name}",
                default=None,
                shell_complete=_offers(option),
                metavar=None if is_switch else "|".join(option.choices) or _METAVARS[option.kind],
                help=f"{option.help}  [{', '.join(option.variables)}]",
            )(wrapped)
        decorated: Command = wrapped
        return decorated

    return decorate


def _offers(option: config.Option) -> completing.Offers | None:
    if option.choices:
        return completing.words(*option.choices)
    return completing.directories if option.kind == "path" else None
