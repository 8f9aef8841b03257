"""How a project's polls are made beyond what nearly all projects need: the options, and the rules they must obey.

``HttpOptions`` are columns of table ``projects``; whoever polls gets them as one record, or None for a project that
sets none.  The table's CHECK constraints hold the same rules, as far as SQL can say them.  Errors never show a secret.

What an option does is the prober's part (worker/probe).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from cluster.errors import InvalidInputError
from cluster.masking import kind_of
from cluster.secret_references import expect_references

PATH_CHARS_MAX = 4_096
SERVER_NAME_CHARS_MAX = 253
USER_AGENT_CHARS_MAX = 1_000
BASIC_AUTH_CHARS_MAX = 4_096
BEARER_TOKEN_CHARS_MAX = 8_192
PROXY_CHARS_MAX = 4_096
BODY_LIMIT_BYTES_MAX = 1 << 30
CONNECT_TIMEOUT_MS_MAX = 600_000
RETRIES_MAX = 10
RETRY_DELAY_MS_MAX = 60_000

_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_SERVER_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_BEARER_TOKEN = re.compile(r"[\x21-\x7e]+")
_PROXY = re.compile(
    rf"http://([!\"$-.0->A-~]*@)?({_LABEL}(\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(:[0-9]{{1,5}})?/?", re.IGNORECASE
)


class HttpOptions(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Fields are only appended.  Files are PEM, on the host of the worker."""

    verify_tls: bool = True
    ca_file: str | None = None  # who may sign a server's certificate; None: the system's authorities
    client_cert_file: str | None = None  # with the chain, and perhaps the key
    client_key_file: str | None = None
    server_name: str | None = None  # asked for (SNI) and verified in place of the URL's host
    ip_version: Literal[4, 6] | None = None
    connection_reuse: Literal["auto", "never"] = "auto"
    body_limit_bytes: int | None = None  # None: the cluster's setting
    connect_timeout_ms: int | None = None  # of each connection, TLS included; None: the project's time-out only
    user_agent: str | None = None
    basic_auth: str | None = None  # user:password
    bearer_token: str | None = None
    proxy: str | None = None  # http://[user:password@]host[:port]
    retries: int = 0  # how often a poll that failed is made again before it counts
    retry_delay_ms: int = 1_000


REFERRING_OPTIONS = ("basic_auth", "bearer_token")  # which may have references to secrets in them
OPTION_NAMES = HttpOptions.__struct_fields__
# For SELECT lists that name the table p: one value for all options, NULL when all have their default.  A million rows
# that set none cost neither bytes nor objects.
_NULLABLE = ", ".join(f"p.{field.name}" for field in msgspec.structs.fields(HttpOptions) if field.default is None)
OPTIONS_SQL = (
    f"CASE WHEN p.verify_tls AND p.connection_reuse = 'auto' AND p.retries = 0 AND num_nonnulls({_NULLABLE}) = 0 "
    "THEN NULL "
    f"ELSE json_build_array({', '.join(f'p.{name}' for name in OPTION_NAMES)}) END"
)
_decode = msgspec.json.Decoder(HttpOptions).decode
_FLAGS = frozenset({"verify_tls"})
_NUMBERS = frozenset({"ip_version", "body_limit_bytes", "connect_timeout_ms"})
_COUNTS = frozenset({"retries", "retry_delay_ms"})


def options_from_json(array: str) -> HttpOptions:
    """What ``OPTIONS_SQL`` made of a row.  Raises InvalidInputError."""
    try:
        return _decode(array)
    except msgspec.MsgspecError as error:
        raise InvalidInputError(f"the options of its row: {error}") from error


def expect_option_type(name: str, value: object) -> None:
    """Of a value as people write it.  Null is the default, where there is no other."""
    if name in _FLAGS:
        holds, what = isinstance(value, bool), "true or false"
    elif name in _NUMBERS:
        holds = value is None or (isinstance(value, int) and not isinstance(value, bool))
        what = "an integer or null"
    elif name in _COUNTS:
        holds, what = isinstance(value, int) and not isinstance(value, bool), "an integer"
    elif name == "connection_reuse":
        holds, what = isinstance(value, str), "text"
    else:
        holds, what = value is None or isinstance(value, str), "text or null"
    if not holds:
        raise InvalidInputError(f"{name}: must be {what}, not {kind_of(value)}")


