"""Where settings come from: flags over environment variables over a TOML file over defaults.

``OPTIONS`` is the one table of what can be configured; flags, variables, file keys, bounds and help texts are made from
it.  An option ``max_concurrent_http`` is the flag ``--max-concurrent-http``, the variable CLUSTER_MAX_CONCURRENT_HTTP
and the key ``max_concurrent_http``; DATABASE_URL and MAX_CONCURRENT_HTTP are understood too.  A wrong value is one
:class:`InvalidInputError` that names the option where it was written and what is allowed there.

``to_environ`` and ``from_environ`` carry settings from a supervisor to its roles.  Nothing is read here but the one
file and the given environment, and nothing is created.
"""

import difflib
import os
import re
import socket
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from cluster.access.origin import is_loopback_host
from cluster.errors import InvalidInputError
from cluster.settings import Settings

CONFIG_BYTES_MAX = 1 << 20
CONFIG_VARIABLE = "CLUSTER_CONFIG"
PREFIX = "CLUSTER_"

OptionKind = Literal[
    "integer", "duration", "size", "choice", "path", "file", "database_url", "http_url", "address", "endpoint", "switch"
]

_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)?")
_DURATION_S = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_SIZE = re.compile(r"([0-9]{1,12})\s*(B|KiB|MiB|GiB)?")
_SIZE_BYTES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SWITCHES = {"true": True, "false": False}
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_PORT = re.compile(r"[0-9]{1,5}")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")


class Option(msgspec.Struct, frozen=True, kw_only=True):
    name: str  # of flag, variable and file key
    field: str  # of Settings
    kind: OptionKind
    help: str
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # further variables

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def variables(self) -> tuple[str, ...]:
        return (self.variable, *self.also)

    @property
    def allowed(self) -> str:
        """What may be written, for an error and for the help."""
        match self.kind:
            case "integer":
                return f"an integer from {self.low} to {self.high}"
            case "duration":
                return f"a duration from {self.low}s to {self.high}s, such as 30s, 5m or 1h"
            case "size":
                return f"a size from {self.low} to {self.high} bytes, such as 65536, 64KiB or 1MiB"
            case "choice":
                return "one of " + ", ".join(self.choices)
            case "path":
                return "a directory"
            case "file":
                return "a file"
            case "database_url":
                return "a URL such as postgresql://user:password@host:5432/database"
            case "http_url":
                return "a URL such as http://127.0.0.1:4318"
            case "address":
                return "HOST:PORT with a port from 1 to 65535, such as 127.0.0.1:8700 or [::1]:8700"
            case "endpoint":
                return "ipc:///absolute/path; over TCP these sockets would be open to anyone"
            case "switch":
                return "true or false"


