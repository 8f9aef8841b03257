"""Commands that are imported when they are asked for: ``--help``, completion and every other command don't wait.

The group knows name and one-line help of each command from a table; a test holds the table against the commands.  What
is added with ``add_command`` is there as in any group.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from cluster.cli.examples import with_examples


class LazyModule(NamedTuple):
    """``load`` imports a module and returns its commands; ``helps``: their names and one-line helps."""

    load: Callable[[], Iterable[click.Command]]
    helps: Mapping[str, str]


class LazyGroup(click.Group):
    def __init__(self, *args: Any, modules: Iterable[LazyModule] = (), **kwargs: Any) -> None:
        self._loaded: dict[str, click.Command] = {}
        self._by_name = {name: module for module in modules for name in module.helps}
        super().__init__(*args, **kwargs)

    @property
    def commands(self) -> dict[str, click.Command]:
        """All of them, imported."""
        for name in list(self._by_name):
            self._load(name)
        return self._loaded

    @commands.setter
    def commands(self, given: Mapping[str, click.Command]) -> None:
        self._loaded = dict(given)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        self._loaded[name or str(cmd.name)] = with_examples(cmd, name or str(cmd.name))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted({*self._by_name, *self._loaded})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        self._load(cmd_name)
        return self._loaded.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self._one_line(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        own = [CompletionItem(name, help=self._one_line(name)) for name in names]
        return own + click.Command.shell_complete(self, ctx, incomplete)

    def _one_line(self, name: str) -> str:
        module = self._by_name.get(name)
        return module.helps[name] if module is not None else self._loaded[name].get_short_help_str(limit=80)

    def _load(self, name: str) -> None:
        module = self._by_name.get(name)
        if module is not None and name not in self._loaded:
            for command in module.load():
                self.add_command(command)