def validate_options(options: HttpOptions, url: str, headers: Mapping[str, str] | None) -> None:
    """Raises InvalidInputError naming the first option that is wrong, by itself or beside the others.

    ``url`` and ``headers`` are valid ones.
    """
    for name in ("ca_file", "client_cert_file", "client_key_file"):
        _expect_path(name, getattr(options, name))
    _expect_range("body_limit_bytes", options.body_limit_bytes, BODY_LIMIT_BYTES_MAX)
    _expect_range("connect_timeout_ms", options.connect_timeout_ms, CONNECT_TIMEOUT_MS_MAX)
    if not 0 <= options.retries <= RETRIES_MAX:
        raise InvalidInputError(f"retries: must be from 0 to {RETRIES_MAX}, not {options.retries}")
    _expect_range("retry_delay_ms", options.retry_delay_ms, RETRY_DELAY_MS_MAX)
    if options.ip_version not in {None, 4, 6}:
        raise InvalidInputError(f"ip_version: must be 4, 6 or null, not {options.ip_version}")
    if options.connection_reuse not in {"auto", "never"}:
        raise InvalidInputError(f"connection_reuse: must be auto or never, not {options.connection_reuse[:50]!a}")
    for name in REFERRING_OPTIONS:
        expect_references(name, getattr(options, name) or "")
    _expect_tls(options, url)
    given = {name.lower() for name in headers or ()}
    if (agent := options.user_agent) is not None:
        if not 1 <= len(agent) <= USER_AGENT_CHARS_MAX or not agent.isprintable():
            raise InvalidInputError(f"user_agent: must be 1 to {USER_AGENT_CHARS_MAX} printable characters")
        if "user-agent" in given:
            raise InvalidInputError("user_agent: there is a header User-Agent, too; leave one of them out")
    _expect_authorization(options, url, given)
    if options.proxy is not None:
        _expect_proxy(options.proxy)
    if options.ip_version is not None:
        _expect_address(options.ip_version, url if options.proxy is None else options.proxy)


def _expect_tls(options: HttpOptions, url: str) -> None:
    if options.ca_file is not None and not options.verify_tls:
        raise InvalidInputError("ca_file: nothing is verified with verify_tls false; leave one of them out")
    if options.client_key_file is not None and options.client_cert_file is None:
        raise InvalidInputError("client_key_file: needs client_cert_file, the certificate of the key")
    if (name := options.server_name) is not None and (
        len(name) > SERVER_NAME_CHARS_MAX or not _SERVER_NAME.fullmatch(name)
    ):
        raise InvalidInputError(f"server_name: {name[:100]!a} is not a host name")
    if url[:6].lower() != "https:":
        for option in ("client_cert_file", "server_name"):
            if getattr(options, option) is not None:
                raise InvalidInputError(f"{option}: has a meaning only with an https:// URL")


def _expect_authorization(options: HttpOptions, url: str, given: Iterable[str]) -> None:
    if (basic := options.basic_auth) is not None and (
        ":" not in basic or len(basic) > BASIC_AUTH_CHARS_MAX or not basic.isprintable()
    ):
        raise InvalidInputError(
            f"basic_auth: must be user:password, at most {BASIC_AUTH_CHARS_MAX} printable characters"
        )
    if (token := options.bearer_token) is not None and (
        len(token) > BEARER_TOKEN_CHARS_MAX or not _BEARER_TOKEN.fullmatch(token)
    ):
        raise InvalidInputError(
            f"bearer_token: must be 1 to {BEARER_TOKEN_CHARS_MAX} printable ASCII characters without spaces"
        )
    name = "basic_auth" if basic is not None else "bearer_token" if token is not None else None
    if name is None:
        return
    if basic is not None and token is not None:
        raise InvalidInputError("bearer_token: there is basic_auth, too, and a request has one Authorization")
    if "authorization" in given:
        raise InvalidInputError(f"{name}: there is a header Authorization, too; leave one of them out")
    if "@" in urlsplit(url).netloc:
        raise InvalidInputError(f"{name}: the URL has a user, too; leave one of them out")


def _expect_proxy(proxy: str) -> None:
    if len(proxy) > PROXY_CHARS_MAX or not _PROXY.fullmatch(proxy):
        raise InvalidInputError("proxy: must be like http://proxy.example:3128 or http://user:password@host:port")
    try:
        port = urlsplit(proxy).port
    except ValueError as error:
        raise InvalidInputError("proxy: its host is no address, or its port none from 1 to 65535") from error
    if port == 0:
        raise InvalidInputError("proxy: the port must be from 1 to 65535")


def _expect_address(ip_version: int, url: str) -> None:
    """``url``: of who is connected to."""
    host = urlsplit(url).hostname or ""
    literal = 6 if ":" in host else 4 if host.replace(".", "").isdigit() else None
    if literal not in {None, ip_version}:
        raise InvalidInputError(f"ip_version: {host} is an IPv{literal} address, and is connected to as such")


def _expect_path(name: str, path: str | None) -> None:
    if path is not None and (not path.startswith("/") or len(path) > PATH_CHARS_MAX or not path.isprintable()):
        raise InvalidInputError(f"{name}: must be the absolute path of a file on the workers' host, not {path[:100]!a}")


def _expect_range(name: str, value: int | None, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise InvalidInputError(f"{name}: must be from 1 to {most}, not {value}")
