"""The examples below each command's ``--help``: one table, each line a command line that works as it stands.

A test asks every command for an example and the parser to accept each.  A comment after ``#`` is for people.
"""

from collections.abc import Sequence

import click

EXAMPLES: dict[str, tuple[str, ...]] = {
    "cluster": (
        "cluster up --demo                           # a cluster with something to poll",
        "cluster add https://example.org/ --interval 30s",
        "cluster top                                 # watch it",
        "cluster doctor                              # is this machine ready for it?",
    ),
    "cluster up": (
        "cluster up --workers 4 --max-concurrent-http 1000",
        "cluster up --demo --data-dir /tmp/demo",
        "cluster up --database-url postgresql://poller@db.example/poller --http 127.0.0.1:8700",
    ),
    "cluster down": (
        "cluster down",
        "cluster down --timeout 5m",
    ),
    "cluster status": (
        "cluster status",
        "cluster status --watch",
        "cluster status --json | jq .workers",
    ),
    "cluster top": (
        "cluster top",
        "cluster top --data-dir /var/lib/ringpoll",
        "NO_COLOR=1 cluster top",
    ),
    "cluster doctor": (
        "cluster doctor",
        "cluster doctor --workers 8 --max-concurrent-http 5000   # for what is to be started",
        "cluster doctor --json | jq '.findings[] | select(.level != \"ok\")'",
    ),
    "cluster completion": (
        "cluster completion bash > ~/.local/share/bash-completion/completions/cluster",
        "cluster completion zsh > ~/.zfunc/_cluster",
        "cluster completion fish > ~/.config/fish/completions/cluster.fish",
    ),
    "cluster add": (
        "cluster add https://example.org/health --name 'the shop' --interval 30s",
        "cluster add https://api.example/items --header 'Accept: application/json' --assert 'body contains ok'",
        "cluster add https://api.example/jobs --method POST --body '{}' --expected-status 200-204 --timeout 5s",
        "cluster add --id 42                              # a row that is in the table already",
    ),
    "cluster remove": (
        "cluster remove 42",
        "cluster remove 42 43 --delete --purge            # the rows and their results, too",
    ),
    "cluster reload": ("cluster reload",),
    "cluster scale": (
        "cluster scale --workers 8",
        "cluster scale --max-concurrent-http 2000",
    ),
    "cluster drain": ("cluster drain worker-3",),
    "cluster migrate": (
        "cluster migrate",
        "cluster migrate --database-url postgresql://poller@db.example/poller",
    ),
    "cluster results": (
        "cluster results 42",
        "cluster results 42 --last 1000 --json | jq .response_time_ms",
    ),
    "cluster changes": (
        "cluster changes",
        "cluster changes 42 --last 5",
    ),
    "cluster audit": (
        "cluster audit",
        "cluster audit --from 1h --project 42",
        "cluster audit --from 2026-01-31T00:00Z --to 2026-02-01T00:00Z --json",
    ),
    "cluster plan": (
        "cluster plan --projects 10000 --interval 5m --latency 3s",
        "cluster plan --projects 20000 --group 5000:5m:3s --group 100:1s:50ms",
    ),
    "cluster bench": (
        "cluster bench --projects 2000 --workers 2",
        "cluster bench --projects 2000,5000 --latency 100ms --seconds 60 --json",
    ),
    "cluster coordinator": ("cluster coordinator --database-url postgresql://poller@db.example/poller",),
    "cluster writer": ("cluster writer --database-url postgresql://poller@db.example/poller",),
    "cluster worker": ("cluster worker --name worker-1",),
    "cluster version": ("cluster version",),
    "cluster projects": (
        "cluster projects list --search shop",
        "cluster projects export projects.jsonl",
    ),
    "cluster projects list": (
        "cluster projects list",
        "cluster projects list --search example.org --json",
    ),
    "cluster projects show": (
        "cluster projects show 42",
        "cluster projects show 42 --json --reveal",
    ),
    "cluster projects enable": ("cluster projects enable 42 43",),
    "cluster projects disable": ("cluster projects disable 42 43",),
    "cluster projects export": (
        "cluster projects export projects.jsonl",
        "cluster projects export - | gzip > projects.jsonl.gz",
    ),
    "cluster projects import": (
        "cluster projects import projects.jsonl --dry-run",
        "cluster projects import - < projects.jsonl",
    ),
    "cluster secret": (
        "cluster secret new-key --secrets-dir /etc/ringpoll/secrets",
        "cluster secret seal --secrets-dir /etc/ringpoll/secrets",
    ),
    "cluster secret new-key": ("cluster secret new-key --secrets-dir /etc/ringpoll/secrets",),
    "cluster secret seal": (
        "cluster secret seal --secrets-dir /etc/ringpoll/secrets          # asks for the value",
        "cluster secret seal --secrets-dir /etc/ringpoll/secrets < token.txt",
    ),
    "cluster token": ("cluster token create --name prometheus --scope read",),
    "cluster token create": (
        "cluster token create --name prometheus --scope read --expires never",
        "cluster token create --name deploy --scope write --expires 30d",
    ),
    "cluster token list": ("cluster token list", "cluster token list --json"),
    "cluster token revoke": ("cluster token revoke deploy",),
    "cluster user": ("cluster user add ann --scope write",),
    "cluster user add": (
        "cluster user add ann --scope admin          # asks for the password",
        "cluster user add ann --scope write < password.txt",
    ),
    "cluster user list": ("cluster user list",),
    "cluster user password": ("cluster user password ann",),
    "cluster user remove": ("cluster user remove ann",),
    "cluster wal": (
        "cluster wal list",
        "cluster wal replay",
    ),
    "cluster wal list": (
        "cluster wal list",
        "cluster wal list --verify --json",
    ),
    "cluster wal replay": ("cluster wal replay --database-url postgresql://poller@db.example/poller",),
}


def examples_text(lines: Sequence[str]) -> str:
    r"""An epilog; ``\b`` has click leave the lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def with_examples(command: click.Command, name: str, parent: str = "cluster") -> click.Command:
    """The command, and those below it, with the examples of the table; one that has an epilog keeps it."""
    path = f"{parent} {name}" if name != parent else parent
    if command.epilog is None and path in EXAMPLES:
        command.epilog = examples_text(EXAMPLES[path])
    if isinstance(command, click.Group) and name != parent:
        for below, each in command.commands.items():
            with_examples(each, below, path)
    return command