OPTIONS: tuple[Option, ...] = (
    Option(name="data_dir", field="data_dir", kind="path", help="Directory of the cluster's own files."),
    Option(
        name="database_url",
        field="database_url",
        kind="database_url",
        also=("DATABASE_URL",),
        help="PostgreSQL to use; without it an embedded server runs below the data directory.",
    ),
    Option(name="workers", field="workers", kind="integer", low=1, high=256, help="Worker processes."),
    Option(
        name="max_concurrent_http",
        field="max_concurrent_http",
        kind="integer",
        low=1,
        high=100_000,
        also=("MAX_CONCURRENT_HTTP",),
        help="HTTP requests in flight over the whole cluster.",
    ),
    Option(
        name="max_per_host",
        field="max_per_host",
        kind="integer",
        low=0,
        high=100_000,
        help="HTTP requests in flight to one host and port, 0 for no limit.",
    ),
    Option(name="http", field="http", kind="address", help="Address of the API and the pages."),
    Option(name="http_cert", field="http_cert", kind="file", help="Certificate chain (PEM): serve HTTPS, not HTTP."),
    Option(name="http_key", field="http_key", kind="file", help="Private key (PEM) of --http-cert, not encrypted."),
    Option(
        name="http_behind_tls",
        field="http_behind_tls",
        kind="switch",
        help="A proxy that ends TLS passes on what others ask: authentication is needed on loopback, too.",
    ),
    Option(
        name="allow_private",
        field="allow_private",
        kind="switch",
        help="Poll loopback, private and other addresses that are not public; default: if --http is on loopback.",
    ),
    Option(
        name="retention_days",
        field="retention_days",
        kind="integer",
        low=1,
        high=36_500,
        help="Days for which results are kept.",
    ),
    Option(
        name="history_minutes_days",
        field="history_minutes_days",
        kind="integer",
        low=1,
        high=36_500,
        help="Days for which rollups by minute are kept.",
    ),
    Option(
        name="history_hours_days",
        field="history_hours_days",
        kind="integer",
        low=1,
        high=36_500,
        help="Days for which rollups by hour are kept, at least as long as results.",
    ),
    Option(
        name="history_years",
        field="history_years",
        kind="integer",
        low=1,
        high=100,
        help="Years for which rollups by day are kept, at least as long as those by hour.",
    ),
    Option(
        name="reload_interval",
        field="reload_interval_s",
        kind="duration",
        low=1,
        high=86_400,
        help="How often all projects are read again.",
    ),
    Option(
        name="body_limit",
        field="body_limit_bytes",
        kind="size",
        low=1,
        high=1 << 30,
        help="Bytes of a response body that are read.",
    ),
    Option(
        name="secrets_dir",
        field="secrets_dir",
        kind="path",
        help="Directory of files that projects may refer to, and of the key of sealed values.",
    ),
    Option(
        name="grace",
        field="grace_s",
        kind="duration",
        low=0,
        high=3_600,
        help="How long requests in flight may take at a stop.",
    ),
    Option(
        name="wal_fsync",
        field="wal_fsync",
        kind="choice",
        choices=("off", "interval", "batch"),
        help="When results in the WAL are made safe against a power failure; batch: before each is sent.",
    ),
    Option(
        name="wal_fsync_interval_ms",
        field="wal_fsync_interval_ms",
        kind="integer",
        low=10,
        high=60_000,
        help="Milliseconds between two fsyncs with wal_fsync interval.",
    ),
    Option(
        name="wal_limit",
        field="wal_limit_bytes",
        kind="size",
        low=1 << 20,
        high=1 << 40,
        help="Bytes that the WAL of one worker may take.",
    ),
    Option(
        name="wal_free_floor",
        field="wal_free_floor_bytes",
        kind="size",
        low=0,
        high=1 << 40,
        help="Bytes of the disk that the WAL leaves free.",
    ),
    Option(
        name="wal_full",
        field="wal_full",
        kind="choice",
        choices=("stop", "drop_oldest"),
        help="What happens when the WAL may not grow: polling stops, or its oldest results are given up.",
    ),
    Option(
        name="project_metrics",
        field="project_metrics",
        kind="integer",
        low=0,
        high=1_000,
        help="Projects that have series of their own in /metrics, the first by id; 0 for none.",
    ),
    Option(
        name="traces",
        field="traces_url",
        kind="http_url",
        help="OTLP/HTTP endpoint that traces are sent to; needs the extra ringpoll[otel]. Default: no traces.",
    ),
    Option(
        name="trace_every",
        field="trace_every",
        kind="integer",
        low=0,
        high=1_000_000,
        help="One poll of so many is traced, 0 for none.",
    ),
    Option(
        name="log_level",
        field="log_level",
        kind="choice",
        choices=("debug", "info", "warning", "error"),
        help="The least level that is logged.",
    ),
    Option(
        name="log_format",
        field="log_format",
        kind="choice",
        choices=("auto", "human", "json"),
        help="How log lines look; auto: human on a terminal.",
    ),
    Option(
        name="control_endpoint",
        field="control_endpoint",
        kind="endpoint",
        help="Where the coordinator meets workers and the writer.",
    ),
    Option(name="results_endpoint", field="results_endpoint", kind="endpoint", help="Where the writer meets workers."),
    Option(name="admin_endpoint", field="admin_endpoint", kind="endpoint", help="The admin socket."),
)

