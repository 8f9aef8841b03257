"""Commands that speak to a running cluster: status, add, remove, reload, scale, drain."""

import re
import time
from typing import Any

import click
import msgspec
import orjson

from cluster.admin_client import AdminClient, request
from cluster.assertions import parse_assertion
from cluster.cli import completing
from cluster.cli.options import ADMIN, PROJECT_ID, with_settings
from cluster.errors import InvalidInputError
from cluster.http_options import OPTION_NAMES
from cluster.project import ProjectFields, parse_header, project_from_map
from cluster.settings import Settings

WATCH_EVERY_S = 1.0
_TIMEOUT = re.compile(r"([0-9]{1,9})(ms|s|m)?")
_TIMEOUT_MS = {"ms": 1, "s": 1_000, "m": 60_000}
_AS_GIVEN = ("name", "interval", "method", "body", "expected_status", "down_after", "up_after", *OPTION_NAMES)


@click.command()
@with_settings(*ADMIN)
@click.option("--json", "as_json", is_flag=True, help="Print the status document as JSON.")
@click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C.")
def status(settings: Settings, as_json: bool, watch: bool) -> None:
    """Show what the cluster does."""
    from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

    with AdminClient(settings) as client:
        document = client.request({"type": "status"})["status"]
        if watch and not as_json:
            with render.live(render.status_view(document)) as live:
                while True:
                    time.sleep(WATCH_EVERY_S)
                    live.update(render.status_view(client.request({"type": "status"})["status"]), refresh=True)
        elif watch:
            while True:
                click.echo(orjson.dumps(document))
                time.sleep(WATCH_EVERY_S)
                document = client.request({"type": "status"})["status"]
        elif as_json:
            click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        else:
            render.show(render.status_view(document))


@click.command()
@with_settings(*ADMIN)
@click.argument("url", required=False)
@click.option("--id", "project_id", type=PROJECT_ID, metavar="ID", help="Monitor a row that is already in the table.")
@click.option("--name", help="A name for people.")
@click.option("--interval", metavar="DURATION", help="How often: 30s, 5m, 1h.  [default: 60s]")
@click.option("--method", shell_complete=completing.words(*completing.METHODS), help="Any HTTP method.  [default: GET]")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A request header; repeatable.")
@click.option("--body", help="The request's body.")
@click.option("--expected-status", help="200, 2xx or 200-299,301.  [default: 200]")
@click.option("--timeout", metavar="DURATION", help="For the whole exchange: 500ms, 10s.  [default: 30s]")
@click.option("--no-follow-redirects", is_flag=True, help="Judge a redirect's own status.")
@click.option("--down-after", type=int, metavar="N", help="Failures in a row until it is down.  [default: 1]")
@click.option("--up-after", type=int, metavar="N", help="Successes in a row until it is up again.  [default: 1]")
@click.option(
    "--assert", "assertions", multiple=True, metavar="ASSERTION", help="Such as 'body contains ok'; repeatable."
)
@click.option("--disabled", is_flag=True, help="Add it without polling it.")
@click.option("--no-verify-tls", is_flag=True, help="Take any certificate.")
@click.option("--ca-file", metavar="FILE", help="PEM, on the workers' host: who may sign the server's certificate.")
@click.option("--client-cert-file", metavar="FILE", help="PEM, on the workers' host: our certificate.")
@click.option("--client-key-file", metavar="FILE", help="Its key, when that is in a file of its own.")
@click.option("--server-name", metavar="NAME", help="Ask TLS for this name, and verify it, in place of the URL's host.")
@click.option("--ip-version", type=click.Choice(["4", "6"]), help="Connect over this one only.")
@click.option(
    "--connection-reuse",
    metavar="auto|never",
    shell_complete=completing.words("auto", "never"),
    help="never: a new connection for each request.",
)
@click.option(
    "--body-limit-bytes", type=int, metavar="N", help="Read so much of a body.  [default: --body-limit of up]"
)
@click.option("--connect-timeout", metavar="DURATION", help="For each connection with its TLS handshake: 500ms, 3s.")
@click.option("--user-agent", metavar="TEXT", help="In place of ringpoll/VERSION.")
@click.option("--basic-auth", metavar="USER:PASSWORD", help="Sent to the URL's own origin only.")
@click.option("--bearer-token", metavar="TOKEN", help="Sent to the URL's own origin only.")
@click.option("--retries", type=int, metavar="N", help="Ask so often again before a failure counts.  [default: 0]")
@click.option("--retry-delay", metavar="DURATION", help="Between two of them: 500ms, 5s.  [default: 1s]")
@click.option("--proxy", metavar="URL", help="http://[user:password@]host:port")
def add(settings: Settings, url: str | None, project_id: int | None, **written: Any) -> None:
    """Add a project, or begin to monitor a row of the table (--id); prints its id."""
    given = {name: value for name, value in written.items() if value is not None and value is not False and value != ()}
    if (url is None) == (project_id is None):
        raise click.UsageError("Give either a URL or --id.")
    if project_id is not None:
        if given:
            raise click.UsageError("--id takes the project as it is in the table: leave out the other options.")
        reply = request(settings, {"type": "add", "id": project_id})
    else:
        project = msgspec.to_builtins(project_from_written(url or "", given))
        reply = request(settings, {"type": "add", "project": project})
    click.echo(reply["id"])


