"""``cluster token`` and ``cluster user``: who may use the HTTP API and the page away from loopback.

These commands need only the database; a running coordinator hears of a change within seconds.  An empty database gets
our tables first, because a cluster that listens beyond loopback does not start before there is a token or a user.
"""

import getpass
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click
import msgspec
import orjson

from cluster import database
from cluster.access import tokens, users
from cluster.access.scopes import SCOPES, Scope
from cluster.cli.data import with_database
from cluster.cli.options import DATABASE, with_settings
from cluster.config import parse_duration_s
from cluster.errors import ClusterError, InvalidInputError
from cluster.settings import Settings

T = TypeVar("T")

EXPIRES_DAYS_MAX = 3_650
SECONDS_A_DAY = 86_400
_SCOPE = click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default="read",
    show_default=True,
    help="read: see everything; write: also change projects; admin: also scale, reload, secrets, the audit log.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")


@click.group()
def token() -> None:
    """Tokens for the HTTP API: needed where --http listens beyond loopback."""


@token.command("create")
@with_settings(*DATABASE)
@click.option("--name", required=True, metavar="NAME", help="What it is for; the audit log shows it.")
@_SCOPE
@click.option(
    "--expires", default="90d", show_default=True, metavar="DURATION", help="For how long it is valid, or `never`."
)
def create_token(settings: Settings, name: str, scope: Scope, expires: str) -> None:
    """Make a token and print it. It is shown this once: only a hash of it is stored."""
    expires_at = _expiry(expires)
    written = _with_tables(settings, lambda conn: tokens.create(conn, name, scope, expires_at, actor=_actor()))
    click.echo(written)
    until = "for ever" if expires_at is None else f"until {expires_at:%Y-%m-%d %H:%M}Z"
    click.echo(
        f"token {name} may {scope} {until}; it can't be shown again. Send it as: Authorization: Bearer ...", err=True
    )


@token.command("list")
@with_settings(*DATABASE)
@_JSON
def list_all_tokens(settings: Settings, as_json: bool) -> None:
    """List tokens, revoked and expired ones too; the tokens themselves can't be shown."""
    rows = _with_tables(settings, tokens.list_tokens, create=False)
    shown = [msgspec.to_builtins(row) | {"state": row.state()} for row in rows]
    columns = ("name", "id", "scope", "state", "created_at", "expires_at", "last_used_at")
    _show(shown, columns, "no tokens yet; `cluster token create` makes one", as_json=as_json)


@token.command("revoke")
@with_settings(*DATABASE)
@click.argument("name", metavar="NAME|ID")
def revoke_token(settings: Settings, name: str) -> None:
    """End a token: within 5 seconds it is refused."""
    row = _with_tables(settings, lambda conn: tokens.revoke(conn, name, actor=_actor()), create=False)
    click.echo(f"revoked {row.name} ({row.id})")


@click.group()
def user() -> None:
    """People who log in on the page: needed where --http listens beyond loopback."""


@user.command("add")
@with_settings(*DATABASE)
@click.argument("name")
@_SCOPE
def add_user(settings: Settings, name: str, scope: Scope) -> None:
    """Add a user. The password is asked for, or read from standard input."""
    hashed = _new_password_hash()
    _with_tables(settings, lambda conn: users.add(conn, name, hashed, scope, actor=_actor()))
    click.echo(f"added {name}")


@user.command("list")
@with_settings(*DATABASE)
@_JSON
def list_all_users(settings: Settings, as_json: bool) -> None:
    """List users."""
    rows = _with_tables(settings, users.list_users, create=False)
    columns = ("name", "scope", "created_at", "password_changed_at", "last_login_at")
    shown = [msgspec.to_builtins(row) for row in rows]
    _show(shown, columns, "no users yet; `cluster user add NAME` adds one", as_json=as_json)


@user.command("password")
@with_settings(*DATABASE)
@click.argument("name")
def change_password(settings: Settings, name: str) -> None:
    """Set a new password, asked for or read from standard input; the user's sessions end."""
    hashed = _new_password_hash()
    _with_tables(settings, lambda conn: users.set_password(conn, name, hashed, actor=_actor()), create=False)
    click.echo(f"changed the password of {name}")


@user.command("remove")
@with_settings(*DATABASE)
@click.argument("name")
def remove_user(settings: Settings, name: str) -> None:
    """Remove a user; their sessions end."""
    _with_tables(settings, lambda conn: users.remove(conn, name, actor=_actor()), create=False)
    click.echo(f"removed {name}")


def _with_tables(settings: Settings, work: Callable[[database.Connection], Awaitable[T]], *, create: bool = True) -> T:
    """On a database that has our tables; ``create``: an empty one gets them."""

    async def run(conn: database.Connection) -> T:
        version = await database.schema_version(conn)
        if version == 0 and create:
            await database.migrate(conn)
        elif version < len(database.migrations()):
            raise ClusterError("the tables are those of an older version; run `cluster migrate`")
        return await work(conn)

    return with_database(settings, run, create=create)


def _expiry(text: str) -> datetime | None:
    if text.strip() == "never":
        return None
    seconds = parse_duration_s(text)
    if seconds is None or not 0 < seconds <= EXPIRES_DAYS_MAX * SECONDS_A_DAY:
        raise InvalidInputError(
            f"--expires must be `never` or a duration such as 12h or 90d, up to {EXPIRES_DAYS_MAX}d, not {text[:80]!r}"
        )
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _new_password_hash() -> str:
    passwords = users.Passwords()
    try:
        return passwords.hash_password(_password())
    finally:
        passwords.close()


def _password() -> str:
    if sys.stdin.isatty():
        password = str(click.prompt("password", hide_input=True, confirmation_prompt=True, err=True))
    else:
        raw = sys.stdin.buffer.read(users.PASSWORD_BYTES_MAX + 3)
        try:
            password = raw.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InvalidInputError("the password is not UTF-8 text") from error
    users.check_password(password)
    return password


def _actor() -> str:
    """Who ran the command, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # an account without a name, as in a container
        return "cli"


def _show(rows: list[dict[str, Any]], columns: tuple[str, ...], nothing: str, *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            click.echo(orjson.dumps(row))
    elif not rows:
        click.echo(nothing)
    else:
        from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

        render.show(render.plain_table(rows, columns))