# What the supervisor tells a role it starts; a role alone may be given its name.
_ROLE_VARIABLES = {
    "name": "CLUSTER_NAME",
    "incarnation": "CLUSTER_INCARNATION",
    "run_id": "CLUSTER_RUN_ID",
    "run_started_at_ms": "CLUSTER_RUN_STARTED_AT_MS",
    "supervised": "CLUSTER_SUPERVISED",
    "replay": "CLUSTER_REPLAY",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_BY_NAME = {option.name: option for option in OPTIONS}
VARIABLES = frozenset(
    {variable for option in OPTIONS for variable in option.variables} | {*_ROLE_VARIABLES.values(), CONFIG_VARIABLE}
)


def load(flags: Mapping[str, object], environ: Mapping[str, str], config_file: Path | None = None) -> Settings:
    """The settings in force.  Flags that are None and variables that are empty count as not given."""
    if config_file is None and environ.get(CONFIG_VARIABLE):
        config_file = Path(environ[CONFIG_VARIABLE])
    from_file = read_file(config_file) if config_file is not None else {}
    values: dict[str, object] = {}
    for option in OPTIONS:
        found = _find(option, flags, environ, from_file, config_file)
        if found is not None:
            raw, source = found
            values[option.field] = _parse(option, raw, source)
    values.setdefault("data_dir", default_data_dir(environ))
    return msgspec.convert(values, Settings, dec_hook=_as_is)


def read_file(path: Path) -> dict[str, object]:
    """The options in a TOML file; values aren't checked yet."""
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidInputError(f"cannot read the configuration file {path}: {error.strerror}") from error
    if len(raw) > CONFIG_BYTES_MAX:
        raise InvalidInputError(f"the configuration file {path} is larger than {CONFIG_BYTES_MAX} bytes")
    try:
        content = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"the configuration file {path} is not valid TOML: {error}") from error
    for key in content:
        if key not in _BY_NAME:
            near = difflib.get_close_matches(key, _BY_NAME, n=1)
            hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join(sorted(_BY_NAME))
            raise InvalidInputError(f"unknown option {key} in {path}: {hint}")
    return content