def project_from_written(url: str, given: dict[str, Any]) -> ProjectFields:
    """A project of the options of ``cluster add`` that were given."""
    fields: dict[str, Any] = {"url": url}
    fields |= {name: given[name] for name in _AS_GIVEN if name in given}
    if "timeout" in given:
        fields["timeout_ms"] = parse_timeout_ms(given["timeout"])
    if "connect_timeout" in given:
        fields["connect_timeout_ms"] = parse_timeout_ms(given["connect_timeout"], "connect_timeout:")
    if "retry_delay" in given:
        fields["retry_delay_ms"] = parse_timeout_ms(given["retry_delay"], "retry_delay:")
    if "ip_version" in given:
        fields["ip_version"] = int(given["ip_version"])
    if "no_verify_tls" in given:
        fields["verify_tls"] = False
    if "headers" in given:
        headers: dict[str, str] = {}
        for line in given["headers"]:
            name, value = parse_header(line)
            if name in headers:
                raise InvalidInputError(f"headers: {name!r} is given twice")
            headers[name] = value
        fields["headers"] = headers
    if "assertions" in given:
        fields["assertions"] = [msgspec.to_builtins(parse_assertion(line)) for line in given["assertions"]]
    if "no_follow_redirects" in given:
        fields["follow_redirects"] = False
    if "disabled" in given:
        fields["enabled"] = False
    return project_from_map(fields)


def parse_timeout_ms(text: str, name: str = "timeout:") -> int:
    found = _TIMEOUT.fullmatch(text.strip())
    if not found:
        raise InvalidInputError(f"{name} must be a number with ms, s or m, such as 500ms or 10s, not {text[:200]!r}")
    return int(found[1]) * _TIMEOUT_MS[found[2] or "s"]


@click.command()
@with_settings(*ADMIN)
@click.argument("ids", metavar="ID...", type=PROJECT_ID, nargs=-1, required=True)
@click.option("--delete", is_flag=True, help="Also delete the project's row.")
@click.option("--purge", is_flag=True, help="With --delete: its results go at once, too.")
def remove(settings: Settings, ids: tuple[int, ...], delete: bool, purge: bool) -> None:
    """Stop polling projects at once; all of them, or none when an id is unknown."""
    if purge and not delete:
        raise click.UsageError("--purge needs --delete.")
    message: dict[str, Any] = {"type": "remove", "ids": list(ids), "delete": delete}
    if purge:
        message["purge"] = True
    request(settings, message)
    click.echo(f"{'deleted' if delete else 'disabled'} {len(set(ids))}")


@click.command("reload")
@with_settings(*ADMIN)
def reload_projects(settings: Settings) -> None:
    """Read all projects from the database again; unchanged ones keep their ticks."""
    reply = request(settings, {"type": "reload"}, timeout_s=120)
    counts = [f"{reply[name]} {name}" for name in ("added", "changed", "removed") if isinstance(reply.get(name), int)]
    click.echo("reloaded" + (": " + ", ".join(counts) if counts else ""))


@click.command()
@with_settings(*ADMIN)
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="How many worker processes.")
@click.option("--max-concurrent-http", type=click.IntRange(1, 100_000), metavar="N", help="Requests in flight.")
def scale(settings: Settings, workers: int | None, max_concurrent_http: int | None) -> None:
    """Change the number of workers or of HTTP requests in flight while the cluster runs."""
    if workers is None and max_concurrent_http is None:
        raise click.UsageError("Give --workers or --max-concurrent-http.")
    message: dict[str, Any] = {"type": "scale"}
    if workers is not None:
        message["workers"] = workers
    if max_concurrent_http is not None:
        message["max_concurrent_http"] = max_concurrent_http
    request(settings, message)
    click.echo("scaled")


@click.command()
@with_settings(*ADMIN)
@click.argument("worker", shell_complete=completing.worker_names)
def drain(settings: Settings, worker: str) -> None:
    """Move everything off a worker and let it end; the cluster has one worker less."""
    request(settings, {"type": "drain", "worker": worker})
    click.echo(f"draining {worker}")


COMMANDS: list[Any] = [status, add, remove, reload_projects, scale, drain]
