"""Every command explains itself, with examples the parser takes; asking for help imports nothing heavy."""

import re
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from cluster import cli
from cluster.cli.examples import EXAMPLES


def tree(command=cli.cluster, path="cluster"):
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from tree(below, f"{path} {name}")


COMMANDS = dict(tree())


def help_of(path):
    ran = CliRunner().invoke(cli.cluster, [*path.split()[1:], "--help"], prog_name="cluster")
    assert ran.exit_code == 0
    return ran.output


def examples_in(text):
    return [line.strip() for line in text.partition("\n  Examples:\n")[2].splitlines() if line.strip()]


@pytest.mark.parametrize("path", COMMANDS)
def test_the_help_ends_with_examples_of_the_command(path):
    lines = examples_in(help_of(path))
    assert lines
    assert [line for line in lines if path not in line] == []


@pytest.mark.parametrize("path", COMMANDS)
def test_each_example_is_accepted_by_the_parser(path):
    for line in examples_in(help_of(path)):
        words = shlex.split(re.split(r" [|<>] ", line.partition("   # ")[0])[0], comments=True)
        while "=" in words[0]:
            words.pop(0)  # a variable of the environment
        command, name, arguments = cli.cluster, words[0], words[1:]
        assert name == "cluster"
        while isinstance(command, click.Group):
            context = command.make_context(name, list(arguments))
            name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(name, list(arguments))


def test_no_example_is_of_a_command_that_is_not_there():
    assert set(EXAMPLES) - set(COMMANDS) == set()


@pytest.mark.parametrize("name", sorted(cli.cluster.commands))
def test_the_one_line_help_is_the_commands_own(name):
    assert cli.cluster._one_line(name) == cli.cluster.commands[name].get_short_help_str(limit=80)


def test_what_is_added_is_listed_beside_what_is_imported_later():
    with_more = cli.cluster.__class__("more", modules=[])

    @click.command()
    def extra():
        """Do something else."""

    with_more.add_command(extra)
    assert "Do something else." in CliRunner().invoke(with_more, ["--help"]).output
    assert with_more.commands == {"extra": extra}


def test_help_imports_no_library_that_it_does_not_need():
    program = (
        "import sys; from cluster.cli import run_command; status = run_command(['--help'])\n"
        "heavy = {'asyncio', 'zmq', 'asyncpg', 'aiohttp', 'rich', 'uvloop', 'psutil', 'msgspec'} & set(sys.modules)\n"
        "sys.stderr.write(f'{status} {sorted(heavy)}')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "0 []"