def default_data_dir(environ: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/ringpoll")
    base = environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "ringpoll"


def to_environ(settings: Settings) -> dict[str, str]:
    """The variables from which ``from_environ`` makes these settings."""
    variables = {}
    for option in OPTIONS:
        value = getattr(settings, option.field)
        if value is not None and value != "":
            variables[option.variable] = str(value).lower() if isinstance(value, bool) else str(value)
    for field, variable in _ROLE_VARIABLES.items():
        value = getattr(settings, field)
        if value:
            variables[variable] = str(int(value)) if isinstance(value, bool) else str(value)
    return variables


def role_environ(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """A whole environment for a role's process: ours replaced, everything else passed on."""
    return {name: value for name, value in environ.items() if name not in VARIABLES} | to_environ(settings)


def from_environ(environ: Mapping[str, str] | None = None, *, role: str = "") -> Settings:
    """A role's settings.  A role that nobody named takes its role's name, a worker with the host's name appended."""
    environ = os.environ if environ is None else environ
    settings = load({}, environ)
    name = environ.get(_ROLE_VARIABLES["name"], "") or default_name(role)
    if name and not _NAME.fullmatch(name):
        raise InvalidInputError(f"{_ROLE_VARIABLES['name']} must be 1 to 63 letters, digits, '.', '_' or '-'")
    started = environ.get(_ROLE_VARIABLES["run_started_at_ms"], "0")
    if not _INTEGER.fullmatch(started):
        raise InvalidInputError(f"{_ROLE_VARIABLES['run_started_at_ms']} must be an integer, not {started!r}")
    return msgspec.structs.replace(
        settings,
        name=name,
        incarnation=environ.get(_ROLE_VARIABLES["incarnation"], "") or uuid.uuid4().hex,
        run_id=environ.get(_ROLE_VARIABLES["run_id"], ""),
        run_started_at_ms=int(started),
        supervised=environ.get(_ROLE_VARIABLES["supervised"], "") == "1",
        replay=environ.get(_ROLE_VARIABLES["replay"], "") == "1",
    )


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port of a checked ``http`` setting."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def serves_this_machine_only(settings: Settings) -> bool:
    """Whether nobody else can reach us over HTTP: it is on loopback, and no proxy passes on what others ask."""
    host, _ = split_address(settings.http)
    return is_loopback_host(host) and not settings.http_behind_tls


def allows_private(settings: Settings) -> bool:
    """Whether addresses may be polled that are not public: as configured, else unless others can reach us over HTTP."""
    return serves_this_machine_only(settings) if settings.allow_private is None else settings.allow_private


def http_url(settings: Settings) -> str:
    """Where the HTTP server is, without a path."""
    return f"{'http' if settings.http_cert is None else 'https'}://{settings.http}"


def parse_duration_s(text: str) -> int | None:
    """'30s', '5m', '1h', '1d' or a number of seconds; None when it is none of these."""
    found = _DURATION.fullmatch(text.strip())
    return int(found[1]) * _DURATION_S[found[2] or ""] if found else None


def default_name(role: str) -> str:
    if role != "worker":
        return role
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:50].strip("-.") or "alone"
    return f"worker-{host}"


def _as_is(_kind: type, value: object) -> object:
    return value


def _find(
    option: Option,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    from_file: Mapping[str, object],
    config_file: Path | None,
) -> tuple[object, str] | None:
    """The raw value of an option and where it was written."""
    if flags.get(option.name) is not None:
        return flags[option.name], option.flag
    for variable in option.variables:
        if environ.get(variable):
            return environ[variable], f"the variable {variable}"
    if option.name in from_file:
        return from_file[option.name], f"{option.name} in {config_file}"
    return None


def _parse(option: Option, raw: object, source: str) -> object:
    value = _value(option, raw)
    if value is None:
        raise InvalidInputError(f"{source} must be {option.allowed}{_unless_secret(option, raw)}")
    return value


def _unless_secret(option: Option, raw: object) -> str:
    """', not VALUE', but for what may hold a password."""
    return "" if option.kind in {"database_url", "http_url"} else f", not {str(raw)[:200]!r}"


def _value(option: Option, raw: object) -> object:
    """The parsed value, or None when it isn't allowed."""
    if option.kind == "switch":
        return raw if isinstance(raw, bool) else _SWITCHES.get(str(raw).strip())
    if isinstance(raw, bool) or not isinstance(raw, str | int | Path):
        return None
    text = str(raw).strip()
    match option.kind:
        case "integer":
            return _bounded(option, int(text)) if _INTEGER.fullmatch(text) else None
        case "duration":
            return _bounded(option, parse_duration_s(text))
        case "size":
            found = _SIZE.fullmatch(text)
            return _bounded(option, int(found[1]) * _SIZE_BYTES[found[2] or ""]) if found else None
        case "choice":
            return text if text in option.choices else None
        case "path" | "file":
            return _path(text) if isinstance(raw, str | Path) else None
        case "database_url":
            return text if _is_database_url(text) else None
        case "http_url":
            return text if _is_http_url(text) else None
        case "address":
            return text if _is_address(text) else None
        case "endpoint":
            return text if _is_endpoint(text) else None


def _bounded(option: Option, value: int | None) -> int | None:
    return value if value is not None and option.low <= value <= option.high else None


def _path(text: str) -> Path | None:
    if not text or not text.isprintable():
        return None
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 - not resolve(): links stay as written


def _is_database_url(text: str) -> bool:
    return _url_parts(text, "postgresql", "postgres") is not None


def _is_http_url(text: str) -> bool:
    parts = _url_parts(text, "http", "https")
    return parts is not None and bool(parts.hostname)


def _url_parts(text: str, *schemes: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises when it isn't a number
    except ValueError:
        return None
    return parts if parts.scheme in schemes and text.isprintable() and " " not in text else None


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(_HOST.fullmatch(host) and _PORT.fullmatch(port)) and 1 <= int(port) <= 65_535


def _is_endpoint(text: str) -> bool:
    """Only ipc: its directory's mode is the authentication.  TCP is for when CURVE guards it."""
    return text.startswith("ipc:///") and text.isprintable()
