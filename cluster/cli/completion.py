"""``cluster completion``: prints the script that has a shell complete the command line; says where to put it."""

import sys

import click
from click.shell_completion import ShellComplete, get_completion_class

VARIABLE = "_CLUSTER_COMPLETE"  # click's: set by the script when it asks us

_INSTALL = {
    "bash": (
        "# For new shells:  cluster completion bash > ~/.local/share/bash-completion/completions/cluster\n"
        '# For this shell:  eval "$(cluster completion bash)"     (bash 4.4 or newer)'
    ),
    "zsh": (
        "# For new shells:  cluster completion zsh > ~/.zfunc/_cluster\n"
        "#                  and in ~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit; compinit\n"
        '# For this shell:  eval "$(cluster completion zsh)"     (after compinit)'
    ),
    "fish": (
        "# For new shells:  cluster completion fish > ~/.config/fish/completions/cluster.fish\n"
        "# For this shell:  cluster completion fish | source"
    ),
}


@click.command()
@click.argument("shell", type=click.Choice(sorted(_INSTALL)))
def completion(shell: str) -> None:
    """Print the script with which a shell completes this command line.

    It completes commands, options, words, workers and project ids. The script says at its head where to put it.
    """
    click.echo(completion_script(shell))
    if sys.stdout.isatty():
        click.echo(_INSTALL[shell].replace("# ", ""), err=True)


def completion_script(shell: str) -> str:
    made_for = get_completion_class(shell)
    assert made_for is not None, shell
    # Not made_for's own source(): it starts a bash to ask for its version, and complains where there is none.
    source = ShellComplete.source(made_for(click.Command("cluster"), {}, "cluster", VARIABLE)).strip()
    head, _, rest = source.partition("\n")
    if head.startswith("#compdef"):  # must stay the first line
        return f"{head}\n{_INSTALL[shell]}\n{rest}"
    return f"{_INSTALL[shell]}\n{source}"
